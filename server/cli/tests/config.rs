//! Configuration files, flags, defaults and refused values.

use std::fs;
use std::path::Path;

use clap::Parser;
use thallus_server::catalog::Format;
use thallus_server::config::{ByteSize, FabricChoice, MemoryPoolKind, Span};
use thallus_server_cli::Args;
use thallus_server_cli::config::{Config, ConfigError};

fn parse(args: &[&str]) -> Args {
    Args::try_parse_from([&["thallus-server"], args].concat()).unwrap()
}

#[test]
fn the_example_file_contains_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("thallus-server.example.toml");
    let example = Config::from_file(&path).unwrap();
    assert_eq!(example, Config::default());
    example.validate().unwrap();
}

#[test]
fn the_example_file_shows_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("thallus-server.example.toml");
    let example = fs::read_to_string(path).unwrap();
    let mut all = Config { database: Some("thallus-db".into()), ..Config::default() };
    all.engine.memory_limit = Some(ByteSize::gib(8));
    all.engine.partitions = Some(8);
    all.engine.spill_dir = Some("/var/tmp".into());
    all.fabric.registered_heap = Some(ByteSize::gib(32));
    all.fabric.shm.directory = Some("/run/thallus".into());
    all.fabric.ucx.library = Some("/opt/ucx/lib/libucp.so.0".into());
    all.fabric.verbs.device = Some("mlx5_0".into());
    all.fabric.verbs.port = Some(1);
    all.fabric.verbs.gid = Some(3);
    #[cfg(feature = "adbc")]
    {
        let mut adbc = thallus_adbc_engine::AdbcConfig::new("duckdb");
        (adbc.entrypoint, adbc.uri) = (Some("duckdb_adbc_init".to_owned()), Some("sales.db".to_owned()));
        adbc.options.insert("access_mode".to_owned(), "READ_ONLY".to_owned());
        all.adbc = Some(adbc);
    }
    for line in all.to_toml().unwrap().lines().filter(|line| line.contains('=')) {
        let key = line.split('=').next().unwrap().trim();
        assert!(
            example.lines().any(|shown| shown.trim_start_matches("# ").starts_with(&format!("{key} ="))),
            "`{key}` is missing in the example file"
        );
    }
}

#[test]
fn a_printed_configuration_parses_to_the_same() {
    let args = parse(&[
        "--listen",
        "[::1]:0",
        "--table",
        "t=/data/t.csv",
        "--table",
        "u=/u",
        "--data",
        "/d",
        "--database",
        "/db",
        "--fabric",
        "none",
        "--memory-limit",
        "1.5GiB",
        "--memory-pool",
        "greedy",
        "--partitions",
        "3",
        "--drain-timeout",
        "1m 30s",
        "--ucx-transports",
        "rc,cma",
        "--ucx-busy-poll",
        "--log",
        "warn",
        "--log-format",
        "compact",
    ]);
    let config = args.into_config().unwrap();
    assert_eq!(config.listen.as_str(), "[::1]:0");
    assert_eq!(config.engine.memory_limit, Some(ByteSize(3 << 29)));
    assert_eq!(config.engine.memory_pool, MemoryPoolKind::Greedy);
    assert_eq!(config.fabric.kind, FabricChoice::None);
    assert_eq!(config.server().database.as_deref(), Some(Path::new("/db")));
    assert_eq!(config.fabric.ucx.transports, ["rc", "cma"]);
    assert_eq!(config.tables["t"].path, Path::new("/data/t.csv"));
    assert_eq!(Config::from_toml(&config.to_toml().unwrap()).unwrap(), config);
}

