//! The table of Arrow's types: the buffers and children of an array of each type, and the rules for their lengths.
//!
//! All other code of this crate that iterates over arrays uses this table, so that each type is described in one place.

use std::sync::Arc;

use arrow_buffer::{IntervalDayTime, IntervalMonthDayNano, i256};
use arrow_schema::{DataType, Field, FieldRef, IntervalUnit, TimeUnit, UnionFields, UnionMode};

use super::descriptor::Detail;
use super::error::{LayoutError, LayoutProblem};

/// The layout of the arrays of a type.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// No buffers.
    Null,
    /// Booleans.
    Bits,
    /// Values of one width in bytes: numbers, times, decimals, fixed size binary.
    Fixed { width: u64, align: usize },
    /// Strings and binary by offsets.
    Bytes { wide: bool, utf8: bool },
    /// Strings and binary by views.
    Views { utf8: bool },
    /// Lists and maps by offsets.
    List { wide: bool },
    /// Lists by offsets and sizes.
    ListView { wide: bool },
    /// Lists of one size in elements.
    FixedList { size: u64 },
    /// Structs.
    Struct,
    /// Unions whose children have the same length as the union.
    SparseUnion,
    /// Unions that refer to elements of their children by offsets.
    DenseUnion(Arc<TypeIds>),
    /// Keys of one width in bytes; the values are a child.
    Dictionary {
        /// Width in bytes: 1, 2, 4 or 8.
        width: usize,
        /// Whether keys are signed: then only the lower half of the values of that width are keys.
        signed: bool,
        /// The position among the schema's dictionaries that batches can share, if this is one of them. The plan sets
        /// it.
        number: Option<usize>,
    },
    /// Run-end encoded; the width in bytes of the run ends is 2, 4 or 8.
    Runs { width: usize },
}

/// The rule for the length of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BufferLen {
    /// One bit for each element, after those that [`Detail::Bits`] skips.
    Bits,
    /// This many bytes for each element.
    Elements(u64),
    /// Offsets of this many bytes: one for each element, and one more. Empty if there is no element.
    Offsets(u64),
    /// The values that the offsets in the previous buffer refer to. Empty if there is no element.
    Referenced,
    /// One buffer for each extent of [`Detail::Views`], with the length in the descriptor.
    Extents,
}

/// A buffer of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BufferRule {
    /// The buffer's role, for errors.
    pub(crate) what: &'static str,
    pub(crate) len: BufferLen,
}

/// The buffers of an array, at most two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BufferRules {
    rules: [BufferRule; 2],
    count: usize,
}

impl BufferRules {
    fn none() -> Self {
        BufferRules { count: 0, ..BufferRules::one("", BufferLen::Referenced) }
    }

    fn one(what: &'static str, len: BufferLen) -> Self {
        BufferRules { rules: [BufferRule { what, len }; 2], count: 1 }
    }

    fn two(first: (&'static str, BufferLen), second: (&'static str, BufferLen)) -> Self {
        let rules = [first, second].map(|(what, len)| BufferRule { what, len });
        BufferRules { rules, count: 2 }
    }

    /// The rules, in the order of the buffers.
    pub(crate) fn as_slice(&self) -> &[BufferRule] {
        &self.rules[..self.count]
    }
}

/// The rule for the number of elements of an array's children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChildLen {
    /// The array's length times this number.
    Times(u64),
    /// The values of the array's offsets determine it. 0 if the array is empty.
    ByRows,
    /// The values of the array's offsets or keys determine it, or it is not determined.
    Free,
    /// All children have the same length, which is at most the array's.
    Runs,
}

/// The position of the child for each type id of a union.
#[derive(Clone, Debug)]
pub(crate) struct TypeIds([Option<u8>; 128]);

impl TypeIds {
    fn of(fields: &UnionFields) -> Self {
        let mut positions = [None; 128];
        for (position, (id, _)) in (0..).zip(fields.iter()) {
            if let Some(slot) = usize::try_from(id).ok().and_then(|id| positions.get_mut(id)) {
                *slot = Some(position);
            }
        }
        TypeIds(positions)
    }

    /// The position of the child with this type id, if there is one.
    pub(super) fn child(&self, id: u8) -> Option<usize> {
        self.0.get(usize::from(id)).copied().flatten().map(usize::from)
    }
}

impl Kind {
    /// Whether arrays have a validity bitmap of their own. It comes before all other buffers.
    pub(super) fn has_validity(&self) -> bool {
        !matches!(self, Kind::Null | Kind::SparseUnion | Kind::DenseUnion(_) | Kind::Runs { .. })
    }

