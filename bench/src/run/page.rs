//! The page: every number in it comes from the measurements.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::cases::{FIGURES, Measure, human};
use super::machine::Machine;
use super::model::{self, Costs};
use super::summary::{CaseResult, Result as Measured, Spread, Summary};
use crate::contender::Contender;
use crate::contender::Contender::{
    FlightCpp, FlightRust, FlightSqlCpp, FlightSqlRust, Inline, Lent, Mapped, Memcpy, Thallus, UcxGet,
};

type Written = Result<(), std::fmt::Error>;

const METHOD: &str = "\
Servers and clients are processes of their own on one host. Every contender serves the same tables, made from the same seed and \
held in memory; a result longer than its table goes round it again. In each round every contender takes its turn, in the same \
order, so that what disturbs the machine disturbs all alike; a turn is as many iterations as fit a small budget of time. \
Before the rounds each contender runs five iterations that are not counted.

**Times** are medians over rounds of the median iteration of a turn; in brackets the least and the most. **Ratios** are taken within \
each round, where both were measured one after the other, and then the median. **Bytes** are those that the result's rows use, \
whoever moves them. **CPU** is what the kernel counts for all threads of the process, **peak** the most resident memory in any turn \
(tables included). Clients drop a batch once they have it. Those in Rust validate every value (UTF-8, offsets, keys) before; pyarrow does not.

- `thallus`: as it comes, small batches inline, others lent. `lent`: all batches lent. `mapped`: lent, and used where they lie in the \
server's memory. `inline`: all batches as Arrow IPC over TCP, which is pure RPC.
- `flight-rust`: arrow-flight over tonic, with messages and windows of 16 MiB. `flight-cpp`: pyarrow, whose server maps the tables from \
Arrow files and names the next batch in Python. Both with `DoGet` alone; `flight-sql-*` asks `GetFlightInfo` before.
- `memcpy`: pieces of 1 MiB from 256 MiB of warm memory to 64 MiB of warm memory, in one process and on one core. `ucx-get`: the same pieces by \
UCX from another process, eight at a time, into registered warm memory, on one core too. Neither knows of batches. `lent` may be faster than either: half of the machine's cores, \
four at most, help its connections to copy.
";

/// Writes the page.
pub(super) fn write(machine: &Machine, summary: &Summary, plots: &[&str], out: &Path) -> Result<(), String> {
    let mut page = String::new();
    all(&mut page, machine, summary, plots).map_err(|e| e.to_string())?;
    let path = out.join("README.md");
    fs::write(&path, page).map_err(|e| format!("{}: {e}", path.display()))
}

fn all(page: &mut String, machine: &Machine, summary: &Summary, plots: &[&str]) -> Written {
    writeln!(
        page,
        "# The comparison\n\nWritten by `bench/run.sh` from what it measured (`samples.jsonl`, `summary.csv`).\n"
    )?;
    writeln!(page, "| | |\n|---|---|")?;
    for (name, fact) in &machine.0 {
        writeln!(page, "| {name} | {fact} |")?;
    }
    targets(page, summary)?;
    noise(page, summary)?;
    writeln!(page, "\n## Method\n\n{METHOD}")?;
    for figure in FIGURES.iter().filter(|figure| plots.contains(&figure.name)) {
        writeln!(page, "## {}\n\n{}\n\n![{}]({}.svg)\n", figure.title, figure.text, figure.title, figure.name)?;
        let cases: Vec<_> = summary.figure(figure.name).collect();
        if figure.name == "latency" {
            latency(page, &cases)?;
        } else {
            table(page, &cases, figure.measure)?;
        }
    }
    breakdown(page, summary)?;
    costs(page, summary)?;
    scaling(page, summary)
}

/// The contenders that any of the cases has.
fn present(cases: &[&CaseResult]) -> Vec<Contender> {
    Contender::ALL.into_iter().filter(|who| cases.iter().any(|case| case.results.contains_key(who))).collect()
}

