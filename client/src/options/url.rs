//! `thallus://host:port?options`, read and written.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thallus_fabric::units::{exact_duration, exact_size, parse_duration, parse_size};
use thiserror::Error;
use url::Url;

use super::{ConnectOptions, FabricPreference, LendFrom, MAX_PARTITIONS};

const SCHEME: &str = "thallus";

/// Most characters of a user's text that an error repeats.
const ECHO: usize = 64;

/// Options that a URL may have, in the order in which they are written.
const OPTION_NAMES: [&str; 20] = [
    "fabric",
    "require_fabric",
    "window",
    "lend_from",
    "partitions",
    "max_batch",
    "pool",
    "connect_timeout",
    "read_timeout",
    "idle_timeout",
    "keepalive",
    "max_upload_loans",
    "upload_lease",
    "busy_poll",
    "copy_threads",
    "ucx_tls",
    "ucx_net_devices",
    "device",
    "port",
    "gid",
];

/// The URL does not define a connection, or options contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UrlError {
    /// There is no scheme.
    #[error("no scheme in {url:?}: write thallus://host[:port][?options]")]
    NoScheme {
        /// The text.
        url: String,
    },
    /// The scheme is not `thallus`.
    #[error("unknown scheme {scheme:?} (known: {SCHEME})")]
    UnknownScheme {
        /// The text before `://`.
        scheme: String,
    },
    /// The text is not a URL.
    #[error("malformed URL {url:?}: {reason}")]
    Malformed {
        /// The text.
        url: String,
        /// The problem.
        reason: String,
    },
    /// The URL has no host.
    #[error("no host: write thallus://host[:port][?options]")]
    NoHost,
    /// The host is invalid.
    #[error("bad host {host:?}: {reason}")]
    BadHost {
        /// The host.
        host: String,
        /// The problem.
        reason: &'static str,
    },
    /// Port 0 cannot be connected to.
    #[error("bad port 0: give the port that the server listens on (known: 1 to 65535)")]
    BadPort,
    /// A part that a thallus URL does not have. The error does not repeat its value, which may be a secret.
    #[error("a thallus URL has no {part} (known parts: host, port, options)")]
    UnsupportedPart {
        /// `user name or password`, `path` or `fragment`.
        part: &'static str,
    },
    /// The option is unknown.
    #[error("unknown option {name:?} (known: {})", OPTION_NAMES.join(", "))]
    UnknownOption {
        /// Its name.
        name: String,
    },
    /// An option is given twice.
    #[error("option {name} is given twice")]
    DuplicateOption {
        /// Its name.
        name: &'static str,
    },
    /// An option's value does not parse, or is out of range.
    #[error("bad value {value:?} for option {name}: {reason}")]
    BadValue {
        /// The option.
        name: &'static str,
        /// The value.
        value: String,
        /// The problem, and the known names.
        reason: String,
    },
    /// Two options contradict each other.
    #[error("{first} contradicts {second}")]
    Conflict {
        /// The first option, with its value.
        first: String,
        /// The second option, with its value.
        second: String,
    },
}

impl ConnectOptions {
    /// The options that a URL may have, in the order in which they are written.
    pub const URL_OPTIONS: &'static [&'static str] = &OPTION_NAMES;
}

impl FromStr for ConnectOptions {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        let Some((scheme, _)) = text.split_once("://") else { return Err(UrlError::NoScheme { url: echo(text) }) };
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(UrlError::UnknownScheme { scheme: echo(scheme) });
        }
        let url = Url::parse(text).map_err(|e| match e {
            url::ParseError::EmptyHost => UrlError::NoHost,
            other => UrlError::Malformed { url: echo(without_user(text)), reason: other.to_string() },
        })?;
        let unsupported = [
            (!url.username().is_empty() || url.password().is_some(), "user name or password"),
            (!matches!(url.path(), "" | "/"), "path"),
            (url.fragment().is_some(), "fragment"),
        ];
        if let Some((_, part)) = unsupported.iter().find(|(found, _)| *found) {
            return Err(UrlError::UnsupportedPart { part });
        }
        let mut options = ConnectOptions::new(host(&url)?);
        match url.port() {
            Some(0) => return Err(UrlError::BadPort),
            Some(port) => options.port = port,
            None => {}
        }
        let mut seen = BTreeSet::new();
        for (name, value) in url.query_pairs() {
            let known = OPTION_NAMES.iter().find(|known| **known == name);
            let name = known.ok_or_else(|| UrlError::UnknownOption { name: echo(&name) })?;
            if !seen.insert(*name) {
                return Err(UrlError::DuplicateOption { name });
            }
            options.set(name, &value)?;
        }
        options.validate()?;
        Ok(options)
    }
}

