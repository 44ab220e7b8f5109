//! Values that a format cannot hold are refused before anything is written, and never replaced by other values.

mod support;

use std::fs::{self, File};
use std::io::Read;
use std::sync::Arc;

use arrow::array::*;
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::*;
use thallus_cli::failure::{Failure, code};
use thallus_cli::format::{Format, FormatOptions};

use support::{Scratch, Synthetic, options, run};

const TEXTS: [Format; 3] = [Format::Csv, Format::Json, Format::Table];

fn column(name: &str, array: ArrayRef) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable([(name, array, true)]).unwrap()
}

/// The message of a refusal, which leaves nothing in a pipe either.
fn refused(batch: &RecordBatch, options: FormatOptions) -> String {
    let dir = Scratch::new("refusal");
    if options.format == Format::Parquet {
        let failure = run(Synthetic::of(vec![batch.clone()]), options, &dir.path("out")).unwrap_err();
        assert!(matches!(failure, Failure::Format { .. }) && dir.names().is_empty(), "{failure:?}");
        return failure.to_string();
    }
    let pipe = dir.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = {
        let pipe = pipe.clone();
        std::thread::spawn(move || {
            let mut read = Vec::new();
            File::open(pipe).unwrap().read_to_end(&mut read).unwrap();
            read
        })
    };
    let failure = run(Synthetic::of(vec![batch.clone()]), options, &pipe).unwrap_err();
    assert_eq!(failure.exit_code(), code::USAGE, "{failure:?}");
    assert_eq!(String::from_utf8(reader.join().unwrap()).unwrap(), "");
    failure.to_string()
}

fn text_of(batch: &RecordBatch, options: FormatOptions) -> String {
    let dir = Scratch::new("text");
    let path = dir.path("out");
    run(Synthetic::of(vec![batch.clone()]), options, &path).unwrap();
    fs::read_to_string(path).unwrap()
}

#[test]
fn times_without_a_text_are_refused() {
    let arrays: [ArrayRef; 9] = [
        Arc::new(TimestampSecondArray::from(vec![0, i64::MAX])),
        Arc::new(TimestampSecondArray::from(vec![0, i64::MIN])),
        Arc::new(TimestampMillisecondArray::from(vec![0, i64::MIN]).with_timezone("Europe/Berlin")),
        Arc::new(TimestampMicrosecondArray::from(vec![0, i64::MAX]).with_timezone("+01:00")),
        Arc::new(Date32Array::from(vec![0, i32::MAX])),
        Arc::new(Date64Array::from(vec![0, i64::MIN])),
        Arc::new(Time32SecondArray::from(vec![0, 86_400])),
        // Arrow's formatter shows it as 00:00:00, since it keeps 32 bits of the seconds.
        Arc::new(Time64MicrosecondArray::from(vec![0, (1 << 32) * 1_000_000])),
        Arc::new(Time64NanosecondArray::from(vec![0, -1])),
    ];
    for array in arrays {
        let name = array.data_type().to_string();
        for format in TEXTS {
            let message = refused(&column("t", Arc::clone(&array)), options(format));
            assert!(message.contains(&format!("column \"t\" ({name}): ")), "{message}");
            let item = Arc::new(Field::new("item", array.data_type().clone(), true));
            let offsets = OffsetBuffer::from_lengths([2]);
            let list = column("l", Arc::new(ListArray::new(item, offsets, Arc::clone(&array), None)));
            let message = refused(&list, options(format));
            assert!(message.contains("column \"l\""), "{message}");
        }
    }
}

#[test]
fn an_unknown_time_zone_is_refused() {
    let array = TimestampSecondArray::from(vec![0]).with_timezone("Nowhere/Town");
    for format in TEXTS {
        let message = refused(&column("t", Arc::new(array.clone())), options(format));
        assert!(message.contains("column \"t\" (Timestamp(s, \"Nowhere/Town\")): "), "{message}");
    }
}

