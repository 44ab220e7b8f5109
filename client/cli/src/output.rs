//! A result as the command line writes it, and its destination: standard output, or a file that appears only when it
//! is complete.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::Stream;

use super::failure::Failure;
use super::stdout;
use thallus_client::{ClientError, ResultStream, TransferReport};

const BUFFER: usize = 256 * 1024;

/// A running result, as needed by the command line. Dropping it cancels the query.
pub trait QueryResult: Stream<Item = Result<RecordBatch, ClientError>> + Unpin {
    /// The schema of all batches.
    fn schema(&self) -> SchemaRef;
    /// The transfer so far.
    fn report(&self) -> TransferReport;
    /// Rows that were only counted, because the output does not show them.
    fn rows_omitted(&self) -> u64 {
        0
    }
}

impl QueryResult for ResultStream {
    fn schema(&self) -> SchemaRef {
        ResultStream::schema(self)
    }

    fn report(&self) -> TransferReport {
        ResultStream::report(self)
    }
}

/// The destination of a result.
///
/// If it is dropped without [`commit`](Output::commit), an unfinished file is removed.
#[derive(Debug)]
pub struct Output {
    /// The name in messages.
    name: String,
    file: File,
    terminal: bool,
    /// The file to rename at success; `None` for standard output, devices and pipes, which are written in place.
    pending: Option<Pending>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The first error of writing. The layers above wrap errors and lose their kind.
    failed: Mutex<Option<io::Error>>,
    /// The rest is not written.
    abandoned: AtomicBool,
}

#[derive(Debug)]
struct Pending {
    temporary: PathBuf,
    target: PathBuf,
}

impl Output {
    /// Standard output.
    ///
    /// # Errors
    /// [`Failure::Local`] if it is closed.
    pub fn stdout() -> Result<Self, Failure> {
        let name = "standard output".to_owned();
        let file =
            stdout::open().map_err(|source| Failure::Local { what: format!("cannot write to {name}"), source })?;
        let terminal = file.is_terminal();
        Ok(Output { name, file, terminal, pending: None, state: Arc::default() })
    }

    /// A file that has no name, for text that goes to a terminal later.
    #[must_use]
    pub fn spool(file: File) -> Self {
        Output { name: "a temporary file".into(), file, terminal: true, pending: None, state: Arc::default() }
    }

    /// A file, written under another name in the same directory until it is complete. Links are followed; devices and
    /// pipes are written in place.
    ///
    /// # Errors
    /// [`Failure::Local`] if it cannot be created.
    pub fn file(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let (file, pending) =
            open(path).map_err(|source| Failure::Local { what: format!("cannot write {name}"), source })?;
        let terminal = file.is_terminal();
        Ok(Output { name, file, terminal, pending, state: Arc::default() })
    }

    /// Returns whether the output is a terminal.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Returns whether the output is a regular file, so that formats with a footer are possible.
    #[must_use]
    pub fn is_regular_file(&self) -> bool {
        self.pending.is_some()
    }

    /// A buffered writer to the output. The caller must flush it at the end, and check the error.
    ///
    /// # Errors
    /// [`Failure::Local`].
    pub fn writer(&self) -> Result<OutputWriter, Failure> {
        let file = self.file.try_clone().map_err(|source| self.local(source))?;
        Ok(BufWriter::with_capacity(BUFFER, Recorder { file, state: Arc::clone(&self.state) }))
    }

    /// The first error of a writer, if any. Report it instead of the error that the layers above derived from it.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        let source = self.state.failed.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(self.local(source))
    }

    /// Drops all bytes that are written from now on, such as those in the buffer of a writer.
    pub fn abandon(&self) {
        self.state.abandoned.store(true, Ordering::Relaxed);
    }

    /// Gives the file its final name, once everything has been written and flushed.
    ///
    /// # Errors
    /// [`Failure::Local`]; the file is removed then.
    pub fn commit(mut self) -> Result<(), Failure> {
        let Some(pending) = &self.pending else { return Ok(()) };
        // Some file systems report a full disk only here.
        let renamed = self.file.sync_data().and_then(|()| fs::rename(&pending.temporary, &pending.target));
        renamed.map_err(|source| self.local(source))?;
        self.pending = None;
        Ok(())
    }

    fn local(&self, source: io::Error) -> Failure {
        match source.kind() {
            io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
            _ => Failure::Local { what: format!("cannot write {}", self.name), source },
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(Pending { temporary, .. }) = &self.pending {
            // A failure cannot be handled here, and the reason for the removal is the error for the user.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// A buffered writer to an [`Output`].
pub type OutputWriter = BufWriter<Recorder>;

/// A file that records its first error.
#[derive(Debug)]
pub struct Recorder {
    file: File,
    state: Arc<State>,
}

impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.state.abandoned.load(Ordering::Relaxed) {
            return Ok(bytes.len());
        }
        self.file.write(bytes).inspect_err(|error| self.record(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush().inspect_err(|error| self.record(error))
    }
}

impl Recorder {
    fn record(&self, error: &io::Error) {
        // The caller retries.
        if error.kind() == io::ErrorKind::Interrupted {
            return;
        }
        let copy = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
        self.state.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(copy);
    }
}

fn open(path: &Path) -> io::Result<(File, Option<Pending>)> {
    let existing = match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        Ok(metadata) if !metadata.is_file() => return Ok((OpenOptions::new().write(true).open(path)?, None)),
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let target = if existing.is_some() { fs::canonicalize(path)? } else { path.to_owned() };
    let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    loop {
        let temporary = target.with_file_name(temporary_name(&name));
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => {
                let pending = Pending { temporary, target };
                if let Some(metadata) = existing {
                    // The new file gets the permissions of the old one.
                    if let Err(error) = file.set_permissions(metadata.permissions()) {
                        let _ = fs::remove_file(&pending.temporary);
                        return Err(error);
                    }
                }
                return Ok((file, Some(pending)));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

fn temporary_name(name: &OsStr) -> OsString {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // A name has at most 255 bytes, and this one is longer than that of the file.
    let short = name.to_string_lossy().chars().take(50).collect::<String>();
    let mut temporary = OsString::from(".");
    temporary.push(if name.len() > 200 { OsStr::new(&short) } else { name });
    temporary.push(format!(".{}-{}.partial", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    temporary
}
