import socket

import pytest

from mach_server.errors import BindError
from mach_server.limits import Limits
from mach_server.listening_socket import tcp_socket


def test_a_port_in_use_is_refused_with_a_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=f"127.0.0.1:{port}: .*--port"):
            tcp_socket("127.0.0.1", port, Limits())


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a..b"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(BindError, match="cannot listen on"):
        tcp_socket(host, 0, Limits())


def test_port_0_takes_a_free_port(server) -> None:
    assert int(server.url.rsplit(":", 1)[1]) > 0
    assert server.client.get("/models").status_code == 200
