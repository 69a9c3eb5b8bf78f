"""The contract for a transport that somebody else installed: nothing here knows it but for its entry point."""

from __future__ import annotations

from pathlib import Path

import pytest

from async_delta_inference.transport.testing import TransportContract

DISTRIBUTION = Path(__file__).parents[1] / "support" / "coo_distribution"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DISTRIBUTION)


class TestThirdPartyContract(TransportContract):
    scheme = "coo"
    absent_uri = "coo://nobody-is-here"
    carries_episodes = False
    carries_description = False
