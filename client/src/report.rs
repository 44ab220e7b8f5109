//! Reports of transfers: the fabric, the amount of data, and the times.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use thallus_fabric::units::{grouped, human_duration, human_size};
use thallus_protocol::message::Vendor;

/// The carrier of results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// One-sided reads through a fabric.
    OneSided {
        /// The fabric: `ucx`.
        fabric: String,
        /// The transport that the fabric chose, in the fabric's own words: `posix/memory cma/memory`.
        transport: String,
    },
    /// Arrow IPC over the control connection.
    Inline {
        /// The reason why one-sided reads are not available. `None`: inline was requested.
        fallback: Option<String>,
    },
}

impl Default for Carrier {
    fn default() -> Self {
        Carrier::Inline { fallback: None }
    }
}

impl Carrier {
    /// Why results travel inline although one-sided reads were requested.
    #[must_use]
    pub fn fallback(&self) -> Option<&str> {
        match self {
            Carrier::Inline { fallback } => fallback.as_deref(),
            Carrier::OneSided { .. } => None,
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Carrier::OneSided { fabric, transport } if transport.is_empty() => write!(f, "{fabric}, one-sided"),
            Carrier::OneSided { fabric, transport } => write!(f, "{fabric}, one-sided: {transport}"),
            Carrier::Inline { fallback: None } => f.write_str("inline over TCP"),
            Carrier::Inline { fallback: Some(reason) } => write!(f, "inline over TCP ({reason})"),
        }
    }
}

/// The server's figures for a result that ended well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerReport {
    /// Bytes that the server copied to registered memory before it lent them.
    pub bytes_copied: u64,
    /// Registrations of memory that the server made for lent batches; none in steady state.
    pub registrations: u64,
    /// Regions that the server announced for lent batches; none in steady state.
    pub regions: u64,
    /// Page faults of the server while it made batches ready to be lent; none in steady state.
    pub page_faults: u64,
    /// Time from the query's arrival to the first batch out of the engine.
    pub first_batch: Duration,
    /// Time in the engine, without time waiting for the client.
    pub execute: Duration,
    /// Time with a batch ready and no credit from the client to send it.
    pub credit_wait: Duration,
}

/// The amount of a lazy result that was read. Batches that came inline are not included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LazyReport {
    /// Live bytes of the batches that were on loan.
    pub bytes_offered: u64,
    /// Bytes of these batches that were read.
    pub bytes_read: u64,
    /// Partial reads that were completed.
    pub partial_reads: u64,
    /// Time from each partial read's request to its completion. Concurrent reads all count.
    pub partial_read_time: Duration,
}

impl LazyReport {
    /// The share of the offered bytes that was never moved, from 0 to 1. Bytes that are read twice count twice.
    #[must_use]
    pub fn saved_fraction(&self) -> f64 {
        if self.bytes_offered == 0 {
            return 0.0;
        }
        let unread = self.bytes_offered.saturating_sub(self.bytes_read);
        unread as f64 / self.bytes_offered as f64
    }
}

/// Report of one result's transfer, so far or in total.
///
/// `Display` writes aligned lines for people, [`to_json`](TransferReport::to_json) one line for programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransferReport {
    /// The carrier of the result.
    pub carrier: Carrier,
    /// Whether the result was received to its end.
    pub complete: bool,
    /// Rows delivered.
    pub rows: u64,
    /// Batches read one-sidedly from the server's memory.
    pub batches_lent: u64,
    /// Batches used in place in the server's memory.
    pub batches_mapped: u64,
    /// Batches that travelled inline.
    pub batches_inline: u64,
    /// Live bytes of the lent batches; of lazy batches, the bytes that were read.
    pub bytes_lent: u64,
    /// Live bytes of the mapped batches.
    pub bytes_mapped: u64,
    /// Bytes of the inline batches.
    pub bytes_inline: u64,
    /// Bytes that the client copied after their arrival.
    pub bytes_copied: u64,
    /// Registrations of memory for reads that the result's connection made during the transfer; none in steady state.
    /// Many batches share each registered piece. Known at the result's end.
    pub registrations: u64,
    /// Time from sending the query to the first answer to it: planning at the server, and one round trip.
    pub first_answer: Duration,
    /// Time in which the client wanted a batch and none had been announced.
    pub wait: Duration,
    /// Time in one-sided reads. Overlapping reads of several batches count once.
    pub read: Duration,
    /// Time in decoding and validation.
    pub decode: Duration,
    /// Time from sending the query until now, or to the result's end.
    pub total: Duration,
    /// The savings of reading lazily. `None` for results that are read whole.
    pub lazy: Option<LazyReport>,
    /// The server's figures. `None` until the result is complete.
    pub server: Option<ServerReport>,
    /// The report of each partition, for a result in partitions. The fields above then cover all partitions. They are
    /// sums, except for times that pass concurrently: those are the longest (for the server's first batch, the
    /// shortest).
    pub partitions: Vec<TransferReport>,
}