#[test]
fn a_flag_wins_over_the_file_and_paths_in_the_file_are_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("server.toml");
    fs::write(
        &file,
        r#"
            listen = "0.0.0.0:1"
            data = ["more", "/elsewhere"]
            [tables]
            a = "a.csv"
            B = { path = "/b", format = "csv", header = false, delimiter = ";" }
            [timeouts]
            lease = "5s"
            [fabric]
            shm = { directory = "sockets" }
            ucx = { library = "libucp.so.0" }
            [engine]
            batch_rows = 1000
            spill_dir = "spill"
        "#,
    )
    .unwrap();
    let config = parse(&["--config", file.to_str().unwrap(), "--listen", "h:2", "--table", "a=other.csv"]);
    let config = config.into_config().unwrap();
    assert_eq!(config.listen.as_str(), "h:2");
    assert_eq!(config.engine.batch_rows, 1000);
    assert_eq!(config.timeouts.lease, Span::secs(5));
    assert_eq!(config.timeouts.idle, Span::secs(300));
    assert_eq!(config.data, [directory.path().join("more"), "/elsewhere".into()]);
    assert_eq!(config.fabric.shm.directory, Some(directory.path().join("sockets")));
    assert_eq!(config.fabric.ucx.library, Some(directory.path().join("libucp.so.0")));
    assert_eq!(config.engine.spill_dir, Some(directory.path().join("spill")));
    assert_eq!(config.tables.keys().collect::<Vec<_>>(), ["B", "a"]);
    assert_eq!(config.tables["a"].path, Path::new("other.csv"));
    let b = &config.tables["B"];
    assert_eq!((b.format, b.header, b.delimiter), (Some(Format::Csv), false, Some(';')));
}

