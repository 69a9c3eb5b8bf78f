"""Another LeRobot than the tested one is noticed."""

from __future__ import annotations

import pytest

from async_delta_inference.errors import ConfigError
from async_delta_inference.server_adapter.lerobot_internals import check_attributes, check_internals


def test_other_internals_are_refused() -> None:
    class Renamed:
        def Ready(self, request: object, context: object) -> None:  # noqa: N802
            """As tested."""

        def SendPolicyInstructions(self, request: object) -> None:  # noqa: N802
            """With another parameter list."""

    with pytest.raises(ConfigError, match=r"SendPolicyInstructions takes \('self', 'request'\).*0\.6\.1"):
        check_internals(Renamed)
    with pytest.raises(ConfigError, match="has no observation_queue"):
        check_attributes(object())
