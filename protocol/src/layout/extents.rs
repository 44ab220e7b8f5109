//! The lender's side of views: finds the parts of their data buffers that they need.

use arrow_buffer::{Buffer, NullBuffer};
use arrow_data::{ByteView, MAX_INLINE_VIEW_LEN};

use super::descriptor::Extent;
use super::error::LayoutProblem;

/// A gap between two strings is read along with them if it has at most this many bytes. One more read, with all its
/// work at both ends, takes about as long as reading this many bytes.
pub(super) const READ_COST: u64 = 16 * 1024;

/// Copying a byte of a string takes about as long as moving this many bytes.
const COPY_COST: u64 = 2;

/// Strings are not copied side by side if that saves fewer bytes than this.
const LEAST_SAVED: u64 = 64 * 1024;

/// The parts of its data buffers that an array of views needs.
pub(super) struct Needed {
    /// In ascending order, more than [`READ_COST`] apart.
    pub(super) extents: Vec<(Extent, u64)>,
    /// Bytes of all strings that do not lie within their views. A string that several views share is counted several
    /// times.
    live: u64,
}

/// Whether a view points into a data buffer.
fn points(view: u128) -> bool {
    view as u32 > MAX_INLINE_VIEW_LEN
}

/// Finds the extents. The view of a null may have any target, and needs nothing.
///
/// This is one pass over the views. Views of a scan point at one string after the other; views into a dictionary point
/// back and forth within it. As long as they stay within reach of the current needed range, no lookup is necessary.
pub(super) fn needed(views: &[u128], nulls: Option<&NullBuffer>, data: &[Buffer]) -> Result<Needed, LayoutProblem> {
    let mut finder = Finder { data, views: views.len(), cells: vec![Vec::new(); data.len()] };
    let live = match nulls {
        None => finder.walk(views.iter().copied())?,
        Some(nulls) => finder.walk(views.iter().zip(nulls).map(|(view, valid)| if valid { *view } else { 0 }))?,
    };
    Ok(Needed { extents: finder.extents(), live })
}

/// The needed ranges of each data buffer. Each buffer is divided into cells of equal size. A cell has the first needed
/// byte of all ranges that begin in it, and the byte after the last. This avoids a sort.
struct Finder<'a> {
    data: &'a [Buffer],
    views: usize,
    cells: Vec<Vec<(u64, u64)>>,
}

/// A cell in which no range begins.
const EMPTY: (u64, u64) = (u64::MAX, 0);

impl Finder<'_> {
    /// Logarithm of the size of the smallest cell in bytes. A gap of [`READ_COST`] does not lie within a cell, unless
    /// there are few views.
    const SHIFT: u32 = READ_COST.ilog2() - 2;

    /// Logarithm of the size of a cell. The number of cells is about that of the views, or small: for a few views into
    /// a large buffer it must not be expensive to clear many cells.
    fn shift(&self, buffer: &Buffer) -> u32 {
        let cells = self.views.clamp(256, 1 << 20);
        let size = (buffer.len() / cells).checked_next_power_of_two().unwrap_or(1 << 32);
        size.ilog2().max(Self::SHIFT)
    }

    /// Adds all strings that views point at. Returns the sum of their lengths; a string that several views share is
    /// counted several times.
    fn walk(&mut self, views: impl Iterator<Item = u128>) -> Result<u64, LayoutProblem> {
        let (mut live, mut buffer, mut low, mut high) = (0_u64, 0_u32, u64::MAX, 0_u64);
        for view in views.filter(|view| points(*view)) {
            let (len, pointer) = (u64::from(view as u32), (view >> 64) as u64);
            let start = pointer >> 32;
            let end = start + len;
            live += len;
            if buffer == pointer as u32 && low <= start && start <= high + READ_COST {
                high = high.max(end);
            } else {
                self.add(buffer, low, high)?;
                (buffer, low, high) = (pointer as u32, start, end);
            }
        }
        self.add(buffer, low, high)?;
        Ok(live)
    }

    fn add(&mut self, buffer: u32, low: u64, high: u64) -> Result<(), LayoutProblem> {
        if low > high {
            return Ok(());
        }
        // Offsets of views have 32 bits.
        let holds = |data: &&Buffer| high <= (data.len() as u64).min(1 << 32);
        let broken = || LayoutProblem::Broken { what: "data" };
        let data = self.data.get(buffer as usize).filter(holds).ok_or_else(broken)?;
        let shift = self.shift(data);
        let cells = self.cells.get_mut(buffer as usize).ok_or_else(broken)?;
        if cells.is_empty() {
            cells.resize((data.len() >> shift) + 1, EMPTY);
        }
        let cell = cells.get_mut((low >> shift) as usize).ok_or_else(broken)?;
        *cell = (cell.0.min(low), cell.1.max(high));
        Ok(())
    }

    fn extents(&self) -> Vec<(Extent, u64)> {
        let mut extents = Vec::new();
        for (buffer, cells) in (0..).zip(&self.cells) {
            let mut current = EMPTY;
            let mut close = |(low, high): (u64, u64)| {
                if let (true, Ok(base)) = (low < high, u32::try_from(low)) {
                    extents.push((Extent { buffer, base }, high - low));
                }
            };
            for &(low, high) in cells.iter().filter(|cell| cell.0 <= cell.1) {
                if low > current.1.saturating_add(READ_COST) || current == EMPTY {
                    close(current);
                    current = (low, high);
                } else {
                    current.1 = current.1.max(high);
                }
            }
            close(current);
        }
        extents
    }
}

