"""Schemes, plugins and the rule that every scheme keeps the contract."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from async_delta_inference.errors import ConfigError, PeerUnreachableError
from async_delta_inference.transport import (
    Backend,
    Listener,
    Transport,
    TransportOptions,
    connect,
    known_schemes,
    listen,
    open_transport,
    registry,
    serve,
)
from async_delta_inference.transport.registry import backend, split_uri
from async_delta_inference.transport.testing import (
    CONTRACT_POLICY,
    WAIT_S,
    ScriptedPolicy,
    contract_observation,
    expect_answer,
)

TESTS = Path(__file__).parent
DISTRIBUTION = TESTS.parent / "support" / "coo_distribution"


@pytest.fixture
def coo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution as pip leaves it, found as Python finds any: nothing of ours is replaced."""
    monkeypatch.syspath_prepend(DISTRIBUTION)
    yield
    sys.modules.pop("coo", None)


def contract_schemes() -> set[str]:
    """Schemes with a TransportContract subclass among the tests, read from their source: nothing is imported twice."""
    found = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "TransportContract" for base in node.bases):
                for statement in node.body:
                    if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "scheme":
                        found.add(ast.literal_eval(statement.value))
    return found


def muted_cases() -> list[str]:
    """What a subclass of the contract does to its cases, other than to say which scheme it is."""
    allowed = {
        "scheme",
        "link",
        "absent_uri",
        "carries_episodes",
        "carries_description",
        "carries_history",
        "carries_prefix",
        "carries_delay",
        "carries_computation",
    }
    found = []
    for path in TESTS.rglob("test_*contract.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                for statement in node.body:
                    target = ast.unparse(statement.targets[0]) if isinstance(statement, ast.Assign) else "?"
                    if target not in allowed:
                        found.append(f"{path.name}: {ast.unparse(statement)[:60]}")
    return found


def test_every_registered_scheme_keeps_the_contract() -> None:
    assert set(known_schemes()) - contract_schemes() == set()


def test_no_case_of_the_contract_is_muted() -> None:
    assert muted_cases() == []


@pytest.mark.parametrize("scheme", known_schemes())
def test_every_backend_has_both_halves(scheme: str) -> None:
    found = backend(scheme)
    assert issubclass(found.transport, Transport)
    assert issubclass(found.listener, Listener)
    assert found.listener.reach in ("process", "host", "network")
    first, second = (found.listener.unused_address() for _ in range(2))
    assert first != second or first.endswith(":0")  # a port that the system chooses is nobody else's, either


@pytest.mark.parametrize("use", [open_transport, lambda uri: serve(ScriptedPolicy(), uri), backend])
def test_unknown_scheme_is_refused_with_the_known_ones(use: object) -> None:
    uri = "carrier-pigeon" if use is backend else "carrier-pigeon://loft"
    with pytest.raises(ConfigError, match=r"unknown transport 'carrier-pigeon'.*grpc.*inproc.*shm"):
        use(uri)  # type: ignore[operator]


@pytest.mark.parametrize("uri", ["", "grpc", "127.0.0.1:8080", "://x", "grpc://", "grpc:/x"])
def test_what_is_no_uri_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="not a transport URI"):
        split_uri(uri)


def test_uri_is_split_at_the_first_separator() -> None:
    assert split_uri("grpc://unix:/run/a://b") == ("grpc", "unix:/run/a://b")


# Plugins.


@pytest.mark.usefixtures("coo")
def test_installed_package_adds_a_scheme_with_both_halves() -> None:
    assert known_schemes() == ["coo", "grpc", "inproc", "shm"]
    uri = f"coo://{backend('coo').listener.unused_address()}"
    policy = ScriptedPolicy()
    with serve(policy, uri) as server:
        assert server.uris == (uri,)
        with connect(uri, CONTRACT_POLICY) as first, connect(uri, CONTRACT_POLICY) as second:
            for timestep in range(3):
                first.send_observation(contract_observation(timestep))
                second.send_observation(contract_observation(timestep, client=1))
                expect_answer(first.receive_actions(WAIT_S), timestep)
                expect_answer(second.receive_actions(WAIT_S), timestep, client=1)
    assert [session.closed for session in policy.sessions()] == [1, 1]
    with pytest.raises(PeerUnreachableError):
        connect(uri, CONTRACT_POLICY, TransportOptions(connect_timeout_s=0.05))


@pytest.mark.usefixtures("coo")
def test_function_is_served_beside_ours_by_a_plugin() -> None:
    with serve(lambda observation: np.zeros((1, 3)), "inproc://beside", "coo://beside") as server:
        for uri in server.uris:
            with connect(uri, CONTRACT_POLICY) as transport:
                transport.send_observation(contract_observation(0))
                assert transport.receive_actions(WAIT_S) is not None
    with listen("coo://alone", ScriptedPolicy()) as server:
        assert server.uris == ("coo://alone",)


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, source: str, name: str = "BACKEND") -> None:
    """A distribution ``dud`` whose entry point for the scheme ``dud`` is ``name``."""
    (folder / "dud_plugin.py").write_text(source)
    metadata = folder / "dud-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: dud\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{registry.ENTRY_POINT_GROUP}]\ndud = dud_plugin:{name}\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "dud_plugin", raising=False)


HALF = """
from async_delta_inference.transport.inproc import InprocTransport, InprocListener
from async_delta_inference.transport import Backend
"""


@pytest.mark.parametrize(
    ("source", "name"),
    [
        pytest.param(HALF, "InprocTransport", id="the client half"),
        pytest.param(HALF, "InprocListener", id="the server half"),
        pytest.param(HALF, "Backend", id="the class"),
        pytest.param("", "__doc__", id="nothing"),
    ],
)
def test_half_a_backend_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, name: str
) -> None:
    install(monkeypatch, tmp_path, source, name)
    for use in (open_transport, lambda uri: serve(ScriptedPolicy(), uri)):
        with pytest.raises(ConfigError, match=r"plugin for 'dud' is not a Backend.*both halves are needed"):
            use("dud://anywhere")


@pytest.mark.parametrize(
    "halves",
    [
        "transport=InprocTransport, listener=None",
        "transport=None, listener=InprocListener",
        "transport=InprocListener, listener=InprocTransport",
        "transport=InprocTransport('x'), listener=InprocListener",
    ],
)
def test_backend_of_something_else_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, halves: str
) -> None:
    install(monkeypatch, tmp_path, f"{HALF}BACKEND = Backend({halves})")
    with pytest.raises(ConfigError, match=r"Backend.*(transport|listener).*subclass"):
        backend("dud")


def test_plugin_does_not_take_the_place_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = backend("inproc")
    entry = EntryPoint("inproc", "builtins:dict", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    assert backend("inproc") is ours
    assert known_schemes() == ["grpc", "inproc", "shm"]


def test_backend_is_made_with_both_halves() -> None:
    with pytest.raises(TypeError, match="listener"):
        Backend(backend("inproc").transport)  # type: ignore[call-arg]
