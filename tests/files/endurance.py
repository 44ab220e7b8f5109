#!/usr/bin/env python3
"""The soak: a server under ordinary and hostile load for a long time, which afterwards is as it was.

Clients run queries of all sizes over all deliveries, and are interrupted, killed and stopped. Strangers send garbage.
Files change while they are served. Every answer is compared with the right one. scripts/soak.sh runs this.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from differ.server import Server
from mutate.server import Watch
from soak import changing, queries, state, tables
from soak.clients import CLIENTS, Clients, Fault, Run
from soak.strangers import Strangers

MIB = 1 << 20
#: The limit of the engine's memory, the heap, and what one query may take beside them, MiB.
MEMORY, HEAP, SPARE = 128, 128, 512
DRAIN = 20
#: Faults that look the same and are shown, and different ones after which the rest is not worth its time.
SAME, MOST_FAULTS = 3, 25
#: Seconds in which a server without clients returns to where it was: the lease of a dead client takes 60.
BACK = 180
ENDS = ["rows", "exhausted", "refused", "deadline", "interrupted", "killed"]
COLUMNS = ["seconds", "rss_mib", "peak_mib", "threads", "descriptors", "memory_files", "shm_bytes", "shm_entries",
           "sysv_bytes", "sysv_entries", "spilled_bytes", "select1_ms", *ENDS, "strangers", "changes", "faults"]


class Soak:
    """A server, its load, and what was seen."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.seed = options, options.seed
        self.work = Path(options.work).absolute()
        shutil.rmtree(self.work, ignore_errors=True)
        data, spill = self.work / "data", self.work / "spill"
        spill.mkdir(parents=True)
        self.tables = tables.write(data)
        self.ordinary = queries.Ordinary(self.tables)
        self.changer = changing.Changer(data)
        self.shm_before = state.shm()
        self.server = Server(Path(options.programs), self._config(data, spill), self.work / "server.log")
        pid = self.server.process.pid
        self.watch = Watch(pid, (MEMORY + HEAP + SPARE * CLIENTS) * MIB)
        self.clients = Clients(Path(options.programs) / "thallus", self.server.url, self.work)
        self.probe = state.Probe(pid, self.clients.all, spill)
        host, port = self.server.url.removeprefix("thallus://").rsplit(":", 1)
        self.strangers = Strangers((host, int(port)))
        self.lock, self.counts = threading.Lock(), collections.Counter()
        #: Faults by what they have in common.
        self.faults: collections.Counter[str] = collections.Counter()
        self.numbers: collections.Counter[str] = collections.Counter()
        self.ended = threading.Event()
        self.started = time.monotonic()
        self.figures = Path(options.figures or self.work / "figures.csv")
        self.figures.write_text(",".join(COLUMNS) + "\n")

    def _config(self, data: Path, spill: Path) -> Path:
        path = self.work / "server.toml"
        path.write_text(f"""data = [{json.dumps(str(data))}]
[timeouts]
drain = "{DRAIN}s"
[fabric]
allow_mapped = true
registered_heap = "{HEAP}MiB"
[engine]
memory_limit = "{MEMORY}MiB"
partitions = 2
spill_dir = {json.dumps(str(spill))}
max_spill_bytes = "2GiB"
[log]
filter = "warn,thallus_server=info"
""")
        return path

    def act(self, what: str, name: str) -> None:
        """One action. It follows from the seed and `what`, a kind with a number, as client/7."""
        rng = random.Random(f"{self.seed}/{what}")
        run = None
        try:
            if what.startswith("stranger"):
                self.strangers.visit(rng)
                self.count("strangers")
            elif what.startswith("change"):
                self.changer.change(rng, self.clients)
                self.count("changes")
            else:
                run = self.run_of(rng)
                self.count(self.clients.go(run, name))
        except Fault as fault:
            self.fault(str(fault), what, run)

    def run_of(self, rng: random.Random) -> Run:
        """A client's run: two of three are ordinary."""
        kind = rng.random()
        if kind < 0.62:
            return Run(rng, self.ordinary.pick(rng), False)
        if kind < 0.72:
            return Run(rng, changing.query(changing.table_of(rng.choice(changing.NAMES))), False)
        return Run(rng, queries.hostile(rng), True)

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def fault(self, text: str, what: str | None = None, run: Run | None = None) -> None:
        """Reports a fault, and how to repeat it."""
        code = self.server.process.poll()
        if code is not None:
            text = f"the server has ended with code {code}: {text}"
            self.ended.set()
        # Numbers, names and places differ; the fault is the same.
        sign = re.sub(r"\d+|'[^']*'|`[^`]*`|\S*/\S*", "", text.split("\n", 1)[0])[:120]
        with self.lock:
            self.faults[sign] += 1
            self.counts["faults"] += 1
            if self.faults[sign] > SAME:
                return
            print(f"\nFAULT after {self.seconds():.0f} s: {text}", flush=True)
            if run:
                print(f"  client   {run.shown(self.server.url)}")
            if what:
                print(f"  repeat   scripts/soak.sh --seed {self.seed} --only {what}   (the whole: --seed {self.seed})",
                      flush=True)
            if len(self.faults) >= MOST_FAULTS:
                self.ended.set()

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def load(self, seconds: float) -> None:
        """The load for some time: three workers with clients, one with strangers, one with changes."""
        until = time.monotonic() + seconds
        names = [f"client{at}" for at in range(CLIENTS)] + ["stranger", "change"]
        workers = [threading.Thread(target=self._work, args=(name, until), name=name) for name in names]
        for worker in workers:
            worker.start()
        minute = 1
        while any(worker.is_alive() for worker in workers):
            time.sleep(0.2)
            if time.monotonic() - (until - seconds) >= 60 * minute:
                minute += 1
                self.line()

    def _work(self, name: str, until: float) -> None:
        kind = name.rstrip("0123456789")
        while time.monotonic() < until and not self.ended.is_set():
            with self.lock:
                self.numbers[kind] += 1
                what = f"{kind}/{self.numbers[kind]}"
            try:
                self.act(what, name)
            except Exception as error:  # A fault of this program must not end a worker without a word.
                self.fault(f"the soak failed: {error!r}", what)
            if kind != "client":
                # Most of the time files are whole, and few connections are strangers'.
                self.ended.wait(1)

    def line(self) -> None:
        """One line of figures, and the checks of every minute."""
        milliseconds = self.select_1()
        if self.server.process.poll() is not None:
            return self.fault("no figures")
        peak, now = self.watch.take(), self.probe.state()
        if peak > self.watch.bound:
            self.fault(f"the server held {peak // MIB} MiB; its bound is {self.watch.bound // MIB} MiB")
        with self.lock:
            values = [f"{self.seconds():.0f}", now.rss // MIB, peak // MIB, now.threads, now.descriptors,
                      now.memory_files, sum(now.shm.values()), len(now.shm), sum(now.segments.values()),
                      len(now.segments), now.spilled, f"{milliseconds:.0f}",
                      *(self.counts[name] for name in [*ENDS, "strangers", "changes", "faults"])]
        with self.figures.open("a") as file:
            file.write(",".join(map(str, values)) + "\n")

    def select_1(self) -> float:
        """Milliseconds of the smallest query beside the load."""
        run = Run(random.Random(0), self.ordinary.one(random.Random(0)), False)
        run.fate = "ends"
        with self.clients.room():
            started = time.monotonic()
            try:
                self.clients.once(run, "probe")
            except Fault as fault:
                self.fault(f"SELECT 1: {fault}")
            return (time.monotonic() - started) * 1000

    def go(self) -> None:
        """The whole: warm-up, load, and the comparison of the states before and after it."""
        self.load(self.options.warm_up)
        before = self.probe.until_steady(BACK)
        print(f"soak: after the warm-up: {before.shown()}", flush=True)
        self.load(self.options.minutes * 60)
        if self.server.process.poll() is not None:
            return
        if self.clients.processes:
            self.fault(f"clients are left: {self.clients.processes}")
        for name in changing.NAMES:
            self.act_of_end(name)
        after, took = self.probe.until_back(before, BACK)
        print(f"soak: {took:.0f} s after the load: {after.shown()}", flush=True)
        for growth in after.growth(before):
            self.fault(f"{growth}; {took:.0f} s after the load")
        for name in state.new_shm(self.shm_before, self.clients.killed_over_ucx):
            self.fault(f"{name} is left, {took:.0f} s after the load")
        self.line()

    def act_of_end(self, name: str) -> None:
        """A changed file is served as it is in the end."""
        try:
            self.changer.restore(name)
            self.changer.expect(random.Random(0), name, 1, self.clients)
        except Fault as fault:
            self.fault(str(fault))

    def end(self) -> None:
        """Ends the server by SIGTERM, and looks at what it leaves."""
        self.watch.stop()
        process, started = self.server.process, time.monotonic()
        was_running = process.poll() is None
        self.server.stop()
        took = time.monotonic() - started
        if was_running and (process.returncode != 0 or took > DRAIN + 5):
            self.fault(f"SIGTERM: exit code {process.returncode} after {took:.1f} s")
        left = state.new_shm(self.shm_before, self.clients.killed_over_ucx)
        left += [f"System V segment {number}" for number in self.probe.segments()]
        left += [str(path) for path in (self.work / "spill").rglob("*")]
        if left:
            self.fault(f"the server has ended, and left {left}")
        log = self.server.log.read_text(errors="replace")
        for line in sorted(set(re.findall(r"panicked at .*|.*\bbug:.*", log)))[:10]:
            self.fault(f"the server's log: {line}")
        warnings = collections.Counter(re.sub(r"\d+", "N", line.split(" ", 1)[-1])[:120]
                                       for line in log.splitlines() if re.search(r"\b(WARN|ERROR)\b", line))
        print(f"soak: seed {self.seed}, {self.seconds():.0f} s; the server ended after {took:.1f} s with code "
              f"{process.returncode}; {dict(sorted(self.counts.items()))}; figures in {self.figures}")
        for sign, count in self.faults.most_common():
            print(f"soak: fault, {count} times: {sign}")
        for text, count in warnings.most_common(15):
            print(f"soak: in the log {count} times: {text}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", nargs="?", type=float, default=60)
    parser.add_argument("--seed", type=int, help="random by default")
    parser.add_argument("--only", help="one action alone, as client/17, stranger/3 or change/5")
    parser.add_argument("--warm-up", type=float, default=60, help="seconds of load before the state that is compared")
    parser.add_argument("--figures", help="file for one CSV line a minute (default: in the working directory)")
    parser.add_argument("--programs", required=True, help="directory of thallus and thallus-server")
    parser.add_argument("--work", required=True, help="directory for data, log, spilled files and results")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    return options


def main() -> int:
    """Runs the soak. The exit code is 1 if there was a fault."""
    options = arguments()
    print(f"soak: seed {options.seed}", flush=True)
    # Others use the machine too. Server and clients inherit this.
    os.nice(10)
    # So that the server is stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    soak = Soak(options)
    try:
        if options.only:
            soak.act(options.only, "only")
        else:
            soak.go()
    finally:
        soak.ended.set()
        soak.end()
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
