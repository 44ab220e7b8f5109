//! The borrower's check, before it reads a byte, that a descriptor fits the schema and the limits.

use std::ops::Deref;

use super::descriptor::{BatchDescriptor, Detail, Extent, NodeDescriptor};
use super::error::{LayoutError, LayoutProblem, Within, at_most, equal};
use super::kind::{BufferLen, BufferRule, ChildLen, Kind};
use super::plan::{Node, Plan};
use super::rebase::Rebase;
use super::slab::{SlabLayout, slab};

/// Limits of a batch that a borrower accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutLimits {
    /// Maximum bytes of the slab, alignment included.
    pub max_bytes: u64,
    /// Maximum number of elements of any one array, rows included. Arrays of nulls or of empty structs have elements
    /// but no bytes, so that the limit on bytes does not bound them.
    pub max_len: u64,
    /// Maximum number of buffers.
    pub max_buffers: usize,
}

impl Default for LayoutLimits {
    /// 4 GiB, 2^31 - 1 elements, 1 Mi buffers.
    fn default() -> Self {
        LayoutLimits { max_bytes: 4 << 30, max_len: (1 << 31) - 1, max_buffers: 1 << 20 }
    }
}

/// Maximum number of bits of a widened bitmap: 2^33 bits are 1 GiB.
const MAX_WIDENED: u64 = 1 << 33;

impl LayoutLimits {
    /// The limits of 63-bit counters, for a batch that is in memory already.
    pub(crate) const NONE: LayoutLimits =
        LayoutLimits { max_bytes: i64::MAX as u64, max_len: i64::MAX as u64, max_buffers: usize::MAX };
}

/// A descriptor that [`check`] found to fit a plan.
///
/// It contains that plan, and [`rebuild`](super::rebuild) takes the schema from there: a descriptor cannot be rebuilt
/// by a plan against which it was not checked. Only `check` makes one, and its fields can be read but not changed:
///
/// ```compile_fail,E0594
/// # use thallus_protocol::layout::CheckedDescriptor;
/// fn forge(descriptor: &mut CheckedDescriptor) {
///     descriptor.rows = 1 << 40;
/// }
/// ```
///
/// ```compile_fail,E0451
/// # use thallus_protocol::layout::{BatchDescriptor, CheckedDescriptor, Plan, SlabLayout};
/// fn forge(plan: Plan, descriptor: BatchDescriptor, layout: SlabLayout) -> CheckedDescriptor {
///     CheckedDescriptor { plan, descriptor, layout, views: Vec::new() }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct CheckedDescriptor {
    plan: Plan,
    descriptor: BatchDescriptor,
    layout: SlabLayout,
    /// Arrays of views that still need a rebase.
    views: Vec<ViewsAt>,
}

/// Position of an array of views in a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ViewsAt {
    /// Index of their node.
    node: usize,
    /// Index of their buffer. The buffers of the extents follow it.
    buffer: usize,
}

impl Deref for CheckedDescriptor {
    type Target = BatchDescriptor;

    fn deref(&self) -> &BatchDescriptor {
        &self.descriptor
    }
}

impl CheckedDescriptor {
    /// The plan that the descriptor fits.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The range of each buffer in a slab.
    #[must_use]
    pub fn layout(&self) -> &SlabLayout {
        &self.layout
    }

    /// The descriptor alone.
    #[must_use]
    pub fn into_descriptor(self) -> BatchDescriptor {
        self.descriptor
    }

    /// The changes to views in a slab that has been read, so that [`rebuild`](super::rebuild) need not copy views. Each
    /// change must be applied, once, to the whole of its range. Afterwards the descriptor states that the views point
    /// into their extents. A second call returns nothing.
    ///
    /// Nothing is validated: a view that points outside of all extents is changed to point at no buffer, which
    /// `rebuild` reports.
    #[must_use = "the descriptor states that the views have been rebased"]
    pub fn rebases(&mut self) -> Vec<Rebase> {
        let (nodes, lens, ranges) = (&mut self.descriptor.nodes, &self.descriptor.buffers, &self.layout.ranges);
        let rebase = |at: ViewsAt| {
            let range = *ranges.get(at.buffer)?;
            let lens = lens.get(at.buffer + 1..)?.iter().copied();
            let Detail::Views(extents) = &mut nodes.get_mut(at.node)?.detail else { return None };
            let rebase = Rebase::new(range, extents, lens);
            *extents = (0..).take(extents.len()).map(|buffer| Extent { buffer, base: 0 }).collect();
            Some(rebase)
        };
        std::mem::take(&mut self.views).into_iter().filter_map(rebase).collect()
    }
}

