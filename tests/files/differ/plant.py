"""Faults in directories: files that cannot be read, and files that do not fit to the others."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from .directory import Directory, File

#: Names that are no data, and their content.
JUNK = {"_SUCCESS": b"", ".hidden.csv": b"a,b\n1", "_metadata": b"x", ".part.crc": b"\x00"}
NOT_DATA = {"README": b"text", "notes.txt": b"text", "x.unknown": b"1,2"}

#: Files that cannot be read.
MALFORMED = {
    "csv": [
        b'id\n"1\n', b"id,b\n1\n", b"id,b\n1,2,3\n", b'id\n"1"x\n', b"id\n\xff\n", "id\n1\n".encode("utf-16"),
        b"id,id\n1,2\n",
    ],
    "json": [
        b'{"id": 1, "id": 2}', b'{"id": 1}{"id": [1]}', b'{"id": 1}{"id": "x"}', b'{"id": 01}', b'{"id": 1,}',
        b'{"id": NaN}', b"{'id': 1}", b'{"id": 1}]', b'[{"id": 1}', b'[{"id": 1}{"id": 2}]', b'{"id": "\n"}', b"1",
        b'{"id": 1} x', b'{"id": "\xff"}', b'{"id": ' + b"[" * 200 + b"]" * 200 + b"}", b'{"id": 1e999}',
        b'{"id": 123456789012345678901234567890123456789}', b'{"id": 1}, {"id": 2}',
        b'{"id": 0.5}{"id": 9007199254740993}',
    ],
}


def plant(directory: Directory, rng: random.Random) -> None:
    """Adds a fault, now and then."""
    if rng.random() < 0.1:
        for name, content in JUNK.items() | (NOT_DATA.items() if not directory.options else set()):
            (directory.path / name).write_bytes(content)
    # In a table of the configuration a file that cannot be read is an error of the server.
    if directory.refusal is not None or directory.options or not directory.files:
        return
    choice = rng.random()
    if choice < 0.04:
        _empty(directory, rng)
    elif choice < 0.1:
        _truncated(directory, rng)
    elif choice < 0.16:
        _other_type(directory, rng)
    elif choice < 0.26 and directory.form in MALFORMED:
        _malformed(directory, rng)


def _empty(directory: Directory, rng: random.Random) -> None:
    """A file of no bytes."""
    path = _beside(directory, rng, "nothing")
    path.write_bytes(b"")
    directory.files.append(File(path, {}, 0, "empty"))
    directory.notes.append(f"{path.name} is empty")


def _truncated(directory: Directory, rng: random.Random) -> None:
    """A file without its end."""
    file = rng.choice(directory.files)
    data = file.path.read_bytes()
    is_packed = file.path.suffix in (".gz", ".bz2", ".xz", ".zst")
    if file.rows == 0 or (directory.form == "csv" and not is_packed):
        return
    end = len(data) - rng.randint(1, max(1, len(data) // 3))
    if directory.form == "json" and not is_packed:
        # A part of the records is no fault.
        while end > 1 and data[end - 1 : end] in b"}] \r\n\t":
            end -= 1
    if directory.form == "arrow" and not data.startswith(b"ARROW1"):
        # A stream may end without a mark, but not within a message.
        end = min(end, len(data) - 9)
    file.path.write_bytes(data[:end])
    file.broken = "truncated"
    directory.notes.append(f"{file.path.name} is cut to {end} of {len(data)} bytes")


def _other_type(directory: Directory, rng: random.Random) -> None:
    """A file whose ids are texts."""
    others = [file for file in directory.files if file.rows > 0]
    if not others:
        return
    path = _beside(directory, rng, "other")
    table = pa.table({"id": ["x"]})
    if directory.form == "parquet":
        pq.write_table(table, path)
    elif directory.form == "arrow":
        with ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        delimiter_free = {"csv": "id\nx\n", "json": '{"id": "x"}\n'}
        path.write_text(delimiter_free[directory.form])
    directory.files.append(File(path, {"id": ["x"]}, 1))
    directory.refusal = ["`id`", path.name]
    directory.notes.append(f"{path.name} has texts as ids")


def _malformed(directory: Directory, rng: random.Random) -> None:
    """A file that breaks the rules of its format."""
    path, content = _beside(directory, rng, "malformed"), rng.choice(MALFORMED[directory.form])
    path.write_bytes(content)
    directory.files.append(File(path, {}, 0, "malformed"))
    directory.notes.append(f"{path.name} is {content[:60]!r}")


def _beside(directory: Directory, rng: random.Random, stem: str) -> Path:
    """A new path in the directory of a file."""
    extension = {"parquet": ".parquet", "arrow": ".arrow", "csv": ".csv", "json": ".json"}[directory.form]
    return rng.choice(directory.files).path.with_name(stem + extension)
