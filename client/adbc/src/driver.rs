//! The driver: makes databases.

use adbc_core::Driver;
use adbc_core::error::Result;
use adbc_core::options::{OptionDatabase, OptionValue};

use crate::database::ThallusDatabase;

/// The driver. It has no state.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThallusDriver {}

impl Driver for ThallusDriver {
    type DatabaseType = ThallusDatabase;

    fn new_database(&mut self) -> Result<ThallusDatabase> {
        self.new_database_with_opts([])
    }

    fn new_database_with_opts(
        &mut self,
        options: impl IntoIterator<Item = (OptionDatabase, OptionValue)>,
    ) -> Result<ThallusDatabase> {
        ThallusDatabase::new(options)
    }
}
