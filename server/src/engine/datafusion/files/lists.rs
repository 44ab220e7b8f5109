//! The rows of list arrays of any layout, from which a list of another layout is built.

use std::iter::once;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{
    Array, ArrayRef, BooleanArray, FixedSizeListArray, GenericListArray, GenericListViewArray, MapArray,
    OffsetSizeTrait, StructArray, UInt64Array,
};
use arrow_buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, FieldRef};
use arrow_select::nullif::nullif;
use arrow_select::take::take;

/// Most items of lists of a fixed size: those of a forged file may take no bytes, but their validity does.
const MOST_ITEMS: usize = i32::MAX as usize;

/// Where the items of each list stand, and the items. Rows of other layouts than views stand one behind the other.
pub(super) struct Rows {
    starts: Vec<usize>,
    ends: Vec<usize>,
    nulls: Option<NullBuffer>,
    items: ArrayRef,
}

impl Rows {
    /// The rows of a list array. Items that belong to no row, of which a reader knows nothing, are left out or NULL
    /// (but for views): an error in one of them would be none.
    pub(super) fn of(array: &dyn Array) -> Result<Rows, String> {
        match array.data_type() {
            DataType::List(_) => Rows::of_list(array.as_list::<i32>()),
            DataType::LargeList(_) => Rows::of_list(array.as_list::<i64>()),
            DataType::ListView(_) => Ok(Rows::of_views(array.as_list_view::<i32>())),
            DataType::LargeListView(_) => Ok(Rows::of_views(array.as_list_view::<i64>())),
            DataType::FixedSizeList(_, size) => Rows::of_fixed(array.as_fixed_size_list(), *size),
            other => Err(format!("{other} is no list")),
        }
    }

    fn of_list<O: OffsetSizeTrait>(list: &GenericListArray<O>) -> Result<Rows, String> {
        let rows = Rows::of_offsets(list);
        if rows.are_dense() {
            return Ok(rows);
        }
        let all = UInt64Array::from_iter_values(0..list.len() as u64);
        let dense = take(list, &all, None).map_err(text)?;
        Ok(Rows::of_offsets(dense.as_list::<O>()))
    }

    fn of_offsets<O: OffsetSizeTrait>(list: &GenericListArray<O>) -> Rows {
        let offsets = || list.offsets().iter().map(|offset| offset.as_usize());
        Rows {
            starts: offsets().take(list.len()).collect(),
            ends: offsets().skip(1).collect(),
            nulls: list.nulls().cloned(),
            items: Arc::clone(list.values()),
        }
    }

    fn of_views<O: OffsetSizeTrait>(list: &GenericListViewArray<O>) -> Rows {
        let rows = list.offsets().iter().zip(list.sizes().iter());
        Rows {
            starts: list.offsets().iter().map(|start| start.as_usize()).collect(),
            ends: rows.map(|(start, size)| start.as_usize() + size.as_usize()).collect(),
            nulls: list.nulls().cloned(),
            items: Arc::clone(list.values()),
        }
    }

    fn of_fixed(list: &FixedSizeListArray, size: i32) -> Result<Rows, String> {
        let size = usize::try_from(size).map_err(|_| "a list has a negative size".to_owned())?;
        let items = list.values();
        if items.len() > MOST_ITEMS {
            return Err(format!("its lists have {} items at once, more than {MOST_ITEMS}", items.len()));
        }
        let nulls = list.nulls().filter(|_| size > 0).map(|nulls| nulls.expand(size));
        Ok(Rows {
            starts: (0..list.len()).map(|row| row * size).collect(),
            ends: (0..list.len()).map(|row| (row + 1) * size).collect(),
            nulls: list.nulls().cloned(),
            items: masked(items, nulls.as_ref())?,
        })
    }

