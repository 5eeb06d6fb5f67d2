"""A WebSocket client (RFC 6455) on the standard library: enough to follow a ComfyUI server, and strict about it."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
import time
from dataclasses import dataclass

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_LIMIT = 256 * 1024 * 1024  # no ComfyUI message is anywhere near: larger means a broken stream

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


class WebSocketError(ConnectionError):
    """The peer broke the protocol, refused the upgrade or closed the connection."""


@dataclass(frozen=True)
class Frame:
    """One frame: `opcode`, unmasked `payload`, and whether it ends its message."""

    opcode: int
    payload: bytes
    final: bool = True


def apply_mask(payload: bytes, key: bytes) -> bytes:
    """XOR `payload` with the 4-byte `key` repeated (its own inverse)."""
    repeated = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(payload), "big")


def encode_frame(frame: Frame, key: bytes | None) -> bytes:
    """Serialise a frame. A client must mask (`key`: 4 random bytes); a server must not (None)."""
    length, masked = len(frame.payload), 0x80 if key is not None else 0
    head = bytes([(0x80 if frame.final else 0) | frame.opcode])
    if length < 126:
        head += bytes([masked | length])
    elif length < 1 << 16:
        head += bytes([masked | 126]) + struct.pack("!H", length)
    else:
        head += bytes([masked | 127]) + struct.pack("!Q", length)
    return head + (frame.payload if key is None else key + apply_mask(frame.payload, key))


def decode_frame(data: bytes | bytearray) -> tuple[Frame, int] | None:
    """Read one frame from the front of `data`.

    Returns:
        The frame and the number of bytes it took, or None when more bytes are needed.

    Raises:
        WebSocketError: reserved bits set, an oversized frame, or a fragmented or long control frame.
    """
    if len(data) < 2:
        return None
    final, opcode, masked, length = bool(data[0] & 0x80), data[0] & 0x0F, bool(data[1] & 0x80), data[1] & 0x7F
    if data[0] & 0x70:
        raise WebSocketError("the server set reserved bits, though no extension was agreed")
    if opcode & 0x8 and (not final or length > 125):
        raise WebSocketError("the server sent a control frame that is fragmented or too long")
    start = 2 + {126: 2, 127: 8}.get(length, 0)
    if len(data) < start:
        return None
    if length > 125:
        length = int.from_bytes(data[2:start], "big")
    if length > _LIMIT:
        raise WebSocketError(f"the server announced a frame of {length} bytes (limit {_LIMIT})")
    key_end = start + (4 if masked else 0)
    if len(data) < key_end + length:
        return None
    payload = bytes(data[key_end : key_end + length])
    if masked:
        payload = apply_mask(payload, bytes(data[start:key_end]))
    return Frame(opcode, payload, final), key_end + length


class WebSocket:
    """An open connection. `receive` answers pings and joins fragments; use as a context manager."""

    def __init__(self, sock: socket.socket, received: bytes = b"") -> None:
        self._sock = sock
        self._buffer = bytearray(received)
        self._parts: list[bytes] = []
        self._kind = TEXT

    @classmethod
    def connect(cls, host: str, port: int, path: str, *, timeout: float = 10.0) -> WebSocket:
        """Open `ws://host:port/path`.

        Raises:
            WebSocketError: the server did not upgrade the connection.
            OSError: nothing listens there.
        """
        sock = socket.create_connection((host, port), timeout=timeout)
        try:
            return cls(sock, _handshake(sock, f"{host}:{port}", path))
        except BaseException:
            sock.close()
            raise

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def send(self, message: str | bytes) -> None:
        """Send one unfragmented message: text for str, binary for bytes."""
        payload = message.encode() if isinstance(message, str) else message
        self._send(Frame(TEXT if isinstance(message, str) else BINARY, payload))

    def receive(self, timeout: float) -> str | bytes:
        """The next whole message.

        Args:
            timeout: seconds. A frame that has half arrived when they pass is kept for the next call.

        Raises:
            TimeoutError: no whole message came in time.
            WebSocketError: the connection is closed or broken.
        """
        deadline = time.monotonic() + timeout
        while True:
            decoded = decode_frame(self._buffer)
            if decoded is None:
                self._fill(deadline)
                continue
            frame, used = decoded
            del self._buffer[:used]
            message = self._take(frame)
            if message is not None:
                return message

    def close(self) -> None:
        """Say goodbye and close; closing twice is fine."""
        try:
            self._send(Frame(CLOSE, struct.pack("!H", 1000)))
        except OSError:
            pass  # the peer is gone already, which is what we want
        self._sock.close()

    def _send(self, frame: Frame) -> None:
        self._sock.settimeout(10.0)
        self._sock.sendall(encode_frame(frame, os.urandom(4)))

    def _fill(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no message from the server in time")
        self._sock.settimeout(left)
        data = self._sock.recv(65536)
        if not data:
            raise WebSocketError("the server closed the connection without saying why")
        self._buffer += data

    def _take(self, frame: Frame) -> str | bytes | None:
        """Act on one frame; the message when it completes one."""
        if frame.opcode == PING:
            self._send(Frame(PONG, frame.payload))
        elif frame.opcode == CLOSE:
            code = int.from_bytes(frame.payload[:2], "big") if len(frame.payload) >= 2 else 1005
            raise WebSocketError(f"the server closed the connection (code {code})")
        elif frame.opcode in (TEXT, BINARY, CONTINUATION):
            return self._join(frame)
        elif frame.opcode != PONG:
            raise WebSocketError(f"the server sent an unknown frame type {frame.opcode:#x}")
        return None

    def _join(self, frame: Frame) -> str | bytes | None:
        if (frame.opcode == CONTINUATION) != bool(self._parts):
            raise WebSocketError("the server mixed up the fragments of its messages")
        if frame.opcode != CONTINUATION:
            self._kind = frame.opcode
        self._parts.append(frame.payload)
        if not frame.final:
            return None
        whole, self._parts = b"".join(self._parts), []
        return whole.decode() if self._kind == TEXT else whole


def accept_token(key: str) -> str:
    """The `Sec-WebSocket-Accept` value that answers `key` (RFC 6455, section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()


def _handshake(sock: socket.socket, host: str, path: str) -> bytes:
    """Upgrade the connection; returns bytes that came after the server's headers."""
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall(
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    received = bytearray()
    while b"\r\n\r\n" not in received:
        data = sock.recv(4096)
        if not data or len(received) > 65536:
            raise WebSocketError(f"no WebSocket answer from {host}{path}")
        received += data
    head, _, rest = bytes(received).partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if status.split(" ")[1:2] != ["101"] or headers.get("sec-websocket-accept") != accept_token(key):
        raise WebSocketError(f"{host}{path} did not switch to WebSocket: {status}")
    return rest
