//! `thallus doctor`: shows which fabrics work on this host, and for each that does not, why and what to do.

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};
use thallus_fabric::diagnosis::{self, Diagnosis, Finding};

use super::args::{DoctorArgs, connect_options};
use super::failure::Failure;
use thallus_client::ConnectOptions;

/// Tables are at least this wide, whatever width the terminal reports.
const MIN_COLUMNS: u16 = 80;

/// The findings, and whether anything better than inline transfer works.
pub(super) fn doctor(args: &DoctorArgs) -> Result<(String, bool), Failure> {
    let options = match &args.url {
        Some(url) => connect_options(url)?,
        None => ConnectOptions::new("localhost"),
    };
    let wanted = args.memory.unwrap_or(options.pool);
    let (fabrics, host) = (thallus_client::diagnose(&options), diagnosis::host_limits(wanted));
    let works = fabrics.iter().any(|fabric| fabric.verdict.is_ok());
    let text = if args.json { as_json(&fabrics, &host) } else { as_text(&fabrics, &host) };
    Ok((text, works))
}

fn as_text(fabrics: &[Diagnosis], host: &[Finding]) -> String {
    let mut text = String::new();
    for Diagnosis { fabric, verdict, findings } in fabrics {
        let (mark, said) = match verdict {
            Ok(how) => ("works", how),
            Err(reason) => ("DOES NOT WORK", reason),
        };
        text.push_str(&format!("{fabric}: {mark}: {said}\n"));
        if !findings.is_empty() {
            text.push_str(&format!("{}\n", table(findings)));
        }
        text.push('\n');
    }
    text.push_str(&format!("limits of this process and host:\n{}\n\n", table(host)));
    text.push_str(match fabrics.iter().find(|fabric| fabric.verdict.is_ok()) {
        Some(_) => "Results are read one-sidedly, by the first of these that the server has too.\n",
        None => "No fabric works here: results travel inline over TCP.\n",
    });
    text
}

fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    // A serial console may report a width of zero columns.
    if table.width().is_some_and(|columns| columns < MIN_COLUMNS) {
        table.set_width(MIN_COLUMNS);
    }
    for Finding { subject, state, advice } in findings {
        let mark = if advice.is_none() { "ok" } else { "!!" };
        table.add_row([mark, subject, state, advice.as_deref().unwrap_or_default()]);
    }
    table
}

fn as_json(fabrics: &[Diagnosis], host: &[Finding]) -> String {
    let findings = |of: &[Finding]| -> Vec<Value> {
        of.iter().map(|f| json!({ "subject": f.subject, "state": f.state, "advice": f.advice })).collect()
    };
    let fabrics: Vec<Value> = fabrics
        .iter()
        .map(|Diagnosis { fabric, verdict, findings: found }| {
            json!({
                "fabric": fabric.as_str(),
                "works": verdict.is_ok(),
                "reason": verdict.as_ref().unwrap_or_else(|reason| reason),
                "findings": findings(found),
            })
        })
        .collect();
    format!("{:#}\n", json!({ "fabrics": fabrics, "host": findings(host) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use thallus_protocol::FabricKind;

    fn found() -> (Vec<Diagnosis>, Vec<Finding>) {
        let fabrics = vec![
            Diagnosis {
                fabric: FabricKind::VERBS,
                verdict: Err("no device".into()),
                findings: vec![Finding::bad("RDMA devices", "none", "load the driver")],
            },
            Diagnosis { fabric: FabricKind::UCX, verdict: Ok("by posix".into()), findings: Vec::new() },
        ];
        (fabrics, vec![Finding::good("open files", "1024")])
    }

    #[test]
    fn text_shows_what_works_and_what_to_do() {
        let (fabrics, host) = found();
        let text = as_text(&fabrics, &host);
        assert!(text.starts_with("verbs: DOES NOT WORK: no device\n"), "{text}");
        for part in ["load the driver", "ucx: works: by posix", "open files", "read one-sidedly"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(as_text(&fabrics[..1], &host).contains("results travel inline"));
    }

    #[test]
    fn json_has_the_same() {
        let (fabrics, host) = found();
        let json: Value = serde_json::from_str(&as_json(&fabrics, &host)).unwrap();
        assert_eq!(json["fabrics"][0]["works"], false);
        assert_eq!(json["fabrics"][0]["findings"][0]["advice"], "load the driver");
        assert_eq!(json["fabrics"][1]["reason"], "by posix");
        assert_eq!(json["host"][0]["advice"], Value::Null);
    }
}
