//! Requests that yield rows: what the engine is asked, as a future, before there are rows.

use std::pin::Pin;
use std::sync::Arc;

use arrow_array::RecordBatch;
use futures::{StreamExt, stream};
use thallus_protocol::codes::StreamCode;
use thallus_protocol::inline::InlineError;
use thallus_protocol::message::{Failure, ObjectsRequest};

use super::groups::GroupMember;
use super::source::{Source, failure};
use crate::engine::{CatalogObject, Engine, QueryRequest, QueryStream};

/// The rows of a request, once the engine has planned it.
pub(crate) type Planning = Pin<Box<dyn Future<Output = Result<Source, Failure>> + Send>>;

/// The rows of a query, or one partition of them.
pub(crate) fn query(engine: Arc<dyn Engine>, request: QueryRequest, member: Option<Arc<GroupMember>>) -> Planning {
    Box::pin(async move {
        if let Some(member) = member {
            return member.part(&*engine, request).await;
        }
        let QueryStream { schema, batches } = engine.execute(request).await.map_err(failure)?;
        Ok(Source { schema, order: Vec::new(), batches })
    })
}

/// One row that describes a statement.
pub(crate) fn description(engine: Arc<dyn Engine>, request: QueryRequest) -> Planning {
    Box::pin(async move {
        let description = engine.describe(request).await.map_err(failure)?;
        one_batch(description.encode())
    })
}

/// One row for each object of the database that was asked for.
pub(crate) fn objects(engine: Arc<dyn Engine>, request: ObjectsRequest) -> Planning {
    Box::pin(async move {
        let objects = engine.objects(request).await.map_err(failure)?;
        one_batch(CatalogObject::encode(&objects))
    })
}

/// The rows of one batch. An empty one is left out, as in the results of engines.
fn one_batch(batch: Result<RecordBatch, InlineError>) -> Result<Source, Failure> {
    let batch = batch.map_err(|error| Failure::new(StreamCode::Unencodable, error.to_string()))?;
    let schema = batch.schema();
    let rows = Some(batch).filter(|batch| batch.num_rows() > 0);
    Ok(Source { schema, order: Vec::new(), batches: stream::iter(rows.map(Ok)).boxed() })
}
