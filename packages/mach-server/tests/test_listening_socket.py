import os
import socket
import stat
from pathlib import Path

import pytest

from mach_server.errors import BindError
from mach_server.limits import Limits
from mach_server.listening_socket import tcp_socket, unix_socket


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Short enough for a socket, however deep pytest's directory is."""
    monkeypatch.chdir(tmp_path)
    return "mach.sock"


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


@pytest.mark.parametrize(("host", "loopback"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_it_is_known_who_reaches_an_address(host: str, loopback: bool) -> None:
    listening = tcp_socket(host, 0, Limits())
    assert (listening.loopback, listening.is_unix) == (loopback, False)
    assert listening.url == f"http://{host}:{listening.socket.getsockname()[1]}"
    listening.close()


def test_a_unix_socket_is_this_user_s_alone_and_is_removed_at_the_end(path: str) -> None:
    listening = unix_socket(path, Limits())
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert (listening.loopback, listening.is_unix) == (True, True)
    assert listening.url == f"unix:{os.path.abspath(path)}"
    listening.close()
    assert not os.path.lexists(path)
    listening.close()


def test_what_a_dead_server_left_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    unix_socket(path, Limits()).close()
    assert not os.path.lexists(path)


@pytest.mark.parametrize("backlog", [0, 5])
def test_a_living_server_s_socket_is_left_alone(path: str, backlog: int) -> None:
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(path)
        alive.listen(backlog)
        for _ in range(3):
            with pytest.raises(BindError, match="another server answers there"):
                unix_socket(path, Limits())
        assert os.path.lexists(path)


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_never_removed(path: str, kind: str) -> None:
    if kind == "file":
        Path(path).write_text("precious")
    elif kind == "directory":
        Path(path).mkdir()
    else:
        Path(path).symlink_to("elsewhere")
    with pytest.raises(BindError, match="no socket; choose another --uds"):
        unix_socket(path, Limits())
    assert os.path.lexists(path)


@pytest.mark.parametrize("bad", ["no/such/directory/s", "x" * 200])
def test_a_path_that_cannot_be_is_refused(path: str, bad: str) -> None:
    with pytest.raises(BindError, match="cannot listen on"):
        unix_socket(bad, Limits())


def test_a_successor_s_socket_is_not_removed(path: str) -> None:
    first = unix_socket(path, Limits())
    os.unlink(path)
    second = unix_socket(path, Limits())
    first.close()
    assert os.path.lexists(path)
    second.close()
    assert not os.path.lexists(path)
