//! Tests of [`super`]: good files of both formats, and forged ones.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;

use arrow_array::builder::{Int32Builder, MapBuilder, StringBuilder};
use arrow_array::types::{Int8Type, Int32Type};
use arrow_array::{
    Array, ArrayRef, BooleanArray, Decimal128Array, DictionaryArray, FixedSizeBinaryArray, FixedSizeListArray,
    Float64Array, Int32Array, Int64Array, LargeBinaryArray, ListArray, NullArray, RecordBatchOptions, RunArray,
    StringArray, StringViewArray, StructArray, TimestampMicrosecondArray, UnionArray,
};
use arrow_buffer::ScalarBuffer;
use arrow_ipc::convert::IpcSchemaEncoder;
use arrow_ipc::writer::{DictionaryHandling, FileWriter, IpcWriteOptions, StreamWriter};
use arrow_ipc::{CompressionType, Endianness, MessageArgs, MetadataVersion, SchemaArgs};
use arrow_schema::{DataType, Field, Schema, UnionFields};
use tempfile::TempDir;

use super::*;

const LIMITS: IpcLimits = IpcLimits { max_batch_bytes: 1 << 20, max_rows: 1000 };

type Writer = fn(&[RecordBatch], IpcWriteOptions) -> Vec<u8>;
const FORMATS: [Writer; 2] = [file, stream];

fn file(batches: &[RecordBatch], options: IpcWriteOptions) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = FileWriter::try_new_with_options(&mut bytes, &batches[0].schema(), options).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.finish().unwrap();
    drop(writer);
    bytes
}

fn stream(batches: &[RecordBatch], options: IpcWriteOptions) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new_with_options(&mut bytes, &batches[0].schema(), options).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.finish().unwrap();
    drop(writer);
    bytes
}

fn compressed(codec: CompressionType) -> IpcWriteOptions {
    IpcWriteOptions::default().try_with_compression(Some(codec)).unwrap()
}

fn read_bytes(directory: &TempDir, bytes: &[u8]) -> Result<Vec<RecordBatch>, ReadError> {
    let path = directory.path().join("t.arrow");
    fs::write(&path, bytes)?;
    let found = inspect(&path, &LIMITS)?;
    read(&path, &found.schema, None, None, &LIMITS)?.collect()
}

fn error_of(bytes: &[u8]) -> String {
    let error = read_bytes(&TempDir::new().unwrap(), bytes).unwrap_err().to_string();
    for word in ["bug", "panic", "unwrap"] {
        assert!(!error.contains(word), "{error}");
    }
    error
}

fn one_column(name: &str, column: ArrayRef) -> RecordBatch {
    RecordBatch::try_from_iter([(name, column)]).unwrap()
}

fn numbers(values: std::ops::Range<i64>) -> RecordBatch {
    one_column("a", Arc::new(Int64Array::from_iter_values(values)))
}

fn union(offsets: Option<Vec<i32>>, children: Vec<ArrayRef>) -> ArrayRef {
    let fields = [Field::new("i", DataType::Int32, true), Field::new("s", DataType::Utf8, true)];
    let fields = UnionFields::try_new([0, 5], fields).unwrap();
    let type_ids = ScalarBuffer::from(vec![0_i8, 5, 5]);
    Arc::new(UnionArray::try_new(fields, type_ids, offsets.map(ScalarBuffer::from), children).unwrap())
}

fn map() -> ArrayRef {
    let mut builder = MapBuilder::new(None, StringBuilder::new(), Int32Builder::new());
    builder.keys().append_value("k");
    builder.values().append_value(1);
    builder.append(true).unwrap();
    builder.append(true).unwrap();
    builder.append(false).unwrap();
    Arc::new(builder.finish())
}

