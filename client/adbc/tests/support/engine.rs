//! An engine that plays scripts, and has parameters, a catalog and uploads.

use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use futures::stream;
use thallus_scripted_engine::ScriptedEngine;
use thallus_server::engine::{
    CatalogObject, Depth, Description, Engine, EngineError, IngestMode, IngestRequest, Ingestion, ObjectsRequest,
    QueryRequest, QueryStream, TableInfo, TableObject, Vendor, changed_rows, changes_schema,
};

/// Text of the statement whose result is its rows of parameters.
pub(crate) const ECHO: &str = "echo";
/// Text of the statement that changes one row for each row of parameters, or seven without parameters.
pub(crate) const CHANGE: &str = "change";

/// Upload requests and the rows of each, in the order of their begin.
type Uploads = Arc<Mutex<Vec<(IngestRequest, Vec<RecordBatch>)>>>;

#[derive(Clone, Debug, Default)]
pub(crate) struct TestEngine {
    pub(crate) scripted: ScriptedEngine,
    pub(crate) queries: Arc<Mutex<Vec<QueryRequest>>>,
    pub(crate) listed: Arc<Mutex<Vec<ObjectsRequest>>>,
    pub(crate) uploads: Uploads,
}

impl TestEngine {
    pub(crate) fn of(scripted: ScriptedEngine) -> Self {
        TestEngine { scripted, ..TestEngine::default() }
    }

    /// Numbers of rows of parameters of the queries so far.
    pub(crate) fn parameter_rows(&self) -> Vec<usize> {
        let queries = self.queries.lock().unwrap();
        queries.iter().map(|query| query.parameters.as_ref().map_or(0, RecordBatch::num_rows)).collect()
    }
}

/// Schema of the only table, `main.public.numbers`.
pub(crate) fn table_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("n", DataType::Int64, false),
        Field::new("name \"quoted\"", DataType::Utf8, true),
    ]))
}

fn one_batch(batch: RecordBatch) -> QueryStream {
    let schema = batch.schema();
    let batches = (batch.num_rows() > 0).then_some(Ok(batch));
    QueryStream { schema, batches: Box::pin(stream::iter(batches)) }
}

#[async_trait]
impl Engine for TestEngine {
    async fn execute(&self, query: QueryRequest) -> Result<QueryStream, EngineError> {
        self.queries.lock().unwrap().push(query.clone());
        match query.sql.as_str() {
            ECHO => query
                .parameters
                .map(one_batch)
                .ok_or_else(|| EngineError::Plan { message: "echo needs parameters".into() }),
            CHANGE => Ok(changed_rows(query.parameters.map_or(7, |parameters| parameters.num_rows() as u64))),
            _ => self.scripted.execute(query).await,
        }
    }

    async fn describe(&self, query: QueryRequest) -> Result<Description, EngineError> {
        self.queries.lock().unwrap().push(query.clone());
        let parameters = Arc::new(Schema::new(vec![
            Field::new("$1", DataType::Int64, true),
            Field::new("$2", DataType::Null, true),
        ]));
        let result = match query.sql.as_str() {
            CHANGE => changes_schema(),
            ECHO => Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)])),
            sql if sql.ends_with("\"numbers\"") => table_schema(),
            other => {
                let unknown = EngineError::UnknownTable { table: other.to_owned(), known: vec!["numbers".into()] };
                return Err(unknown);
            }
        };
        Ok(Description { result, parameters })
    }

    async fn objects(&self, request: ObjectsRequest) -> Result<Vec<CatalogObject>, EngineError> {
        let schema = matches!(request.depth, Depth::Schemas | Depth::Tables | Depth::Columns);
        let (tables, columns) =
            (matches!(request.depth, Depth::Tables | Depth::Columns), request.depth == Depth::Columns);
        let fits = |pattern: &Option<String>, name: &str| pattern.as_deref().is_none_or(|p| p == name || p == "%");
        let (in_catalog, in_schema) = (fits(&request.catalog, "main"), fits(&request.schema, "public"));
        self.listed.lock().unwrap().push(request);
        if !in_catalog || !in_schema {
            let alone = CatalogObject { catalog: "main".into(), schema: None, table: None };
            return Ok(in_catalog.then_some(alone).into_iter().collect());
        }
        let table = tables.then(|| TableObject {
            name: "numbers".into(),
            kind: "table".into(),
            columns: columns.then(table_schema),
        });
        Ok(vec![CatalogObject { catalog: "main".into(), schema: schema.then(|| "public".into()), table }])
    }

    async fn ingest(&self, request: IngestRequest) -> Result<Box<dyn Ingestion>, EngineError> {
        match (request.table.as_str(), request.mode) {
            _ if request.temporary => Err(EngineError::Unsupported { message: "no temporary tables here".into() }),
            ("taken", IngestMode::Create) => Err(EngineError::AlreadyExists { what: "table 'taken'".into() }),
            ("taken", IngestMode::Append) => Err(EngineError::Plan { message: "the columns differ".into() }),
            ("absent", IngestMode::Append) => {
                Err(EngineError::UnknownTable { table: "absent".into(), known: Vec::new() })
            }
            _ => Ok(Box::new(Upload { uploads: Arc::clone(&self.uploads), request, batches: Vec::new() })),
        }
    }

    fn vendor(&self) -> Vendor {
        Vendor { name: "Scripted".into(), version: "1.2.3".into(), ..Vendor::default() }
    }

    fn tables(&self) -> Vec<TableInfo> {
        Vec::new()
    }
}

struct Upload {
    uploads: Uploads,
    request: IngestRequest,
    batches: Vec<RecordBatch>,
}

#[async_trait]
impl Ingestion for Upload {
    async fn push(&mut self, batch: RecordBatch) -> Result<(), EngineError> {
        self.batches.push(batch);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<u64, EngineError> {
        let Upload { uploads, request, batches } = *self;
        let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        uploads.lock().unwrap().push((request, batches));
        Ok(rows)
    }
}
