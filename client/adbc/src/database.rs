//! A database: the address of a server, and the options of its connections.

use std::borrow::Cow;
use std::collections::BTreeMap;

use adbc_core::error::Result;
use adbc_core::options::{OptionConnection, OptionDatabase, OptionValue};
use adbc_core::{Database, Optionable, constants};
use thallus_client::ConnectOptions;
use url::Url;

use crate::connection::ThallusConnection;
use crate::error::{from_url, invalid_argument, not_implemented};
use crate::option::{PREFIX, getters, text, unknown};
use crate::session::Session;
use crate::settings::{self, Settings};

/// The address of a server. Each connection is a TCP connection of its own, with its own data plane.
#[derive(Clone, Debug, Default)]
pub struct ThallusDatabase {
    uri: Option<String>,
    /// Options of the URL that were given separately, by their names in the URL. They replace those of the URL.
    connect: BTreeMap<&'static str, String>,
    settings: Settings,
}

impl ThallusDatabase {
    pub(crate) fn new(options: impl IntoIterator<Item = (OptionDatabase, OptionValue)>) -> Result<Self> {
        let mut database = ThallusDatabase::default();
        for (key, value) in options {
            database.set(key.as_ref(), value)?;
        }
        // Errors are reported here, and not at the first connection.
        database.connect_options()?;
        Ok(database)
    }

    fn set(&mut self, name: &str, value: OptionValue) -> Result<()> {
        match name {
            constants::ADBC_OPTION_URI => self.uri = Some(text(name, value)?),
            constants::ADBC_OPTION_USERNAME | constants::ADBC_OPTION_PASSWORD => {
                return Err(not_implemented(format!(
                    "option {name}: Thallus servers have no sign-in yet, and accept every client that reaches them; \
                     leave it out"
                )));
            }
            _ => {
                let own = name.strip_prefix(PREFIX);
                match ConnectOptions::URL_OPTIONS.iter().find(|known| own == Some(**known)) {
                    Some(known) => {
                        self.connect.insert(known, text(name, value)?);
                    }
                    None if settings::NAMES.contains(&name) => {
                        self.settings.set(name, &text(name, value)?)?;
                    }
                    None => return Err(unknown(name, &known_options())),
                }
            }
        }
        Ok(())
    }

    fn value(&self, name: &str) -> Result<Option<String>> {
        if name == constants::ADBC_OPTION_URI {
            return Ok(self.uri.clone());
        }
        let given = name.strip_prefix(PREFIX).and_then(|own| self.connect.get(own).cloned());
        Ok(given.or_else(|| self.settings.get(name)))
    }

    /// The options of a connection.
    fn connect_options(&self) -> Result<ConnectOptions> {
        let uri = self.uri.as_deref().map(str::trim).filter(|uri| !uri.is_empty());
        let uri = uri.ok_or_else(|| {
            invalid_argument(format!(
                "option {} is missing: thallus://host[:port][?options]",
                constants::ADBC_OPTION_URI
            ))
        })?;
        // The client reports what is wrong with the URL itself.
        let plain: ConnectOptions = uri.parse().map_err(|e| from_url(&e))?;
        if self.connect.is_empty() {
            return Ok(plain);
        }
        let mut url = Url::parse(uri).map_err(|e| invalid_argument(format!("malformed URL: {e}")))?;
        let kept: Vec<(Cow<'_, str>, Cow<'_, str>)> =
            url.query_pairs().filter(|(name, _)| !self.connect.contains_key(&**name)).collect();
        let mut pairs = url::form_urlencoded::Serializer::new(String::new());
        pairs.extend_pairs(kept).extend_pairs(&self.connect);
        let query = pairs.finish();
        url.set_query(Some(&query));
        url.as_str().parse().map_err(|e| from_url(&e))
    }
}

/// Names of the options that a database has, with their prefix.
fn known_options() -> Vec<&'static str> {
    let mut known = vec![constants::ADBC_OPTION_URI];
    known.extend(settings::NAMES);
    known.push("adbc.thallus.* for each option of the URL, such as adbc.thallus.fabric");
    known
}

impl Optionable for ThallusDatabase {
    type Option = OptionDatabase;

