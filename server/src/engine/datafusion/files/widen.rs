//! The type that holds the values of two types, where nothing is lost.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow_schema::extension::{EXTENSION_TYPE_METADATA_KEY, EXTENSION_TYPE_NAME_KEY};
use arrow_schema::{DataType, Field, FieldRef, Fields, TimeUnit};

use super::list_shape::list_of;
use super::zones::is_utc;

/// Which types are widened beyond those where no value can be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Widening {
    /// Integers of 64 bits and floats are Float64. The adapter refuses an integer that Float64 does not hold.
    pub(in super::super) int_to_float: bool,
}

/// Two types that no type holds, and where they stand.
#[derive(Debug)]
pub(super) struct Conflict {
    /// Names below the column, outermost first, with dots. Empty for the column itself.
    pub(super) path: String,
    pub(super) first: DataType,
    pub(super) second: DataType,
}

impl Conflict {
    fn of(first: &DataType, second: &DataType) -> Self {
        Conflict { path: String::new(), first: first.clone(), second: second.clone() }
    }

    fn within(mut self, name: &str) -> Self {
        self.path = joined(name, &self.path);
        self
    }
}

/// `name`, or `name.path`.
pub(super) fn joined(name: &str, path: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{name}.{path}") }
}

/// A field of the first one's name that holds the values of both.
pub(super) fn field(first: &Field, second: &Field, widening: &Widening) -> Result<Field, Conflict> {
    let data_type = data_type(first.data_type(), second.data_type(), widening)?;
    let nullable = [first, second].iter().any(|field| field.is_nullable() || is_only_null(field.data_type()));
    let is_ordered = [first, second].iter().all(|field| field.dict_is_ordered() == Some(true));
    let field = Field::new(first.name(), data_type, nullable).with_metadata(common_metadata(first, second));
    Ok(field.with_dict_is_ordered(is_ordered))
}

/// A type that holds the values of both.
pub(super) fn data_type(first: &DataType, second: &DataType, widening: &Widening) -> Result<DataType, Conflict> {
    if first == second {
        return Ok(first.clone());
    }
    if let (Some((shape, item)), Some((other_shape, other_item))) = (list_of(first), list_of(second)) {
        let item = field(item, other_item, widening).map_err(|conflict| conflict.within(item.name()))?;
        return Ok(shape.widened(other_shape).data_type(Arc::new(item)));
    }
    let merged = match (first, second) {
        (DataType::Null, other) | (other, DataType::Null) => Some(other.clone()),
        (DataType::Struct(first), DataType::Struct(second)) => Some(DataType::Struct(fields(first, second, widening)?)),
        (DataType::Map(entries, is_sorted), DataType::Map(others, are_sorted)) => {
            let entries = map_entries(entries, others, widening)?;
            entries.map(|entries| DataType::Map(Arc::new(entries), *is_sorted && *are_sorted))
        }
        (DataType::Dictionary(..), _) | (_, DataType::Dictionary(..)) => dictionary(first, second, widening),
        _ => leaf(first, second, widening),
    };
    merged.ok_or_else(|| Conflict::of(first, second))
}

/// A type without children that holds the values of both.
pub(super) fn leaf(first: &DataType, second: &DataType, widening: &Widening) -> Option<DataType> {
    if first == second {
        return Some(first.clone());
    }
    numbers(first, second, widening).or_else(|| bytes(first, second)).or_else(|| times(first, second))
}

