"""Results are handed on without a copy: the addresses of buffers are compared."""

import ctypes
import pathlib
from typing import Iterator

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from adbc_driver_thallus import dbapi
from conftest import ROWS, Server


class Array(ctypes.Structure):
    """``struct ArrowArray``."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
        ("buffers", ctypes.POINTER(ctypes.c_void_p)),
        ("children", ctypes.POINTER(ctypes.c_void_p)),
        *((name, ctypes.c_void_p) for name in ("dictionary", "release", "private_data")),
    ]


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class Stream(ctypes.Structure):
    """``struct ArrowArrayStream``."""

    _fields_ = [
        ("get_schema", CALLBACK),
        ("get_next", CALLBACK),
        *((name, ctypes.c_void_p) for name in ("get_last_error", "release", "private_data")),
    ]


class Schema(ctypes.Structure):
    """``struct ArrowSchema``, as bytes."""

    _fields_ = [("bytes", ctypes.c_byte * 72)]


def batches(cursor: dbapi.Cursor, sql: str) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Each batch, with the address of its first column's values as the driver hands it out."""
    statement = cursor.adbc_statement
    statement.set_sql_query(sql)
    handle, _ = statement.execute_query()
    stream = ctypes.cast(handle.address, ctypes.POINTER(Stream)).contents
    while True:
        array, schema = Array(), Schema()
        assert stream.get_next(handle.address, ctypes.addressof(array)) == 0
        if not array.release:
            return
        assert stream.get_schema(handle.address, ctypes.addressof(schema)) == 0
        column = ctypes.cast(array.children[0], ctypes.POINTER(Array)).contents
        address = column.buffers[1] + 8 * column.offset
        yield address, pa.RecordBatch._import_from_c(ctypes.addressof(array), ctypes.addressof(schema))


def values_address(column: pa.Array) -> int:
    return column.buffers()[1].address + 8 * column.offset


def first_batch(cursor: dbapi.Cursor) -> tuple[int, pa.RecordBatch]:
    return next(batches(cursor, "SELECT n FROM numbers"))


@pytest.mark.parametrize("delivery", ["inline", "lent", "mapped"])
def test_pyarrow_polars_pandas_and_numpy_use_the_drivers_memory(server: Server, delivery: str) -> None:
    with dbapi.connect(server.uri(), delivery=delivery) as connection, connection.cursor() as cursor:
        address, batch = first_batch(cursor)
        column = batch.column(0)
        assert values_address(column) == address
        series = pl.from_arrow(batch)["n"]  # type: ignore[index]
        assert values_address(series.to_arrow()) == address
        frame = batch.to_pandas(types_mapper=pd.ArrowDtype)
        assert values_address(frame["n"].array._pa_array.chunk(0)) == address  # type: ignore[attr-defined]
        assert column.to_numpy(zero_copy_only=True).__array_interface__["data"][0] == address


def maps() -> list[tuple[int, int, str]]:
    found = []
    for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        begin, end = (int(number, 16) for number in fields[0].split("-"))
        found.append((begin, end, fields[5] if len(fields) > 5 else ""))
    return found


def test_mapped_batches_lie_in_the_servers_memory(server: Server) -> None:
    with dbapi.connect(server.uri(), delivery="mapped") as connection, connection.cursor() as cursor:
        reader = cursor.execute("SELECT n FROM numbers").fetch_record_batch()
        kept = list(reader)
        addresses = [values_address(batch.column(0)) for batch in kept]
        files = [next(name for begin, end, name in maps() if begin <= address < end) for address in addresses]
        assert sum(batch.num_rows for batch in kept) == ROWS
        assert any("memfd:" in name for name in files), files


@pytest.mark.parametrize("delivery", ["inline", "lent", "mapped"])
def test_batches_outlive_everything(server: Server, delivery: str) -> None:
    with dbapi.connect(server.uri(), delivery=delivery) as connection:
        with connection.cursor() as cursor:
            table = cursor.execute("SELECT n FROM numbers ORDER BY n").fetch_arrow_table()
    del cursor, connection
    assert table["n"].combine_chunks().to_numpy().sum() == ROWS * (ROWS - 1) // 2