impl TransferReport {
    /// Number of batches, by all carriers.
    #[must_use]
    pub fn batches(&self) -> u64 {
        self.batches_lent.saturating_add(self.batches_mapped).saturating_add(self.batches_inline)
    }

    /// Number of bytes, by all carriers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes_lent.saturating_add(self.bytes_mapped).saturating_add(self.bytes_inline)
    }

    /// Bytes per second over the whole of [`total`](Self::total); zero if no time has passed.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        let seconds = self.total.as_secs_f64();
        if seconds > 0.0 { self.bytes() as f64 / seconds } else { 0.0 }
    }

    /// Merges the partitions' reports into this report. Before the call, this report has only the figures of the whole:
    /// times as seen by the reader, bytes copied by merging, completeness.
    pub(crate) fn of_partitions(mut self, partitions: Vec<TransferReport>) -> Self {
        let sum = |of: fn(&TransferReport) -> u64| partitions.iter().map(of).fold(0, u64::saturating_add);
        self.rows = sum(|part| part.rows);
        self.batches_lent = sum(|part| part.batches_lent);
        self.batches_mapped = sum(|part| part.batches_mapped);
        self.batches_inline = sum(|part| part.batches_inline);
        self.bytes_lent = sum(|part| part.bytes_lent);
        self.bytes_mapped = sum(|part| part.bytes_mapped);
        self.bytes_inline = sum(|part| part.bytes_inline);
        self.bytes_copied = self.bytes_copied.saturating_add(sum(|part| part.bytes_copied));
        self.registrations = sum(|part| part.registrations);
        self.read = partitions.iter().map(|part| part.read).max().unwrap_or_default();
        self.decode = partitions.iter().map(|part| part.decode).sum();
        // If one partition fell back to inline, the report shows its carrier.
        let carriers = || partitions.iter().map(|part| &part.carrier);
        let carrier = carriers().find(|carrier| carrier.fallback().is_some()).or_else(|| carriers().next());
        self.carrier = carrier.cloned().unwrap_or_default();
        let servers: Option<Vec<_>> = partitions.iter().map(|part| part.server).collect();
        self.server = servers.map(|all| {
            let sum = |of: fn(&ServerReport) -> u64| all.iter().map(of).fold(0, u64::saturating_add);
            ServerReport {
                bytes_copied: sum(|server| server.bytes_copied),
                registrations: sum(|server| server.registrations),
                regions: sum(|server| server.regions),
                page_faults: sum(|server| server.page_faults),
                first_batch: all
                    .iter()
                    .map(|server| server.first_batch)
                    .filter(|t| !t.is_zero())
                    .min()
                    .unwrap_or_default(),
                execute: all.iter().map(|server| server.execute).max().unwrap_or_default(),
                credit_wait: all.iter().map(|server| server.credit_wait).max().unwrap_or_default(),
            }
        });
        self.partitions = partitions;
        self
    }

    /// One JSON object on one line. Sizes are in bytes, durations in seconds, throughput in bytes per second; absent
    /// values are `null`.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings, finite numbers, options and lists: serialization cannot fail.
        serde_json::to_string(&self.json()).unwrap_or_default()
    }

    fn json(&self) -> Json<'_> {
        let (fabric, transport) = match &self.carrier {
            Carrier::OneSided { fabric, transport } => (Some(fabric.as_str()), Some(transport.as_str())),
            Carrier::Inline { .. } => (None, None),
        };
        Json {
            carrier: if fabric.is_some() { "one-sided" } else { "inline" },
            fabric,
            transport,
            fallback: self.carrier.fallback(),
            complete: self.complete,
            rows: self.rows,
            batches_lent: self.batches_lent,
            batches_mapped: self.batches_mapped,
            batches_inline: self.batches_inline,
            bytes_lent: self.bytes_lent,
            bytes_mapped: self.bytes_mapped,
            bytes_inline: self.bytes_inline,
            bytes_offered: self.lazy.map(|lazy| lazy.bytes_offered),
            partial_reads: self.lazy.map(|lazy| lazy.partial_reads),
            bytes_copied_client: self.bytes_copied,
            bytes_copied_server: self.server.map(|s| s.bytes_copied),
            registrations_client: self.registrations,
            registrations_server: self.server.map(|s| s.registrations),
            regions_server: self.server.map(|s| s.regions),
            page_faults_server: self.server.map(|s| s.page_faults),
            first_answer_seconds: self.first_answer.as_secs_f64(),
            wait_seconds: self.wait.as_secs_f64(),
            read_seconds: self.read.as_secs_f64(),
            partial_read_seconds: self.lazy.map(|lazy| lazy.partial_read_time.as_secs_f64()),
            decode_seconds: self.decode.as_secs_f64(),
            total_seconds: self.total.as_secs_f64(),
            server_first_batch_seconds: self.server.map(|s| s.first_batch.as_secs_f64()),
            server_execute_seconds: self.server.map(|s| s.execute.as_secs_f64()),
            server_credit_wait_seconds: self.server.map(|s| s.credit_wait.as_secs_f64()),
            throughput_bytes_per_second: self.throughput(),
            partitions: self.partitions.iter().map(TransferReport::json).collect(),
        }
    }
}

