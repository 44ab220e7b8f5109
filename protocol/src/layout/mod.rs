//! Any record batch as a descriptor and a list of buffers, and back, without a copy.
//!
//! Both ends compile the stream's schema into a [`Plan`] once. The lender calls [`describe`] for each batch. It returns
//! a [`BatchDescriptor`], which travels on the control connection, and the slices of the batch's own buffers that the
//! borrower has to read. The borrower calls [`check`] before it reads a byte: it checks the descriptor against the
//! plan, and the resulting [`CheckedDescriptor`] contains the range of each buffer in a slab. After the read,
//! [`rebuild`] makes arrays over the bytes, and validates every value that Rust's arrays rely on: offsets, UTF-8,
//! dictionary keys, views, run ends, union offsets, nulls. Most of these checks are passes over whole buffers.
//! [`rebuild_with`] allows callers that may make arrays unchecked to avoid Arrow's own validation of each string.
//!
//! The order of nodes and buffers is that of Arrow IPC (depth first over the schema, validity before values). Two
//! things differ from IPC:
//! - Bitmaps keep their bit offset, so that a slice need not be shifted.
//! - Only the *live range* is lent: a slice of ten strings moves ten strings, however long its source array is.
//!
//! Offsets of a slice, which may not start at zero, are lent unchanged. The descriptor contains their base, and
//! `rebuild` subtracts it; this is the only copy. Views are lent unchanged, too. Of their data buffers only the needed
//! *extents* are lent, each as a buffer of its own. The borrower makes the views point into the extents, in the slab
//! itself ([`CheckedDescriptor::rebases`]). So a scan that returns views into decoded pages moves only the used parts
//! of the pages. If strings lie scattered, as after a sort, [`describe_compact`] copies them side by side.
//!
//! | type | buffers after the validity bitmap | live range | detail |
//! |---|---|---|---|
//! | null | - | - | - |
//! | boolean | bits | the bytes that contain the bits | [`Detail::Bits`] |
//! | primitive, temporal, decimal, fixed size binary | values | the rows | - |
//! | utf8, binary (small, large) | offsets, values | values from first to last offset | [`Detail::Base`] |
//! | utf8 view, binary view | views, each extent | targets of views, gaps of at most 16 KiB | [`Detail::Views`] |
//! | list, large list, map | offsets | the child from first to last offset | [`Detail::Base`] |
//! | list view, large list view | offsets, sizes | the child from lowest to highest element | [`Detail::Base`] |
//! | fixed size list, struct, sparse union | -, -, type ids | the children's rows | - |
//! | dense union | type ids, offsets | each child from lowest to highest element used | [`Detail::UnionBases`] |
//! | dictionary | keys | the whole dictionary | - |
//! | dictionary equal to that of the previous batch | keys | none of the dictionary | [`Detail::SameValues`] |
//! | run-end encoded | - (two children: run ends, values) | the runs of the rows | [`Detail::Runs`] |
//!
//! [`Projection`] does the same for a part of a batch: some columns and rows, and no bytes that they do not need.
//!
//! Buffers are in native byte order, which is little-endian on every machine that this crate compiles for.
//!
//! ```
//! # use std::sync::Arc;
//! # use arrow_array::{ArrayRef, RecordBatch, StringArray};
//! # use thallus_protocol::layout::{LayoutLimits, Plan, check, describe, rebuild};
//! let names: ArrayRef = Arc::new(StringArray::from(vec![Some("ada"), None, Some("grace")]));
//! let batch = RecordBatch::try_from_iter_with_nullable([("name", names, true)])?.slice(1, 2);
//! let plan = Plan::new(&batch.schema())?;
//! let (descriptor, lent) = describe(&plan, &batch)?;
//! let checked = check(&plan, descriptor, &LayoutLimits::default())?;
//! assert_eq!(checked.layout().ranges.len(), lent.len());
//! assert_eq!(rebuild(&checked, &lent)?, batch);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(target_endian = "big")]
compile_error!("lent buffers are little-endian; a big-endian machine would misread them");

mod check;
mod cut;
mod describe;
mod descriptor;
mod dictionaries;
mod error;
mod extents;
mod kind;
mod plan;
mod project;
mod rebase;
mod rebuild;
mod referenced;
mod slab;
mod valid;

pub use check::{CheckedDescriptor, LayoutLimits, check};
pub use cut::Piece;
pub use describe::{Described, describe, describe_after, describe_compact};
pub use descriptor::{BatchDescriptor, Detail, Extent, NodeDescriptor};
pub use dictionaries::{KeptDictionaries, LentDictionaries};
pub use error::{LayoutError, LayoutProblem};
pub(crate) use kind::{BufferLen, Kind};
pub(crate) use plan::Node;
pub use plan::{MAX_DEPTH, Plan};
pub use project::{Projection, Step, column_bytes};
pub use rebase::Rebase;
pub use rebuild::{Assemble, ValidArray, ValidatingAssembler, rebuild, rebuild_after, rebuild_with};
pub(crate) use slab::slab;
pub use slab::{Range, SLAB_ALIGNMENT, SlabLayout};
