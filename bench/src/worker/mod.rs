//! The client processes. They answer requests from standard input, one line each.

mod flight;
mod limits;
mod thallus;
mod touch;

use std::sync::Arc;
use std::time::Instant;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use futures::future::try_join_all;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::contender::Contender;
use crate::wire::{Answer, Report, Request};

/// One connection to a server.
#[async_trait]
trait Connection: Send + Sync + 'static {
    /// Runs a query and takes every batch of its result.
    async fn run(&self, request: &Request) -> Result<Outcome, String>;
}

/// Result of one query.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    rows: u64,
    batches: u64,
    /// Sum of the bytes read, so that the compiler cannot remove the reads.
    sum: u64,
    report: Option<Report>,
}

impl Outcome {
    fn take(&mut self, batch: &RecordBatch, touch: bool) {
        self.rows += batch.num_rows() as u64;
        self.batches += 1;
        if touch {
            self.sum = self.sum.wrapping_add(touch::sum(batch));
        }
    }
}

async fn connect(contender: Contender, port: u16) -> Result<Arc<dyn Connection>, String> {
    Ok(match contender {
        Contender::Thallus | Contender::Lent | Contender::Mapped | Contender::Inline => {
            Arc::new(thallus::Thallus::connect(contender, port).await?)
        }
        Contender::FlightRust => Arc::new(flight::Flight::connect(port, false).await?),
        Contender::FlightSqlRust => Arc::new(flight::Flight::connect(port, true).await?),
        Contender::Memcpy => Arc::new(limits::Memcpy::new()),
        Contender::UcxGet => Arc::new(limits::UcxGet::connect(port).await?),
        Contender::FlightCpp | Contender::FlightSqlCpp => return Err("that client is in Python".into()),
    })
}

/// Answers requests until standard input ends.
pub async fn work(contender: Contender, port: u16) -> Result<(), String> {
    let mut connections = vec![connect(contender, port).await?];
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut stdout = tokio::io::stdout();
    while let Some(line) = lines.next_line().await.map_err(|e| e.to_string())? {
        let request: Request = serde_json::from_str(&line).map_err(|e| e.to_string())?;
        let answer = match answer(&mut connections, contender, port, &request).await {
            Ok(answer) => answer,
            Err(error) => Answer { error: Some(error), ..Answer::default() },
        };
        let mut line = serde_json::to_string(&answer).map_err(|e| e.to_string())?;
        line.push('\n');
        stdout.write_all(line.as_bytes()).await.map_err(|e| e.to_string())?;
        stdout.flush().await.map_err(|e| e.to_string())?;
    }
    Ok(())
}

async fn answer(
    connections: &mut Vec<Arc<dyn Connection>>,
    contender: Contender,
    port: u16,
    request: &Request,
) -> Result<Answer, String> {
    while connections.len() < request.streams {
        connections.push(connect(contender, port).await?);
    }
    // Connections that this request does not need would take time and memory from the others.
    connections.truncate(request.streams.max(1));
    let mut answer = Answer::default();
    for _ in 0..request.iterations {
        let started = Instant::now();
        let outcomes = if let [connection] = &connections[..] {
            vec![connection.run(request).await?]
        } else {
            // One task for each connection, as in an application with several results. A single task would use one
            // core.
            let each = connections.iter().map(|connection| (Arc::clone(connection), request.clone()));
            let tasks = each.map(|(connection, request)| tokio::spawn(async move { connection.run(&request).await }));
            let outcomes = try_join_all(tasks).await.map_err(|e| e.to_string())?;
            outcomes.into_iter().collect::<Result<_, _>>()?
        };
        answer.seconds.push(started.elapsed().as_secs_f64());
        if let Some(outcome) = outcomes.first() {
            std::hint::black_box(outcome.sum);
            (answer.rows, answer.batches, answer.report) = (outcome.rows, outcome.batches, outcome.report);
        }
    }
    Ok(answer)
}
