//! Statements with parameters, defaults of a session, descriptions and lists of objects: what the engine must receive,
//! and what it answers.

use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Schema};
use async_trait::async_trait;
use thallus_client::{CatalogObject, Defaults, Depth, Description, ObjectsRequest, TableObject};
use thallus_scripted_engine::{ScriptedEngine, synthetic_batch, synthetic_schema};
use thallus_server::engine::{
    Engine, EngineError, IngestRequest, Ingestion, PartitionedQuery, QueryRequest, QueryStream, TableInfo,
};

/// Numbers of statements with parameters, from 1.
pub const NUMBERS: u32 = 9;

/// The catalog and the schema of a statement with this number.
pub fn defaults(number: u32) -> Defaults {
    let name = |kind: &str| Some(format!("{kind} {number}"));
    Defaults { catalog: name("catalog").filter(|_| !number.is_multiple_of(3)), schema: name("schema") }
}

/// The parameters of a statement with this number. Every third has none.
pub fn parameters(number: u32) -> Option<RecordBatch> {
    let rows = 4 * number as usize;
    (number % 3 != 1).then(|| synthetic_batch(u64::from(number), rows))
}

/// The description of the statement with this text.
pub fn description(sql: &str) -> Description {
    let parameter = |index: usize| Field::new(format!("${index}"), DataType::Int64, true);
    let parameters = (1..=sql.len() % 4).map(parameter).collect::<Vec<_>>();
    Description { result: synthetic_schema(), parameters: Arc::new(Schema::new(parameters)) }
}

/// The objects of the engine that fit a request.
pub fn objects(request: &ObjectsRequest) -> Vec<CatalogObject> {
    let table = |number: usize| TableObject {
        name: format!("t{number}"),
        kind: "table".to_owned(),
        columns: (request.depth == Depth::Columns).then(synthetic_schema),
    };
    let object = |table| CatalogObject { catalog: "c".to_owned(), schema: Some("s".to_owned()), table };
    (0..request.table.as_ref().map_or(0, String::len)).map(|number| object(Some(table(number)))).collect()
}

/// The scripted engine, which also checks what it receives. Clones share the differences.
#[derive(Clone, Debug)]
pub struct CheckedEngine {
    scripts: ScriptedEngine,
    difference: Arc<Mutex<Option<String>>>,
}

impl CheckedEngine {
    pub fn new(scripts: ScriptedEngine) -> Self {
        CheckedEngine { scripts, difference: Arc::default() }
    }

    /// The first statement that did not arrive as its client had sent it.
    pub fn difference(&self) -> Option<String> {
        self.difference.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Checks the parameters, which a statement that is only described has not, and the defaults.
    fn check(&self, query: &QueryRequest, runs: bool) {
        let number = query.defaults.schema.as_ref().and_then(|name| name.rsplit(' ').next()?.parse().ok());
        let expected =
            number.map_or_else(Default::default, |number| (parameters(number).filter(|_| runs), defaults(number)));
        if expected != (query.parameters.clone(), query.defaults.clone()) {
            let difference = format!("{query:?}, and not {expected:?}");
            self.difference.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(difference);
        }
    }
}

#[async_trait]
impl Engine for CheckedEngine {
    async fn execute(&self, query: QueryRequest) -> Result<QueryStream, EngineError> {
        self.check(&query, true);
        self.scripts.execute(query).await
    }

    async fn execute_partitioned(&self, query: QueryRequest, count: usize) -> Result<PartitionedQuery, EngineError> {
        self.check(&query, true);
        self.scripts.execute_partitioned(query, count).await
    }

    async fn describe(&self, query: QueryRequest) -> Result<Description, EngineError> {
        self.check(&query, false);
        Ok(description(&query.sql))
    }

    async fn objects(&self, request: ObjectsRequest) -> Result<Vec<CatalogObject>, EngineError> {
        Ok(objects(&request))
    }

    async fn ingest(&self, request: IngestRequest) -> Result<Box<dyn Ingestion>, EngineError> {
        self.scripts.ingest(request).await
    }

    fn tables(&self) -> Vec<TableInfo> {
        self.scripts.tables()
    }
}