/// Three rows of many types.
fn many_types() -> RecordBatch {
    let list = || vec![Some(vec![Some(1), None]), None, Some(vec![Some(3), Some(4)])];
    let long = "more than twelve bytes, so it lies in a buffer of its own";
    let strings = || Arc::new(StringArray::from(vec![Some("x"), None, Some("zz")])) as ArrayRef;
    let ints = || Arc::new(Int32Array::from(vec![Some(1), None, Some(3)])) as ArrayRef;
    let dictionary: DictionaryArray<Int8Type> = [Some("x"), None, Some("y")].into_iter().collect();
    let ends = Int32Array::from(vec![2, 3]);
    let runs = RunArray::<Int32Type>::try_new(&ends, &StringArray::from(vec![Some("r"), None])).unwrap();
    let bytes = FixedSizeBinaryArray::try_from_sparse_iter_with_size([Some(b"abc"), None, Some(b"def")].into_iter(), 3);
    let fields = |name: &str, column: ArrayRef| (Arc::new(Field::new(name, column.data_type().clone(), true)), column);
    let nested = StructArray::from(vec![fields("s", strings()), fields("d", Arc::new(dictionary.clone()))]);
    let decimals = Decimal128Array::from(vec![Some(1), None, Some(-12345)]).with_precision_and_scale(10, 2).unwrap();
    let times = TimestampMicrosecondArray::from(vec![Some(0), None, Some(-1)]).with_timezone("+02:00");
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("int", ints()),
        ("string", strings()),
        ("view", Arc::new(StringViewArray::from(vec![Some("short"), None, Some(long)]))),
        ("binary", Arc::new(LargeBinaryArray::from_opt_vec(vec![Some(b"a".as_slice()), None, Some(b"".as_slice())]))),
        ("bool", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        ("float", Arc::new(Float64Array::from(vec![0.5, f64::INFINITY, -0.0]))),
        ("null", Arc::new(NullArray::new(3))),
        ("dictionary", Arc::new(dictionary)),
        ("list", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(list()))),
        ("fixed_list", Arc::new(FixedSizeListArray::from_iter_primitive::<Int32Type, _, _>(list(), 2))),
        ("fixed", Arc::new(bytes.unwrap())),
        ("struct", Arc::new(nested)),
        ("map", map()),
        ("runs", Arc::new(runs)),
        ("sparse", union(None, vec![ints(), strings()])),
        ("dense", union(Some(vec![0, 0, 2]), vec![ints(), strings()])),
        ("decimal", Arc::new(decimals)),
        ("time", Arc::new(times)),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

/// Ways to write, and what can be written so.
fn all_options() -> Vec<(IpcWriteOptions, RecordBatch)> {
    let all = many_types();
    // Run-end encoding came with version 5.
    let no_runs: Vec<usize> = (0..all.num_columns()).filter(|at| all.schema().field(*at).name() != "runs").collect();
    let old = IpcWriteOptions::try_new(8, true, MetadataVersion::V4).unwrap();
    let compressions = [CompressionType::LZ4_FRAME, CompressionType::ZSTD].map(compressed);
    let new = [IpcWriteOptions::default()].into_iter().chain(compressions).map(|options| (options, all.clone()));
    new.chain([(old, all.project(&no_runs).unwrap())]).collect()
}

#[test]
fn many_types_in_both_formats() {
    let directory = TempDir::new().unwrap();
    for (options, batch) in all_options() {
        let batches = [batch.clone(), batch];
        for write in FORMATS {
            assert_eq!(read_bytes(&directory, &write(&batches, options.clone())).unwrap(), batches, "{options:?}");
        }
    }
}

#[test]
fn large_compressed_columns() {
    let directory = TempDir::new().unwrap();
    let text = |row: usize| Some(format!("value {} of {}", row % 7, "x".repeat(row % 300)));
    let text: StringArray = (0..1000).map(text).collect();
    let batch = RecordBatch::try_from_iter([
        ("s", Arc::new(text) as ArrayRef),
        ("i", Arc::new(Int64Array::from_iter_values((0..1000).map(|row| row * row))) as ArrayRef),
    ])
    .unwrap();
    for codec in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
        let bytes = file(std::slice::from_ref(&batch), compressed(codec));
        assert_eq!(read_bytes(&directory, &bytes).unwrap(), std::slice::from_ref(&batch));
    }
}

