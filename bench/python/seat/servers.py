"""Starts and stops the servers, on free ports of the loopback interface."""

import dataclasses
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

#: Quack's servers always ask for a token, of four characters at least.
TOKEN = "seat"

#: Sail's settings that were faster than its defaults here. Its results have no views, so it converts those of Parquet.
SAIL = {
    "SAIL_EXECUTION__BATCH_SIZE": "65536",
    "SAIL_EXECUTION__FILE_LISTING_CACHE__TYPE": "global",
    "SAIL_PARQUET__PUSHDOWN_FILTERS": "true",
    "SAIL_PARQUET__SCHEMA_FORCE_VIEW_TYPES": "false",
}

#: Thallus's server: a mapped result of lineitem that is kept as a whole needs more bytes on loan than the default.
#: Batches above the limit travel inline.
ON_LOAN = "8GiB"
THALLUS = f"""
[limits]
max_bytes_on_loan_per_connection = "{ON_LOAN}"
max_bytes_on_loan_total = "{ON_LOAN}"
"""


@dataclasses.dataclass(frozen=True)
class Setup:
    """Paths of one run."""

    #: The directory of Thallus's programs.
    programs: str
    #: The directory of the tables.
    data: str
    #: A directory for logs and for tables that are uploaded.
    work: str

    def program(self, name: str) -> str:
        return os.path.join(self.programs, name)


class ServerError(Exception):
    """A server did not start."""


class Server:
    """A process that is terminated at the end."""

    def __init__(self, setup: Setup, name: str, command: list[str], environment: dict[str, str] | None = None):
        self.name, self.log = name, pathlib.Path(setup.work, f"{name}.log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, **(environment or {})}
            )

    def text(self) -> str:
        """The log, without colors."""
        return re.sub("\x1b\\[[0-9;]*m", "", self.log.read_text(errors="replace"))

    def wait(self, pattern: str) -> str:
        """Waits for a text in the log."""
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            if found := re.search(pattern, self.text()):
                return found.group(1)
            time.sleep(0.02)
        self.stop()
        raise ServerError(f"the server {self.name} does not listen: {self.text()[-2000:] or 'its log is empty'}")

    def wait_for_port(self, port: int) -> None:
        """Waits until a port takes connections."""
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except OSError:
                time.sleep(0.02)
        self.stop()
        raise ServerError(f"the server {self.name} takes no connections at port {port}: {self.text()[-2000:]}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def thallus(setup: Setup) -> tuple[Server, str]:
    config = pathlib.Path(setup.work, "thallus.toml")
    config.write_text(THALLUS)
    command = [setup.program("thallus-server"), "--config", str(config), "--listen", "127.0.0.1:0"]
    command += ["--data", setup.data, "--database", os.path.join(setup.work, "database"), "--allow-mapped"]
    server = Server(setup, "thallus", command)
    return server, "thallus://" + server.wait(r"listening.*?address=(\S+)\n")


def sail(setup: Setup) -> tuple[Server, str]:
    port = free_port()
    program = os.path.join(os.path.dirname(sys.executable), "sail")
    command = [program, "flight", "server", "--ip", "127.0.0.1", "--port", str(port)]
    server = Server(setup, "sail", command, SAIL)
    server.wait(r"(Starting the Flight SQL server)")
    server.wait_for_port(port)
    return server, f"grpc://127.0.0.1:{port}"


def quack(setup: Setup) -> tuple[Server, str]:
    address = f"quack:127.0.0.1:{free_port()}"
    file = os.path.join(setup.work, "quack.duckdb")
    server = Server(setup, "quack", [sys.executable, "-m", "seat.quack_server", address, setup.data, file])
    server.wait(r"(listening)")
    return server, address


#: Functions that start a server, and return it with its address.
START = {"thallus": thallus, "sail": sail, "quack": quack}
