//! Columns of every type without children, with their extreme values, and the texts of these values.

use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::*;

/// The rows of each column. The third is null.
pub(crate) const ROWS: usize = 4;

/// A column, and the texts of its values in CSV and tables.
pub(crate) struct Leaf {
    pub(crate) array: ArrayRef,
    pub(crate) texts: [Option<String>; ROWS],
    /// The values in JSON.
    pub(crate) json: [String; ROWS],
}

/// Values that are strings in JSON.
fn text(array: impl Array + 'static, values: [&str; 3]) -> Leaf {
    let json = values.map(|value| serde_json::Value::from(value).to_string());
    leaf(array, values, [&json[0], &json[1], &json[2]])
}

/// Values with the same text in JSON.
fn bare(array: impl Array + 'static, values: [&str; 3]) -> Leaf {
    leaf(array, values, values)
}

fn leaf(array: impl Array + 'static, [a, b, c]: [&str; 3], [x, y, z]: [&str; 3]) -> Leaf {
    assert!(array.len() == ROWS && array.is_null(2) && array.null_count() == 1, "{}", array.data_type());
    let texts = [Some(a), Some(b), None, Some(c)].map(|text| text.map(str::to_owned));
    Leaf { array: Arc::new(array), texts, json: [x, y, "null", z].map(str::to_owned) }
}

fn numbers<T: ArrowPrimitiveType>([a, b, c]: [T::Native; 3]) -> PrimitiveArray<T> {
    PrimitiveArray::from_iter([Some(a), Some(b), None, Some(c)])
}

fn zoned<T: ArrowTimestampType>(values: [i64; 3], zone: &str) -> PrimitiveArray<T> {
    numbers::<T>(values).with_timezone(zone)
}

fn decimals<T: DecimalType>(values: [T::Native; 3], precision: u8, scale: i8) -> PrimitiveArray<T> {
    numbers::<T>(values).with_precision_and_scale(precision, scale).unwrap()
}

/// A column of every type and of its variants.
pub(crate) fn leaves() -> Vec<Leaf> {
    let null = Leaf {
        array: new_null_array(&DataType::Null, ROWS),
        texts: [None, None, None, None],
        json: ["null"; 4].map(str::to_owned),
    };
    let mut leaves = vec![null];
    leaves.extend(integers_and_floats());
    leaves.extend(dates_and_times());
    leaves.extend(timestamps());
    leaves.extend(timestamps_in_zones());
    leaves.extend(durations_and_intervals());
    leaves.extend(decimals_of_each_width());
    leaves.extend(strings_and_bytes());
    leaves
}

fn integers_and_floats() -> Vec<Leaf> {
    let half = |value| half::f16::from_f32(value);
    vec![
        bare(BooleanArray::from(vec![Some(true), Some(false), None, Some(true)]), ["true", "false", "true"]),
        bare(numbers::<Int8Type>([i8::MIN, i8::MAX, 0]), ["-128", "127", "0"]),
        bare(numbers::<Int16Type>([i16::MIN, i16::MAX, 0]), ["-32768", "32767", "0"]),
        bare(numbers::<Int32Type>([i32::MIN, i32::MAX, 0]), ["-2147483648", "2147483647", "0"]),
        bare(numbers::<Int64Type>([i64::MIN, i64::MAX, 0]), ["-9223372036854775808", "9223372036854775807", "0"]),
        bare(numbers::<UInt8Type>([0, u8::MAX, 1]), ["0", "255", "1"]),
        bare(numbers::<UInt16Type>([0, u16::MAX, 1]), ["0", "65535", "1"]),
        bare(numbers::<UInt32Type>([0, u32::MAX, 1]), ["0", "4294967295", "1"]),
        bare(numbers::<UInt64Type>([0, u64::MAX, 1]), ["0", "18446744073709551615", "1"]),
        leaf(
            numbers::<Float16Type>([half(1.5), half(f32::NAN), half(-0.0)]),
            ["1.5", "NaN", "-0"],
            ["1.5", "null", "-0.0"],
        ),
        leaf(numbers::<Float32Type>([0.1, f32::INFINITY, -0.0]), ["0.1", "inf", "-0.0"], ["0.1", "null", "-0.0"]),
        leaf(
            numbers::<Float64Type>([f64::MAX, f64::NAN, 5e-324]),
            ["1.7976931348623157e308", "NaN", "5e-324"],
            ["1.7976931348623157e308", "null", "5.0e-324"],
        ),
        leaf(numbers::<Float64Type>([-0.0, f64::NEG_INFINITY, 0.1]), ["-0.0", "-inf", "0.1"], ["-0.0", "null", "0.1"]),
    ]
}

