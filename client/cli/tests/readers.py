#!/usr/bin/env python3
"""Compares files of thallus, as pyarrow and DuckDB read them, with the columns from which they were written.

usage: THALLUS_FILES=DIR cargo test -p thallus-cli --test values -- --ignored && client/cli/tests/readers.py DIR

Needs pyarrow and duckdb. Prints each difference, and exits with 1 if there is one.
"""
import math
import pathlib
import sys

import duckdb
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


def exact(array):
    """The values of an Arrow array, comparable over types of the same meaning. Instants are in nanoseconds."""
    t = array.type
    if pa.types.is_dictionary(t):
        values = exact(array.dictionary)
        return [None if i is None else values[i] for i in array.indices.to_pylist()]
    if pa.types.is_run_end_encoded(t):
        values, out = exact(array.values), []
        for i in range(len(array)):
            at = i + array.offset
            out.append(values[next(n for n, end in enumerate(array.run_ends.to_pylist()) if at < end)])
        return out
    if pa.types.is_map(t):
        entries = [row.values if row.is_valid else None for row in array]
        return [None if e is None else dict(zip(exact(e.field(0)), exact(e.field(1)))) for e in entries]
    if pa.types.is_struct(t):
        fields = [exact(array.field(i)) for i in range(t.num_fields)]
        names = [t.field(i).name for i in range(t.num_fields)]
        rows = [dict(zip(names, row)) for row in zip(*fields)]
        return [row if array[i].is_valid else None for i, row in enumerate(rows)]
    if pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t) or "list_view" in str(t):
        return [None if not s.is_valid else exact(s.values) for s in array]
    if pa.types.is_union(t):
        fields = {code: exact(array.field(n)) for n, code in enumerate(t.type_codes)}
        return [fields[code][i] for i, code in enumerate(array.type_codes.to_pylist())]
    if pa.types.is_timestamp(t) or pa.types.is_time(t) or pa.types.is_duration(t):
        integer = pa.int32() if t.bit_width == 32 else pa.int64()
        factor = UNITS[t.unit]
        return [None if v is None else v * factor for v in array.view(integer).to_pylist()]
    if pa.types.is_date64(t):
        return [None if v is None else v // 86_400_000 for v in array.view(pa.int64()).to_pylist()]
    if pa.types.is_date32(t):
        return array.view(pa.int32()).to_pylist()
    if pa.types.is_floating(t):
        return [number(v) for v in array.to_pylist()]
    return array.to_pylist()


def number(value):
    return None if value is None else "nan" if math.isnan(value) else (value, math.copysign(1, value))


def column(table):
    return [value for chunk in table.column("c").chunks for value in exact(chunk)]


def main():
    folder, faults, right = pathlib.Path(sys.argv[1]), 0, 0
    for path in sorted(folder.glob("*.ref"), key=lambda p: int(p.stem)):
        kind = path.with_suffix(".type").read_text()
        try:
            want = column(ipc.open_stream(path.read_bytes()).read_all())
        except Exception as error:
            print(f"{path.stem} {kind}: not read by pyarrow: {str(error)[:120]}")
            continue
        for extension in ("parquet", "arrow"):
            file = path.with_suffix("." + extension)
            if not file.exists():
                continue
            is_parquet = extension == "parquet"
            readers = {"pyarrow": lambda: pq.read_table(file) if is_parquet else ipc.open_file(file).read_all()}
            # DuckDB reads decimals of more than 38 digits as floats.
            if is_parquet and "Decimal256" not in kind and "Decimal128(38, -2)" not in kind:
                readers["duckdb"] = lambda: duckdb.sql(f"FROM '{file}'").to_arrow_table()
            for name, read in readers.items():
                try:
                    got = column(read())
                except Exception as error:
                    print(f"{path.stem} {kind}: {extension} by {name}: error {str(error)[:200]}")
                    faults += 1
                    continue
                if got != want:
                    print(f"{path.stem} {kind}: {extension} by {name}:")
                    print(f"  got  {str(got)[:300]}\n  want {str(want)[:300]}")
                    faults += 1
                else:
                    right += 1
    print(f"{right} right, {faults} not")
    sys.exit(1 if faults else 0)


main()
