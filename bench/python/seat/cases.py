"""The queries, and the values that each contender must return for them."""

import dataclasses
import random

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

#: Tables of TPC-H that the cases read.
TABLES = ("nation", "orders", "lineitem")

#: The table that uploads create.
UPLOADED = "seat_upload"


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the tables of results. `kind` is the way to run it: `query`, `prepared`, or `upload`."""

    name: str
    title: str
    sql: str
    kind: str = "query"
    #: Whether one execution takes so long that a turn has only one.
    is_large: bool = False
    #: The most rounds in which it takes part, so that a run ends in a quarter of an hour.
    rounds: int = 1000


CASES = (
    Case("one", "`SELECT 1`", "SELECT 1"),
    Case("prepared", "`SELECT 1`, prepared", "SELECT 1", "prepared"),
    Case("nation", "`SELECT * FROM nation`", "SELECT * FROM nation"),
    Case("key", "one order by key", "SELECT * FROM orders WHERE o_orderkey = {key}"),
    Case("strings", "`SELECT l_comment FROM lineitem`", "SELECT l_comment FROM lineitem", is_large=True, rounds=15),
    Case("lineitem", "`SELECT * FROM lineitem`", "SELECT * FROM lineitem", is_large=True, rounds=9),
    Case("upload", "upload of lineitem", f"SELECT * FROM {UPLOADED}", "upload", is_large=True, rounds=3),
)


class Keys:
    """Keys of existing orders, in an order that is the same in each run."""

    def __init__(self, data: str):
        keys = pq.read_table(f"{data}/orders.parquet", columns=["o_orderkey"])[0].to_pylist()
        random.Random(1).shuffle(keys)
        self._keys, self._next = keys, 0

    def texts(self, case: Case, count: int) -> list[str]:
        """SQL of some executions: each has another key."""
        if "{key}" not in case.sql:
            return [case.sql] * count
        texts = [case.sql.format(key=self._keys[(self._next + i) % len(self._keys)]) for i in range(count)]
        self._next += count
        return texts


def fingerprint(table: pa.Table) -> list[str]:
    """Number of rows, and of each column the sum of the hashes of its values: equal for equal values in any order."""
    table = table.rename_columns([f"c{i}" for i in range(table.num_columns)])
    # Engines differ in the width of integers, by which hashes differ.
    wide = ["::BIGINT" if pa.types.is_integer(type) else "" for type in table.schema.types]
    sums = ", ".join(f"sum(hash(c{i}{cast}))" for i, cast in enumerate(wide))
    with duckdb.connect() as connection:
        connection.register("result", table)
        row = connection.execute(f"SELECT count(*), {sums} FROM result").fetchone()
    return [str(value) for value in row]


def expected(case: Case, sql: str, data: str) -> list[str]:
    """The fingerprint of a case's result, from the files alone."""
    with duckdb.connect() as connection:
        for table in TABLES:
            connection.execute(f"CREATE VIEW {table} AS FROM '{data}/{table}.parquet'")
        sql = "SELECT * FROM lineitem" if case.kind == "upload" else sql
        return fingerprint(connection.execute(sql).to_arrow_table())
