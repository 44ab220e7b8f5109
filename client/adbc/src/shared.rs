//! The part of a connection that its statements share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use adbc_core::error::Result;
use thallus_client::{CatalogObject, Defaults, ObjectsRequest};

use crate::cancel::{Cancel, Watch};
use crate::session::Session;

/// The part of a connection that its statements share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) session: Arc<Session>,
    pub(crate) cancel: Cancel,
    defaults: Mutex<Defaults>,
}

impl Shared {
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Shared { session, cancel: Cancel::new(), defaults: Mutex::default() }
    }

    /// Catalog and schema of names without one.
    pub(crate) fn defaults(&self) -> Defaults {
        self.lock().clone()
    }

    pub(crate) fn set_catalog(&self, name: String) {
        self.lock().catalog = Some(name);
    }

    pub(crate) fn set_schema(&self, name: String) {
        self.lock().schema = Some(name);
    }

    fn lock(&self) -> MutexGuard<'_, Defaults> {
        self.defaults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists objects of the server's catalog.
    ///
    /// # Errors
    /// Those of the server.
    pub(crate) fn objects(&self, request: &ObjectsRequest) -> Result<Vec<CatalogObject>> {
        let mut watch = Watch::new(&self.cancel, None)?;
        self.session.run(&mut watch, self.session.client()?.objects(request))
    }
}
