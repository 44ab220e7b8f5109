//! From a path to the files of a table, and their kind.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::compression::Compression;
use super::error::CatalogError;
use crate::config::{Format, TableConfig};

/// The treatment of a file that cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Everything that is not served is an error of its table.
    Strict,
    /// A table of the configuration: files that are no data are skipped, and a data file that cannot be read is an
    /// error of the table.
    Table,
    /// A table of a data directory: it has the files that can be read.
    Data,
}

/// Kind of a file, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileKind {
    pub(super) format: Format,
    pub(super) compression: Compression,
    pub(super) delimiter: u8,
}

impl FileKind {
    fn plain(format: Format) -> Self {
        FileKind { format, compression: Compression::None, delimiter: b',' }
    }

    /// The stem of a file's name and its kind, by its extensions. The suffix follows the stem.
    pub(super) fn of_name(name: &str) -> Option<(&str, FileKind)> {
        let (rest, compression) = Compression::of_name(name);
        let (stem, extension) = rest.rsplit_once('.').filter(|(stem, _)| !stem.is_empty())?;
        let (format, delimiter) = match extension.to_ascii_lowercase().as_str() {
            "parquet" => (Format::Parquet, b','),
            "csv" => (Format::Csv, b','),
            "tsv" => (Format::Csv, b'\t'),
            "json" | "ndjson" | "jsonl" => (Format::Json, b','),
            "arrow" | "arrows" | "ipc" | "feather" => (Format::Arrow, b','),
            _ => return None,
        };
        let is_text = matches!(format, Format::Csv | Format::Json);
        (is_text || compression == Compression::None).then_some((stem, FileKind { format, compression, delimiter }))
    }
}

/// Whether the name marks a file or directory that is not data: hidden ones, and markers such as `_SUCCESS`. A name
/// such as `_year=2024` is that of a partition.
pub(super) fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || (name.starts_with('_') && !name.contains('='))
}

/// The state of a file, by which a change is detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Length in bytes.
    pub len: u64,
    inode: (u64, u64),
    /// Seconds and nanoseconds. The time of the change of the inode is not included: a new link to the file changes it.
    modified: (i64, i64),
}

impl Stamp {
    /// The state of the file now.
    ///
    /// # Errors
    /// The operating system's error. A file that is not a regular one any more is an error too.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file any more"));
        }
        Ok(Stamp::of_metadata(&metadata))
    }

    /// The time of the last modification: seconds and nanoseconds since 1970.
    #[must_use]
    pub fn modified(&self) -> (i64, i64) {
        self.modified
    }

    fn of_metadata(metadata: &Metadata) -> Self {
        Stamp {
            len: metadata.len(),
            inode: (metadata.dev(), metadata.ino()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// A file of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// Absolute path.
    pub path: PathBuf,
    /// Compression of the whole file.
    pub compression: Compression,
    /// Separator of the fields of a CSV file, by its extension.
    pub delimiter: u8,
    /// Values of the partition columns. `None` is NULL.
    pub partition: Vec<Option<String>>,
    /// The file's state.
    pub stamp: Stamp,
}

/// A table's files.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) is_directory: bool,
    pub(super) format: Format,
    pub(super) files: Vec<DataFile>,
    pub(super) partition_columns: Vec<String>,
    pub(super) skipped: Vec<CatalogError>,
}

/// Finds the files of `table`, checks that they can be opened, and determines their kind.
pub(super) fn find(table: &str, config: &TableConfig, policy: Policy) -> Result<Found, CatalogError> {
    let io_error = |source| CatalogError::of_io(Some(table), &config.path, source);
    let metadata = fs::metadata(&config.path).map_err(io_error)?;
    let path = absolute(&config.path).map_err(io_error)?;
    if path.to_str().is_none() {
        return Err(CatalogError::NotUtf8 { path });
    }
    let mut walk = Walk { table, config, policy, files: Vec::new(), partition_columns: None, skipped: Vec::new() };
    if metadata.is_dir() {
        walk.directory(&path, &mut Vec::new())?;
    } else {
        let file = walk.file(path.clone(), &metadata, &[])?;
        walk.files.push(file);
    }
    let format = walk.one_format(&path)?;
    walk.files.sort_by(|(_, a), (_, b)| a.path.cmp(&b.path));
    Ok(Found {
        path,
        is_directory: metadata.is_dir(),
        format,
        files: walk.files.into_iter().map(|(_, file)| file).collect(),
        partition_columns: walk.partition_columns.unwrap_or_default(),
        skipped: walk.skipped,
    })
}

/// The path without `.` and `..`. Symbolic links before a `..` are followed, as the operating system does.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let goes_up = path.components().any(|part| part == std::path::Component::ParentDir);
    if goes_up { fs::canonicalize(path) } else { Ok(path) }
}

