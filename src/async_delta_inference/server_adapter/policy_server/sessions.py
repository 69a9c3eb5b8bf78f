"""One client's session with the PolicyServer that all of them share: its filter, its features, its chunks' length."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.server_adapter.policy_server.driven import DrivenPolicyServer, FilterState
from async_delta_inference.transport.messages import Observation, SessionSpec
from async_delta_inference.transport.policy import EpisodeStart

__all__ = ["DrivenSession"]


class DrivenSession:
    """A `PolicySession` of `PolicyServerPolicy`.

    Args:
        driven: With the session's policy loaded, until the session is closed.
        spec: What the client asked for.
        on_close: Told when the session is over.

    Raises:
        SetupRefusedError: The policy cannot take what the session observes.
    """

    def __init__(
        self, driven: DrivenPolicyServer, spec: SessionSpec, on_close: Callable[[DrivenSession], None]
    ) -> None:
        driven.check_features(spec)
        self._driven = driven
        self._spec = spec
        self._on_close = on_close
        self._memory = FilterState()

    def reset(self, episode: EpisodeStart) -> None:
        """Forget the last episode.

        The policy itself is every session's. Resetting it in the middle of another one's episode is harmless: the types
        that PolicyServer serves correctly keep nothing between two calls of ``predict_action_chunk``.
        """
        self._driven.reset()
        self._memory = FilterState()

    def close(self) -> None:
        """The session is over; the policy stays loaded for the next."""
        self._on_close(self)

    def answer(self, observation: Observation) -> NDArray[np.float32] | None:
        """Filter and answer one observation, as ``SendObservations`` and ``GetActions`` do.

        Returns:
            float32 (n, A); None if the filter leaves the observation out.

        Raises:
            Exception: Whatever the policy raises.
        """
        return self._driven.predict(observation, self._spec, self._memory)