#[test]
fn parquet_refuses_values_that_it_would_change() {
    let long = Decimal128Array::from(vec![12_345]).with_data_type(DataType::Decimal128(3, 2));
    let arrays: [ArrayRef; 6] = [
        Arc::new(TimestampSecondArray::from(vec![i64::MAX])),
        Arc::new(Date64Array::from(vec![1])),
        Arc::new(Time32SecondArray::from(vec![-1])),
        Arc::new(Time64MicrosecondArray::from(vec![86_400_000_000])),
        Arc::new(StructArray::new_empty_fields(1, None)),
        Arc::new(long.clone()),
    ];
    for array in arrays {
        let message = refused(&column("c", Arc::clone(&array)), options(Format::Parquet));
        assert!(message.contains("column \"c\""), "{message}");
    }
    // A decimal with too many digits has a text all the same.
    assert_eq!(text_of(&column("d", Arc::new(long)), options(Format::Csv)), "d\n123.45\n");
}

#[test]
fn json_refuses_names_that_occur_twice() {
    let one = || Arc::new(Int32Array::from(vec![1])) as ArrayRef;
    let pair: Fields = vec![Field::new("x", DataType::Int32, true), Field::new("x", DataType::Int32, true)].into();
    let twice = Arc::new(StructArray::new(pair, vec![one(), one()], None)) as ArrayRef;
    let item = Arc::new(Field::new("item", twice.data_type().clone(), true));
    let list = Arc::new(ListArray::new(item, OffsetBuffer::from_lengths([1]), Arc::clone(&twice), None)) as ArrayRef;
    let coded = Arc::new(DictionaryArray::new(Int8Array::from(vec![0]), Arc::clone(&twice))) as ArrayRef;
    for array in [twice, list, coded] {
        let message = refused(&column("s", array), options(Format::Json));
        assert!(message.contains("column \"s\"") && message.contains("two fields are called \"x\""), "{message}");
    }
    let map = |keys: ArrayRef| {
        let pair: Fields =
            vec![Field::new("k", keys.data_type().clone(), false), Field::new("v", DataType::Int32, true)].into();
        let values = Arc::new(Int32Array::from(vec![1, 2])) as ArrayRef;
        let entries = StructArray::new(pair, vec![keys, values], None);
        let field = Arc::new(Field::new("entries", entries.data_type().clone(), false));
        column("m", Arc::new(MapArray::new(field, OffsetBuffer::from_lengths([2]), entries, None, false)))
    };
    let message = refused(&map(Arc::new(StringArray::from(vec!["k", "k"]))), options(Format::Json));
    assert!(message.contains("column \"m\"") && message.contains("the key \"k\" twice"), "{message}");
    let message = refused(&map(Arc::new(Int64Array::from(vec![1, 2]))), options(Format::Json));
    assert!(message.contains("column \"m\"") && message.contains("keys of a map are not strings"), "{message}");
}

#[test]
fn rows_without_columns_are_counted_or_refused() {
    let count = RecordBatchOptions::new().with_row_count(Some(3));
    let batch = RecordBatch::try_new_with_options(Schema::empty().into(), vec![], &count).unwrap();
    assert!(refused(&batch, options(Format::Csv)).contains("3 rows have no column"));
    assert!(refused(&batch, options(Format::Parquet)).contains("3 rows have no column"));
    assert_eq!(text_of(&batch, options(Format::Json)), "{}\n{}\n{}\n");
    assert_eq!(text_of(&batch, options(Format::Table)), "3 rows\n");
    let dir = Scratch::new("no-columns");
    let path = dir.path("out.arrow");
    run(Synthetic::of(vec![batch.clone()]), options(Format::Arrow), &path).unwrap();
    let mut read = arrow::ipc::reader::FileReader::try_new(File::open(&path).unwrap(), None).unwrap();
    assert_eq!(read.next().unwrap().unwrap(), batch);
    // Without rows nothing is lost.
    for format in [Format::Csv, Format::Parquet] {
        run(Synthetic::of(vec![batch.slice(0, 0)]), options(format), &path).unwrap();
    }
}

fn with_null(text: &str) -> FormatOptions {
    FormatOptions { null: text.into(), ..options(Format::Csv) }
}

