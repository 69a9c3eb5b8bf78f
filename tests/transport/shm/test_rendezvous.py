"""Who may meet where: names, folders, stale and foreign sockets, second servers and clients, other users."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from shm_actor import ChecksumPolicy, expected_actions, make_observation, policy_spec, shm_server
from shm_processes import actor, left_behind, of_server

from async_delta_inference.errors import ConfigError, PeerUnreachableError, ProtocolError, SetupRefusedError
from async_delta_inference.transport import ObservationFeatures, Server, SessionSpec, TransportOptions, open_transport
from async_delta_inference.transport.shm.server.bell import SemaphoreBell
from async_delta_inference.transport.shm.shared import handshake, rendezvous
from async_delta_inference.transport.shm.shared.connection import Connection
from async_delta_inference.transport.shm.shared.layout import SegmentLayout, SizeLimits
from async_delta_inference.transport.shm.shared.segment import Segment, SegmentNames

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
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(rendezvous.tempfile, "gettempdir", lambda: str(tmp_path))
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
    is_alive = rendezvous._is_alive

    def look_late(path: Path) -> bool:
        path.unlink()
        return is_alive(path)

    server = shm_server("here", ChecksumPolicy())
    with monkeypatch.context() as patch:
        patch.setattr(rendezvous, "_is_alive", look_late)
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


# Who is served.


def test_client_beyond_the_last_seat_is_refused_by_name(shm_folder: Path) -> None:
    server = shm_server("here", max_sessions=1)
    server.start()
    with open_transport("shm://here") as first:
        first.connect(policy_spec())
        with open_transport("shm://here") as second, pytest.raises(SetupRefusedError, match=f"process {os.getpid()}"):
            second.connect(policy_spec())
        observation = make_observation(1)
        first.send_observation(observation)
        assert first.receive_actions(30.0) is not None
    connect()
    server.stop()


@contextmanager
def raw_connection() -> Iterator[Connection]:
    connection = Connection(rendezvous.connect(rendezvous.socket_path("here"), 1.0))
    yield connection
    connection.close()


def refusal_of(message: Mapping[str, object]) -> str:
    with raw_connection() as connection:
        connection.send(message)
        answer = connection.receive(5.0)
        assert answer["kind"] == "refused"
        return str(answer["reason"])


def test_server_of_another_user_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "peer_uid", lambda self: os.geteuid() + 1)
    with open_transport("shm://here") as transport, pytest.raises(PeerUnreachableError, match="runs as user"):
        transport.connect(policy_spec())


def test_client_of_another_user_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "peer_uid", lambda self: os.geteuid() + 1)
    assert "belongs to user" in refusal_of(hello())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_client_that_is_another_user_is_refused(server: Server, shm_folder: Path) -> None:
    """Let in on purpose, past the folder's mode and the socket's: the kernel's word on its uid keeps it out."""
    path = shm_folder / "here.sock"
    path.chmod(0o777)
    script = """
import os, socket, sys
handle = os.open(sys.argv[1], os.O_PATH)
os.setuid(65534)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(f"/proc/self/fd/{handle}")
print(sock.recv(65536).decode(errors="replace"))
"""
    run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    assert "user 65534 may not use it" in run.stdout, run.stderr
    connect()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_server_that_is_another_user_is_refused(shm_folder: Path) -> None:
    """Its socket is where it should be, put there by root: what counts is the user that listens."""
    path = shm_folder / "here.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        listener.listen()
        signal.pause()
        os._exit(0)
    listener.close()
    try:
        with open_transport("shm://here") as transport, pytest.raises(PeerUnreachableError, match="user 65534"):
            transport.connect(policy_spec())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# What is agreed.


def hello(**changes: object) -> dict[str, object]:
    return {**handshake.Hello("0123456789abcdef", policy_spec(), 1).to_message(), **changes}


def test_other_version_is_refused_with_both_named(server: Server) -> None:
    reason = refusal_of(hello(version=7, package="9.9"))
    assert "version 7 (package 9.9)" in reason
    assert "version 2 (package" in reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scalars": [["timestep", "int32"]]}, ["scalars", "int32", "int64"]),
        ({"arrays": [["state", "float64", [2]]]}, ["arrays", "float64", "float32"]),
        ({"arrays": [["state", "float32", [3]]]}, ["arrays", "[3]", "[2]"]),
        ({"actions": ["float64", 10, 4]}, ["actions", "float64", "float32"]),
        ({"state_names": ["x", "x"]}, ["schema", "differ"]),
    ],
)
def test_other_schema_is_refused_with_both_named(server: Server, changes: dict[str, object], words: list[str]) -> None:
    reason = refusal_of(hello(**changes))
    assert all(word in reason for word in words), reason


