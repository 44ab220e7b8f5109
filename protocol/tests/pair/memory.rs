//! The memory of a lender for one-sided reads: cells with one buffer each, and lease words.

use thallus_protocol::{LeaseId, RegionId, RemoteRange, StreamId};

pub(crate) const WORDS: RegionId = RegionId(1);
pub(crate) const DATA: RegionId = RegionId(2);
pub(crate) const WORDS_BASE: u64 = 0x1000;
pub(crate) const DATA_BASE: u64 = 1 << 32;
pub(crate) const CELL: u64 = 1 << 20;
pub(crate) const CELLS: u64 = 1 << 16;
pub(crate) const PROBE: u64 = 0x5555_aaaa;
/// Content of a cell that is not on loan.
const POISON: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Cell {
    tag: u64,
    lease: Option<LeaseId>,
}

/// Memory of one end, and the state of the path to it.
#[derive(Debug)]
pub(crate) struct Memory {
    cells: Vec<Cell>,
    free: Vec<u64>,
    pub(crate) words: Vec<u64>,
    /// The fabric refuses reads, because the lender has revoked access or its endpoint has failed.
    pub(crate) refuses: bool,
    /// Reads never complete.
    pub(crate) blackhole: bool,
}

/// The content of a buffer of a batch: one number for all its bytes.
pub(crate) fn tag(stream: StreamId, seq: u64, buffer: usize) -> u64 {
    (u64::from(stream.0) << 40) | (seq << 8) | buffer as u64
}

impl Memory {
    pub(crate) fn new(slots: u32) -> Self {
        let mut words = vec![0; slots as usize + 1];
        words[slots as usize] = PROBE;
        Memory { cells: Vec::new(), free: Vec::new(), words, refuses: false, blackhole: false }
    }

    /// Stores a buffer in the cell that was freed last, so that cells are reused quickly.
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

    /// Overwrites and frees a cell whose lease has ended.
    pub(crate) fn free(&mut self, address: u64) {
        let index = (address - DATA_BASE) / CELL;
        self.cells[index as usize] = Cell { tag: POISON, lease: None };
        self.free.push(index);
    }

    pub(crate) fn lease_at(&self, address: u64) -> Option<LeaseId> {
        self.cells[((address - DATA_BASE) / CELL) as usize].lease
    }

    /// The content that a read finds now.
    pub(crate) fn read(&self, at: RemoteRange) -> u64 {
        if at.region == WORDS {
            assert_eq!((at.len, at.address % 8), (8, 0));
            return self.words[((at.address - WORDS_BASE) / 8) as usize];
        }
        assert!((at.address - DATA_BASE) % CELL + at.len <= CELL, "a read crosses the end of its cell");
        self.cells[((at.address - DATA_BASE) / CELL) as usize].tag
    }
}
