"""The websocket client speaks RFC 6455: its own example bytes, and a peer that does everything a peer may do."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from scripts._lib.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    WebSocket,
    WebSocketError,
    accept_token,
    decode_frame,
    encode_frame,
)

# RFC 6455, section 5.7
EXAMPLES = [
    ("unmasked text", "810548656c6c6f", Frame(TEXT, b"Hello")),
    ("masked text", "818537fa213d7f9f4d5158", Frame(TEXT, b"Hello")),
    ("first fragment", "010348656c", Frame(TEXT, b"Hel", final=False)),
    ("last fragment", "80026c6f", Frame(CONTINUATION, b"lo")),
    ("ping", "890548656c6c6f", Frame(PING, b"Hello")),
    ("masked pong", "8a8537fa213d7f9f4d5158", Frame(PONG, b"Hello")),
]


@pytest.mark.parametrize(("name", "wire", "frame"), EXAMPLES, ids=[e[0] for e in EXAMPLES])
def test_the_standard_s_own_examples(name, wire, frame):
    data = bytes.fromhex(wire)
    assert decode_frame(data + b"rest") == (frame, len(data))
    key = data[2:6] if data[1] & 0x80 else None
    assert encode_frame(frame, key) == data


@pytest.mark.parametrize(("length", "head"), [(125, "827d"), (126, "827e007e"), (256, "827e0100"), (65535, "827effff")])
def test_lengths_use_the_shortest_form(length, head):
    wire = encode_frame(Frame(BINARY, bytes(length)), None)
    assert wire[: len(head) // 2].hex() == head
    assert decode_frame(wire) == (Frame(BINARY, bytes(length)), len(wire))


def test_a_64_kib_frame_has_an_eight_byte_length():
    wire = encode_frame(Frame(BINARY, bytes(65536)), None)
    assert wire[:10].hex() == "827f0000000000010000"
    assert decode_frame(wire)[1] == len(wire)


@pytest.mark.parametrize("cut", range(11))
def test_a_frame_cut_anywhere_waits_for_more(cut):
    assert decode_frame(bytes.fromhex("818537fa213d7f9f4d5158")[:cut]) is None


@pytest.mark.parametrize(
    "wire",
    ["c10548656c6c6f", "090548656c6c6f", "897e0100", "827fffffffffffffffff"],
    ids=["reserved bit", "fragmented ping", "long ping", "absurd length"],
)
def test_broken_frames_are_refused(wire):
    with pytest.raises(WebSocketError):
        decode_frame(bytes.fromhex(wire))


def test_the_handshake_token_of_the_standard():
    assert accept_token("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.fixture
def pair():
    ours, peer = socket.socketpair()
    peer.settimeout(5)
    with ours, peer:
        yield WebSocket(ours), peer


def server_frame(opcode: int, payload: bytes, final: bool = True) -> bytes:
    return encode_frame(Frame(opcode, payload, final), None)


def test_fragments_are_joined_around_a_ping_which_is_answered(pair):
    client, peer = pair
    peer.sendall(server_frame(TEXT, b"gr", False) + server_frame(PING, b"?") + server_frame(0, "ün".encode()))
    assert client.receive(1) == "grün"
    answer, _ = decode_frame(peer.recv(100))
    assert answer == Frame(PONG, b"?")


def test_what_the_client_sends_is_masked(pair):
    client, peer = pair
    client.send("hello")
    wire = peer.recv(100)
    assert wire[1] & 0x80 and b"hello" not in wire
    assert decode_frame(wire)[0] == Frame(TEXT, b"hello")


def test_half_a_frame_survives_a_timeout(pair):
    client, peer = pair
    wire = server_frame(BINARY, b"12345")
    peer.sendall(wire[:4])
    with pytest.raises(TimeoutError):
        client.receive(0.05)
    peer.sendall(wire[4:])
    assert client.receive(1) == b"12345"


@pytest.mark.parametrize("wire", [server_frame(CLOSE, struct.pack("!H", 1001)), server_frame(0, b"x"), b""])
def test_a_closed_or_confused_peer_is_an_error(pair, wire):
    client, peer = pair
    peer.sendall(wire)
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(WebSocketError):
        client.receive(1)


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 404 Not Found\r\n\r\n", b"HTTP/1.1 101 X\r\nSec-WebSocket-Accept: wrong\r\n\r\n", b""],
    ids=["refused", "wrong token", "nothing"],
)
def test_a_server_that_does_not_upgrade(answer):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(WebSocketError):
            WebSocket.connect("127.0.0.1", listener.getsockname()[1], "/ws", timeout=5)
        thread.join()
