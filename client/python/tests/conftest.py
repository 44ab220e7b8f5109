"""A server with small tables, and connections to it."""

import functools
import os
import pathlib
import re
import subprocess
import time
from typing import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from adbc_driver_thallus import dbapi

#: Rows of table ``numbers``.
ROWS = 300_000


def numbers() -> pa.Table:
    """``n`` counts, ``half`` is null in every seventh row, ``name`` is text."""
    n = pa.array(range(ROWS), pa.int64())
    half = pa.array([None if i % 7 == 0 else i / 2 for i in range(ROWS)], pa.float64())
    name = pa.array([f"row {i}" for i in range(ROWS)], pa.string())
    return pa.table({"n": n, "half": half, "name": name})


@functools.cache
def accepts_uploads() -> bool:
    """Whether the server's program can keep tables that clients write."""
    usage = subprocess.run([os.environ["THALLUS_SERVER"], "--help"], capture_output=True, text=True).stdout
    return "--database" in usage


class Server:
    """A server process."""

    def __init__(self, directory: pathlib.Path, *arguments: str):
        self.log = directory / "server.log"
        program = os.environ["THALLUS_SERVER"]
        command = [program, "--listen", "127.0.0.1:0", "--allow-mapped", *arguments]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        self.address = self._address()

    def _address(self) -> str:
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            found = re.search(r"listening.*?address=(\S+)\n", self._text())
            if found:
                return found.group(1)
            time.sleep(0.01)
        raise RuntimeError(f"the server does not listen: {self._text()}")

    def _text(self) -> str:
        return re.sub("\x1b\\[[0-9;]*m", "", self.log.read_text(errors="replace"))

    def uri(self, **options: str) -> str:
        return f"thallus://{self.address}" + "".join(
            f"{'&' if i else '?'}{name}={value}" for i, (name, value) in enumerate(options.items())
        )

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        assert "panicked" not in self._text()


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("thallus")


@pytest.fixture(scope="session")
def server(directory: pathlib.Path) -> Iterator[Server]:
    data = directory / "data"
    data.mkdir()
    pq.write_table(numbers(), data / "numbers.parquet", row_group_size=50_000)
    server = Server(directory, "--data", str(data))
    yield server
    server.stop()


@pytest.fixture
def connection(server: Server) -> Iterator[dbapi.Connection]:
    with dbapi.connect(server.uri()) as connection:
        yield connection


@pytest.fixture
def cursor(connection: dbapi.Connection) -> Iterator[dbapi.Cursor]:
    with connection.cursor() as cursor:
        yield cursor


@pytest.fixture(scope="session")
def writable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that keeps tables that clients write."""
    if not accepts_uploads():
        pytest.skip("this server accepts no uploads (no --database)")
    directory = tmp_path_factory.mktemp("writable")
    server = Server(directory, "--database", str(directory / "database"))
    yield server
    server.stop()
