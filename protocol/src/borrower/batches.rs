//! Batches on loan: those that are being read, and those on demand.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::StreamError;
use crate::ids::{LeaseId, PartId, ReadId, RemoteRange, StreamId};
use crate::layout::CheckedDescriptor;
use crate::message::LeaseWord;

/// A batch: its stream and its position there.
pub(super) type BatchKey = (StreamId, u64);

/// A batch on demand.
#[derive(Debug)]
pub(super) struct OnDemandBatch {
    pub(super) lease: LeaseId,
    pub(super) word: Option<LeaseWord>,
    pub(super) descriptor: Arc<CheckedDescriptor>,
    /// Places of the buffers that are not empty, with the buffers' indices, in order.
    pub(super) places: Vec<(usize, RemoteRange)>,
    /// Parts that are not answered yet.
    pub(super) parts: BTreeMap<PartId, ReadId>,
    /// Number of reads that have not completed, cancelled ones included.
    pub(super) reads: usize,
    /// The error after which it cannot be read any more.
    pub(super) lost: Option<StreamError>,
    /// The application is done with it.
    pub(super) given_up: bool,
    /// The lease has been released.
    pub(super) returned: bool,
}

/// The purpose of a read.
#[derive(Debug)]
pub(super) enum Wanted {
    /// All of a batch with this shape.
    Batch(Arc<CheckedDescriptor>),
    /// A part of a batch on demand.
    Part(PartId),
    /// All of a batch with this shape, mapped instead of read.
    Mapping(Arc<CheckedDescriptor>),
}

/// A batch, or a part of one, that is being read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) stream: StreamId,
    pub(super) seq: u64,
    pub(super) lease: LeaseId,
    pub(super) word: Option<LeaseWord>,
    pub(super) wanted: Wanted,
}