#[test]
fn csv_tells_null_from_the_empty_string() {
    let strings = || Arc::new(StringArray::from(vec![Some("x"), Some(""), None, Some("NULL")])) as ArrayRef;
    let numbers = || Arc::new(Int32Array::from(vec![Some(1), None, Some(3), None])) as ArrayRef;
    let both = RecordBatch::try_from_iter_with_nullable([("s", strings(), true), ("i", numbers(), true)]).unwrap();
    assert_eq!(text_of(&both, options(Format::Csv)), "s,i\nx,1\n\"\",\n,3\nNULL,\n");
    assert_eq!(text_of(&both, with_null("NULL")), "s,i\nx,1\n\"\",NULL\nNULL,3\n\"NULL\",NULL\n");
    // A blank line is no row for most readers.
    assert_eq!(text_of(&column("i", numbers()), options(Format::Csv)), "i\n1\n\"\"\n3\n\"\"\n");
    assert_eq!(text_of(&column("s", strings().slice(0, 2)), options(Format::Csv)), "s\nx\n\"\"\n");
    assert_eq!(text_of(&column("s", strings()), with_null("NULL")), "s\nx\n\"\"\nNULL\n\"NULL\"\n");
    let message = refused(&column("s", strings()), options(Format::Csv));
    assert!(message.contains("column \"s\" (Utf8): row 3: ") && message.contains("--null"), "{message}");
    // The same text for a number and for NULL.
    let message = refused(&column("i", numbers()), with_null("3"));
    assert!(message.contains("column \"i\" (Int32): row 3: the value 3 is also the text for NULL"), "{message}");
    assert_eq!(text_of(&column("", numbers()), with_null("-")), "\"\"\n1\n-\n3\n-\n");
}

#[test]
fn null_keys_and_null_values_of_dictionaries_are_null() {
    let values = Arc::new(Int32Array::from(vec![Some(7), None])) as ArrayRef;
    let coded = DictionaryArray::new(Int8Array::from(vec![Some(1), None, Some(0)]), values);
    let batch = column("d", Arc::new(coded));
    assert_eq!(text_of(&batch, options(Format::Json)), "{\"d\":null}\n{\"d\":null}\n{\"d\":7}\n");
    // Also if the column says that it has no null.
    let schema = Schema::new(vec![Field::new("d", batch.column(0).data_type().clone(), false)]);
    if let Ok(batch) = RecordBatch::try_new(schema.into(), vec![batch.column(0).slice(2, 1)]) {
        assert_eq!(text_of(&batch, options(Format::Json)), "{\"d\":7}\n");
    }
    let runs = RunArray::try_new(&Int32Array::from(vec![1, 3]), &Int32Array::from(vec![None, Some(5)])).unwrap();
    let tail = column("r", Arc::new(runs.slice(0, 2)));
    assert_eq!(text_of(&tail, options(Format::Json)), "{\"r\":null}\n{\"r\":5}\n");
}

#[test]
fn unions_keep_their_variants_in_arrow_files() {
    let fields: UnionFields = [
        (1, Arc::new(Field::new("i", DataType::Int32, true))),
        (4, Arc::new(Field::new_dictionary("d", DataType::Int8, DataType::Utf8, true))),
    ]
    .into_iter()
    .collect();
    let batch = |text: &str| {
        let coded = DictionaryArray::new(Int8Array::from(vec![0]), Arc::new(StringArray::from(vec![text])));
        let children: Vec<ArrayRef> = vec![Arc::new(Int32Array::from(vec![5])), Arc::new(coded)];
        let (ids, offsets) = (ScalarBuffer::from(vec![4_i8, 1]), ScalarBuffer::from(vec![0, 0]));
        column("u", Arc::new(UnionArray::try_new(fields.clone(), ids, Some(offsets), children).unwrap()))
    };
    let dir = Scratch::new("union");
    let path = dir.path("out.arrow");
    run(Synthetic::of(vec![batch("a"), batch("b")]), options(Format::Arrow), &path).unwrap();
    let read = arrow::ipc::reader::FileReader::try_new(File::open(&path).unwrap(), None).unwrap();
    let read: Vec<_> = read.map(Result::unwrap).collect();
    let table = arrow::util::display::array_value_to_string(read[1].column(0), 0).unwrap();
    assert_eq!(table, "{d=b}");
}

