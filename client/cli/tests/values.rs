//! Every Arrow type in every format: the right values, or a refusal.

mod support;

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch};
use arrow::ipc::reader::{FileReader, StreamReader};
use arrow::ipc::writer::StreamWriter;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use thallus_cli::failure::{Failure, code};
use thallus_cli::format::Format;

use support::leaves::{ROWS, leaves};
use support::wrapped::{Case, cases};
use support::{Scratch, Synthetic, options, run};

fn all() -> impl Iterator<Item = Case> {
    leaves().into_iter().flat_map(|leaf| cases(&leaf))
}

/// The column and the number of the row, twice: whole, and as a slice from the second row on.
fn batches(array: &ArrayRef) -> Vec<RecordBatch> {
    let rows = Arc::new((0..ROWS as i64).collect::<Int64Array>()) as ArrayRef;
    let columns = [("c", Arc::clone(array), true), ("n", rows, false)];
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    vec![batch.clone(), batch.slice(1, ROWS - 1)]
}

/// Both batches of rows.
fn twice<T: Clone>(rows: &[T; ROWS]) -> Vec<(usize, T)> {
    let rows: Vec<_> = rows.iter().cloned().enumerate().collect();
    [&rows[..], &rows[1..]].concat()
}

/// The lines of JSON of both batches.
fn lines(rows: &[String; ROWS]) -> String {
    twice(rows).into_iter().map(|(row, text)| format!("{{\"c\":{text},\"n\":{row}}}\n")).collect()
}

/// Writes a column, and returns the text, or `None` if it was refused without a trace.
fn written(dir: &Scratch, format: Format, array: &ArrayRef) -> Option<String> {
    let path = dir.path("out");
    match run(Synthetic::of(batches(array)), options(format), &path) {
        Ok(()) => {
            let text = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            Some(String::from_utf8(text).unwrap())
        }
        Err(failure @ Failure::Format { .. }) => {
            assert_eq!(failure.exit_code(), code::USAGE);
            assert!(failure.to_string().contains("column \"c\""), "{failure}");
            assert!(dir.names().is_empty(), "{:?}", dir.names());
            None
        }
        Err(other) => panic!("{}: {other}", array.data_type()),
    }
}

#[test]
fn csv_has_the_right_values() {
    let dir = Scratch::new("values-csv");
    for Case { array, csv, .. } in all() {
        let expected = csv.map(|texts| {
            let lines = twice(&texts).into_iter().map(|(row, text)| match text.as_deref() {
                None => format!(",{row}\n"),
                Some("") => format!("\"\",{row}\n"),
                Some(text) if text.contains(['"', ',', '\r', '\n']) => {
                    format!("\"{}\",{row}\n", text.replace('"', "\"\""))
                }
                Some(text) => format!("{text},{row}\n"),
            });
            format!("c,n\n{}", lines.collect::<String>())
        });
        assert_eq!(written(&dir, Format::Csv, &array), expected, "{}", array.data_type());
    }
}

#[test]
fn json_has_the_right_values() {
    let dir = Scratch::new("values-json");
    for Case { array, json, .. } in all() {
        let text = written(&dir, Format::Json, &array);
        for line in text.as_deref().unwrap_or_default().lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        }
        assert_eq!(text, json.as_ref().map(lines), "{}", array.data_type());
    }
}

#[test]
fn tables_show_the_right_values() {
    let dir = Scratch::new("values-table");
    for Case { array, table, .. } in all() {
        let text = written(&dir, Format::Table, &array).unwrap();
        let shown = text.lines().skip(3).filter_map(|line| line.strip_prefix("│ ")?.rsplit_once(" ┆ "));
        let shown: Vec<_> = shown.map(|(cell, _)| cell.trim().to_owned()).collect();
        let escaped = |text: String| text.replace('\r', "\\r").replace('\n', "\\n").replace('\0', "\\u{0}");
        let expected: Vec<_> = twice(&table).into_iter().map(|(_, text)| escaped(text).trim().to_owned()).collect();
        assert_eq!(shown, expected, "{}", array.data_type());
    }
}

