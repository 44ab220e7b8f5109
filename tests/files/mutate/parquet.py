"""Mutations of Parquet: of the footer, of page headers, of pages, of indexes, and of the Arrow schema within."""

import base64
import struct
import zlib

import pyarrow as pa

from . import flatbuffers, thrift, values
from .thrift import BINARY, I32, LIST, STRUCT, Value

MAGIC = b"PAR1"
# https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
SCHEMA, ROWS, ROW_GROUPS, KEY_VALUES = 2, 3, 4, 5
COLUMNS, META_DATA = 1, 3
OFFSET_INDEX, OFFSET_INDEX_LENGTH, COLUMN_INDEX, COLUMN_INDEX_LENGTH = 4, 5, 6, 7
CODEC, VALUES, COMPRESSED, DATA_PAGE, DICTIONARY_PAGE, BLOOM, BLOOM_LENGTH = 4, 5, 7, 9, 11, 14, 15
CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}


class File:
    """A Parquet file: its bytes up to the footer, and the footer as a tree."""

    def __init__(self, data):
        length = struct.unpack_from("<I", data, len(data) - 8)[0]
        self.start = len(data) - 8 - length
        self.body = data[:self.start]
        self.footer, _ = thrift.parse(data[self.start:-8])

    def chunks(self):
        groups = self.footer.field(ROW_GROUPS).value
        return [chunk for group in groups for chunk in group.field(COLUMNS).value]

    def write(self, footer_length=None):
        footer = thrift.write(self.footer)
        length = len(footer) if footer_length is None else footer_length
        return self.body + footer + values.u32(length) + MAGIC


class Page:
    """A page of a column chunk: its header as a tree, and its bytes as in the file."""

    def __init__(self, header, data):
        self.header, self.data = header, data


def pages(file, chunk):
    """The pages of a column chunk that no mutation has touched."""
    meta = chunk.field(META_DATA)
    first = min(meta.field(n).value for n in (DATA_PAGE, DICTIONARY_PAGE) if meta.field(n) is not None
                and meta.field(n).value >= 4)
    at, end = first, first + meta.field(COMPRESSED).value
    found = []
    while at < end:
        header, after = thrift.parse(file.body, at)
        at = after + header.field(3).value
        found.append(Page(header, file.body[after:at]))
    return found


def _is_dictionary(page):
    kind = page.header.field(1)
    return kind is not None and kind.value == 2


def put_pages(file, chunk, changed):
    """Appends the pages to the file, as the column chunk's."""
    meta, at = chunk.field(META_DATA), len(file.body)
    out = bytearray()
    for page in changed:
        if _is_dictionary(page):
            meta.set(DICTIONARY_PAGE, Value(thrift.I64, at + len(out)))
        elif all(_is_dictionary(before) for before in changed[:changed.index(page)]):
            meta.set(DATA_PAGE, Value(thrift.I64, at + len(out)))
        out += thrift.write(page.header) + page.data
    meta.field(COMPRESSED).value = len(out)
    file.body += bytes(out)
    # The page index would name the old places.
    for number in (OFFSET_INDEX, OFFSET_INDEX_LENGTH, COLUMN_INDEX, COLUMN_INDEX_LENGTH):
        chunk.value = [(i, v) for i, v in chunk.value if i != number]


def mutate(rng, data, other):
    """A mutated file, and what was done to it."""
    kind = rng.randrange(26)
    if kind < 2:
        return values.raw(rng, data, other)
    file = File(data)
    if kind < 7:
        return _tree(rng, file.footer, "footer", [len(data), file.start], rng.choice([1, 1, 1, 2, 3])), file.write()
    if kind < 9:
        return _schema(rng, file)
    if kind < 13:
        return _page_headers(rng, file)
    if kind < 18:
        return _page_values(rng, file)
    if kind < 20:
        return _indexes(rng, file)
    if kind < 22:
        return _arrow_schema(rng, file)
    if kind == 22:
        return _bomb(rng, file)
    if kind > 23:
        return _hidden(rng, file)
    length = values.integer(rng, len(data) - file.start - 8, [len(data)])
    return f"footer length {length}", file.write(length)


