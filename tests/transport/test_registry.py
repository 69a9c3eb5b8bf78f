"""Schemes, plugins and the rule that every scheme keeps the contract."""

from __future__ import annotations

import ast
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from async_delta_inference.errors import ConfigError
from async_delta_inference.transport import Transport, known_schemes, open_transport, registry
from async_delta_inference.transport.registry import split_uri, transport_class

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


def test_plugin_that_is_no_transport_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("dud", "builtins:dict", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    with pytest.raises(ConfigError, match="not a subclass"):
        transport_class("dud")