/// Returns whether DataFusion's cast keeps every value, or ends in an error. It is preferred then: DataFusion knows how
/// it orders values, and skips row groups by their extremes.
pub(in super::super) fn is_cast_exactly(from: &DataType, to: &DataType) -> bool {
    if from == to {
        return true;
    }
    if let (Some((shape, item)), Some((to_shape, to_item))) = (list_of(from), list_of(to)) {
        return shape == to_shape && is_cast_exactly(item.data_type(), to_item.data_type());
    }
    match (from, to) {
        (DataType::Struct(from), DataType::Struct(to)) => to.iter().all(|field| {
            let own = from.iter().find(|own| own.name() == field.name());
            own.is_none_or(|own| is_cast_exactly(own.data_type(), field.data_type()))
        }),
        (DataType::Null, _) | (DataType::Timestamp(..), DataType::Timestamp(..)) => true,
        (from, DataType::Float64) if from.is_integer() => Integer::of(from).is_some_and(|integer| integer.bits < 64),
        (from, to) => {
            let both = |is: fn(&DataType) -> bool| is(from) && is(to);
            both(DataType::is_integer) || both(DataType::is_floating) || both(DataType::is_string)
        }
    }
}

/// Fields by name, in the order of first appearance. One that is missing on a side is NULL there.
fn fields(first: &Fields, second: &Fields, widening: &Widening) -> Result<Fields, Conflict> {
    let others: HashMap<&str, &FieldRef> = second.iter().map(|field| (field.name().as_str(), field)).collect();
    let known: HashSet<&str> = first.iter().map(|field| field.name().as_str()).collect();
    let mut merged = Vec::with_capacity(first.len());
    for own in first {
        merged.push(match others.get(own.name().as_str()) {
            Some(other) => field(own, other, widening).map_err(|conflict| conflict.within(own.name()))?,
            None => own.as_ref().clone().with_nullable(true),
        });
    }
    let added = second.iter().filter(|field| !known.contains(field.name().as_str()));
    merged.extend(added.map(|field| field.as_ref().clone().with_nullable(true)));
    Ok(Fields::from(merged))
}

/// Entries of a map: key and value by position, as their names differ between writers. `None`: they are no pairs.
fn map_entries(first: &Field, second: &Field, widening: &Widening) -> Result<Option<Field>, Conflict> {
    let (DataType::Struct(own), DataType::Struct(others)) = (first.data_type(), second.data_type()) else {
        return Ok(None);
    };
    let ([key, value], [other_key, other_value]) = (&own[..], &others[..]) else { return Ok(None) };
    // Arrow demands that entries and keys are not NULL, whatever a writer has declared.
    let key = field(key, other_key, widening).map_err(|conflict| conflict.within(key.name()))?.with_nullable(false);
    let value = field(value, other_value, widening).map_err(|conflict| conflict.within(value.name()))?;
    let pair = DataType::Struct(Fields::from(vec![key, value]));
    Ok(Some(Field::new(first.name(), pair, false).with_metadata(common_metadata(first, second))))
}

/// Dictionaries with the wider keys; a dictionary and plain values are plain values.
fn dictionary(first: &DataType, second: &DataType, widening: &Widening) -> Option<DataType> {
    match (first, second) {
        (DataType::Dictionary(key, value), DataType::Dictionary(other_key, other_value)) => {
            if [value, other_value].iter().any(|value| matches!(***value, DataType::Dictionary(..))) {
                return None;
            }
            let key = match Integer::of(key)?.widened(Integer::of(other_key)?) {
                // No dictionary has more values than Int64 counts.
                DataType::Decimal128(..) => DataType::Int64,
                key => key,
            };
            let value = data_type(value, other_value, widening).ok()?;
            Some(DataType::Dictionary(Box::new(key), Box::new(value)))
        }
        (DataType::Dictionary(_, value), other) | (other, DataType::Dictionary(_, value)) if is_plain(value) => {
            data_type(value, other, widening).ok()
        }
        _ => None,
    }
}

/// Whether a dictionary's values can stand without it: others could grow beyond all bounds.
pub(super) fn is_plain(value: &DataType) -> bool {
    !value.is_nested() && !matches!(value, DataType::Dictionary(..) | DataType::RunEndEncoded(..))
}

fn is_only_null(data_type: &DataType) -> bool {
    match data_type {
        DataType::Null => true,
        DataType::Dictionary(_, value) => is_only_null(value),
        _ => false,
    }
}