#[test]
fn rows_without_columns_and_files_without_batches() {
    let directory = TempDir::new().unwrap();
    let options = RecordBatchOptions::new().with_row_count(Some(5));
    let empty = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options).unwrap();
    let no_rows = numbers(0..0);
    for write in FORMATS {
        let batches = read_bytes(&directory, &write(std::slice::from_ref(&empty), IpcWriteOptions::default())).unwrap();
        assert_eq!(batches.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [5]);
        let batches = read_bytes(&directory, &write(std::slice::from_ref(&no_rows), IpcWriteOptions::default()));
        assert_eq!(batches.unwrap(), std::slice::from_ref(&no_rows));
    }
}

#[test]
fn metadata_of_schema_and_fields_are_kept() {
    let directory = TempDir::new().unwrap();
    let metadata = |key: &str| HashMap::from([(key.to_owned(), "value".to_owned())]);
    let field = Field::new("a", DataType::Int64, true).with_metadata(metadata("of field"));
    let schema = Arc::new(Schema::new_with_metadata(vec![field], metadata("of schema")));
    let batch = RecordBatch::try_new(schema.clone(), numbers(0..3).columns().to_vec()).unwrap();
    for write in FORMATS {
        let batches = read_bytes(&directory, &write(std::slice::from_ref(&batch), IpcWriteOptions::default())).unwrap();
        assert_eq!(batches[0].schema(), schema);
    }
}

#[test]
fn projections() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("t.arrow");
    for (options, batch) in all_options() {
        for write in FORMATS {
            fs::write(&path, write(std::slice::from_ref(&batch), options.clone())).unwrap();
            let schema = inspect(&path, &LIMITS).unwrap().schema;
            // Every column alone, so that every type is passed over.
            for column in 0..schema.fields().len() {
                let found = read(&path, &schema, Some(&[column]), None, &LIMITS).unwrap().next().unwrap().unwrap();
                assert_eq!(found, batch.project(&[column]).unwrap());
            }
            let found = read(&path, &schema, Some(&[7, 0, 7]), None, &LIMITS).unwrap().next().unwrap().unwrap();
            assert_eq!(found, batch.project(&[7, 0, 7]).unwrap());
            let none = read(&path, &schema, Some(&[]), None, &LIMITS).unwrap().next().unwrap().unwrap();
            assert_eq!((none.num_columns(), none.num_rows()), (0, 3));
            assert!(read(&path, &schema, Some(&[99]), None, &LIMITS).is_err());
        }
    }
}

#[test]
fn ranges_of_batches() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("t.arrow");
    let batches: Vec<RecordBatch> = (0..4).map(|at| numbers(at..at * 2)).collect();
    fs::write(&path, file(&batches, IpcWriteOptions::default())).unwrap();
    let found = inspect(&path, &LIMITS).unwrap();
    assert_eq!(found.batches, Some(4));
    for (range, expected) in [(0..4, &batches[..]), (1..3, &batches[1..3]), (2..2, &batches[2..2])] {
        let batches = read(&path, &found.schema, None, Some(range), &LIMITS).unwrap();
        assert_eq!(batches.collect::<Result<Vec<_>, _>>().unwrap(), expected);
    }
    assert!(read(&path, &found.schema, None, Some(3..5), &LIMITS).is_err());
    fs::write(&path, stream(&batches, IpcWriteOptions::default())).unwrap();
    assert_eq!(inspect(&path, &LIMITS).unwrap().batches, None);
    assert!(read(&path, &found.schema, None, Some(0..1), &LIMITS).is_err());
}

#[test]
fn dictionaries_that_grow_or_are_replaced() {
    let directory = TempDir::new().unwrap();
    let batch = |values: [&str; 2]| {
        let column: DictionaryArray<Int8Type> = values.into_iter().map(Some).collect();
        one_column("d", Arc::new(column))
    };
    let replaced = [batch(["a", "b"]), batch(["c", "d"])];
    let bytes = stream(&replaced, IpcWriteOptions::default());
    assert_eq!(read_bytes(&directory, &bytes).unwrap(), replaced);

    let column = |keys: Vec<i8>, values: Vec<&str>| {
        let keys = arrow_array::Int8Array::from(keys);
        one_column("d", Arc::new(DictionaryArray::try_new(keys, Arc::new(StringArray::from(values))).unwrap()))
    };
    let grown = [column(vec![0, 1], vec!["a", "b"]), column(vec![2, 0], vec!["a", "b", "c"])];
    for write in FORMATS {
        let options = IpcWriteOptions::default().with_dictionary_handling(DictionaryHandling::Delta);
        assert_eq!(read_bytes(&directory, &write(&grown, options)).unwrap(), grown);
    }
}