def _tree(rng, tree, name, hints, count):
    """Changes values of a tree of thrift."""
    what = []
    for _ in range(count):
        # Lists and structs are few; numbers and texts are most.
        path, value = rng.choice(list(thrift.walk(tree)))
        what.append(f"{name}{path}: {thrift.change(rng, value, hints)}")
    return "; ".join(what)


def _schema(rng, file):
    """Elements of the schema: types, lengths, precisions, counts of children, repetition."""
    elements = file.footer.field(SCHEMA).value
    kind = rng.randrange(6)
    if kind == 0:
        levels = values.size(rng, [10, 64, 200, 5000], [100_000])
        group = Value(STRUCT, [(3, Value(I32, rng.choice([0, 1, 2]))), (4, Value(BINARY, b"g")), (5, Value(I32, 1))])
        elements[1:1] = [group] * levels
        return f"schema {levels} deep", file.write()
    if kind == 1:
        count = values.size(rng, [100, 1_000], [10_000, 300_000])
        elements += [rng.choice(elements[1:])] * count
        if rng.random() < 0.7:
            elements[0].field(5).value += count
        return f"{count} more schema elements", file.write()
    what = []
    for _ in range(rng.choice([1, 1, 2])):
        element = rng.choice(elements)
        number = rng.choice([1, 2, 3, 5, 6, 7, 8])
        small = [-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 18, 19, 20, 21, 22, 38, 39, 40, 76, 77]
        new = rng.choice(small) if number in (1, 3, 6) or rng.random() < 0.4 else values.integer(rng, 1)
        element.set(number, Value(I32, values.wrapped(new, 32)))
        what.append(f"schema element {elements.index(element)} field {number}: {new}")
    if rng.random() < 0.3:
        # A logical type, as a union with one field.
        element = rng.choice(elements)
        logical = rng.choice([
            (5, Value(STRUCT, [(1, Value(I32, values.integer(rng, 3))), (2, Value(I32, values.integer(rng, 9)))])),
            (10, Value(STRUCT, [(1, Value(thrift.BYTE, rng.choice([8, 16, 32, 64, 0, 7, 255]))), (2, Value(1, 1))])),
            (rng.randrange(1, 20), Value(STRUCT, [])),
        ])
        element.set(10, Value(STRUCT, [logical]))
        what.append(f"schema element {elements.index(element)} has logical type {logical[0]}")
    return "; ".join(what), file.write()


def _hidden(rng, file):
    """A schema so deep that a stack overflows, or a page that becomes very large, which only some readers see."""
    if rng.random() < 0.5:
        return _hidden_page(rng, file)
    schema = file.footer.field(SCHEMA)
    levels = values.size(rng, [200, 5000], [100_000])
    group = Value(STRUCT, [(3, Value(I32, 0)), (4, Value(BINARY, b"g")), (5, Value(I32, 1))])
    schema.value[1:1] = [group] * levels
    what = thrift.hide(rng, group, 5) if rng.random() < 0.5 else thrift.hide(rng, file.footer, SCHEMA)
    return f"schema {levels} deep; {what}", file.write()


def _hidden_page(rng, file):
    chunk = rng.choice(file.chunks())
    found = pages(file, chunk)
    page = rng.choice(found)
    page.header.field(2).value = rng.choice([(1 << 31) - 1, 1 << 30])
    what = thrift.hide(rng, page.header, rng.choice([2, 3]))
    index = chunk.field(OFFSET_INDEX)
    if index is not None and rng.random() < 0.3:
        # The page stays where no column chunk is; only the index of pages knows the place.
        return f"{what}; {_page_outside(chunk, file, page)}", file.write()
    put_pages(file, chunk, found)
    return f"a large page; {what}", file.write()


