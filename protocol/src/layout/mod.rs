//! Any record batch as a descriptor and a list of buffers, and back, without a copy.
//!
//! The lender calls [`describe`]: it gets a [`BatchDescriptor`], which travels on the control plane, and the slices of
//! the batch's own buffers that the borrower has to read. The borrower calls [`check`] before it reads a byte: the
//! descriptor is held against the schema, and the result says where in a slab each buffer goes. When the bytes are
//! there, [`rebuild`] makes arrays over them, and validates every value that Rust's arrays rely on: offsets, UTF-8,
//! dictionary keys, views, run ends, union offsets, nulls. Most of it in passes over whole buffers: [`rebuild_with`] lets
//! those who may make arrays unchecked spare Arrow's own validation, string by string.
//!
//! The order of nodes and buffers is that of Arrow IPC (depth first over the schema, validity before values). Two
//! things differ from IPC. Bitmaps keep their bit offset, so that a slice need not be shifted. And only the *live
//! range* is lent: a slice of ten strings moves ten strings, whatever the array it was cut from. Offsets that then do
//! not start at zero are lent as they stand; the descriptor carries the base, and `rebuild` subtracts it, which is the
//! only copy there is. Views, which say where in which data buffer a string is, stand as they are, too: of their data
//! buffers only the *extents* that they need are lent, each as a buffer of its own, and the borrower makes the views point
//! into those, in the slab itself ([`SlabLayout::rebases`]). So a scan that yields views into decoded pages moves what its
//! rows use of the pages. Where strings lie scattered, as after a sort, [`describe_compact`] copies them side by side.
//!
//! | type | buffers after the validity bitmap | live range | detail |
//! |---|---|---|---|
//! | null | - | - | - |
//! | boolean | bits | the bytes that hold the bits | [`Detail::Bits`] |
//! | primitive, temporal, decimal, fixed size binary | values | the rows | - |
//! | utf8, binary (small, large) | offsets, values | values from first to last offset | [`Detail::Base`] |
//! | utf8 view, binary view | views, each extent | what views point at, and gaps of less than 16 KiB | [`Detail::Views`] |
//! | list, large list, map | offsets | the child from first to last offset | [`Detail::Base`] |
//! | list view, large list view | offsets, sizes | the child from lowest to highest element referenced | [`Detail::Base`] |
//! | fixed size list, struct, sparse union | -, -, type ids | the children's rows | - |
//! | dense union | type ids, offsets | each child from lowest to highest element used | [`Detail::UnionBases`] |
//! | dictionary | keys | the whole dictionary, or nothing of it where the batch before had the same | - or [`Detail::SameValues`] |
//! | run-end encoded | - (two children: run ends, values) | the runs that the rows touch | [`Detail::Runs`] |
//!
//! [`Projection`] is the same for a part of a batch: some columns, some rows, and no byte that those do not need.
//!
//! Buffers are in native byte order, which is little-endian on every machine that this crate compiles for.
//!
//! ```
//! # use std::sync::Arc;
//! # use arrow_array::{ArrayRef, RecordBatch, StringArray};
//! # use thallus_protocol::layout::{LayoutLimits, check, describe, rebuild};
//! let names: ArrayRef = Arc::new(StringArray::from(vec![Some("ada"), None, Some("grace")]));
//! let batch = RecordBatch::try_from_iter_with_nullable([("name", names, true)])?.slice(1, 2);
//! let (descriptor, lent) = describe(&batch)?;
//! let slab = check(&batch.schema(), &descriptor, &LayoutLimits::default())?;
//! assert_eq!(slab.ranges.len(), lent.len());
//! assert_eq!(rebuild(&batch.schema(), &descriptor, &lent)?, batch);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(target_endian = "big")]
compile_error!("lent buffers are little-endian; a big-endian machine would misread them");

mod check;
mod describe;
mod descriptor;
mod dictionaries;
mod error;
mod extents;
mod project;
mod rebase;
mod rebuild;
mod shape;
mod valid;

pub(crate) use check::slab;
pub use check::{LayoutLimits, Range, SLAB_ALIGNMENT, SlabLayout, check};
pub use describe::{Described, describe, describe_after, describe_compact};
pub use descriptor::{BatchDescriptor, Detail, Extent, NodeDescriptor};
pub use dictionaries::{KeptDictionaries, LentDictionaries};
pub use error::{LayoutError, LayoutProblem};
pub use project::{Piece, Projection, Step, column_bytes};
pub use rebase::Rebase;
pub use rebuild::{Assemble, Checked, ValidArray, rebuild, rebuild_after, rebuild_with};
pub(crate) use shape::check_type;

/// The deepest nesting of types that a schema may have, a column being 1. Keeps recursion over hostile schemas bounded.
pub const MAX_DEPTH: usize = 64;