#[test]
fn a_file_that_was_replaced_is_an_error() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("t.arrow");
    for write in FORMATS {
        fs::write(&path, write(&[numbers(0..3)], IpcWriteOptions::default())).unwrap();
        let schema = inspect(&path, &LIMITS).unwrap().schema;
        fs::write(&path, write(&[many_types()], IpcWriteOptions::default())).unwrap();
        let error = read(&path, &schema, None, None, &LIMITS).err().unwrap().to_string();
        assert!(error.contains("changed"), "{error}");
    }
}

#[test]
fn other_files_are_refused_in_words() {
    assert_eq!(error_of(b""), "the file is empty");
    assert_eq!(error_of(b"ARROW1"), "6 bytes are not an Arrow file");
    assert!(error_of(b"FEA1\0\0\0\0and more").contains("Feather version 1"));
    assert!(error_of(b"PARE\x15\x04\x15\x60").contains("an encrypted Parquet file"));
    assert!(error_of(b"\x1f\x8b\x08\0\0\0\0\0").contains("a compressed file"));
    assert!(error_of(b"a,b\n1,2\n3,4\n").contains("neither in Arrow's file format"));
    assert!(error_of(&[0; 64]).contains("neither in Arrow's file format"));
    assert!(error_of(b"\xff\xff\xff\xff\xff\xff\xff\x7f").contains("truncated"));
    assert!(error_of(b"\xff\xff\xff\xff\0\0\0\0").contains("without a schema"));
    assert!(error_of(b"ARROW1\0\0").contains("no footer"));
}

#[test]
fn truncated_files() {
    let directory = TempDir::new().unwrap();
    let batches = [numbers(0..100), numbers(0..50)];
    let bytes = file(&batches, IpcWriteOptions::default());
    for length in (8..bytes.len()).step_by(4) {
        assert!(error_of(&bytes[..length]).contains("footer"), "{length}");
    }
    let bytes = stream(&batches, IpcWriteOptions::default());
    // Without the marker of the end.
    assert_eq!(read_bytes(&directory, &bytes[..bytes.len() - 8]).unwrap(), batches);
    let mut whole = 0;
    for length in 8..bytes.len() - 8 {
        match read_bytes(&directory, &bytes[..length]) {
            // After the schema, and after the first batch.
            Ok(found) => {
                assert_eq!(found, batches[..whole]);
                whole += 1;
            }
            Err(error) => assert!(error.to_string().contains("truncated"), "{length}: {error}"),
        }
    }
    assert_eq!(whole, 2);
}

#[test]
fn what_follows_the_end_of_a_stream_is_not_lost() {
    let directory = TempDir::new().unwrap();
    let one = stream(&[numbers(0..3)], IpcWriteOptions::default());
    assert!(error_of(&[&one[..], &one[..]].concat()).contains("follow the end of the stream"));
    assert!(error_of(&[&one[..one.len() - 8], &one[..]].concat()).contains("second schema"));
    assert_eq!(read_bytes(&directory, &[&one[..], &[0; 8]].concat()).unwrap(), [numbers(0..3)]);
}

#[test]
fn limits() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("t.arrow");
    for write in FORMATS {
        for (options, _) in all_options() {
            fs::write(&path, write(&[numbers(0..500)], options)).unwrap();
            let schema = inspect(&path, &LIMITS).unwrap().schema;
            let first = |max_batch_bytes, max_rows| {
                let limits = IpcLimits { max_batch_bytes, max_rows };
                read(&path, &schema, None, None, &limits).unwrap().next().unwrap()
            };
            assert!(first(8192, 500).is_ok());
            assert!(first(3999, 500).unwrap_err().to_string().contains("limit of 3999 bytes"));
            assert!(first(8192, 499).unwrap_err().to_string().contains("limit of 499 rows"));
        }
    }
}

