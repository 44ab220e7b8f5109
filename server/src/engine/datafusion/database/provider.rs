//! The catalog of one query: the database as it was when the query was planned, and the operator's tables.

use std::sync::Arc;

use arrow_schema::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, Session, TableProvider};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;

use super::super::names::{CATALOG, SCHEMA, SERVER_SCHEMA};
use super::super::scan::FilesTable;
use super::super::tables::Tables;
use super::name::Name;
use super::names::is_catalog;
use super::snapshot::{Object, Snapshot, StoredView};
use super::{Database, views};

/// The catalogs: one.
#[derive(Clone, Debug)]
pub(in super::super) struct Catalogs(Arc<Content>);

#[derive(Debug)]
struct Content {
    database: Arc<Database>,
    snapshot: Arc<Snapshot>,
    tables: Arc<Tables>,
    about: Arc<dyn SchemaProvider>,
}

impl Catalogs {
    /// The catalog for one query: the database as it is now, the operator's tables, and the schema about the server.
    pub(in super::super) fn new(
        database: &Arc<Database>,
        tables: &Arc<Tables>,
        about: Arc<dyn SchemaProvider>,
    ) -> Self {
        let (database, snapshot, tables) = (Arc::clone(database), database.snapshot(), Arc::clone(tables));
        Catalogs(Arc::new(Content { database, snapshot, tables, about }))
    }

    /// The content of the database.
    pub(in super::super) fn snapshot(&self) -> &Arc<Snapshot> {
        &self.0.snapshot
    }

    pub(super) fn database(&self) -> &Arc<Database> {
        &self.0.database
    }

    pub(super) fn tables(&self) -> &Tables {
        &self.0.tables
    }

    /// The names of the tables of the schema [`SCHEMA`].
    pub(in super::super) fn public_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.0.snapshot.public_names().cloned().collect();
        let of_operator = self.0.tables.names();
        names.extend(of_operator.into_iter().filter(|name| !self.0.snapshot.public_names().any(|known| known == name)));
        names.sort();
        names
    }

    /// A session that resolves names in this catalog.
    pub(super) fn session(&self) -> Option<SessionState> {
        let mut state = self.0.database.state.get()?.clone();
        state.register_catalog_list(Arc::new(self.clone()));
        Some(state)
    }
}

impl CatalogProviderList for Catalogs {
    fn register_catalog(&self, _: String, _: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        is_catalog(name).then(|| Arc::new(self.clone()) as Arc<dyn CatalogProvider>)
    }
}

impl CatalogProvider for Catalogs {
    fn schema_names(&self) -> Vec<String> {
        self.0.snapshot.schemas.keys().cloned().chain([SERVER_SCHEMA.to_owned()]).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        if name == SERVER_SCHEMA {
            return Some(Arc::clone(&self.0.about));
        }
        let (name, _) = self.0.snapshot.schema(name)?;
        Some(Arc::new(StoredSchema { catalogs: self.clone(), name: name.to_owned() }))
    }
}

/// One schema of the database. [`SCHEMA`] has the operator's tables, too.
#[derive(Debug)]
struct StoredSchema {
    catalogs: Catalogs,
    name: String,
}

impl StoredSchema {
    /// The operator's tables, if this schema has them.
    fn files(&self) -> Option<&Tables> {
        (self.name == SCHEMA).then(|| self.catalogs.tables())
    }

    fn find(&self, name: &str) -> Option<(Name, &Object)> {
        let name = Name { schema: self.name.clone(), object: name.to_owned() };
        self.catalogs.snapshot().find(&name)
    }

    async fn provider(&self, name: &Name, object: &Object) -> Result<Arc<dyn TableProvider>> {
        let Some(state) = self.catalogs.session() else {
            return Err(DataFusionError::Internal("the database has no session yet".to_owned()));
        };
        match object {
            Object::Table(table) => {
                let opened = self.catalogs.database().opened(&state, name, table).await;
                Ok(Arc::new(FilesTable::new(opened.map_err(|e| DataFusionError::External(Box::new(e)))?)))
            }
            Object::View(view) => Ok(match views::plan(self.catalogs.snapshot(), state, view).await {
                Ok(table) => Arc::new(table),
                Err(reason) => Arc::new(BrokenView { name: name.clone(), view: Arc::clone(view), reason }),
            }),
        }
    }
}

#[async_trait]
impl SchemaProvider for StoredSchema {
    fn table_names(&self) -> Vec<String> {
        if self.name == SCHEMA {
            return self.catalogs.public_names();
        }
        let objects = self.catalogs.snapshot().schemas.get(&self.name);
        objects.into_iter().flat_map(|objects| objects.keys().cloned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let found = self.find(name);
        // An exact name of the operator's tables comes before one of the database that differs in case.
        if let Some((own, object)) = found.as_ref().filter(|(own, _)| own.object == name) {
            return self.provider(own, object).await.map(Some);
        }
        if let Some(files) = self.files()
            && let Some(table) = files.table(name).await?
        {
            return Ok(Some(table));
        }
        match found {
            Some((own, object)) => self.provider(&own, object).await.map(Some),
            None => Ok(None),
        }
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        match self.find(name) {
            Some((_, Object::Table(_))) => Ok(Some(TableType::Base)),
            Some((_, Object::View(_))) => Ok(Some(TableType::View)),
            None => match self.files() {
                Some(files) => files.table_type(name).await,
                None => Ok(None),
            },
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        self.find(name).is_some() || self.files().is_some_and(|files| files.table_exist(name))
    }
}

/// A view that cannot be planned any more. It has its old columns, so that lists of all columns still work.
#[derive(Debug)]
struct BrokenView {
    name: Name,
    view: Arc<StoredView>,
    reason: String,
}

#[async_trait]
impl TableProvider for BrokenView {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.view.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn get_table_definition(&self) -> Option<&str> {
        Some(&self.view.sql)
    }

    async fn scan(
        &self,
        _: &dyn Session,
        _: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Err(DataFusionError::Plan(format!("view '{}' cannot be read: {}", self.name, self.reason)))
    }
}