def _page_outside(chunk, file, page):
    tree, _ = thrift.parse(file.body, chunk.field(OFFSET_INDEX).value)
    location = tree.field(1).value[0]
    data = thrift.write(page.header) + page.data
    location.field(1).value, location.field(2).value = len(file.body), len(data)
    file.body += data
    new = thrift.write(tree)
    chunk.field(OFFSET_INDEX).value, chunk.field(OFFSET_INDEX_LENGTH).value = len(file.body), len(new)
    file.body += new
    return "a large page outside of the column chunks"


def _page_headers(rng, file):
    chunk = rng.choice(file.chunks())
    found = pages(file, chunk)
    hints = [len(file.body), chunk.field(META_DATA).field(VALUES).value]
    page = rng.choice(found)
    what = _tree(rng, page.header, "page header", hints, rng.choice([1, 1, 2]))
    if rng.random() < 0.2:
        page.data = values.raw(rng, page.data, page.data)[1]
        what += "; page bytes changed"
    if rng.random() < 0.2:
        count = values.integer(rng, hints[1])
        chunk.field(META_DATA).field(VALUES).value = count
        what += f"; values of the chunk {count}"
    put_pages(file, chunk, found)
    return what, file.write()


def _unpacked(page, codec):
    """Uncompressed bytes of a page, without the levels of a page of version 2, which never are; and these levels."""
    v2 = page.header.field(8)
    levels = v2.field(5).value + v2.field(6).value if v2 is not None else 0
    rest = page.data[levels:]
    size = page.header.field(2).value - levels
    is_plain = v2 is not None and v2.field(7) is not None and v2.field(7).value == thrift.FALSE
    if codec == 0 or is_plain or not rest:
        return page.data[:levels], rest, False
    if codec == 2:
        return page.data[:levels], zlib.decompress(rest, 47), True
    return page.data[:levels], pa.Codec(CODECS[codec]).decompress(rest, size, asbytes=True), True


def _packed(data, codec):
    if codec == 2:
        packer = zlib.compressobj(6, zlib.DEFLATED, 31)
        return packer.compress(data) + packer.flush()
    return pa.Codec(CODECS[codec]).compress(data, asbytes=True)


def _page_values(rng, file):
    """Bytes of a page before compression: levels, indices, lengths, headers of encodings."""
    chunk = rng.choice(file.chunks())
    codec = chunk.field(META_DATA).field(CODEC).value
    found = pages(file, chunk)
    page = rng.choice(found)
    if codec not in CODECS and codec != 0:
        page.data = values.raw(rng, page.data, page.data)[1]
        put_pages(file, chunk, found)
        return "bytes of a page changed", file.write()
    levels, data, is_packed = _unpacked(page, codec)
    before = len(data)
    what = "a page"
    if levels and rng.random() < 0.4:
        levels = values.flip(rng, levels) if rng.random() < 0.5 else values.overwrite(rng, levels)[:len(levels)]
        what = "levels of a page"
    else:
        # Headers of encodings are at the start.
        head = data[:rng.choice([1, 4, 5, 8, 16, 32])] if rng.random() < 0.6 else data
        kind = rng.randrange(5)
        if kind == 0:
            changed = values.flip(rng, head)
        elif kind < 3:
            changed = values.overwrite(rng, head, [len(data)])
        elif kind == 3:
            at = rng.randrange(len(head) + 1)
            changed = head[:at] + thrift.varint(values.integer(rng, 1)) + head[at + rng.choice([0, 1, 2]):]
        else:
            changed = values.raw(rng, head, data)[1]
        data = changed + data[len(head):]
    if rng.random() < 0.7:
        page.header.field(2).value = len(levels) + len(data)
    page.data = levels + (_packed(data, codec) if is_packed else data)
    page.header.field(3).value = len(page.data)
    put_pages(file, chunk, found)
    return f"{what} changed, {before} -> {len(data)} bytes before compression", file.write()


