//! The driver, and what it is given.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thallus_server::config::Span;

/// A driver, its database, and the limits of its use.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdbcConfig {
    /// The driver: the path of a shared library or of a manifest, or a name. A name is that of a manifest (`duckdb` for
    /// `duckdb.toml` in the directories of ADBC), or of a library that the dynamic linker finds (`libduckdb.so`).
    pub driver: String,
    /// The function of the library that initializes the driver. By default that of the manifest, or the name that
    /// follows from the library's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<String>,
    /// The option `uri` of the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Further options of the database.
    pub options: BTreeMap<String, String>,
    /// Most connections to the database at a time. Each statement and each upload takes one.
    pub max_connections: usize,
    /// Longest time for which a statement waits for a connection.
    pub connection_wait: Span,
}

impl Default for AdbcConfig {
    fn default() -> Self {
        AdbcConfig {
            driver: String::new(),
            entrypoint: None,
            uri: None,
            options: BTreeMap::new(),
            max_connections: 16,
            connection_wait: Span::secs(30),
        }
    }
}

impl fmt::Debug for AdbcConfig {
    /// Without the values of options, which may be passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("AdbcConfig");
        fields.field("driver", &self.driver).field("entrypoint", &self.entrypoint);
        fields.field("options", &self.options.keys().collect::<Vec<_>>());
        fields.field("max_connections", &self.max_connections).finish_non_exhaustive()
    }
}

impl AdbcConfig {
    /// The driver of this path or name, with defaults for the rest.
    #[must_use]
    pub fn new(driver: impl Into<String>) -> Self {
        AdbcConfig { driver: driver.into(), ..AdbcConfig::default() }
    }

    /// The entry point to look for. DuckDB's library has one whose name does not follow from its own.
    pub(crate) fn entrypoint(&self) -> Option<&str> {
        let duckdb = || self.driver.to_lowercase().contains("duckdb").then_some("duckdb_adbc_init");
        self.entrypoint.as_deref().or_else(duckdb)
    }
}