    /// The buffers of an array itself after its validity bitmap, in order. The buffers of its children follow them.
    pub(super) fn buffers(&self) -> BufferRules {
        use BufferLen::{Bits, Elements, Extents, Offsets, Referenced};
        match *self {
            Kind::Null | Kind::FixedList { .. } | Kind::Struct | Kind::Runs { .. } => BufferRules::none(),
            Kind::Bits => BufferRules::one("values", Bits),
            Kind::Fixed { width, .. } => BufferRules::one("values", Elements(width)),
            Kind::Bytes { wide, .. } => {
                BufferRules::two(("offsets", Offsets(offset_width(wide))), ("values", Referenced))
            }
            Kind::Views { .. } => BufferRules::two(("views", Elements(16)), ("data", Extents)),
            Kind::List { wide } => BufferRules::one("offsets", Offsets(offset_width(wide))),
            Kind::ListView { wide } => {
                let width = Elements(offset_width(wide));
                BufferRules::two(("offsets", width), ("sizes", width))
            }
            Kind::SparseUnion => BufferRules::one("type ids", Elements(1)),
            Kind::DenseUnion(_) => BufferRules::two(("type ids", Elements(1)), ("offsets", Elements(4))),
            Kind::Dictionary { width, .. } => BufferRules::one("keys", Elements(width as u64)),
        }
    }

    /// The rule for the lengths of the children.
    pub(super) fn child_len(&self) -> ChildLen {
        match *self {
            Kind::List { .. } | Kind::ListView { .. } => ChildLen::ByRows,
            Kind::FixedList { size } => ChildLen::Times(size),
            Kind::DenseUnion(_) | Kind::Dictionary { .. } => ChildLen::Free,
            Kind::Runs { .. } => ChildLen::Runs,
            Kind::Struct | Kind::SparseUnion => ChildLen::Times(1),
            Kind::Null | Kind::Bits | Kind::Fixed { .. } | Kind::Bytes { .. } | Kind::Views { .. } => ChildLen::Free,
        }
    }

    /// Whether a detail's variant is valid for an array of this kind.
    pub(super) fn accepts(&self, detail: &Detail) -> bool {
        match self {
            Kind::Bits => matches!(detail, Detail::Bits { .. }),
            Kind::Bytes { .. } | Kind::List { .. } | Kind::ListView { .. } => matches!(detail, Detail::Base(_)),
            Kind::Views { .. } => matches!(detail, Detail::Views(_)),
            Kind::DenseUnion(_) => matches!(detail, Detail::UnionBases(_)),
            Kind::Runs { .. } => matches!(detail, Detail::Runs { .. }),
            Kind::Dictionary { number: Some(_), .. } => matches!(detail, Detail::None | Detail::SameValues),
            Kind::Null | Kind::Fixed { .. } | Kind::FixedList { .. } | Kind::Struct | Kind::SparseUnion => {
                matches!(detail, Detail::None)
            }
            Kind::Dictionary { number: None, .. } => matches!(detail, Detail::None),
        }
    }

    /// Whether batches can share a dictionary with such values. Values with children of their own are not shared: a
    /// position would not be enough to distinguish the dictionaries.
    pub(super) fn is_shareable(&self) -> bool {
        matches!(self, Kind::Bits | Kind::Fixed { .. } | Kind::Bytes { .. } | Kind::Views { .. })
    }

    /// The layout of a type, and the fields of its children; or the reason why no array can have the type, because
    /// arrow panics on some of these types.
    pub(super) fn of(data_type: &DataType) -> Result<(Kind, Vec<FieldRef>), LayoutError> {
        use DataType::*;
        let refuse = |why| Err(LayoutProblem::Type { data_type: data_type.clone(), why }.into());
        if let Some(why) = impossible(data_type) {
            return refuse(why);
        }
        let item = |field: &FieldRef| vec![Arc::clone(field)];
        let union = |fields: &UnionFields| fields.iter().map(|(_, field)| Arc::clone(field)).collect();
        Ok(match data_type {
            Null => (Kind::Null, Vec::new()),
            Boolean => (Kind::Bits, Vec::new()),
            FixedSizeBinary(size) => (Kind::Fixed { width: size.unsigned_abs().into(), align: 1 }, Vec::new()),
            Utf8 | Binary => (Kind::Bytes { wide: false, utf8: *data_type == Utf8 }, Vec::new()),
            LargeUtf8 | LargeBinary => (Kind::Bytes { wide: true, utf8: *data_type == LargeUtf8 }, Vec::new()),
            Utf8View | BinaryView => (Kind::Views { utf8: *data_type == Utf8View }, Vec::new()),
            List(field) | Map(field, _) => (Kind::List { wide: false }, item(field)),
            LargeList(field) => (Kind::List { wide: true }, item(field)),
            ListView(field) => (Kind::ListView { wide: false }, item(field)),
            LargeListView(field) => (Kind::ListView { wide: true }, item(field)),
            FixedSizeList(field, size) => (Kind::FixedList { size: size.unsigned_abs().into() }, item(field)),
            Struct(fields) => (Kind::Struct, fields.iter().cloned().collect()),
            Union(fields, UnionMode::Sparse) => (Kind::SparseUnion, union(fields)),
            Union(fields, UnionMode::Dense) => (Kind::DenseUnion(Arc::new(TypeIds::of(fields))), union(fields)),
            Dictionary(key, values) => {
                let width = key.primitive_width().unwrap_or(1);
                let values = Field::new("values", values.as_ref().clone(), true);
                (Kind::Dictionary { width, signed: key.is_signed_integer(), number: None }, vec![Arc::new(values)])
            }
            RunEndEncoded(ends, values) => {
                let width = ends.data_type().primitive_width().unwrap_or(8);
                (Kind::Runs { width }, vec![Arc::clone(ends), Arc::clone(values)])
            }
            number => match fixed(number) {
                Some((width, align)) => (Kind::Fixed { width, align }, Vec::new()),
                None => return refuse("it has no fixed width"),
            },
        })
    }
}

