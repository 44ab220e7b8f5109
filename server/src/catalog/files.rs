//! From a path to the files of a table, and their kind.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::{CatalogError, Compression, Format};
use crate::config::TableConfig;

/// Kind of a file, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileKind {
    pub(super) format: Format,
    pub(super) compression: Compression,
    pub(super) delimiter: u8,
    /// Arrow IPC in its stream format. Known only from the content.
    pub(super) ipc_stream: bool,
}

impl FileKind {
    fn plain(format: Format) -> Self {
        FileKind { format, compression: Compression::None, delimiter: b',', ipc_stream: false }
    }

    /// The stem of a file's name and its kind, by its extensions. The suffix follows the stem.
    pub(super) fn of_name(name: &str) -> Option<(&str, FileKind)> {
        let (rest, compression) = compression_of(name);
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
        (is_text || compression == Compression::None)
            .then_some((stem, FileKind { format, compression, delimiter, ipc_stream: false }))
    }
}

/// A name without its compression's extension, and the compression.
fn compression_of(name: &str) -> (&str, Compression) {
    if let Some((rest, extension)) = name.rsplit_once('.') {
        let compression = match extension.to_ascii_lowercase().as_str() {
            "gz" => Compression::Gzip,
            "bz2" => Compression::Bzip2,
            "xz" => Compression::Xz,
            "zst" => Compression::Zstd,
            _ => Compression::None,
        };
        if compression != Compression::None && !rest.is_empty() {
            return (rest, compression);
        }
    }
    (name, Compression::None)
}

/// Whether the name marks a file or directory that is not data: hidden ones, and markers such as `_SUCCESS`.
pub(crate) fn is_hidden(name: &str) -> bool {
    name.starts_with(['.', '_'])
}

/// A table's files.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) is_directory: bool,
    pub(super) kind: FileKind,
    pub(super) suffix: String,
    pub(super) files: Vec<PathBuf>,
    pub(super) partition_columns: Vec<String>,
}

/// Finds the files of `table`, checks that they can be opened, and determines their kind.
pub(super) fn find(table: &str, config: &TableConfig) -> Result<Found, CatalogError> {
    let io_error = |source| CatalogError::of_io(Some(table), &config.path, source);
    let metadata = fs::metadata(&config.path).map_err(io_error)?;
    let path = std::path::absolute(&config.path).map_err(io_error)?;
    if path.to_str().is_none() {
        return Err(CatalogError::NotUtf8 { path });
    }
    let mut walk = Walk { table, forced: config.format, files: Vec::new(), partition_columns: None };
    if metadata.is_dir() {
        walk.directory(&path, &mut Vec::new())?;
    } else {
        walk.file(path.clone(), &metadata)?;
    }
    walk.files.sort_by(|a, b| a.0.cmp(&b.0));
    let Some((_, kind, suffix)) = walk.files.first().cloned() else {
        return Err(CatalogError::EmptyDirectory { table: Some(table.to_owned()), path });
    };
    if walk.files.iter().any(|(_, other, other_suffix)| *other != kind || *other_suffix != suffix) {
        let mut found: Vec<String> = walk.files.into_iter().map(|(_, kind, suffix)| described(kind, suffix)).collect();
        found.sort();
        found.dedup();
        return Err(CatalogError::MixedFormats { table: table.to_owned(), path, found });
    }
    Ok(Found {
        path,
        is_directory: metadata.is_dir(),
        kind,
        suffix,
        files: walk.files.into_iter().map(|(path, ..)| path).collect(),
        partition_columns: walk.partition_columns.unwrap_or_default(),
    })
}

fn described(kind: FileKind, suffix: String) -> String {
    match kind.format {
        Format::Arrow if kind.ipc_stream => format!("{suffix} in IPC stream format"),
        Format::Arrow => format!("{suffix} in IPC file format"),
        _ if suffix.is_empty() => format!("{} without extension", kind.format.as_str()),
        _ => suffix,
    }
}

struct Walk<'a> {
    table: &'a str,
    forced: Option<Format>,
    files: Vec<(PathBuf, FileKind, String)>,
    /// Columns of the first file's directories; those of every other file must be the same.
    partition_columns: Option<Vec<String>>,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &Path, columns: &mut Vec<String>) -> Result<(), CatalogError> {
        let unreadable = |source| CatalogError::of_io(Some(self.table), directory, source);
        let entries = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(unreadable)?;
        for entry in entries {
            let path = entry.path();
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                return Err(CatalogError::NotUtf8 { path });
            };
            if is_hidden(&name) {
                continue;
            }
            let metadata = fs::metadata(&path).map_err(|e| CatalogError::of_io(Some(self.table), &path, e))?;
            if !metadata.is_dir() {
                if self.partition_columns.get_or_insert_with(|| columns.clone()) != columns {
                    return Err(CatalogError::NestedDirectory {
                        table: self.table.to_owned(),
                        path: directory.to_owned(),
                    });
                }
                self.file(path, &metadata)?;
                continue;
            }
            match name.split_once('=') {
                Some((column, _)) if !column.is_empty() => {
                    columns.push(column.to_owned());
                    self.directory(&path, columns)?;
                    columns.pop();
                }
                _ => return Err(CatalogError::NestedDirectory { table: self.table.to_owned(), path }),
            }
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf, metadata: &Metadata) -> Result<(), CatalogError> {
        let table = || self.table.to_owned();
        if !metadata.is_file() {
            return Err(CatalogError::SpecialFile { table: table(), path });
        }
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(CatalogError::NotUtf8 { path });
        };
        // Reads the first bytes even if the name defines the format, so that an unreadable file is detected now.
        let head = head_of(&path).map_err(|source| CatalogError::of_io(Some(self.table), &path, source))?;
        let by_name = FileKind::of_name(name);
        let suffix = match &by_name {
            Some((stem, _)) => name[stem.len()..].to_owned(),
            None => Path::new(name).extension().and_then(|e| e.to_str()).map_or(String::new(), |e| format!(".{e}")),
        };
        let mut kind = match (self.forced, by_name) {
            (Some(format), Some((_, kind))) if kind.format == format => kind,
            (Some(format), _) => FileKind { compression: compression_of(name).1, ..FileKind::plain(format) },
            (None, Some((_, kind))) => kind,
            (None, None) => match head.as_slice() {
                [b'P', b'A', b'R', b'1', ..] => FileKind::plain(Format::Parquet),
                [b'A', b'R', b'R', b'O', b'W', b'1', ..] => FileKind::plain(Format::Arrow),
                _ => return Err(CatalogError::UnknownFormat { table: table(), path }),
            },
        };
        if metadata.len() == 0 && matches!(kind.format, Format::Parquet | Format::Arrow) {
            return Err(CatalogError::EmptyFile { table: table(), path });
        }
        if kind.format == Format::Parquet {
            let flaw = parquet_flaw(&path).map_err(|source| CatalogError::of_io(Some(self.table), &path, source))?;
            if let Some(reason) = flaw {
                return Err(CatalogError::Corrupt { table: table(), path, format: kind.format.as_str(), reason });
            }
        }
        kind.ipc_stream = kind.format == Format::Arrow && !head.starts_with(b"ARROW1");
        self.files.push((path, kind, suffix));
        Ok(())
    }
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
        // The second is the magic of encrypted metadata.
        b"PAR1" | b"PARE" if metadata + TAIL + 4 <= len => None,
        b"PAR1" | b"PARE" => {
            Some(format!("its end declares {metadata} bytes of metadata, but the file has only {len} bytes"))
        }
        _ => Some("it does not end with the format's magic: another format, or truncated".to_owned()),
    })
}
