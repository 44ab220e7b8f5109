//! Finds the elements of an array's children that its offsets, sizes and run ends refer to.
//!
//! Both ends use this: the lender to lend no more, and the borrower of some rows to read no more. The numbers are read
//! from bytes at any address, and may come from a peer: for all inputs the functions return a result or an error.

use std::ops::Range;

use super::error::LayoutProblem;
use super::kind::TypeIds;

/// Elements of the children of an array.
#[derive(Debug)]
pub(super) enum Referenced {
    /// The same elements of each child.
    Same(Range<u64>),
    /// Different elements of each child.
    Each(Vec<Range<u64>>),
}

impl Referenced {
    /// No element of any child.
    pub(super) const NONE: Referenced = Referenced::Same(0..0);

    /// The elements of the child at a position.
    pub(super) fn of_child(&self, position: usize) -> Range<u64> {
        match self {
            Referenced::Same(range) => range.clone(),
            Referenced::Each(ranges) => ranges.get(position).cloned().unwrap_or(0..0),
        }
    }
}

/// The range from the lowest to the highest position that was added.
#[derive(Clone, Copy)]
pub(super) struct Cover {
    low: u64,
    high: u64,
}

impl Cover {
    /// No position added yet.
    pub(super) const NOTHING: Cover = Cover { low: u64::MAX, high: 0 };

    /// Adds positions `low..high`.
    pub(super) fn add(&mut self, low: u64, high: u64) {
        self.low = self.low.min(low);
        self.high = self.high.max(high);
    }

    /// The range from the lowest to the highest position, or `0..0`.
    pub(super) fn range(self) -> Range<u64> {
        self.low.min(self.high)..self.high
    }
}

fn stray(what: &'static str, at: usize) -> LayoutProblem {
    LayoutProblem::OutOfRange { what, at }
}

fn int16(bytes: &[u8; 2]) -> i64 {
    i16::from_le_bytes(*bytes).into()
}

fn int32(bytes: &[u8; 4]) -> i64 {
    i32::from_le_bytes(*bytes).into()
}

fn int64(bytes: &[u8; 8]) -> i64 {
    i64::from_le_bytes(*bytes)
}

/// The elements from the first offset to the last. Without offsets, none.
pub(super) fn by_offsets(offsets: &[u8], wide: bool) -> Result<Range<u64>, LayoutProblem> {
    let ends = if wide {
        let offsets = offsets.as_chunks().0;
        offsets.first().map(int64).zip(offsets.last().map(int64))
    } else {
        let offsets = offsets.as_chunks().0;
        offsets.first().map(int32).zip(offsets.last().map(int32))
    };
    let Some((low, high)) = ends else { return Ok(0..0) };
    match (u64::try_from(low), u64::try_from(high)) {
        (Ok(low), Ok(high)) if low <= high => Ok(low..high),
        _ => Err(stray("offset", 0)),
    }
}

/// The elements from the lowest to the highest that list views refer to. An empty list may have any offset, and is
/// ignored.
pub(super) fn by_list_views(offsets: &[u8], sizes: &[u8], wide: bool) -> Result<Range<u64>, LayoutProblem> {
    if wide {
        list_views(offsets.as_chunks().0.iter().map(int64), sizes.as_chunks().0.iter().map(int64))
    } else {
        list_views(offsets.as_chunks().0.iter().map(int32), sizes.as_chunks().0.iter().map(int32))
    }
}

fn list_views(
    offsets: impl Iterator<Item = i64>,
    sizes: impl Iterator<Item = i64>,
) -> Result<Range<u64>, LayoutProblem> {
    let mut cover = Cover::NOTHING;
    for (at, (offset, size)) in offsets.zip(sizes).enumerate() {
        if size == 0 {
            continue;
        }
        let (Ok(offset), Ok(size)) = (u64::try_from(offset), u64::try_from(size)) else {
            return Err(stray("list view", at));
        };
        // The sum does not overflow: both are less than 2^63.
        cover.add(offset, offset + size);
    }
    Ok(cover.range())
}

