//! A statement: SQL with its parameters, or an ingestion.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use adbc_core::error::{Result, Status};
use adbc_core::options::{OptionStatement, OptionValue};
use adbc_core::{CancelHandle, Optionable, PartitionedResult, Statement, constants};
use arrow::array::{AsArray, RecordBatch, RecordBatchIterator, RecordBatchReader};
use arrow::datatypes::{Schema, SchemaRef, UInt64Type};
use thallus_client::{Description, ResultStream, is_change};

use crate::bind::{Bound, Executions, not_in_partitions};
use crate::cancel::{Cancel, Watch};
use crate::error::{error, invalid_argument, invalid_state, not_implemented};
use crate::ingest::{self, Target};
use crate::option::{flag, getters, text, unknown};
use crate::partition::Descriptor;
use crate::reader::{self, Handover, Live, Progress, Reader, ResultReader, hand_over};
use crate::settings::{self, Delivery, Settings};
use crate::shared::Shared;

/// An option: bound columns are matched to parameters by name. The server decides it by the statement: `$name` by name,
/// `$1` and `?` by position; so the option changes nothing. Python sets it for parameters in a dictionary.
const BIND_BY_NAME: &str = "adbc.statement.bind_by_name";

/// A statement of a connection. Several can run at a time.
pub struct ThallusStatement {
    connection: Arc<Shared>,
    cancel: Cancel,
    settings: Settings,
    sql: Option<String>,
    target: Target,
    bound: Option<Bound>,
    binds_by_name: bool,
    /// The server's description of `sql`, once it has been asked for.
    description: Mutex<Option<Description>>,
    progress: Arc<Progress>,
}

/// A started execution.
enum Started {
    /// The statement yields rows.
    Rows(Box<Live>),
    /// The statement yields rows, but was executed for no row of parameters.
    NoRows(SchemaRef),
    /// The statement has changed this many rows.
    Changed(u64),
}

impl ThallusStatement {
    pub(crate) fn new(connection: Arc<Shared>, settings: Settings) -> Self {
        ThallusStatement {
            connection,
            cancel: Cancel::new(),
            settings,
            sql: None,
            target: Target::default(),
            bound: None,
            binds_by_name: false,
            description: Mutex::default(),
            progress: Arc::default(),
        }
    }

    fn watch(&self) -> Result<Watch> {
        Watch::new(&self.connection.cancel, Some(&self.cancel))
    }

    fn sql(&self) -> Result<&str> {
        if self.target.table.is_some() {
            return Err(invalid_state("the statement is an ingestion, which has no SQL; set a query first"));
        }
        self.sql.as_deref().ok_or_else(|| invalid_state("the statement has no query; set one first"))
    }

    /// Asks the server about the statement, at most once for each text.
    fn describe(&self) -> Result<Description> {
        let sql = self.sql()?;
        let mut known = self.description.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*known {
            return Ok(known.clone());
        }
        let Shared { session, .. } = &*self.connection;
        let defaults = self.connection.defaults();
        let description = session.run(&mut self.watch()?, session.client()?.describe_with(sql, defaults))?;
        *known = Some(description.clone());
        Ok(description)
    }

    fn start(&mut self) -> Result<Started> {
        let sql = self.sql()?.to_owned();
        let session = Arc::clone(&self.connection.session);
        let options = self.settings.query().with_defaults(self.connection.defaults());
        let mut watch = self.watch()?;
        let mut further = self.bound.take().map(|bound| Executions::new(sql.clone(), options.clone(), bound));
        let first = match &mut further {
            Some(further) => further.next(&session, &mut watch)?,
            None => Some(session.run(&mut watch, session.client()?.query_with(&sql, options))?),
        };
        let Some(result) = first else {
            let Description { result, .. } = self.describe()?;
            return Ok(if is_change(&result) { Started::Changed(0) } else { Started::NoRows(result) });
        };
        reader::check_schema(&result.schema())?;
        self.progress = Arc::default();
        let progress = Arc::clone(&self.progress);
        let mut live = Live { result, further, session, watch, progress };
        if is_change(&live.result.schema()) {
            return Ok(Started::Changed(changed_rows(&mut live)?));
        }
        Ok(Started::Rows(Box::new(live)))
    }

