"""Schemes, plugins and the rule that every scheme keeps the contract."""

from __future__ import annotations

import ast
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from async_delta_inference.errors import ConfigError
from async_delta_inference.transport import Transport, known_schemes, open_transport, registry
from async_delta_inference.transport.registry import split_uri, transport_class
from async_delta_inference.transport.testing import CONTRACT_POLICY

TESTS = Path(__file__).parent


class PluginTransport(Transport):
    def _connect(self, policy):  # noqa: ANN001, ANN202
        raise NotImplementedError

    _send = _receive = _connect

    def _close(self) -> None:
        pass


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


def test_every_registered_scheme_keeps_the_contract() -> None:
    assert set(known_schemes()) - contract_schemes() == set()


def test_unknown_scheme_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown transport 'carrier-pigeon'.*grpc.*shm"):
        open_transport("carrier-pigeon://loft")


@pytest.mark.parametrize("uri", ["", "grpc", "127.0.0.1:8080", "://x", "grpc://", "grpc:/x"])
def test_what_is_no_uri_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="not a transport URI"):
        split_uri(uri)


def test_uri_is_split_at_the_first_separator() -> None:
    assert split_uri("grpc://unix:/run/a://b") == ("grpc", "unix:/run/a://b")


def test_plugin_adds_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("pigeon", f"{__name__}:PluginTransport", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: PluginTransport)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == registry.ENTRY_POINT_GROUP else [])
    assert "pigeon" in known_schemes()
    with open_transport("pigeon://loft") as transport:
        assert isinstance(transport, PluginTransport)
        assert transport.address == "loft"


def test_installed_package_adds_a_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution as pip leaves it, found as Python finds any: nothing of ours is replaced."""
    (tmp_path / "pigeon.py").write_text(
        "from async_delta_inference.transport import Transport\n"
        "class PigeonTransport(Transport):\n"
        "    def _connect(self, policy): self.flown = True\n"
        "    def _send(self, observation): pass\n"
        "    def _receive(self, timeout_s): return None\n"
        "    def _close(self): pass\n"
    )
    metadata = tmp_path / "pigeon-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pigeon\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[async_delta_inference.transports]\ncoo = pigeon:PigeonTransport\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert known_schemes() == ["coo", "grpc", "shm"]
    with open_transport("coo://loft") as transport:
        transport.connect(CONTRACT_POLICY)
        assert transport.flown  # type: ignore[attr-defined]
        assert transport.receive_actions(0.0) is None
    monkeypatch.delitem(sys.modules, "pigeon")


def test_plugin_that_is_no_transport_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("dud", "builtins:dict", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    with pytest.raises(ConfigError, match="not a subclass"):
        transport_class("dud")
