//! The columns of the tables.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, DictionaryArray, Float64Array, Int32Array, Int64Array, ListArray, RecordBatch, StringArray,
    StringViewArray, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Int32Type};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tpchgen::generators::LineItemGenerator;
use tpchgen_arrow::LineItemArrow;

/// Names of all tables.
pub const NAMES: [&str; 12] = [
    "num8",
    "int1",
    "int4",
    "int16",
    "int64",
    "int256",
    "strings",
    "views",
    "nested",
    "dictionary",
    "taxi",
    "lineitem",
];

/// Distinct bytes of the table for the size ladder: far more than the private caches hold.
const LADDER_BYTES: usize = 256 << 20;
/// Distinct bytes of the other tables.
const TABLE_BYTES: usize = 64 << 20;
/// Approximate bytes of a batch.
const BATCH_BYTES: usize = 1 << 20;
/// Scale factor of the TPC-H table: 600 thousand rows.
const TPCH_SCALE: f64 = 0.1;

/// The batches of a table; only those of its first `limit` bytes if the table is larger.
pub(super) fn table(name: &str, limit: usize) -> Result<Vec<RecordBatch>, String> {
    let (ladder, bytes) = (LADDER_BYTES.min(limit), TABLE_BYTES.min(limit));
    let width = |columns: usize| BATCH_BYTES / (8 * columns);
    match name {
        // Eight columns of eight bytes: 64 bytes a row, 1 MiB a batch.
        "num8" => batches(ladder, width(8), |rng, rows| numbers(rng, rows, 8)),
        "strings" => batches(bytes, 10_000, |rng, rows| strings(rng, rows, false)),
        "views" => batches(bytes, 10_000, |rng, rows| strings(rng, rows, true)),
        "nested" => batches(bytes, 10_000, nested),
        "dictionary" => {
            let words = dictionary_words();
            batches(bytes, 32_768, |rng, rows| dictionaries(rng, rows, &words))
        }
        "taxi" => batches(bytes, 8192, taxi),
        "lineitem" => {
            let rows = LineItemArrow::new(LineItemGenerator::new(TPCH_SCALE, 1, 1)).with_batch_size(8192);
            let most = limit.div_ceil(BATCH_BYTES);
            rows.take(most).collect::<Result<_, _>>().map_err(|e| e.to_string())
        }
        _ => match name.strip_prefix("int").and_then(|n| n.parse::<usize>().ok()).filter(|n| (1..=1024).contains(n)) {
            Some(columns) => batches(bytes, width(columns), |rng, rows| {
                (0..columns).map(|i| (format!("i{i}"), integers(rng, rows))).collect()
            }),
            None => Err(format!("there is no table {name:?} (known: {})", NAMES.join(", "))),
        },
    }
}

type Columns = Vec<(String, ArrayRef)>;

/// Generates batches of `rows` rows until they have `bytes` bytes.
fn batches(
    bytes: usize,
    rows: usize,
    mut columns: impl FnMut(&mut SmallRng, usize) -> Columns,
) -> Result<Vec<RecordBatch>, String> {
    let mut rng = SmallRng::seed_from_u64(42);
    let (mut made, mut sum) = (Vec::new(), 0);
    while sum < bytes {
        let columns = columns(&mut rng, rows);
        let batch =
            RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)));
        let batch = batch.map_err(|e| e.to_string())?;
        sum += batch.get_array_memory_size();
        made.push(batch);
    }
    Ok(made)
}

fn integers(rng: &mut SmallRng, rows: usize) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values((0..rows).map(|_| rng.random::<i64>())))
}

fn floats(rng: &mut SmallRng, rows: usize, most: f64) -> ArrayRef {
    Arc::new(Float64Array::from_iter_values((0..rows).map(|_| rng.random::<f64>() * most)))
}

fn numbers(rng: &mut SmallRng, rows: usize, columns: usize) -> Columns {
    let column = |i: usize| {
        let array = if i.is_multiple_of(2) { integers(rng, rows) } else { floats(rng, rows, 1e6) };
        (format!("n{i}"), array)
    };
    (0..columns).map(column).collect()
}

