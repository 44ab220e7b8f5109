//! Flags for a database behind an ADBC driver.

use std::str::FromStr;

use clap::Args;
use thallus_adbc_engine::AdbcConfig;

use crate::config::ConfigError;

/// A database instead of the tables of files.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "A database with an ADBC driver, instead of tables of files")]
pub struct AdbcArgs {
    /// The driver: path of its shared library or manifest, or a name such as duckdb. Its code runs in the server.
    #[arg(long, value_name = "DRIVER")]
    pub adbc_driver: Option<String>,

    /// The driver's initialization function [default: that of the manifest, or by the library's name].
    #[arg(long, value_name = "NAME")]
    pub adbc_entrypoint: Option<String>,

    /// The database, in the form of the driver: a file, or a URI.
    #[arg(long, value_name = "URI")]
    pub uri: Option<String>,

    /// A further option of the database. May be repeated.
    #[arg(long = "adbc-option", value_name = "KEY=VALUE")]
    pub adbc_options: Vec<OptionArg>,

    /// Most connections to the database at a time; each running statement and upload takes one [default: 16].
    #[arg(long, value_name = "COUNT")]
    pub adbc_max_connections: Option<usize>,
}

/// `KEY=VALUE` of an `--adbc-option` flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionArg {
    /// The option's name.
    pub key: String,
    /// The option's value, which may be empty.
    pub value: String,
}

impl FromStr for OptionArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(OptionArg { key: key.to_owned(), value: value.to_owned() }),
            _ => Err("expected KEY=VALUE, such as access_mode=READ_ONLY".to_owned()),
        }
    }
}

impl AdbcArgs {
    /// Changes the configuration as the flags say.
    pub(crate) fn apply(self, config: &mut Option<AdbcConfig>) -> Result<(), ConfigError> {
        let AdbcArgs { adbc_driver, adbc_entrypoint, uri, adbc_options, adbc_max_connections } = self;
        let any_other =
            adbc_entrypoint.is_some() || uri.is_some() || !adbc_options.is_empty() || adbc_max_connections.is_some();
        let adbc = match (config, adbc_driver) {
            (config, Some(driver)) => {
                let adbc = config.get_or_insert_default();
                adbc.driver = driver;
                adbc
            }
            (Some(adbc), None) => adbc,
            (None, None) if any_other => return Err(ConfigError::NoDriver),
            (None, None) => return Ok(()),
        };
        adbc.entrypoint = adbc_entrypoint.or(adbc.entrypoint.take());
        adbc.uri = uri.or(adbc.uri.take());
        adbc.options.extend(adbc_options.into_iter().map(|option| (option.key, option.value)));
        adbc.max_connections = adbc_max_connections.unwrap_or(adbc.max_connections);
        Ok(())
    }
}
