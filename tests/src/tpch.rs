//! TPC-H: the eight tables, generated at any scale, and the 22 queries with the specification's validation parameters.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;

use arrow::array::{RecordBatch, RecordBatchReader};
use arrow::csv::Writer as CsvWriter;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::writer::FileWriter;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use thiserror::Error;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow::{
    CustomerArrow, LineItemArrow, NationArrow, OrderArrow, PartArrow, PartSuppArrow, RegionArrow, SupplierArrow,
};

/// Names of the tables (TPC-H specification, section 1.2).
pub const TABLES: [&str; 8] = ["customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"];

/// Largest scale factor of the specification.
const MAX_SCALE: f64 = 100_000.0;
/// Rows of a generated batch; also of a batch in an Arrow file.
const BATCH_ROWS: usize = 65_536;
/// Rows of a Parquet row group: about 10 to 30 MB, so that a scan has several row groups to read in parallel.
const ROW_GROUP_ROWS: usize = 262_144;
/// Marker file. It names the complete data of a directory. It is hidden, so that a server does not take it for a table.
const MARKER: &str = ".thallus-tpch";

/// Format of the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Parquet, compressed with Snappy.
    #[default]
    Parquet,
    /// Arrow IPC files, not compressed.
    Arrow,
    /// CSV with a header.
    Csv,
}

impl Format {
    /// Extension of the files.
    #[must_use]
    pub const fn extension(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Arrow => "arrow",
            Format::Csv => "csv",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.extension())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Format::Parquet, Format::Arrow, Format::Csv];
        let found = known.into_iter().find(|format| format.extension() == text);
        found.ok_or_else(|| format!("`{text}` is none of parquet, arrow, csv"))
    }
}

/// Why the data could not be generated.
#[derive(Debug, Error)]
pub enum TpchError {
    /// Not a scale factor.
    #[error("scale factor {0} is not between 0 (exclusive) and {MAX_SCALE}")]
    Scale(f64),
    /// The directory holds other data, which is not overwritten.
    #[error("{} holds other data ({found}; wanted: {wanted}); remove it or choose another directory", path.display())]
    OtherData {
        /// The directory.
        path: PathBuf,
        /// Scale and format of the existing data.
        found: String,
        /// Scale and format that were requested.
        wanted: String,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// File or directory.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Result of [`generate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generated {
    /// Number of rows written, over all tables.
    Rows(u64),
    /// The directory already holds this data.
    AlreadyThere,
}

/// Writes the eight tables to `directory`, one file per table, named by the table. Creates a missing directory.
///
/// Rows are written as they are generated. A file gets its name only when it is complete. The marker file is written
/// last; a second call finds it and writes nothing.
///
/// # Errors
/// [`TpchError`].
pub fn generate(directory: &Path, scale: f64, format: Format) -> Result<Generated, TpchError> {
    if !(scale > 0.0 && scale <= MAX_SCALE) {
        return Err(TpchError::Scale(scale));
    }
    let marker = directory.join(MARKER);
    let wanted = format!("scale {scale}, {format}");
    if let Ok(found) = fs::read_to_string(&marker) {
        if found.trim() == wanted {
            return Ok(Generated::AlreadyThere);
        }
        return Err(TpchError::OtherData { path: directory.to_owned(), found: found.trim().to_owned(), wanted });
    }
    fs::create_dir_all(directory).map_err(|e| write_error(directory, e))?;
    // `lineitem` is most of the work; the other tables together occupy the second core.
    let rows = thread::scope(|scope| {
        let workers = TABLES.map(|table| scope.spawn(move || write_table(directory, table, scale, format)));
        workers.into_iter().map(|worker| worker.join().expect("the writer does not panic")).sum::<Result<u64, _>>()
    })?;
    whole_file(&marker, |mut file| {
        file.write_all(wanted.as_bytes())?;
        file.flush()?;
        Ok(0)
    })?;
    Ok(Generated::Rows(rows))
}

/// The rows of one table, in the order of its key, generated as they are read.
///
/// # Panics
/// If TPC-H has no such table.
#[must_use]
pub fn table(name: &str, scale: f64) -> Box<dyn RecordBatchReader + Send> {
    // Nation and region have the same size at every scale.
    match name {
        "customer" => Box::new(CustomerArrow::new(CustomerGenerator::new(scale, 1, 1)).with_batch_size(BATCH_ROWS)),
        "lineitem" => Box::new(LineItemArrow::new(LineItemGenerator::new(scale, 1, 1)).with_batch_size(BATCH_ROWS)),
        "nation" => Box::new(NationArrow::new(NationGenerator::new(scale, 1, 1)).with_batch_size(BATCH_ROWS)),
        "orders" => Box::new(OrderArrow::new(OrderGenerator::new(scale, 1, 1)).with_batch_size(BATCH_ROWS)),
        "part" => Box::new(PartArrow::new(PartGenerator::new(scale, 1, 1)).with_batch_size(BATCH_ROWS)),
        "partsupp" => Box::new(PartSuppArrow::new(PartSuppGenerator::new(scale, 1, 1)).with_batch_size(BATCH_ROWS)),
        "region" => Box::new(RegionArrow::new(RegionGenerator::new(scale, 1, 1)).with_batch_size(BATCH_ROWS)),
        "supplier" => Box::new(SupplierArrow::new(SupplierGenerator::new(scale, 1, 1)).with_batch_size(BATCH_ROWS)),
        other => panic!("TPC-H has no table {other}"),
    }
}

fn write_table(directory: &Path, name: &str, scale: f64, format: Format) -> Result<u64, TpchError> {
    let rows = table(name, scale);
    whole_file(&directory.join(name).with_extension(format.extension()), |file| {
        let mut sink = Sink::new(file, rows.schema(), format)?;
        let mut count = 0;
        for batch in rows {
            let batch = batch?;
            count += batch.num_rows() as u64;
            sink.write(&batch)?;
        }
        sink.finish()?;
        Ok(count)
    })
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn write_error(path: &Path, source: impl Into<AnyError>) -> TpchError {
    TpchError::Write { path: path.to_owned(), source: source.into() }
}

/// Writes a file that gets its name only when it is complete and on the disk.
fn whole_file(path: &Path, write: impl FnOnce(BufWriter<File>) -> Result<u64, AnyError>) -> Result<u64, TpchError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Hidden, and with the process id: two processes do not write to the same file.
    let partial = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
    let result = File::create(&partial)
        .map_err(AnyError::from)
        .and_then(|file| write(BufWriter::with_capacity(1 << 20, file)))
        .and_then(|count| {
            File::open(&partial)?.sync_all()?;
            fs::rename(&partial, path)?;
            Ok(count)
        });
    result.map_err(|e| {
        // Report the first error; ignore an error of the removal.
        let _ = fs::remove_file(&partial);
        write_error(path, e)
    })
}

enum Sink {
    Parquet(Box<ArrowWriter<BufWriter<File>>>),
    Arrow(Box<FileWriter<BufWriter<File>>>),
    Csv(Box<CsvWriter<BufWriter<File>>>),
}

impl Sink {
    fn new(file: BufWriter<File>, schema: SchemaRef, format: Format) -> Result<Self, AnyError> {
        Ok(match format {
            Format::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::SNAPPY)
                    .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
                    .build();
                Sink::Parquet(Box::new(ArrowWriter::try_new(file, schema, Some(properties))?))
            }
            Format::Arrow => Sink::Arrow(Box::new(FileWriter::try_new(file, &schema)?)),
            Format::Csv => Sink::Csv(Box::new(CsvWriter::new(file))),
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), AnyError> {
        match self {
            Sink::Parquet(writer) => writer.write(batch).map_err(|e: ParquetError| e.into()),
            Sink::Arrow(writer) => writer.write(batch).map_err(|e: ArrowError| e.into()),
            Sink::Csv(writer) => writer.write(batch).map_err(|e: ArrowError| e.into()),
        }
    }

