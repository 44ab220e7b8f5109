//! Paths become tables, and invalid paths and names are refused.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use thallus_server::catalog::{CatalogError, Compression, Format, TableSpec, resolve};
use thallus_server::config::{ServerConfig, TableConfig};

use crate::files::{config, directory, rows, write};

fn tables(data: &Path) -> Result<Vec<TableSpec>, CatalogError> {
    resolve(&ServerConfig { data: vec![data.to_owned()], ..ServerConfig::default() }).map(|found| found.tables)
}

fn table(path: &Path) -> Result<TableSpec, CatalogError> {
    resolve(&config(&[("t", path)])).map(|mut found| found.tables.remove(0))
}

/// The error, which must name the table and the path.
fn error(path: &Path) -> CatalogError {
    let error = table(path).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("table `t`") && message.contains(path.to_str().unwrap()), "{message}");
    error
}

#[test]
fn a_data_directory_is_a_table_for_every_file_and_sub_directory() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    for name in [
        "b.csv",
        "c.tsv",
        "d.json",
        "e.ndjson",
        "f.arrow",
        "g.arrows",
        "h.csv.gz",
        "i.json.zst",
        "nested/1.csv",
        "nested/2.csv",
        "v1.2.csv",
        ".hidden.csv",
        "_SUCCESS",
        "README.md",
    ] {
        fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        fs::write(at(name), "ARROW1 is what f.arrow begins with").unwrap();
    }
    fs::rename(write(at("x.parquet"), &rows(0..1)), at("Orders.PARQUET")).unwrap();
    let found = tables(directory.path()).unwrap();
    let summary: Vec<_> = found.iter().map(|t| (t.name.as_str(), t.format, t.files[0].compression)).collect();
    let plain = Compression::None;
    assert_eq!(
        summary,
        [
            ("Orders", Format::Parquet, plain),
            ("b", Format::Csv, plain),
            ("c", Format::Csv, plain),
            ("d", Format::Json, plain),
            ("e", Format::Json, plain),
            ("f", Format::Arrow, plain),
            ("g", Format::Arrow, plain),
            ("h", Format::Csv, Compression::Gzip),
            ("i", Format::Json, Compression::Zstd),
            ("nested", Format::Csv, plain),
            ("v1.2", Format::Csv, plain),
        ]
    );
    assert_eq!((found[1].files[0].delimiter, found[2].files[0].delimiter), (b',', b'\t'));
    let nested: Vec<_> = found[9].files.iter().map(|file| file.path.clone()).collect();
    assert_eq!(nested, [at("nested/1.csv"), at("nested/2.csv")]);
    assert!(found[9].is_directory && !found[1].is_directory);
}

#[test]
fn partitions_are_directories_that_spell_columns() {
    let directory = directory();
    for name in ["t/year=2024/month=01/a.csv", "t/year=2024/month=02/b.csv", "t/year=2025/month=01/c.csv"] {
        write(directory.path().join(name), &rows(0..1));
    }
    let path = directory.path().join("t");
    let found = table(&path).unwrap();
    assert_eq!((found.partition_columns, found.files.len()), (vec!["year".to_owned(), "month".to_owned()], 3));
    write(path.join("year=2024/d.csv"), &rows(0..1));
    assert!(matches!(table(&path), Err(CatalogError::PartitionsDiffer { .. })));
}

#[test]
fn without_an_extension_the_first_bytes_or_the_configuration_set_the_format() {
    let directory = directory();
    let path = directory.path().join("data");
    for (extension, format) in [("parquet", Format::Parquet), ("arrow", Format::Arrow)] {
        fs::rename(write(directory.path().join("x").with_extension(extension), &rows(0..9)), &path).unwrap();
        assert_eq!(table(&path).unwrap().format, format);
    }
    fs::write(&path, "id\n1\n").unwrap();
    assert!(matches!(error(&path), CatalogError::UnknownFormat { .. }));
    let mut config = config(&[]);
    config.tables.insert("t".to_owned(), TableConfig { format: Some(Format::Csv), ..TableConfig::at(&path) });
    assert_eq!(resolve(&config).unwrap().tables[0].format, Format::Csv);
}