/// Checks a descriptor against the plan and the limits: the number of arrays and buffers that the schema needs, the
/// length of each as the others require it, none too large. It takes a few steps per array, and no more memory than the
/// descriptor itself.
///
/// The bytes, which have not been read yet, are not checked; [`rebuild`](super::rebuild) validates them.
///
/// # Errors
/// The mismatch, with the field.
pub fn check(
    plan: &Plan,
    descriptor: BatchDescriptor,
    limits: &LayoutLimits,
) -> Result<CheckedDescriptor, LayoutError> {
    if descriptor.buffers.len() > limits.max_buffers {
        let (got, limit) = (descriptor.buffers.len() as u64, limits.max_buffers as u64);
        return Err(LayoutProblem::TooLarge { what: "number of buffers", got, limit }.into());
    }
    at_most("number of rows", descriptor.rows, limits.max_len)?;
    let (nodes, lens) = (descriptor.nodes.iter(), descriptor.buffers.iter());
    let mut checker = Checker { nodes, lens, descriptor: &descriptor, limits, views: Vec::new() };
    for column in plan.columns() {
        checker.array(column, Some(descriptor.rows)).within(column.field.name())?;
    }
    if !checker.nodes.as_slice().is_empty() {
        return Err(LayoutProblem::ExtraNodes { extra: checker.nodes.len() }.into());
    }
    if !checker.lens.as_slice().is_empty() {
        return Err(LayoutProblem::ExtraBuffers { extra: checker.lens.len() }.into());
    }
    let views = checker.views;
    let layout = slab(&descriptor.buffers, limits.max_bytes)?;
    Ok(CheckedDescriptor { plan: plan.clone(), descriptor, layout, views })
}

struct Checker<'a> {
    nodes: std::slice::Iter<'a, NodeDescriptor>,
    lens: std::slice::Iter<'a, u64>,
    descriptor: &'a BatchDescriptor,
    limits: &'a LayoutLimits,
    views: Vec<ViewsAt>,
}

