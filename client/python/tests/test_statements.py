"""Parameters, descriptions of statements, and the catalog."""

from typing import Any

import pyarrow as pa
import pytest
from adbc_driver_manager import AdbcStatusCode
from adbc_driver_thallus import dbapi
from conftest import numbers

NAME_OF = "SELECT name FROM numbers WHERE n = "


def test_parameters_by_position_and_name(cursor: dbapi.Cursor) -> None:
    assert cursor.execute(NAME_OF + "$1", (7,)).fetchall() == [("row 7",)]
    assert cursor.execute(NAME_OF + "?", (8,)).fetchall() == [("row 8",)]
    assert cursor.execute(NAME_OF + "$key", {"key": 9}).fetchall() == [("row 9",)]
    assert cursor.execute("SELECT $1, $2, $3", ("x", None, 1.5)).fetchall() == [("x", None, 1.5)]


def test_each_row_of_parameters_is_an_execution(cursor: dbapi.Cursor) -> None:
    bound = pa.record_batch({"0": pa.array([3, 1, 2], pa.int64())})
    assert cursor.execute(NAME_OF + "$1", bound).fetchall() == [("row 3",), ("row 1",), ("row 2",)]
    many = pa.table({"0": pa.array(range(20_000), pa.int64())})
    result = cursor.execute("SELECT $1 + 1 AS next", many).fetch_arrow_table()
    assert result["next"].to_pylist() == list(range(1, 20_001))
    assert cursor.execute(NAME_OF + "$1", bound.slice(0, 0)).fetch_arrow_table().num_rows == 0


def test_parameters_that_do_not_fit(cursor: dbapi.Cursor) -> None:
    with pytest.raises(dbapi.ProgrammingError) as wrong:
        cursor.execute("SELECT $1 + $2", (1,)).fetchall()
    assert wrong.value.status_code == AdbcStatusCode.INVALID_ARGUMENT
    assert wrong.value.sqlstate == "07001"
    # The cursor is usable further.
    assert cursor.execute("SELECT $1 + $2", (1, 2)).fetchall() == [(3,)]


def test_statements_are_described_without_running(cursor: dbapi.Cursor) -> None:
    parameters = cursor.adbc_prepare("SELECT name FROM numbers WHERE n = $1")
    assert parameters is not None and parameters.types == [pa.int64()]
    assert cursor.adbc_execute_schema("SELECT n, half FROM numbers").names == ["n", "half"]


def test_objects(connection: dbapi.Connection) -> None:
    catalogs: list[Any] = connection.adbc_get_objects(
        table_name_filter="numb%", column_name_filter="n%"
    ).read_all().to_pylist()
    tables = [
        (table["table_name"], table["table_type"], [column["column_name"] for column in table["table_columns"]])
        for catalog in catalogs
        for schema in catalog["catalog_db_schemas"]
        for table in schema["db_schema_tables"]
    ]
    assert tables == [("numbers", "table", ["n", "name"])]
    assert connection.adbc_get_objects(depth="catalogs").read_all()["catalog_db_schemas"].null_count == len(catalogs)


def test_schemas_of_tables(connection: dbapi.Connection) -> None:
    assert connection.adbc_get_table_schema("numbers").names == numbers().schema.names
    schema, catalog = connection.adbc_current_db_schema, connection.adbc_current_catalog
    found = connection.adbc_get_table_schema("numbers", catalog_filter=catalog, db_schema_filter=schema)
    assert found.names == numbers().schema.names
    with pytest.raises(dbapi.ProgrammingError) as absent:
        connection.adbc_get_table_schema('not "there"')
    assert absent.value.status_code == AdbcStatusCode.NOT_FOUND
    assert {"table", "view"} <= set(connection.adbc_get_table_types())


def test_current_schema(connection: dbapi.Connection) -> None:
    with pytest.raises(dbapi.ProgrammingError) as absent:
        connection.adbc_current_db_schema = "nowhere"
    assert absent.value.status_code == AdbcStatusCode.NOT_FOUND
    connection.adbc_current_db_schema = connection.adbc_current_db_schema
    with connection.cursor() as cursor:
        assert cursor.execute("SELECT count(*) FROM numbers WHERE n < 3").fetchone() == (3,)


def test_a_read_only_server_refuses_changes(cursor: dbapi.Cursor) -> None:
    with pytest.raises(dbapi.ProgrammingError) as refused:
        cursor.execute("CREATE TABLE made (n BIGINT)")
    assert (refused.value.status_code, refused.value.sqlstate) == (AdbcStatusCode.UNAUTHORIZED, "25006")
    with pytest.raises(dbapi.NotSupportedError, match="nothing was written"):
        cursor.adbc_ingest("made", numbers().slice(0, 3))


def test_unknown_options_are_not_implemented(connection: dbapi.Connection) -> None:
    """An option that is unknown is unknown with a value of any type."""
    with connection.cursor() as cursor:
        for handle in (connection.adbc_connection, cursor.adbc_statement):
            for value in ("text", b"bytes", 1, 0.5):
                with pytest.raises(dbapi.NotSupportedError, match="unknown option"):
                    handle.set_options(**{"no.such.option": value})
