//! `thallus ping`, and `thallus version`.

use std::fmt::Write as _;
use std::time::Duration;

use thallus_fabric::diagnosis::Diagnosis;

use super::args::{PingArgs, connect_options};
use super::failure::{Failure, Phase};
use super::interrupt::Interrupts;
use super::query::FAREWELL;
use thallus_client::{Client, ConnectionInfo};
use thallus_fabric::lines::one_line;
use thallus_fabric::units::human_duration;

/// Connects, times round trips, and describes the connection.
///
/// # Errors
/// [`Failure::Client`], [`Failure::Interrupted`].
pub(super) async fn ping(args: PingArgs, mut interrupts: Interrupts) -> Result<String, Failure> {
    let failed = |error| Failure::Client { phase: Phase::Connect, error };
    let options = connect_options(&args.url)?;
    let client = interrupts.unless(Client::connect_with(options.clone().with_measure(true))).await?.map_err(failed)?;
    let mut times = Vec::new();
    for _ in 0..args.count {
        times.push(interrupts.unless(client.ping()).await?.map_err(failed)?);
    }
    let mut text = describe(&client.connection(), &times);
    // After a fallback, test the fabrics of this host.
    if client.connection().carrier.fallback().is_some() {
        text.push_str(&verdicts(&thallus_client::diagnose(&options)));
    }
    let _ = tokio::time::timeout(FAREWELL, client.close()).await;
    Ok(text)
}

/// The result of each fabric's test on this host.
fn verdicts(fabrics: &[Diagnosis]) -> String {
    let line = |Diagnosis { fabric, verdict, .. }: &Diagnosis| {
        let text = verdict.as_ref().unwrap_or_else(|reason| reason);
        format!("{:<11} {text}\n", format!("{fabric} here"))
    };
    fabrics.iter().map(line).collect()
}

fn describe(info: &ConnectionInfo, times: &[Duration]) -> String {
    let mut text = String::new();
    let mut line = |what: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{what:<11} {}", one_line(value));
    };
    line("server", &format!("{} at {}", info.server, info.address));
    line("protocol", &info.protocol.to_string());
    line("carried by", &info.carrier.to_string());
    if let Some(probe) = info.probe {
        line("probe", &format!("a word of the server's memory, read and verified, in {}", human_duration(probe)));
    }
    if let Some(rate) = info.rate {
        line("path", &format!("{:.2} GB/s of one-sided reads from the server's memory", rate as f64 / 1e9));
    }
    let (least, most) = (times.iter().min(), times.iter().max());
    if let (Some(least), Some(most)) = (least, most) {
        let (least, most, count) = (human_duration(*least), human_duration(*most), times.len());
        line("round trip", &format!("{least} at best, {most} at worst, of {count}"));
    }
    text
}

/// Versions and fabrics of this build.
#[must_use]
pub(super) fn version() -> String {
    let fabrics = match (cfg!(feature = "verbs"), cfg!(feature = "ucx")) {
        (true, true) => "shm, verbs, ucx, inline",
        (true, false) => "shm, verbs, inline (built without ucx)",
        (false, true) => "shm, ucx, inline (built without verbs)",
        (false, false) => "shm, inline (built without verbs and ucx)",
    };
    format!(
        "thallus {}\nprotocol {}\narrow {}\nfabrics {fabrics}\n",
        env!("CARGO_PKG_VERSION"),
        thallus_client::protocol_versions(),
        arrow::ARROW_VERSION
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use thallus_client::Carrier;

    #[test]
    fn what_was_found() {
        let info = ConnectionInfo {
            server: "thallus-server 0.1.0".into(),
            address: "localhost:7807".into(),
            protocol: 1,
            vendor: thallus_client::Vendor::default(),
            carrier: Carrier::OneSided { fabric: "ucx".into(), transport: "posix/memory".into() },
            probe: Some(Duration::from_micros(18)),
            rate: Some(9_120_000_000),
        };
        let expected = "\
server      thallus-server 0.1.0 at localhost:7807
protocol    1
carried by  ucx, one-sided: posix/memory
probe       a word of the server's memory, read and verified, in 18.0 µs
path        9.12 GB/s of one-sided reads from the server's memory
round trip  100.0 µs at best, 2.00 ms at worst, of 2
";
        assert_eq!(describe(&info, &[Duration::from_millis(2), Duration::from_micros(100)]), expected);
    }
}
