"""Who is let in, and with what: seats, other users, versions, schemas, sizes, the state of /dev/shm."""

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
from shm_processes import left_behind, of_server

from async_delta_inference.errors import PeerUnreachableError, ProtocolError, SetupRefusedError
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
    reason = refusal_of(hello(version=999, package="9.9"))
    assert "version 999 (package 9.9)" in reason
    assert f"version {handshake.PROTOCOL_VERSION} (package" in reason


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