fn head(page: &mut String, first: &str, columns: impl Iterator<Item = String>) -> Written {
    let columns: Vec<String> = columns.collect();
    writeln!(page, "| {first} | {} |", columns.join(" | "))?;
    writeln!(page, "|---|{}", "---:|".repeat(columns.len()))
}

fn table(page: &mut String, cases: &[&CaseResult], measure: Measure) -> Written {
    let who = present(cases);
    let unit = if measure == Measure::Throughput { "GB/s, and time" } else { "time" };
    head(page, unit, who.iter().map(|who| who.name().to_owned()))?;
    for case in cases {
        write!(page, "| {} |", case.label)?;
        for who in &who {
            match case.results.get(who) {
                None => write!(page, " |")?,
                Some(r) if measure == Measure::Throughput => {
                    write!(page, " {:.2} · {} |", r.throughput() / 1e9, spread_of_time(r.seconds))?;
                }
                Some(r) => write!(page, " {} |", spread_of_time(r.seconds))?,
            }
        }
        writeln!(page)?;
    }
    writeln!(page)
}

fn latency(page: &mut String, cases: &[&CaseResult]) -> Written {
    for case in cases {
        head(page, &case.label, ["p50", "p99", "client CPU", "server CPU"].into_iter().map(str::to_owned))?;
        for (who, r) in &case.results {
            let (p50, p99) = (time(r.p50), time(r.p99));
            writeln!(page, "| {} | {p50} | {p99} | {} | {} |", who.name(), time(r.cpu_client), time(r.cpu_server))?;
        }
    }
    writeln!(page)
}

/// Where the time goes, by what Thallus's client and server say themselves.
fn breakdown(page: &mut String, summary: &Summary) -> Written {
    writeln!(
        page,
        "## Where Thallus's time goes\n\nOf the last iteration. `read`: one-sided reads outstanding (of several batches, they \
        count once). `decode`: the client makes and validates arrays. `wait`: the client had nothing to take. Moved and copied: bytes, over the bytes that the result's rows use.\n"
    )?;
    let columns = [
        "total",
        "first answer",
        "wait",
        "read",
        "decode",
        "engine",
        "credit wait",
        "moved",
        "copied by server",
        "copied by client",
    ];
    head(page, "case", columns.into_iter().map(str::to_owned))?;
    for case in summary.figure("transport").chain(summary.figure("types")) {
        for (who, r) in case.results.iter().filter(|(who, _)| matches!(who, Lent | Mapped | Inline)) {
            let Some(t) = r.report else { continue };
            let share = |copied: u64| format!("{:.2}", copied as f64 / r.bytes as f64);
            writeln!(
                page,
                "| {} {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                case.label,
                who.name(),
                time(r.seconds.median),
                time(t.first_answer),
                time(t.wait),
                time(t.read),
                time(t.decode),
                time(t.server_execute),
                time(t.server_credit_wait),
                share(t.bytes_lent + t.bytes_inline),
                share(t.bytes_copied_server),
                share(t.bytes_copied_client),
            )?;
        }
    }
    writeln!(page)
}

fn costs(page: &mut String, summary: &Summary) -> Written {
    writeln!(
        page,
        "## CPU, memory and page faults\n\nThe largest result of `transport`. Faults are those of one iteration, in steady state.\n"
    )?;
    let Some(case) = summary.figure("transport").last() else { return Ok(()) };
    let columns = [
        "client CPU s/GB",
        "server CPU s/GB",
        "client peak",
        "server peak",
        "client faults",
        "server faults",
        "server faults/batch",
    ];
    head(page, &case.label, columns.into_iter().map(str::to_owned))?;
    for (who, r) in &case.results {
        let per_gb = |cpu: f64| format!("{:.3}", cpu / r.bytes as f64 * 1e9);
        writeln!(
            page,
            "| {} | {} | {} | {} | {} | {:.0} | {:.0} | {:.2} |",
            who.name(),
            per_gb(r.cpu_client),
            per_gb(r.cpu_server),
            human(r.peak_client),
            human(r.peak_server),
            r.faults_client,
            r.faults_server,
            r.faults_server / r.batches as f64,
        )?;
    }
    writeln!(page)
}

