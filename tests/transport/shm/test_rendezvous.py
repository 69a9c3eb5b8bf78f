"""Where client and server meet: names, folders, stale and foreign sockets, second servers."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from shm_actor import ChecksumPolicy, expected_actions, make_observation, policy_spec, shm_server
from shm_processes import actor, left_behind, of_server

from async_delta_inference.errors import ConfigError, PeerUnreachableError
from async_delta_inference.transport import Server, SessionSpec, TransportOptions, open_transport
from async_delta_inference.transport.shm.shared import rendezvous
from async_delta_inference.transport.shm.shared.layout import SizeLimits

SHORTLY = TransportOptions(connect_timeout_s=0.3)


@pytest.fixture
def server(shm_folder: Path) -> Iterator[Server]:
    server = shm_server("here", ChecksumPolicy(), limits=SizeLimits(max_segment_bytes=10_000_000))
    server.start()
    yield server
    server.stop()
    assert left_behind(shm_folder) == []


def connect(policy: SessionSpec | None = None) -> None:
    with open_transport("shm://here", TransportOptions(connect_timeout_s=5.0)) as transport:
        transport.connect(policy or policy_spec())
        observation = make_observation(2, (policy or policy_spec()).features)
        transport.send_observation(observation)
        chunk = transport.receive_actions(30.0)
        assert chunk is not None
        assert chunk.actions.tolist() == expected_actions(observation).tolist()


# Names and folders.


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "-x", "x" * 65, "a b", "ü"])
def test_name_is_refused(shm_folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no name"):
        rendezvous.socket_path(name)


def test_folder_that_others_may_enter_is_refused(shm_folder: Path) -> None:
    shm_folder.chmod(0o750)
    with pytest.raises(ConfigError, match="0700"):
        shm_server("here", ChecksumPolicy())
    shm_folder.chmod(0o700)


def test_folder_that_is_a_link_is_refused(shm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shm_folder / "real").mkdir(mode=0o700)
    (shm_folder / "link").symlink_to(shm_folder / "real")
    monkeypatch.setenv(rendezvous.FOLDER_VARIABLE, str(shm_folder / "link"))
    with pytest.raises(ConfigError, match="real folder"):
        shm_server("here", ChecksumPolicy())


def test_folder_that_cannot_be_made_is_refused(shm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shm_folder / "file").touch()
    monkeypatch.setenv(rendezvous.FOLDER_VARIABLE, str(shm_folder / "file" / "folder"))
    with pytest.raises(ConfigError, match=rendezvous.FOLDER_VARIABLE):
        shm_server("here", ChecksumPolicy())


def test_long_path_is_refused(shm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rendezvous.FOLDER_VARIABLE, str(shm_folder / ("x" * 100)))
    with pytest.raises(ConfigError, match="shorter"):
        shm_server("here", ChecksumPolicy())


def test_default_folder_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(rendezvous.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert rendezvous.rendezvous_folder() == tmp_path / "async-delta-inference"
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    # A session that ended, or a container's, leaves the name of a folder that is not there.
    for absent in (str(tmp_path / "run" / "user" / "1000"), "run", ""):
        monkeypatch.setenv("XDG_RUNTIME_DIR", absent)
        assert rendezvous.rendezvous_folder() == tmp_path / f"async-delta-inference-{os.geteuid()}"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    folder = rendezvous.rendezvous_folder()
    assert folder.parent == tmp_path
    assert str(os.geteuid()) in folder.name
    assert folder.stat().st_mode & 0o777 == 0o700


# The socket.


def test_stale_socket_is_taken_over(shm_folder: Path) -> None:
    with actor("serve", "here") as server:
        server.wait_for("ready")
        server.kill()
    assert len(left_behind(shm_folder)) == 2  # The socket and the bell.
    server = shm_server("here", ChecksumPolicy())
    server.start()
    connect()
    server.stop()
    assert left_behind(shm_folder) == []


def test_stale_sockets_of_other_names_are_removed_and_live_ones_stay(shm_folder: Path, server: Server) -> None:
    with actor("serve", "embedded-by-somebody-killed") as server:
        server.wait_for("ready")
        server.kill()
    other = shm_server("other", ChecksumPolicy())
    other.start()
    assert sorted(left_behind(shm_folder)) == sorted([*of_server("here"), *of_server("other")])
    connect()
    other.stop()


def test_socket_that_vanishes_while_it_is_looked_at(shm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another server stops, and removes its own, between this one's looks."""
    with actor("serve", "other") as server:
        server.wait_for("ready")
        server.kill()
    is_answered = rendezvous.is_answered

    def look_late(path: Path, kind: socket.SocketKind) -> bool:
        path.unlink()
        return is_answered(path, kind)

    server = shm_server("here", ChecksumPolicy())
    with monkeypatch.context() as patch:
        patch.setattr(rendezvous, "is_answered", look_late)
        server.start()
    connect()
    server.stop()


def test_folder_is_not_locked_by_a_process_that_was_forked_meanwhile(shm_folder: Path) -> None:
    with rendezvous._folder_lock(shm_folder):
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
    try:
        with rendezvous._folder_lock(shm_folder):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_second_server_is_refused(server: Server) -> None:
    second = shm_server("here", ChecksumPolicy())
    with pytest.raises(ConfigError, match="already listening"):
        second.start()
    second.stop()
    connect()


def test_stopped_server_is_alive(shm_folder: Path) -> None:
    """Its backlog may be full, it may answer nothing: its name is still its own."""
    with actor("serve", "here") as server:
        server.wait_for("ready")
        os.kill(server.process.pid, 19)
        sockets = []
        for _ in range(40):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.setblocking(False)
            sock.connect_ex(str(rendezvous.socket_path("here")))
            sockets.append(sock)
        assert not rendezvous.remove_if_stale(rendezvous.socket_path("here"))
        with pytest.raises(ConfigError, match="already listening"):
            shm_server("here", ChecksumPolicy()).start()
        for sock in sockets:
            sock.close()
        server.kill()
    assert rendezvous.remove_if_stale(rendezvous.socket_path("here"))
    assert left_behind(shm_folder) == []


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
def test_what_is_not_a_socket_is_refused_and_left_alone(shm_folder: Path, kind: str) -> None:
    path = shm_folder / "here.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/etc/passwd" if kind == "link" else "/nowhere")
    with pytest.raises(ConfigError, match="not a socket"):
        shm_server("here", ChecksumPolicy()).start()
    with open_transport("shm://here") as transport, pytest.raises(PeerUnreachableError):
        transport.connect(policy_spec())
    assert path.is_symlink() or path.exists()


def test_link_to_a_live_socket_is_not_followed(server: Server, shm_folder: Path) -> None:
    (shm_folder / "there.sock").symlink_to(shm_folder / "here.sock")
    with open_transport("shm://there", SHORTLY) as transport, pytest.raises(PeerUnreachableError, match="symbolic"):
        transport.connect(policy_spec())
    (shm_folder / "there.sock").unlink()


def test_client_waits_for_a_server_that_starts(shm_folder: Path) -> None:
    with actor("serve", "here") as server:
        connect()
        server.end()


def test_server_that_does_not_answer_is_unreachable(shm_folder: Path) -> None:
    listener = rendezvous.listen(rendezvous.socket_path("here"))
    with open_transport("shm://here", SHORTLY) as transport, pytest.raises(PeerUnreachableError, match="stopped"):
        transport.connect(policy_spec())
    listener.close()
