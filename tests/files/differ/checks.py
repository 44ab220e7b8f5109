"""Queries of a table, and the comparison of their results with the values that were written."""

from __future__ import annotations

import operator
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from . import limits, literals, values
from .directory import Directory
from .server import Answer, Server
from .values import Value

DELIVERIES = ["auto", "auto", "inline", "lent", "lazy"]


class Difference(Exception):
    """A result that is not as it must be."""


def quoted(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'


class Checker:
    """Checks one directory by queries."""

    def __init__(self, server: Server, directory: Directory) -> None:
        self.server = server
        self.directory = directory
        self.rng = random.Random(directory.seed ^ 0x5EED)
        self.table = directory.table()
        self.source = quoted(directory.name)
        self.queries = 0

    def run(self) -> list[str]:
        """All differences."""
        try:
            schema = self._whole()
        except Difference as difference:
            return [str(difference)]
        if schema is None:
            return []
        found = []
        for check in self._checks(schema):
            try:
                check()
            except Difference as difference:
                found.append(str(difference))
        return found

    def _query(self, sql: str) -> Answer:
        self.queries += 1
        rng = self.rng
        delivery = rng.choice(DELIVERIES)
        options = ["--delivery", delivery]
        if rng.random() < 0.3:
            # Tens of thousands of batches take too long on a busy machine.
            sizes = [1, 7, 100, 8192] if len(self.table["id"]) < 3000 else [1000, 8192]
            options += ["--batch-rows", str(rng.choice(sizes))]
        if rng.random() < 0.2 and delivery != "lazy":
            options += ["--partitions", "2"]
        answer = self.server.query(sql, *options)
        if answer.error is not None and answer.code != 4:
            raise Difference(f"{sql}\n  the client ended with code {answer.code}: {answer.error}")
        if not self.server.is_running():
            raise Difference(f"{sql}\n  the server ended")
        return answer

    def _result(self, sql: str) -> pa.Table:
        answer = self._query(sql)
        if answer.table is None:
            raise Difference(f"{sql}\n  refused: {answer.error}")
        return answer.table

    def _whole(self) -> pa.Schema | None:
        """Compares the whole table. None if the server had to refuse it, and did."""
        sql = f"SELECT * FROM {self.source}"
        answer = self._query(sql)
        refusal = self.directory.refusal
        if refusal is None and not self.directory.good():
            refusal = [file.path.name for file in self.directory.broken()[:1]]
        if answer.error is not None and any(file.path.name in answer.error for file in self.directory.broken()):
            return None
        if refusal is not None:
            if answer.table is not None:
                raise Difference(f"{sql}\n  {answer.table.num_rows} rows, but it must be refused: {refusal}")
            # A table of a data directory that was skipped is unknown; the log has the reason.
            said = (answer.error or "") + self._log()
            missing = [word for word in refusal if word not in said]
            if missing:
                raise Difference(f"{sql}\n  the refusal does not say {missing}: {answer.error}")
            return None
        if answer.table is None:
            if limits.allows(self.directory.form, answer.error):
                return None
            raise Difference(f"{sql}\n  refused: {answer.error}")
        self._log_names_broken()
        if set(answer.table.column_names) != set(self.table):
            raise Difference(f"{sql}\n  columns {answer.table.column_names} instead of {list(self.table)}")
        self._compare(sql, answer.table, range(len(self.table["id"])))
        return answer.table.schema

    def _log(self) -> str:
        """The warnings of the server about this directory."""
        lines = self.server.log.read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if "WARN" in line and str(self.directory.path) in line)

    def _log_names_broken(self) -> None:
        log = self._log()
        for file in self.directory.broken():
            if str(file.path) not in log:
                raise Difference(f"{file.path}: it was left out, and the log does not say so")

    def _compare(self, sql: str, result: pa.Table, rows: Any) -> None:
        """Compares a result that has the column `id` with those rows of the table."""
        ids = values.of_chunked(result["id"])
        places = {self.table["id"][row]: row for row in rows}
        if len(ids) != len(places) or set(ids) != set(places):
            lost, added = [x for x in places if x not in set(ids)], [x for x in ids if x not in places]
            twice = len(ids) - len(set(ids))
            raise Difference(
                f"{sql}\n  {len(ids)} rows instead of {len(places)}; missing ids: {lost[:5]}, wrong ids: {added[:5]}, "
                f"ids that came twice: {twice}"
            )
        for name in result.column_names:
            expected = self.table[name]
            for found_id, value in zip(ids, values.of_chunked(result[name])):
                right = expected[places[found_id]]
                if not values.equal(value, right):
                    raise Difference(
                        f"{sql}\n  column {name!r} ({result.schema.field(name).type}), id {found_id}: "
                        f"{values.shown(value)} instead of {values.shown(right)}"
                    )

    def _checks(self, schema: pa.Schema) -> Iterator[Callable[[], None]]:
        rng = self.rng
        names = [name for name in self.table if name != "id"]
        yield self._count_all
        yield self._limited
        yield lambda: self._projection(schema, rng.sample(names, rng.randint(0, len(names))))
        yield lambda: self._ordered(schema)
        for name in ["id", *rng.sample(names, min(3, len(names)))]:
            data_type = schema.field(name).type
            yield lambda name=name: self._count(name)
            yield lambda name=name: self._nulls(name)
            if literals.is_comparable(data_type):
                yield lambda name=name, data_type=data_type: self._filter(name, data_type)
                yield lambda name=name, data_type=data_type: self._filter_of_two(name, data_type)
                yield lambda name=name, data_type=data_type: self._extremes(name, data_type)
                yield lambda name=name: self._groups(name)
            if pa.types.is_integer(data_type) or pa.types.is_decimal(data_type):
                yield lambda name=name, data_type=data_type: self._sum(name, data_type)
            parts = [part.name for part in data_type if part.name] if pa.types.is_struct(data_type) else []
            if parts:
                yield lambda name=name, parts=parts: self._part(name, rng.choice(parts))

    def _number(self, sql: str, right: Value) -> None:
        result = self._result(sql)
        found = [values.of_chunked(column)[0] for column in result.columns]
        if result.num_rows != 1 or not values.equal(found[0], right):
            raise Difference(f"{sql}\n  {values.shown(found[0])} instead of {values.shown(right)}")

    def _count_all(self) -> None:
        self._number(f"SELECT count(*) FROM {self.source}", len(self.table["id"]))

    def _count(self, name: str) -> None:
        right = sum(value is not None for value in self.table[name])
        self._number(f"SELECT count({quoted(name)}) FROM {self.source}", right)

    def _nulls(self, name: str) -> None:
        word = self.rng.choice(["IS NULL", "IS NOT NULL"])
        sql = f"SELECT id FROM {self.source} WHERE {quoted(name)} {word}"
        rows = [row for row, value in enumerate(self.table[name]) if (value is None) == (word == "IS NULL")]
        self._compare(sql, self._result(sql), rows)

    def _projection(self, schema: pa.Schema, names: list[str]) -> None:
        columns = ["id", *names]
        self.rng.shuffle(columns)
        ids = self.table["id"]
        limit, where = self.rng.choice(ids) if ids else None, ""
        if limit is not None:
            where = f" WHERE id > {literals.of_value(limit, schema.field('id').type)}"
        sql = f"SELECT {', '.join(map(quoted, columns))} FROM {self.source}{where}"
        result = self._result(sql)
        if result.column_names != columns:
            raise Difference(f"{sql}\n  columns {result.column_names}")
        rows = [row for row, value in enumerate(self.table["id"]) if literals.ordered(value) > literals.ordered(limit)]
        self._compare(sql, result, rows if where else [])

    def _ordered(self, schema: pa.Schema) -> None:
        names = [name for name in self.table if literals.is_comparable(schema.field(name).type)]
        count, by = self.rng.choice([1, 3, 10]), self.rng.choice(["id", *names])
        direction, nulls = self.rng.choice(["ASC", "DESC"]), self.rng.choice(["FIRST", "LAST"])
        order = f"ORDER BY {quoted(by)} {direction} NULLS {nulls}, id"
        sql = f"SELECT id FROM {self.source} {order} LIMIT {count}"
        def key(row: int) -> Any:
            value = self.table[by][row]
            is_last = (value is None) == (nulls == "LAST")
            return is_last, literals.Reversed(value) if direction == "DESC" else literals.ordered(value)
        ids = self.table["id"]
        rows = sorted(range(len(ids)), key=lambda row: literals.ordered(ids[row]))
        rows = sorted(rows, key=key)[:count]
        found, right = values.of_chunked(self._result(sql)["id"]), [ids[row] for row in rows]
        if found != right:
            raise Difference(f"{sql}\n  ids {found} instead of {right}")

    def _filter(self, name: str, data_type: pa.DataType) -> None:
        present = [value for value in self.table[name] if literals.is_literal(value, data_type)]
        if not present:
            return
        value = self.rng.choice(present)
        symbol, compare = self.rng.choice(
            [(">", operator.gt), ("<", operator.lt), ("=", operator.eq), (">=", operator.ge), ("<>", operator.ne)]
        )
        literal = literals.of_value(value, data_type)
        sql = f"SELECT id FROM {self.source} WHERE {quoted(name)} {symbol} {literal}"
        right = literals.compared(value)
        rows = [
            row for row, other in enumerate(self.table[name])
            if other is not None and compare(literals.compared(other), right)
        ]
        self._compare(sql, self._result(sql), rows)

    def _filter_of_two(self, name: str, data_type: pa.DataType) -> None:
        present = [value for value in self.table[name] if literals.is_literal(value, data_type)]
        if not present:
            return
        low, high = sorted(self.rng.choices(present, k=2), key=literals.compared)
        first, last = (literals.of_value(value, data_type) for value in (low, high))
        least, most = literals.compared(low), literals.compared(high)
        word, keeps = self.rng.choice([
            (f"BETWEEN {first} AND {last}", lambda key: least <= key <= most),
            (f"NOT BETWEEN {first} AND {last}", lambda key: not least <= key <= most),
            (f"IN ({first}, {last})", lambda key: key in (least, most)),
            (f"NOT IN ({first}, {last})", lambda key: key not in (least, most)),
        ])
        # A second filter, which is often of other row groups.
        limit = self.rng.choice(self.table["id"])
        sql = f"SELECT id FROM {self.source} WHERE {quoted(name)} {word}"
        id_type = pa.string() if isinstance(limit, str) else pa.int64()
        if self.rng.random() < 0.5:
            sql, least_id = f"{sql} AND id >= {literals.of_value(limit, id_type)}", literals.compared(limit)
        else:
            least_id = None
        rows = [
            row for row, other in enumerate(self.table[name])
            if other is not None and keeps(literals.compared(other))
            and (least_id is None or literals.compared(self.table["id"][row]) >= least_id)
        ]
        self._compare(sql, self._result(sql), rows)

    def _groups(self, name: str) -> None:
        sql = f"SELECT {quoted(name)}, count(*) FROM {self.source} GROUP BY {quoted(name)}"
        result = self._result(sql)
        found = list(zip(*(values.of_chunked(column) for column in result.columns)))
        # -0.0 and 0.0 are one group.
        zero = {values.NEGATIVE_ZERO: 0.0}
        found = [(zero.get(value, value), count) for value, count in found]
        right = Counter(zero.get(value, value) for value in self.table[name])
        if len(found) != len(right) or Counter(dict(found)) != right:
            wrong = sorted(map(str, set(found) ^ set(right.items())))
            raise Difference(f"{sql}\n  {len(found)} groups instead of {len(right)}: {wrong[:6]}")

    def _limited(self) -> None:
        count = self.rng.choice([0, 1, 5, 1500])
        sql = f"SELECT id FROM {self.source} LIMIT {count}"
        found, ids = values.of_chunked(self._result(sql)["id"]), set(self.table["id"])
        if len(found) != min(count, len(ids)) or len(set(found)) != len(found) or not ids.issuperset(found):
            raise Difference(f"{sql}\n  {len(found)} ids: {values.shown(found)}")

    def _extremes(self, name: str, data_type: pa.DataType) -> None:
        present = sorted((value for value in self.table[name] if value is not None), key=literals.ordered)
        for word, right in (("min", present[:1]), ("max", present[-1:])):
            self._number(f"SELECT {word}({quoted(name)}) FROM {self.source}", right[0] if right else None)

    def _sum(self, name: str, data_type: pa.DataType) -> None:
        present = [value for value in self.table[name] if value is not None]
        total = literals.total(present)
        if not literals.sum_fits(total, data_type):
            return
        self._number(f"SELECT sum({quoted(name)}) FROM {self.source}", total if present else None)

    def _part(self, name: str, field: str) -> None:
        sql = f"SELECT id, {quoted(name)}['{field}'] AS part FROM {self.source}"
        result = self._result(sql)
        parts = [None if value is None else value.get(field) for value in self.table[name]]
        places = dict(zip(self.table["id"], parts))
        for found_id, value in zip(values.of_chunked(result["id"]), values.of_chunked(result["part"])):
            if not values.equal(value, places[found_id]):
                raise Difference(
                    f"{sql}\n  id {found_id}: {values.shown(value)} instead of {values.shown(places[found_id])}"
                )