impl Needed {
    /// Whether copying the strings side by side is cheaper than moving the bytes between them. This is so after a sort
    /// or a join that picked the strings from all over its input.
    pub(super) fn is_sparse(&self, views: usize) -> bool {
        let reads = self.extents.len() as u64 * READ_COST;
        let moved = self.extents.iter().fold(reads, |sum, extent| sum + extent.1);
        let copied = self.live.saturating_add(views as u64 * 16);
        moved > copied.saturating_mul(COPY_COST).saturating_add(LEAST_SAVED) && u32::try_from(self.live).is_ok()
    }

    /// Copies the strings side by side. Returns the views and the one data buffer that they point into.
    pub(super) fn gather(
        &self,
        views: &[u128],
        nulls: Option<&NullBuffer>,
        data: &[Buffer],
    ) -> Option<(Buffer, Buffer)> {
        let mut gathered = Vec::with_capacity(usize::try_from(self.live).ok()?);
        let mut moved = Vec::with_capacity(views.len());
        for (at, &view) in views.iter().enumerate() {
            moved.push(if nulls.is_some_and(|nulls| nulls.is_null(at)) {
                0
            } else if points(view) {
                let mut view = ByteView::from(view);
                let start = view.offset as usize;
                let bytes = data.get(view.buffer_index as usize)?.get(start..start + view.length as usize)?;
                (view.buffer_index, view.offset) = (0, u32::try_from(gathered.len()).ok()?);
                gathered.extend_from_slice(bytes);
                view.as_u128()
            } else {
                view
            });
        }
        Some((moved.into(), gathered.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(buffer_index: u32, offset: u32, length: u32) -> u128 {
        ByteView { length, prefix: 0, buffer_index, offset }.as_u128()
    }

    fn found(views: &[u128], nulls: Option<&NullBuffer>) -> Vec<(u32, u32, u64)> {
        let data = vec![Buffer::from_vec(vec![b'x'; 1 << 20]); 3];
        let needed = needed(views, nulls, &data).unwrap();
        needed.extents.iter().map(|(extent, len)| (extent.buffer, extent.base, *len)).collect()
    }

    #[test]
    fn near_strings_are_one_extent_and_distant_ones_are_not() {
        let gap = READ_COST as u32;
        let near: Vec<u128> = (0..100).map(|n| view(1, 1000 + n * 31, 27)).collect();
        assert_eq!(found(&near, None), [(1, 1000, 99 * 31 + 27)]);
        let backwards: Vec<u128> = near.iter().rev().copied().collect();
        assert_eq!(found(&backwards, None), [(1, 1000, 99 * 31 + 27)]);
        // One gap of exactly the maximum, and one that is a byte longer.
        assert_eq!(found(&[view(0, 0, 20), view(0, 20 + gap, 20)], None), [(0, 0, 40 + READ_COST)]);
        let far = [view(0, 0, 20), view(0, 21 + gap, 20)];
        assert_eq!(found(&far, None), [(0, 0, 20), (0, 21 + gap, 20)]);
        // Back and forth between buffers and places, with one string within another.
        let places = [view(2, 900_000, 50), view(0, 5, 100), view(2, 10, 13), view(0, 20, 20), view(2, 900_010, 20)];
        assert_eq!(found(&places, None), [(0, 5, 100), (2, 10, 13), (2, 900_000, 50)]);
    }

    #[test]
    fn neither_short_strings_nor_nulls_need_anything() {
        assert_eq!(found(&[view(9, 5, 12), view(9, 5, 0)], None), []);
        let nulls = NullBuffer::from(vec![false, true]);
        assert_eq!(found(&[view(9, 0, 100), view(0, 7, 100)], Some(&nulls)), [(0, 7, 100)]);
    }

    #[test]
    fn views_that_point_nowhere_are_an_error() {
        let data = [Buffer::from_vec(vec![b'x'; 100])];
        for stray in [view(1, 0, 20), view(0, 81, 20), view(0, u32::MAX, u32::MAX)] {
            for views in [vec![stray], vec![stray, view(0, 0, 20)], vec![view(0, 0, 20), stray]] {
                assert!(matches!(needed(&views, None, &data), Err(LayoutProblem::Broken { what: "data" })));
            }
        }
    }

    #[test]
    fn scattered_strings_are_copied_and_those_of_a_scan_are_not() {
        let data = vec![Buffer::from_vec(vec![b'x'; 1 << 20]); 3];
        let is_sparse = |views: &[u128]| needed(views, None, &data).unwrap().is_sparse(views.len());
        let scan: Vec<u128> = (0..30_000).map(|n| view(n / 10_000, n % 10_000 * 31, 27)).collect();
        assert!(!is_sparse(&scan));
        let half: Vec<u128> = scan.iter().step_by(2).copied().collect();
        assert!(!is_sparse(&half));
        let sorted: Vec<u128> = (0..300).map(|n| view(n % 3, n * 7919 % 1000 * 1000, 27)).collect();
        assert!(is_sparse(&sorted));
        let dictionary: Vec<u128> = (0..30_000).map(|n| view(0, n * 7919 % 1000 * 31, 27)).collect();
        assert!(!is_sparse(&dictionary));
    }
}
