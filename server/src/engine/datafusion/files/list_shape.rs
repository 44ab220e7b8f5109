//! The types of lists.

use arrow_schema::{DataType, FieldRef};

/// The layout of a list type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListShape {
    is_large: bool,
    is_view: bool,
    size: Option<i32>,
}

impl ListShape {
    /// Views win, as other lists become views without a copy of their items, but views that share items could grow
    /// beyond all bounds as other lists.
    pub(super) fn widened(self, other: ListShape) -> ListShape {
        if self == other {
            return self;
        }
        ListShape { is_large: self.is_large || other.is_large, is_view: self.is_view || other.is_view, size: None }
    }

    /// The type of a list of this layout.
    pub(super) fn data_type(self, item: FieldRef) -> DataType {
        match (self.size, self.is_large, self.is_view) {
            (Some(size), ..) => DataType::FixedSizeList(item, size),
            (None, false, false) => DataType::List(item),
            (None, true, false) => DataType::LargeList(item),
            (None, false, true) => DataType::ListView(item),
            (None, true, true) => DataType::LargeListView(item),
        }
    }
}

/// Layout and items of a list type.
pub(super) fn list_of(data_type: &DataType) -> Option<(ListShape, &FieldRef)> {
    let shape = |is_large, is_view| ListShape { is_large, is_view, size: None };
    match data_type {
        DataType::List(item) => Some((shape(false, false), item)),
        DataType::LargeList(item) => Some((shape(true, false), item)),
        DataType::ListView(item) => Some((shape(false, true), item)),
        DataType::LargeListView(item) => Some((shape(true, true), item)),
        DataType::FixedSizeList(item, size) => {
            Some((ListShape { is_large: false, is_view: false, size: Some(*size) }, item))
        }
        _ => None,
    }
}
