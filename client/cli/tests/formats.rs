//! Results in every format: files are read back, and results that do not fit the format are refused.

mod support;

use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{
    ArrayRef, AsArray, BinaryViewArray, DictionaryArray, Int32Array, ListArray, RecordBatch, RunArray, StringArray,
    StringViewArray, StructArray, UInt64Array, UnionArray,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef, UnionFields};
use arrow::ipc::reader::{FileReader, StreamReader};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use thallus_cli::failure::{Failure, code};
use thallus_cli::format::{Compression, Format, FormatOptions};

use support::{Scratch, Synthetic, batches, numbers, options, run};

fn whole(batches: &[RecordBatch]) -> RecordBatch {
    concat_batches(&batches[0].schema(), batches).unwrap()
}

fn column(name: &str, array: impl arrow::array::Array + 'static) -> RecordBatch {
    RecordBatch::try_from_iter([(name, Arc::new(array) as ArrayRef)]).unwrap()
}

fn dictionary(value: &str) -> RecordBatch {
    column("d", [value, value].into_iter().collect::<DictionaryArray<Int32Type>>())
}

fn nested() -> RecordBatch {
    column("l", ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), None]))
}

fn union() -> RecordBatch {
    let fields: UnionFields = [(0, Arc::new(Field::new("i", DataType::Int32, false)))].into_iter().collect();
    let children = vec![Arc::new(Int32Array::from(vec![1])) as ArrayRef];
    column("u", UnionArray::try_new(fields, ScalarBuffer::from(vec![0_i8]), None, children).unwrap())
}

#[test]
fn csv_has_a_header_and_quotes_and_reads_back() {
    let dir = Scratch::new("csv");
    let path = dir.path("out.csv");
    run(Synthetic::of(batches()), options(Format::Csv), &path).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("id,name\n0,\n1,\"name, \"\"1\"\"\"\n2,"), "{text}");
    assert_eq!(dir.names(), ["out.csv"]);
    let reader = arrow::csv::ReaderBuilder::new(batches()[0].schema()).with_header(true);
    let reader = reader.build(File::open(&path).unwrap()).unwrap();
    assert_eq!(whole(&reader.map(Result::unwrap).collect::<Vec<_>>()), whole(&batches()));
}

#[test]
fn json_has_a_row_a_line_with_nulls_and_reads_back() {
    let dir = Scratch::new("json");
    let path = dir.path("out.json");
    run(Synthetic::of(batches()), options(Format::Json), &path).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("{\"id\":0,\"name\":null}\n{\"id\":1,\"name\":\"name, \\\"1\\\"\"}\n"), "{text}");
    let reader = arrow::json::ReaderBuilder::new(batches()[0].schema());
    let reader = reader.build(std::io::BufReader::new(File::open(&path).unwrap())).unwrap();
    assert_eq!(whole(&reader.map(Result::unwrap).collect::<Vec<_>>()), whole(&batches()));
}

#[test]
fn arrow_reads_back_as_file_and_as_stream() {
    let dir = Scratch::new("arrow");
    let (file, stream) = (dir.path("out.arrow"), dir.path("out.arrows"));
    run(Synthetic::of(batches()), options(Format::Arrow), &file).unwrap();
    let read: Vec<_> = FileReader::try_new(File::open(&file).unwrap(), None).unwrap().map(Result::unwrap).collect();
    assert_eq!(read, batches());
    let mut as_stream = options(Format::Arrow);
    as_stream.stream = true;
    run(Synthetic::of(batches()), as_stream, &stream).unwrap();
    let read: Vec<_> = StreamReader::try_new(File::open(&stream).unwrap(), None).unwrap().map(Result::unwrap).collect();
    assert_eq!(read, batches());
}

#[test]
fn parquet_reads_back_in_each_compression() {
    let dir = Scratch::new("parquet");
    let path = dir.path("out.parquet");
    for (compression, named) in
        [(Compression::Zstd, "ZSTD"), (Compression::Snappy, "SNAPPY"), (Compression::None, "UNCOMPRESSED")]
    {
        let mut options = options(Format::Parquet);
        options.compression = compression;
        run(Synthetic::of(batches()), options, &path).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
        let used = format!("{:?}", reader.metadata().row_group(0).column(0).compression());
        assert!(used.starts_with(named), "{used}");
        let read: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
        assert_eq!(whole(&read), whole(&batches()));
    }
}