    /// Whether each item belongs to a row that is not NULL.
    fn are_dense(&self) -> bool {
        let starts_at_once = self.starts.first().is_none_or(|start| *start == 0);
        let ends_at_last = self.ends.last().copied().unwrap_or(0) == self.items.len();
        let is_filled = |row: usize| self.starts.get(row) != self.ends.get(row);
        let hides = |nulls: &NullBuffer| (0..nulls.len()).any(|row| nulls.is_null(row) && is_filled(row));
        starts_at_once && ends_at_last && !self.nulls.as_ref().is_some_and(hides)
    }

    pub(super) fn items(&self) -> &ArrayRef {
        &self.items
    }

    /// A list array of the type `to` of these rows, with `items` in the place of theirs.
    pub(super) fn with_items(self, items: ArrayRef, to: &DataType) -> Result<ArrayRef, String> {
        match to {
            DataType::List(item) => self.list::<i32>(item, items),
            DataType::LargeList(item) => self.list::<i64>(item, items),
            DataType::ListView(item) => self.views::<i32>(item, items),
            DataType::LargeListView(item) => self.views::<i64>(item, items),
            DataType::FixedSizeList(item, size) => {
                let len = self.starts.len();
                let list = FixedSizeListArray::try_new_with_length(Arc::clone(item), *size, items, self.nulls, len);
                Ok(Arc::new(list.map_err(text)?))
            }
            other => Err(format!("{other} is no list")),
        }
    }

    /// A map of these rows, with `pairs` in the place of their items.
    pub(super) fn with_pairs(
        self,
        pairs: StructArray,
        entries: &FieldRef,
        is_sorted: bool,
    ) -> Result<ArrayRef, String> {
        let offsets = self.offsets()?;
        let map = MapArray::try_new(Arc::clone(entries), offsets, pairs, self.nulls, is_sorted);
        Ok(Arc::new(map.map_err(text)?))
    }

    fn list<O: OffsetSizeTrait>(self, item: &FieldRef, items: ArrayRef) -> Result<ArrayRef, String> {
        let offsets = self.offsets::<O>()?;
        let list = GenericListArray::<O>::try_new(Arc::clone(item), offsets, items, self.nulls);
        Ok(Arc::new(list.map_err(text)?))
    }

    fn views<O: OffsetSizeTrait>(self, item: &FieldRef, items: ArrayRef) -> Result<ArrayRef, String> {
        let sizes = self.starts.iter().zip(&self.ends).map(|(start, end)| end - start);
        let (starts, sizes) = (narrowed::<O>(self.starts.iter().copied())?, narrowed::<O>(sizes)?);
        let list = GenericListViewArray::<O>::try_new(Arc::clone(item), starts, sizes, items, self.nulls);
        Ok(Arc::new(list.map_err(text)?))
    }

    fn offsets<O: OffsetSizeTrait>(&self) -> Result<OffsetBuffer<O>, String> {
        let first = self.starts.first().copied().unwrap_or(0);
        Ok(OffsetBuffer::new(narrowed::<O>(once(first).chain(self.ends.iter().copied()))?))
    }
}

fn narrowed<O: OffsetSizeTrait>(offsets: impl Iterator<Item = usize>) -> Result<ScalarBuffer<O>, String> {
    let narrow = |offset| O::from_usize(offset).ok_or_else(|| format!("its lists have more than {offset} items"));
    Ok(ScalarBuffer::from(offsets.map(narrow).collect::<Result<Vec<O>, String>>()?))
}

/// `array`, NULL also where `nulls` says so: what stands there belongs to no row, and may be of no meaning.
pub(super) fn masked(array: &ArrayRef, nulls: Option<&NullBuffer>) -> Result<ArrayRef, String> {
    match nulls {
        Some(nulls) if nulls.null_count() > 0 => {
            nullif(array.as_ref(), &BooleanArray::new(!nulls.inner(), None)).map_err(text)
        }
        _ => Ok(Arc::clone(array)),
    }
}

fn text(error: ArrowError) -> String {
    error.to_string()
}