/// A target of the project, and what was measured.
struct Target {
    text: String,
    wanted: f64,
    case: String,
    got: Spread,
}

fn targets(page: &mut String, summary: &Summary) -> Written {
    let mut targets = Vec::new();
    let mut add = |text: &str, wanted: f64, case: &CaseResult, got: Option<Spread>| {
        if let Some(got) = got {
            targets.push(Target {
                text: text.to_owned(),
                wanted,
                case: format!("{}, {}", case.figure, case.label),
                got,
            });
        }
    };
    for case in summary.figure("latency") {
        add("1 row: over Flight SQL's two round trips (Rust)", 2.0, case, case.ratio(Thallus, FlightSqlRust));
        add("1 row: over Flight SQL's two round trips (C++)", 2.0, case, case.ratio(Thallus, FlightSqlCpp));
    }
    for case in summary.figure("transport") {
        let rivals = [Inline, FlightRust, FlightCpp];
        add("no size slower than 1.05 of the fastest rival", 1.0 / 1.05, case, case.ratio_to_best(Thallus, &rivals));
    }
    for case in summary.figure("transport").filter(|case| case.bytes() >= 64 << 20) {
        add("lent over the faster of memcpy and raw UCX", 0.9, case, case.ratio_to_best(Lent, &[Memcpy, UcxGet]));
        add("lent over Flight in C++", 5.0, case, case.ratio(Lent, FlightCpp));
        add("lent over Flight in Rust", 7.0, case, case.ratio(Lent, FlightRust));
        add("mapped over pure RPC", 5.5, case, case.ratio(Mapped, Inline));
        add("mapped over the faster Flight", 20.0, case, case.ratio_to_best(Mapped, &[FlightRust, FlightCpp]));
    }
    for case in summary.figure("scan").filter(|case| case.bytes() >= 64 << 20) {
        add("end to end: lent over pure RPC", 2.5, case, case.ratio(Lent, Inline));
        add("end to end: mapped over pure RPC", 2.5, case, case.ratio(Mapped, Inline));
    }
    writeln!(page, "\n## Targets\n\nHow many times faster, and whether that is what was aimed at.\n")?;
    head(page, "target", ["case", "aimed at", "measured", "least to most", "met"].into_iter().map(str::to_owned))?;
    for Target { text, wanted, case, got } in &targets {
        let met = if got.median >= *wanted { "yes" } else { "**no**" };
        let Spread { median, least, most } = got;
        writeln!(page, "| {text} | {case} | {wanted:.2} | {median:.2} | {least:.2} to {most:.2} | {met} |")?;
    }
    flatness(page, summary)?;
    concurrency(page, summary)
}

fn flatness(page: &mut String, summary: &Summary) -> Written {
    let large: Vec<_> = summary.figure("transport").filter(|case| case.bytes() >= 64 << 20).collect();
    for who in [Lent, Mapped] {
        let per_gb = |case: &&CaseResult| Some(1e9 / case.results.get(&who)?.throughput());
        let Some(spread) = Spread::of(large.iter().filter_map(per_gb).collect()) else { continue };
        let (apart, met) = (spread.most / spread.least, spread.most <= 1.2 * spread.least);
        writeln!(
            page,
            "\n`{}`: time per byte from {} to {} differs by {:.0}% (aimed at: 20% at most): {}.",
            who.name(),
            large.first().map_or("", |case| &case.label),
            large.last().map_or("", |case| &case.label),
            (apart - 1.0) * 100.0,
            if met { "met" } else { "**not met**" }
        )?;
    }
    Ok(())
}

fn concurrency(page: &mut String, summary: &Summary) -> Written {
    for who in [Thallus, Lent, Mapped] {
        let with = |streams: f64| summary.figure("streams").find(|case| case.x == streams)?.results.get(&who);
        let (Some(four), Some(many)) = (with(4.0), with(64.0)) else { continue };
        let ratio = many.throughput() / four.throughput();
        let met = if ratio >= 1.0 { "met" } else { "**not met**" };
        writeln!(
            page,
            "\n`{}`: 64 streams have {ratio:.2} of the throughput of 4 (aimed at: no less): {met}.",
            who.name()
        )?;
    }
    Ok(())
}

