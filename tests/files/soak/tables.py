"""The tables of the soak. Their values follow from the row number, so that every answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

#: Rows of the tables by name; the formats differ in speed.
ROWS = {"parquet_rows": 1_200_000, "arrow_rows": 400_000, "csv_rows": 150_000, "json_rows": 60_000}
GROUPS = 97
WIDE_COLUMNS = 300
TEXT_BYTES = 4000


def rows(first: int, count: int) -> pa.Table:
    """Rows `first` and following: integers, floats, text with NULL, dates and truth values."""
    number = pa.array(range(first, first + count), pa.int64())
    group = pc.subtract(number, pc.multiply(pc.divide(number, GROUPS), GROUPS))
    seventh = pc.equal(pc.subtract(number, pc.multiply(pc.divide(number, 7), 7)), 0)
    text = pc.binary_join_element_wise("row", pc.cast(number, pa.string()), "é", "-")
    day = pc.subtract(number, pc.multiply(pc.divide(number, 5000), 5000))
    return pa.table({
        "n": number,
        "g": pc.cast(group, pa.int32()),
        "f": pc.multiply(pc.cast(number, pa.float64()), 0.5),
        "s": pc.if_else(seventh, pa.scalar(None, pa.string()), text),
        "day": pc.cast(pc.cast(day, pa.int32()), pa.date32()),
        "odd": seventh,
    })


def wide(count: int) -> pa.Table:
    """Rows of many columns."""
    number = pa.array(range(count), pa.int64())
    return pa.table({"n": number} | {f"c{at}": pc.add(number, at) for at in range(WIDE_COLUMNS)})


def texts(count: int) -> pa.Table:
    """Rows of 4 kB. The order of the texts is the reverse of the rows'."""
    values = [f"{count - at:08d}" + chr(ord("a") + at % 26) * (TEXT_BYTES - 8) for at in range(count)]
    return pa.table({"n": pa.array(range(count), pa.int64()), "w": pa.array(values)})


def write(data: Path) -> dict[str, pa.Table]:
    """Writes the tables below `data`, and returns their values by name."""
    found = {name: rows(0, count) for name, count in ROWS.items()}
    found["wide"], found["texts"] = wide(2000), texts(20_000)
    parts = data / "parquet_rows"
    parts.mkdir(parents=True)
    third = ROWS["parquet_rows"] // 3
    for at in range(3):
        pq.write_table(found["parquet_rows"].slice(at * third, third), parts / f"{at}.parquet", row_group_size=100_000)
    parts = data / "arrow_rows"
    parts.mkdir()
    half = ROWS["arrow_rows"] // 2
    # One file of each of the two formats.
    for at, maker in enumerate([ipc.new_file, ipc.new_stream]):
        table = found["arrow_rows"].slice(at * half, half)
        with maker(str(parts / f"{at}.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=50_000)
    pa.csv.write_csv(found["csv_rows"], data / "csv_rows.csv")
    (data / "json_rows.json").write_bytes(lines_of_json(found["json_rows"]))
    pq.write_table(found["wide"], data / "wide.parquet")
    pq.write_table(found["texts"], data / "texts.parquet", row_group_size=2000, compression="zstd")
    return found


def lines_of_json(table: pa.Table) -> bytes:
    """A table as JSON, one object a line."""
    out = []
    for row in table.to_pylist():
        if "day" in row:
            row["day"] = row["day"].isoformat()
        out.append(json.dumps(row, ensure_ascii=False))
    return ("\n".join(out) + "\n").encode()