/// The names are an interface for programs.
#[derive(Serialize)]
struct Json<'a> {
    carrier: &'static str,
    fabric: Option<&'a str>,
    transport: Option<&'a str>,
    fallback: Option<&'a str>,
    complete: bool,
    rows: u64,
    batches_lent: u64,
    batches_mapped: u64,
    batches_inline: u64,
    bytes_lent: u64,
    bytes_mapped: u64,
    bytes_inline: u64,
    bytes_offered: Option<u64>,
    partial_reads: Option<u64>,
    bytes_copied_client: u64,
    bytes_copied_server: Option<u64>,
    registrations_client: u64,
    registrations_server: Option<u64>,
    regions_server: Option<u64>,
    page_faults_server: Option<u64>,
    first_answer_seconds: f64,
    wait_seconds: f64,
    read_seconds: f64,
    partial_read_seconds: Option<f64>,
    decode_seconds: f64,
    total_seconds: f64,
    server_first_batch_seconds: Option<f64>,
    server_execute_seconds: Option<f64>,
    server_credit_wait_seconds: Option<f64>,
    throughput_bytes_per_second: f64,
    partitions: Vec<Json<'a>>,
}

impl fmt::Display for TransferReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, what: &str, text: String| writeln!(f, "{what:<13} {text}");
        let batches = |count: u64, bytes: u64| format!("{} batches, {}", grouped(count), human_size(bytes));
        line(f, "carried by", self.carrier.to_string())?;
        line(f, "rows", grouped(self.rows) + if self.complete { "" } else { " (incomplete)" })?;
        line(f, "lent", batches(self.batches_lent, self.bytes_lent))?;
        if self.batches_mapped > 0 {
            line(f, "mapped", batches(self.batches_mapped, self.bytes_mapped))?;
        }
        line(f, "inline", batches(self.batches_inline, self.bytes_inline))?;
        if let Some(lazy) = self.lazy {
            let (offered, read) = (human_size(lazy.bytes_offered), human_size(lazy.bytes_read));
            let (partial_reads, saved) = (grouped(lazy.partial_reads), lazy.saved_fraction() * 100.0);
            line(
                f,
                "lazy",
                format!("{read} read of {offered} on offer, in {partial_reads} partial reads: {saved:.1}% saved"),
            )?;
        }
        let by_server = self.server.map_or("unknown".into(), |s| human_size(s.bytes_copied));
        line(f, "copied", format!("by the client {}, by the server {by_server}", human_size(self.bytes_copied)))?;
        let by_server = self.server.map_or("unknown".into(), |s| {
            let [registrations, regions, faults] = [s.registrations, s.regions, s.page_faults].map(grouped);
            format!("{registrations} ({regions} regions announced, {faults} page faults)")
        });
        line(f, "registered", format!("by the client {}, by the server {by_server}", grouped(self.registrations)))?;
        line(f, "first answer", human_duration(self.first_answer))?;
        line(f, "waited", human_duration(self.wait))?;
        line(f, "read", human_duration(self.read))?;
        line(f, "decoded", human_duration(self.decode))?;
        line(f, "total", human_duration(self.total))?;
        if let Some(server) = self.server {
            let (first, execute) = (human_duration(server.first_batch), human_duration(server.execute));
            let credit = human_duration(server.credit_wait);
            line(f, "server", format!("first batch {first}, engine {execute}, waited for the client {credit}"))?;
        }
        // A rate above u64 exceeds every machine; the casts saturate.
        for (index, part) in self.partitions.iter().enumerate() {
            let (rows, rate) = (grouped(part.rows), human_size(part.throughput() as u64));
            let text = format!("{rows} rows, {}, {rate}/s", batches(part.batches(), part.bytes()));
            line(f, &format!("partition {index}"), text)?;
        }
        write!(f, "{:<13} {}/s", "throughput", human_size(self.throughput() as u64))
    }
}