impl TryFrom<&str> for ConnectOptions {
    type Error = UrlError;

    fn try_from(url: &str) -> Result<Self, UrlError> {
        url.parse()
    }
}

impl ConnectOptions {
    /// Checks options that were built in Rust as strictly as those of a URL.
    ///
    /// # Errors
    /// [`UrlError::NoHost`], [`UrlError::BadPort`], [`UrlError::BadValue`] for a zero that is not allowed, and
    /// [`UrlError::Conflict`].
    pub fn validate(&self) -> Result<(), UrlError> {
        if self.host.is_empty() {
            return Err(UrlError::NoHost);
        }
        if self.port == 0 {
            return Err(UrlError::BadPort);
        }
        let sizes =
            [("window", self.window), ("max_batch", self.max_batch), ("max_upload_loans", self.max_upload_loans)];
        if let Some((name, _)) = sizes.into_iter().find(|(_, bytes)| *bytes == 0) {
            return Err(zero(name, "0"));
        }
        check_partitions(self.partitions)?;
        let times = [
            ("connect_timeout", self.connect_timeout),
            ("read_timeout", self.read_timeout),
            ("idle_timeout", self.idle_timeout),
            ("keepalive", self.keepalive),
            ("upload_lease", self.upload_lease),
        ];
        if let Some((name, _)) = times.into_iter().find(|(_, time)| time.is_zero()) {
            return Err(zero(name, "0s"));
        }
        let conflict = |first: String, second: String| Err(UrlError::Conflict { first, second });
        if self.require_fabric && self.fabric == FabricPreference::None {
            return conflict("require_fabric=true".into(), "fabric=none".into());
        }
        if self.keepalive >= self.idle_timeout {
            let keepalive = format!("keepalive={}", exact_duration(self.keepalive));
            let idle = exact_duration(self.idle_timeout);
            return conflict(keepalive, format!("idle_timeout={idle}, which must be longer"));
        }
        Ok(())
    }

