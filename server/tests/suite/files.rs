//! Small tables in files of every format.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::csv;
use arrow::ipc::writer::{FileWriter, StreamWriter};
use arrow::json;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use tempfile::TempDir;
use thallus_server::config::{ByteSize, ServerConfig, TableConfig};

/// Rows of a table `(id BIGINT, name TEXT)` with these ids. The name contains the id.
pub(crate) fn rows(ids: std::ops::Range<i64>) -> RecordBatch {
    let names = StringArray::from_iter_values(ids.clone().map(|id| format!("name {id}")));
    let columns: [(&str, ArrayRef); 2] =
        [("id", Arc::new(Int64Array::from_iter_values(ids))), ("name", Arc::new(names))];
    RecordBatch::try_from_iter(columns).unwrap()
}

/// Writes a batch in the format that the path's extension names.
pub(crate) fn write(path: impl AsRef<Path>, batch: &RecordBatch) -> PathBuf {
    let path = path.as_ref();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let extension = path.extension().unwrap().to_str().unwrap();
    if extension == "gz" {
        let plain = write(path.with_extension(""), batch);
        fs::write(path, gzip(&fs::read(&plain).unwrap())).unwrap();
        fs::remove_file(plain).unwrap();
        return path.to_owned();
    }
    let file = File::create(path).unwrap();
    match extension {
        "parquet" => {
            // Small row groups, so that a file has several.
            let properties = WriterProperties::builder().set_max_row_group_row_count(Some(1000)).build();
            let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
            writer.write(batch).unwrap();
            writer.close().unwrap();
        }
        "csv" => csv::Writer::new(file).write(batch).unwrap(),
        "tsv" => csv::WriterBuilder::new().with_delimiter(b'\t').build(file).write(batch).unwrap(),
        "json" | "ndjson" | "jsonl" => json::LineDelimitedWriter::new(file).write(batch).unwrap(),
        "arrow" => {
            let mut writer = FileWriter::try_new(file, &batch.schema()).unwrap();
            writer.write(batch).unwrap();
            writer.finish().unwrap();
        }
        "arrows" => {
            let mut writer = StreamWriter::try_new(file, &batch.schema()).unwrap();
            writer.write(batch).unwrap();
            writer.finish().unwrap();
        }
        other => panic!("no writer for .{other}"),
    }
    path.to_owned()
}

/// A gzip member of stored (not compressed) blocks: RFC 1952 around RFC 1951, section 3.2.4.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let blocks: Vec<_> = bytes.chunks(65_535).collect();
    for (number, block) in blocks.iter().enumerate() {
        let len = u16::try_from(block.len()).unwrap();
        out.push(u8::from(number + 1 == blocks.len()));
        out.extend(len.to_le_bytes());
        out.extend((!len).to_le_bytes());
        out.extend(*block);
    }
    let crc = bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    out.extend((!crc).to_le_bytes());
    out.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
    out
}

/// A temporary directory for one test.
pub(crate) fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A configuration with these tables, with fixed small limits that do not depend on the machine.
pub(crate) fn config(tables: &[(&str, &Path)]) -> ServerConfig {
    let mut config = ServerConfig::default();
    config.engine.memory_limit = Some(ByteSize::mib(256));
    config.engine.partitions = Some(4);
    config.tables = tables.iter().map(|(name, path)| ((*name).to_owned(), TableConfig::at(*path))).collect();
    config
}
