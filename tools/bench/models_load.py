"""Gets `/v1/models` again and again until its standard input is closed, then prints the requests per second.

    python tools/bench/models_load.py URL [REQUESTS_PER_SECOND]

For bench_server.py. Four kept-alive connections with one request each on its way; one that the server closes
(Hypercorn does after 1,000 requests) is opened anew. With a rate it sleeps between its rounds; without one it
asks as fast as it is answered. Its first line says that it has begun.
"""

from __future__ import annotations

import select
import socket
import sys
import time

from stream_client import open_connection

CONNECTIONS = 4
REQUEST = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def main(url: str, rate: float | None) -> None:
    """Load `url` until stdin ends."""
    connections = [open_connection(url) for _ in range(CONNECTIONS)]
    print("begun", flush=True)
    answered, began = 0, time.monotonic()
    while not select.select([sys.stdin], [], [], 0)[0]:
        ahead = 0.0 if rate is None else answered / rate - (time.monotonic() - began)
        if ahead > 0:
            time.sleep(ahead)
        for connection in connections:
            connection.sendall(REQUEST)
        for index, connection in enumerate(connections):
            if _answered(connection):
                answered += 1
            else:
                connection.close()
                connections[index] = open_connection(url)
    print(answered / (time.monotonic() - began))
    for connection in connections:
        connection.close()


def _answered(connection: socket.socket) -> bool:
    """Read one answer; False when the connection was closed instead."""
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            piece = connection.recv(1 << 16)
        except ConnectionResetError:
            return False
        if not piece:
            return False
        data += piece
    head, body = data.split(b"\r\n\r\n", 1)
    if b" 200" not in head[:16]:
        raise RuntimeError(f"{head[:200]!r}")
    lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    length = int(lengths[0].split(b":")[1])
    while len(body) < length:
        body += connection.recv(1 << 16)
    return True


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else None)
