"""Connections that are no clients: garbage, silence, half frames, floods. docs/PROTOCOL.md has the bytes."""

from __future__ import annotations

import random
import socket
import struct
import time
import zlib

from .clients import Fault

PREFACE = bytes.fromhex("5448414c4c55530a010001004a9194a00100000000000000")
#: A Hello of "c", which offers a fabric that the server has not.
HELLO = bytes.fromhex("000163010373696d02010280804000")
#: The server ends a connection without a hello after 10 s. The rest is for a busy machine.
PATIENCE = 90


def frame(message: bytes, payload: bytes = b"") -> bytes:
    """A frame with right checksums."""
    head = struct.pack("<III", len(message), len(payload), zlib.crc32(message + payload))
    return head + struct.pack("<I", zlib.crc32(head)) + message + payload


def varint(number: int) -> bytes:
    """A number as LEB128."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def open_stream(stream: int, sql: str, credit: int) -> bytes:
    """A frame that requests a query, inline."""
    text = sql.encode()
    request = b"\x02" + varint(stream) + varint(1) + varint(len(text)) + text
    return frame(request + bytes(5) + varint(credit) + bytes(2))


class Strangers:
    """Connects, sends what no client would send, and leaves in different ways."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address

    def visit(self, rng: random.Random) -> str:
        """One visit. Returns its kind."""
        kinds = [self.garbage, self.silence, self.half_preface, self.half_frame, self.huge_frame, self.wrong_messages,
                 self.wrong_checksum, self.pings, self.no_credit, self.no_reader, self.crowd]
        kind = rng.choice(kinds)
        connection = self._connect()
        with connection:
            try:
                kind(rng, connection)
            except (ConnectionError, BrokenPipeError):
                # The server has ended the connection, which is its right.
                pass
            if rng.random() < 0.3:
                # Leaves by a reset.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return kind.__name__

    def _connect(self) -> socket.socket:
        try:
            connection = socket.create_connection(self.address, timeout=PATIENCE)
        except OSError as error:
            raise Fault(f"a stranger cannot connect: {error}") from error
        return connection

    def _until_closed(self, connection: socket.socket, what: str) -> None:
        """The server has to end the connection."""
        until = time.monotonic() + PATIENCE
        try:
            while connection.recv(1 << 16):
                if time.monotonic() > until:
                    raise Fault(f"{what}: the connection is open after {PATIENCE} s")
        except TimeoutError as late:
            raise Fault(f"{what}: the connection is open after {PATIENCE} s") from late

    def _greet(self, connection: socket.socket) -> None:
        connection.sendall(PREFACE + frame(HELLO))
        connection.recv(1 << 16)

    def garbage(self, rng: random.Random, connection: socket.socket) -> None:
        """Bytes of no meaning, or of another protocol."""
        data = rng.choice([rng.randbytes(rng.randint(24, 100_000)), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"])
        connection.sendall(data)
        self._until_closed(connection, "garbage")

    def silence(self, rng: random.Random, connection: socket.socket) -> None:
        """Nothing at all, until the server has enough of it."""
        if rng.random() < 0.5:
            self._until_closed(connection, "silence")

    def half_preface(self, rng: random.Random, connection: socket.socket) -> None:
        """A part of the preface, perhaps with a flipped bit."""
        data = bytearray(PREFACE[: rng.randint(1, 24)])
        data[rng.randrange(len(data))] ^= rng.choice([0, 1 << rng.randrange(8)])
        connection.sendall(data)
        self._until_closed(connection, "half a preface")

    def half_frame(self, rng: random.Random, connection: socket.socket) -> None:
        """A part of a Hello."""
        whole = frame(HELLO)
        connection.sendall(PREFACE + whole[: rng.randrange(len(whole))])
        self._until_closed(connection, "half a hello")

    def huge_frame(self, rng: random.Random, connection: socket.socket) -> None:
        """A header that announces more than the server accepts."""
        head = struct.pack("<III", rng.choice([300_000, 1 << 31, 0xFFFFFFFF]), rng.choice([0, 1 << 30]), 0)
        connection.sendall(PREFACE + head + struct.pack("<I", zlib.crc32(head)))
        self._until_closed(connection, "a huge frame")

    def wrong_messages(self, rng: random.Random, connection: socket.socket) -> None:
        """Random messages in right frames, after the greeting or before."""
        self._greet(connection) if rng.random() < 0.7 else connection.sendall(PREFACE)
        connection.sendall(b"".join(frame(rng.randbytes(rng.randint(0, 60))) for _ in range(20)))
        self._until_closed(connection, "wrong messages")

    def wrong_checksum(self, rng: random.Random, connection: socket.socket) -> None:
        """A flipped bit in a request."""
        self._greet(connection)
        data = bytearray(open_stream(1, "SELECT 1", 1 << 20))
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        connection.sendall(data)
        self._until_closed(connection, "a flipped bit")

    def pings(self, rng: random.Random, connection: socket.socket) -> None:
        """Pings whose answers nobody reads."""
        self._greet(connection)
        connection.settimeout(5)
        try:
            for _ in range(200):
                connection.sendall(frame(b"\x06" + varint(7)) * 500)
        except TimeoutError:
            pass

    def no_credit(self, rng: random.Random, connection: socket.socket) -> None:
        """Endless queries without credit, which the server must not compute ahead; then a sudden end."""
        self._greet(connection)
        for stream in range(1, rng.randint(2, 20)):
            connection.sendall(open_stream(stream, "SELECT value FROM generate_series(1, 1000000000000)", 0))
        time.sleep(rng.random() * 3)

    def no_reader(self, rng: random.Random, connection: socket.socket) -> None:
        """A query with much credit, whose result is not read."""
        self._greet(connection)
        connection.sendall(open_stream(1, "SELECT value FROM generate_series(1, 1000000000000)", 1 << 40))
        time.sleep(rng.random() * 5)

    def crowd(self, rng: random.Random, connection: socket.socket) -> None:
        """Many silent connections at a time."""
        others = [self._connect() for _ in range(rng.randint(10, 80))]
        time.sleep(rng.random() * 3)
        for other in others:
            other.close()
