//! Thallus's client.

use async_trait::async_trait;
use futures::TryStreamExt;
use thallus_client::{Client, QueryOptions, TransferReport};

use super::{Connection, Outcome};
use crate::contender::Contender;
use crate::thallus_config;
use crate::wire::{Report, Request};

pub(super) struct Thallus {
    client: Client,
    options: QueryOptions,
}

impl Thallus {
    pub(super) async fn connect(contender: Contender, port: u16) -> Result<Self, String> {
        let (connect, options) = thallus_config::client(contender, port).ok_or("this build cannot deliver so")?;
        let client = Client::connect_with(connect).await.map_err(|e| e.to_string())?;
        Ok(Thallus { client, options })
    }
}

#[async_trait]
impl Connection for Thallus {
    async fn run(&self, request: &Request) -> Result<Outcome, String> {
        let result = self.client.query_with(&request.query, self.options.clone()).await;
        let mut result = result.map_err(|e| e.to_string())?;
        let mut outcome = Outcome::default();
        while let Some(batch) = result.try_next().await.map_err(|e| e.to_string())? {
            outcome.take(&batch, request.read_every_byte);
        }
        outcome.report = Some(report(&result.report()));
        Ok(outcome)
    }
}

fn report(report: &TransferReport) -> Report {
    let server = report.server.unwrap_or_default();
    Report {
        bytes_lent: report.bytes_lent + report.bytes_mapped,
        bytes_inline: report.bytes_inline,
        bytes_copied_client: report.bytes_copied,
        bytes_copied_server: server.bytes_copied,
        first_answer: report.first_answer.as_secs_f64(),
        wait: report.wait.as_secs_f64(),
        read: report.read.as_secs_f64(),
        decode: report.decode.as_secs_f64(),
        server_execute: server.execute.as_secs_f64(),
        server_credit_wait: server.credit_wait.as_secs_f64(),
    }
}
