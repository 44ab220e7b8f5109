//! The machine and the versions of a run.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

const FILE: &str = "machine.json";

/// Facts as name and text, in the order of the page.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Machine(pub(super) Vec<(String, String)>);

impl Machine {
    pub(super) fn of(python: Option<&Path>, quick: bool) -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .map(|line| line.trim_start_matches([' ', '\t', ':']));
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total =
            memory.lines().next().and_then(|line| line.split_whitespace().nth(1)).and_then(|kb| kb.parse::<u64>().ok());
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let locked = locked_versions();
        let version = |name: &str| locked.get(name).cloned().unwrap_or_default();
        let pyarrow =
            python.map_or("not run: no Python with pyarrow".to_owned(), |python| {
                output_of(Command::new(python).args([
                    "-c",
                    "import pyarrow, sys; print(pyarrow.__version__, 'on Python', sys.version.split()[0])",
                ]))
            });
        let facts = [
            ("when", output_of(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))),
            ("run", if quick { "quick".to_owned() } else { "full".to_owned() }),
            ("commit", output_of(Command::new("git").args(["describe", "--always", "--dirty"]))),
            ("processor", format!("{}, {cores} cores", model.unwrap_or("unknown"))),
            ("memory", total.map_or("unknown".to_owned(), |kb| format!("{:.0} GiB", kb as f64 / 1048576.0))),
            ("load before the run", load.split(' ').next().unwrap_or_default().to_owned()),
            ("kernel", output_of(Command::new("uname").arg("-sr"))),
            ("compiler", output_of(Command::new("rustc").arg("--version"))),
            ("UCX", output_of(Command::new("pkg-config").args(["--modversion", "ucx"]))),
            (
                "arrow, arrow-flight, tonic",
                format!("{}, {}, {}", version("arrow"), version("arrow-flight"), version("tonic")),
            ),
            ("pyarrow (Flight in C++)", pyarrow),
        ];
        Machine(facts.map(|(name, fact)| (name.to_owned(), fact)).into())
    }

    pub(super) fn write(&self, out: &Path) -> Result<(), String> {
        let path = out.join(FILE);
        let text = serde_json::to_string_pretty(self).map_err(|e| e.to_string())?;
        fs::write(&path, text + "\n").map_err(|e| format!("{}: {e}", path.display()))
    }

    pub(super) fn read(out: &Path) -> Result<Self, String> {
        let path = out.join(FILE);
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
    }
}

/// Standard output of a command; `unknown` if it fails.
fn output_of(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    output.map_or("unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Versions of the packages in this build.
fn locked_versions() -> BTreeMap<String, String> {
    let value =
        |line: &str, key: &str| line.strip_prefix(key).map(|rest| rest.trim_matches([' ', '=', '"']).to_owned());
    let lines: Vec<&str> = include_str!("../../Cargo.lock").lines().collect();
    let pairs = lines.windows(2);
    pairs.filter_map(|pair| Some((value(pair[0], "name")?, value(pair[1], "version")?))).collect()
}