def test_segment_that_is_too_large_is_refused(server: Server) -> None:
    huge = ObservationFeatures(("x",), {"front": (4000, 4000, 3)})
    with pytest.raises(SetupRefusedError, match=r"192 MB.*10 MB"):
        connect(policy_spec(huge))
    connect()


@pytest.mark.parametrize("shape", [(1 << 20, 1, 1), (1, 1, 1 << 20)])
def test_absurd_image_is_refused(server: Server, shape: tuple[int, int, int]) -> None:
    with pytest.raises(SetupRefusedError, match="limit"):
        connect(policy_spec(ObservationFeatures(("x",), {"front": shape})))


# /dev/shm.


def names() -> SegmentNames:
    return SegmentNames("0" * 12, "1" * 16)


@pytest.mark.parametrize(
    ("error", "words"), [(28, "docker run --shm-size"), (30, "Mount it writable"), (13, "Mount it writable")]
)
def test_unusable_dev_shm_is_an_error_that_helps(
    server: Server, monkeypatch: pytest.MonkeyPatch, error: int, words: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("async_delta_inference.transport.shm.shared.segment.os.posix_fallocate", fail)
    with pytest.raises(SetupRefusedError, match=words) as info:
        connect()
    assert "MB" in str(info.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("options", ["size=64k", "ro"])
def test_full_or_read_only_dev_shm(shm_folder: Path, options: str) -> None:
    """With a real /dev/shm of that kind, in a mount namespace of its own."""
    script = f"""
mount -t tmpfs -o {options} none /dev/shm || exit 77
exec {sys.executable} -c '
import os
from shm_actor import *
from async_delta_inference.errors import ConfigError, SetupRefusedError
server = shm_server("there")
try:
    server.start()
except ConfigError as exc:
    print(exc); print(sorted(os.listdir("/dev/shm"))); raise SystemExit
try:
    with open_transport("shm://there") as transport: transport.connect(policy_spec())
except SetupRefusedError as exc:
    print(exc)
server.stop()
print(sorted(os.listdir("/dev/shm")))
'"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "support")}
    run = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=60, env=environment
    )
    if run.returncode in (1, 77) and "Operation not permitted" in run.stderr + run.stdout:
        pytest.skip("mounting is not permitted here")
    assert ("--shm-size" if options != "ro" else "Mount it writable") in run.stdout, run.stderr
    assert run.stdout.strip().endswith("[]")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_name_of_another_users_in_dev_shm_does_not_keep_a_server_from_starting(shm_folder: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from shm_actor import *
user, folder = 65534, os.environ["ASYNC_DELTA_RUNTIME_DIR"]
os.chown(folder, user, user)
in_the_way = Path(f"/dev/shm/adi-{user}-{rendezvous.server_key(Path(folder) / 'here.sock')}-x")
in_the_way.touch()
try:
    os.seteuid(user)
    server = shm_server("here", ChecksumPolicy())
    server.start()
    rendezvous.connect(Path(folder) / "here.sock", 10.0).close()
    server.stop()
    print("served")
finally:
    os.seteuid(0)
    in_the_way.unlink()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "support")}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment)
    assert run.stdout == "served\n", run.stderr
    assert "is in the way and cannot be removed" in run.stderr
    assert left_behind(shm_folder) == []


def test_segment_of_other_size_or_header_is_refused(shm_folder: Path) -> None:
    layout = SegmentLayout.of_session(policy_spec())
    segment, bell = Segment.create(names(), layout), SemaphoreBell(names().server)
    try:
        with pytest.raises(ProtocolError, match="agreed"):
            Segment.attach(names(), SegmentLayout.of_session(policy_spec(), action_slots=64))
        segment._buffer[0] = 0
        with pytest.raises(ProtocolError, match="header"):
            Segment.attach(names(), layout)
    finally:
        names().unlink()
        segment.close()
        bell.take_down(names().server)
        bell.close()
    with pytest.raises(ProtocolError, match="cannot attach"):
        Segment.attach(names(), layout)


def test_names_are_gone_once_both_are_attached(server: Server, shm_folder: Path) -> None:
    with open_transport("shm://here") as transport:
        transport.connect(policy_spec())
        assert left_behind(shm_folder) == of_server("here")
