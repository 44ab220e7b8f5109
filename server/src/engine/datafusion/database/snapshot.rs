//! The content of a database after one commit. It never changes: a commit makes another one.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_schema::SchemaRef;
use tokio::sync::OnceCell;

use super::super::names::{SCHEMA, may_be_unquoted};
use super::super::opened::Opened;
use super::name::Name;
use super::stored_file::StoredFile;
use crate::catalog::Format;

/// The content of a database.
#[derive(Clone, Debug)]
pub(in super::super) struct Snapshot {
    /// Number of commits so far.
    pub(in super::super) commit: u64,
    /// The schemas by name, always with [`SCHEMA`].
    pub(super) schemas: BTreeMap<String, Objects>,
}

/// The tables and views of a schema, by name. No two names differ in case only.
pub(super) type Objects = BTreeMap<String, Object>;

/// A table or a view.
#[derive(Clone, Debug)]
pub(in super::super) enum Object {
    Table(Arc<StoredTable>),
    View(Arc<StoredView>),
}

impl Snapshot {
    /// A database without tables.
    pub(super) fn empty() -> Self {
        Snapshot { commit: 0, schemas: BTreeMap::from([(SCHEMA.to_owned(), Objects::new())]) }
    }

    /// The schema that a name means, with its own spelling.
    pub(super) fn schema(&self, name: &str) -> Option<(&str, &Objects)> {
        meant(&self.schemas, name).map(|(name, objects)| (name.as_str(), objects))
    }

    /// The table or view that a name means, with its own spelling.
    pub(super) fn find(&self, name: &Name) -> Option<(Name, &Object)> {
        let (schema, objects) = self.schema(&name.schema)?;
        let (object, found) = meant(objects, &name.object)?;
        Some((Name { schema: schema.to_owned(), object: object.clone() }, found))
    }

    /// All tables, with their names.
    pub(in super::super) fn tables(&self) -> impl Iterator<Item = (Name, &Arc<StoredTable>)> {
        let objects = self.schemas.iter().flat_map(|(schema, objects)| {
            objects.iter().map(|(object, found)| (Name { schema: schema.clone(), object: object.clone() }, found))
        });
        objects.filter_map(|(name, object)| match object {
            Object::Table(table) => Some((name, table)),
            Object::View(_) => None,
        })
    }

    /// The names of the tables and views of the schema [`SCHEMA`].
    pub(in super::super) fn public_names(&self) -> impl Iterator<Item = &String> {
        self.schemas.get(SCHEMA).into_iter().flat_map(BTreeMap::keys)
    }
}

/// The entry of exactly this name, or else the one that differs in case only, if the name may come from an identifier
/// without quotes.
fn meant<'a, T>(entries: &'a BTreeMap<String, T>, name: &str) -> Option<(&'a String, &'a T)> {
    let fits = || entries.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    entries.get_key_value(name).or_else(|| may_be_unquoted(name).then(fits).flatten())
}

/// A table of the database.
#[derive(Debug)]
pub(in super::super) struct StoredTable {
    pub(in super::super) schema: SchemaRef,
    pub(in super::super) format: Format,
    /// The files with the rows, in the order of their commits.
    pub(in super::super) files: Vec<Arc<StoredFile>>,
    /// The files as they were looked at, once a query has needed them.
    pub(super) opened: OnceCell<Arc<Opened>>,
    /// The same of the commit before, with a part of the files.
    pub(super) before: Option<Arc<Opened>>,
}

impl StoredTable {
    pub(super) fn new(schema: SchemaRef, format: Format, files: Vec<Arc<StoredFile>>) -> Self {
        StoredTable { schema, format, files, opened: OnceCell::new(), before: None }
    }

    /// The table with more rows.
    pub(super) fn with_more(&self, more: &[Arc<StoredFile>]) -> Self {
        let files = self.files.iter().chain(more).cloned().collect();
        let before = self.opened.get().or(self.before.as_ref()).cloned();
        StoredTable { before, ..StoredTable::new(Arc::clone(&self.schema), self.format, files) }
    }

    pub(in super::super) fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.rows).sum()
    }

    pub(in super::super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// A view of the database.
#[derive(Debug, PartialEq)]
pub(in super::super) struct StoredView {
    /// The statement that creates it.
    pub(super) sql: String,
    /// The schema of names without one in the statement.
    pub(super) default_schema: String,
    /// The columns when it was created.
    pub(super) schema: SchemaRef,
    /// The nesting of the statement, see `guard`.
    pub(super) nesting: usize,
    /// The tables and views that the statement names.
    pub(super) reads: Vec<Name>,
}