    fn finish(self) -> Result<(), AnyError> {
        let mut file = match self {
            Sink::Parquet(writer) => writer.into_inner()?,
            Sink::Arrow(writer) => writer.into_inner()?,
            Sink::Csv(writer) => writer.into_inner(),
        };
        file.flush().map_err(|e: io::Error| e.into())
    }
}

macro_rules! queries {
    ($($number:literal)*) => {
        [$((concat!("q", $number), include_str!(concat!("../tpch/q", $number, ".sql")))),*]
    };
}

/// The 22 queries, `q01` to `q22`, with the validation parameters of the TPC-H specification (sections 2.4.1.3 to
/// 2.4.22.3), which are for scale factor 1. At other scales the queries run, with results of other sizes.
#[must_use]
pub fn queries() -> [(&'static str, &'static str); 22] {
    queries!(
        "01" "02" "03" "04" "05" "06" "07" "08" "09" "10" "11"
        "12" "13" "14" "15" "16" "17" "18" "19" "20" "21" "22"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("thallus-tpch-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    fn files(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn every_table_is_written_whole_and_only_once() {
        let path = directory("whole");
        // Rows at scale 0.001: 150 customers, 1500 orders and so on; the number of line items is the generator's.
        let line_items: usize = table("lineitem", 0.001).map(|batch| batch.unwrap().num_rows()).sum();
        assert!((5900..6100).contains(&line_items));
        let rows = 150 + line_items + 25 + 1500 + 200 + 800 + 5 + 10;
        assert_eq!(generate(&path, 0.001, Format::Parquet).unwrap(), Generated::Rows(rows as u64));
        let mut expected: Vec<_> = TABLES.iter().map(|table| format!("{table}.parquet")).collect();
        expected.insert(0, MARKER.to_owned());
        assert_eq!(files(&path), expected);
        assert_eq!(generate(&path, 0.001, Format::Parquet).unwrap(), Generated::AlreadyThere);
        assert!(matches!(generate(&path, 0.002, Format::Parquet), Err(TpchError::OtherData { .. })));
        assert!(matches!(generate(&path, 0.001, Format::Csv), Err(TpchError::OtherData { .. })));
        fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn an_incomplete_file_is_generated_again() {
        let path = directory("again");
        generate(&path, 0.001, Format::Csv).unwrap();
        let whole = fs::read(path.join("orders.csv")).unwrap();
        fs::remove_file(path.join(MARKER)).unwrap();
        fs::write(path.join("orders.csv"), "o_orderkey\n1\n").unwrap();
        assert!(matches!(generate(&path, 0.001, Format::Csv).unwrap(), Generated::Rows(_)));
        assert_eq!(fs::read(path.join("orders.csv")).unwrap(), whole);
        fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn errors_say_what_and_where() {
        for scale in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e6] {
            assert!(matches!(generate(Path::new("/nowhere"), scale, Format::Csv), Err(TpchError::Scale(_))));
        }
        let path = directory("file");
        fs::write(&path, "not a directory").unwrap();
        let error = generate(&path, 0.001, Format::Csv).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn there_are_22_queries_and_no_parameter_is_left_open() {
        for (number, (name, sql)) in (1..).zip(queries()) {
            assert_eq!(name, format!("q{number:02}"));
            assert!(sql.starts_with(&format!("-- TPC-H Q{number}, ")), "{name}");
            assert!(!sql.contains(':') || sql.lines().skip(2).all(|line| !line.contains(':')), "{name}");
        }
    }
}
