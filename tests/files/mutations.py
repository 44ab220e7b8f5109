#!/usr/bin/env python3
"""Serves mutated files with a real server, and checks that it survives them.

Every case follows from a number. A case is a file, made from a small good one by a mutation that knows the format. The
server gets a batch of files at a time, and each is queried. The server must not end, must keep its memory within its
bound, and must answer each query by its deadline, with rows or with an error that a user can act on.
"""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import time
import warnings

from mutate import arrow, parquet, seeds, server, text

FORMATS = ["parquet", "arrow", "csv", "json", "packed"]
BATCH = 24


class Case:
    """The file of a seed. `problem` is set if the mutation did not work on it."""

    def __init__(self, seed, sources, formats):
        rng = random.Random(seed)
        self.seed, self.rng = seed, rng
        self.format = formats[seed % len(formats)]
        name, self.extension, mutation = self._source(sources)
        files = sources[name]
        self.origin = rng.choice(sorted(files))
        other = files[rng.choice(sorted(files))]
        try:
            self.what, self.data = mutation(rng, files[self.origin], other)
        except Exception as problem:  # A mutation may meet what it cannot parse; the case is left out.
            self.what, self.data = f"no mutation: {problem!r}", b""
        # A mutation may meet its own result; the files are large then.
        self.data = self.data[:64 << 20]
        self.columns = COLUMNS.get(name, {}).get(self.origin, [])

    def _source(self, sources):
        if self.format == "parquet":
            return "parquet", "parquet", parquet.mutate
        if self.format == "arrow":
            return "arrow", self.rng.choice(["arrow", "arrows"]), arrow.mutate
        name = self.format if self.format != "packed" else self.rng.choice(["csv", "json"])
        if self.format != "packed":
            return name, name, text.csv if name == "csv" else text.json
        packing = self.rng.choice(sorted(text.PACKINGS))
        return name, f"{name}.{packing}", lambda rng, data, _: text.packed(rng, data, name, packing)

    def queries(self, table):
        """The queries of the case: all rows, their number, and one that uses values or statistics."""
        column = self.rng.choice(self.columns or ["a"])
        last = self.rng.choice([
            f'SELECT "{column}", count(*) FROM {table} GROUP BY 1',
            f'SELECT min("{column}"), max("{column}"), count("{column}") FROM {table}',
            f'SELECT "{column}" FROM {table} WHERE "{column}" > (SELECT min("{column}") FROM {table}) ORDER BY 1',
            f'SELECT count(*) FROM {table} WHERE "{column}" IS NOT NULL',
            f'SELECT * FROM {table} WHERE CAST("{column}" AS VARCHAR) = \'1\'',
            f'SELECT * FROM {table} WHERE "{column}" = 5',
            f"SELECT count(*) FROM (SELECT DISTINCT * FROM {table})",
            f'SELECT * FROM {table} ORDER BY "{column}" LIMIT 3',
            f"SELECT * FROM {table} LIMIT 1",
        ])
        return [f"SELECT * FROM {table}", f"SELECT count(*) FROM {table}", last]


COLUMNS = {
    "csv": {"plain": ["i", "f", "s", "day"], "many": ["i", "s"]},
    "json": {"lines": ["i", "f", "s", "l", "o"], "array": ["i", "s"], "big": ["u", "d"]},
}


