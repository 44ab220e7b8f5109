//! What the harness says to its clients, in lines of JSON: one request, one answer.

use serde::{Deserialize, Serialize};

/// Run a query, so often, and say how long it took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// A [`crate::query::Query`].
    pub query: String,
    /// Bytes of its result, for those who move bytes only.
    pub bytes: u64,
    /// Whether every byte of the result is read, and not only its rows counted.
    pub touch: bool,
    /// Queries at once, each over a connection of its own.
    pub streams: usize,
    /// One after the other.
    pub iterations: usize,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Of each iteration: from sending the queries until the last has its last batch.
    #[serde(default)]
    pub seconds: Vec<f64>,
    /// Of one query.
    #[serde(default)]
    pub rows: u64,
    /// Of one query.
    #[serde(default)]
    pub batches: u64,
    /// What Thallus says of it.
    #[serde(default)]
    pub report: Option<Report>,
    /// What went wrong.
    #[serde(default)]
    pub error: Option<String>,
}

/// What Thallus says of a transfer; of the last iteration, and the first stream. Seconds and bytes.
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
