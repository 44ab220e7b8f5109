"""The page and the table of one run, from its measurements alone."""

import csv
import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
import statistics
import subprocess
from typing import Callable, Iterable

from .contenders import CONTENDERS
from .measure import TURN_SECONDS, Run
from .servers import ON_LOAN, SAIL

#: The contender by whose times the others' are divided.
BASE = "thallus"

PACKAGES = (
    "adbc-driver-manager",
    "adbc-driver-flightsql",
    "pyarrow",
    "pysail",
    "duckdb",
    "duckdb-extension-quack",
    "datafusion",
)

METHOD = """\
Servers and clients are processes of one host, and each contender's client is a process of its own. All engines read
the same Parquet files of TPC-H at scale {scale}, with caches warm. **A time** begins with the call that gets the
SQL, and ends when the whole result is a pyarrow table; a connection is kept. `thallus query` writes Arrow to
`/dev/null`, and its time includes the start of a process and a connection. The time of an upload ends when the
server has confirmed the table; dropping it does not count.

In each round every contender has a turn at every case, and each round begins with another contender. A turn of a
small case is as many executions as fit {turn} s, and counts as their median; a turn of a large case (queries of
lineitem, and uploads) is one execution. The longest cases take part in the first rounds only. **Times** are medians
over the rounds, with the least and the greatest in brackets. **Ratios** are computed within each round. Before the
rounds every result was compared with the files: the number of rows, and the sum of the hashes of each column's
values.

A reader of a mapped table accesses the server's memory, so the columns have not been touched when its time ends."""

SETTINGS = """\
- **Thallus**: the DB-API of the wheel, `fetch_arrow_table`, defaults of client and server, except that the server
  allows mapped results (`--allow-mapped`), has a directory for uploads (`--database`), and lends up to {on_loan} at
  a time to a client (`max_bytes_on_loan_per_connection`): a mapped result that is kept as a whole needs that.
  With `pool=2GiB` the driver keeps the memory of a whole result for the next one, instead of 256 MiB.
- **Flight SQL (Sail)**: `adbc-driver-flightsql`, and of Sail's settings those that were faster than its defaults
  here: {sail}. The client leaves out the Prepare of the DB-API, which Sail refuses, and which costs a round trip.
- **DuckDB's Quack**: DuckDB at both ends, the query as a whole at the server (`quack_query_by_name` over the
  connection of `ATTACH`, which is faster here than `quack_query`, and than scans of attached tables),
  `preserve_insertion_order = false` at both ends, `produce_arrow_string_view = true`, `parquet_metadata_cache =
  true`. Its database is a file, so that an upload lasts, as with Thallus.
- **DataFusion in process**: the floor, without a server: `ctx.sql(...).to_arrow_table()`, batches of 65,536 rows as
  in Thallus's server, `pushdown_filters = true`. Its upload is `write_parquet` without compression, not
  synchronized to the disk."""

MISSING = """\
- `SELECT 1`, prepared: Sail refuses Prepare. A statement that DuckDB prepares over Quack keeps its first result: it
  repeats that after the table has changed.
- Uploads: Sail does not implement the bulk ingestion of Flight SQL. `benostreamdb-flight` 0.13.1 refuses the data of
  the ADBC driver. The package `gizmosql` downloads its server from elsewhere. So no upload by Flight SQL was
  measured.
- `pool`, `mapped` and `inline` concern large results; small ones travel inline in any case. Uploads cannot be
  mapped."""


def seconds(value: float) -> str:
    """A time with three digits, in a unit that suits it."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        scaled = value * factor
        if scaled >= 1 or unit == "µs":
            return f"{scaled:.{max(0, 2 - len(str(int(scaled))) + 1)}f} {unit}"
    raise AssertionError


def ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def spread(values: list[float], text: Callable[[float], str]) -> str:
    """The median, and the least and the greatest value in brackets."""
    return f"{text(statistics.median(values))} ({text(min(values))} – {text(max(values))})"


def ratios(run: Run, case: str, name: str) -> list[float]:
    """The contender's time over Thallus's, of each round."""
    return [time / base for time, base in zip(run.seconds[case, name], run.seconds[case, BASE])]


def table(run: Run, cell: Callable[[str, str], str]) -> Iterable[str]:
    yield "| | " + " | ".join(CONTENDERS[name].title for name in run.names) + " |"
    yield "|---|" + "---:|" * len(run.names)
    for case in run.cases:
        cells = [cell(case.name, name) if (case.name, name) in run.seconds else "" for name in run.names]
        yield f"| {case.title} | " + " | ".join(cells) + " |"


def results(run: Run) -> Iterable[str]:
    """The rows and bytes of each case's result."""
    yield "| | rows | bytes as Arrow | rounds |"
    yield "|---|---:|---:|---:|"
    for case in run.cases:
        rounds = len(run.seconds[case.name, BASE])
        yield f"| {case.title} | {run.rows[case.name]:,} | {run.bytes[case.name]:,} | {rounds} |"


def first(path: str, pattern: str) -> str:
    found = re.search(pattern, pathlib.Path(path).read_text())
    return found.group(1).strip() if found else "unknown"


def commit() -> str:
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True)
    return (head.stdout.strip() or "unknown") + (", with changes" if changed.stdout.strip() else "")


def machine() -> dict[str, str]:
    """Taken before the run: its own load does not count."""
    return {
        "when": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "processor": f"{first('/proc/cpuinfo', r'model name.*: (.*)')}, {os.cpu_count()} cores",
        "memory": f"{int(first('/proc/meminfo', r'MemTotal: *([0-9]+)')) / 2**20:.0f} GiB",
        "load before the run": f"{os.getloadavg()[0]:.2f}",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }


def page(run: Run, about: dict[str, str], scale: str) -> str:
    lines = ["# From the user's seat", "", "Generated by `bench/seat.sh` from its measurements (`summary.csv`).", ""]
    lines += ["## Times", "", *table(run, lambda case, name: spread(run.seconds[case, name], seconds)), ""]
    lines += ["## Ratios", "", "The time of a contender over that of Thallus: above 1, Thallus is faster.", ""]
    lines += [*table(run, lambda case, name: "1" if name == BASE else spread(ratios(run, case, name), ratio)), ""]
    lines += ["## Empty cells", "", MISSING, "", "## Results", "", *results(run), ""]
    sail = ", ".join(f"`{name}={value}`" for name, value in SAIL.items())
    lines += ["## Settings", "", SETTINGS.format(on_loan=ON_LOAN, sail=sail), ""]
    lines += ["## Method", "", METHOD.format(scale=scale, turn=TURN_SECONDS), ""]
    lines += ["## Machine", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in about.items()]
    return "\n".join(lines) + "\n"


def write(run: Run, about: dict[str, str], scale: str, out: pathlib.Path) -> None:
    """Writes README.md and summary.csv."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "summary.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = ("case", "contender", "rows", "rounds", "executions", "seconds_median", "seconds_min", "seconds_max")
        writer.writerow((*head, "ratio_median", "ratio_min", "ratio_max"))
        for (case, name), values in run.seconds.items():
            over = ratios(run, case, name)
            figures = [f(of) for of in (values, over) for f in (statistics.median, min, max)]
            counts = (run.rows[case], len(values), run.executions[case, name])
            writer.writerow((case, name, *counts, *(f"{figure:.6g}" for figure in figures)))
    (out / "README.md").write_text(page(run, about, scale))
