"""Hosting on gRPC."""

from __future__ import annotations

from pathlib import Path

import pytest

from async_delta_inference.errors import ConfigError
from async_delta_inference.server_adapter.grpc_service import GrpcService


@pytest.fixture
def servicer() -> object:
    """Nobody calls it: these tests are about the address."""
    from lerobot.transport.services_pb2_grpc import AsyncInferenceServicer

    return AsyncInferenceServicer()


def test_port_that_is_taken_is_refused(servicer: object) -> None:
    first = GrpcService(servicer, "127.0.0.1:0")
    first.start()
    try:
        with pytest.raises(ConfigError, match="taken"):
            GrpcService(servicer, first.uri.removeprefix("grpc://")).start()
    finally:
        first.stop()


@pytest.mark.parametrize("address", ["nope", "127.0.0.1", "127.0.0.1:99999", "host:port"])
def test_what_is_no_address_is_refused(servicer: object, address: str) -> None:
    """gRPC would serve on another port than the one asked for."""
    with pytest.raises(ConfigError, match="write host:port"):
        GrpcService(servicer, address)


def test_any_port_is_told_by_the_uri(servicer: object) -> None:
    service = GrpcService(servicer, "127.0.0.1:0")
    service.start()
    assert service.uri.startswith("grpc://127.0.0.1:")
    assert not service.uri.endswith(":0")
    service.stop()
    service.stop()


def test_unix_socket(servicer: object, tmp_path: Path) -> None:
    service = GrpcService(servicer, f"unix:{tmp_path}/socket")
    service.start()
    assert service.uri == f"grpc://unix:{tmp_path}/socket"
    service.stop()
