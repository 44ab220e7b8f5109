"""Generates directories of Parquet and of Arrow IPC files."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from . import kinds, values
from .directory import Directory, File
from .layout import Layout, column_names, row_count

PARQUET_CODECS = ["none", "snappy", "gzip", "brotli", "zstd", "lz4"]


def fill(directory: Directory, layout: Layout, rng: random.Random) -> None:
    """Writes the files of a directory whose format is parquet or arrow."""
    form = directory.form
    columns = {name: kinds.any_kind(rng, form) for name in column_names(rng, layout.width)}
    if layout.size == "large":
        # Enough bytes for a file that the server reads in parts.
        columns["pad"] = kinds.Choice([pa.utf8(), pa.large_utf8()], lambda rng, kind: rng.choice("pqr") * 800)
    id_types = _id_types(rng, layout)
    next_id = layout.first_id
    for path in layout.paths(rng, {"parquet": [".parquet"], "arrow": IPC_NAMES}[form]):
        rows = row_count(rng, layout)
        table = _table(rng, form, columns, rows, next_id, rng.choice(id_types), layout)
        next_id += rows
        (_write_parquet if form == "parquet" else _write_ipc)(rng, table, path, layout, directory.notes)
        found = {name: values.of_chunked(table[name]) for name in table.column_names}
        found |= {name: [value] * rows for name, value in layout.of_file[path].items()}
        directory.files.append(File(path, found, rows))


IPC_NAMES = [".arrow", ".arrows", ".ipc", ".feather"]


def _id_types(rng: random.Random, layout: Layout) -> list[pa.DataType]:
    """Types of the column of ids. All hold the ids of the directory."""
    wide = [pa.int32(), pa.int64()] + ([pa.uint32(), pa.uint64()] if layout.first_id >= 0 else [])
    return rng.sample(wide, rng.randint(1, len(wide)))


def _table(rng, form, columns, rows, next_id, id_type, layout) -> pa.Table:
    ids = list(range(next_id, next_id + rows))
    if rng.random() < 0.3:
        rng.shuffle(ids)
    fields, arrays = [pa.field("id", id_type, nullable=rng.random() < 0.5)], [pa.array(ids, id_type)]
    for name, kind in columns.items():
        if rng.random() < layout.lacks:
            continue
        nulls = rng.choice([0, 0, 0.1, 0.5, 1.0])
        array = kind.array(rng, kind.pick(rng, form), rows, nulls)
        while form == "parquet" and not _is_writable(array):
            array = kind.array(rng, kind.pick(rng, form), rows, nulls)
        data_type = array.type
        # Run ends and dictionaries have NULLs that Arrow does not count.
        is_required = rng.random() < 0.3 and not pa.types.is_null(data_type) and None not in values.of_array(array)
        fields.append(pa.field(name, array.type, nullable=not is_required))
        arrays.append(array)
    order = list(range(len(fields)))
    rng.shuffle(order)
    metadata = {"of": "all", "file": str(next_id)} if rng.random() < 0.2 else None
    schema = pa.schema([fields[at] for at in order], metadata)
    table = pa.Table.from_arrays([arrays[at] for at in order], schema=schema)
    if form == "arrow" and rows > 3 and rng.random() < 0.3:
        # Arrays with offsets.
        cut = rng.randint(1, rows - 1)
        table = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    return table


def _is_writable(array: pa.Array) -> bool:
    """Whether pyarrow writes the array to Parquet: not NULL within a dictionary, for example."""
    try:
        pq.write_table(pa.table({"a": array.slice(0, 50)}), pa.BufferOutputStream(), row_group_size=7)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return False
    return True


def _write_parquet(rng: random.Random, table: pa.Table, path: Path, layout: Layout, notes: list[str]) -> None:
    options = {
        "compression": rng.choice(PARQUET_CODECS),
        "row_group_size": rng.choice([1 << 20, 1000, 100, 7]) if table.num_rows < 3000 else 2000,
        "use_dictionary": rng.random() < 0.7,
        "write_statistics": rng.random() < 0.85,
        "write_page_index": rng.random() < 0.5,
        "data_page_version": rng.choice(["1.0", "2.0"]),
        "version": "2.6",
        "data_page_size": rng.choice([1 << 20, 200]),
        "write_batch_size": rng.choice([1024, 10]),
    }
    if not options["use_dictionary"]:
        encodings = {field.name: rng.choice(_encodings(field.type)) for field in table.schema}
        options["column_encoding"] = {name: encoding for name, encoding in encodings.items() if encoding != "PLAIN"}
    moments = [field.type for field in table.schema if pa.types.is_timestamp(field.type)]
    # INT96 is read as microseconds.
    if moments and all(kind.unit != "ns" for kind in moments) and "ns" not in str(table.schema):
        options["use_deprecated_int96_timestamps"] = rng.random() < 0.5
    notes.append(f"{path.name}: {table.num_rows} rows, {options}")
    pq.write_table(table, path, **options)


def _encodings(kind: pa.DataType) -> list[str]:
    """Encodings of Parquet that pyarrow writes for a type."""
    if pa.types.is_integer(kind) or pa.types.is_date32(kind):
        return ["PLAIN", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"]
    if pa.types.is_float32(kind) or pa.types.is_float64(kind) or pa.types.is_decimal(kind):
        return ["PLAIN", "BYTE_STREAM_SPLIT"]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return ["PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"]
    if pa.types.is_fixed_size_binary(kind):
        return ["PLAIN", "BYTE_STREAM_SPLIT", "DELTA_BYTE_ARRAY"]
    return ["PLAIN", "RLE"] if pa.types.is_boolean(kind) else ["PLAIN"]


def _write_ipc(rng: random.Random, table: pa.Table, path: Path, layout: Layout, notes: list[str]) -> None:
    is_file = rng.random() < 0.5
    codec = rng.choice([None, None, "lz4", "zstd"])
    # In version 4 pyarrow writes a validity of run ends, which the format does not have.
    has_run_ends = "run_end" in str(table.schema)
    options = ipc.IpcWriteOptions(
        compression=codec,
        emit_dictionary_deltas=rng.random() < 0.3,
        unify_dictionaries=is_file and rng.random() < 0.9,
        metadata_version=ipc.MetadataVersion.V5 if has_run_ends or rng.random() < 0.7 else ipc.MetadataVersion.V4,
    )
    rows = rng.choice([1 << 20, 1000, 100, 7]) if table.num_rows < 3000 else 1000
    notes.append(f"{path.name}: {table.num_rows} rows, {'file' if is_file else 'stream'}, {codec}, batches of {rows}")
    maker = ipc.new_file if is_file else ipc.new_stream
    with maker(str(path), table.schema, options=options) as writer:
        for batch in table.to_batches(max_chunksize=rows):
            writer.write_batch(batch)