/// Seriousness of an oddity in a table's directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Oddity {
    /// It is no data file.
    NoData,
    /// It is a data file, or a directory of some, that cannot be read.
    Data,
}

struct Walk<'a> {
    table: &'a str,
    config: &'a TableConfig,
    policy: Policy,
    files: Vec<(Format, DataFile)>,
    /// Columns of the first file's directories; those of every other file must be the same.
    partition_columns: Option<Vec<String>>,
    skipped: Vec<CatalogError>,
}

impl Walk<'_> {
    /// Skips something, unless the policy makes it an error of the table.
    fn skip(&mut self, oddity: Oddity, error: CatalogError) -> Result<(), CatalogError> {
        let is_error = match self.policy {
            Policy::Strict => true,
            Policy::Table => oddity == Oddity::Data,
            Policy::Data => false,
        };
        if is_error {
            return Err(error);
        }
        self.skipped.push(error);
        Ok(())
    }

    fn directory(&mut self, directory: &Path, parts: &mut Vec<(String, Option<String>)>) -> Result<(), CatalogError> {
        let unreadable = |source| CatalogError::of_io(Some(self.table), directory, source);
        let mut entries =
            fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(unreadable)?;
        // The order of a directory is arbitrary.
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                self.skip(Oddity::NoData, CatalogError::NotUtf8 { path })?;
                continue;
            };
            if is_hidden(&name) {
                tracing::debug!(path = %path.display(), "skipped: its name begins with `.` or `_`");
                continue;
            }
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => self.sub_directory(path, &name, parts)?,
                Ok(metadata) => self.add(path, &metadata, parts)?,
                Err(e) => self.skip(Oddity::Data, CatalogError::of_io(Some(self.table), &path, e))?,
            }
        }
        Ok(())
    }

    fn sub_directory(
        &mut self,
        path: PathBuf,
        name: &str,
        parts: &mut Vec<(String, Option<String>)>,
    ) -> Result<(), CatalogError> {
        let table = self.table.to_owned();
        let Some((column, value)) = name.split_once('=').filter(|(column, _)| !column.is_empty()) else {
            return self.skip(Oddity::Data, CatalogError::NestedDirectory { table, path });
        };
        let column = unescaped(column);
        if parts.iter().any(|(earlier, _)| *earlier == column) {
            return self.skip(Oddity::Data, CatalogError::PartitionTwice { table, path, column });
        }
        // Hive's name of the partition with the rows whose value is NULL.
        let value = (value != "__HIVE_DEFAULT_PARTITION__").then(|| unescaped(value));
        parts.push((column, value));
        match self.directory(&path, parts) {
            Err(error @ CatalogError::Unreadable { .. }) => self.skip(Oddity::Data, error)?,
            done => done?,
        }
        parts.pop();
        Ok(())
    }

    fn add(
        &mut self,
        path: PathBuf,
        metadata: &Metadata,
        parts: &[(String, Option<String>)],
    ) -> Result<(), CatalogError> {
        match self.file(path.clone(), metadata, parts) {
            Ok(file) => {
                let columns: Vec<String> = parts.iter().map(|(column, _)| column.clone()).collect();
                if *self.partition_columns.get_or_insert_with(|| columns.clone()) != columns {
                    let (table, first) = (self.table.to_owned(), self.files.first().map(|(_, file)| file.path.clone()));
                    let first = first.unwrap_or_default();
                    return self.skip(Oddity::Data, CatalogError::PartitionsDiffer { table, path, first });
                }
                self.files.push(file);
                Ok(())
            }
            Err(error @ (CatalogError::UnknownFormat { .. } | CatalogError::SpecialFile { .. })) => {
                self.skip(Oddity::NoData, error)
            }
            Err(error) => self.skip(Oddity::Data, error),
        }
    }

    fn file(
        &self,
        path: PathBuf,
        metadata: &Metadata,
        parts: &[(String, Option<String>)],
    ) -> Result<(Format, DataFile), CatalogError> {
        let table = || self.table.to_owned();
        if !metadata.is_file() {
            return Err(CatalogError::SpecialFile { table: table(), path });
        }
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(CatalogError::NotUtf8 { path });
        };
        // Reads the first bytes even if the name defines the format, so that an unreadable file is detected now.
        let head = head_of(&path).map_err(|source| CatalogError::of_io(Some(self.table), &path, source))?;
        let kind = match (self.config.format, FileKind::of_name(name)) {
            (Some(format), Some((_, kind))) if kind.format == format => kind,
            (Some(format), _) => FileKind { compression: Compression::of_name(name).1, ..FileKind::plain(format) },
            (None, Some((_, kind))) => kind,
            (None, None) => match head.as_slice() {
                [b'P', b'A', b'R', b'1', ..] if !name.contains('.') => FileKind::plain(Format::Parquet),
                [b'A', b'R', b'R', b'O', b'W', b'1', ..] if !name.contains('.') => FileKind::plain(Format::Arrow),
                _ => return Err(CatalogError::UnknownFormat { table: table(), path }),
            },
        };
        if metadata.len() == 0 && kind.format != Format::Json {
            return Err(CatalogError::EmptyFile { table: table(), path });
        }
        if kind.format == Format::Parquet {
            let flaw = parquet_flaw(&path).map_err(|source| CatalogError::of_io(Some(self.table), &path, source))?;
            if let Some(reason) = flaw {
                return Err(CatalogError::Corrupt { table: table(), path, format: kind.format.as_str(), reason });
            }
        }
        let file = DataFile {
            path,
            compression: kind.compression,
            delimiter: kind.delimiter,
            partition: parts.iter().map(|(_, value)| value.clone()).collect(),
            stamp: Stamp::of_metadata(metadata),
        };
        Ok((kind.format, file))
    }

    /// The format of the table. JSON files beside files of another format describe those, as `dataset_info.json` does.
    fn one_format(&mut self, path: &Path) -> Result<Format, CatalogError> {
        let mut formats: Vec<Format> = self.files.iter().map(|(format, _)| *format).collect();
        formats.sort_unstable();
        formats.dedup();
        if let [_, _] = formats[..]
            && formats.contains(&Format::Json)
            && self.policy != Policy::Strict
        {
            formats.retain(|format| *format != Format::Json);
            let others = formats[0];
            for (_, file) in self.files.extract_if(.., |(format, _)| *format != others) {
                let table = self.table.to_owned();
                self.skipped.push(CatalogError::OtherFormat { table, path: file.path, format: others.as_str() });
            }
        }
        let table = self.table.to_owned();
        match formats[..] {
            [format] => Ok(format),
            [] => match self.skipped.pop() {
                // The reason of the only file says more than that there is none.
                Some(reason) if self.skipped.is_empty() => Err(reason),
                _ => Err(CatalogError::EmptyDirectory { table: Some(table), path: path.to_owned() }),
            },
            _ => {
                let found = formats.iter().map(|format| format.as_str().to_owned()).collect();
                Err(CatalogError::MixedFormats { table, path: path.to_owned(), found })
            }
        }
    }
}