    fn write(&mut self) -> Result<u64> {
        let rows = self.bound.take().ok_or_else(|| invalid_state("no rows are bound to write; bind them first"))?;
        let Shared { session, .. } = &*self.connection;
        self.target.write(rows, session, &mut self.watch()?, &self.connection.defaults(), &self.settings)
    }

    fn value(&self, name: &str) -> Result<Option<String>> {
        Ok(match name {
            constants::ADBC_STATEMENT_OPTION_INCREMENTAL => Some(false.to_string()),
            BIND_BY_NAME => Some(self.binds_by_name.to_string()),
            constants::ADBC_STATEMENT_OPTION_PROGRESS => Some(self.progress.rows().to_string()),
            // Zero: not known yet.
            constants::ADBC_STATEMENT_OPTION_MAX_PROGRESS => Some(self.progress.total().unwrap_or(0).to_string()),
            _ => self.target.get(name).or_else(|| self.settings.get(name)),
        })
    }
}

/// Reads the counts of a changing statement to their end, and adds them up.
fn changed_rows(live: &mut Live) -> Result<u64> {
    let mut rows = 0_u64;
    while let Some(batch) = live.next()? {
        let counts = batch.columns().first().and_then(|column| column.as_primitive_opt::<UInt64Type>());
        let counts = counts.ok_or_else(|| error(Status::Internal, "bug: the server's count of rows is no number"))?;
        rows = counts.iter().flatten().fold(rows, u64::saturating_add);
    }
    Ok(rows)
}

fn signed(rows: u64) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

fn changed(rows: u64) -> Reader {
    hand_over(Handover { rows_affected: Some(signed(rows)), ..Handover::default() });
    reader::without_result()
}

/// A statement that changes something has no result set in ADBC, only a count.
fn result_set(schema: &Schema) -> Schema {
    if is_change(schema) { Schema::empty() } else { schema.clone() }
}

impl Statement for ThallusStatement {
    fn bind(&mut self, batch: RecordBatch) -> Result<()> {
        let schema = batch.schema();
        self.bind_stream(Box::new(RecordBatchIterator::new([Ok(batch)], schema)))
    }

    fn bind_stream(&mut self, reader: Box<dyn RecordBatchReader + Send>) -> Result<()> {
        self.bound = Some(reader);
        Ok(())
    }

    fn execute(&mut self) -> Result<Reader> {
        if self.target.table.is_some() {
            return Ok(changed(self.write()?));
        }
        let live = match self.start()? {
            Started::Changed(rows) => return Ok(changed(rows)),
            Started::NoRows(schema) => return Ok(reader::without_rows(schema)),
            Started::Rows(live) => live,
        };
        Ok(live.into_reader(self.settings.delivery == Delivery::Mapped))
    }

    fn execute_update(&mut self) -> Result<Option<i64>> {
        if self.target.table.is_some() {
            return Ok(Some(signed(self.write()?)));
        }
        match self.start()? {
            Started::Changed(rows) => Ok(Some(signed(rows))),
            Started::NoRows(_) => Ok(None),
            Started::Rows(mut live) => {
                while live.next()?.is_some() {}
                Ok(None)
            }
        }
    }

    fn execute_schema(&mut self) -> Result<Schema> {
        Ok(result_set(&self.describe()?.result))
    }