def sources_of():
    """The good files by format and name."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    sources = {"parquet": seeds.parquet(), "arrow": seeds.arrow(), "csv": seeds.csv(), "json": seeds.jsons()}
    COLUMNS["parquet"] = {n: pq.read_schema(pa.BufferReader(d)).names for n, d in sources["parquet"].items()}
    COLUMNS["arrow"] = {}
    for name, data in sources["arrow"].items():
        opened = pa.ipc.open_file(data) if data.startswith(arrow.MAGIC) else pa.ipc.open_stream(data)
        COLUMNS["arrow"][name] = opened.schema.names
    return sources


class Run:
    """A run over many seeds."""

    def __init__(self, options):
        self.options, self.sources = options, sources_of()
        self.work = pathlib.Path(options.work)
        self.failures = self.work / "failures"
        self.failures.mkdir(parents=True, exist_ok=True)
        self.counts, self.panics, self.slow = collections.Counter(), collections.Counter(), []
        self.peak, self.failed, self.signs = 0, 0, collections.Counter()
        self.new_server()

    def new_server(self):
        self.server = server.Server(self.options.programs, self.work, self.options.memory, self.options.heap,
                                    self.options.spare, self.options.deadline)
        self.log_read = 0

    def place(self, case, slot):
        """Puts the file of a case at a slot of the data directory, as a writer should: by a rename."""
        table = f"{case.extension.replace('.', '_')}_{slot}"
        hidden = self.server.data / f".{table}"
        hidden.write_bytes(case.data)
        os.rename(hidden, self.server.data / f"{table}.{case.extension}")
        return table

    def ask(self, case, table):
        """Runs the queries of a case. Returns the fault's text, or None."""
        for sql in case.queries(table):
            try:
                code, error, seconds = self.server.check(sql)
            except server.Fault as fault:
                return str(fault)
            self.counts[f"{case.format} {'rows' if code == 0 else 'error'}"] += 1
            if server.is_deadline(error):
                self.counts[f"{case.format} deadline"] += 1
            if seconds > 3:
                self.slow.append((seconds, case.seed, case.what[:100], sql))
        return None

    def batch(self, cases):
        """Serves and queries some cases at once. An answer is one case's; for the rest each is repeated alone."""
        tables = [self.place(case, slot) for slot, case in enumerate(cases)]
        with concurrent.futures.ThreadPoolExecutor(self.options.parallel) as pool:
            faults = list(pool.map(self.ask, cases, tables))
        fault = self.after()
        self.read_panics()
        for case, found in zip(cases, faults):
            if found and not fault:
                self.report(case, found, f"--case {case.seed}")
        if fault is None:
            return
        suspects = [case for case, found in zip(cases, faults) if found] + cases
        found = sum(self.alone(case) for case in {case.seed: case for case in suspects}.values())
        if not found:
            seeds_of = ",".join(str(case.seed) for case in cases)
            self.report(cases[0], f"only together: {fault}", f"--cases {seeds_of}")
        self.restart()

    def alone(self, case):
        """Repeats a case, with a new server if the last one is used up. Returns whether it fails."""
        if not self.server.is_fresh():
            self.restart()
        case = Case(case.seed, self.sources, self.options.formats)
        fault = self.ask(case, self.place(case, 0)) or self.after()
        if fault is None:
            return False
        self.report(case, fault, f"--case {case.seed}")
        self.restart()
        return True

    def after(self):
        """The checks after the queries."""
        try:
            self.server.check_alive()
            self.peak = max(self.peak, self.server.check_memory())
        except server.Fault as fault:
            return str(fault)
        return None

    def restart(self):
        self.read_panics()
        self.server.stop()
        self.new_server()

    def read_panics(self):
        """Counts the places of panics in the log. They are caught, but each is worth a look."""
        text_of = self.server.log.read_text(errors="replace")
        for place in re.findall(r"panicked at (\S+?):\d+:\n(.{0,100})", text_of[self.log_read:]):
            self.panics[re.sub(r".*/(?=[^/]+-\d+\.\d+\.\d+/)", "", place[0]) + ": " + place[1]] += 1
        self.log_read = len(text_of)

    def report(self, case, fault, how):
        self.failed += 1
        # Numbers and names differ from file to file; the fault is the same.
        sign = re.sub(r"\d+|'[^']*'|\"[^\"]*\"|\S*/\S*|: (SELECT|only together).*", "", fault)[:160]
        if "held" in sign:
            sign += re.sub(r"\d+", "", case.what)[:40]
        self.signs[sign] += 1
        if self.signs[sign] > self.options.same:
            return
        path = self.failures / f"{case.seed}.{case.extension}"
        path.write_bytes(case.data)
        formats = "" if self.options.formats == FORMATS else f" --formats {','.join(self.options.formats)}"
        print(f"\nFAULT {fault}\n  file     {path}\n  made of  {case.format} {case.origin}: {case.what[:400]}\n"
              f"  repeat   scripts/fuzz-files.sh {how}{formats}", flush=True)

    def cases(self, numbers):
        made = [Case(number, self.sources, self.options.formats) for number in numbers]
        for case in made:
            self.counts[f"{case.format} files"] += 1
        skipped = [case for case in made if case.what.startswith("no mutation")]
        self.counts["no mutation"] += len(skipped)
        if self.options.verbose:
            for case in made:
                print(case.seed, case.format, case.origin, len(case.data), case.what[:200])
        return [case for case in made if case not in skipped]

    def go(self):
        start, number = time.monotonic(), self.options.seed
        while time.monotonic() - start < self.options.seconds:
            self.batch(self.cases(range(number, number + BATCH)))
            number += BATCH
        seconds = time.monotonic() - start
        count = number - self.options.seed
        print(f"\n{count} files in {seconds:.0f} s ({count / seconds:.1f} a second), seeds {self.options.seed} to "
              f"{number - 1}; greatest memory {self.peak // server.MIB} MiB; {self.failed} faults")
        self.summary()

    def summary(self):
        for name, count in sorted(self.counts.items()):
            print(f"  {name}: {count}")
        for seconds, seed, what, sql in sorted(self.slow, reverse=True)[:10]:
            print(f"  slow: {seconds:.1f} s, seed {seed}: {what}: {sql}")
        for sign, count in self.signs.most_common():
            print(f"  fault: {count} times: {sign}")
        for place, count in self.panics.most_common(40):
            print(f"  caught panic: {count} times at {place}")