/// How far rounds lay apart: what a ratio of two of them is worth.
fn noise(page: &mut String, summary: &Summary) -> Written {
    let results: Vec<&Measured> = summary.cases.iter().flat_map(|case| case.results.values()).collect();
    let apart = |r: &&Measured| (r.seconds.most - r.seconds.least) / r.seconds.median * 100.0;
    let mut all: Vec<f64> = results.iter().map(apart).collect();
    all.sort_by(f64::total_cmp);
    let at = |share| super::summary::quantile(&all, share).unwrap_or_default();
    writeln!(
        page,
        "\n## Noise\n\nFrom the fastest round to the slowest, in per cent of the median: half of the measurements within {:.0}%, nine \
         of ten within {:.0}%, the worst {:.0}%.",
        at(0.5),
        at(0.9),
        at(1.0)
    )
}

fn scaling(page: &mut String, summary: &Summary) -> Written {
    let who = [Lent, Mapped, Inline, FlightRust, FlightCpp];
    let costs: Vec<(Contender, Costs)> = who.into_iter().filter_map(|w| Some((w, model::costs(summary, w)?))).collect();
    if costs.is_empty() {
        return Ok(());
    }
    writeln!(
        page,
        "## A model of what was not at hand\n\nCPU costs, as straight lines through the figure `batches`:\n"
    )?;
    let columns = ["client, a batch", "client, a GB", "server, a batch", "server, a GB"];
    head(page, "", columns.into_iter().map(str::to_owned))?;
    for (who, costs) in &costs {
        let (c, s) = (costs.client, costs.server);
        writeln!(
            page,
            "| {} | {} | {} | {} | {} |",
            who.name(),
            time(c.batch),
            time(c.byte * 1e9),
            time(s.batch),
            time(s.byte * 1e9)
        )?;
    }
    writeln!(
        page,
        "\nFrom these, an upper bound of the throughput of one server in GB/s: the least of the link, of the server's cores over what \
         a byte costs it in CPU, and of the clients' cores (one each) likewise. Assumptions: batches of 1 MiB; costs stay what they \
         were on this machine, cores scale without loss, memory bandwidth does not bind; TCP over a network costs what loopback does. \
         `lent over RDMA` is `lent` with its costs per batch, and none per byte: the card reads at the server and writes at the \
         client, from memory that is registered already; for columns of numbers, since strings are validated byte by byte. It has not been run. `mapped` is for one host, and not in this table.\n"
    )?;
    let clients = [1.0, 4.0, 16.0, 64.0];
    head(
        page,
        "link, cores of the server",
        clients.iter().map(|n| format!("{n} client{}", if *n == 1.0 { "" } else { "s" })),
    )?;
    for (gigabits, cores) in [(100.0, 16.0), (400.0, 64.0)] {
        for (who, costs) in costs.iter().filter(|(who, _)| *who != Mapped) {
            let (name, costs) = if *who == Lent {
                let mut costs = *costs;
                (costs.client.byte, costs.server.byte) = (0.0, 0.0);
                ("lent over RDMA", costs)
            } else {
                (who.name(), *costs)
            };
            write!(page, "| {gigabits} Gb/s, {cores}: {name} |")?;
            for n in clients {
                let (rate, bound) = model::bound(costs, gigabits / 8.0 * 1e9, cores, n, f64::from(1 << 20));
                write!(page, " {:.1} ({bound}) |", rate / 1e9)?;
            }
            writeln!(page)?;
        }
    }
    writeln!(page)
}

fn spread_of_time(spread: Spread) -> String {
    format!("{} ({} – {})", time(spread.median), time(spread.least), time(spread.most))
}

/// Seconds, for people.
fn time(seconds: f64) -> String {
    match seconds {
        s if s <= 0.0 => "0".to_owned(),
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}