    fn execute_partitions(&mut self) -> Result<PartitionedResult> {
        // The rows are for this call, and must not be those of the next.
        if self.bound.take().is_some() {
            return Err(not_in_partitions());
        }
        let schema = self.describe()?.result;
        if is_change(&schema) {
            return Err(not_implemented("partitions of a statement that changes something; execute it"));
        }
        let descriptor = Descriptor::new(self.sql()?.to_owned(), &self.connection.defaults());
        let partitions = vec![descriptor.to_bytes()?];
        Ok(PartitionedResult { partitions, schema: schema.as_ref().clone(), rows_affected: -1 })
    }

    fn get_parameter_schema(&self) -> Result<Schema> {
        Ok(self.describe()?.parameters.as_ref().clone())
    }

    /// Sends nothing: the server plans a statement when it executes it, and keeps the plan by its text. Python prepares
    /// every statement before it executes it, which would double the round trips of small queries.
    fn prepare(&mut self) -> Result<()> {
        self.connection.session.client()?;
        self.sql().map(|_| ())
    }

    fn set_sql_query(&mut self, query: impl AsRef<str>) -> Result<()> {
        self.sql = Some(query.as_ref().to_owned());
        self.bound = None;
        self.target.table = None;
        self.description = Mutex::default();
        Ok(())
    }

    fn set_substrait_plan(&mut self, _plan: impl AsRef<[u8]>) -> Result<()> {
        Err(not_implemented("Thallus servers run SQL and no Substrait plans; set a query as text"))
    }

    fn get_cancel_handle(&self) -> Box<dyn CancelHandle> {
        Box::new(self.cancel.clone())
    }
}

impl Optionable for ThallusStatement {
    type Option = OptionStatement;

    fn set_option(&mut self, key: OptionStatement, value: OptionValue) -> Result<()> {
        let name = key.as_ref();
        if name == constants::ADBC_STATEMENT_OPTION_INCREMENTAL {
            return match flag(name, &value)? {
                true => Err(not_implemented("incremental execution: a result has one partition, known at once")),
                false => Ok(()),
            };
        }
        if name == BIND_BY_NAME {
            self.binds_by_name = flag(name, &value)?;
            return Ok(());
        }
        if matches!(name, constants::ADBC_STATEMENT_OPTION_PROGRESS | constants::ADBC_STATEMENT_OPTION_MAX_PROGRESS) {
            return Err(invalid_argument(format!("option {name} is read-only")));
        }
        if self.target.set(name, &value)? {
            if self.target.table.is_some() && name == constants::ADBC_INGEST_OPTION_TARGET_TABLE {
                self.sql = None;
                self.description = Mutex::default();
            }
            return Ok(());
        }
        if settings::NAMES.contains(&name) {
            return self.settings.set(name, &text(name, value)?).map(|_known| ());
        }
        let known = ingest::NAMES.into_iter().chain([constants::ADBC_STATEMENT_OPTION_INCREMENTAL, BIND_BY_NAME]);
        Err(unknown(name, &known.chain(settings::NAMES).collect::<Vec<_>>()))
    }

    getters!(OptionStatement);
}

impl Live {
    /// The result as a reader, with what the exported functions need to know about it.
    pub(crate) fn into_reader(self, mapped: bool) -> Reader {
        let session = Arc::clone(&self.session);
        let reader = ResultReader::new(self);
        hand_over(Handover {
            failure: reader.failure(),
            rows_affected: None,
            keep: mapped.then_some(session as Arc<dyn std::any::Any + Send + Sync>),
        });
        Box::new(reader)
    }

    /// A result that was requested without parameters.
    pub(crate) fn new(result: ResultStream, connection: &Shared, watch: Watch) -> Self {
        let session = Arc::clone(&connection.session);
        Live { result, further: None, session, watch, progress: Arc::default() }
    }
}

impl fmt::Debug for ThallusStatement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("ThallusStatement");
        fields.field("sql", &self.sql).field("target", &self.target).field("settings", &self.settings);
        fields.field("bound", &self.bound.is_some()).finish_non_exhaustive()
    }
}