/// Width in bytes of an offset of 32 or 64 bits.
pub(super) fn offset_width(wide: bool) -> u64 {
    if wide { 8 } else { 4 }
}

/// The reason why no array can have this type, whatever its children are.
fn impossible(data_type: &DataType) -> Option<&'static str> {
    use DataType::*;
    const DECIMAL: &str = "its precision or scale is out of range";
    let decimal = |precision: u8, scale: i8, max: u8| {
        let is_possible = (1..=max).contains(&precision) && i16::from(scale) <= i16::from(precision);
        (!is_possible).then_some(DECIMAL)
    };
    match data_type {
        Time32(TimeUnit::Microsecond | TimeUnit::Nanosecond) => Some("32-bit times are in s or ms"),
        Time64(TimeUnit::Second | TimeUnit::Millisecond) => Some("64-bit times are in us or ns"),
        Decimal32(precision, scale) => decimal(*precision, *scale, 9),
        Decimal64(precision, scale) => decimal(*precision, *scale, 18),
        Decimal128(precision, scale) => decimal(*precision, *scale, 38),
        Decimal256(precision, scale) => decimal(*precision, *scale, 76),
        FixedSizeBinary(size) if *size < 0 => Some("its width is negative"),
        FixedSizeList(_, size) if *size < 0 => Some("its size is negative"),
        Map(entries, _) if entries.is_nullable() => Some("entries of a map cannot be nullable"),
        Map(entries, _) => match entries.data_type() {
            Struct(fields) if fields.len() == 2 && !fields[0].is_nullable() => None,
            _ => Some("entries of a map are a struct of a key that is not nullable, and a value"),
        },
        Union(fields, _) if fields.iter().any(|(id, _)| id < 0) => Some("type ids are 0 to 127"),
        Dictionary(key, _) if !key.is_dictionary_key_type() => Some("keys of a dictionary are integers"),
        RunEndEncoded(ends, _) if !ends.data_type().is_run_ends_type() || ends.is_nullable() => {
            Some("run ends are integers of 16, 32 or 64 bits, not nullable")
        }
        _ => None,
    }
}

/// Width and alignment in bytes of a primitive type. Arrow's `layout` has the same values, but allocates.
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

#[cfg(test)]
mod tests {
    use arrow_data::BufferSpec;
    use thallus_protocol_testing::all_types;

    use super::*;

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

    /// Compares the table with arrow's own: validity, and the number and widths of the buffers.
    #[test]
    fn buffers_are_those_of_arrow() {
        for data_type in all_types() {
            let (kind, _) = Kind::of(&data_type).unwrap();
            let arrow = arrow_data::layout(&data_type);
            let rules = kind.buffers();
            let rules: Vec<_> = rules.as_slice().iter().filter(|rule| rule.len != BufferLen::Extents).collect();
            assert_eq!(kind.has_validity(), arrow.can_contain_null_mask, "{data_type}");
            assert_eq!(rules.len(), arrow.buffers.len(), "{data_type}");
            assert_eq!(arrow.variadic, matches!(kind, Kind::Views { .. }), "{data_type}");
            for (rule, spec) in rules.iter().zip(arrow.buffers) {
                match (rule.len, spec) {
                    (
                        BufferLen::Elements(width) | BufferLen::Offsets(width),
                        BufferSpec::FixedWidth { byte_width, .. },
                    ) => {
                        assert_eq!(width, byte_width as u64, "{data_type}");
                    }
                    (BufferLen::Bits, BufferSpec::BitMap) => {}
                    (BufferLen::Referenced, BufferSpec::VariableWidth) => {}
                    (len, spec) => panic!("{data_type}: {len:?}, and arrow says {spec:?}"),
                }
            }
        }
    }
}