#[test]
fn a_result_without_rows_still_has_its_columns() {
    let dir = Scratch::new("empty");
    let schema = batches()[0].schema();
    let write = |format, name| {
        let path = dir.path(name);
        run(Synthetic::new(schema.clone(), vec![]), options(format), &path).unwrap();
        path
    };
    assert_eq!(fs::read_to_string(write(Format::Csv, "e.csv")).unwrap(), "id,name\n");
    assert_eq!(fs::read_to_string(write(Format::Json, "e.json")).unwrap(), "");
    let arrow = FileReader::try_new(File::open(write(Format::Arrow, "e.arrow")).unwrap(), None).unwrap();
    assert_eq!(arrow.schema(), schema);
    let parquet = File::open(write(Format::Parquet, "e.parquet")).unwrap();
    assert_eq!(*ParquetRecordBatchReaderBuilder::try_new(parquet).unwrap().schema(), schema);
    let table = fs::read_to_string(write(Format::Table, "e.txt")).unwrap();
    assert!(table.contains("id ┆ name") && table.ends_with("0 rows\n"), "{table}");
}

#[test]
fn schema_metadata_survives_arrow() {
    let dir = Scratch::new("metadata");
    let path = dir.path("out.arrow");
    let metadata = [("k".to_owned(), "v".to_owned())].into();
    let schema: SchemaRef = Schema::new_with_metadata(batches()[0].schema().fields().clone(), metadata).into();
    run(Synthetic::new(schema.clone(), vec![]), options(Format::Arrow), &path).unwrap();
    assert_eq!(FileReader::try_new(File::open(&path).unwrap(), None).unwrap().schema(), schema);
}

#[test]
fn dictionaries_that_change_survive() {
    let dir = Scratch::new("dictionary");
    let input = vec![dictionary("a"), dictionary("b")];
    let (file, stream) = (dir.path("out.arrow"), dir.path("out.arrows"));
    run(Synthetic::of(input.clone()), options(Format::Arrow), &file).unwrap();
    let read: Vec<_> = FileReader::try_new(File::open(&file).unwrap(), None).unwrap().map(Result::unwrap).collect();
    let values: Vec<_> = read.iter().map(|batch| batch.column(0).as_string::<i32>().value(1)).collect();
    assert_eq!(values, ["a", "b"]);
    let mut as_stream = options(Format::Arrow);
    as_stream.stream = true;
    run(Synthetic::of(input.clone()), as_stream, &stream).unwrap();
    let read: Vec<_> = StreamReader::try_new(File::open(&stream).unwrap(), None).unwrap().map(Result::unwrap).collect();
    assert_eq!(read, input);
}

#[test]
fn a_table_shows_nulls_and_leaves_rows_out_with_a_note() {
    let dir = Scratch::new("table");
    let path = dir.path("out.txt");
    let mut few = options(Format::Table);
    few.max_rows = 2;
    run(Synthetic::of(batches()), few, &path).unwrap();
    let expected = "\
┌────┬───────────┐
│ id ┆ name      │
╞════╪═══════════╡
│  0 ┆ NULL      │
│  1 ┆ name, \"1\" │
└────┴───────────┘
2 rows shown, 5 more left out: see them with --max-rows 7, or write all to a file with --output
";
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    run(Synthetic::of(vec![numbers(1, 1)]), options(Format::Table), &path).unwrap();
    assert!(fs::read_to_string(&path).unwrap().ends_with("┘\n1 row\n"));
}

#[test]
fn a_table_of_changes_is_their_number() {
    let dir = Scratch::new("changes");
    let path = dir.path("out.txt");
    let metadata = [("thallus.changes".to_owned(), "1".to_owned())].into();
    let fields = vec![Field::new("count", DataType::UInt64, false)];
    let schema: SchemaRef = Schema::new_with_metadata(fields, metadata).into();
    let counts = |counts: Vec<u64>| RecordBatch::try_new(schema.clone(), vec![Arc::new(UInt64Array::from(counts))]);
    for (changed, shown) in [(1234, "1,234 rows changed\n"), (1, "1 row changed\n"), (0, "0 rows changed\n")] {
        let result = || Synthetic::of(vec![counts(vec![changed]).unwrap()]);
        run(result(), options(Format::Table), &path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), shown);
        run(result(), options(Format::Csv), &path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("count\n{changed}\n"));
    }
    // Each row of parameters is one execution.
    run(Synthetic::of(vec![counts(vec![2, 3]).unwrap()]), options(Format::Table), &path).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "5 rows changed\n");
}