def _indexes(rng, file):
    """Column indexes, offset indexes, Bloom filters, and the statistics that they go with."""
    chunks = [chunk for chunk in file.chunks() if chunk.field(OFFSET_INDEX) or chunk.field(META_DATA).field(BLOOM)]
    if not chunks:
        return _tree(rng, file.footer, "footer", [len(file.body)], 2), file.write()
    chunk = rng.choice(chunks)
    options = [(chunk, OFFSET_INDEX, OFFSET_INDEX_LENGTH), (chunk, COLUMN_INDEX, COLUMN_INDEX_LENGTH),
               (chunk.field(META_DATA), BLOOM, BLOOM_LENGTH)]
    owner, place, length = rng.choice([option for option in options if option[0].field(option[1])])
    at = owner.field(place).value
    tree, end = thrift.parse(file.body, at)
    what = _tree(rng, tree, "index" if place != BLOOM else "Bloom filter", [len(file.body)], rng.choice([1, 1, 2]))
    new = thrift.write(tree)
    if place == BLOOM:
        new += file.body[end:end + tree.field(1).value] if isinstance(tree.field(1), Value) else b""
    owner.field(place).value = len(file.body)
    if owner.field(length) is not None:
        owner.field(length).value = len(new) if rng.random() < 0.8 else values.integer(rng, len(new))
    file.body += new
    return what, file.write()


def _arrow_schema(rng, file):
    """The schema of Arrow that writers leave in the metadata."""
    pairs = file.footer.field(KEY_VALUES)
    pair = next((p for p in pairs.value if p.field(1).value == b"ARROW:schema"), None) if pairs else None
    if pair is None:
        return _schema(rng, file)
    data = bytearray(base64.b64decode(pair.field(2).value))
    found = flatbuffers.places(data, 8, flatbuffers.MESSAGE)
    scalars = [p for p in found if not any(word in p.path for word in ("slot", "vtable", "offset", "size", "root"))]
    what = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        place = rng.choice(scalars if rng.random() < 0.8 else found)
        before = place.get(data)
        is_small = place.form in "bBh"
        new = rng.randrange(28) if is_small else values.integer(rng, before, [len(data)])
        place.put(data, new)
        what.append(f"Arrow schema {place.path}: {before} -> {place.get(data)}")
    if rng.random() < 0.1:
        data = bytearray(values.raw(rng, bytes(data), bytes(data))[1])
    pair.field(2).value = base64.b64encode(data)
    return "; ".join(what), file.write()


def _bomb(rng, file):
    """A page that becomes a thousand times larger, or says so."""
    chunk = rng.choice(file.chunks())
    meta = chunk.field(META_DATA)
    found = pages(file, chunk)
    page = rng.choice(found)
    codec = rng.choice([2, 4, 6, 6, 1, 7])
    size = values.size(rng, [1 << 20, 4 << 20], [64 << 20, 128 << 20])
    declared = rng.choice([size, size, (1 << 31) - 1, 1 << 30, 100])
    meta.field(CODEC).value = codec
    for each in found:
        v2 = each.header.field(8)
        if each is page or v2 is not None:
            continue
        each.data = _packed(each.data, codec)
        each.header.field(3).value = len(each.data)
    page.data = _packed(bytes([rng.choice([0, 1, 255])]) * size, codec)
    page.header.field(2).value = declared
    page.header.field(3).value = len(page.data)
    for number in (5, 7, 8):
        if page.header.field(number) is not None and rng.random() < 0.6:
            count = rng.choice([1 << 20, size // 4, size // 8, (1 << 31) - 1])
            page.header.field(number).field(1).value = count
            if rng.random() < 0.5:
                meta.field(VALUES).value = count
                file.footer.field(ROWS).value = count
                for group in file.footer.field(ROW_GROUPS).value:
                    group.field(3).value = count
    put_pages(file, chunk, found)
    return f"a page of {len(page.data)} bytes becomes {size}, says {declared}", file.write()
