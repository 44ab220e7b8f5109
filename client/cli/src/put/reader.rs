//! Reads files on a thread of its own, a few batches ahead of the upload.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::Stream;
use tokio::sync::mpsc;

use super::error::InputError;
use super::input::{Input, ReadOptions};
use super::schema::{Columns, adapted};

/// Batches that are read and not yet uploaded.
const AHEAD: usize = 2;

/// The batches of all files, one file after the other. Nothing follows an error.
pub(super) fn read(
    files: Vec<(Input, Columns)>,
    schema: SchemaRef,
    options: ReadOptions,
) -> std::io::Result<impl Stream<Item = Result<RecordBatch, InputError>> + Unpin> {
    let (batches, mut received) = mpsc::channel(AHEAD);
    let work = move || {
        for (input, columns) in files {
            match guarded(&input, || read_file(&input, &columns, &schema, &options, &batches)) {
                Ok(true) => {}
                // The upload has ended.
                Ok(false) => return,
                Err(error) => {
                    let _ = batches.blocking_send(Err(error));
                    return;
                }
            }
        }
    };
    std::thread::Builder::new().name("thallus-put".into()).spawn(work)?;
    Ok(futures::stream::poll_fn(move |cx| received.poll_recv(cx)))
}

/// Sends the batches of a file. Returns whether they are still wanted.
fn read_file(
    input: &Input,
    columns: &Columns,
    schema: &SchemaRef,
    options: &ReadOptions,
    to: &mpsc::Sender<Result<RecordBatch, InputError>>,
) -> Result<bool, InputError> {
    for batch in input.batches(&columns.schema, schema, options)? {
        let batch = batch?;
        if batch.num_rows() == 0 {
            continue;
        }
        let batch = adapted(&batch, schema).map_err(InputError::arrow(input.name(), "a file of its columns"))?;
        if to.blocking_send(Ok(batch)).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Turns the panic of a library into an error: a damaged file must not look like a bug of the program.
pub(super) fn guarded<T>(input: &Input, work: impl FnOnce() -> Result<T, InputError>) -> Result<T, InputError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let message = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(InputError::Broken { file: input.name().to_owned(), message })
    })
}