#[test]
fn a_table_shows_every_type() {
    let dir = Scratch::new("table-nested");
    let path = dir.path("out.txt");
    for (batch, shown) in [(nested(), "[1, NULL]"), (union(), "{i=1}"), (dictionary("v"), "│ v │")] {
        run(Synthetic::of(vec![batch]), options(Format::Table), &path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(shown), "{text}");
    }
}

fn refused(batch: RecordBatch, format: Format) -> String {
    let dir = Scratch::new("refused");
    let result = Synthetic::of(vec![batch]);
    let dropped = result.dropped();
    let failure = run(result, options(format), &dir.path("out")).unwrap_err();
    assert!(matches!(failure, Failure::Format { .. }), "{failure:?}");
    assert_eq!(failure.exit_code(), code::USAGE);
    assert!(failure.hint().is_some_and(|hint| hint.contains("--format arrow")));
    assert!(dir.names().is_empty());
    assert!(dropped.load(Ordering::SeqCst), "the query was not cancelled");
    failure.to_string()
}

#[test]
fn csv_refuses_nested_columns() {
    let message = refused(nested(), Format::Csv);
    assert!(message.starts_with("cannot write the result as CSV: column \"l\" is nested (List("), "{message}");
    let fields = vec![Field::new("a", DataType::Int32, false)];
    let of_struct = StructArray::new(fields.into(), vec![Arc::new(Int32Array::from(vec![1]))], None);
    assert!(refused(column("s", of_struct), Format::Csv).contains("column \"s\" is nested"));
    assert!(refused(union(), Format::Csv).contains("column \"u\" is nested"));
}

#[test]
fn a_refusal_comes_before_any_output() {
    use std::io::Read;
    // A pipe is written in place, so the reader would see output from before the refusal.
    let dir = Scratch::new("refused-pipe");
    let fifo = dir.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for (batch, format, written) in
        [(nested(), Format::Csv, false), (union(), Format::Json, false), (numbers(0, 1), Format::Csv, true)]
    {
        let path = fifo.clone();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            File::open(path).unwrap().read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(run(Synthetic::of(vec![batch]), options(format), &fifo).is_ok(), written);
        assert_eq!(!reader.join().unwrap().is_empty(), written);
    }
}

#[test]
fn csv_takes_runs_and_dictionaries_of_plain_values() {
    let dir = Scratch::new("csv-runs");
    let path = dir.path("out.csv");
    let runs = RunArray::try_new(&Int32Array::from(vec![2, 3]), &StringArray::from(vec!["x", "y"])).unwrap();
    run(Synthetic::of(vec![column("r", runs)]), options(Format::Csv), &path).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "r\nx\nx\ny\n");
    run(Synthetic::of(vec![dictionary("v")]), options(Format::Csv), &path).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "d\nv\nv\n");
}

#[test]
fn json_refuses_duplicate_column_names_and_unions() {
    let ids = || Arc::new(Int32Array::from(vec![1])) as ArrayRef;
    let twice = RecordBatch::try_from_iter([("id", ids()), ("id", ids())]).unwrap();
    assert!(refused(twice, Format::Json).contains("two columns are called \"id\""));
    assert!(refused(union(), Format::Json).contains("column \"u\""));
}

#[test]
fn parquet_refuses_unions() {
    let message = refused(union(), Format::Parquet);
    assert!(message.starts_with("cannot write the result as Parquet: "), "{message}");
}

