//! The figures of the page, and the cases of each figure.

use crate::contender::Contender;
use crate::contender::Contender::{
    FlightCpp, FlightRust, FlightSqlCpp, FlightSqlRust, Inline, Lent, Mapped, Memcpy, Thallus, UcxGet,
};
use crate::query::{Mode, Query};
use crate::tables::{Size, Tables};

/// A plot and a table of the page.
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// Description of the x axis: the property in which the cases differ.
    pub(super) axis: &'static str,
    /// Quantity on the y axis.
    pub(super) measure: Measure,
    pub(super) text: &'static str,
}

/// Quantity that a figure shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    /// Bytes per second.
    Throughput,
    /// Seconds.
    Time,
}

pub(super) const FIGURES: [Figure; 9] = [
    Figure {
        name: "latency",
        title: "Latency of a result of one row",
        axis: "",
        measure: Measure::Time,
        text: "One connection, one query after the other. `flight-sql-*` calls `GetFlightInfo` first, as Flight SQL \
               clients do.",
    },
    Figure {
        name: "transport",
        title: "Transport: a result that is held in memory, delivered",
        axis: "bytes of the result",
        measure: Measure::Throughput,
        text: "The engine returns batches that it holds in memory. The client takes each validated batch, counts its \
               rows and drops it. Eight columns of eight bytes, 1 MiB a batch.",
    },
    Figure {
        name: "scan",
        title: "End to end: delivered, and every byte read by the client",
        axis: "bytes of the result",
        measure: Measure::Throughput,
        text: "As above, and the client also sums every word of every buffer.",
    },
    Figure {
        name: "computed",
        title: "End to end, of batches that the engine computes",
        axis: "bytes of the result",
        measure: Measure::Throughput,
        text: "The engine allocates new buffers for every batch (a `take` of all rows), and the client sums every \
               word.",
    },
    Figure {
        name: "columns",
        title: "Number of columns",
        axis: "columns",
        measure: Measure::Throughput,
        text: "64 MiB of 64-bit integers, 1 MiB a batch, in an increasing number of columns.",
    },
    Figure {
        name: "types",
        title: "Types and tables",
        axis: "",
        measure: Measure::Throughput,
        text: "About 64 MiB of each. A dictionary counts with each batch that uses it.",
    },
    Figure {
        name: "selectivity",
        title: "Selectivity: a filter over TPC-H's lineitem",
        axis: "share of rows kept",
        measure: Measure::Time,
        text: "600 thousand rows are scanned and filtered in batches of 8192. The client sums every word of the \
               result. The time includes the filter.",
    },
    Figure {
        name: "streams",
        title: "Concurrent streams",
        axis: "streams",
        measure: Measure::Throughput,
        text: "Each stream is a query of 16 MiB over its own connection. The throughput is that of all streams \
               together.",
    },
    Figure {
        name: "batches",
        title: "Size of batches",
        axis: "bytes of a batch",
        measure: Measure::Throughput,
        text: "64 MiB in batches of different sizes, to find the cost of a batch and of a byte. The model below uses \
               it.",
    },
];

/// One measurement of every contender.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) figure: &'static str,
    /// Place on the figure's axis; a mere number where the axis has names.
    pub(super) x: f64,
    /// Name of the place.
    pub(super) label: String,
    pub(super) query: Query,
    pub(super) size: Size,
    pub(super) touch: bool,
    pub(super) streams: usize,
    pub(super) contenders: Vec<Contender>,
}

/// Bytes of a row of the size ladder's table.
const ROW: u64 = 64;
const MIB: u64 = 1 << 20;

const DELIVER: [Contender; 6] = [Thallus, Lent, Mapped, Inline, FlightRust, FlightCpp];
/// Without those whose engine does not compute.
const COMPUTE: [Contender; 5] = [Thallus, Lent, Mapped, Inline, FlightRust];

