//! The trace of a run: a line for each event, a hash of the lines, and counts of events.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

/// Number of last lines that a report has.
const KEPT: usize = 120;

/// Number of occurrences of each event, by kind and name.
pub type Counts = BTreeMap<(&'static str, String), u64>;

/// The trace of a run. Clones share the same trace.
#[derive(Clone, Debug, Default)]
pub struct Trace(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    now: u64,
    lines: VecDeque<String>,
    whole: bool,
    muted: bool,
    hash: u64,
    events: u64,
    counts: Counts,
    failures: Vec<String>,
    /// The connection that handles what it has read must end, for this reason.
    must_end: Option<String>,
}

impl Trace {
    /// A trace that keeps every line, or only the last [`KEPT`].
    #[must_use]
    pub fn new(whole: bool) -> Self {
        Trace(Arc::new(Mutex::new(Inner { whole, hash: 0xCBF2_9CE4_8422_2325, ..Inner::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the time of later lines, in milliseconds.
    pub fn set_now(&self, millis: u64) {
        self.lock().now = millis;
    }

    /// Stops or resumes the recording of log events of server and client. A process that is being killed is not
    /// recorded.
    pub fn set_muted(&self, muted: bool) {
        self.lock().muted = muted;
    }

    /// Records an event.
    pub fn line(&self, who: &str, what: &dyn fmt::Display) {
        let mut inner = self.lock();
        let line = scrub(&format!("{:>6} {who:<9} {what}", inner.now));
        let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        inner.hash = line.bytes().chain([b'\n']).fold(inner.hash, fold);
        inner.events += 1;
        if !inner.whole && inner.lines.len() >= KEPT {
            inner.lines.pop_front();
        }
        inner.lines.push_back(line);
    }

    /// Counts an event.
    pub fn count(&self, kind: &'static str, what: impl Into<String>) {
        self.count_many(kind, what, 1);
    }

    /// Adds `times` to the count of an event.
    pub fn count_many(&self, kind: &'static str, what: impl Into<String>, times: u64) {
        *self.lock().counts.entry((kind, what.into())).or_default() += times;
    }

    /// Records that an invariant does not hold.
    pub fn violation(&self, invariant: &str, how: impl fmt::Display) {
        let failure = scrub(&format!("{invariant}: {how}"));
        self.line("CHECK", &failure);
        self.lock().failures.push(failure);
    }

    /// The connection that handles bytes next must end, for this reason. `None`: it need not.
    pub fn expect_end(&self, reason: Option<String>) {
        self.lock().must_end = reason;
    }

    /// A connection has handled the bytes that it read.
    fn received(&self, state: &str) {
        let reason = self.lock().must_end.take();
        if let Some(reason) = reason
            && !["closing", "closed"].contains(&state)
        {
            self.violation("a flipped bit ends the connection at once", format!("{reason}, and it is {state}"));
        }
    }

    /// The first violation.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.lock().failures.first().cloned()
    }

    /// The recorded lines.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lock().lines.iter().cloned().collect()
    }

    /// The hash of all lines, their number, and the counts.
    #[must_use]
    pub fn summary(&self) -> (u64, u64, Counts) {
        let inner = self.lock();
        (inner.hash, inner.events, inner.counts.clone())
    }
}

/// Removes addresses, which differ between two runs.
fn scrub(line: &str) -> String {
    let mut clean = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("0x") {
        let (before, from) = rest.split_at(at);
        clean.push_str(before);
        clean.push_str("0x..");
        rest = from[2..].trim_start_matches(|c: char| c.is_ascii_hexdigit());
    }
    clean.push_str(rest);
    clean
}

/// Records the log events of server and client.
pub struct LogRecorder(pub Trace);

impl Subscriber for LogRecorder {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.is_event() && metadata.target().starts_with("thallus_") {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("thallus_")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        if self.0.lock().muted {
            return;
        }
        let mut fields = LogFields::default();
        event.record(&mut fields);
        if fields.message == "received" {
            self.0.received(fields.state.as_deref().unwrap_or_default().trim_matches('"'));
            return;
        }
        let who = event.metadata().target().trim_start_matches("thallus_").split(':').next().unwrap_or_default();
        self.0.line(who, &fields.line);
        if fields.message == "state"
            && let (Some(from), Some(to)) = (fields.from, fields.to)
        {
            // Both ends have one driver: which end it is, is in the event.
            let end = fields.end.as_deref().unwrap_or(who).trim_matches('"');
            self.0.count("transition", format!("{end} {from} -> {to}"));
        }
        if fields.line.contains("bug:") {
            self.0.violation("no bug is logged", &fields.line);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct LogFields {
    message: String,
    line: String,
    end: Option<String>,
    from: Option<String>,
    to: Option<String>,
    state: Option<String>,
}

impl Visit for LogFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message.clone_from(&text),
            "end" => self.end = Some(text.clone()),
            "from" => self.from = Some(text.clone()),
            "to" => self.to = Some(text.clone()),
            "state" => self.state = Some(text.clone()),
            _ => {}
        }
        // Writing to a string cannot fail.
        let _infallible = write!(self.line, "{}={text} ", field.name());
    }
}