/// The metadata in which both agree. An extension type that they do not share, or that was declared for other storage
/// than the merged field has, is left out as a whole: a reader would refuse half of it.
fn common_metadata(first: &Field, second: &Field) -> HashMap<String, String> {
    let agrees = |key: &str| first.metadata().get(key) == second.metadata().get(key);
    let keeps_extension = agrees(EXTENSION_TYPE_NAME_KEY)
        && agrees(EXTENSION_TYPE_METADATA_KEY)
        && is_same_storage(first.data_type(), second.data_type());
    let is_extension = |key: &str| key == EXTENSION_TYPE_NAME_KEY || key == EXTENSION_TYPE_METADATA_KEY;
    let entries = first.metadata().iter();
    let kept = entries.filter(|(key, _)| agrees(key) && (keeps_extension || !is_extension(key)));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn is_same_storage(first: &DataType, second: &DataType) -> bool {
    let is_varied = |data_type: &DataType| is_bytes(data_type) && !matches!(data_type, DataType::FixedSizeBinary(_));
    first.equals_datatype(second)
        || (first.is_string() && second.is_string())
        || (is_varied(first) && is_varied(second))
}

/// An integer type.
#[derive(Clone, Copy)]
struct Integer {
    is_signed: bool,
    bits: u8,
}

impl Integer {
    fn of(data_type: &DataType) -> Option<Integer> {
        let (is_signed, bits) = match data_type {
            DataType::Int8 => (true, 8),
            DataType::Int16 => (true, 16),
            DataType::Int32 => (true, 32),
            DataType::Int64 => (true, 64),
            DataType::UInt8 => (false, 8),
            DataType::UInt16 => (false, 16),
            DataType::UInt32 => (false, 32),
            DataType::UInt64 => (false, 64),
            _ => return None,
        };
        Some(Integer { is_signed, bits })
    }

    fn widened(self, other: Integer) -> DataType {
        let is_signed = self.is_signed || other.is_signed;
        // A signed type holds an unsigned one of half its bits.
        let bits_of = |integer: Integer| if is_signed && !integer.is_signed { integer.bits * 2 } else { integer.bits };
        match (is_signed, bits_of(self).max(bits_of(other))) {
            (true, 8) => DataType::Int8,
            (true, 16) => DataType::Int16,
            (true, 32) => DataType::Int32,
            (true, 64) => DataType::Int64,
            (false, 8) => DataType::UInt8,
            (false, 16) => DataType::UInt16,
            (false, 32) => DataType::UInt32,
            (false, _) => DataType::UInt64,
            // UInt64 and a signed type: no integer holds both.
            (true, _) => DataType::Decimal128(20, 0),
        }
    }

    /// Decimal digits of its longest value.
    fn digits(self) -> u8 {
        match (self.bits, self.is_signed) {
            (8, _) => 3,
            (16, _) => 5,
            (32, _) => 10,
            (_, true) => 19,
            (_, false) => 20,
        }
    }
}

fn numbers(first: &DataType, second: &DataType, widening: &Widening) -> Option<DataType> {
    if let (Some(first), Some(second)) = (Integer::of(first), Integer::of(second)) {
        return Some(first.widened(second));
    }
    match (first.is_floating(), second.is_floating()) {
        (true, true) if [first, second].contains(&&DataType::Float64) => Some(DataType::Float64),
        (true, true) => Some(DataType::Float32),
        (true, false) => goes_with_floats(second, widening).then_some(DataType::Float64),
        (false, true) => goes_with_floats(first, widening).then_some(DataType::Float64),
        (false, false) => Decimal::of(first)?.widened(Decimal::of(second)?),
    }
}

/// Whether Float64 holds the values of a type, or may be asked to: then the adapter refuses the values that it does
/// not hold.
fn goes_with_floats(data_type: &DataType, widening: &Widening) -> bool {
    match Integer::of(data_type) {
        Some(integer) => integer.bits < 64 || widening.int_to_float,
        // Signed and unsigned integers were merged into this: the result must not depend on the order of the files.
        None => *data_type == DataType::Decimal128(20, 0) && widening.int_to_float,
    }
}

/// A decimal type, or an integer as one.
#[derive(Clone, Copy)]
struct Decimal {
    /// Largest precision of the narrowest Arrow type that may hold it.
    capacity: u8,
    precision: u8,
    scale: i8,
}

impl Decimal {
    fn of(data_type: &DataType) -> Option<Decimal> {
        let (capacity, precision, scale) = match data_type {
            DataType::Decimal32(precision, scale) => (9, *precision, *scale),
            DataType::Decimal64(precision, scale) => (18, *precision, *scale),
            DataType::Decimal128(precision, scale) => (38, *precision, *scale),
            DataType::Decimal256(precision, scale) => (76, *precision, *scale),
            other => (0, Integer::of(other)?.digits(), 0),
        };
        Some(Decimal { capacity, precision, scale })
    }

    fn widened(self, other: Decimal) -> Option<DataType> {
        let whole_digits = |decimal: Decimal| i16::from(decimal.precision) - i16::from(decimal.scale);
        let scale = self.scale.max(other.scale);
        let precision = whole_digits(self).max(whole_digits(other)) + i16::from(scale);
        let precision = u8::try_from(precision).ok().filter(|precision| *precision > 0)?;
        match self.capacity.max(other.capacity).max(precision) {
            0..=9 => Some(DataType::Decimal32(precision, scale)),
            10..=18 => Some(DataType::Decimal64(precision, scale)),
            19..=38 => Some(DataType::Decimal128(precision, scale)),
            39..=76 => Some(DataType::Decimal256(precision, scale)),
            _ => None,
        }
    }
}

fn bytes(first: &DataType, second: &DataType) -> Option<DataType> {
    let (wide, small) = if first.is_string() && second.is_string() {
        ([DataType::LargeUtf8, DataType::Utf8View], DataType::Utf8)
    } else if is_bytes(first) && is_bytes(second) {
        ([DataType::LargeBinary, DataType::BinaryView], DataType::Binary)
    } else {
        return None;
    };
    Some(wide.into_iter().find(|wide| wide == first || wide == second).unwrap_or(small))
}

fn is_bytes(data_type: &DataType) -> bool {
    use DataType::{Binary, BinaryView, FixedSizeBinary, LargeBinary};
    matches!(data_type, Binary | LargeBinary | BinaryView | FixedSizeBinary(_))
}

fn times(first: &DataType, second: &DataType) -> Option<DataType> {
    use DataType::{Date32, Date64, Duration, Time32, Time64, Timestamp};
    match (first, second) {
        (Timestamp(unit, None), Timestamp(other, None)) => Some(Timestamp(*unit.max(other), None)),
        (Timestamp(unit, Some(zone)), Timestamp(other, Some(other_zone))) => {
            Some(Timestamp(*unit.max(other), Some(common_zone(zone, other_zone)?)))
        }
        (Date32 | Date64, Date32 | Date64) => Some(Date64),
        (Duration(unit), Duration(other)) => Some(Duration(*unit.max(other))),
        (Time32(unit) | Time64(unit), Time32(other) | Time64(other)) => {
            let unit = *unit.max(other);
            Some(if unit <= TimeUnit::Millisecond { Time32(unit) } else { Time64(unit) })
        }
        _ => None,
    }
}

/// UTC has several names; other zones are part of what a timestamp says.
fn common_zone(first: &Arc<str>, second: &Arc<str>) -> Option<Arc<str>> {
    if first == second { Some(Arc::clone(first)) } else { (is_utc(first) && is_utc(second)).then(|| Arc::from("UTC")) }
}