/// For each child of a dense union, the elements from the lowest to the highest that are used.
pub(super) fn by_union(
    ids: &[u8],
    offsets: &[u8],
    type_ids: &TypeIds,
    children: usize,
) -> Result<Vec<Range<u64>>, LayoutProblem> {
    let mut used = vec![Cover::NOTHING; children];
    for (at, (id, offset)) in ids.iter().zip(offsets.as_chunks().0).enumerate() {
        let cover = type_ids.child(*id).and_then(|child| used.get_mut(child));
        let (Some(cover), Ok(offset)) = (cover, u64::try_from(int32(offset))) else {
            return Err(stray("union offset or type id", at));
        };
        cover.add(offset, offset + 1);
    }
    Ok(used.into_iter().map(Cover::range).collect())
}

/// The runs that hold the elements `first..first + len`, in the positions of the run ends. `len` is not 0; `width` is
/// that of a run end.
pub(super) fn by_runs(ends: &[u8], width: usize, first: u64, len: u64) -> Result<Range<u64>, LayoutProblem> {
    let last = first.checked_add(len.saturating_sub(1)).and_then(|last| i64::try_from(last).ok());
    let last = last.ok_or(LayoutProblem::Overflow { what: "the last run" })?;
    // The cast is exact: `first` is at most `last`.
    let first = first as i64;
    let (low, high, count) = match width {
        2 => runs(ends.as_chunks().0, int16, first, last),
        4 => runs(ends.as_chunks().0, int32, first, last),
        _ => runs(ends.as_chunks().0, int64, first, last),
    };
    // Run ends from a peer may be in any order.
    if high >= count || low > high {
        return Err(stray("run end", high));
    }
    Ok(low as u64..high as u64 + 1)
}

/// The positions of the runs that hold two elements, and the number of runs.
fn runs<const N: usize>(ends: &[[u8; N]], end: fn(&[u8; N]) -> i64, first: i64, last: i64) -> (usize, usize, usize) {
    let run_of = |element: i64| ends.partition_point(|bytes| end(bytes) <= element);
    (run_of(first), run_of(last), ends.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(numbers: impl IntoIterator<Item = [u8; N]>) -> Vec<u8> {
        numbers.into_iter().flatten().collect()
    }

    #[test]
    fn offsets_refer_to_the_elements_from_the_first_to_the_last() {
        let narrow = |numbers: &[i32]| by_offsets(&bytes(numbers.iter().map(|n| n.to_le_bytes())), false);
        let wide = |numbers: &[i64]| by_offsets(&bytes(numbers.iter().map(|n| n.to_le_bytes())), true);
        assert_eq!(narrow(&[3, 5, 9]).unwrap(), 3..9);
        assert_eq!(wide(&[3, 1 << 40]).unwrap(), 3..1 << 40);
        assert_eq!(narrow(&[]).unwrap(), 0..0);
        assert!(narrow(&[-1, 4]).is_err());
        assert!(wide(&[5, 4]).is_err());
    }

    #[test]
    fn empty_list_views_refer_to_nothing() {
        let found = |pairs: &[(i32, i32)]| {
            let offsets = bytes(pairs.iter().map(|pair| pair.0.to_le_bytes()));
            let sizes = bytes(pairs.iter().map(|pair| pair.1.to_le_bytes()));
            by_list_views(&offsets, &sizes, false)
        };
        assert_eq!(found(&[(7, 2), (-9, 0), (3, 1), (100, 0)]).unwrap(), 3..9);
        assert_eq!(found(&[(7, 0)]).unwrap(), 0..0);
        assert_eq!(found(&[]).unwrap(), 0..0);
        assert!(matches!(found(&[(1, 1), (-1, 1)]), Err(LayoutProblem::OutOfRange { at: 1, .. })));
        assert!(found(&[(1, -1)]).is_err());
    }

    #[test]
    fn runs_are_found_and_ends_in_disorder_are_an_error_or_harmless() {
        let found = |ends: &[i16], first, len| by_runs(&bytes(ends.iter().map(|n| n.to_le_bytes())), 2, first, len);
        assert_eq!(found(&[10, 20, 30], 9, 2).unwrap(), 0..2);
        assert_eq!(found(&[10, 20, 30], 10, 20).unwrap(), 1..3);
        assert!(found(&[10, 20, 30], 10, 21).is_err());
        assert!(found(&[], 0, 1).is_err());
        assert!(found(&[10], u64::MAX, 5).is_err());
        if let Ok(range) = found(&[30, -5, 10, 20], 9, 2) {
            assert!(range.end <= 4);
        }
    }
}
