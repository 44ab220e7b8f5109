//! What buffers and children an array of a type has.

use arrow_buffer::{IntervalDayTime, IntervalMonthDayNano, i256};
use arrow_schema::{DataType, Field, FieldRef, Fields, IntervalUnit, TimeUnit, UnionFields, UnionMode};

use super::error::{LayoutError, LayoutProblem};

/// A type, reduced to how its arrays are laid out.
pub(super) enum Shape<'a> {
    Null,
    Bits,
    Fixed { width: u64, align: usize },
    Bytes { wide: bool },
    Views,
    List { wide: bool, item: &'a Field },
    ListView { wide: bool, item: &'a Field },
    FixedList { size: u64, item: &'a Field },
    Struct { fields: &'a Fields },
    SparseUnion { fields: &'a UnionFields },
    DenseUnion { fields: &'a UnionFields },
    Dictionary { width: u64, align: usize, values: &'a DataType },
    Runs { ends: &'a FieldRef, values: &'a FieldRef },
}

impl Shape<'_> {
    /// Whether arrays have a validity bitmap of their own.
    pub(super) fn has_validity(&self) -> bool {
        !matches!(self, Shape::Null | Shape::SparseUnion { .. } | Shape::DenseUnion { .. } | Shape::Runs { .. })
    }
}

/// Width in bytes of an offset of 32 or 64 bits.
pub(super) fn offset_width(wide: bool) -> u64 {
    if wide { 8 } else { 4 }
}

/// The layout of a type, or the reason why no array can have it: arrow panics on some of those.
pub(super) fn shape(data_type: &DataType) -> Result<Shape<'_>, LayoutError> {
    use DataType::*;
    let refuse = |why| Err(LayoutProblem::Type { data_type: data_type.clone(), why }.into());
    Ok(match data_type {
        Null => Shape::Null,
        Boolean => Shape::Bits,
        Time32(TimeUnit::Microsecond | TimeUnit::Nanosecond) => return refuse("32-bit times are in s or ms"),
        Time64(TimeUnit::Second | TimeUnit::Millisecond) => return refuse("64-bit times are in us or ns"),
        Decimal32(precision, scale) if !decimal(*precision, *scale, 9) => return refuse(DECIMAL),
        Decimal64(precision, scale) if !decimal(*precision, *scale, 18) => return refuse(DECIMAL),
        Decimal128(precision, scale) if !decimal(*precision, *scale, 38) => return refuse(DECIMAL),
        Decimal256(precision, scale) if !decimal(*precision, *scale, 76) => return refuse(DECIMAL),
        FixedSizeBinary(size) if *size < 0 => return refuse("its width is negative"),
        FixedSizeBinary(size) => Shape::Fixed { width: size.unsigned_abs().into(), align: 1 },
        Int8
        | Int16
        | Int32
        | Int64
        | UInt8
        | UInt16
        | UInt32
        | UInt64
        | Float16
        | Float32
        | Float64
        | Timestamp(_, _)
        | Date32
        | Date64
        | Time32(_)
        | Time64(_)
        | Duration(_)
        | Interval(_)
        | Decimal32(_, _)
        | Decimal64(_, _)
        | Decimal128(_, _)
        | Decimal256(_, _) => match fixed(data_type) {
            Some((width, align)) => Shape::Fixed { width, align },
            None => return refuse("it has no fixed width"),
        },
        Utf8 | Binary => Shape::Bytes { wide: false },
        LargeUtf8 | LargeBinary => Shape::Bytes { wide: true },
        Utf8View | BinaryView => Shape::Views,
        List(item) => Shape::List { wide: false, item },
        LargeList(item) => Shape::List { wide: true, item },
        ListView(item) => Shape::ListView { wide: false, item },
        LargeListView(item) => Shape::ListView { wide: true, item },
        FixedSizeList(_, size) if *size < 0 => return refuse("its size is negative"),
        FixedSizeList(item, size) => Shape::FixedList { size: size.unsigned_abs().into(), item },
        Struct(fields) => Shape::Struct { fields },
        Map(entries, _) => {
            if entries.is_nullable() {
                return refuse("entries of a map cannot be nullable");
            }
            match entries.data_type() {
                Struct(fields) if fields.len() == 2 && !fields[0].is_nullable() => {}
                _ => return refuse("entries of a map are a struct of a key that is not nullable, and a value"),
            }
            Shape::List { wide: false, item: entries }
        }
        Union(fields, _) if fields.iter().any(|(id, _)| id < 0) => return refuse("type ids are 0 to 127"),
        Union(fields, UnionMode::Sparse) => Shape::SparseUnion { fields },
        Union(fields, UnionMode::Dense) => Shape::DenseUnion { fields },
        Dictionary(key, _) if !key.is_dictionary_key_type() => return refuse("keys of a dictionary are integers"),
        Dictionary(key, values) => match fixed(key) {
            Some((width, align)) => Shape::Dictionary { width, align, values },
            None => return refuse("keys of a dictionary are integers"),
        },
        RunEndEncoded(ends, _) if !ends.data_type().is_run_ends_type() || ends.is_nullable() => {
            return refuse("run ends are integers of 16, 32 or 64 bits, not nullable");
        }
        RunEndEncoded(ends, values) => Shape::Runs { ends, values },
    })
}

const DECIMAL: &str = "its precision or scale is out of range";

fn decimal(precision: u8, scale: i8, max: u8) -> bool {
    (1..=max).contains(&precision) && i16::from(scale) <= i16::from(precision)
}

/// Width and alignment in bytes of a primitive type: what arrow's `layout` says, which allocates to say it.
fn fixed(data_type: &DataType) -> Option<(u64, usize)> {
    fn native<T>() -> (u64, usize) {
        (size_of::<T>() as u64, align_of::<T>())
    }
    Some(match data_type {
        DataType::Interval(IntervalUnit::DayTime) => native::<IntervalDayTime>(),
        DataType::Interval(IntervalUnit::MonthDayNano) => native::<IntervalMonthDayNano>(),
        DataType::Decimal256(_, _) => native::<i256>(),
        number => match number.primitive_width()? {
            1 => native::<u8>(),
            2 => native::<u16>(),
            4 => native::<u32>(),
            8 => native::<u64>(),
            16 => native::<u128>(),
            _ => return None,
        },
    })
}

/// Whether arrays of this type, and of all types within it, can exist. Counts fields down from `budget`.
pub(crate) fn check_type(data_type: &DataType, depth: usize, budget: &mut usize) -> Result<(), LayoutError> {
    use super::error::Within;
    let depth = deeper(depth)?;
    *budget = budget.checked_sub(1).ok_or(LayoutProblem::Overflow { what: "the number of fields" })?;
    let mut field = |field: &Field| check_type(field.data_type(), depth, budget).within(field.name());
    match shape(data_type)? {
        Shape::Null | Shape::Bits | Shape::Fixed { .. } | Shape::Bytes { .. } | Shape::Views => Ok(()),
        Shape::List { item, .. } | Shape::ListView { item, .. } | Shape::FixedList { item, .. } => field(item),
        Shape::Struct { fields } => fields.iter().try_for_each(|f| field(f)),
        Shape::SparseUnion { fields } | Shape::DenseUnion { fields } => fields.iter().try_for_each(|(_, f)| field(f)),
        Shape::Dictionary { values, .. } => check_type(values, depth, budget).within("values"),
        Shape::Runs { ends, values } => field(ends).and_then(|()| field(values)),
    }
}

/// One level further down, or an error where that is too deep.
pub(super) fn deeper(depth: usize) -> Result<usize, LayoutError> {
    if depth >= super::MAX_DEPTH {
        return Err(LayoutProblem::TooDeep { limit: super::MAX_DEPTH }.into());
    }
    Ok(depth + 1)
}

#[cfg(test)]
mod tests {
    use arrow_data::BufferSpec;

    use super::*;
    use crate::testing::all_types;

    #[test]
    fn widths_and_alignments_are_those_of_arrow() {
        let mut seen = 0;
        for data_type in all_types().iter().filter(|data_type| data_type.is_primitive()) {
            let Some((width, align)) = fixed(data_type) else { panic!("{data_type} has a width") };
            let layout = arrow_data::layout(data_type);
            let byte_width = usize::try_from(width).unwrap();
            assert_eq!(layout.buffers, [BufferSpec::FixedWidth { byte_width, alignment: align }], "{data_type}");
            seen += 1;
        }
        assert!(seen > 20, "only {seen}");
    }
}
