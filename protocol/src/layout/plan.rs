//! A schema, compiled once for all batches of a stream.

use std::fmt;
use std::sync::Arc;

use arrow_schema::{Field, FieldRef, SchemaRef};

use super::descriptor::Detail;
use super::error::{LayoutError, LayoutProblem, Within};
use super::kind::{BufferLen, BufferRule, BufferRules, ChildLen, Kind};

/// Maximum nesting of types in a schema; a column counts as 1. It bounds recursion over hostile schemas.
pub const MAX_DEPTH: usize = 64;

/// The layout of a schema's batches: the arrays in order, the buffers of each, and the rules for their lengths.
///
/// Each end of a stream compiles the plan once, from the stream's schema, and uses it for every batch. Clones share it.
#[derive(Clone)]
pub struct Plan(Arc<Compiled>);

struct Compiled {
    schema: SchemaRef,
    columns: Vec<Node>,
}

/// One array of a plan.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Name, type and nullability. The values of a dictionary, which have no field, are named `values`.
    pub(crate) field: FieldRef,
    pub(crate) kind: Kind,
    /// Whether the array has a validity bitmap, before its other buffers.
    pub(crate) has_validity: bool,
    rules: BufferRules,
    pub(super) child_len: ChildLen,
    pub(crate) children: Arc<[Node]>,
}

impl Plan {
    /// Compiles a schema.
    ///
    /// # Errors
    /// A type that no array can have, or that is nested deeper than [`MAX_DEPTH`], with the field.
    pub fn new(schema: &SchemaRef) -> Result<Self, LayoutError> {
        let mut dictionaries = 0;
        let compile = |field: &FieldRef| Node::compile(field, 0, &mut dictionaries).within(field.name());
        let columns = schema.fields().iter().map(compile).collect::<Result<_, _>>()?;
        Ok(Plan(Arc::new(Compiled { schema: Arc::clone(schema), columns })))
    }

    /// The schema that was compiled.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.0.schema
    }

    pub(crate) fn columns(&self) -> &[Node] {
        &self.0.columns
    }

    /// A plan of these columns alone, in this order. Each of them must exist.
    pub(super) fn project(&self, columns: &[usize]) -> Result<Self, LayoutError> {
        let schema = Arc::new(self.0.schema.project(columns)?);
        let columns = columns.iter().filter_map(|column| self.0.columns.get(*column)).cloned().collect();
        Ok(Plan(Arc::new(Compiled { schema, columns })))
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Plan").field(&self.0.schema).finish()
    }
}

impl Node {
    fn compile(field: &FieldRef, depth: usize, dictionaries: &mut usize) -> Result<Self, LayoutError> {
        if depth >= MAX_DEPTH {
            return Err(LayoutProblem::TooDeep { limit: MAX_DEPTH }.into());
        }
        let (mut kind, fields) = Kind::of(field.data_type())?;
        let mut compile = |field: &FieldRef| Node::compile(field, depth + 1, dictionaries).within(field.name());
        let children: Arc<[Node]> = match &fields[..] {
            // This makes no allocation.
            [] => Arc::default(),
            fields => fields.iter().map(&mut compile).collect::<Result<_, _>>()?,
        };
        if let (Kind::Dictionary { number, .. }, [values]) = (&mut kind, &children[..])
            && values.kind.is_shareable()
        {
            *number = Some(*dictionaries);
            *dictionaries += 1;
        }
        let (has_validity, rules, child_len) = (kind.has_validity(), kind.buffers(), kind.child_len());
        Ok(Node { field: Arc::clone(field), kind, has_validity, rules, child_len, children })
    }

    /// Compiles a single array, outside of any schema.
    pub(crate) fn alone(field: Field) -> Result<Self, LayoutError> {
        Node::compile(&Arc::new(field), 0, &mut 0)
    }

    /// The array's own buffers after its validity bitmap, in order.
    pub(crate) fn buffers(&self) -> &[BufferRule] {
        self.rules.as_slice()
    }

    /// Number of an array's own buffers with this detail, without its validity bitmap.
    pub(super) fn buffer_count(&self, detail: &Detail) -> usize {
        self.buffers().iter().map(|rule| if rule.len == BufferLen::Extents { detail.extents().len() } else { 1 }).sum()
    }

    /// The first array, this one or one within it, that satisfies a predicate. Parents come before children.
    pub(crate) fn find(&self, is: &dyn Fn(&Node) -> bool) -> Option<&Node> {
        if is(self) { Some(self) } else { self.children.iter().find_map(|child| child.find(is)) }
    }
}