#[test]
fn an_unknown_key_is_named_wherever_it_is() {
    for (text, key) in [
        ("lisen = 'x:1'", "lisen"),
        ("[limits]\nmax_conections = 1", "max_conections"),
        ("[timeouts]\nlaese = '1s'", "laese"),
        ("[fabric]\nkid = 'ucx'", "kid"),
        ("[fabric.ucx]\ntls = 'rc'", "tls"),
        ("[engine]\nbatchrows = 1", "batchrows"),
        ("[log]\nlevel = 'info'", "level"),
        ("[tables]\nt = { path = 'x', heather = true }", "heather"),
        ("[tabels]", "tabels"),
    ] {
        let error = Config::from_toml(text).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`")) && error.contains("line"), "{error}");
    }
}

#[test]
fn a_value_of_the_wrong_kind_is_explained() {
    for (text, expected) in [
        ("listen = 'nowhere'", "HOST:PORT"),
        ("listen = '::1:80'", "HOST:PORT"),
        ("listen = 'h:99999'", "HOST:PORT"),
        ("[limits]\nmax_message_bytes = '16 parsecs'", "is not a size"),
        ("[limits]\nmax_message_bytes = -1", "negative"),
        ("[timeouts]\nidle = '30'", "not a duration"),
        ("[fabric]\nkind = 'telepathy'", "telepathy"),
        ("[tables]\nt = 5", "a path"),
        ("[tables]\nt = { format = 'csv' }", "path"),
        ("[tables]\nt = 'a'\nt = 'b'", "duplicate"),
        ("listen = ", "line 1"),
    ] {
        let error = Config::from_toml(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_value_out_of_range_names_its_key() {
    for (text, expected) in [
        ("[limits]\nmax_connections = 0", "limits.max_connections"),
        ("[limits]\nmax_streams_per_connection = 0", "limits.max_streams_per_connection"),
        ("[limits]\nmax_partitions = 0", "limits.max_partitions"),
        ("[limits]\nmax_partitioned_queries = 0", "limits.max_partitioned_queries"),
        ("[limits]\nupload_window_bytes = 0", "limits.upload_window_bytes"),
        ("[timeouts]\nupload_read = '0s'", "timeouts.upload_read"),
        ("[timeouts]\nrendezvous = '0s'", "timeouts.rendezvous"),
        ("[limits]\nmax_message_bytes = '1KiB'", "limits.max_message_bytes"),
        ("[limits]\nmax_message_bytes = '2GiB'", "limits.max_message_bytes"),
        ("[limits]\ninline_threshold_bytes = '17MiB'", "limits.inline_threshold_bytes"),
        ("[limits]\nmax_bytes_on_loan_per_connection = '2GiB'", "limits.max_bytes_on_loan_per_connection"),
        ("[limits]\nmax_bytes_on_loan_total = 0", "limits.max_bytes_on_loan_total"),
        ("[timeouts]\nhandshake = '0s'", "timeouts.handshake"),
        ("[timeouts]\nlease = '2days'", "timeouts.lease"),
        ("[engine]\nmemory_limit = '1MiB'", "engine.memory_limit"),
        ("[engine]\nbatch_rows = 0", "engine.batch_rows"),
        ("[engine]\npartitions = 0", "engine.partitions"),
        ("[log]\nfilter = 'a=b=c'", "log.filter"),
        ("[tables]\nt = { path = 'x', delimiter = '€' }", "delimiter"),
    ] {
        let error = Config::from_toml(text).unwrap().validate().unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn unusable_files_and_flags_are_refused() {
    let missing = parse(&["--config", "/no/such/file.toml"]).into_config().unwrap_err();
    assert!(matches!(missing, ConfigError::Read { .. }) && missing.to_string().contains("/no/such/file.toml"));
    let twice = parse(&["--table", "t=a", "--table", "t=b"]).into_config().unwrap_err();
    assert!(matches!(twice, ConfigError::DuplicateTable { .. }), "{twice}");
    for args in [["--table", "t"], ["--table", "=x"], ["--listen", "x"], ["--memory-limit", "lots"]] {
        assert!(Args::try_parse_from([&["thallus-server"], &args[..]].concat()).is_err(), "{args:?}");
    }
}

#[test]
fn automatic_limits_fit_the_machine() {
    let config = Config::default();
    config.validate().unwrap();
    assert!(config.engine.effective_memory_limit() >= ByteSize::mib(64));
    assert!(config.engine.effective_partitions() >= 1);
}

#[cfg(feature = "adbc")]
#[test]
fn a_database_takes_the_place_of_tables_and_their_engine() {
    let driver = ["--adbc-driver", "duckdb", "--uri", "sales.db"];
    let options = ["--adbc-option", "access_mode=READ_ONLY", "--adbc-option", "x=", "--adbc-entrypoint", "f"];
    let config = parse(&[&driver[..], &options[..]].concat()).into_config().unwrap();
    let adbc = config.adbc.as_ref().unwrap();
    assert_eq!((adbc.driver.as_str(), adbc.uri.as_deref()), ("duckdb", Some("sales.db")));
    assert_eq!(
        adbc.options.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
        ["access_mode=READ_ONLY", "x="]
    );
    assert_eq!(Config::from_toml(&config.to_toml().unwrap()).unwrap(), config);
    for (args, what) in [
        (&["--table", "t=/t.csv"][..], "--table"),
        (&["--data", "/d"], "--data"),
        (&["--database", "/db"], "--database"),
        (&["--strict"], "--strict"),
        (&["--batch-rows", "7"], "query engine"),
    ] {
        let error = parse(&[&driver[..], args].concat()).into_config().unwrap_err();
        assert!(matches!(error, ConfigError::WithAdbc { .. }) && error.to_string().contains(what), "{error}");
    }
    for args in [&["--uri", "sales.db"][..], &["--adbc-option", "a=b"], &["--adbc-driver", ""]] {
        assert!(matches!(parse(args).into_config().unwrap_err(), ConfigError::NoDriver), "{args:?}");
    }
    assert!(Args::try_parse_from(["thallus-server", "--adbc-option", "=b"]).is_err());
}

#[cfg(feature = "adbc")]
#[test]
fn a_driver_with_a_relative_path_is_beside_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("server.toml");
    for (driver, expected) in [("lib/d.so", directory.path().join("lib/d.so")), ("duckdb", "duckdb".into())] {
        fs::write(&file, format!("[adbc]\ndriver = '{driver}'\nuri = 'sales.db'\nconnection_wait = '5s'\n")).unwrap();
        let config = parse(&["--config", file.to_str().unwrap(), "--uri", "other.db"]).into_config().unwrap();
        let adbc = config.adbc.unwrap();
        assert_eq!((Path::new(&adbc.driver), adbc.uri.as_deref()), (expected.as_path(), Some("other.db")));
        assert_eq!(adbc.connection_wait, Span::secs(5));
    }
}
