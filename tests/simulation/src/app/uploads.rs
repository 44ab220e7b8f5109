//! Uploads: a client offers batches, possibly late, without an end, or up to an error. It drops some uploads, and
//! compares the outcome of each with its script.

use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;
use futures::{StreamExt, stream};
use thallus_client::{Client, ClientError, LendFrom, StreamCode, UploadOptions};
use tokio::time::{sleep, timeout};

use super::App;
use crate::dice::Dice;
use crate::options::Options;
use crate::scripts::{Ending, Script, Sink, table};

/// An upload to be made.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    sink: Sink,
    source: Script,
    options: UploadOptions,
    /// Time after which the upload is dropped.
    dropped: Option<Duration>,
}

impl Offer {
    /// An upload that succeeds, with all batches lent. `number` is unique in the run.
    pub(super) fn plain(dice: &mut Dice, number: u64) -> Self {
        let source = Script::draw_source(dice, number, true);
        let options = UploadOptions::new().with_lend_from(LendFrom::Bytes(0));
        Offer { sink: Sink::Takes, source, options, dropped: None }
    }

    pub(super) fn draw(dice: &mut Dice, options: &Options, number: u64) -> Self {
        let sink = match dice.within(0, 9) {
            0 => Sink::Fails,
            1 => Sink::Refuses,
            2..=3 => Sink::IsSlow,
            _ => Sink::Takes,
        };
        let source = Script::draw_source(dice, number, options.fault_free);
        let hangs = source.ending.is_never();
        let deadline = (hangs || !options.fault_free && dice.percent(10)).then(|| dice.millis(30, 500));
        let upload = UploadOptions::new().with_deadline(deadline);
        let upload = match dice.within(0, 3) {
            0 => upload,
            1 => upload.with_lend_from(LendFrom::Never),
            _ => upload.with_lend_from(LendFrom::Bytes(0)),
        };
        let dropped = dice.percent(15).then(|| dice.millis(0, 300));
        Offer { sink, source, options: upload, dropped }
    }

    /// Whether the server may answer that it has taken the upload.
    fn may_be_kept(&self) -> bool {
        self.source.ending == Ending::Finish && matches!(self.sink, Sink::Takes | Sink::IsSlow)
    }
}

impl App {
    /// Draws the uploads of a round.
    pub(super) fn plan_uploads(&mut self) -> Vec<Offer> {
        let most = if self.shared.options.uploads_only() { self.shared.options.concurrency } else { 2 };
        let number = self.uploads.within(0, most);
        (0..number).map(|_| self.plan_upload(false)).collect()
    }

    pub(super) fn plan_upload(&mut self, plain: bool) -> Offer {
        let number = self.shared.next_upload();
        match plain {
            true => Offer::plain(&mut self.uploads, number),
            false => Offer::draw(&mut self.uploads, &self.shared.options, number),
        }
    }

    /// Makes an upload. Whether it succeeded.
    pub(super) async fn upload(&self, client: &Client, offer: Offer) -> bool {
        let trace = &self.shared.trace;
        let batches: Vec<RecordBatch> = offer.source.expected(None);
        let rows: u64 = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        let upload = self.shared.ledger.offer(batches, offer.may_be_kept());
        let name = format!("{} upload {upload}", self.who);
        trace.line(&self.who, &format_args!("{name}: {offer:?}"));
        let (schema, source) = (offer.source.schema(), source(&offer.source));
        let sent = client.upload_with(table(offer.sink), schema, source.boxed(), offer.options.clone());
        let sent = timeout(offer.dropped.unwrap_or(Duration::MAX), sent);
        let ended = match self.within(&name, sent).await {
            None => return false,
            Some(Err(_dropped)) => {
                trace.line(&self.who, &format_args!("{name}: dropped"));
                trace.count("upload", "dropped");
                return false;
            }
            Some(Ok(ended)) => ended,
        };
        self.shared.collect_uploads();
        match ended {
            Ok(report) => {
                trace.line(&self.who, &format_args!("{name}: {report:?}"));
                trace.count("upload", "whole");
                trace.count_many("upload", "lent batches", report.batches_lent);
                trace.count_many("upload", "inline batches", report.batches_inline);
                if !self.shared.ledger.is_kept(upload) || report.rows != rows {
                    let how = format!("{name}: the answer is {} rows taken of {rows}", report.rows);
                    trace.violation("an upload that is taken is kept", how);
                }
                true
            }
            Err(error) => {
                self.upload_failed(&name, &offer, &error);
                if self.shared.ledger.is_kept(upload) {
                    // The answer was lost, or came too late.
                    trace.count("upload", "kept without an answer");
                    if matches!(error, ClientError::Source { .. }) {
                        trace.violation("an upload that fails is not kept", format!("{name}: {error}"));
                    }
                }
                false
            }
        }
    }

    fn upload_failed(&self, name: &str, offer: &Offer, error: &ClientError) {
        self.judge_as("upload", name, error);
        let as_scripted = match error {
            ClientError::Source { .. } => offer.source.ending == Ending::Fail,
            ClientError::Query { kind: StreamCode::Execution, .. } => {
                matches!(offer.sink, Sink::Fails | Sink::Refuses)
            }
            _ => false,
        };
        if self.shared.options.fault_free && !as_scripted {
            let how = format!("{name} failed without a fault: {error}: {offer:?}");
            self.shared.trace.violation("fault-free runs go well", how);
        }
    }
}

/// The source of an upload that plays a script.
fn source(script: &Script) -> impl futures::Stream<Item = Result<RecordBatch, ArrowError>> + Send + use<> {
    let ending = script.ending;
    let batches = stream::iter(script.batches.clone()).then(|(wait, batch)| async move {
        sleep(wait).await;
        Ok(batch)
    });
    let end = stream::once(async move {
        match ending {
            Ending::Finish => None,
            Ending::Fail => Some(Err(ArrowError::ComputeError("as scripted".to_owned()))),
            Ending::Hang | Ending::IgnoreCancel => std::future::pending().await,
        }
    });
    batches.chain(end.filter_map(|end| async move { end }))
}
