"""The files that are mutated: small, and together with every type, encoding and codec that the writers have."""

import datetime
import decimal
import io
import json
import os
import tempfile

import duckdb
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

ROWS = 40


def _cycle(items):
    return [items[i % len(items)] for i in range(ROWS)]


def _times(i):
    return datetime.datetime(2024, 1, 1) + datetime.timedelta(hours=i)


def flat():
    """One column for each type that does not nest, and that Parquet has."""
    n = range(ROWS)
    words = ["", "a", "bc", "déf", "a longer text than twelve bytes", None]
    return pa.table({
        "i64": pa.array([None if i % 7 == 3 else i - 5 for i in n], pa.int64()),
        "i32": pa.array(n, pa.int32()),
        "i8": pa.array(_cycle([1, 2, None]), pa.int8()),
        "u64": pa.array(_cycle([1, 1 << 63]), pa.uint64()),
        "u16": pa.array(n, pa.uint16()),
        "f64": pa.array([i / 3 for i in n], pa.float64()),
        "f32": pa.array(_cycle([1.5, float("nan"), None]), pa.float32()),
        "f16": pa.array(_cycle([1.5, 2.5]), pa.float16()),
        "b": pa.array(_cycle([True, False, None]), pa.bool_()),
        "s": pa.array(_cycle(words), pa.string()),
        "ls": pa.array(_cycle(words), pa.large_string()),
        "bin": pa.array(_cycle([b"\xff\0", b"", None]), pa.binary()),
        "fsb": pa.array(_cycle([b"12345", None]), pa.binary(5)),
        "d9": pa.array(_cycle([decimal.Decimal("1.25"), None]), pa.decimal128(9, 2)),
        "d38": pa.array(_cycle([decimal.Decimal("12345678901234567890.5")]), pa.decimal128(38, 1)),
        "d76": pa.array(_cycle([decimal.Decimal("-1.25")]), pa.decimal256(76, 2)),
        "date": pa.array([_times(i * 24).date() for i in n], pa.date32()),
        "ts": pa.array([_times(i) for i in n], pa.timestamp("us")),
        "tz": pa.array([_times(i) for i in n], pa.timestamp("ns", "UTC")),
        "time": pa.array([datetime.time(i % 24) for i in n], pa.time64("us")),
        "dict": pa.array(_cycle(words)).dictionary_encode(),
    })


def nested():
    """Lists, structs and maps, within each other."""
    return pa.table({
        "l": pa.array(_cycle([[1, None, 3], [], None]), pa.list_(pa.int32())),
        "ll": pa.array(_cycle([[["a"], []], None, [[None, "b"]]]), pa.list_(pa.list_(pa.string()))),
        "st": pa.array(_cycle([{"x": 1, "y": "a"}, None, {"x": None, "y": None}]),
                       pa.struct([("x", pa.int64()), ("y", pa.string())])),
        "m": pa.array(_cycle([[("k", 1), ("l", None)], [], None]), pa.map_(pa.string(), pa.int32())),
        "ls": pa.array(_cycle([[{"x": [1.5]}], None]), pa.large_list(pa.struct([("x", pa.list_(pa.float64()))]))),
        "fl": pa.array(_cycle([[1, 2], None]), pa.list_(pa.int16(), 2)),
    })


def exotic():
    """Types that only Arrow has."""
    n = range(ROWS)
    union = pa.UnionArray.from_dense(
        pa.array(_cycle([0, 1]), pa.int8()), pa.array([i // 2 for i in n], pa.int32()),
        [pa.array(range(ROWS), pa.int64()), pa.array(_cycle(["u", "v"]))])
    sparse = pa.UnionArray.from_sparse(
        pa.array(_cycle([0, 1]), pa.int8()), [pa.array(range(ROWS), pa.int64()), pa.array(_cycle(["u", "v"]))])
    ends = pa.RunEndEncodedArray.from_arrays(pa.array([10, ROWS], pa.int32()), pa.array(["x", "y"]))
    words = _cycle(["a", "a view of more than twelve bytes", None])
    return pa.table({
        "view": pa.array(words, pa.string_view()),
        "bview": pa.array([w and w.encode() for w in words], pa.binary_view()),
        "ree": ends,
        "dense": union,
        "sparse": sparse,
        "lv": pa.array(_cycle([[1, 2], None, []]), pa.list_view(pa.int32())),
        "llv": pa.array(_cycle([["a", "b"], None, []]), pa.large_list_view(pa.string())),
        "null": pa.nulls(ROWS),
        "mdn": pa.array(_cycle([(1, 2, 3), None]), pa.month_day_nano_interval()),
        "dur": pa.array(n, pa.duration("ms")),
        "dict8": pa.array(words).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string())),
        "ldict": pa.array([[w] for w in words], pa.list_(pa.dictionary(pa.int16(), pa.string()))),
        "t32": pa.array(n, pa.time32("s")),
        "d64": pa.array(n, pa.date64()),
    })


def _parquet(table, **options):
    out = io.BytesIO()
    pq.write_table(table, out, **{"row_group_size": 25, "store_schema": True, **options})
    return out.getvalue()