#[test]
fn widths_beyond_the_limits() {
    let array = |width| FixedSizeBinaryArray::try_new(width, Buffer::from_vec(Vec::<u8>::new()), None).unwrap();
    let bytes = file(&[one_column("wide", Arc::new(array(i32::MAX)))], IpcWriteOptions::default());
    let error = error_of(&bytes);
    assert!(error.contains("\"wide\"") && error.contains("2147483647 bytes"), "{error}");
    let mut negative = bytes;
    for at in 0..negative.len() - 3 {
        if negative[at..at + 4] == i32::MAX.to_le_bytes() {
            negative[at..at + 4].copy_from_slice(&(-1_i32).to_le_bytes());
        }
    }
    assert!(error_of(&negative).contains("its width is -1"));
}

/// A list of Null has as many values as its numbers say, without a byte for them.
#[test]
fn values_without_bytes_are_bounded() {
    let field = Arc::new(Field::new_list_field(DataType::Null, true));
    let list = |length: usize| {
        let offsets = arrow_buffer::OffsetBuffer::<i32>::from_lengths([length]);
        let list = ListArray::new(field.clone(), offsets, Arc::new(NullArray::new(length)), None);
        stream(&[one_column("l", Arc::new(list))], IpcWriteOptions::default())
    };
    assert!(read_bytes(&TempDir::new().unwrap(), &list(5000)).is_ok());
    assert!(error_of(&list(2_000_000_000)).contains("more than the limit"));
}

/// `arrow_ipc` writes a buffer there that it does not read: all columns behind it would have the wrong ones.
#[test]
fn run_end_encoding_of_version_4_is_an_error() {
    let old = IpcWriteOptions::try_new(8, true, MetadataVersion::V4).unwrap();
    assert!(error_of(&file(&[many_types()], old)).contains("not consistent"));
}

/// Every word of a file is replaced by numbers that lengths are forged to. A file whose rows cannot be read as they
/// were is an error; values may differ, because nothing protects them.
#[test]
fn forged_words_are_errors_or_keep_the_rows() {
    let directory = TempDir::new().unwrap();
    for (options, batch) in all_options() {
        let batches = [batch.clone(), batch];
        for write in FORMATS {
            let good = write(&batches, options.clone());
            for at in (0..good.len() - 7).step_by(8) {
                for value in [0_i64, -1, 1 << 62, 1 << 46, 3 << 30] {
                    let mut forged = good.clone();
                    forged[at..at + 8].copy_from_slice(&value.to_le_bytes());
                    check_forged(&directory, &forged, &format!("{value} at {at} of {}", good.len()));
                }
            }
        }
    }
}

fn check_forged(directory: &TempDir, forged: &[u8], what: &str) {
    match read_bytes(directory, forged) {
        Ok(found) => {
            assert_eq!(found.iter().map(RecordBatch::num_rows).sum::<usize>(), 6, "{what}");
            found.iter().for_each(|batch| assert!(memory(batch.columns()) <= LIMITS.max_batch_bytes, "{what}"));
        }
        Err(ReadError::Invalid { reason, .. }) => {
            for word in ["bug", "panic", "unwrap"] {
                assert!(!reason.contains(word), "{what}: {reason}");
            }
        }
        Err(ReadError::Io(error)) => panic!("{what}: {error}"),
    }
}

#[test]
fn big_endian_data_are_refused() {
    // A builder, whose crate is not a dependency of this one.
    let mut builder = IpcSchemaEncoder::new().schema_to_fb(&Schema::empty());
    builder.reset();
    let schema = SchemaArgs { endianness: Endianness::Big, ..SchemaArgs::default() };
    let schema = arrow_ipc::Schema::create(&mut builder, &schema);
    let message = MessageArgs {
        version: MetadataVersion::V5,
        header_type: MessageHeader::Schema,
        header: Some(schema.as_union_value()),
        ..MessageArgs::default()
    };
    let message = Message::create(&mut builder, &message);
    builder.finish(message, None);
    let metadata = builder.finished_data();
    let length = i32::try_from(metadata.len()).unwrap().to_le_bytes();
    let error = error_of(&[&[0xff; 4][..], &length, metadata].concat());
    assert!(error.contains("big-endian"), "{error}");
}
