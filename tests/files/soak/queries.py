"""Queries with their right answers, and hostile ones with the ends that they may have."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from .tables import ROWS, TEXT_BYTES, WIDE_COLUMNS

#: Ends of a query.
ROWS_CAME, REFUSED, DEADLINE = "rows", "refused", "deadline"


class Wrong(Exception):
    """An answer that is not the right one."""


@dataclass
class Query:
    """A query, and how it may end."""

    sql: str
    #: The right rows, or None if they are not looked at. With `is_ordered` they come in this order.
    right: Callable[[], pa.Table] | None = None
    is_ordered: bool = False
    ends: set[str] = field(default_factory=lambda: {ROWS_CAME})
    #: Words that a refusal has to have, as a regular expression.
    words: str = ""
    #: Seconds until the client gives up.
    deadline: int | None = None

    def check(self, found: pa.Table, columns: list[str] | None, first: int, end: int | None) -> None:
        """Compares a result, of which only some columns and rows may have been asked for."""
        if self.right is None:
            return
        right = self.right()
        right = right.slice(first, None if end is None else end - first)
        right = right if columns is None else right.select(columns)
        if found.column_names != right.column_names:
            raise Wrong(f"columns {found.column_names[:9]} instead of {right.column_names[:9]}")
        if found.num_rows != right.num_rows:
            raise Wrong(f"{found.num_rows} rows instead of {right.num_rows}")
        try:
            found = _without_views(found).cast(right.schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise Wrong(f"the result is no {right.schema}: {error}") from error
        if not self.is_ordered and right.num_rows > 1:
            found, right = (table.sort_by(right.column_names[0]) for table in (found, right))
        if not found.equals(right):
            raise Wrong(_first_difference(found, right))


def _without_views(table: pa.Table) -> pa.Table:
    """The table with plain strings: pyarrow casts and sorts few views."""
    kinds = [pa.string() if kind == pa.string_view() else kind for kind in table.schema.types]
    return table.cast(pa.schema(list(zip(table.column_names, kinds))))


def _first_difference(found: pa.Table, right: pa.Table) -> str:
    for name in right.column_names:
        for row, (one, other) in enumerate(zip(found[name].to_pylist(), right[name].to_pylist())):
            if one != other:
                return f"column {name}, row {row}: {str(one)[:100]!r} instead of {str(other)[:100]!r}"
    return "the results differ, and no value does"


def one_row(**values: int | float | None) -> Callable[[], pa.Table]:
    """A result of one row."""
    return lambda: pa.table({name: [value] for name, value in values.items()})


class Ordinary:
    """Queries as people have them. Every one has to be answered."""

    def __init__(self, tables: dict[str, pa.Table]) -> None:
        self.tables = tables

    def pick(self, rng: random.Random) -> Query:
        """One query. Small ones are the most frequent."""
        kinds = [(self.one, 2), (self.point, 4), (self.span, 6), (self.totals, 4), (self.groups, 3), (self.top, 3),
                 (self.join, 2), (self.series, 3), (self.wide, 3), (self.repeated, 2), (self.whole, 2),
                 (self.large_sort, 1)]
        return rng.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0](rng)

    def one(self, rng: random.Random) -> Query:
        """The smallest query."""
        return Query("SELECT 1 AS one", one_row(one=1), True)

    def _table(self, rng: random.Random) -> tuple[str, pa.Table]:
        name = rng.choice(sorted(ROWS))
        return name, self.tables[name]

    def point(self, rng: random.Random) -> Query:
        """One row."""
        name, table = self._table(rng)
        row = rng.randrange(len(table))
        return Query(f"SELECT * FROM {name} WHERE n = {row}", lambda: table.slice(row, 1), True)

    def span(self, rng: random.Random) -> Query:
        """Some rows and columns."""
        name, table = self._table(rng)
        first = rng.randrange(len(table))
        count = min(rng.choice([1, 100, 10_000, 300_000]), len(table) - first)
        columns = ["n", *rng.sample(table.column_names[1:], rng.randint(0, 5))]
        is_ordered = rng.random() < 0.5
        sql = f"SELECT {', '.join(columns)} FROM {name} WHERE n >= {first} AND n < {first + count}"
        return Query(sql + (" ORDER BY n" if is_ordered else ""), lambda: table.slice(first, count).select(columns),
                     is_ordered)

    def whole(self, rng: random.Random) -> Query:
        """All rows of a table."""
        name, table = self._table(rng)
        if rng.random() < 0.3:
            name, table = "texts", self.tables["texts"]
        return Query(f"SELECT * FROM {name}", lambda: table)

    def totals(self, rng: random.Random) -> Query:
        """One row about all rows."""
        name, table = self._table(rng)
        group = rng.randrange(97)
        sql = (f"SELECT count(*) AS c, sum(n) AS t, min(f) AS a, max(f) AS b, count(s) AS s FROM {name} "
               f"WHERE g = {group}")

        def right() -> pa.Table:
            part = table.filter(pc.equal(table["g"], group))
            ends = pc.min_max(part["f"])
            return pa.table({"c": [len(part)], "t": [pc.sum(part["n"]).as_py()], "a": [ends["min"].as_py()],
                             "b": [ends["max"].as_py()], "s": [len(part) - part["s"].null_count]})

        return Query(sql, right, True)

    def groups(self, rng: random.Random) -> Query:
        """Groups, some of them many."""
        name, table = self._table(rng)
        key = rng.choice(["g", "day"])
        sql = f"SELECT {key} AS k, count(*) AS c, sum(n) AS t FROM {name} GROUP BY {key}"

        def right() -> pa.Table:
            found = table.group_by(key).aggregate([("n", "count"), ("n", "sum")])
            return found.select([key, "n_count", "n_sum"]).rename_columns(["k", "c", "t"])

        return Query(sql, right)

    def top(self, rng: random.Random) -> Query:
        """The first rows in an order."""
        name, table = self._table(rng)
        skipped, count = rng.choice([0, 0, 1000]), rng.choice([1, 50, 5000])
        sql = f"SELECT n, g, s FROM {name} ORDER BY g DESC, n LIMIT {count} OFFSET {skipped}"
        return Query(sql, lambda: table.sort_by([("g", "descending"), ("n", "ascending")]).slice(skipped, count)
                     .select(["n", "g", "s"]), True)

    def join(self, rng: random.Random) -> Query:
        """Two tables of different formats."""
        one, other = rng.sample(sorted(ROWS), 2)
        group = rng.randrange(97)
        both = min(ROWS[one], ROWS[other])
        numbers = range(group, both, 97)
        sql = f"SELECT count(*) AS c, sum(a.n) AS t FROM {one} a JOIN {other} b ON a.n = b.n WHERE b.g = {group}"
        return Query(sql, one_row(c=len(numbers), t=sum(numbers)), True)

    def series(self, rng: random.Random) -> Query:
        """Rows that no table has."""
        last = rng.choice([1, 1000, 100_000, 3_000_000])

        def right() -> pa.Table:
            number = pa.array(range(1, last + 1), pa.int64())
            return pa.table({"value": number, "thrice": pc.multiply(number, 3)})

        return Query(f"SELECT value, value * 3 AS thrice FROM generate_series(1, {last})", right)

    def wide(self, rng: random.Random) -> Query:
        """A table of many columns, whole or some."""
        table = self.tables["wide"]
        if rng.random() < 0.5:
            return Query("SELECT * FROM wide ORDER BY n", lambda: table, True)
        columns = ["n", *(f"c{at}" for at in rng.sample(range(WIDE_COLUMNS), 20))]
        return Query(f"SELECT {', '.join(columns)} FROM wide ORDER BY n", lambda: table.select(columns), True)

    def repeated(self, rng: random.Random) -> Query:
        """Long texts that the server makes."""
        count, times = rng.choice([(1, 5_000_000), (100, 50_000), (5000, 1000)])
        return Query(f"SELECT n, repeat('ab', {times}) AS r FROM csv_rows WHERE n < {count}",
                     lambda: pa.table({"n": range(count), "r": ["ab" * times] * count}))

    def large_sort(self, rng: random.Random) -> Query:
        """80 MB in an order, which spill."""
        table = self.tables["texts"]
        return Query("SELECT n, w FROM texts ORDER BY w", lambda: table.sort_by([("n", "descending")]), True)


HUGE = 1_000_000_000_000
ENDLESS = f"SELECT value, value * 2 AS twice FROM generate_series(1, {HUGE})"
#: Queries that take hours, or more than the memory limit.
SLOW = [
    "SELECT count(*) FROM generate_series(1,300000) a JOIN generate_series(1,300000) b"
    " ON a.value*b.value%1000003=-1",
    "SELECT count(*) FROM generate_series(1,300000) a JOIN generate_series(1,300000) b ON a.value%2=b.value%2"
    " WHERE a.value+b.value<0",
    "SELECT sum(a.value*b.value) FROM generate_series(1,1000000) a CROSS JOIN generate_series(1,1000000) b",
    "SELECT a.n FROM parquet_rows a, arrow_rows b, csv_rows c WHERE a.n + b.n + c.n < 0",
    "SELECT value FROM generate_series(1,200000000) ORDER BY value % 1009, value",
    "SELECT value % 100000000, count(*), max(value::text) FROM generate_series(1,300000000) GROUP BY 1",
    "SELECT max(n) OVER (PARTITION BY value % 3 ORDER BY -value) FROM generate_series(1,50000000), "
    "(SELECT count(*) AS n FROM json_rows)",
    f"SELECT count(*) FROM (SELECT unnest(range(0, 1000)) FROM generate_series(1, {HUGE}))",
    "WITH RECURSIVE r AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r",
    ENDLESS,
]
#: Queries that a quiet machine ends in time, with their results.
HEAVY = [
    ("SELECT count(*) AS c FROM parquet_rows a CROSS JOIN parquet_rows b WHERE a.s = b.s || 'x'", {"c": [0]}),
    ("SELECT value FROM generate_series(1,100000000) ORDER BY -value%977, value LIMIT 1", {"value": [976]}),
    ("SELECT count(DISTINCT value) AS c FROM generate_series(1,300000000)", {"c": [300_000_000]}),
    ("SELECT length(regexp_replace(repeat('a',5000000),'(a*)*b','x','g')) AS c FROM generate_series(1,2)",
     {"c": [5_000_000, 5_000_000]}),
]
#: Queries that have to be refused, with words of the refusal.
REFUSALS = [
    ("SELECT 1/0", r"(?i)divide by zero|division by zero"),
    ("SELECT n / (n - n) FROM csv_rows", r"(?i)divide by zero|division by zero"),
    ("SELECT * FROM no_such_table", r"no_such_table"),
    ("SELECT no_such_column FROM csv_rows", r"no_such_column"),
    ("SELEC 1", r"."),
    ("SELECT (((1)", r"."),
    ("-- nothing", r"."),
    ("SELECT 'open", r"."),
    ("SELECT CAST(s AS INT) FROM csv_rows", r"(?i)cast|parse"),
    ("SELECT 9223372036854775807 + n FROM csv_rows", r"(?i)overflow"),
    ("SELECT sum(9223372036854775807) FROM csv_rows", r"(?i)overflow|range|beyond"),
    ("SELECT repeat('x', 2000000000)", r"."),
    ("SELECT n, repeat('x', 20000000) FROM csv_rows", r"repeat|bytes|resources|limit"),
    ("SELECT lpad('x', 2147483647, 'y')", r"."),
    ("SELECT range(0, 10000000000)", r"."),
    ("SELECT array_repeat(1, 10000000000)", r"."),
    ("CREATE TABLE t AS SELECT 1", r"."),
    ("DROP TABLE csv_rows", r"."),
    ("INSERT INTO csv_rows SELECT * FROM csv_rows", r"."),
    ("COPY csv_rows TO '/nowhere/x.csv'", r"."),
    ("SELECT no_such_function(1)", r"no_such_function"),
]


def hostile(rng: random.Random) -> Query:
    """A query that means the server no good."""
    kind = rng.randrange(10)
    if kind < 4:
        words, seconds = "resources exhausted|bytes|limit", rng.randint(1, 5)
        if rng.random() < 0.7:
            return Query(rng.choice(SLOW), ends={DEADLINE, REFUSED}, words=words, deadline=seconds)
        sql, values = rng.choice(HEAVY)
        return Query(sql, lambda: pa.table(values), ends={ROWS_CAME, DEADLINE, REFUSED}, words=words, deadline=seconds)
    if kind < 7:
        sql, words = rng.choice(REFUSALS)
        return Query(sql, ends={REFUSED}, words=words)
    if kind == 7:
        return _many_columns(rng)
    if kind == 8:
        return _deep(rng)
    # Too long a text, and a huge string that just fits.
    if rng.random() < 0.3:
        return Query("SELECT '" + "x" * (2 << 20) + "'", ends={REFUSED}, words=r".")
    size = rng.choice([50_000_000, 200_000_000])
    return Query(f"SELECT repeat('xy', {size // 2}) AS r", lambda: pa.table({"r": ["xy" * (size // 2)]}),
                 ends={ROWS_CAME, REFUSED}, words=r".")


def _many_columns(rng: random.Random) -> Query:
    count, rows = 1000, rng.choice([1, 300])
    is_case = rng.random() < 0.3
    expression = "CASE WHEN n % 2 = 0 THEN n + {0} ELSE n + {0} END" if is_case else "n + {0}"
    columns = ", ".join(f"{expression.format(at)} AS c{at}" for at in range(count))

    def right() -> pa.Table:
        number = pa.array(range(rows), pa.int64())
        return pa.table({f"c{at}": pc.add(number, at) for at in range(count)})

    return Query(f"SELECT {columns} FROM csv_rows WHERE n < {rows}", right)


def _deep(rng: random.Random) -> Query:
    depth = rng.choice([30, 300, 3000, 30_000])
    ends = {ROWS_CAME, REFUSED}
    kind = rng.randrange(4)
    if kind == 0:
        return Query(f"SELECT {'1+' * depth}1 AS x", one_row(x=depth + 1), True, ends, r".")
    if kind == 1:
        return Query(f"SELECT {'(' * depth}1{')' * depth} AS x", one_row(x=1), True, ends, r".")
    if kind == 2:
        return Query(f"SELECT {'- ' * (2 * depth)}1 AS x", one_row(x=1), True, ends, r".")
    return Query("SELECT x FROM " + "(SELECT x FROM " * depth + "(SELECT 1 AS x)" + ")" * depth, one_row(x=1), True,
                 ends, r".")
