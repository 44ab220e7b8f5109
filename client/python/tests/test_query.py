"""Queries, and what other libraries make of their results."""

import threading

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from adbc_driver_manager import AdbcStatusCode
from adbc_driver_thallus import StatementOptions, dbapi
from conftest import ROWS, Server, numbers

ALL = "SELECT * FROM numbers ORDER BY n"
#: A query that does not end by itself.
ENDLESS = "SELECT sum(a.n * b.n + c.n) FROM numbers a, numbers b, numbers c"


def test_arrow(cursor: dbapi.Cursor) -> None:
    table = cursor.execute(ALL).fetch_arrow_table()
    assert table.num_rows == ROWS
    assert table.cast(numbers().schema).equals(numbers())


def test_batches_come_one_by_one(cursor: dbapi.Cursor) -> None:
    reader = cursor.execute(ALL).fetch_record_batch()
    rows = [batch.num_rows for batch in reader]
    assert len(rows) > 1 and sum(rows) == ROWS


def test_rows_of_python(cursor: dbapi.Cursor) -> None:
    cursor.execute("SELECT 1 AS one, 'x' AS x, NULL AS nothing")
    assert [column[0] for column in cursor.description or []] == ["one", "x", "nothing"]
    assert cursor.fetchall() == [(1, "x", None)]


def test_pandas(cursor: dbapi.Cursor, connection: dbapi.Connection) -> None:
    expected = numbers().to_pandas()
    frame = cursor.execute(ALL).fetch_df()
    pd.testing.assert_frame_equal(frame, expected, check_dtype=False)
    read = pd.read_sql(ALL, connection)
    pd.testing.assert_frame_equal(read, expected, check_dtype=False)


def test_polars(cursor: dbapi.Cursor, connection: dbapi.Connection, server: Server) -> None:
    expected = pl.DataFrame(numbers())
    frame = cursor.execute(ALL).fetch_polars()
    assert frame.equals(expected)
    assert pl.read_database(ALL, connection).equals(expected)


def test_duckdb(cursor: dbapi.Cursor) -> None:
    reader = cursor.execute(ALL).fetch_record_batch()
    assert isinstance(reader, pa.RecordBatchReader)
    total = duckdb.sql("SELECT count(*), sum(n), count(half) FROM reader").fetchall()
    assert total == [(ROWS, ROWS * (ROWS - 1) // 2, ROWS - (ROWS + 6) // 7)]


@pytest.mark.parametrize("delivery", ["auto", "inline", "lent", "mapped"])
def test_each_delivery_yields_the_same_rows(server: Server, delivery: str) -> None:
    with dbapi.connect(server.uri(), delivery=delivery) as connection, connection.cursor() as cursor:
        table = cursor.execute(ALL).fetch_arrow_table()
        assert table.cast(numbers().schema).equals(numbers())


def test_options_of_statements(connection: dbapi.Connection) -> None:
    options = {StatementOptions.BATCH_ROWS.value: 1000}
    with connection.cursor(adbc_stmt_kwargs=options) as cursor:
        reader = cursor.execute("SELECT n FROM numbers").fetch_record_batch()
        assert max(batch.num_rows for batch in reader) == 1000


def test_partitions_are_read_by_another_connection(server: Server, cursor: dbapi.Cursor) -> None:
    partitions, schema = cursor.adbc_execute_partitions("SELECT n FROM numbers")
    assert len(partitions) == 1 and schema is not None and schema.names == ["n"]
    with dbapi.connect(server.uri()) as other, other.cursor() as reader:
        reader.adbc_read_partition(partitions[0])
        assert reader.fetch_arrow_table().num_rows == ROWS


def test_errors_have_status_and_sqlstate(cursor: dbapi.Cursor) -> None:
    with pytest.raises(dbapi.ProgrammingError) as unknown:
        cursor.execute("SELECT * FROM nowhere")
    assert unknown.value.status_code == AdbcStatusCode.NOT_FOUND
    assert unknown.value.sqlstate == "42P01"
    assert "nowhere" in str(unknown.value) and "numbers" in str(unknown.value)
    with pytest.raises(dbapi.ProgrammingError) as syntax:
        cursor.execute("SELEC 1")
    assert syntax.value.sqlstate == "42601"


def test_an_error_in_the_middle_of_a_result(cursor: dbapi.Cursor) -> None:
    cursor.execute(f"SELECT 1 / (n - {ROWS - 1}) FROM numbers")
    with pytest.raises(dbapi.DataError) as failed:
        cursor.fetch_arrow_table()
    assert failed.value.status_code == AdbcStatusCode.INVALID_DATA
    assert failed.value.sqlstate == "22000"


def test_no_server(server: Server) -> None:
    with pytest.raises(dbapi.OperationalError, match="is a thallus-server running there"):
        dbapi.connect("thallus://127.0.0.1:1", fabric="none")
    with pytest.raises(dbapi.ProgrammingError, match="unknown scheme"):
        dbapi.connect("postgresql://127.0.0.1")
    with pytest.raises(dbapi.NotSupportedError, match="no sign-in"):
        dbapi.connect(server.uri(), {"username": "me"})


def test_transactions_are_refused_with_a_warning(server: Server) -> None:
    with pytest.warns(Warning, match="Cannot disable autocommit"):
        dbapi.connect(server.uri(), autocommit=False).close()


@pytest.mark.parametrize("reads", [False, True])
def test_cancel_from_another_thread(cursor: dbapi.Cursor, reads: bool) -> None:
    timer = threading.Timer(0.3, cursor.adbc_cancel)
    timer.start()
    with pytest.raises(dbapi.OperationalError) as cancelled:
        cursor.execute(ENDLESS)
        cursor.fetch_arrow_table()
    timer.join()
    assert cancelled.value.status_code == AdbcStatusCode.CANCELLED
    assert cancelled.value.sqlstate == "57014"
    assert cursor.execute("SELECT 1").fetchone() == (1,)


def test_threads_with_connections_of_their_own(server: Server) -> None:
    totals: list[int] = []

    def work() -> None:
        with dbapi.connect(server.uri()) as connection, connection.cursor() as cursor:
            for _ in range(5):
                table = cursor.execute("SELECT n FROM numbers").fetch_arrow_table()
                totals.append(table.num_rows)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals == [ROWS] * 40


def test_facts(connection: dbapi.Connection) -> None:
    info = connection.adbc_get_info()
    assert info["driver_name"] == "ADBC Thallus Driver"
    assert str(info["driver_arrow_version"]).startswith("v59.")
    assert info["driver_adbc_version"] == 1_001_000
