//! Statements that change the database: what they mean, before any of their rows is read.

use std::sync::Arc;

use arrow_schema::{Field, Schema, SchemaRef};
use datafusion::common::{DFSchema, TableReference};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{
    CreateMemoryTable, CreateView, DdlStatement, DmlStatement, EmptyRelation, LogicalPlan, WriteOp,
};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    ColumnOption, Ident, ObjectName, ObjectNamePart, SchemaName, Statement as SqlStatement,
};

use super::super::{error, guard};
use super::create::{IfExists, Mode, prepare};
use super::error::{invalid, is_view, of_operator, unsupported};
use super::ingest::check_columns;
use super::name::Name;
use super::provider::Catalogs;
use super::snapshot::{Object, StoredTable, StoredView};
use super::{names, rewrite, views};
use crate::engine::EngineError;

/// A change of the database. The rows of most kinds come from a plan beside it.
#[derive(Debug)]
pub(in super::super) enum Change {
    /// Rows of a new table, or more rows of one.
    Store { name: Name, schema: SchemaRef, mode: Mode },
    /// The rows that are left in the table.
    Delete { name: Name, base: Arc<StoredTable> },
    /// All rows, with a last column that tells whether a row was changed.
    Update { name: Name, base: Arc<StoredTable> },
    /// No rows are left.
    Truncate { name: Name, base: Arc<StoredTable> },
    /// The table or view is removed.
    Drop { name: Name, is_view: bool },
    /// A view is created.
    CreateView { name: Name, view: Arc<StoredView>, replaces: bool },
    /// A schema is created.
    CreateSchema { name: String, if_not_exists: bool },
    /// A schema is removed.
    DropSchema { name: String, if_exists: bool, cascade: bool },
    /// The object to make is there already, or the object to remove is not.
    Nothing,
}

/// Facts of a statement that its plan does not tell.
#[derive(Debug, Default)]
pub(in super::super) struct Facts {
    /// The columns of a `CREATE TABLE` that take no NULL, by position.
    not_null: Vec<bool>,
    /// The parts of the name of a new schema.
    schema_name: Vec<String>,
    /// The tables and views that a new view reads.
    reads: Vec<Name>,
    nesting: usize,
    /// The text of the statement.
    sql: String,
}

impl Facts {
    pub(in super::super) fn of(sql: &str, statement: &Statement, state: &SessionState) -> Result<Self, EngineError> {
        let mut facts = Facts { sql: sql.to_owned(), ..Facts::default() };
        if let Some(query) = views::query_of(statement) {
            facts.reads = views::reads(state, query)?;
            facts.nesting = guard::nesting_of(sql);
        }
        let Statement::Statement(statement) = statement else { return Ok(facts) };
        match &**statement {
            SqlStatement::CreateTable(create) => {
                let columns = create.columns.iter();
                let is_kept = |option: &ColumnOption| matches!(option, ColumnOption::Null | ColumnOption::NotNull);
                let mut options = columns.clone().flat_map(|column| &column.options);
                if let Some(other) = options.find(|other| !is_kept(&other.option)) {
                    return Err(unsupported(format!("{} of a column", other.option)));
                }
                facts.not_null = columns
                    .map(|column| column.options.iter().any(|option| matches!(option.option, ColumnOption::NotNull)))
                    .collect();
            }
            SqlStatement::CreateSchema { schema_name, .. } => facts.schema_name = schema_parts(schema_name)?,
            _ => {}
        }
        Ok(facts)
    }
}

fn schema_parts(name: &SchemaName) -> Result<Vec<String>, EngineError> {
    let SchemaName::Simple(ObjectName(parts)) = name else {
        return Err(unsupported("CREATE SCHEMA with AUTHORIZATION"));
    };
    let part = |part: &ObjectNamePart| part.as_ident().map(normal).ok_or_else(|| invalid("a schema's name is no name"));
    parts.iter().map(part).collect()
}

/// An identifier as DataFusion understands it: without quotes in lower case.
fn normal(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_ascii_lowercase(),
    }
}

