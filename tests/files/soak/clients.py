"""Clients: the command line as a process, with a fate: it ends by itself, is interrupted, killed, or stands still."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
from mutate.server import FORBIDDEN, KNOWN, is_deadline

from .queries import DEADLINE, REFUSED, ROWS_CAME, Query, Wrong

#: Seconds in which a query ends on a busy machine, beside its deadline and the time in which its client stood still.
PATIENCE = 300
#: Clients at a time.
CLIENTS = 3
FATES = ["ends", "interrupted", "killed", "stands still"]
#: Seconds in which a server awaits the end of a handshake. A client that stands still for longer may find it over.
HANDSHAKE = 10
LATE = re.compile("took longer than|the server is gone")
#: Exit codes of `thallus`.
CODE_REFUSED, CODE_INTERRUPTED = 4, 130


class Fault(Exception):
    """The server or a client did what it must not."""


class Exhausted(Fault):
    """An ordinary query for which other queries left no memory."""


class Run:
    """One run of a client: query, options and fate, all from `rng`."""

    def __init__(self, rng: random.Random, query: Query, is_hostile: bool) -> None:
        self.query = query
        # No choice may depend on the time, so that a number names the same run again.
        self.fabric = rng.choice(["auto", "auto", "shm", "ucx", "none"])
        self.fate = rng.choices(FATES, [5, 2, 2, 1] if is_hostile else [17, 1, 1, 1])[0]
        longest = query.deadline or 1.0
        self.moment = rng.choice([0.02, 0.2, longest]) * rng.random()
        # A client that stood still for longer than the lease loses its stream by right.
        self.pause = 40.0 if rng.random() < 0.1 else rng.random() * 5
        self.options = self._choose(rng)
        self.is_parquet = is_parquet = query.right is not None and rng.random() < 0.1
        self.options += ["--format", "parquet" if is_parquet else "arrow"]

    def _choose(self, rng: random.Random) -> list[str]:
        # Without a fabric a request for mapped results is refused.
        deliveries = ["auto", "auto", "inline", "lent", "lazy", "mapped"]
        delivery = rng.choice(deliveries[:-1] if self.fabric == "none" else deliveries)
        options = ["--delivery", delivery]
        self.columns, self.first, self.end = None, 0, None
        if self.query.deadline:
            options += ["--deadline", f"{self.query.deadline}s"]
        if rng.random() < 0.2:
            options += ["--batch-rows", str(rng.choice([1000, 8192, 1_000_000]))]
        if rng.random() < 0.2:
            options += ["--window", rng.choice(["1MiB", "16MiB", "128MiB"])]
        if delivery == "lazy" and self.query.is_ordered and self.query.ends == {ROWS_CAME}:
            right = self.query.right()
            self.columns = rng.sample(right.column_names, rng.randint(1, min(3, right.num_columns)))
            self.first = rng.randrange(right.num_rows)
            self.end = self.first + rng.randint(1, right.num_rows - self.first)
            options += ["--columns", ",".join(self.columns), "--rows", f"{self.first}..{self.end}"]
        elif delivery != "lazy" and rng.random() < 0.25:
            options += ["--partitions", str(rng.randint(2, 4))]
        return options

    def shown(self, url: str) -> str:
        """The command for a shell."""
        sql = self.query.sql if len(self.query.sql) < 600 else f"{self.query.sql[:300]} ... {self.query.sql[-100:]}"
        command = ["thallus", "query", f"{url}?fabric={self.fabric}", sql, "--quiet", *self.options]
        return f"{shlex.join(command)}   ({self.fate}, after {self.moment:.2f} s)"


class Clients:
    """Starts clients, at most three at a time, and looks at their ends."""

    def __init__(self, program: Path, url: str, work: Path) -> None:
        self.program, self.url, self.work = program, url, work
        #: Places for clients. They are taken through the gate, so that who waits is not overtaken by the next client of
        #: a busy worker, and so that two that want all places do not each have some.
        self.places, self.gate = threading.BoundedSemaphore(CLIENTS), threading.Lock()
        self.lock = threading.Lock()
        self.processes: set[int] = set()
        #: Numbers of the processes of all clients: System V segments have them as creators.
        self.all: set[int] = set()
        #: Clients that were killed while they perhaps made shared memory over UCX, which then has no owner.
        self.killed_over_ucx = 0

    @contextlib.contextmanager
    def room(self, places: int = 1) -> Iterator[None]:
        """Room for a client, or for one that is alone."""
        with self.gate:
            for _ in range(places):
                self.places.acquire()
        try:
            yield
        finally:
            self.places.release(places)

    def go(self, run: Run, name: str) -> str:
        """Runs a client to its end. Returns how it ended: rows, refused, deadline, interrupted, killed; or exhausted,
        if the rows only came once it was alone."""
        try:
            with self.room():
                return self.once(run, name)
        except Exhausted:
            return self._alone(run, name)

    def _alone(self, run: Run, name: str) -> str:
        run.fate = "ends"
        with self.room(CLIENTS):
            # A query whose client was killed ends a little later.
            for _ in range(5):
                try:
                    self.once(run, name)
                    return "exhausted"
                except Exhausted as error:
                    last = error
                    time.sleep(1)
            raise Fault(f"refused although no other client runs: {last}")

    def once(self, run: Run, name: str) -> str:
        """Runs a client to its end, in the room that the caller holds."""
        extension = "parquet" if run.is_parquet else "arrow"
        out = self.work / f"out-{name}.{extension}"
        code, error = self._process(run, out, self.work / f"err-{name}")
        try:
            return self._judge(run, code, error, out)
        finally:
            out.unlink(missing_ok=True)

    def _process(self, run: Run, out: Path, errors: Path) -> tuple[int, str]:
        wanted = run.query.right is not None
        command = [self.program, "query", f"{self.url}?fabric={run.fabric}", "-", "--quiet", *run.options]
        command += ["-o", out if wanted else "/dev/null"] if run.is_parquet or not wanted else []
        # Files, since pipes fill up, and a full one stops a client.
        with errors.open("wb") as err, (out.open("wb") if wanted else open(os.devnull, "wb")) as stdout:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, stderr=err)
            with self.lock:
                self.processes.add(process.pid)
                self.all.add(process.pid)
            try:
                self._feed(process, run.query.sql)
                self._fate(process, run)
                code = process.wait(PATIENCE + (run.query.deadline or 0))
            except subprocess.TimeoutExpired as late:
                raise Fault(f"no end within {late.timeout:.0f} s") from late
            finally:
                process.kill()
                process.wait()
                with self.lock:
                    self.processes.discard(process.pid)
        return code, errors.read_text(errors="replace").strip()

    def _feed(self, process: subprocess.Popen, sql: str) -> None:
        try:
            process.stdin.write(sql.encode())
            process.stdin.close()
        except BrokenPipeError:
            pass

    def _fate(self, process: subprocess.Popen, run: Run) -> None:
        if run.fate == "ends":
            return
        try:
            process.wait(run.moment)
            return
        except subprocess.TimeoutExpired:
            pass
        if run.fate == "stands still":
            process.send_signal(signal.SIGSTOP)
            time.sleep(run.pause)
            process.send_signal(signal.SIGCONT)
        else:
            process.send_signal(signal.SIGINT if run.fate == "interrupted" else signal.SIGKILL)
            if run.fate == "killed" and run.fabric in ("auto", "ucx"):
                with self.lock:
                    self.killed_over_ucx += 1

    def _judge(self, run: Run, code: int, error: str, out: Path) -> str:
        query = run.query
        if FORBIDDEN.search(error) and not KNOWN.search(error):
            raise Fault(f"exit code {code}: {error[:1000]}")
        if run.fate == "interrupted" and code in (CODE_INTERRUPTED, -signal.SIGINT):
            return "interrupted"
        if run.fate == "killed" and code == -signal.SIGKILL:
            return "killed"
        if run.fate == "stands still" and run.pause > HANDSHAKE and LATE.search(error):
            return "interrupted"
        if code == 0:
            end = ROWS_CAME
        elif query.deadline and is_deadline(error):
            end = DEADLINE
        elif code == CODE_REFUSED:
            end = REFUSED
        else:
            raise Fault(f"exit code {code}: {error[:1000]}")
        if end == REFUSED and REFUSED not in query.ends and "resources exhausted" in error:
            raise Exhausted(error[:1000])
        if end not in query.ends:
            raise Fault(f"the end is {end!r}, and not in {sorted(query.ends)}; exit code {code}: {error[:1000]}")
        if end == REFUSED and not re.search(query.words, error):
            raise Fault(f"the refusal does not say {query.words!r}: {error[:1000]}")
        if end == ROWS_CAME and query.right is not None:
            try:
                query.check(read(out), run.columns, run.first, run.end)
            except Wrong as wrong:
                raise Fault(f"wrong answer: {wrong}") from wrong
            except pa.ArrowInvalid as invalid:
                raise Fault(f"the result cannot be read: {invalid}") from invalid
        return end


def read(path: Path) -> pa.Table:
    """A result."""
    if path.suffix == ".parquet":
        return pq.read_table(path)
    with pa.OSFile(str(path)) as file, ipc.open_stream(file) as reader:
        return reader.read_all()