def replay(run, path):
    """Serves one kept file, and runs the queries on it."""
    name = pathlib.Path(path).name
    shutil.copy(path, run.server.data / name)
    table = re.sub(r"\.(gz|bz2|xz|zst)$", "", name).rsplit(".", 1)[0].lower()
    for sql in [f'SELECT * FROM "{table}"', f'SELECT count(*) FROM "{table}"',
                f'SELECT count(*) FROM (SELECT DISTINCT * FROM "{table}")']:
        try:
            code, error, seconds = run.server.check(sql)
            print(f"{sql}: code {code}, {seconds:.2f} s {error.strip()[:500]}")
        except server.Fault as fault:
            run.failed += 1
            print(f"FAULT {fault}")
    fault = run.after()
    if fault:
        run.failed += 1
        print(f"FAULT {fault}")
    print(f"greatest memory {run.peak // server.MIB} MiB")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="the first case; random by default")
    parser.add_argument("--case", "--cases", dest="cases", help="only these cases, as in 17,18")
    parser.add_argument("--file", help="a kept file, instead of cases")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--programs", required=True, help="directory of thallus and thallus-server")
    parser.add_argument("--work", required=True, help="directory for data, log and kept files")
    parser.add_argument("--memory", type=int, default=256, help="--memory-limit of the server, MiB")
    parser.add_argument("--heap", type=int, default=64, help="--registered-heap of the server, MiB")
    parser.add_argument("--spare", type=int, default=512, help="memory beside these, MiB")
    parser.add_argument("--deadline", type=int, default=20, help="of a query, in seconds")
    parser.add_argument("--parallel", type=int, default=3, help="queries at a time")
    parser.add_argument("--same", type=int, default=3, help="reports of faults that look the same")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    options.formats = options.formats.split(",")
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 40)
    return options


def main():
    warnings.simplefilter("ignore")
    # So that the server is stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run = Run(arguments())
    try:
        if run.options.file:
            replay(run, run.options.file)
        elif run.options.cases:
            run.batch(run.cases([int(number) for number in run.options.cases.split(",")]))
            run.summary()
        else:
            run.go()
    finally:
        run.server.stop()
    sys.exit(1 if run.failed else 0)


if __name__ == "__main__":
    main()