    fn set(&mut self, name: &'static str, value: &str) -> Result<(), UrlError> {
        match name {
            "fabric" => {
                self.fabric = match value {
                    "auto" => FabricPreference::Auto,
                    "shm" => FabricPreference::Shm,
                    "ucx" => FabricPreference::Ucx,
                    "verbs" => FabricPreference::Verbs,
                    "none" => FabricPreference::None,
                    _ => return Err(bad(name, value, format!("known: {}", FabricPreference::NAMES.join(", ")))),
                }
            }
            "require_fabric" => self.require_fabric = flag(name, value)?,
            "window" => self.window = size(name, value)?,
            "lend_from" => self.lend_from = parse_lend_from(value).map_err(|reason| bad(name, value, reason))?,
            "partitions" => self.partitions = number(name, value, 1, MAX_PARTITIONS)?,
            "max_batch" => self.max_batch = size(name, value)?,
            "pool" => self.pool = size(name, value)?,
            "connect_timeout" => self.connect_timeout = time(name, value)?,
            "read_timeout" => self.read_timeout = time(name, value)?,
            "idle_timeout" => self.idle_timeout = time(name, value)?,
            "keepalive" => self.keepalive = time(name, value)?,
            "max_upload_loans" => self.max_upload_loans = size(name, value)?,
            "upload_lease" => self.upload_lease = time(name, value)?,
            "busy_poll" => self.busy_poll = flag(name, value)?,
            "copy_threads" => self.copy_threads = Some(number(name, value, 0, u8::MAX)?),
            "ucx_tls" => self.ucx_tls = Some(list(name, value)?),
            "ucx_net_devices" => self.ucx_net_devices = Some(list(name, value)?),
            "device" => self.verbs_device = Some(list(name, value)?),
            "port" => self.verbs_port = Some(number(name, value, 1, u8::MAX)?),
            "gid" => self.verbs_gid = Some(number(name, value, 0, u8::MAX)?),
            _ => return Err(UrlError::UnknownOption { name: echo(name) }),
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Option<String> {
        Some(match name {
            "fabric" => self.fabric.as_str().into(),
            "require_fabric" => self.require_fabric.to_string(),
            "window" => exact_size(self.window),
            "lend_from" => match self.lend_from {
                LendFrom::Never => "never".into(),
                LendFrom::Auto => "auto".into(),
                LendFrom::Bytes(bytes) => exact_size(bytes),
            },
            "partitions" => self.partitions.to_string(),
            "max_batch" => exact_size(self.max_batch),
            "pool" => exact_size(self.pool),
            "connect_timeout" => exact_duration(self.connect_timeout),
            "read_timeout" => exact_duration(self.read_timeout),
            "idle_timeout" => exact_duration(self.idle_timeout),
            "keepalive" => exact_duration(self.keepalive),
            "max_upload_loans" => exact_size(self.max_upload_loans),
            "upload_lease" => exact_duration(self.upload_lease),
            "busy_poll" => self.busy_poll.to_string(),
            "copy_threads" => return self.copy_threads.map(|threads| threads.to_string()),
            "ucx_tls" => return self.ucx_tls.clone(),
            "ucx_net_devices" => return self.ucx_net_devices.clone(),
            "device" => return self.verbs_device.clone(),
            "port" => return self.verbs_port.map(|port| port.to_string()),
            "gid" => return self.verbs_gid.map(|gid| gid.to_string()),
            _ => return None,
        })
    }
}

/// The URL, with the options that differ from their defaults.
impl fmt::Display for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}://{}", self.address())?;
        let defaults = ConnectOptions::new("");
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        for name in OPTION_NAMES {
            if let Some(value) = self.get(name).filter(|value| defaults.get(name).as_ref() != Some(value)) {
                query.append_pair(name, &value);
            }
        }
        let query = query.finish();
        if query.is_empty() { Ok(()) } else { write!(f, "?{query}") }
    }
}

fn host(url: &Url) -> Result<String, UrlError> {
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or(UrlError::NoHost)?;
    if host.contains('%') {
        let reason = "only letters, digits, dots and dashes (an international name in its xn-- form)";
        return Err(UrlError::BadHost { host: echo(host), reason });
    }
    Ok(host.to_owned())
}

fn size(name: &'static str, value: &str) -> Result<u64, UrlError> {
    parse_size(value).map_err(|e| bad(name, value, e.to_string()))
}

fn time(name: &'static str, value: &str) -> Result<Duration, UrlError> {
    parse_duration(value).map_err(|e| bad(name, value, e.to_string()))
}

fn flag(name: &'static str, value: &str) -> Result<bool, UrlError> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(bad(name, value, "known: true, false".into())),
    }
}