#[test]
fn formats_follow_from_extensions_and_suit_their_output() {
    assert_eq!(Format::of_path("a/b.Parquet".as_ref()).unwrap(), Format::Parquet);
    assert_eq!(Format::of_path("x.ndjson".as_ref()).unwrap(), Format::Json);
    for unknown in ["x", "x.xlsx", ".csv"] {
        let failure = Format::of_path(unknown.as_ref()).unwrap_err();
        assert_eq!(failure.exit_code(), code::USAGE);
        assert!(failure.hint().unwrap().contains("txt, csv, json"));
    }
    let (terminal, file, pipe) = ((true, false), (false, true), (false, false));
    let cases = [
        (Format::Table, terminal, true),
        (Format::Csv, terminal, true),
        (Format::Arrow, terminal, false),
        (Format::Arrow, pipe, true),
        (Format::Arrow, file, true),
        (Format::Parquet, terminal, false),
        (Format::Parquet, pipe, false),
        (Format::Parquet, file, true),
    ];
    for (format, (terminal, file), fits) in cases {
        assert_eq!(format.check(terminal, file).is_ok(), fits, "{format:?} {terminal} {file}");
    }
}

#[test]
fn plain_strings_have_no_views() {
    let views = StringViewArray::from_iter([Some("a string longer than twelve bytes"), None, Some("")]);
    let item = Arc::new(Field::new("item", DataType::Utf8View, true));
    let lists = ListArray::new(item, OffsetBuffer::from_lengths([2, 0, 1]), Arc::new(views.clone()), None);
    let coded = DictionaryArray::new(Int32Array::from(vec![0, 1, 2]), Arc::new(views.clone()));
    let bytes = BinaryViewArray::from_iter([Some(b"x".as_slice()), None, Some(b"")]);
    let runs = RunArray::try_new(&Int32Array::from(vec![1, 2, 3]), &views).unwrap();
    let columns: [(&str, ArrayRef); 5] = [
        ("v", Arc::new(views)),
        ("l", Arc::new(lists)),
        ("d", Arc::new(coded)),
        ("b", Arc::new(bytes)),
        ("r", Arc::new(runs)),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let dir = Scratch::new("plain-strings");
    let read = |format, plain_strings, name: &str| {
        let path = dir.path(name);
        let options = FormatOptions { plain_strings, stream: true, ..options(format) };
        run(Synthetic::of(vec![batch.clone()]), options, &path).unwrap();
        let file = File::open(&path).unwrap();
        if format == Format::Parquet {
            let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
            return whole(&reader.map(Result::unwrap).collect::<Vec<_>>());
        }
        whole(&StreamReader::try_new(file, None).unwrap().map(Result::unwrap).collect::<Vec<_>>())
    };
    for (format, name) in [(Format::Arrow, "out.arrows"), (Format::Parquet, "out.parquet")] {
        let (plain, as_is) = (read(format, true, name), read(format, false, name));
        let types = |batch: &RecordBatch| format!("{:?}", batch.schema().fields());
        assert!(types(&as_is).contains("View") && !types(&plain).contains("View"), "{}", types(&plain));
        for (plain, as_is) in plain.columns().iter().zip(as_is.columns()) {
            let texts = |array: &ArrayRef| {
                let text = |row| arrow::util::display::array_value_to_string(array, row).unwrap();
                (0..3).map(text).collect::<Vec<_>>()
            };
            assert_eq!(texts(plain), texts(as_is));
        }
    }
}

#[test]
fn metadata_and_extension_types_survive_arrow_and_parquet() {
    let metadata = [("ARROW:extension:name".to_owned(), "arrow.uuid".to_owned())].into();
    let field = Field::new("u", DataType::FixedSizeBinary(16), true).with_metadata(metadata);
    let schema = Schema::new_with_metadata(vec![field], [("k".to_owned(), "v".to_owned())].into());
    let dir = Scratch::new("extension");
    let (arrow, parquet) = (dir.path("out.arrow"), dir.path("out.parquet"));
    for (format, path) in [(Format::Arrow, &arrow), (Format::Parquet, &parquet)] {
        run(Synthetic::new(schema.clone().into(), vec![]), options(format), path).unwrap();
    }
    assert_eq!(*FileReader::try_new(File::open(arrow).unwrap(), None).unwrap().schema(), schema);
    let read = ParquetRecordBatchReaderBuilder::try_new(File::open(parquet).unwrap()).unwrap();
    assert_eq!(read.schema().field(0), schema.field(0));
    assert_eq!(read.schema().metadata().get("k").map(String::as_str), Some("v"));
}
