//! `thallus tables`: the tables of a server, and the files that it skips.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::TryStreamExt;
use thallus_client::{Client, ClientError, Depth, ObjectsRequest, StreamCode};

use super::args::{TablesArgs, connect_options};
use super::failure::{Failure, Phase};
use super::format::{self, FormatOptions};
use super::interrupt::Interrupts;
use super::output::Output;
use super::query::FAREWELL;
use super::shell::listing;

const SERVED: &str = "SELECT * FROM server.tables ORDER BY name";
const SKIPPED: &str = "SELECT * FROM server.skipped ORDER BY file, reason";

/// Prints the tables, and the files that are skipped, if there are any.
///
/// # Errors
/// [`Failure::Client`], [`Failure::Interrupted`], [`Failure::Local`].
pub(super) async fn tables(args: TablesArgs, mut interrupts: Interrupts) -> Result<(), Failure> {
    let failed = |phase| move |error| Failure::Client { phase, error };
    let options = connect_options(&args.url)?;
    let client = interrupts.unless(Client::connect_with(options)).await?.map_err(failed(Phase::Connect))?;
    match interrupts.unless(rows(&client, SERVED)).await? {
        Ok((schema, served)) => {
            show(&schema, &served)?;
            let (schema, skipped) =
                interrupts.unless(rows(&client, SKIPPED)).await?.map_err(failed(Phase::Transfer))?;
            if skipped.iter().any(|batch| batch.num_rows() > 0) {
                show(&schema, &skipped)?;
            }
        }
        // The tables of a database behind the server come from no files.
        Err(ClientError::Query { kind: StreamCode::UnknownTable, .. }) => {
            let request = ObjectsRequest { depth: Depth::Tables, ..ObjectsRequest::default() };
            let objects = interrupts.unless(client.objects(&request)).await?.map_err(failed(Phase::Transfer))?;
            let tables = listing::tables(&objects)?;
            show(&tables.schema(), &[tables])?;
        }
        Err(error) => return Err(failed(Phase::Transfer)(error)),
    }
    let _ = tokio::time::timeout(FAREWELL, client.close()).await;
    Ok(())
}

async fn rows(client: &Client, sql: &str) -> Result<(SchemaRef, Vec<RecordBatch>), ClientError> {
    let result = client.query(sql).await?;
    Ok((result.schema(), result.try_collect().await?))
}

fn show(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<(), Failure> {
    let options = FormatOptions::table(usize::MAX);
    let output = Output::stdout()?;
    let mut writer = format::writer(&options, schema, &output)?;
    let failure = |error| format::failure(options.format, error, &output);
    batches.iter().try_for_each(|batch| writer.write(batch)).map_err(failure)?;
    writer.finish().map_err(failure)?;
    output.commit()
}
