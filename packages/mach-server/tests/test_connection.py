import json
import socket
import struct

import pytest

ENDINGS = ("close", "half-close", "reset")
PAYLOADS = {
    "nothing": b"",
    "half a line": b"POST /v1/ch",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    "a bad chunk": b"POST /v1/chat/completions HTTP/1.1\r\nHost: [::1]\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "long headers": b"GET /v1/models HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    "HTTP/2 and noise": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"noise" * 10,
    "a WebSocket": b"GET /v1/stats HTTP/1.1\r\nHost: [::1]\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
}


def chat(server) -> bytes:
    body = json.dumps(server.body(stream=True)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def send_and_leave(address: tuple[str, int], payload: bytes, ending: str) -> None:
    with socket.create_connection(address, timeout=30) as client:
        try:
            client.sendall(payload)
            if ending == "half-close":
                client.shutdown(socket.SHUT_WR)
        except OSError:  # the server has refused it already
            return
        if ending == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_client_that_leaves_takes_its_connection_along(
    server, eventually, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.client.get("/models")  # kept alive, and the only one that stays
    for payload in (*PAYLOADS.values(), chat(server)[:-3], chat(server), chat(server) * 2):
        for _ in range(3):
            send_and_leave(server.address, payload, ending)
    eventually(lambda: server.connections == 1)
    eventually(lambda: server.stats()["requests"]["open"] == 0)
    assert not [record for record in caplog.records if record.exc_info]
    assert server.text(max_tokens=1) is not None
