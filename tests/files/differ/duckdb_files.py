"""Generates directories of files that DuckDB writes: another writer than pyarrow, with its own partitions."""

from __future__ import annotations

import random

import duckdb

from . import values
from .directory import Directory, File
from .layout import Layout, column_names, row_count

#: Types of columns and expressions of their values. `i` is the row, `h` a random UBIGINT.
COLUMNS = {
    "TINYINT": "(h % 256)::INTEGER - 128", "SMALLINT": "(h % 65536)::INTEGER - 32768",
    "INTEGER": "(h % 4294967296)::BIGINT - 2147483648",
    "BIGINT": "(h // 2)::BIGINT - 4611686018427387904", "UTINYINT": "h % 256", "USMALLINT": "h % 65536",
    "UINTEGER": "h % 4294967296", "UBIGINT": "h", "FLOAT": "h % 1000 / 8", "DOUBLE": "(h % 100000)::DOUBLE / 7",
    "DECIMAL(4,1)": "(h % 9999)::INTEGER / 10", "DECIMAL(18,6)": "(h % 1000000)::INTEGER", "BOOLEAN": "h % 2 = 0",
    "DECIMAL(38,10)": "(h // 1000)::HUGEINT", "DATE": "DATE '1970-01-01' + (h % 40000)::INTEGER",
    "TIMESTAMP": "make_timestamp((h % 4000000000000000)::BIGINT)",
    "TIME": "TIME '00:00:00' + to_seconds((h % 86400)::BIGINT)",
    "TIMESTAMPTZ": "make_timestamp((h % 4000000000000000)::BIGINT)",
    "VARCHAR": "repeat(chr((97 + h % 26)::INTEGER), 3)",
    "TIMESTAMP_S": "make_timestamp((h % 4000000000)::BIGINT * 1000000)", "BLOB": "('ab' || (h % 10)::VARCHAR)::BLOB",
    "TIMESTAMP_MS": "make_timestamp((h % 4000000000000)::BIGINT * 1000)", "INTEGER[]": "[h % 5, NULL, i]",
    "STRUCT(x INTEGER, y VARCHAR)": "{'x': h % 7, 'y': 'a' || (h % 3)}",
    "MAP(VARCHAR, INTEGER)": "MAP {'k' || (h % 3): h % 10}", "VARCHAR[][]": "[['a', NULL], [], NULL]",
    "STRUCT(x STRUCT(z DATE)[])": "{'x': [{'z': DATE '2024-01-01' + (h % 99)::INTEGER}, NULL]}",
    "ENUM('red', 'green', 'blue')": "['red', 'green', 'blue'][(1 + h % 3)::BIGINT]",
}


def fill(directory: Directory, layout: Layout, rng: random.Random) -> None:
    """Writes the files of a directory."""
    directory.form = "parquet"
    columns = {name: rng.choice(list(COLUMNS)) for name in column_names(rng, layout.width)}
    next_id = layout.first_id
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'; SET threads = 1; SET preserve_insertion_order = true")
        for path in layout.paths(rng, [".parquet"]):
            rows = row_count(rng, layout)
            connection.execute(_query(rng, columns, rows, next_id, layout))
            options = {
                "COMPRESSION": rng.choice(["snappy", "zstd", "gzip", "lz4_raw", "uncompressed", "brotli"]),
                "ROW_GROUP_SIZE": rng.choice([2048, 122880]), "PARQUET_VERSION": rng.choice(["V1", "V2"]),
                "DICTIONARY_SIZE_LIMIT": rng.choice([1, 100000]),
            }
            settings = ", ".join(f"{key} {value}" for key, value in options.items())
            target = str(path).replace("'", "''")
            connection.execute(f"COPY t TO '{target}' (FORMAT parquet, {settings})")
            table = connection.sql("SELECT * FROM t").to_arrow_table()
            found = {name: values.of_chunked(table[name]) for name in table.column_names}
            found |= {name: [value] * rows for name, value in layout.of_file[path].items()}
            directory.files.append(File(path, found, rows))
            directory.notes.append(f"{path.name}: {rows} rows, by DuckDB, {options}")
            next_id += rows


def _query(rng: random.Random, columns: dict[str, str], rows: int, next_id: int, layout: Layout) -> str:
    """The statement that makes the table of a file."""
    chosen = [f"(i + {next_id})::BIGINT AS id"]
    for name, kind in columns.items():
        if rng.random() >= layout.lacks:
            share, quoted = rng.choice([0, 1, 5]), name.replace('"', '""')
            value = f"({COLUMNS[kind]})::{kind}"
            chosen.append(f'CASE WHEN (h // 7) % 10 < {share} THEN NULL ELSE {value} END AS "{quoted}"')
    rng.shuffle(chosen)
    source = f"(SELECT i, hash(i, {rng.randrange(10**6)}) AS h FROM range({rows}) r(i))"
    return f"CREATE OR REPLACE TABLE t AS SELECT {', '.join(chosen)} FROM {source}"
