"""Uploads, and statements that change something."""

import datetime
import decimal
from typing import Iterator

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from adbc_driver_manager import AdbcStatusCode
from adbc_driver_thallus import dbapi
from conftest import Server


@pytest.fixture
def cursor(writable: Server) -> Iterator[dbapi.Cursor]:
    with dbapi.connect(writable.uri()) as connection, connection.cursor() as cursor:
        yield cursor


def rows(count: int = 3) -> pa.Table:
    return pa.table({"n": pa.array(range(count), pa.int64()), "text": [f"text {i}" for i in range(count)]})


def read(cursor: dbapi.Cursor, table: str) -> pa.Table:
    return cursor.execute(f'SELECT * FROM "{table}" ORDER BY 1').fetch_arrow_table()


def test_modes(cursor: dbapi.Cursor) -> None:
    assert cursor.adbc_ingest("modes", rows(), mode="create") == 3
    with pytest.raises(dbapi.Error) as exists:
        cursor.adbc_ingest("modes", rows(), mode="create")
    assert exists.value.status_code == AdbcStatusCode.ALREADY_EXISTS
    assert exists.value.sqlstate == "42P07"
    assert cursor.adbc_ingest("modes", rows(), mode="append") == 3
    assert read(cursor, "modes").num_rows == 6
    assert cursor.adbc_ingest("modes", rows(2), mode="replace") == 2
    assert cursor.adbc_ingest("modes", rows(2), mode="create_append") == 2
    assert read(cursor, "modes").num_rows == 4
    with pytest.raises(dbapi.Error) as absent:
        cursor.adbc_ingest("modes_absent", rows(), mode="append")
    assert absent.value.status_code == AdbcStatusCode.NOT_FOUND
    with pytest.raises(dbapi.Error) as mismatch:
        cursor.adbc_ingest("modes", pa.table({"other": ["x"]}), mode="append")
    assert mismatch.value.status_code == AdbcStatusCode.ALREADY_EXISTS
    assert read(cursor, "modes").num_rows == 4


def test_a_stream_that_fails_leaves_nothing(cursor: dbapi.Cursor) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        yield rows().to_batches()[0]
        raise ValueError("the source is gone")

    reader = pa.RecordBatchReader.from_batches(rows().schema, batches())
    with pytest.raises(dbapi.Error, match="the source is gone"):
        cursor.adbc_ingest("failing", reader, mode="create")
    with pytest.raises(dbapi.Error) as absent:
        read(cursor, "failing")
    assert absent.value.sqlstate == "42P01"


@pytest.mark.parametrize("name", ["with space", "MiXed", "sel.ect", "drop table x; --", "ünï"])
def test_names(cursor: dbapi.Cursor, name: str) -> None:
    assert cursor.adbc_ingest(name, rows(), mode="create") == 3
    assert cursor.execute(f'SELECT count(*) FROM "{name}"').fetchone() == (3,)
    assert cursor.connection.adbc_get_table_schema(name).names == ["n", "text"]


def test_a_quote_in_a_name_is_refused(cursor: dbapi.Cursor) -> None:
    with pytest.raises(dbapi.ProgrammingError, match="cannot be the name of a table"):
        cursor.adbc_ingest('quo"ted', rows(), mode="create")


def test_pandas_and_polars(cursor: dbapi.Cursor) -> None:
    frame = rows().to_pandas()
    frame.to_sql("from_pandas", cursor.connection, index=False)
    back = pd.read_sql("SELECT * FROM from_pandas ORDER BY n", cursor.connection)
    pd.testing.assert_frame_equal(back, frame, check_dtype=False)
    other = pl.DataFrame(rows())
    other.write_database("from_polars", cursor.connection, if_table_exists="replace")
    assert pl.read_database("SELECT * FROM from_polars ORDER BY n", cursor.connection).equals(other)