/// The parameters that a client and a server agreed on when they connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Name and version of the server.
    pub server: String,
    /// Address of the server: `host:port`.
    pub address: String,
    /// The protocol version in use.
    pub protocol: u16,
    /// The database behind the server.
    pub vendor: Vendor,
    /// The carrier of results.
    pub carrier: Carrier,
    /// Duration of the probe: one word, read one-sidedly from the server's memory and checked. `None` without a fabric.
    pub probe: Option<Duration>,
    /// Rate of one-sided reads from the server's memory, in bytes per second, measured for a moment. `None` unless
    /// requested.
    pub rate: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> TransferReport {
        TransferReport {
            carrier: Carrier::OneSided { fabric: "ucx".into(), transport: "posix/memory cma/memory".into() },
            complete: true,
            rows: 6_001_215,
            batches_lent: 733,
            batches_inline: 1,
            bytes_lent: 3 << 30,
            bytes_inline: 2048,
            first_answer: Duration::from_millis(12),
            total: Duration::from_secs(2),
            registrations: 2,
            server: Some(ServerReport {
                bytes_copied: 512,
                registrations: 3,
                regions: 4,
                page_faults: 5000,
                execute: Duration::from_secs(1),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn for_people() {
        let expected = "\
carried by    ucx, one-sided: posix/memory cma/memory
rows          6,001,215
lent          733 batches, 3.00 GiB
inline        1 batches, 2.00 KiB
copied        by the client 0 B, by the server 512 B
registered    by the client 2, by the server 3 (4 regions announced, 5,000 page faults)
first answer  12.00 ms
waited        0 s
read          0 s
decoded       0 s
total         2.000 s
server        first batch 0 s, engine 1.000 s, waited for the client 0 s
throughput    1.50 GiB/s";
        assert_eq!(report().to_string(), expected);
    }

    #[test]
    fn a_fallback_and_an_incomplete_result_are_shown() {
        let carrier = Carrier::Inline { fallback: Some("the server has no UCX".into()) };
        let text = TransferReport { carrier, rows: 3, ..Default::default() }.to_string();
        assert!(text.contains("inline over TCP (the server has no UCX)"), "{text}");
        assert!(text.contains("3 (incomplete)"), "{text}");
        assert!(text.contains("throughput    0 B/s"), "{text}");
    }

    #[test]
    fn partitions_together() {
        let part = |rows, seconds| {
            let server = report().server.map(|server| ServerReport { execute: Duration::from_secs(seconds), ..server });
            TransferReport { rows, read: Duration::from_secs(seconds), server, ..report() }
        };
        let fell_back = Carrier::Inline { fallback: Some("no device".into()) };
        let parts = vec![part(3, 5), TransferReport { carrier: fell_back.clone(), ..part(4, 2) }];
        let whole = TransferReport { bytes_copied: 7, total: Duration::from_secs(6), ..Default::default() };
        let whole = whole.of_partitions(parts);
        assert_eq!((whole.rows, whole.batches_lent, whole.bytes_copied, whole.complete), (7, 1466, 7, false));
        assert_eq!((whole.read, whole.total), (Duration::from_secs(5), Duration::from_secs(6)));
        assert_eq!(whole.carrier, fell_back);
        assert_eq!(
            whole.server.map(|server| (server.execute, server.bytes_copied)),
            Some((Duration::from_secs(5), 1024))
        );
        let text = whole.to_string();
        assert!(text.contains("\npartition 1   4 rows, 734 batches, 3.00 GiB, 1.50 GiB/s\n"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&whole.to_json()).unwrap();
        assert_eq!(json["partitions"][1]["rows"], 4);
    }

    #[test]
    fn for_programs() {
        let text = report().to_json();
        assert!(!text.contains('\n'));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["carrier"], "one-sided");
        assert_eq!(json["transport"], "posix/memory cma/memory");
        assert_eq!(json["fallback"], serde_json::Value::Null);
        assert_eq!(json["bytes_lent"], 3_221_225_472_u64);
        assert_eq!(json["bytes_copied_server"], 512);
        assert_eq!((&json["registrations_client"], &json["regions_server"]), (&2.into(), &4.into()));
        assert_eq!(json["total_seconds"], 2.0);
        assert_eq!(json["throughput_bytes_per_second"], (3_221_225_472_u64 + 2048) as f64 / 2.0);
    }
}
