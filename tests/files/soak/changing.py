"""Files that are replaced, truncated, removed and restored while they are served."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from .clients import Clients, Fault, Run
from .queries import REFUSED, ROWS_CAME, Query, Wrong
from .tables import lines_of_json

NAMES = ["changing.parquet", "changing_arrow.arrow", "changing_csv.csv", "changing_json.json"]
#: Versions of a file: their rows. The value `v` of every row is the version.
VERSIONS = {1: 50_000, 2: 70_000, 3: 100}


def table_of(name: str) -> str:
    """The table of a file."""
    return name.split(".")[0]


def version(number: int) -> pa.Table:
    """The values of a version. The last column is text, so that a line that was cut is not taken for a whole one."""
    count = VERSIONS[number]
    return pa.table({"n": pa.array(range(count), pa.int64()), "v": pa.array([number] * count, pa.int64()),
                     "end": ["the end, of the line"] * count})


def encoded(name: str, number: int) -> bytes:
    """The bytes of a file of a version."""
    table = version(number)
    sink = pa.BufferOutputStream()
    if name.endswith("parquet"):
        pq.write_table(table, sink, row_group_size=10_000)
    elif name.endswith("arrow"):
        with ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=10_000)
    elif name.endswith("csv"):
        rows = (f'{row},{number},"the end, of the line"\n' for row in range(len(table)))
        return ("n,v,end\n" + "".join(rows)).encode()
    else:
        return lines_of_json(table)
    return sink.getvalue().to_pybytes()


def totals(found: pa.Table) -> tuple[int, ...]:
    """Count, sum of the numbers, least and greatest version."""
    return tuple(int(column[0].as_py() or 0) for column in found.columns)


class Changed(Query):
    """A query of a changing file. A result is one version, or a refusal."""

    def check(self, found: pa.Table, columns: object, first: int, end: object) -> None:
        """The rows of one version, and of no two."""
        count, total, least, greatest = totals(found)
        if least != greatest or VERSIONS.get(least) != count or total != count * (count - 1) // 2:
            raise Wrong(f"{count} rows, sum {total}, versions {least} to {greatest}: no version of the file")


def query(table: str) -> Changed:
    """The query whose result names the version."""
    sql = f"SELECT count(*) AS c, sum(n) AS t, min(v) AS a, max(v) AS b FROM {table} WHERE \"end\" LIKE 'the%'"
    return Changed(sql, right=lambda: pa.table({"c": [0], "t": [0], "a": [0], "b": [0]}), is_ordered=True,
                   ends={ROWS_CAME, REFUSED}, words=r".")


class Changer:
    """Changes the files below the data directory."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.bytes = {(name, number): encoded(name, number) for name in NAMES for number in VERSIONS}
        for name in NAMES:
            self._replace(name, 1)

    def _replace(self, name: str, number: int) -> None:
        hidden = self.data / f".{name}"
        hidden.write_bytes(self.bytes[name, number])
        if (self.data / name).is_dir():
            shutil.rmtree(self.data / name)
        os.rename(hidden, self.data / name)

    def restore(self, name: str) -> None:
        """The first version again."""
        self._replace(name, 1)

    def change(self, rng: random.Random, clients: Clients) -> str:
        """One change, which may break the file; then a whole version, which has to be served. Returns what it was."""
        name = rng.choice(NAMES)
        kinds: list[Callable[[random.Random, Path], None]] = [
            self.truncated, self.removed, self.overwritten, self.directory, self.appended, self.emptied]
        what = "replaced"
        if rng.random() < 0.7:
            kind = rng.choice(kinds)
            what = kind.__name__
            kind(rng, self.data / name)
            time.sleep(rng.random())
        number = rng.choice(sorted(VERSIONS))
        self._replace(name, number)
        self.expect(rng, name, number, clients)
        return what

    def expect(self, rng: random.Random, name: str, number: int, clients: Clients) -> None:
        """The next query has to see this version: the server looks at the files at each planning."""
        count = VERSIONS[number]
        right = pa.table({"c": [count], "t": [count * (count - 1) // 2], "a": [number], "b": [number]})
        run = Run(rng, Query(query(table_of(name)).sql, lambda: right, True), False)
        run.fate = "ends"
        try:
            clients.go(run, "changer")
        except Fault as fault:
            raise Fault(f"{name} was replaced by version {number}, and the next query says: {fault}\n"
                        f"  {run.shown(clients.url)}") from fault

    def truncated(self, rng: random.Random, path: Path) -> None:
        """Cut in place. A text is cut within a line, since half a file of whole lines is a right file."""
        data = path.read_bytes()
        cut = rng.randrange(len(data) // 2, len(data) - 20)
        while path.suffix in (".csv", ".json") and data[cut - 1 : cut] in (b"\n", b",", b'"', b"}"):
            cut += 1
        os.truncate(path, cut)

    def removed(self, _: random.Random, path: Path) -> None:
        """Away."""
        path.unlink()

    def emptied(self, _: random.Random, path: Path) -> None:
        """No byte left."""
        os.truncate(path, 0)

    def overwritten(self, rng: random.Random, path: Path) -> None:
        """Garbage in place, from the start."""
        with path.open("r+b") as file:
            file.write(bytes(rng.choices(range(128, 256), k=5000)))

    def directory(self, _: random.Random, path: Path) -> None:
        """A directory in its place."""
        path.unlink()
        path.mkdir()

    def appended(self, _: random.Random, path: Path) -> None:
        """Half a line, or bytes that no format has, at the end."""
        with path.open("ab") as file:
            file.write(b'{"n": 1, "v": "\xff' if path.suffix == ".json" else b'"\xff half')