def _ipc(table, kind, **options):
    out = io.BytesIO()
    make = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with make(out, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        if "dense" in table.column_names:
            # The writer leaves some bytes of a part of a dense union as they were in memory.
            writer.write_table(table)
            writer.write_table(table)
        else:
            writer.write_table(table, max_chunksize=25)
    return out.getvalue()


def _duckdb(options):
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "t.parquet")
        query = ("SELECT i, i % 3 AS k, 'text ' || (i % 5) AS s, [i, NULL] AS l, {'x': i} AS st, i::DECIMAL(18,3) AS d,"
                 " i::HUGEINT AS h, i::DOUBLE AS f, DATE '2024-01-01' + i::INT AS day FROM range(300) t(i)")
        with duckdb.connect() as connection:
            connection.execute("SET threads = 1")
            connection.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet, {options})")
        with open(path, "rb") as file:
            return file.read()


def parquet():
    """Parquet files by name."""
    table, deep = flat(), nested()
    found = {
        "plain": _parquet(table, use_dictionary=False, compression="none", write_page_index=True),
        "dictionary": _parquet(table, compression="snappy", write_page_index=True),
        "v2": _parquet(table, compression="zstd", data_page_version="2.0"),
        "old": _parquet(table.select(["i64", "s", "ts", "d9"]), compression="gzip", version="1.0", store_schema=False,
                        use_deprecated_int96_timestamps=True),
        "nested": _parquet(deep, compression="lz4", write_page_index=True),
        "nested-v2": _parquet(deep, compression="none", data_page_version="2.0", use_dictionary=False),
        "brotli": _parquet(table.select(["i64", "s", "dict"]), compression="brotli"),
        "duckdb": _duckdb("COMPRESSION zstd, ROW_GROUP_SIZE 2048"),
        "duckdb-v2": _duckdb("COMPRESSION uncompressed, PARQUET_VERSION V2"),
        "types": _parquet(exotic().select(["dur", "null", "t32", "d64", "dict8", "view", "bview"]), compression="none"),
    }
    for encoding, columns in {
        "DELTA_BINARY_PACKED": ["i64", "i32", "ts"],
        "DELTA_LENGTH_BYTE_ARRAY": ["s", "bin"],
        "DELTA_BYTE_ARRAY": ["s", "fsb"],
        "BYTE_STREAM_SPLIT": ["f64", "i32", "fsb", "f16"],
        "RLE": ["b"],
    }.items():
        for codec in ["none", "snappy"]:
            found[f"{encoding.lower()}-{codec}"] = _parquet(
                table.select(columns), use_dictionary=False, column_encoding={c: encoding for c in columns},
                compression=codec, data_page_version="2.0" if codec == "none" else "1.0")
    # A file of one column: mutations meet it more often.
    for column in ["s", "d9", "dict", "fsb", "f32"]:
        found[f"only-{column}"] = _parquet(table.select([column]), compression="none")
    return found


def arrow():
    """Arrow files and streams by name."""
    found = {}
    for name, table in {"flat": flat(), "nested": nested(), "exotic": exotic()}.items():
        for kind in ["file", "stream"]:
            for codec in [None, "lz4", "zstd"]:
                found[f"{name}-{kind}-{codec}"] = _ipc(table, kind, compression=codec)
    delta = pa.chunked_array([pa.array(["a", "b"]).dictionary_encode(), pa.array(["a", "b", "c"]).dictionary_encode()])
    found["delta-file"] = _ipc(pa.table({"d": delta}), "file", emit_dictionary_deltas=True)
    found["delta-stream"] = _ipc(pa.table({"d": delta}), "stream", emit_dictionary_deltas=True)
    for column in ["view", "bview", "ree", "dense", "sparse", "lv", "llv", "dict8", "ldict"]:
        found[f"only-{column}"] = _ipc(exotic().select([column]), "file")
    for column in ["l", "ll", "m", "fl"]:
        found[f"only-{column}"] = _ipc(nested().select([column]), "stream")
    return found


def csv():
    """CSV texts by name."""
    rows = [f'{i},{i / 4},"text, ""{i}""",2024-01-{i % 28 + 1:02},{"true" if i % 2 else "false"},,"line\n{i}"'
            for i in range(ROWS)]
    plain = "\n".join(["i,f,s,day,b,empty,lines"] + rows) + "\n"
    return {
        "plain": plain.encode(),
        "crlf": b"\xef\xbb\xbfa,b\r\n1,x\r\n2,\"y\r\nz\"\r\n",
        "one": b"a\n1\n2\n3\n",
        "many": ("i,s\n" + "".join(f"{i},word {i}\n" for i in range(3000))).encode(),
    }


def jsons():
    """JSON texts by name."""
    rows = [{"i": i, "f": i / 4, "s": f"té\"{i}", "l": [i, None], "o": {"x": i, "y": [{"z": "a"}]}, "n": None}
            for i in range(ROWS)]
    return {
        "lines": "\n".join(json.dumps(row) for row in rows).encode() + b"\n",
        "array": json.dumps(rows, indent=1).encode(),
        "one": b'{"a":1}\n{"a":2.5}\n',
        "big": b'{"u":18446744073709551615,"d":12345678901234567890123456789}\n' * 20,
    }
