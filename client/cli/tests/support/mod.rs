//! Results without a server, and temporary directories.

// Each test program uses only a part of this module.
#![allow(dead_code)]

pub(crate) mod leaves;
pub(crate) mod server;
pub(crate) mod wrapped;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::SchemaRef;
use thallus_cli::failure::{Failure, Interrupt};
use thallus_cli::format::{Format, FormatOptions};
use thallus_cli::interrupt::Interrupts;
use thallus_cli::output::Output;
use thallus_cli::progress::Progress;
use thallus_cli::query::{QueryResult, deliver};
use thallus_client::{ClientError, TransferReport};
use tokio::sync::watch;

/// Rows with an id, and a name that needs quoting in text or is null.
pub(crate) fn numbers(from: i64, rows: i64) -> RecordBatch {
    let ids: Int64Array = (from..from + rows).collect();
    let names: StringArray = (from..from + rows).map(|i| (i % 3 != 0).then(|| format!("name, \"{i}\""))).collect();
    RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(ids) as ArrayRef, false),
        ("name", Arc::new(names) as ArrayRef, true),
    ])
    .unwrap()
}

/// Seven rows in three batches: one is empty, and one is a slice.
pub(crate) fn batches() -> Vec<RecordBatch> {
    vec![numbers(0, 5), numbers(5, 0), numbers(5, 4).slice(1, 2)]
}

/// A result that a test defines.
pub(crate) struct Synthetic {
    schema: SchemaRef,
    items: VecDeque<Result<RecordBatch, ClientError>>,
    /// Whether the stream ends after its items. If not, it stays pending.
    ends: bool,
    rows: u64,
    drained: watch::Sender<bool>,
    dropped: Arc<AtomicBool>,
}

impl Synthetic {
    pub(crate) fn new(schema: SchemaRef, batches: Vec<RecordBatch>) -> Self {
        let items = batches.into_iter().map(Ok).collect();
        let drained = watch::Sender::new(false);
        Synthetic { schema, items, ends: true, rows: 0, drained, dropped: Arc::default() }
    }

    pub(crate) fn of(batches: Vec<RecordBatch>) -> Self {
        Self::new(batches[0].schema(), batches)
    }

    pub(crate) fn then(mut self, item: Result<RecordBatch, ClientError>) -> Self {
        self.items.push_back(item);
        self
    }

    pub(crate) fn then_silent(mut self) -> Self {
        self.ends = false;
        self
    }

    pub(crate) fn dropped(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.dropped)
    }
}

impl Drop for Synthetic {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::SeqCst);
    }
}

impl futures::Stream for Synthetic {
    type Item = Result<RecordBatch, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.items.pop_front() {
            Some(item) => {
                self.rows += item.as_ref().map_or(0, |batch| batch.num_rows() as u64);
                Poll::Ready(Some(item))
            }
            None if self.ends => Poll::Ready(None),
            None => {
                self.drained.send_replace(true);
                Poll::Pending
            }
        }
    }
}

impl QueryResult for Synthetic {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn report(&self) -> TransferReport {
        TransferReport { rows: self.rows, ..TransferReport::default() }
    }
}

pub(crate) fn options(format: Format) -> FormatOptions {
    FormatOptions { format, ..FormatOptions::table(1000) }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Delivers a result, and checks that the last report counts all rows.
pub(crate) fn run(result: Synthetic, options: FormatOptions, path: &Path) -> Result<(), Failure> {
    let expected: u64 = result.items.iter().flatten().map(|batch| batch.num_rows() as u64).sum();
    let output = Output::file(path)?;
    let (_stop, seen) = watch::channel(None);
    let (outcome, report) = block_on(deliver(result, options, output, Progress::new(false), Interrupts::new(seen)));
    assert!(outcome.is_err() || report.rows == expected, "{} of {expected} rows reported", report.rows);
    outcome
}

/// Delivers a result that never ends, and interrupts the delivery after the last item.
pub(crate) fn run_interrupted(
    result: Synthetic,
    options: FormatOptions,
    path: &Path,
    interrupt: Interrupt,
) -> Result<(), Failure> {
    let output = Output::file(path)?;
    let (stop, seen) = watch::channel(None);
    let mut drained = result.drained.subscribe();
    let delivery = deliver(result, options, output, Progress::new(false), Interrupts::new(seen));
    let stopping = async {
        drained.wait_for(|drained| *drained).await.unwrap();
        stop.send_replace(Some(interrupt));
    };
    let ((outcome, _), ()) = block_on(async { tokio::join!(delivery, stopping) });
    outcome
}

/// A temporary directory, removed on drop.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("cli-{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Names of all entries, also of hidden ones.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