/// Words of 5 to 40 letters. Some fit into a view, most do not.
fn words(rng: &mut SmallRng, count: usize) -> Vec<String> {
    let word = |rng: &mut SmallRng| {
        let len = rng.random_range(5..=40);
        (0..len).map(|_| char::from(rng.random_range(b'a'..=b'z'))).collect()
    };
    (0..count).map(|_| word(rng)).collect()
}

fn strings(rng: &mut SmallRng, rows: usize, views: bool) -> Columns {
    let column = |i: usize| {
        let words = words(rng, rows);
        let array: ArrayRef = if views {
            Arc::new(StringViewArray::from_iter_values(words))
        } else {
            Arc::new(StringArray::from_iter_values(words))
        };
        (format!("s{i}"), array)
    };
    (0..4).map(column).collect()
}

/// Lists of zero to eight structs of a number and a word.
fn nested(rng: &mut SmallRng, rows: usize) -> Columns {
    let lens: Vec<usize> = (0..rows).map(|_| rng.random_range(0..=8)).collect();
    let elements = lens.iter().sum();
    let ids = integers(rng, elements);
    let words: ArrayRef = Arc::new(StringArray::from_iter_values(words(rng, elements)));
    let fields = vec![Field::new("id", DataType::Int64, true), Field::new("word", DataType::Utf8, true)];
    let items = StructArray::new(fields.into(), vec![ids, words], None);
    let item = Arc::new(Field::new("item", items.data_type().clone(), true));
    let lists = ListArray::new(item, OffsetBuffer::from_lengths(lens), Arc::new(items), None);
    vec![("key".into(), integers(rng, rows)), ("events".into(), Arc::new(lists))]
}

fn dictionary_words() -> ArrayRef {
    Arc::new(StringArray::from_iter_values(words(&mut SmallRng::seed_from_u64(7), 1000)))
}

/// Keys into one dictionary, which all batches and columns share.
fn dictionaries(rng: &mut SmallRng, rows: usize, words: &ArrayRef) -> Columns {
    let column = |i: usize| {
        let keys = Int32Array::from_iter_values((0..rows).map(|_| rng.random_range(0..words.len() as i32)));
        let array: ArrayRef = Arc::new(DictionaryArray::<Int32Type>::new(keys, Arc::clone(words)));
        (format!("d{i}"), array)
    };
    (0..8).map(column).collect()
}

/// The columns of New York's yellow cab trips, with similar values. In a tenth of the rows the values from the cab's
/// meter are missing.
fn taxi(rng: &mut SmallRng, rows: usize) -> Columns {
    let unmetered = NullBuffer::from_iter((0..rows).map(|_| !rng.random_bool(0.1)));
    let small =
        |rng: &mut SmallRng, most: i64| Int64Array::from_iter_values((0..rows).map(|_| rng.random_range(0..most)));
    let times = |rng: &mut SmallRng| -> ArrayRef {
        let start = 1_700_000_000_000_000_i64;
        Arc::new(TimestampMicrosecondArray::from_iter_values(
            (0..rows).map(|_| start + rng.random_range(0..2_600_000_000_000_i64)),
        ))
    };
    let metered = |rng: &mut SmallRng, most: i64| -> ArrayRef {
        let values = small(rng, most);
        Arc::new(Int64Array::new(values.values().clone(), Some(unmetered.clone())))
    };
    let mut columns: Columns = vec![
        ("VendorID".into(), Arc::new(small(rng, 3)) as ArrayRef),
        ("tpep_pickup_datetime".into(), times(rng)),
        ("tpep_dropoff_datetime".into(), times(rng)),
        ("passenger_count".into(), metered(rng, 6)),
        ("trip_distance".into(), floats(rng, rows, 30.0)),
        ("RatecodeID".into(), metered(rng, 6)),
    ];
    let flags = (0..rows).map(|_| if rng.random_bool(0.01) { "Y" } else { "N" });
    columns.push(("store_and_fwd_flag".into(), Arc::new(StringArray::from_iter_values(flags))));
    for name in ["PULocationID", "DOLocationID", "payment_type"] {
        columns.push((name.into(), Arc::new(small(rng, 265))));
    }
    for name in [
        "fare_amount",
        "extra",
        "mta_tax",
        "tip_amount",
        "tolls_amount",
        "improvement_surcharge",
        "total_amount",
        "congestion_surcharge",
        "airport_fee",
    ] {
        columns.push((name.into(), floats(rng, rows, 100.0)));
    }
    columns
}