fn number<N>(name: &'static str, value: &str, least: N, most: N) -> Result<N, UrlError>
where
    N: FromStr + PartialOrd + fmt::Display,
{
    let number = value.parse().ok().filter(|number| *number >= least && *number <= most);
    number.ok_or_else(|| bad(name, value, format!("expected a number from {least} to {most}")))
}

/// Every partition needs a connection: an unreasonable number is refused before any connection is made.
fn check_partitions(partitions: u32) -> Result<(), UrlError> {
    number("partitions", &partitions.to_string(), 1, MAX_PARTITIONS).map(|_| ())
}

/// A list for UCX's configuration, which receives it unchanged: not empty, without control characters.
fn list(name: &'static str, value: &str) -> Result<String, UrlError> {
    if value.is_empty() || value.chars().any(char::is_control) {
        return Err(bad(name, value, "expected names separated by commas".into()));
    }
    Ok(value.to_owned())
}

/// `never`, `auto`, or a size.
///
/// # Errors
/// The problem, as text.
pub fn parse_lend_from(value: &str) -> Result<LendFrom, String> {
    match value {
        "never" => Ok(LendFrom::Never),
        "auto" => Ok(LendFrom::Auto),
        size => parse_size(size).map(LendFrom::Bytes).map_err(|error| format!("{error}; or never, or auto")),
    }
}

fn zero(name: &'static str, value: &str) -> UrlError {
    bad(name, value, "must be more than zero".into())
}

fn bad(name: &'static str, value: &str, reason: String) -> UrlError {
    UrlError::BadValue { name, value: echo(value), reason }
}

/// The text without the part before an `@`, which may be a secret.
fn without_user(text: &str) -> &str {
    text.rsplit_once('@').map_or(text, |(_, rest)| rest)
}

fn echo(text: &str) -> String {
    let mut short: String = text.chars().take(ECHO).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::DEFAULT_PORT;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<ConnectOptions, UrlError> {
        text.parse()
    }

    #[test]
    fn addresses() {
        let cases = [
            ("thallus://localhost", "localhost", DEFAULT_PORT, "localhost:7807"),
            ("thallus://localhost/", "localhost", DEFAULT_PORT, "localhost:7807"),
            ("THALLUS://db.example:9", "db.example", 9, "db.example:9"),
            (" thallus://10.0.0.1:80 ", "10.0.0.1", 80, "10.0.0.1:80"),
            ("thallus://[::1]", "::1", DEFAULT_PORT, "[::1]:7807"),
            ("thallus://[fe80::2]:65535?", "fe80::2", 65535, "[fe80::2]:65535"),
        ];
        for (text, host, port, address) in cases {
            let options = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((options.host.as_str(), options.port), (host, port), "{text}");
            assert_eq!(options.address(), address);
        }
    }

    #[test]
    fn every_option_is_read() {
        let text = "thallus://h?fabric=ucx&require_fabric=true&window=1MiB&lend_from=0&partitions=8&max_batch=2GiB\
                    &pool=0&connect_timeout=1s&read_timeout=2s&idle_timeout=3min&keepalive=4s&max_upload_loans=1GiB\
                    &upload_lease=5s&busy_poll=true\
                    &copy_threads=0&ucx_tls=posix,cma&ucx_net_devices=mlx5_0%3A1&device=mlx5_1&port=2&gid=0";
        let expected = ConnectOptions::new("h")
            .with_fabric(FabricPreference::Ucx)
            .with_require_fabric(true)
            .with_window(1 << 20)
            .with_lend_from(LendFrom::Bytes(0))
            .with_partitions(8)
            .with_max_batch(2 << 30)
            .with_pool(0)
            .with_connect_timeout(Duration::from_secs(1))
            .with_read_timeout(Duration::from_secs(2))
            .with_idle_timeout(Duration::from_secs(180))
            .with_keepalive(Duration::from_secs(4))
            .with_max_upload_loans(1 << 30)
            .with_upload_lease(Duration::from_secs(5))
            .with_busy_poll(true)
            .with_copy_threads(Some(0))
            .with_ucx_tls(Some("posix,cma".into()))
            .with_ucx_net_devices(Some("mlx5_0:1".into()))
            .with_verbs_device(Some("mlx5_1".into()))
            .with_verbs_port(Some(2))
            .with_verbs_gid(Some(0));
        assert_eq!(parse(text), Ok(expected.clone()));
        assert_eq!(parse(&expected.to_string()), Ok(expected));
        for name in OPTION_NAMES {
            assert!(text.contains(&format!("{name}=")), "{name} is not tested here");
        }
    }

    #[test]
    fn errors_name_the_part_and_list_what_is_known() {
        let cases = [
            ("localhost:7807", "no scheme in \"localhost:7807\": write thallus://host[:port][?options]"),
            ("", "no scheme in \"\": write thallus://host[:port][?options]"),
            ("http://h", "unknown scheme \"http\" (known: thallus)"),
            ("thallus://", "no host: write thallus://host[:port][?options]"),
            ("thallus://:80", "no host: write thallus://host[:port][?options]"),
            ("thallus://h:0", "bad port 0: give the port that the server listens on (known: 1 to 65535)"),
            ("thallus://h:99999", "malformed URL \"thallus://h:99999\": invalid port number"),
            ("thallus://u:p@h:99999", "malformed URL \"h:99999\": invalid port number"),
            ("thallus://[::1", "malformed URL \"thallus://[::1\": invalid IPv6 address"),
            ("thallus://me:secret@h", "a thallus URL has no user name or password (known parts: host, port, options)"),
            ("thallus://h/db", "a thallus URL has no path (known parts: host, port, options)"),
            ("thallus://h#x", "a thallus URL has no fragment (known parts: host, port, options)"),
            ("thallus://h?pool=1&pool=2", "option pool is given twice"),
            ("thallus://h?fabric=tcp", "bad value \"tcp\" for option fabric: known: auto, shm, ucx, verbs, none"),
            ("thallus://h?port=0", "bad value \"0\" for option port: expected a number from 1 to 255"),
            ("thallus://h?partitions=0", "bad value \"0\" for option partitions: expected a number from 1 to 1024"),
            ("thallus://h?gid=256", "bad value \"256\" for option gid: expected a number from 0 to 255"),
            ("thallus://h?busy_poll=1", "bad value \"1\" for option busy_poll: known: true, false"),
            ("thallus://h?window=0", "bad value \"0\" for option window: must be more than zero"),
            ("thallus://h?keepalive=0", "bad value \"0s\" for option keepalive: must be more than zero"),
            ("thallus://h?ucx_tls=", "bad value \"\" for option ucx_tls: expected names separated by commas"),
            ("thallus://h?fabric=none&require_fabric=true", "require_fabric=true contradicts fabric=none"),
            ("thallus://h?keepalive=30s", "keepalive=30s contradicts idle_timeout=30s, which must be longer"),
        ];
        for (text, message) in cases {
            assert_eq!(parse(text).unwrap_err().to_string(), message, "{text}");
        }
        let unknown = parse("thallus://h?windows=1").unwrap_err().to_string();
        assert!(unknown.starts_with("unknown option \"windows\" (known: fabric, require_fabric, window,"), "{unknown}");
        let unit = parse("thallus://h?read_timeout=5").unwrap_err().to_string();
        assert!(unit.starts_with("bad value \"5\" for option read_timeout: the unit is missing (known: ns,"), "{unit}");
        assert!(parse("thallus://hé").is_err());
        assert!(parse(&format!("thallus://h?{}=1", "x".repeat(1000))).unwrap_err().to_string().len() < 400);
    }

    #[test]
    fn built_options_are_checked_too() {
        assert_eq!(ConnectOptions::new("").validate(), Err(UrlError::NoHost));
        assert_eq!(ConnectOptions::new("h").with_port(0).validate(), Err(UrlError::BadPort));
        assert_eq!(ConnectOptions::new("[::1]").validate(), Ok(()));
        assert_eq!(ConnectOptions::new("[::1]").host, "::1");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn near_urls_never_panic(text in "(?i)thallus://[a-z0-9.:@/\\[\\]%#]{0,20}(\\?([a-z_]{0,8}=[^&]{0,8}&?){0,3})?") {
            if let Ok(options) = parse(&text) {
                prop_assert_eq!(parse(&options.to_string()), Ok(options));
            }
        }

        #[test]
        fn written_options_read_back(
            port in 1..=u16::MAX, window in 1..u64::MAX, pool: u64, nanos in 1..u64::MAX - 1,
            tls in proptest::option::of("[^\\pC]{1,20}"), busy: bool,
        ) {
            let options = ConnectOptions::new("h.example")
                .with_port(port).with_window(window).with_pool(pool)
                .with_keepalive(Duration::from_nanos(nanos)).with_idle_timeout(Duration::from_nanos(nanos + 1))
                .with_ucx_tls(tls).with_busy_poll(busy);
            prop_assert_eq!(parse(&options.to_string()), Ok(options));
        }
    }
}
