"""A server process whose data directory takes mutated files, and queries through the command line."""

import os
import pathlib
import re
import resource
import signal
import subprocess
import threading
import time

MIB = 1 << 20
# Addresses of the process, in bytes: an allocation beyond a small machine's memory fails here too, on a large one.
ADDRESSES = 8 << 30
# Texts that no answer may have: a file is never a reason for a bug.
FORBIDDEN = re.compile(r"internal|panick|\bbug\b|please (file|report)|unreachable|unwrap|assertion|RUST_BACKTRACE",
                       re.IGNORECASE)
# Limits of DataFusion for types, which it reports as its own fault for good files too.
KNOWN = re.compile(r"accumulator not implemented for type|Uncomparable values|Min/[Mm]ax accumulator")
# Exit codes of `thallus`: done, a result that does not fit the format, and a query that the server refused.
EXPECTED_CODES = {0, 2, 4}
# Those of a lost connection.
LOST_CODES = {3, 5}


class Fault(Exception):
    """The server did what it must not."""


class Server:
    """A running server. `memory` is `--memory-limit`, `heap` is `--registered-heap`, `spare` what it may hold beside
    these; all in MiB."""

    def __init__(self, programs, work, memory, heap, spare, deadline):
        self.programs, self.work, self.deadline = pathlib.Path(programs), pathlib.Path(work), deadline
        self.memory, self.heap, self.bound = memory, heap, (memory + heap + spare) * MIB
        self.data = self.work / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        for path in self.data.iterdir():
            path.unlink()
        (self.data / "good.csv").write_text("a\n1\n")
        self.log = self.work / "server.log"
        self.start()

    def start(self):
        """Starts the process, and waits until it listens."""
        with open(self.log, "wb") as log:
            # The environment without variables that would change its configuration.
            environment = {k: v for k, v in os.environ.items() if not k.startswith("THALLUS_")}
            self.process = subprocess.Popen(
                [self.programs / "thallus-server", "--listen", "127.0.0.1:0", "--data", self.data,
                 "--memory-limit", f"{self.memory}MiB", "--registered-heap", f"{self.heap}MiB", "--partitions", "2",
                 "--log", "warn,thallus_server=info", "--spill-dir", self.work], stderr=log, stdin=subprocess.DEVNULL,
                env=environment, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES)))
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            found = re.search(r"listening.*address=([\d.:]+)", self.log.read_text(errors="replace"))
            if found:
                self.address = found.group(1)
                self.watch = Watch(self.process.pid, self.bound)
                return
            time.sleep(0.02)
        raise RuntimeError(f"the server did not start: {self.log.read_text(errors='replace')}")

    def stop(self):
        """Ends the process."""
        self.watch.stop()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    def query(self, sql, deadline=None):
        """Runs a query; returns its code, its error, and its time in seconds. Rows are discarded."""
        deadline = deadline or self.deadline
        # Inline and over shared memory in turn, by the text, so that a repetition takes the same way.
        fabric = "none" if len(re.sub(r"\d", "", sql)) % 2 else "auto"
        command = [self.programs / "thallus", "query", f"thallus://{self.address}?fabric={fabric}", sql, "--quiet",
                   "--format", "arrow", "--deadline", f"{deadline}s"]
        start = time.monotonic()
        try:
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                                  timeout=deadline + 10, check=False)
        except subprocess.TimeoutExpired:
            return None, "the client did not end by its deadline", time.monotonic() - start
        return done.returncode, done.stderr.decode(errors="replace"), time.monotonic() - start

    def check(self, sql):
        """Runs a query and checks how it ends. Returns its code, error and seconds."""
        code, error, seconds = self.query(sql)
        if code in LOST_CODES:
            # The end of a process is known a little after that of its connections.
            time.sleep(0.3)
        if self.process.poll() is not None:
            raise Fault(f"the server ended with {self.ending()} during {sql}")
        if code is None:
            raise Fault(f"no end within {seconds:.1f} s: {sql}")
        if code not in EXPECTED_CODES and not is_deadline(error):
            raise Fault(f"exit code {code}: {error.strip()[:600]}: {sql}")
        if FORBIDDEN.search(error) and not KNOWN.search(error):
            raise Fault(f"{error.strip()[:600]}: {sql}")
        if code != 0 and not error.strip():
            raise Fault(f"exit code {code} without an error: {sql}")
        return code, error, seconds

    def check_alive(self):
        """A query without a table has an answer at once."""
        if self.process.poll() is not None:
            raise Fault(f"the server ended with {self.ending()}")
        code, error, seconds = self.query("SELECT 1", 10)
        if code != 0 or seconds > 5:
            raise Fault(f"SELECT 1 ended with {code} after {seconds:.1f} s: {error.strip()[:300]}")

    def is_fresh(self):
        """Whether the process holds no more than it does after some small queries."""
        return self.process.poll() is None and self.watch.resident() < self.bound // 4

    def check_memory(self):
        """The greatest memory since the last check, in bytes, is within the bound."""
        peak = self.watch.take()
        if peak > self.bound:
            raise Fault(f"the server held {peak // MIB} MiB; the bound is {self.bound // MIB} MiB")
        return peak

    def ending(self):
        """How the process ended, and its last words."""
        self.process.wait()
        code = self.process.returncode
        name = signal.Signals(-code).name if code < 0 else f"code {code}"
        words = self.log.read_text(errors="replace").strip().splitlines()
        words = [line for line in words if re.search("panicked|overflow|memory allocation|fatal|abort", line)][-4:]
        return f"{name} ({' | '.join(words)[-800:]})" + (" after it was stopped for its memory" if self.watch.killed
                                                         else "")


def is_deadline(error):
    """Whether the error says that the deadline passed."""
    return "deadline" in error or "timed out" in error


class Watch(threading.Thread):
    """Takes the peak of a process's memory, and kills it before it takes the machine's."""

    # Above this the machine is at risk.
    KILLED_FROM = 6 << 30

    def __init__(self, pid, bound):
        super().__init__(daemon=True)
        self.pid, self.bound, self.killed = pid, bound, False
        self.ended = threading.Event()
        self.start()

    def _status(self, key):
        try:
            status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return 0
        found = re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)
        return int(found.group(1)) * 1024 if found else 0

    def resident(self):
        """Memory that the process holds now, in bytes."""
        return self._status("VmRSS")

    def take(self):
        """The peak since the last call. The kernel keeps it, so that no peak is missed."""
        peak = self._status("VmHWM")
        try:
            pathlib.Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        except OSError:
            pass
        return peak

    def run(self):
        while not self.ended.wait(0.05):
            if self._status("VmRSS") > self.KILLED_FROM:
                self.killed = True
                os.kill(self.pid, signal.SIGKILL)
                return

    def stop(self):
        """Ends the watch."""
        self.ended.set()
        self.join()
