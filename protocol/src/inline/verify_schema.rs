//! Verifies a schema's flatbuffer before arrow-ipc converts it, because that conversion panics on unknown input.

use arrow_ipc::{DateUnit, Endianness, Field, IntervalUnit, Precision, Schema, TimeUnit, Type, UnionMode};

use super::error::InlineError;
use crate::layout::{LayoutError, LayoutProblem, MAX_DEPTH};

/// Verifies that a schema can be converted, and is within the limits of depth and of the number of fields.
pub(super) fn verify(schema: Schema<'_>, max_fields: usize) -> Result<(), InlineError> {
    if schema.endianness() != Endianness::Little {
        return refuse("the schema is not little-endian");
    }
    let fields = schema.fields().ok_or_else(|| InlineError::metadata("the schema has no list of fields"))?;
    let mut budget = max_fields;
    fields.iter().try_for_each(|child| field(child, 0, &mut budget))
}

fn refuse<T>(why: &str) -> Result<T, InlineError> {
    Err(InlineError::metadata(why))
}

fn field(field: Field<'_>, depth: usize, budget: &mut usize) -> Result<(), InlineError> {
    if depth >= MAX_DEPTH {
        return Err(LayoutError::from(LayoutProblem::TooDeep { limit: MAX_DEPTH }).into());
    }
    *budget = budget.checked_sub(1).ok_or_else(|| InlineError::metadata("the schema has too many fields"))?;
    if let Some(dictionary) = field.dictionary() {
        match dictionary.indexType() {
            Some(index) if matches!(index.bitWidth(), 8 | 16 | 32 | 64) => {}
            _ => return refuse("keys of a dictionary are not integers of 8 to 64 bits"),
        }
    }
    let children = field.children().map_or(0, |children| children.len());
    let known = match field.type_type() {
        Type::Null | Type::Bool | Type::Binary | Type::LargeBinary | Type::BinaryView => true,
        Type::Utf8 | Type::LargeUtf8 | Type::Utf8View | Type::Struct_ => true,
        Type::Int => field.type_as_int().is_some_and(|int| matches!(int.bitWidth(), 8 | 16 | 32 | 64)),
        Type::FloatingPoint => field
            .type_as_floating_point()
            .is_some_and(|float| matches!(float.precision(), Precision::HALF | Precision::SINGLE | Precision::DOUBLE)),
        Type::Decimal => field.type_as_decimal().is_some_and(|decimal| {
            let fits = u8::try_from(decimal.precision()).is_ok() && i8::try_from(decimal.scale()).is_ok();
            fits && matches!(decimal.bitWidth(), 32 | 64 | 128 | 256)
        }),
        Type::FixedSizeBinary => field.type_as_fixed_size_binary().is_some(),
        Type::Date => {
            field.type_as_date().is_some_and(|date| matches!(date.unit(), DateUnit::DAY | DateUnit::MILLISECOND))
        }
        Type::Time => field.type_as_time().is_some_and(|time| match time.unit() {
            TimeUnit::SECOND | TimeUnit::MILLISECOND => time.bitWidth() == 32,
            TimeUnit::MICROSECOND | TimeUnit::NANOSECOND => time.bitWidth() == 64,
            _ => false,
        }),
        Type::Timestamp => match field.type_as_timestamp() {
            // An empty time zone means none (Schema.fbs). Arrow would keep it as another type than a timestamp without.
            Some(timestamp) if timestamp.timezone() == Some("") => {
                return refuse("a timestamp has an empty time zone: a schema leaves it out instead");
            }
            timestamp => timestamp.is_some_and(|timestamp| unit(timestamp.unit())),
        },
        Type::Duration => field.type_as_duration().is_some_and(|duration| unit(duration.unit())),
        Type::Interval => field.type_as_interval().is_some_and(|interval| {
            let unit = interval.unit();
            matches!(unit, IntervalUnit::YEAR_MONTH | IntervalUnit::DAY_TIME | IntervalUnit::MONTH_DAY_NANO)
        }),
        Type::List | Type::LargeList | Type::ListView | Type::LargeListView => children == 1,
        Type::FixedSizeList => children == 1 && field.type_as_fixed_size_list().is_some(),
        Type::Map => children == 1 && field.type_as_map().is_some(),
        Type::RunEndEncoded => children == 2,
        Type::Union => union(field, children)?,
        _ => false,
    };
    if !known {
        return Err(InlineError::metadata(format!("a field of type {:?} with unknown parameters", field.type_type())));
    }
    field.children().into_iter().flatten().try_for_each(|child| self::field(child, depth + 1, budget))
}

fn unit(unit: TimeUnit) -> bool {
    matches!(unit, TimeUnit::SECOND | TimeUnit::MILLISECOND | TimeUnit::MICROSECOND | TimeUnit::NANOSECOND)
}

fn union(field: Field<'_>, children: usize) -> Result<bool, InlineError> {
    let Some(union) = field.type_as_union() else { return Ok(false) };
    if children > 128 {
        return refuse("a union of more than 128 types");
    }
    if let Some(ids) = union.typeIds() {
        let mut seen = [false; 128];
        for id in ids {
            match usize::try_from(id).ok().and_then(|id| seen.get_mut(id)) {
                Some(seen) if !*seen => *seen = true,
                _ => return refuse("type ids of a union that are not different numbers from 0 to 127"),
            }
        }
        if ids.len() != children {
            return refuse("a union that does not have as many type ids as types");
        }
    }
    Ok(matches!(union.mode(), UnionMode::Sparse | UnionMode::Dense))
}
