"""The contenders, each as its users call it: SQL in, a pyarrow table out."""

import os
import subprocess
import tempfile
from typing import Callable, Optional

import pyarrow as pa

from .cases import TABLES, UPLOADED

#: The least size of a gRPC message that holds the batches of the server.
MESSAGE_BYTES = 1 << 30


class Client:
    """A connection to one contender's server. Functions that a contender does not have raise NotImplementedError."""

    def query(self, sql: str) -> Optional[pa.Table]:
        """The result of a query. `None`: it was discarded, outside of this process."""
        raise NotImplementedError

    def table(self, sql: str) -> pa.Table:
        """The result of a query, for the check of its values."""
        return self.query(sql)

    def prepare(self, sql: str) -> Callable[[], pa.Table]:
        """A function that executes a prepared statement."""
        raise NotImplementedError

    def upload(self, rows: pa.Table) -> None:
        """Creates the table of uploads."""
        raise NotImplementedError

    def drop(self) -> None:
        """Drops the table of uploads."""
        raise NotImplementedError


class Thallus(Client):
    """The wheel, by its DB-API."""

    def __init__(self, address: str, **options: str):
        from adbc_driver_thallus import dbapi

        self.connection = dbapi.connect(address, **options)

    def query(self, sql: str) -> pa.Table:
        with self.connection.cursor() as cursor:
            return cursor.execute(sql).fetch_arrow_table()

    def prepare(self, sql: str) -> Callable[[], pa.Table]:
        cursor = self.connection.cursor()
        cursor.adbc_prepare(sql)
        return lambda: cursor.execute(sql).fetch_arrow_table()

    def upload(self, rows: pa.Table) -> None:
        with self.connection.cursor() as cursor:
            cursor.adbc_ingest(UPLOADED, rows, mode="create")

    def drop(self) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(f"DROP TABLE {UPLOADED}")


class CommandLine(Client):
    """`thallus query`: a process and a connection for each query."""

    def __init__(self, address: str, program: str):
        self.command = [program, "query", "--quiet", "--format", "arrow", address]

    def query(self, sql: str) -> None:
        subprocess.run([*self.command, sql], check=True, stdout=subprocess.DEVNULL)

    def table(self, sql: str) -> pa.Table:
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "result.arrow")
            subprocess.run([*self.command, sql, "--output", path], check=True)
            return pa.ipc.open_file(path).read_all()


class FlightSql(Client):
    """Sail, by the Flight SQL driver of ADBC.

    The DB-API sends Prepare before each new text. Sail refuses Prepare, which costs a round trip. So this client uses
    the statements of the driver manager, which do not send it.
    """

    def __init__(self, address: str, data: str):
        from adbc_driver_flightsql import DatabaseOptions, dbapi

        limits = {DatabaseOptions.WITH_MAX_MSG_SIZE.value: str(MESSAGE_BYTES)}
        self.connection = dbapi.connect(address, db_kwargs=limits, autocommit=True)
        for table in TABLES:
            self.query(f"CREATE TEMPORARY VIEW {table} USING parquet OPTIONS (path '{data}/{table}.parquet')")

    def query(self, sql: str) -> pa.Table:
        with self.connection.cursor() as cursor:
            cursor.adbc_statement.set_sql_query(sql)
            stream, _ = cursor.adbc_statement.execute_query()
            return pa.RecordBatchReader.from_stream(stream).read_all()


class Quack(Client):
    """DuckDB at both ends. The query runs as a whole at the server, over the connection of ATTACH."""

    def __init__(self, address: str, token: str):
        import duckdb
        from duckdb_extensions import import_extension

        self.connection = duckdb.connect()
        # Quack's client speaks HTTP by httpfs.
        for extension in ("httpfs", "quack"):
            import_extension(extension)
            self.connection.execute(f"LOAD {extension}")
        self.connection.execute("SET preserve_insertion_order = false")
        self.connection.execute("SET produce_arrow_string_view = true")
        self.connection.execute(f"CREATE SECRET (TYPE quack, TOKEN '{token}')")
        self.connection.execute(f"ATTACH '{address}' AS remote")

    def query(self, sql: str) -> pa.Table:
        return self.connection.execute(f"FROM quack_query_by_name('remote', '{sql}')").to_arrow_table()

    def upload(self, rows: pa.Table) -> None:
        self.connection.register("rows", rows)
        self.connection.execute(f"CREATE TABLE remote.{UPLOADED} AS FROM rows")
        self.connection.unregister("rows")

    def drop(self) -> None:
        self.connection.execute(f"DROP TABLE remote.{UPLOADED}")


class InProcess(Client):
    """DataFusion in this process: the engine without server and transport, which is the floor."""

    def __init__(self, data: str):
        import datafusion

        config = datafusion.SessionConfig().with_batch_size(65_536)
        config = config.set("datafusion.execution.parquet.pushdown_filters", "true")
        self.context = datafusion.SessionContext(config)
        for table in TABLES:
            self.context.register_parquet(table, f"{data}/{table}.parquet")
        self.directory = tempfile.TemporaryDirectory()

    def query(self, sql: str) -> pa.Table:
        return self.context.sql(sql).to_arrow_table()

    def prepare(self, sql: str) -> Callable[[], pa.Table]:
        return self.context.sql(sql).to_arrow_table

    def upload(self, rows: pa.Table) -> None:
        path = f"{self.directory.name}/{UPLOADED}.parquet"
        self.context.from_arrow(rows).write_parquet(path, compression="uncompressed")
        self.context.register_parquet(UPLOADED, path)

    def drop(self) -> None:
        self.context.deregister_table(UPLOADED)
        os.remove(f"{self.directory.name}/{UPLOADED}.parquet")