fn dates_and_times() -> Vec<Leaf> {
    let (first, last) = (-719_162, 2_932_896);
    vec![
        text(numbers::<Date32Type>([first, last, 0]), ["0001-01-01", "9999-12-31", "1970-01-01"]),
        text(numbers::<Date32Type>([first - 1, last + 1, -1]), ["0000-12-31", "+10000-01-01", "1969-12-31"]),
        text(
            numbers::<Date64Type>([first, last, 0].map(|day| i64::from(day) * 86_400_000)),
            ["0001-01-01T00:00:00", "9999-12-31T00:00:00", "1970-01-01T00:00:00"],
        ),
        text(numbers::<Time32SecondType>([0, 86_399, 1]), ["00:00:00", "23:59:59", "00:00:01"]),
        text(numbers::<Time32MillisecondType>([0, 86_399_999, 1]), ["00:00:00", "23:59:59.999", "00:00:00.001"]),
        text(
            numbers::<Time64MicrosecondType>([0, 86_399_999_999, 1]),
            ["00:00:00", "23:59:59.999999", "00:00:00.000001"],
        ),
        text(
            numbers::<Time64NanosecondType>([0, 86_399_999_999_999, 1]),
            ["00:00:00", "23:59:59.999999999", "00:00:00.000000001"],
        ),
    ]
}

/// The first second of the year 1, and the last of the year 9999.
const FIRST: i64 = -62_135_596_800;
const LAST: i64 = 253_402_300_799;

fn timestamps() -> Vec<Leaf> {
    vec![
        text(
            numbers::<TimestampSecondType>([FIRST, LAST, 0]),
            ["0001-01-01T00:00:00", "9999-12-31T23:59:59", "1970-01-01T00:00:00"],
        ),
        text(
            numbers::<TimestampMillisecondType>([FIRST * 1000, LAST * 1000 + 999, -1]),
            ["0001-01-01T00:00:00", "9999-12-31T23:59:59.999", "1969-12-31T23:59:59.999"],
        ),
        text(
            numbers::<TimestampMicrosecondType>([FIRST * 1_000_000, LAST * 1_000_000 + 999_999, -1]),
            ["0001-01-01T00:00:00", "9999-12-31T23:59:59.999999", "1969-12-31T23:59:59.999999"],
        ),
        text(
            numbers::<TimestampNanosecondType>([i64::MIN, i64::MAX, -1]),
            ["1677-09-21T00:12:43.145224192", "2262-04-11T23:47:16.854775807", "1969-12-31T23:59:59.999999999"],
        ),
    ]
}

fn timestamps_in_zones() -> Vec<Leaf> {
    // Summer and winter in Berlin, and its local mean time of 1850, which is 53 minutes and 28 seconds from UTC.
    let berlin = ["2024-07-03T11:46:40+02:00", "1970-01-01T01:00:00+01:00", "1850-01-01T00:53:00+00:53"];
    let instants = [1_720_000_000, 0, -3_786_825_600];
    vec![
        text(zoned::<TimestampSecondType>(instants, "Europe/Berlin"), berlin),
        text(zoned::<TimestampMillisecondType>(instants.map(|at| at * 1_000), "Europe/Berlin"), berlin),
        text(zoned::<TimestampMicrosecondType>(instants.map(|at| at * 1_000_000), "Europe/Berlin"), berlin),
        text(zoned::<TimestampNanosecondType>(instants.map(|at| at * 1_000_000_000), "Europe/Berlin"), berlin),
        text(
            zoned::<TimestampSecondType>([FIRST, LAST, 0], "UTC"),
            ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "1970-01-01T00:00:00Z"],
        ),
        text(
            zoned::<TimestampSecondType>([FIRST, LAST, 0], "+05:30"),
            ["0001-01-01T05:30:00+05:30", "+10000-01-01T05:29:59+05:30", "1970-01-01T05:30:00+05:30"],
        ),
        text(
            zoned::<TimestampNanosecondType>([i64::MIN, i64::MAX, -1], "-01:00"),
            [
                "1677-09-20T23:12:43.145224192-01:00",
                "2262-04-11T22:47:16.854775807-01:00",
                "1969-12-31T22:59:59.999999999-01:00",
            ],
        ),
    ]
}