/// Values without any bytes, and a struct without fields.
fn nothing() -> [(ArrayRef, &'static str); 4] {
    let no_bytes = FixedSizeBinaryArray::try_new_with_len(0, Vec::<u8>::new().into(), None, 2);
    let item = Arc::new(Field::new("item", DataType::Int32, true));
    let no_items =
        FixedSizeListArray::try_new_with_length(item, 0, Arc::new(Int32Array::from(Vec::<i32>::new())), None, 2);
    let no_fields = StructArray::new_empty_fields(2, None);
    let item = Arc::new(Field::new("item", no_fields.data_type().clone(), true));
    let of_no_fields = ListArray::new(item, OffsetBuffer::from_lengths([2, 0]), Arc::new(no_fields.clone()), None);
    [
        (Arc::new(no_bytes.unwrap()), "\"\" \"\""),
        (Arc::new(no_items.unwrap()), "[] []"),
        (Arc::new(no_fields), "{} {}"),
        (Arc::new(of_no_fields), "[{},{}] []"),
    ]
}

#[test]
fn values_without_bytes() {
    for (array, json) in nothing() {
        let batch = column("c", Arc::clone(&array));
        let lines: String = json.split(' ').map(|value| format!("{{\"c\":{value}}}\n")).collect();
        assert_eq!(text_of(&batch, options(Format::Json)), lines);
        let dir = Scratch::new("nothing");
        let path = dir.path("out");
        run(Synthetic::of(vec![batch.clone()]), options(Format::Arrow), &path).unwrap();
        let mut read = arrow::ipc::reader::FileReader::try_new(File::open(&path).unwrap(), None).unwrap();
        assert_eq!(read.next().unwrap().unwrap(), batch);
        match run(Synthetic::of(vec![batch.clone()]), options(Format::Parquet), &path) {
            Ok(()) => {
                let file = File::open(&path).unwrap();
                let mut read = parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(file, 8).unwrap();
                assert_eq!(read.next().unwrap().unwrap(), batch);
            }
            Err(failure) => assert!(failure.to_string().contains("column \"c\""), "{failure}"),
        }
    }
}

#[test]
fn types_within_types_within_types() {
    let coded = |keys: Vec<Option<i8>>| {
        DictionaryArray::new(Int8Array::from(keys), Arc::new(StringArray::from(vec![Some("x"), None])))
    };
    let values = Arc::new(coded(vec![Some(0), Some(1), None, Some(0)])) as ArrayRef;
    let pair: Fields = vec![Field::new("s", values.data_type().clone(), true)].into();
    let rows = StructArray::new(pair, vec![values], Some(vec![true, true, true, false].into()));
    let item = Arc::new(Field::new("item", rows.data_type().clone(), true));
    let lists = ListArray::new(item, OffsetBuffer::from_lengths([1, 3]), Arc::new(rows), None);
    let keys = Arc::new(StringViewArray::from(vec!["a", "b"])) as ArrayRef;
    let entry: Fields =
        vec![Field::new("k", DataType::Utf8View, false), Field::new("v", lists.data_type().clone(), true)].into();
    let entries = StructArray::new(entry, vec![keys, Arc::new(lists)], None);
    let field = Arc::new(Field::new("entries", entries.data_type().clone(), false));
    let maps = MapArray::new(field, OffsetBuffer::from_lengths([1, 1]), entries, None, false);
    let batch = column("m", Arc::new(maps));
    let first = "{\"m\":{\"a\":[{\"s\":\"x\"}]}}\n";
    let last = "{\"m\":{\"b\":[{\"s\":null},{\"s\":null},null]}}\n";
    assert_eq!(text_of(&batch, options(Format::Json)), format!("{first}{last}"));
    assert_eq!(text_of(&batch.slice(1, 1), options(Format::Json)), last);
    let dir = Scratch::new("deep");
    let path = dir.path("out");
    for plain_strings in [false, true] {
        let options = FormatOptions { plain_strings, ..options(Format::Parquet) };
        run(Synthetic::of(vec![batch.clone(), batch.slice(1, 1)]), options, &path).unwrap();
        let file = File::open(&path).unwrap();
        let read = parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(file, 8).unwrap();
        let read = read.map(Result::unwrap).next().unwrap();
        assert_eq!(text_of(&read, support::options(Format::Json)), format!("{first}{last}{last}"));
    }
}
