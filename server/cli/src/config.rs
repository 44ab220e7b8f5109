//! What `thallus-server` can be told, by a TOML file and by flags.
//!
//! Every key has a default, so that an empty file is a whole configuration; a key that does not exist is an error that
//! names it. `thallus-server.example.toml` beside this crate lists every key with its default and its meaning.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Deserializer, Serialize, de};
#[cfg(feature = "adbc")]
use thallus_adbc_engine::AdbcConfig;
use thallus_server::config::{EngineConfig, FabricConfig, InvalidValue, Limits, ServerConfig, TableConfig, Timeouts};
use thiserror::Error;

/// Default address: this host only, since the server does not authenticate.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7807";

/// The whole configuration of the program: that of its [server](ServerConfig), the socket and the log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen for control connections.
    pub listen: ListenAddress,
    // The sections of the server, one by one: serde cannot flatten them and still name a key that does not exist.
    /// Directories of which every file and sub-directory becomes a table, named by its stem.
    pub data: Vec<PathBuf>,
    /// Whether a file in these directories that cannot be served is an error, instead of a warning.
    pub strict: bool,
    /// Tables by name, besides those of `data`.
    pub tables: BTreeMap<String, TableConfig>,
    /// Directory of the database: tables that clients create and change. Without it the server only reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<PathBuf>,
    /// Limits for one peer, and for all together.
    pub limits: Limits,
    /// Times after which waiting ends.
    pub timeouts: Timeouts,
    /// Fabric of the data plane.
    pub fabric: FabricConfig,
    /// The query engine.
    pub engine: EngineConfig,
    /// A database with an ADBC driver, instead of the query engine and its tables.
    #[cfg(feature = "adbc")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adbc: Option<AdbcConfig>,
    /// Filter and form of the log.
    pub log: LogConfig,
}

/// `HOST:PORT`; the host a name or an address, an IPv6 address in brackets; port 0 lets the system choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListenAddress(String);

impl ListenAddress {
    /// As `tokio::net::TcpListener::bind` takes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ListenAddress {
    fn default() -> Self {
        ListenAddress(DEFAULT_LISTEN.to_owned())
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let host_and_port = text.rsplit_once(':').filter(|(host, port)| {
            let bracketed = host.starts_with('[') && host.ends_with(']');
            !host.is_empty() && (bracketed || !host.contains(':')) && port.parse::<u16>().is_ok()
        });
        match host_and_port {
            Some(_) => Ok(ListenAddress(text.to_owned())),
            None => Err(format!("`{text}` is not HOST:PORT, such as {DEFAULT_LISTEN} or [::1]:7807")),
        }
    }
}

impl<'de> Deserialize<'de> for ListenAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Filter and form of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A level (error, warn, info, debug, trace), or directives such as `info,thallus_server=debug`.
    pub filter: String,
    /// Form of a log line.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { filter: "info".to_owned(), format: LogFormat::Full }
    }
}

/// Form of a log line, in the terms of `tracing-subscriber`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line with time, level, span, target, fields.
    #[default]
    Full,
    /// One shorter line.
    Compact,
    /// Several lines, for reading while developing.
    Pretty,
    /// One JSON object a line, for collectors of logs.
    Json,
}

/// A configuration that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The file is not TOML, has a key that does not exist, or a value of the wrong kind.
    #[error("{}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, key and reason.
        message: String,
    },
    /// A value is out of its range.
    #[error(transparent)]
    Invalid(#[from] InvalidValue),
    /// Something concerns a database with an ADBC driver, and no driver is named.
    #[error("no driver is named: give --adbc-driver, or `driver` in the section [adbc]")]
    NoDriver,
    /// A setting of the query engine or its tables does not fit to a database with an ADBC driver.
    #[error(
        "{what} cannot be combined with an ADBC driver: the database has its own tables and settings; leave out one of \
         the two, or pass a setting of the database by --adbc-option"
    )]
    WithAdbc {
        /// The setting.
        what: &'static str,
    },
    /// Two `--table` flags name one table.
    #[error("table `{name}` is given twice: {} and {}", first.display(), second.display())]
    DuplicateTable {
        /// The name.
        name: String,
        /// Where the first comes from.
        first: PathBuf,
        /// Where the second comes from.
        second: PathBuf,
    },
}

impl Config {
    /// Reads a file. Its relative paths are taken from the directory that it is in. Not validated yet.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Parse`].
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config =
            Self::from_toml(&text).map_err(|e| ConfigError::Parse { path: path.to_owned(), message: e.to_string() })?;
        let base = path.parent().unwrap_or(Path::new(""));
        for relative in config
            .data
            .iter_mut()
            .chain(config.tables.values_mut().map(|table| &mut table.path))
            .chain(&mut config.database)
            .chain(&mut config.fabric.shm.directory)
            .chain(&mut config.fabric.ucx.library)
            .chain(&mut config.engine.spill_dir)
        {
            *relative = base.join(&*relative);
        }
        // A name without a slash is looked for among the drivers of this host.
        #[cfg(feature = "adbc")]
        if let Some(adbc) = config.adbc.as_mut().filter(|adbc| adbc.driver.contains('/')) {
            adbc.driver = base.join(&adbc.driver).display().to_string();
        }
        Ok(config)
    }

    /// Parses the text of a file; relative paths stay as they are. Not validated yet.
    ///
    /// # Errors
    /// What is wrong, where, and for an unknown key which ones there are.
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The configuration as the text of a file, as `--print-config` shows it.
    ///
    /// # Errors
    /// A path that is not UTF-8 cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    /// Checks every range, and that limits fit together.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] for the first that does not hold.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.server().validate()?;
        #[cfg(feature = "adbc")]
        self.adbc.as_ref().map_or(Ok(()), |adbc| self.validate_adbc(adbc))?;
        self.log.filter.parse::<tracing_subscriber::EnvFilter>().map_err(|e| InvalidValue {
            key: "log.filter",
            value: self.log.filter.clone(),
            reason: e.to_string(),
        })?;
        Ok(())
    }

    /// Checks that nothing concerns the query engine, which does not exist beside a database.
    #[cfg(feature = "adbc")]
    fn validate_adbc(&self, adbc: &AdbcConfig) -> Result<(), ConfigError> {
        if adbc.driver.is_empty() {
            return Err(ConfigError::NoDriver);
        }
        let given = [
            (!self.tables.is_empty(), "a table (--table, [tables])"),
            (!self.data.is_empty(), "a directory of tables (--data)"),
            (self.strict, "--strict"),
            (self.database.is_some(), "a database directory (--database)"),
            (self.engine != EngineConfig::default(), "a setting of the query engine ([engine] and its flags)"),
        ];
        match given.into_iter().find(|(given, _)| *given) {
            Some((_, what)) => Err(ConfigError::WithAdbc { what }),
            None => Ok(()),
        }
    }

    /// The part for the library.
    #[must_use]
    pub fn server(&self) -> ServerConfig {
        ServerConfig {
            data: self.data.clone(),
            strict: self.strict,
            tables: self.tables.clone(),
            database: self.database.clone(),
            limits: self.limits.clone(),
            timeouts: self.timeouts.clone(),
            fabric: self.fabric.clone(),
            engine: self.engine.clone(),
        }
    }
}