#[test]
fn missing_empty_mixed_or_nested_paths_are_refused() {
    let directory = directory();
    let path = directory.path();
    assert!(matches!(error(&path.join("nothing.csv")), CatalogError::NotFound { .. }));
    assert!(matches!(error(path), CatalogError::EmptyDirectory { .. }));
    assert!(matches!(tables(path), Err(CatalogError::EmptyDirectory { table: None, .. })));
    assert!(matches!(tables(&path.join("no")), Err(CatalogError::NotFound { table: None, .. })));

    fs::write(path.join(".hidden.csv"), "id\n1\n").unwrap();
    assert!(matches!(error(path), CatalogError::EmptyDirectory { .. }));

    for name in ["empty.parquet", "empty.arrow"] {
        fs::write(path.join(name), "").unwrap();
        assert!(matches!(error(&path.join(name)), CatalogError::EmptyFile { .. }));
    }

    let mixed = path.join("mixed");
    write(mixed.join("a.csv"), &rows(0..1));
    write(mixed.join("b.parquet"), &rows(0..1));
    assert!(matches!(error(&mixed), CatalogError::MixedFormats { .. }));

    let nested = path.join("nested");
    write(nested.join("a.csv"), &rows(0..1));
    write(nested.join("inner/b.csv"), &rows(0..1));
    assert!(matches!(error(&nested), CatalogError::NestedDirectory { .. }));

    assert!(matches!(error(Path::new("/dev/null")), CatalogError::SpecialFile { .. }));
}

#[test]
fn duplicate_or_invalid_names_are_refused() {
    let directory = directory();
    let path = write(directory.path().join("orders.csv"), &rows(0..1));
    let other = write(directory.path().join("Orders.json"), &rows(0..1));
    let names: Vec<String> = tables(directory.path()).unwrap().into_iter().map(|table| table.name).collect();
    assert_eq!(names, ["Orders", "orders"]);
    fs::rename(other, directory.path().join("orders.json")).unwrap();
    let clash = tables(directory.path()).unwrap_err();
    assert!(matches!(clash, CatalogError::Duplicate { .. }));
    let message = clash.to_string();
    assert!(message.contains("orders.csv") && message.contains("orders.json"), "{message}");

    for name in ["", "a\"b", "a\nb", " a", &"x".repeat(129)] {
        let bad = resolve(&config(&[(name, &path)])).unwrap_err();
        assert!(matches!(bad, CatalogError::BadName { .. }), "{name:?}: {bad}");
    }
}

/// Root may read every file, so a child process that is not root makes the check.
#[test]
fn unreadable_files_are_refused() {
    const CHILD: &str = "THALLUS_TEST_UNREADABLE";
    if let Some(path) = std::env::var_os(CHILD) {
        let path = Path::new(&path);
        assert!(matches!(error(&path.join("directory")), CatalogError::Unreadable { .. }));
        assert!(matches!(error(&path.join("file.csv")), CatalogError::Unreadable { .. }));
        assert!(matches!(tables(&path.join("directory")), Err(CatalogError::Unreadable { table: None, .. })));
        return;
    }
    let directory = directory();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let locked = write(directory.path().join("directory/t.csv"), &rows(0..1));
    let file = write(directory.path().join("file.csv"), &rows(0..1));
    fs::set_permissions(locked.parent().unwrap(), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    let privileged = fs::read(&file).is_ok();

    // The child may not be allowed to read the directory of the test executable, so it runs a copy.
    let executable = directory.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &executable).unwrap();
    fs::set_permissions(&executable, fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = std::process::Command::new(&executable);
    child.args(["--exact", "catalog::unreadable_files_are_refused"]).env(CHILD, directory.path()).current_dir("/");
    if privileged {
        const NOBODY: u32 = 65_534;
        child.uid(NOBODY).gid(NOBODY);
    }
    let output = child.output().unwrap();
    fs::set_permissions(locked.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && report.contains("1 passed"), "{report}");
}
