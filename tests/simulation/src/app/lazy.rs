//! A query whose result is read lazily: some columns and rows of each batch, possibly late, possibly while other
//! batches are held.

use std::collections::VecDeque;

use arrow_array::RecordBatch;
use futures::StreamExt;
use futures::future::join;
use thallus_client::{Client, ClientError, LazyBatch, LazyOptions};
use tokio::time::sleep;

use super::App;
use super::plan::{PartialReads, Plan};
use crate::scripts::{Ending, sql};

impl App {
    /// Makes a query and reads its result lazily. Whether it succeeded.
    pub(super) async fn query_lazily(
        &self,
        client: &Client,
        name: &str,
        plan: &Plan,
        partial_reads: &PartialReads,
    ) -> bool {
        let trace = &self.shared.trace;
        let script = &self.shared.options.scripts[plan.index];
        let expected = script.expected(plan.query.batch_rows);
        let text = sql(plan.index);
        let fails = script.refused || script.ending == Ending::Fail;
        let options = LazyOptions::new()
            .with_window(plan.query.window)
            .with_batch_rows(plan.query.batch_rows)
            .with_deadline(plan.query.deadline);
        let options = plan.query.lend_from.into_iter().fold(options, LazyOptions::with_lend_from);
        let asked = client.query_lazy_with(&text, options);
        let mut result = match self.within(name, asked).await {
            None => return false,
            Some(Ok(result)) => result,
            Some(Err(error)) => {
                self.query_failed(name, plan, fails, &error);
                return false;
            }
        };
        let mut held: VecDeque<(usize, LazyBatch)> = VecDeque::new();
        let mut got = 0;
        loop {
            if plan.cancel_after == Some(got) {
                trace.line(&self.who, &format_args!("{name}: dropped after {got} batches, {} held", held.len()));
                trace.count("lazy", "dropped");
                // Read the held batches during the teardown: each read gives an error, or the right values.
                drop(result);
                for (at, batch) in &held {
                    if let Some(Err(error)) =
                        self.within(name, self.check(name, batch, expected.get(*at), partial_reads)).await
                    {
                        self.judge(name, &error);
                    }
                }
                return false;
            }
            let Some(next) = self.within(name, result.next()).await else { return false };
            match next {
                Some(Ok(batch)) => {
                    held.push_back((got, batch));
                    got += 1;
                    if held.len() <= partial_reads.hold {
                        continue;
                    }
                }
                Some(Err(error)) => {
                    self.query_failed(name, plan, fails, &error);
                    return false;
                }
                None if held.is_empty() => break,
                None => {}
            }
            let Some((at, batch)) = held.pop_front() else { continue };
            match self.within(name, self.check(name, &batch, expected.get(at), partial_reads)).await {
                None => return false,
                Some(Ok(true)) => {}
                Some(Ok(false)) => return false,
                Some(Err(error)) => {
                    trace.count("lazy", "ask failed");
                    self.query_failed(name, plan, fails, &error);
                    return false;
                }
            }
        }
        trace.line(&self.who, &format_args!("{name}: whole after {got} batches"));
        trace.count("lazy", "whole");
        if got != expected.len() || script.ending != Ending::Finish {
            let how = format!("{name}: ended well after {got} of {}, {:?}", expected.len(), script.ending);
            trace.violation("exact batches in order", how);
        }
        true
    }

    /// Reads parts of a batch. Whether they equal the same parts of the batch that the engine sent.
    async fn check(
        &self,
        name: &str,
        batch: &LazyBatch,
        sent: Option<&RecordBatch>,
        partial_reads: &PartialReads,
    ) -> Result<bool, ClientError> {
        let trace = &self.shared.trace;
        let wrong = |how: &str| {
            trace.violation("exact batches in order", format!("{name}: {how} is not the engine's"));
            Ok(false)
        };
        let Some(sent) = sent.filter(|sent| sent.num_rows() == batch.num_rows()) else {
            return wrong("a lazy batch");
        };
        for (columns, [from, to]) in &partial_reads.reads {
            sleep(partial_reads.pause).await;
            let [start, end] = [from, to].map(|part| sent.num_rows() * *part as usize / 1000);
            let ask = || batch.columns_in(columns, start..end);
            let found = if partial_reads.twice { join(ask(), ask()).await.0? } else { ask().await? };
            trace.count("lazy", if batch.is_inline() { "was here" } else { "asked" });
            let part = sent.project(columns).map(|part| part.slice(start, end - start));
            if part.ok().as_ref() != Some(&found) {
                return wrong(&format!("rows {start}..{end} of columns {columns:?}"));
            }
        }
        Ok(true)
    }
}
