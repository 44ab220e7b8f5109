//! The lender's memory, as one-sided reads see it: cells that hold one buffer each, and lease words.

use thallus_protocol::{LeaseId, RegionId, RemoteRange, StreamId};

pub(crate) const WORDS: RegionId = RegionId(1);
pub(crate) const DATA: RegionId = RegionId(2);
pub(crate) const WORDS_BASE: u64 = 0x1000;
pub(crate) const DATA_BASE: u64 = 1 << 32;
pub(crate) const CELL: u64 = 1 << 20;
pub(crate) const CELLS: u64 = 1 << 16;
pub(crate) const PROBE: u64 = 0x5555_aaaa;
/// What stands in a cell that nobody has on loan.
const POISON: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Cell {
    tag: u64,
    lease: Option<LeaseId>,
}

/// Memory and the way to it.
#[derive(Debug)]
pub(crate) struct Memory {
    cells: Vec<Cell>,
    free: Vec<u64>,
    pub(crate) words: Vec<u64>,
    /// The lender has cut the borrower off, and the fabric enforces it; or the lender's endpoint failed.
    pub(crate) refuses: bool,
    /// Reads are swallowed.
    pub(crate) blackhole: bool,
}

/// What stands in a buffer of a batch: one number for its bytes.
pub(crate) fn tag(stream: StreamId, seq: u64, buffer: usize) -> u64 {
    (u64::from(stream.0) << 40) | (seq << 8) | buffer as u64
}

impl Memory {
    pub(crate) fn new(slots: u32) -> Self {
        let mut words = vec![0; slots as usize + 1];
        words[slots as usize] = PROBE;
        Memory { cells: Vec::new(), free: Vec::new(), words, refuses: false, blackhole: false }
    }

    /// Puts a buffer somewhere, the place that was freed last first, so that reuse is quick.
    pub(crate) fn put(&mut self, lease: LeaseId, tag: u64) -> u64 {
        let cell = Cell { tag, lease: Some(lease) };
        let index = self.free.pop().unwrap_or_else(|| {
            self.cells.push(cell);
            self.cells.len() as u64 - 1
        });
        assert!(index < CELLS);
        self.cells[index as usize] = cell;
        DATA_BASE + index * CELL
    }

    /// The lease has ended: what was there is gone at once.
    pub(crate) fn free(&mut self, address: u64) {
        let index = (address - DATA_BASE) / CELL;
        self.cells[index as usize] = Cell { tag: POISON, lease: None };
        self.free.push(index);
    }

    pub(crate) fn lease_at(&self, address: u64) -> Option<LeaseId> {
        self.cells[((address - DATA_BASE) / CELL) as usize].lease
    }

    /// What a read finds now.
    pub(crate) fn read(&self, at: RemoteRange) -> u64 {
        if at.region == WORDS {
            assert_eq!((at.len, at.address % 8), (8, 0));
            return self.words[((at.address - WORDS_BASE) / 8) as usize];
        }
        assert!((at.address - DATA_BASE) % CELL + at.len <= CELL, "a read of two places at once");
        self.cells[((at.address - DATA_BASE) / CELL) as usize].tag
    }
}