/// The text of a part of a path in Hive's layout, in which `%` and two hexadecimal digits stand for a byte. Any other
/// `%` is literal.
fn unescaped(part: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = part.as_bytes();
    let (mut text, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        match (byte, digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                text.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                text.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8(text).unwrap_or_else(|_| part.to_owned())
}

fn head_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path)?.take(8).read_to_end(&mut head)?;
    Ok(head)
}

/// The defect of the end of a Parquet file, if any: the metadata, its length in four bytes, and a magic (Parquet
/// format, "File format"). The reader does not check this length, and panics if it is larger than the file.
fn parquet_flaw(path: &Path) -> io::Result<Option<String>> {
    const TAIL: u64 = 8;
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut tail = [0; TAIL as usize];
    if len < TAIL + 4 {
        return Ok(Some(format!("a file of {len} bytes is too short")));
    }
    file.seek(SeekFrom::End(-(TAIL as i64)))?;
    file.read_exact(&mut tail)?;
    let [a, b, c, d, magic @ ..] = tail;
    let metadata = u64::from(u32::from_le_bytes([a, b, c, d]));
    Ok(match &magic {
        b"PARE" => Some("its metadata is encrypted, which this server does not read".to_owned()),
        b"PAR1" if metadata + TAIL + 4 <= len => None,
        b"PAR1" => Some(format!("its end declares {metadata} bytes of metadata, but the file has only {len} bytes")),
        _ => Some("it does not end with the format's magic: another format, or truncated".to_owned()),
    })
}
