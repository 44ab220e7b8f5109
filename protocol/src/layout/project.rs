//! The borrower's side of a batch on demand: finds the bytes of some columns and rows, and makes arrays of them.
//!
//! The part of a target that a row needs is known only after its offset has been read. So a [`Projection`] works in
//! rounds: it names the pieces of buffers that are known by now, receives their bytes, and continues until it has a
//! batch. Columns of fixed width take one round, strings and lists of numbers two, and each level of nesting by offsets
//! one more. Whole columns of any type take one round.
//!
//! [`rebuild`](super::rebuild) makes the arrays, from a descriptor cut to the rows: a part is validated as a whole
//! batch is. More than the rows need is read in two cases: a dictionary is read as a whole, and so are the run ends of
//! run-end encoded columns.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;

use super::check::{CheckedDescriptor, LayoutLimits, check};
use super::cut::{Cut, Cutter, Piece, ReadPieces, Span};
use super::descriptor::BatchDescriptor;
use super::error::{LayoutError, LayoutProblem, Within};
use super::plan::Plan;
use super::rebuild::{Assemble, ValidatingAssembler, rebuild_with};

/// The next step of a projection.
#[derive(Debug)]
pub enum Step {
    /// The bytes of these pieces must be read and passed to [`Projection::give`].
    Read(Vec<Piece>),
    /// The columns and rows. Nothing more to read.
    Done(RecordBatch),
}

/// Some columns and rows of a batch that is on loan, while they are read.
///
/// ```
/// # use std::sync::Arc;
/// # use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
/// # use thallus_protocol::layout::{LayoutLimits, Plan, Projection, Step, check, describe};
/// let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
/// let names: ArrayRef = Arc::new(StringArray::from(vec!["ada", "grace", "barbara"]));
/// let batch = RecordBatch::try_from_iter([("id", ids), ("name", names)])?;
/// let plan = Plan::new(&batch.schema())?;
/// let (descriptor, lent) = describe(&plan, &batch)?;
/// let descriptor = Arc::new(check(&plan, descriptor, &LayoutLimits::default())?);
///
/// // Of the second column, the second row: two offsets first, then five letters.
/// let mut projection = Projection::new(&descriptor, &[1], 1..2)?;
/// let mut read = Vec::new();
/// let found = loop {
///     match projection.step()? {
///         Step::Read(pieces) => {
///             read.extend(pieces.iter().map(|piece| piece.len));
///             let bytes = |piece: &_| { let thallus_protocol::layout::Piece { buffer, offset, len } = *piece;
///                 lent[buffer].slice_with_length(offset as usize, len as usize) };
///             projection.give(pieces.iter().map(bytes).collect());
///         }
///         Step::Done(batch) => break batch,
///     }
/// };
/// assert_eq!(found, batch.project(&[1])?.slice(1, 1));
/// assert_eq!(read, [8, 5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Projection {
    /// The plan of the columns alone.
    plan: Plan,
    descriptor: Arc<CheckedDescriptor>,
    spans: Vec<Span>,
    rows: Range<u64>,
    have: ReadPieces,
    asked: Vec<Piece>,
}

impl Projection {
    /// Starts the projection of these columns, in this order, and of these rows.
    ///
    /// # Errors
    /// There is no such column or row, or a dictionary is that of an earlier batch.
    pub fn new(descriptor: &Arc<CheckedDescriptor>, columns: &[usize], rows: Range<u64>) -> Result<Self, LayoutError> {
        if rows.start > rows.end || rows.end > descriptor.rows {
            return Err(LayoutProblem::TooLarge { what: "row", got: rows.end, limit: descriptor.rows }.into());
        }
        let count = descriptor.plan().columns().len();
        if let Some(&column) = columns.iter().find(|column| **column >= count) {
            let (got, limit) = (column as u64, count.saturating_sub(1) as u64);
            return Err(LayoutProblem::TooLarge { what: "column", got, limit }.into());
        }
        let all = spans(descriptor)?;
        let spans = columns.iter().map(|column| all[*column].clone()).collect();
        let plan = descriptor.plan().project(columns)?;
        let descriptor = Arc::clone(descriptor);
        Ok(Projection { plan, descriptor, spans, rows, have: ReadPieces::new(), asked: Vec::new() })
    }

    /// The pieces to read next, or the batch. Returns the same result until the bytes have been passed.
    ///
    /// # Errors
    /// The bytes that were read do not make valid arrays.
    pub fn step(&mut self) -> Result<Step, LayoutError> {
        self.step_with(&ValidatingAssembler)
    }

    /// As [`step`](Self::step), with another way to make arrays of validated parts.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_with(&mut self, assemble: &dyn Assemble) -> Result<Step, LayoutError> {
        let mut cutter = Cutter::new(&self.descriptor, &self.have);
        let rows = self.rows.end - self.rows.start;
        for (node, span) in self.plan.columns().iter().zip(&self.spans) {
            cutter.column(node, span, self.rows.start, rows).within(node.field.name())?;
        }
        let (nodes, cut) = match cutter.finish() {
            Cut::Missing(pieces) => {
                self.asked.clone_from(&pieces);
                return Ok(Step::Read(pieces));
            }
            Cut::Done(nodes, cut) => (nodes, cut),
        };
        let buffers = cut.iter().map(|buffer| buffer.len() as u64).collect();
        let descriptor = check(&self.plan, BatchDescriptor { rows, nodes, buffers }, &LayoutLimits::NONE)?;
        Ok(Step::Done(rebuild_with(&descriptor, &cut, assemble)?))
    }

    /// Passes the bytes of the pieces that [`step`](Self::step) named, in the same order. A buffer of another length is
    /// ignored.
    pub fn give(&mut self, buffers: Vec<Buffer>) {
        for (piece, buffer) in std::mem::take(&mut self.asked).into_iter().zip(buffers) {
            if buffer.len() as u64 == piece.len {
                self.have.entry(piece.buffer).or_default().push((piece.offset, buffer));
            }
        }
    }
}

/// Number of bytes on loan for each column.
///
/// # Errors
/// A dictionary is that of an earlier batch.
pub fn column_bytes(descriptor: &CheckedDescriptor) -> Result<Vec<u64>, LayoutError> {
    let sum =
        |span: &Span| descriptor.buffers[span.buffers.clone()].iter().fold(0_u64, |sum, len| sum.saturating_add(*len));
    Ok(spans(descriptor)?.iter().map(sum).collect())
}

fn spans(descriptor: &CheckedDescriptor) -> Result<Vec<Span>, LayoutError> {
    let none = ReadPieces::new();
    let mut cutter = Cutter::new(descriptor, &none);
    let columns = descriptor.plan().columns().iter();
    columns.map(|node| cutter.pass(node).within(node.field.name())).collect()
}