#[test]
fn arrow_has_the_right_values() {
    let dir = Scratch::new("values-arrow");
    for Case { array, .. } in all() {
        let written = batches(&array);
        let (file, stream) = (dir.path("out.arrow"), dir.path("out.arrows"));
        run(Synthetic::of(written.clone()), options(Format::Arrow), &file).unwrap();
        let mut as_stream = options(Format::Arrow);
        as_stream.stream = true;
        run(Synthetic::of(written.clone()), as_stream, &stream).unwrap();
        let read = StreamReader::try_new(File::open(&stream).unwrap(), None).unwrap();
        assert_eq!(read.map(Result::unwrap).collect::<Vec<_>>(), written, "{}", array.data_type());
        let read = FileReader::try_new(File::open(&file).unwrap(), None).unwrap();
        let read: Vec<_> = read.map(Result::unwrap).collect();
        // A file has the values of dictionaries.
        if !format!("{}", array.data_type()).contains("Dictionary") {
            assert_eq!(read, written, "{}", array.data_type());
        }
    }
}

/// The rows of a Parquet file, in JSON.
fn in_json(dir: &Scratch, file: &Path, with_arrow_schema: bool) -> String {
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(!with_arrow_schema);
    let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(File::open(file).unwrap(), options).unwrap();
    let read: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
    let path = dir.path("read.json");
    run(Synthetic::of(read), support::options(Format::Json), &path).unwrap();
    fs::read_to_string(path).unwrap()
}

#[test]
fn parquet_has_the_right_values_with_and_without_the_schema_of_arrow() {
    let dir = Scratch::new("values-parquet");
    let path = dir.path("out.parquet");
    for Case { array, json, .. } in all() {
        let data_type = array.data_type().to_string();
        let failure = match run(Synthetic::of(batches(&array)), options(Format::Parquet), &path) {
            Ok(()) => None,
            Err(failure @ Failure::Format { .. }) => Some(failure.to_string()),
            Err(other) => panic!("{data_type}: {other}"),
        };
        // DuckDB and pyarrow read no union, and no duration or interval without Arrow's schema.
        let refused = ["Union", "Duration", "Interval", "Decimal256(40, -40)"].iter().any(|no| data_type.contains(no));
        assert_eq!(failure.is_some(), refused, "{data_type}: {failure:?}");
        if refused {
            assert!(failure.unwrap().contains("column \"c\" is ") && !path.exists(), "{data_type}");
            continue;
        }
        let mut expected = lines(&json.unwrap());
        if data_type.contains("Date64") {
            expected = expected.replace("T00:00:00\"", "\"");
        }
        assert_eq!(in_json(&dir, &path, true), expected, "{data_type}");
        // Parquet has instants in UTC; the name of the zone is in Arrow's schema.
        if !data_type.contains("Timestamp(") || !data_type.contains(", \"") {
            assert_eq!(in_json(&dir, &path, false), expected, "{data_type}");
        }
        fs::remove_file(&path).unwrap();
    }
}

/// Writes the columns, as they are and in each format, for `readers.py`, which compares them as other programs read
/// them. The environment names the directory.
#[test]
#[ignore = "see readers.py"]
fn files_for_other_readers() {
    let dir = std::env::var_os("THALLUS_FILES").expect("THALLUS_FILES names a directory");
    let dir = std::path::Path::new(&dir);
    for (i, Case { array, .. }) in all().enumerate() {
        let batches = batches(&array);
        let mut writer =
            StreamWriter::try_new(File::create(dir.join(format!("{i}.ref"))).unwrap(), &batches[0].schema()).unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        writer.finish().unwrap();
        fs::write(dir.join(format!("{i}.type")), array.data_type().to_string()).unwrap();
        for (format, extension) in
            [(Format::Csv, "csv"), (Format::Json, "json"), (Format::Parquet, "parquet"), (Format::Arrow, "arrow")]
        {
            let path = dir.join(format!("{i}.{extension}"));
            match run(Synthetic::of(batches.clone()), options(format), &path) {
                Ok(()) => {}
                Err(refused @ Failure::Format { .. }) => {
                    fs::write(dir.join(format!("{i}.{extension}.refused")), refused.to_string()).unwrap()
                }
                Err(other) => panic!("{}: {other}", array.data_type()),
            }
        }
    }
}
