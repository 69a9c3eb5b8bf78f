"""The flags of async-delta-serve."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from async_delta_inference.errors import ConfigError
from async_delta_inference.server_adapter import cli
from async_delta_inference.server_adapter.cli import ServeConfig, main
from async_delta_inference.transport import FunctionPolicy, GrpcOptions, LinkOptions, TlsOptions, known_schemes
from async_delta_inference.transport.registry import backend

# Which transports, and where.


def test_every_scheme_has_a_default_address_of_its_own() -> None:
    for scheme in known_schemes():
        if backend(scheme).listener.reach != "process":
            assert ServeConfig(transport=scheme).uris() == [f"{scheme}://{backend(scheme).listener.default_address()}"]
    assert len(ServeConfig(transport="grpc, shm").uris()) == 2


def test_addresses_fit_the_transports() -> None:
    config = ServeConfig(transport="grpc,shm", server_address="127.0.0.1:0, shm://name")
    assert config.uris() == ["grpc://127.0.0.1:0", "shm://name"]
    assert ServeConfig(server_address="127.0.0.1:0, shm://name").uris() == ["grpc://127.0.0.1:0", "shm://name"]
    assert ServeConfig(server_address="shm://name").uris() == ["shm://name"]
    assert ServeConfig().uris() == ["grpc://127.0.0.1:8080"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"transport": "pigeon"}, "unknown --transport=pigeon; known are: .*grpc.*shm"),
        ({"transport": "grpc,shm", "server_address": "127.0.0.1:0"}, "2 transports"),
        ({"transport": "grpc", "server_address": "shm://name"}, "cannot serve"),
        ({"transport": "inproc"}, "--transport=inproc reaches nobody"),
        ({"transport": "shm,inproc"}, "--transport=inproc reaches nobody"),
        ({"max_sessions": 0}, "--max_sessions must be at least 1"),
        ({"max_batch": -1}, "--max_batch must be at least 1"),
        ({"linger_s": -0.1}, "--linger_s must be from 0 to 60 seconds"),
        ({"linger_s": float("inf")}, "--linger_s"),
        ({"linger_s": float("nan")}, "--linger_s"),
    ],
)
def test_flag_that_cannot_work_is_refused(flags: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ServeConfig(**flags).uris()


def test_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--transport=pigeon"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == f"error: unknown --transport=pigeon; known are: {', '.join(known_schemes())}"


# Who may come.


@pytest.fixture
def quick_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of LeRobot's, which takes long to load."""
    monkeypatch.setattr(cli, "_make_policy", lambda host: FunctionPolicy(lambda observation: [[0.0]]))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--server_address=0.0.0.0:0"], "--insecure=true"),
        (["--grpc.dialect=pigeon"], "--grpc.dialect=pigeon; known are: auto, native, lerobot"),
        (["--grpc.token_file=/nowhere/token"], "--grpc.token_file=/nowhere/token cannot be read"),
        (["--tls.cert=cert.pem"], "--tls.cert and --tls.key belong together"),
    ],
)
@pytest.mark.usefixtures("quick_policy")
def test_link_that_cannot_work_is_one_line(flags: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--transport=grpc", *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert named in line


@pytest.mark.usefixtures("quick_policy")
def test_flags_of_a_link_reach_the_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(*arguments: Any, link: LinkOptions, **more: Any) -> Any:
        made.append(link)
        raise ConfigError("seen")

    made: list[LinkOptions] = []
    monkeypatch.setattr(cli, "make_server", make)
    main(["--grpc.dialect=native", "--grpc.token_file=t", "--tls.cert=c", "--tls.key=k", "--insecure=true"])
    expected = LinkOptions(
        GrpcOptions(dialect="native", token_file=Path("t")), TlsOptions(Path("c"), Path("k")), insecure=True
    )
    assert made == [expected]


# A transport of somebody else's.

PIGEON = """
from async_delta_inference.transport import Backend
from async_delta_inference.transport.inproc import InprocListener, InprocTransport


class PigeonListener(InprocListener):
    reach = "network"
    log = []

    @property
    def uri(self):
        return f"pigeon://{self.address}"

    def start(self):
        self.log.append(f"start {self.address}")
        super().start()
        if self.address == "interrupted":
            raise KeyboardInterrupt  # as a signal that comes right after the start

    def stop(self):
        self.log.append(f"stop {self.address}")
        super().stop()


BACKEND = Backend(transport=InprocTransport, listener=PigeonListener)
"""


@pytest.fixture
def pigeon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An installed distribution whose entry point is a backend, and a policy that needs no lerobot."""
    information = tmp_path / "pigeon_post-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: pigeon-post\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[async_delta_inference.transports]\npigeon = pigeon_post_for_tests:BACKEND\n"
    )
    (tmp_path / "pigeon_post_for_tests.py").write_text(PIGEON)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cli, "_make_policy", lambda host: FunctionPolicy(lambda observation: [[0.0]]))
    module = importlib.import_module("pigeon_post_for_tests")
    yield module
    del sys.modules["pigeon_post_for_tests"]


def test_transport_of_an_installed_distribution_is_served(
    pigeon: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read_fd, write_fd = os.pipe()
    stdin, held = os.pipe()
    monkeypatch.setenv("ASYNC_DELTA_ANNOUNCE_FD", str(write_fd))
    monkeypatch.setenv("ASYNC_DELTA_EXIT_WITH_STDIN", "1")
    announced = []

    def end_once_announced() -> None:
        announced.append(announcement.read())
        os.close(held)

    with os.fdopen(stdin) as ends, os.fdopen(read_fd) as announcement:
        monkeypatch.setattr(sys, "stdin", ends)
        parent = threading.Thread(target=end_once_announced)
        parent.start()
        assert main(["--transport=pigeon,pigeon", "--server_address=loft,pigeon://barn"]) == 0
        parent.join()
    assert announced == ["pigeon://loft\npigeon://barn\n"]
    assert capsys.readouterr().out == "serving pigeon://loft\nserving pigeon://barn\n"
    assert pigeon.PigeonListener.log[:2] == ["start loft", "start barn"]
    assert {"stop loft", "stop barn"} <= set(pigeon.PigeonListener.log)


def test_interrupt_right_after_the_start_still_stops(pigeon: Any) -> None:
    assert main(["--transport=pigeon", "--server_address=interrupted"]) == 130
    assert "stop interrupted" in pigeon.PigeonListener.log
    with pytest.raises(KeyboardInterrupt):  # its name is free again: no ConfigError
        pigeon.BACKEND.listener("interrupted", None).start()
    pigeon.BACKEND.listener("interrupted", None).stop()


# Whoever starts the command for itself.


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("ASYNC_DELTA_ANNOUNCE_FD", "1000000", "ASYNC_DELTA_ANNOUNCE_FD=1000000 is not an open file descriptor"),
        ("ASYNC_DELTA_ANNOUNCE_FD", "9" * 30, "is not an open file descriptor"),
        ("ASYNC_DELTA_ANNOUNCE_FD", "stdout", "ASYNC_DELTA_ANNOUNCE_FD=stdout is not an open file descriptor"),
        ("ASYNC_DELTA_EXIT_WITH_STDIN", "yes", "ASYNC_DELTA_EXIT_WITH_STDIN must be 0 or 1, got 'yes'"),
    ],
)
def test_variable_that_cannot_work_is_refused(
    variable: str, value: str, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    assert main(["--transport=shm"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert named in line


# Packages, files, help.


@pytest.mark.parametrize(
    ("module", "transport", "named"),
    [
        ("draccus", "grpc", "extra 'lerobot'"),
        ("lerobot", "grpc", "extra 'lerobot'"),
        ("lerobot", "shm", "extra 'lerobot'"),
        ("torch", "shm", "extra 'lerobot'"),
        ("grpc", "grpc", "extra 'grpc'"),
    ],
)
def test_missing_packages_name_the_extra(module: str, transport: str, named: str) -> None:
    """As in an environment with the light core, or with a part of the extra."""
    code = (
        f"import sys; sys.modules[{module!r}] = None; "
        f"from async_delta_inference.server_adapter.cli import main; sys.exit(main(['--transport={transport}']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert named in line


def test_the_command_loads_nothing_heavy_until_it_serves() -> None:
    code = "import sys; import async_delta_inference.server_adapter.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "lerobot", "grpc", "gymnasium", "cv2", "draccus", "huggingface_hub", "posix_ipc"}
    assert heavy & set(done.stdout.split()) == set()


def test_trace_that_cannot_be_written_is_refused_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["--transport=shm", f"--trace={tmp_path}/file/trace.json"]) == 2
    assert "--trace=" in capsys.readouterr().err


def test_help_tells_every_flag_with_its_unit_and_no_internals(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(["--help"])
    assert info.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in ServeConfig.__dataclass_fields__:
        assert f"--{name}" in text
    assert "Seconds to wait for more of them" in text
    assert "announce" not in text
    assert "stdin" not in text
