"""Rounds: in each of them every contender has a turn at every case."""

import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

from .cases import Case, Keys, expected
from .contenders import CONTENDERS
from .servers import START, Server, Setup

#: Seconds that the executions of a small case take in one turn, and the most of them.
TURN_SECONDS, TURN_EXECUTIONS = 0.3, 200


#: Seconds after which an answer does not come any more.
ANSWER_SECONDS = 600


class Failed(Exception):
    """A contender failed, or returned other values than the files have."""


class Process:
    """A contender's client in a process of its own."""

    def __init__(self, name: str, address: str, setup: Setup):
        command = [sys.executable, "-m", "seat.worker", name, address, setup.programs, setup.data, setup.work]
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request, and waits for its answer."""
        limit = threading.Timer(ANSWER_SECONDS, self.process.kill)
        limit.start()
        try:
            answer = self.exchange(json.dumps(request))
        finally:
            limit.cancel()
        if "error" in answer:
            raise Failed(f"{self.name}, case {request['case']}: {answer['error']}")
        return answer

    def exchange(self, request: str) -> dict[str, Any]:
        try:
            self.process.stdin.write(request + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in self.process.stdout:
            # Libraries may print to standard output too.
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        status = self.process.wait()
        return {"error": f"its process ended with status {status}, or was ended after {ANSWER_SECONDS} s"}

    def stop(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Run:
    """The measurements: of each case and contender the median seconds of each round."""

    def __init__(self, setup: Setup, names: list[str], cases: list[Case]):
        self.setup, self.cases = setup, cases
        self.keys = Keys(setup.data)
        self.servers: dict[str, tuple[Server, str]] = {}
        self.processes: dict[str, Process] = {}
        self.executions: dict[tuple[str, str], int] = {}
        self.bytes: dict[str, int] = {}
        self.rows: dict[str, int] = {}
        self.seconds: dict[tuple[str, str], list[float]] = {}
        self.names = names

    def __enter__(self) -> "Run":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        for name in self.names:
            kind = CONTENDERS[name].server
            if kind in START and kind not in self.servers:
                self.servers[kind] = START[kind](self.setup)
            address = self.servers[kind][1] if kind in START else ""
            self.processes[name] = Process(name, address, self.setup)

    def stop(self) -> None:
        for process in self.processes.values():
            process.stop()
        for server, _ in self.servers.values():
            server.stop()

    def contenders(self, case: Case) -> list[str]:
        return [name for name in self.names if case.name in CONTENDERS[name].cases]

    def check(self) -> None:
        """Compares the values of every contender with the files, and fills caches and pools."""
        for case in self.cases:
            sql = self.keys.texts(case, 1)[0]
            want = expected(case, sql, self.setup.data)
            self.rows[case.name] = int(want[0])
            for name in self.contenders(case):
                got = self.processes[name].ask(case=case.name, check=sql)
                if got["fingerprint"] != want:
                    raise Failed(f"{name} returned other values for {sql}: {got['fingerprint']} instead of {want}")
                self.bytes.setdefault(case.name, got["bytes"])
                self.executions[case.name, name] = 1 if case.is_large else self.count(case, name)
            print(f"seat: {case.name}: values are the same", file=sys.stderr, flush=True)

    def count(self, case: Case, name: str) -> int:
        """The number of executions that fit a turn."""
        self.turn(case, name, 5)
        seconds = self.turn(case, name, 5)
        return max(1, min(TURN_EXECUTIONS, round(TURN_SECONDS / seconds)))

    def turn(self, case: Case, name: str, count: int) -> float:
        answer = self.processes[name].ask(case=case.name, texts=self.keys.texts(case, count))
        return statistics.median(answer["seconds"])

    def measure(self, rounds: int) -> None:
        for number in range(rounds):
            started = time.monotonic()
            for case in self.cases:
                if number >= case.rounds:
                    continue
                names = self.contenders(case)
                # Each round begins with another contender: none has always the same one before it.
                first = number % len(names)
                for name in names[first:] + names[:first]:
                    seconds = self.turn(case, name, self.executions[case.name, name])
                    self.seconds.setdefault((case.name, name), []).append(seconds)
            took = time.monotonic() - started
            print(f"seat: round {number + 1} of {rounds}, {took:.0f} s", file=sys.stderr, flush=True)