impl Checker<'_> {
    /// Checks an array. `expected` is its length if its parent determines it. Returns the length.
    fn array(&mut self, node: &Node, expected: Option<u64>) -> Result<u64, LayoutError> {
        let of = self.nodes.next().ok_or_else(|| LayoutProblem::MissingNode)?;
        if let Some(expected) = expected {
            equal("length of the array", expected, of.len)?;
        }
        at_most("length of the array", of.len, self.limits.max_len)?;
        self.validity(of, node.has_validity)?;
        if !node.kind.accepts(&of.detail) {
            let data_type = node.field.data_type().clone();
            return Err(LayoutProblem::Detail { data_type, got: of.detail.name() }.into());
        }
        for rule in node.buffers() {
            self.buffer(*rule, of)?;
        }
        if !node.children.is_empty() || !of.detail.union_bases().is_empty() {
            self.children(node, of)?;
        }
        Ok(of.len)
    }

    fn buffer(&mut self, rule: BufferRule, of: &NodeDescriptor) -> Result<(), LayoutError> {
        let BufferRule { what, len } = rule;
        match len {
            BufferLen::Bits => self.bits(what, of.detail.first_bit(), of.len),
            BufferLen::Elements(width) => self.exactly(what, of.len, width),
            // Without elements there is no offset, not even the single one that Arrow's format requires.
            BufferLen::Offsets(width) => {
                self.exactly(what, if of.len == 0 { 0 } else { of.len.saturating_add(1) }, width)
            }
            BufferLen::Referenced => {
                let got = self.next_len(what)?;
                at_most("bytes without elements", got, if of.len == 0 { 0 } else { u64::MAX })
            }
            BufferLen::Extents => self.extents(of.detail.extents(), of.len),
        }
    }

    fn children(&mut self, node: &Node, of: &NodeDescriptor) -> Result<(), LayoutError> {
        if let Kind::DenseUnion(_) = node.kind {
            let bases = of.detail.union_bases().len() as u64;
            equal("number of union bases", node.children.len() as u64, bases)?;
        }
        if let ChildLen::Runs = node.child_len {
            at_most("offset into the first run", of.detail.run_offset(), (i64::MAX as u64).saturating_sub(of.len))?;
        }
        if let Detail::SameValues = of.detail {
            return Ok(());
        }
        let mut runs = None;
        for child in node.children.iter() {
            let expected = match node.child_len {
                ChildLen::Times(times) => Some(self.elements(node, child, of, times)?),
                ChildLen::Runs => runs,
                ChildLen::ByRows | ChildLen::Free => None,
            };
            let len = self.array(child, expected).within(child.field.name())?;
            match node.child_len {
                ChildLen::Runs => at_most("number of runs", len, of.len)?,
                ChildLen::ByRows if of.len == 0 => at_most("elements of empty lists", len, 0)?,
                ChildLen::ByRows | ChildLen::Times(_) | ChildLen::Free => {}
            }
            runs = Some(len);
        }
        Ok(())
    }

    fn elements(&self, node: &Node, child: &Node, of: &NodeDescriptor, times: u64) -> Result<u64, LayoutError> {
        let items =
            of.len.checked_mul(times).ok_or_else(|| LayoutProblem::Overflow { what: "the number of elements" })?;
        // Arrow widens a fixed size list's bitmap to its elements, to check whether their nulls are masked. Elements
        // may have no bytes, so that no other limit bounds this allocation.
        if matches!(node.kind, Kind::FixedList { .. }) && of.nulls > 0 && !child.field.is_nullable() {
            at_most("elements under a bitmap", items, MAX_WIDENED.min(self.limits.max_len))?;
        }
        Ok(items)
    }

    fn validity(&mut self, of: &NodeDescriptor, allowed: bool) -> Result<(), LayoutError> {
        at_most("number of nulls", of.nulls, if allowed { of.len } else { 0 })?;
        if of.nulls > 0 {
            return self.bits("validity", of.null_bit, of.len);
        }
        at_most("first bit without a bitmap", of.null_bit.into(), 0)
    }

    fn bits(&mut self, what: &'static str, first: u8, len: u64) -> Result<(), LayoutError> {
        at_most("first bit", first.into(), if len == 0 { 0 } else { 7 })?;
        let bits =
            len.checked_add(first.into()).ok_or_else(|| LayoutProblem::Overflow { what: "the number of bits" })?;
        self.exactly(what, bits.div_ceil(8), 1)
    }

    fn extents(&mut self, extents: &[Extent], len: u64) -> Result<(), LayoutError> {
        at_most("extents without views", extents.len() as u64, if len == 0 { 0 } else { u64::MAX })?;
        if !Extent::are_whole(extents) {
            // The node and the buffer of views that come before the extents were taken last.
            let node = self.descriptor.nodes.len() - self.nodes.as_slice().len() - 1;
            let buffer = self.descriptor.buffers.len() - self.lens.as_slice().len() - 1;
            self.views.push(ViewsAt { node, buffer });
        }
        let mut end = 0;
        for &Extent { buffer, base } in extents {
            let len = self.next_len("data")?;
            at_most("length of an extent", len, 1 << 32)?;
            // The address of a byte if all data buffers, each of at most 4 GiB, lay one after the other.
            let start = u64::from(buffer) << 32 | u64::from(base);
            if len == 0 || start < end {
                return Err(LayoutProblem::Extent { buffer, base, len }.into());
            }
            at_most("end of an extent", u64::from(base) + len, 1 << 32)?;
            end = start.saturating_add(len);
        }
        Ok(())
    }

    fn exactly(&mut self, what: &'static str, count: u64, width: u64) -> Result<(), LayoutError> {
        let expected =
            count.checked_mul(width).ok_or_else(|| LayoutProblem::Overflow { what: "the buffer's length" })?;
        equal(what, expected, self.next_len(what)?)
    }

    fn next_len(&mut self, what: &'static str) -> Result<u64, LayoutError> {
        Ok(*self.lens.next().ok_or_else(|| LayoutProblem::MissingBuffer { what })?)
    }
}