VALUES: list[tuple[str, pa.Array]] = [
    ("bool", pa.array([True, None, False])),
    *((str(kind), pa.array([1, None, 3], kind)) for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())),
    *((str(kind), pa.array([1, None, 3], kind)) for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())),
    *((str(kind), pa.array([1.5, None, -3], kind)) for kind in (pa.float32(), pa.float64())),
    ("decimal", pa.array([decimal.Decimal("1.25"), None, decimal.Decimal("-9.99")], pa.decimal128(10, 2))),
    *((str(kind), pa.array(["a", None, ""], kind)) for kind in (pa.string(), pa.large_string(), pa.string_view())),
    *((str(kind), pa.array([b"a", None, b"\0"], kind)) for kind in (pa.binary(), pa.large_binary(), pa.binary(1))[:2]),
    ("date32", pa.array([datetime.date(2026, 11, 30), None, datetime.date(1, 1, 1)])),
    *((str(pa.timestamp(u)), pa.array([0, None, -1], pa.timestamp(u))) for u in ("s", "ms", "us", "ns")),
    ("timestamp_tz", pa.array([0, None, -1], pa.timestamp("us", "Europe/Berlin"))),
    ("list", pa.array([[1, None], None, []], pa.list_(pa.int64()))),
    ("struct", pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}])),
    ("dictionary", pa.array(["a", None, "b"]).dictionary_encode()),
]


@pytest.mark.parametrize("values", [values for _, values in VALUES], ids=[name for name, _ in VALUES])
def test_values_come_back(cursor: dbapi.Cursor, values: pa.Array) -> None:
    table = pa.table({"at": pa.array(range(len(values))), "v": values})
    assert cursor.adbc_ingest("values", table, mode="replace") == len(values)
    assert read(cursor, "values")["v"].to_pylist() == values.to_pylist()


def test_statements_that_change_something_count_rows(cursor: dbapi.Cursor) -> None:
    cursor.execute("CREATE TABLE made (n BIGINT, text VARCHAR)")
    cursor.execute("INSERT INTO made VALUES (1, 'x'), (2, 'y')")
    assert cursor.rowcount == 2
    cursor.executemany("INSERT INTO made VALUES ($1, $2)", [(3, "z"), (4, None)])
    assert cursor.rowcount == 2
    assert cursor.execute("SELECT count(*) FROM made").fetchone() == (4,)


@pytest.mark.parametrize("value", [1, "text", object()])
def test_what_is_no_arrow_is_refused(cursor: dbapi.Cursor, value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        cursor.adbc_ingest("never", value)


def test_the_current_schema_is_that_of_names_without_one(writable: Server) -> None:
    """Another schema does not hide it."""
    with dbapi.connect(writable.uri()) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA secondary")
        try:
            assert connection.adbc_current_db_schema == "public"
            cursor.execute("CREATE TABLE unqualified AS SELECT 1 AS n")
            assert cursor.execute("SELECT n FROM public.unqualified").fetchone() == (1,)
            connection.adbc_current_db_schema = "secondary"
            assert connection.adbc_current_db_schema == "secondary"
        finally:
            cursor.execute("DROP TABLE IF EXISTS public.unqualified")
            cursor.execute("DROP SCHEMA secondary")


def test_a_timestamp_with_a_time_zone_keeps_it(writable: Server) -> None:
    """`TIMESTAMP WITH TIME ZONE` is an instant."""
    with dbapi.connect(writable.uri()) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE instants (at TIMESTAMP WITH TIME ZONE)")
        try:
            cursor.execute("INSERT INTO instants VALUES ('2024-05-06T07:08:09+02:00')")
            (kind,) = cursor.execute("SELECT at FROM instants").fetch_arrow_table().schema.types
            assert kind.tz == "UTC"
            found = cursor.execute("SELECT CAST(at AS VARCHAR) FROM instants").fetchone()
            assert found == ("2024-05-06T05:08:09Z",)
        finally:
            cursor.execute("DROP TABLE instants")
