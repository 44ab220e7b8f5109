"""Mutations of Arrow IPC: of messages, of the footer, of frames, and of the values in a batch."""

import struct

from . import flatbuffers, values

MAGIC = b"ARROW1"


class Message:
    """A message of a file: the places of its frame, metadata and body."""

    def __init__(self, data, at):
        self.at = at
        self.length = struct.unpack_from("<i", data, at + 4)[0]
        self.metadata = at + 8
        self.body = self.metadata + self.length
        self.places = flatbuffers.places(data, self.metadata, flatbuffers.MESSAGE) if self.length > 0 else []
        lengths = [place.get(data) for place in self.places if place.path == "/bodyLength"]
        self.end = self.body + (lengths[0] if lengths else 0)

    def buffers(self, data):
        """Places and lengths of the buffers of a batch in the file."""
        starts = [p.get(data) for p in self.places if p.path.endswith(".0") and "/buffers[" in p.path]
        sizes = [p.get(data) for p in self.places if p.path.endswith(".1") and "/buffers[" in p.path]
        return [(self.body + start, size) for start, size in zip(starts, sizes) if size > 0]


def messages(data):
    """The messages of a file or a stream that no mutation has touched."""
    at = 8 if data.startswith(MAGIC) else 0
    found = []
    while at + 8 <= len(data) and data[at:at + 4] == b"\xff\xff\xff\xff":
        message = Message(data, at)
        found.append(message)
        if message.length == 0:
            break
        at = message.end
    return found


def footer(data):
    """Place and length of the footer of a file."""
    length = struct.unpack_from("<i", data, len(data) - 10)[0]
    return len(data) - 10 - length, length


def mutate(rng, data, other):
    """A mutated file, and what was done to it."""
    kind = rng.randrange(20)
    if kind < 3:
        return values.raw(rng, data, other)
    if kind < 9:
        return _metadata(rng, data)
    if kind < 15:
        return _content(rng, data)
    if kind < 17:
        return _frames(rng, data)
    if kind < 19:
        return _whole_messages(rng, data)
    return _both(rng, data)


def _metadata(rng, data):
    """Integers of the flat buffers."""
    out, what = bytearray(data), []
    found = [place for message in messages(data) for place in message.places]
    if data.startswith(MAGIC):
        start, _ = footer(data)
        footers = flatbuffers.places(data, start, flatbuffers.FOOTER)
        found = found if rng.random() < 0.6 else footers
    # Otherwise most mutations would only be found by the verifier.
    scalars = [p for p in found if not any(word in p.path for word in ("slot", "vtable", "offset", "size", "root"))]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        place = rng.choice(scalars if rng.random() < 0.8 else found)
        what.append(_change(rng, out, place, data))
    return "; ".join(what), bytes(out)


def _change(rng, out, place, data):
    before = place.get(out)
    if place.path.endswith("type_type"):
        new = rng.randrange(28)
    elif place.form in "bBh":
        new = rng.choice([0, 1, 2, 3, 4, 5, 7, -1, 255, before + 1, before - 1])
    else:
        new = values.integer(rng, before, [len(data)])
    place.put(out, new)
    return f"{place.path}: {before} -> {place.get(out)}"


def _content(rng, data):
    """Values of a buffer: offsets, sizes, views, indices, type ids, run ends, or the length of a compressed buffer."""
    chosen = [message for message in messages(data) if message.buffers(data)]
    if not chosen:
        return values.raw(rng, data, data)
    what = []
    for _ in range(rng.choice([1, 1, 2, 4])):
        message = rng.choice(chosen)
        at, size = rng.choice(message.buffers(data))
        old = data[at:at + size]
        kind = rng.randrange(6)
        if kind < 2:
            new = values.overwrite(rng, old, [size])[:size]
        elif kind == 2:
            width = rng.choice([1, 2, 4, 8, 16])
            values_of = [old[i:i + width] for i in range(0, size - width + 1, width)]
            rng.shuffle(values_of)
            new = b"".join(values_of)
        elif kind == 3:
            new = values.flip(rng, old)
        elif kind == 4:
            new = bytes([rng.choice([0, 0x7f, 0x80, 0xff])]) * size
        else:
            new = rng.randbytes(size)
        data = data[:at] + new.ljust(size, b"\0")[:size] + data[at + size:]
        what.append(f"buffer at {at} of {size} bytes")
    return "values changed: " + ", ".join(what), data


def _frames(rng, data):
    """The length in front of a message, its marker, or the length of the footer."""
    out = bytearray(data)
    if data.startswith(MAGIC) and rng.random() < 0.3:
        at, name = len(data) - 10, "length of the footer"
    else:
        message = rng.choice(messages(data))
        at, name = message.at + rng.choice([0, 4, 4, 4]), "frame"
    old = struct.unpack_from("<i", out, at)[0]
    new = values.integer(rng, old, [len(data), len(data) - at])
    struct.pack_into("<I", out, at, new & 0xFFFFFFFF)
    return f"{name} at {at}: {old} -> {values.wrapped(new, 32)}", bytes(out)


def _whole_messages(rng, data):
    """Messages doubled, removed or exchanged. In a file the footer still names the old places."""
    found = messages(data)
    pieces = [data[message.at:max(message.end, message.body)] for message in found]
    head, tail = data[:found[0].at], data[max(found[-1].end, found[-1].body):]
    kind, index = rng.randrange(4), rng.randrange(len(pieces))
    if kind == 0:
        times = rng.choice([1, 2, 200])
        pieces[index:index] = [pieces[index]] * times
        what = f"message {index} {times} times more"
    elif kind == 1:
        del pieces[index]
        what = f"message {index} removed"
    elif kind == 2:
        rng.shuffle(pieces)
        what = "messages shuffled"
    else:
        other = rng.randrange(len(pieces))
        pieces[index] = pieces[other]
        what = f"message {index} is message {other}"
    return what, head + b"".join(pieces) + tail


def _both(rng, data):
    # In this order, since the places in mutated metadata are not the real ones.
    first, data = _content(rng, data)
    second, data = _metadata(rng, data)
    return f"{first}; {second}", data
