"""The server under test as a process, and queries by the command line client."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc

START_SECONDS = 60
QUERY_SECONDS = 120


@dataclass
class Answer:
    """The result of a query, or the server's words of refusal."""

    table: pa.Table | None
    error: str | None
    #: Exit code of the client. 4 is a refusal in words; any other than 0 and 4 is a fault.
    code: int


class StartError(Exception):
    """The server did not start. Its log says why."""


class Server:
    """A running server."""

    def __init__(self, binaries: Path, config: Path, log: Path) -> None:
        self.client = binaries / "thallus"
        self.log = log
        command = [binaries / "thallus-server", "--config", config, "--listen", "127.0.0.1:0"]
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stderr=out, stdout=out)
        self.url = f"thallus://{self._address()}"

    def _address(self) -> str:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            found = re.search(r"listening.*address=([0-9.:]+)", self.log.read_text(errors="replace"))
            if found:
                return found[1]
            if self.process.poll() is not None:
                raise StartError(self.log.read_text(errors="replace").splitlines()[-1])
            time.sleep(0.02)
        self.stop()
        raise StartError(f"no address after {START_SECONDS} s: {self.log}")

    def query(self, sql: str, *options: str) -> Answer:
        """Runs a query. The result comes as an Arrow stream."""
        command = [self.client, "query", self.url, "-", "--format", "arrow", "--quiet", *options]
        try:
            done = subprocess.run(command, input=sql.encode(), capture_output=True, timeout=QUERY_SECONDS)
        except subprocess.TimeoutExpired:
            return Answer(None, f"no end after {QUERY_SECONDS} s", -1)
        if done.returncode != 0:
            return Answer(None, done.stderr.decode(errors="replace").strip(), done.returncode)
        return Answer(ipc.open_stream(done.stdout).read_all(), None, 0)

    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def stop(self) -> None:
        """Ends the process."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
