//! Uploads: the driver's bulk ingestion, in a transaction that is committed after the last batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use adbc_core::options::{IngestMode as DriverMode, OptionStatement, OptionValue};
use adbc_core::{Optionable, Statement};
use arrow_array::{RecordBatch, RecordBatchReader};
use arrow_schema::{ArrowError, SchemaRef};
use async_trait::async_trait;
use thallus_server::engine::{Defaults, EngineError, IngestMode, IngestRequest, Ingestion};
use tokio::sync::{mpsc, oneshot};

use crate::pool::{Permit, Pool};
use crate::work::{Cancel, Work};

/// Batches in the channel, besides the one that the driver stores.
const BATCHES_AHEAD: usize = 1;

/// An item on the way to the driver.
enum Item {
    Batch(RecordBatch),
    /// All batches were sent. Without it the upload has failed.
    End,
}

/// Begins an upload.
pub(crate) async fn begin(pool: &Arc<Pool>, request: IngestRequest) -> Result<Box<dyn Ingestion>, EngineError> {
    if request.temporary {
        let message = "an upload into a temporary table, which would end with the upload".to_owned();
        return Err(EngineError::Unsupported { message });
    }
    let permit = pool.permit().await?;
    let (items, received) = mpsc::channel(BATCHES_AHEAD);
    let (begun, begin) = oneshot::channel();
    let (sender, stored) = oneshot::channel();
    let pool = Arc::clone(pool);
    let mut work = Work::start(move |cancel| {
        let mut begun = Some(begun);
        let stored = store(&pool, permit, request, received, &mut begun, cancel);
        // The receivers may be dropped.
        match (begun, stored) {
            (Some(begun), Err(error)) => drop(begun.send(Err(error))),
            (_, stored) => drop(sender.send(stored)),
        }
    });
    work.answer(begin).await?;
    Ok(Box::new(Upload { items, stored: Some(stored), rows: 0, work }))
}

/// Stores the batches of an upload, on a thread that may block.
fn store(
    pool: &Arc<Pool>,
    permit: Permit,
    request: IngestRequest,
    items: mpsc::Receiver<Item>,
    begun: &mut Option<oneshot::Sender<Result<(), EngineError>>>,
    cancel: &Cancel,
) -> Result<(), EngineError> {
    let mut lease = pool.connection(permit, &Defaults::default())?;
    lease.begin("an upload")?;
    let mut statement = lease.statement(cancel)?;
    for (option, value) in options(&request) {
        statement.set_option(option, OptionValue::from(value)).map_err(|e| lease.failed(&e))?;
    }
    if let Some(begun) = begun.take() {
        // The receiver may be dropped: then no batch follows.
        let _gone = begun.send(Ok(()));
    }
    let read_to_the_end = Arc::new(AtomicBool::new(false));
    let batches = Incoming { schema: request.schema, items, read_to_the_end: Arc::clone(&read_to_the_end) };
    let stored = statement.bind_stream(Box::new(batches)).and_then(|()| statement.execute_update());
    stored.map_err(|e| lease.failed(&e))?;
    drop(statement);
    if !read_to_the_end.load(Ordering::Acquire) {
        let message = "the driver did not read all batches; nothing was stored".to_owned();
        return Err(EngineError::Internal { message });
    }
    cancel.check()?;
    lease.commit()
}

fn options(request: &IngestRequest) -> Vec<(OptionStatement, String)> {
    let mode = match request.mode {
        IngestMode::Append => DriverMode::Append,
        IngestMode::Create => DriverMode::Create,
        IngestMode::Replace => DriverMode::Replace,
        IngestMode::CreateAppend => DriverMode::CreateAppend,
    };
    let mut options =
        vec![(OptionStatement::TargetTable, request.table.clone()), (OptionStatement::IngestMode, String::from(mode))];
    let Defaults { catalog, schema } = &request.defaults;
    options.extend(catalog.iter().map(|name| (OptionStatement::TargetCatalog, name.clone())));
    options.extend(schema.iter().map(|name| (OptionStatement::TargetDbSchema, name.clone())));
    options
}

/// The batches of an upload, for the driver to read. It waits for the client.
struct Incoming {
    schema: SchemaRef,
    items: mpsc::Receiver<Item>,
    read_to_the_end: Arc<AtomicBool>,
}

impl Iterator for Incoming {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.read_to_the_end.load(Ordering::Acquire) {
            return None;
        }
        match self.items.blocking_recv() {
            Some(Item::Batch(batch)) => Some(Ok(batch)),
            Some(Item::End) => {
                self.read_to_the_end.store(true, Ordering::Release);
                None
            }
            // An end here would let the driver complete the statement.
            None => Some(Err(ArrowError::ExternalError("the upload was cancelled".into()))),
        }
    }
}

impl RecordBatchReader for Incoming {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

/// An upload, as held by the server. Dropping it discards all rows.
struct Upload {
    items: mpsc::Sender<Item>,
    /// `None` once its answer is taken.
    stored: Option<oneshot::Receiver<Result<(), EngineError>>>,
    rows: u64,
    work: Work,
}

impl Upload {
    /// The end of the driver's work.
    async fn end(&mut self) -> Result<(), EngineError> {
        match self.stored.take() {
            Some(stored) => self.work.answer(stored).await,
            None => Err(EngineError::Internal { message: "the upload has ended".to_owned() }),
        }
    }
}

#[async_trait]
impl Ingestion for Upload {
    async fn push(&mut self, batch: RecordBatch) -> Result<(), EngineError> {
        self.rows += batch.num_rows() as u64;
        if self.items.send(Item::Batch(batch)).await.is_ok() {
            return Ok(());
        }
        self.end().await?;
        Err(EngineError::Internal { message: "the driver ended the upload before its last batch".to_owned() })
    }

    async fn finish(mut self: Box<Self>) -> Result<u64, EngineError> {
        // If the driver has ended, its answer tells why.
        let _ended = self.items.send(Item::End).await;
        self.end().await?;
        Ok(self.rows)
    }
}
