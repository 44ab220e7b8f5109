//! Events that must occur in a long series of runs. A series in which one never occurs does not test it.

use crate::hostile;
use crate::options::Fault;
use crate::trace::Counts;

/// Kinds of events and their names, besides the names listed by enums.
const EXPECTED: [(&str, &[&str]); 17] = [
    ("cancel", &["DeadlineExceeded", "Dropped", "InvalidBatch", "LeaseLost", "ReadFailed"]),
    ("engine", &["fails", "finishes", "hangs", "ignores its cancel", "is slow", "refuses"]),
    (
        "failed",
        &[
            "Cancelled",
            "DataPlaneLost",
            "DeadlineExceeded",
            "Execution",
            "LeaseExpired",
            "ShuttingDown",
            "TooManyStreams",
        ],
    ),
    ("flip", &["checksums of a frame", "lengths of a frame", "message", "payload", "preface"]),
    ("flip found", &["at the client", "at the server"]),
    ("half-dead link", &["noticed at the client", "noticed at the server"]),
    ("goodbye", &["IdleTimeout", "ShuttingDown", "TooManyConnections"]),
    ("lazy", &["ask failed", "asked", "dropped", "was here", "whole"]),
    ("lease", &["opened", "Released", "Revoked", "TornDown", "Withdrawn"]),
    (
        "network",
        &["completions before their bytes", "endpoints without a path", "late reads", "maps", "reads", "stragglers"],
    ),
    (
        "strike",
        &[
            "Call(Allocate)",
            "Call(Connect)",
            "Call(Endpoint)",
            "Call(Expose)",
            "Call(Import)",
            "Call(Post)",
            "Call(Register)",
            "Death",
            "Delay",
            "Fail(\"flushed\")",
            "Fail(\"local protection\")",
            "Fail(\"receiver not ready\")",
            "Fail(\"remote access\")",
            "Fail(\"retry exceeded\")",
            "Hang",
        ],
    ),
    ("partitions", &["dropped", "mapped batches", "not whole", "whole"]),
    ("statement", &["described", "objects listed", "with defaults"]),
    ("stream", &["dropped", "mapped batches", "whole"]),
    (
        "upload",
        &[
            "dropped",
            "error: Source",
            "failed: Execution",
            "inline batches",
            "kept",
            "kept without an answer",
            "lent batches",
            "whole",
        ],
    ),
    ("wire", &["flipped bit", "reset", "short read", "short write", "slow read"]),
    ("transition", &TRANSITIONS),
];

/// States of the connection and of its data plane, before and after one input.
const TRANSITIONS: [&str; 30] = [
    r#"client ["awaiting the welcome", "none"] -> ["closed", "none"]"#,
    r#"client ["awaiting the welcome", "none"] -> ["closing", "none"]"#,
    r#"client ["awaiting the welcome", "none"] -> ["connecting the fabric", "none"]"#,
    r#"client ["awaiting the welcome", "none"] -> ["open", "none"]"#,
    r#"client ["closing", "down"] -> ["closed", "down"]"#,
    r#"client ["closing", "none"] -> ["closed", "none"]"#,
    r#"client ["closing", "up"] -> ["closed", "up"]"#,
    r#"client ["connecting the fabric", "none"] -> ["closing", "none"]"#,
    r#"client ["connecting the fabric", "none"] -> ["open", "down"]"#,
    r#"client ["connecting the fabric", "none"] -> ["open", "up"]"#,
    r#"client ["open", "down"] -> ["closed", "down"]"#,
    r#"client ["open", "down"] -> ["closing", "down"]"#,
    r#"client ["open", "none"] -> ["closed", "none"]"#,
    r#"client ["open", "up"] -> ["closing", "up"]"#,
    r#"client ["open", "up"] -> ["open", "down"]"#,
    r#"server ["awaiting the hello", "none"] -> ["closed", "none"]"#,
    r#"server ["awaiting the hello", "none"] -> ["open", "none"]"#,
    r#"server ["awaiting the hello", "none"] -> ["opening the fabric", "none"]"#,
    r#"server ["closing", "down"] -> ["closed", "down"]"#,
    r#"server ["closing", "unproven"] -> ["closed", "unproven"]"#,
    r#"server ["closing", "up"] -> ["closed", "up"]"#,
    r#"server ["open", "down"] -> ["closing", "down"]"#,
    r#"server ["open", "none"] -> ["closed", "none"]"#,
    r#"server ["open", "unproven"] -> ["closing", "unproven"]"#,
    r#"server ["open", "unproven"] -> ["open", "down"]"#,
    r#"server ["open", "unproven"] -> ["open", "up"]"#,
    r#"server ["open", "up"] -> ["closing", "up"]"#,
    r#"server ["open", "up"] -> ["open", "down"]"#,
    r#"server ["opening the fabric", "none"] -> ["open", "none"]"#,
    r#"server ["opening the fabric", "none"] -> ["open", "unproven"]"#,
];

/// Expected events that did not occur.
#[must_use]
pub fn missing(counts: &Counts) -> Vec<String> {
    let listed = EXPECTED.iter().flat_map(|(kind, names)| names.iter().map(|name| (*kind, (*name).to_owned())));
    let faults = Fault::ALL.iter().chain(&Fault::HARMLESS).map(|fault| ("fault", format!("{fault:?}")));
    let (acts, lies) = hostile::names();
    let acts = acts.into_iter().map(|act| ("hostile client", act));
    let lies = lies.into_iter().map(|lie| ("hostile server", lie));
    let all = listed.chain(faults).chain(acts).chain(lies);
    all.filter(|what| counts.get(what).is_none_or(|times| *times == 0))
        .map(|(kind, name)| format!("{kind}: {name}"))
        .collect()
}