pub(super) fn cases(quick: bool, tables: &Tables) -> Result<Vec<Case>, String> {
    let mut all = Cases { tables, cases: Vec::new() };
    let latency = vec![Thallus, Lent, Inline, FlightRust, FlightSqlRust, FlightCpp, FlightSqlCpp];
    all.add("latency", (0.0, "1 row"), Query::held("num8", 1), false, &latency)?;

    let full = [1, 16, 160, 512, 1024, 1600, 4096, 16 << 10, 64 << 10, 256 << 10, MIB, 4 * MIB, 16 * MIB, 64 * MIB];
    let some = [1, 160, 1600, 16 << 10, 128 << 10, MIB, 16 * MIB];
    let sizes: &[u64] = if quick { &some } else { &full };
    for &rows in sizes {
        let bytes = rows * ROW;
        let mut who = DELIVER.to_vec();
        if bytes <= MIB {
            who.extend([FlightSqlRust, FlightSqlCpp]);
        }
        if bytes >= MIB / 16 {
            who.extend([Memcpy, UcxGet]);
        }
        all.add("transport", (bytes as f64, &human(bytes)), Query::held("num8", rows), false, &who)?;
    }
    let sizes: &[u64] = if quick { &[16 << 10, MIB] } else { &[1600, 16 << 10, 256 << 10, MIB, 4 * MIB, 16 * MIB] };
    for &rows in sizes {
        let bytes = rows * ROW;
        all.add("scan", (bytes as f64, &human(bytes)), Query::held("num8", rows), true, &DELIVER)?;
    }
    for &rows in if quick { &[MIB][..] } else { &[16 << 10, 256 << 10, MIB, 4 * MIB] } {
        let bytes = rows * ROW;
        let query = Query { mode: Mode::Fresh, ..Query::held("num8", rows) };
        all.add("computed", (bytes as f64, &human(bytes)), query, true, &COMPUTE)?;
    }
    for &columns in if quick { &[1, 16, 256][..] } else { &[1, 4, 16, 64, 256] } {
        let query = Query::held(&format!("int{columns}"), 64 * MIB / 8 / columns);
        all.add("columns", (columns as f64, &columns.to_string()), query, false, &DELIVER)?;
    }
    for (number, name) in ["num8", "strings", "views", "nested", "dictionary", "taxi", "lineitem"].iter().enumerate() {
        let rows = if *name == "num8" { MIB } else { tables.get(name)?.rows() };
        all.add("types", (number as f64, name), Query::held(name, rows), false, &DELIVER)?;
    }
    for &share in if quick { &[0.001, 0.1, 1.0][..] } else { &[0.0001, 0.001, 0.01, 0.1, 0.5, 1.0] } {
        let query = Query { mode: Mode::Keep(share), ..Query::held("lineitem", tables.get("lineitem")?.rows()) };
        all.add("selectivity", (share, &format!("{}%", share * 100.0)), query, true, &COMPUTE)?;
    }
    for &streams in if quick { &[1, 4, 64][..] } else { &[1, 2, 4, 8, 16, 32, 64] } {
        let case = (streams as f64, &*streams.to_string());
        all.add("streams", case, Query::held("num8", MIB / 4), false, &DELIVER)?.streams = streams;
    }
    for &batch in if quick { &[1024, 4096, 16384][..] } else { &[256, 1024, 2048, 4096, 8192, 16384] } {
        let query = Query { batch: Some(batch), ..Query::held("num8", MIB) };
        let bytes = batch as u64 * ROW;
        all.add("batches", (bytes as f64, &human(bytes)), query, false, &DELIVER)?;
    }
    Ok(all.cases)
}

struct Cases<'a> {
    tables: &'a Tables,
    cases: Vec<Case>,
}

impl Cases<'_> {
    fn add(
        &mut self,
        figure: &'static str,
        (x, label): (f64, &str),
        query: Query,
        touch: bool,
        contenders: &[Contender],
    ) -> Result<&mut Case, String> {
        let size = self.tables.get(&query.table)?.size(&query)?;
        let label = label.to_owned();
        self.cases.push(Case { figure, x, label, query, size, touch, streams: 1, contenders: contenders.to_vec() });
        self.cases.last_mut().ok_or_else(|| "a case was just added".into())
    }
}

/// A number of bytes, for people.
pub(super) fn human(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..MIB => format!("{:.3} KiB", bytes as f64 / 1024.0).replace(".000", ""),
        MIB..0x4000_0000 => format!("{:.3} MiB", bytes as f64 / MIB as f64).replace(".000", ""),
        _ => format!("{:.3} GiB", bytes as f64 / MIB as f64 / 1024.0).replace(".000", ""),
    }
}