fn durations_and_intervals() -> Vec<Leaf> {
    let [min, max] = [i64::MIN, i64::MAX];
    vec![
        text(
            numbers::<DurationSecondType>([min, max, 0]),
            ["-PT9223372036854775808S", "PT9223372036854775807S", "P0D"],
        ),
        text(
            numbers::<DurationMillisecondType>([min, max, -1]),
            ["-PT9223372036854775.808S", "PT9223372036854775.807S", "-PT0.001S"],
        ),
        text(
            numbers::<DurationMicrosecondType>([min, max, -1_500_000]),
            ["-PT9223372036854.775808S", "PT9223372036854.775807S", "-PT1.5S"],
        ),
        text(
            numbers::<DurationNanosecondType>([min, max, -1]),
            ["-PT9223372036.854775808S", "PT9223372036.854775807S", "-PT0.000000001S"],
        ),
        text(numbers::<IntervalYearMonthType>([14, -1, 0]), ["1 years 2 mons", "-1 years 11 mons", "0 years 0 mons"]),
        text(
            numbers::<IntervalDayTimeType>([
                IntervalDayTime::new(1, 3_661_001),
                IntervalDayTime::new(-2, -500),
                IntervalDayTime::ZERO,
            ]),
            ["1 days 1 hours 1 mins 1.001 secs", "-2 days -0.500 secs", "0 secs"],
        ),
        text(
            numbers::<IntervalMonthDayNanoType>([
                IntervalMonthDayNano::new(1, 2, 3),
                IntervalMonthDayNano::new(i32::MIN, i32::MAX, i64::MIN),
                IntervalMonthDayNano::ZERO,
            ]),
            [
                "1 mons 2 days 0.000000003 secs",
                "-2147483648 mons 2147483647 days -2562047 hours -47 mins -16.854775808 secs",
                "0 secs",
            ],
        ),
    ]
}

fn decimals_of_each_width() -> Vec<Leaf> {
    let nines = "9".repeat(76);
    let [whole, part] = [&nines[..38], &nines[38..]];
    let large = format!("{whole}.{part}");
    let most = arrow::datatypes::i256::from_string(&nines).unwrap();
    let small = |value| arrow::datatypes::i256::from_i128(value);
    vec![
        bare(decimals::<Decimal32Type>([999_999_999, -5, 0], 9, 2), ["9999999.99", "-0.05", "0.00"]),
        bare(decimals::<Decimal32Type>([-5, 12, 0], 5, -3), ["-5000", "12000", "0"]),
        bare(
            decimals::<Decimal64Type>([1, -1, 0], 18, 18),
            [&format!("0.{:018}", 1), &format!("-0.{:018}", 1), &format!("0.{:018}", 0)],
        ),
        bare(decimals::<Decimal64Type>([999, -10, 0], 3, 0), ["999", "-10", "0"]),
        bare(decimals::<Decimal128Type>([123, -1, 0], 5, 5), ["0.00123", "-0.00001", "0.00000"]),
        bare(
            decimals::<Decimal128Type>([10_i128.pow(38) - 1, -(10_i128.pow(38) - 1), 0], 38, 10),
            ["9999999999999999999999999999.9999999999", "-9999999999999999999999999999.9999999999", "0.0000000000"],
        ),
        bare(decimals::<Decimal128Type>([7, -1, 0], 38, -2), ["700", "-100", "0"]),
        bare(
            decimals::<Decimal256Type>([most, small(-1), small(0)], 76, 38),
            [&large, &format!("-0.{:038}", 1), &format!("0.{:038}", 0)],
        ),
        bare(
            decimals::<Decimal256Type>([small(5), small(-5), small(0)], 40, -40),
            [&format!("5{}", "0".repeat(40)), &format!("-5{}", "0".repeat(40)), "0"],
        ),
    ]
}

fn strings_and_bytes() -> Vec<Leaf> {
    let strings = [Some(""), Some("a\"b,\r\n\u{0}é"), None, Some("NULL")];
    let of_strings = ["", "a\"b,\r\n\u{0}é", "NULL"];
    let bytes: [Option<&[u8]>; 4] = [Some(b""), Some(b"\x00\xff"), None, Some(b"abc")];
    let of_bytes = ["", "00ff", "616263"];
    let pairs: [Option<&[u8]>; 4] = [Some(b"ab"), Some(b"\x00\xff"), None, Some(b"  ")];
    let fixed = FixedSizeBinaryArray::try_from_sparse_iter_with_size(pairs.into_iter(), 2).unwrap();
    vec![
        text(StringArray::from_iter(strings), of_strings),
        text(LargeStringArray::from_iter(strings), of_strings),
        text(StringViewArray::from_iter(strings), of_strings),
        text(BinaryArray::from_iter(bytes), of_bytes),
        text(LargeBinaryArray::from_iter(bytes), of_bytes),
        text(BinaryViewArray::from_iter(bytes), of_bytes),
        text(fixed, ["6162", "00ff", "2020"]),
    ]
}