    fn set_option(&mut self, key: OptionDatabase, value: OptionValue) -> Result<()> {
        let mut changed = self.clone();
        changed.set(key.as_ref(), value)?;
        changed.connect_options()?;
        *self = changed;
        Ok(())
    }

    getters!(OptionDatabase);
}

impl Database for ThallusDatabase {
    type ConnectionType = ThallusConnection;

    fn new_connection(&self) -> Result<ThallusConnection> {
        self.new_connection_with_opts([])
    }

    fn new_connection_with_opts(
        &self,
        options: impl IntoIterator<Item = (OptionConnection, OptionValue)>,
    ) -> Result<ThallusConnection> {
        let session = Session::connect(self.connect_options()?)?;
        let mut connection = ThallusConnection::new(session, self.settings.clone());
        for (key, value) in options {
            connection.set_option(key, value)?;
        }
        Ok(connection)
    }
}

#[cfg(test)]
mod tests {
    use adbc_core::error::Status;
    use thallus_client::FabricPreference;

    use super::*;

    fn database(options: &[(&str, &str)]) -> Result<ThallusDatabase> {
        ThallusDatabase::new(options.iter().map(|(name, value)| (OptionDatabase::from(*name), (*value).into())))
    }

    #[test]
    fn options_replace_those_of_the_url() {
        let options = [
            ("uri", "thallus://h:9?fabric=ucx&window=1MiB"),
            ("adbc.thallus.fabric", "none"),
            ("adbc.thallus.partitions", "4"),
        ];
        let database = database(&options).unwrap();
        let expected = ConnectOptions::new("h")
            .with_port(9)
            .with_window(1 << 20)
            .with_fabric(FabricPreference::None)
            .with_partitions(4);
        assert_eq!(database.connect_options().unwrap(), expected);
        for (name, value) in options {
            assert_eq!(database.get_option_string(name.into()).unwrap(), value);
        }
    }

    #[test]
    fn every_option_of_the_url_is_an_option() {
        for name in ConnectOptions::URL_OPTIONS {
            let mut database = ThallusDatabase::default();
            assert!(database.set(&format!("{PREFIX}{name}"), "x".into()).is_ok(), "{name}");
        }
    }

    #[test]
    fn bad_options_are_refused_at_once() {
        type Options<'a> = &'a [(&'a str, &'a str)];
        let cases: [(Options<'_>, Status, &str); 6] = [
            (&[], Status::InvalidArguments, "option uri is missing: thallus://host[:port][?options]"),
            (&[("uri", "http://h")], Status::InvalidArguments, "unknown scheme \"http\" (known: thallus)"),
            (
                &[("uri", "thallus://h"), ("adbc.thallus.fabric", "tcp")],
                Status::InvalidArguments,
                "bad value \"tcp\" for option fabric: known: auto, shm, ucx, verbs, none",
            ),
            (
                &[("uri", "thallus://h"), ("adbc.thallus.delivery", "x")],
                Status::InvalidArguments,
                "bad value \"x\" for option adbc.thallus.delivery: known: auto, inline, lent, mapped",
            ),
            (&[("uri", "thallus://h"), ("password", "secret")], Status::NotImplemented, "option password: Thallus"),
            (&[("uri", "thallus://h"), ("x", "y")], Status::NotImplemented, "unknown option \"x\" (known here: uri, "),
        ];
        for (options, status, message) in cases {
            let error = database(options).unwrap_err();
            assert_eq!(error.status, status, "{error}");
            assert!(error.message.starts_with(message), "{error}");
            assert!(!error.message.contains("secret"));
        }
    }

    #[test]
    fn a_failed_set_changes_nothing() {
        let mut database = database(&[("uri", "thallus://h")]).unwrap();
        assert!(database.set_option(OptionDatabase::Uri, "ftp://h".into()).is_err());
        assert_eq!(database.get_option_string(OptionDatabase::Uri).unwrap(), "thallus://h");
        assert_eq!(database.get_option_string("adbc.thallus.pool".into()).unwrap_err().status, Status::NotFound);
        assert_eq!(database.get_option_int("x".into()).unwrap_err().status, Status::NotFound);
    }
}