/// The context in which a statement is planned.
pub(in super::super) struct Planning<'a> {
    pub(in super::super) catalogs: &'a Catalogs,
    pub(in super::super) state: &'a SessionState,
    pub(in super::super) facts: Facts,
}

impl Planning<'_> {
    /// The change that a plan stands for, and the plan of its rows. `None`: it is a query.
    pub(in super::super) async fn change(
        &self,
        plan: &LogicalPlan,
    ) -> Result<Option<(LogicalPlan, Change)>, EngineError> {
        let change = match plan {
            LogicalPlan::Dml(dml) => return self.of_rows(dml).await.map(Some),
            LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(create)) => return self.create(create).await.map(Some),
            LogicalPlan::Ddl(DdlStatement::CreateView(create)) => self.create_view(create).await?,
            LogicalPlan::Ddl(DdlStatement::DropTable(drop)) => self.drop(&drop.name, drop.if_exists, false).await?,
            LogicalPlan::Ddl(DdlStatement::DropView(drop)) => self.drop(&drop.name, drop.if_exists, true).await?,
            LogicalPlan::Ddl(DdlStatement::CreateCatalogSchema(create)) => {
                Change::CreateSchema { name: self.new_schema()?, if_not_exists: create.if_not_exists }
            }
            LogicalPlan::Ddl(DdlStatement::DropCatalogSchema(drop)) => {
                use datafusion::common::SchemaReference;
                if let SchemaReference::Full { catalog, .. } = &drop.name {
                    names::check_catalog(catalog)?;
                }
                let name = drop.name.schema_name().to_owned();
                Change::DropSchema { name, if_exists: drop.if_exists, cascade: drop.cascade }
            }
            LogicalPlan::Ddl(other) => return Err(unsupported(format!("{} on this server", other.name()))),
            _ => return Ok(None),
        };
        Ok(Some((no_rows(), change)))
    }

    fn name(&self, reference: &TableReference) -> Result<Name, EngineError> {
        names::of_reference(reference, &self.state.config_options().catalog)
    }

    fn new_schema(&self) -> Result<String, EngineError> {
        match self.facts.schema_name.as_slice() {
            [name] => Ok(name.clone()),
            [catalog, name] => names::check_catalog(catalog).map(|()| name.clone()),
            _ => Err(invalid("the name of a schema has one part, or two with the catalog")),
        }
    }

    async fn create(&self, create: &CreateMemoryTable) -> Result<(LogicalPlan, Change), EngineError> {
        if create.temporary {
            return Err(unsupported("temporary tables; every table of this server's database lasts"));
        }
        if !create.constraints.is_empty() || !create.column_defaults.is_empty() {
            return Err(unsupported("keys, constraints besides NOT NULL, and default values of columns"));
        }
        let name = self.name(&create.name)?;
        let if_exists = match (create.or_replace, create.if_not_exists) {
            (true, true) => return Err(invalid("OR REPLACE and IF NOT EXISTS exclude each other")),
            (true, false) => IfExists::Replace,
            (false, true) => IfExists::Keep,
            (false, false) => IfExists::Refuse,
        };
        let mode = Mode { if_exists, creates: true };
        let (snapshot, tables) = (self.catalogs.snapshot(), self.catalogs.tables());
        if if_exists == IfExists::Keep
            && (names::find(snapshot, tables, &name).await.is_some()
                || names::of_operator(tables, &name).await.is_some())
        {
            return Ok((no_rows(), Change::Nothing));
        }
        prepare(snapshot, tables, &name, mode).await?;
        let schema = Arc::new(self.columns(create));
        check_columns(&schema)?;
        Ok((LogicalPlan::clone(&create.input), Change::Store { name, schema, mode }))
    }

    /// The columns of a new table. Those of a query take NULL even if this query has none in them.
    fn columns(&self, create: &CreateMemoryTable) -> Schema {
        let schema: &DFSchema = create.input.schema();
        let fields = schema.fields().iter().enumerate().map(|(index, field)| {
            let takes_null = !self.facts.not_null.get(index).copied().unwrap_or_default();
            Field::clone(field).with_nullable(takes_null)
        });
        Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone())
    }

    async fn of_rows(&self, dml: &DmlStatement) -> Result<(LogicalPlan, Change), EngineError> {
        let name = self.name(&dml.table_name)?;
        let (name, base) = self.table(&name).await?;
        let rows = || LogicalPlan::clone(&dml.input);
        let failed = |e| error::of_datafusion(e, &[]);
        Ok(match &dml.op {
            WriteOp::Insert(InsertOp::Append) => {
                let mode = Mode { if_exists: IfExists::Append, creates: false };
                (rows(), Change::Store { name, schema: Arc::clone(&base.schema), mode })
            }
            WriteOp::Delete => match rewrite::left(rows()).map_err(failed)? {
                Some(left) => (left, Change::Delete { name, base }),
                None => (no_rows(), Change::Truncate { name, base }),
            },
            WriteOp::Update => (rewrite::updated(rows()).map_err(failed)?, Change::Update { name, base }),
            WriteOp::Truncate => (no_rows(), Change::Truncate { name, base }),
            other => return Err(unsupported(format!("{} on this server", other.name()))),
        })
    }

    /// The table of the database that is to be changed.
    async fn table(&self, name: &Name) -> Result<(Name, Arc<StoredTable>), EngineError> {
        let (snapshot, tables) = (self.catalogs.snapshot(), self.catalogs.tables());
        match names::find(snapshot, tables, name).await {
            Some((name, Object::Table(table))) => Ok((name, Arc::clone(table))),
            Some((name, Object::View(_))) => Err(is_view(&name)),
            None => Err(match names::of_operator(tables, name).await {
                Some(table) => of_operator(&table),
                None if names::is_reserved_schema(&name.schema) => names::no_schema(&name.schema),
                None => names::unknown_table(snapshot, tables, name),
            }),
        }
    }

    async fn drop(&self, name: &TableReference, if_exists: bool, is_view: bool) -> Result<Change, EngineError> {
        let name = self.name(name)?;
        let (snapshot, tables) = (self.catalogs.snapshot(), self.catalogs.tables());
        match names::find(snapshot, tables, &name).await {
            Some((name, Object::View(_))) if !is_view => Err(invalid(format!("'{name}' is a view; use DROP VIEW"))),
            Some((name, Object::Table(_))) if is_view => Err(invalid(format!("'{name}' is a table; use DROP TABLE"))),
            Some((name, _)) => Ok(Change::Drop { name, is_view }),
            None => match names::of_operator(tables, &name).await {
                Some(table) => Err(of_operator(&table)),
                None if if_exists => Ok(Change::Nothing),
                None => Err(names::unknown_table(snapshot, tables, &name)),
            },
        }
    }

    async fn create_view(&self, create: &CreateView) -> Result<Change, EngineError> {
        if create.temporary {
            return Err(unsupported("temporary views; every view of this server's database lasts"));
        }
        let name = self.name(&create.name)?;
        let (snapshot, tables) = (self.catalogs.snapshot(), self.catalogs.tables());
        let if_exists = if create.or_replace { IfExists::Replace } else { IfExists::Refuse };
        let name = match names::find(snapshot, tables, &name).await {
            Some((name, Object::View(_))) if create.or_replace => name,
            Some((name, Object::Table(_))) if create.or_replace => {
                return Err(invalid(format!("'{name}' is a table; a view does not replace it (DROP TABLE)")));
            }
            _ => {
                prepare(snapshot, tables, &name, Mode { if_exists, creates: true }).await?;
                name
            }
        };
        if !create.input.get_parameter_names().map_err(|e| error::of_datafusion(e, &[]))?.is_empty() {
            return Err(unsupported("parameters in a view"));
        }
        let schema = Arc::new(create.input.schema().as_arrow().clone());
        check_columns(&schema)?;
        let default_schema = self.state.config_options().catalog.default_schema.clone();
        let Facts { reads, nesting, sql, .. } = &self.facts;
        let (reads, nesting, sql) = (reads.clone(), *nesting, sql.clone());
        let view = Arc::new(StoredView { sql, default_schema, schema, nesting, reads });
        Ok(Change::CreateView { name, view, replaces: create.or_replace })
    }
}

fn no_rows() -> LogicalPlan {
    LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema: Arc::new(DFSchema::empty()) })
}
