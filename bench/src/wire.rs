//! Messages between the harness and its clients, in lines of JSON: one request, one answer.

use serde::{Deserialize, Serialize};

/// A request to run a query several times and to measure it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// A [`crate::query::Query`].
    pub query: String,
    /// Bytes of the result, for contenders that only move bytes.
    pub bytes: u64,
    /// True if the client reads every byte of the result, instead of counting rows only.
    pub read_every_byte: bool,
    /// Queries at once, each over a connection of its own.
    pub streams: usize,
    /// Number of iterations, one after the other.
    pub iterations: usize,
}

/// The measurements of a request.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Seconds of each iteration: from sending the queries until the last batch of the last query has arrived.
    #[serde(default)]
    pub seconds: Vec<f64>,
    /// Rows of one query.
    #[serde(default)]
    pub rows: u64,
    /// Batches of one query.
    #[serde(default)]
    pub batches: u64,
    /// Thallus's report of the transfer.
    #[serde(default)]
    pub report: Option<Report>,
    /// The error, if the request failed.
    #[serde(default)]
    pub error: Option<String>,
}

/// Thallus's report of a transfer, in seconds and bytes: of the last iteration and the first stream.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub bytes_lent: u64,
    pub bytes_inline: u64,
    pub bytes_copied_client: u64,
    pub bytes_copied_server: u64,
    pub first_answer: f64,
    pub wait: f64,
    pub read: f64,
    pub decode: f64,
    pub server_execute: f64,
    pub server_credit_wait: f64,
}
