//! Segments need memory files, which only Linux has: here there are none.

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use crate::memory::{RegisteredMemory, Trimmed};
use crate::{Fabric, FabricError};

/// A region that cannot exist.
pub(super) enum Segments {}

impl Segments {
    pub(super) fn are_for(_fabric: &dyn Fabric) -> bool {
        false
    }

    pub(super) fn new(fabric: Arc<dyn Fabric>, _len: usize) -> Result<Self, FabricError> {
        Err(FabricError::Unsupported { fabric: fabric.kind(), what: "lend memory files on this system" })
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        match *self {}
    }

    pub(super) fn len(&self) -> usize {
        match *self {}
    }

    pub(super) fn mapped(&self) -> usize {
        match *self {}
    }

    pub(super) fn commit(&self, _address: usize, _len: usize) -> bool {
        match *self {}
    }

    pub(super) fn take_refusal(&self) -> Option<std::io::Error> {
        match *self {}
    }

    pub(super) fn decommit(&self, _address: usize, _len: usize) {
        match *self {}
    }

    pub(super) fn find(&self, _address: usize, _len: usize) -> Option<Arc<RegisteredMemory>> {
        match *self {}
    }

    pub(super) fn trim(&self, _idle: Duration, _trimmed: &mut Trimmed) {
        match *self {}
    }
}
