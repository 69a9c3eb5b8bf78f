"""The fuzz of our own protocol from both sides: its short form, and the long one as `slow`."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from grpc_fuzz import fuzz

GROWTH_MB = 64.0
"""Arenas of as many threads as there are; a leak of one message in ten would be more within minutes."""


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("grpc").setLevel(logging.CRITICAL)


def test_nothing_that_a_peer_sends_keeps_others_from_being_served(tmp_path: Path) -> None:
    found = fuzz(4.0, seed=1, folder=tmp_path)
    assert found["ends"]["honest served"] >= 1
    assert any(end.startswith("server ") for end in found["ends"])
    assert any(end.startswith("client ") for end in found["ends"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_same_for_ten_minutes_leaves_memory_flat(tmp_path: Path) -> None:
    sizes = fuzz(600.0, seed=2, folder=tmp_path)["memory_mb"]
    half = len(sizes) // 2
    assert sorted(sizes[half:])[half // 2] - sorted(sizes[:half])[half // 2] < GROWTH_MB
