"""One client's session with the PolicyServer that all of them share: its filter, its features, its chunks' length."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from async_delta_inference import stages
from async_delta_inference.server_adapter.policy_server.driven import DrivenPolicyServer, FilterState, Surroundings
from async_delta_inference.server_adapter.policy_server.similarity import SimilarityFilter
from async_delta_inference.transport.messages import Observation, SessionSpec
from async_delta_inference.transport.policy import EpisodeStart

__all__ = ["DrivenSession", "StepwiseSession", "WholesaleSession", "open_session"]


class DrivenSession(ABC):
    """A `PolicySession` of `PolicyServerPolicy`.

    Args:
        driven: With the session's policy loaded, until the session is closed.
        spec: What the client asked for.
        on_close: Told when the session is over.
    """

    def __init__(
        self, driven: DrivenPolicyServer, spec: SessionSpec, on_close: Callable[[DrivenSession], None]
    ) -> None:
        self._driven = driven
        self._spec = spec
        self._on_close = on_close

    def reset(self, episode: EpisodeStart) -> None:
        """Forget the last episode.

        The policy itself is every session's. Resetting it in the middle of another one's episode is harmless: the types
        that PolicyServer serves correctly keep nothing between two calls of ``predict_action_chunk``.
        """
        self._driven.reset()
        self._forget()

    def close(self) -> None:
        """The session is over; the policy stays loaded for the next."""
        self._on_close(self)

    @abstractmethod
    def answer(self, observation: Observation, release: Callable[[], None]) -> NDArray[np.float32] | None:
        """Filter and answer one observation, as ``SendObservations`` and ``GetActions`` do.

        Args:
            observation: Its arrays are not used after ``release`` was called.
            release: Called as soon as the images have become the policy's tensors, if they do so here.

        Returns:
            float32 (n, A); None if the filter leaves the observation out.

        Raises:
            Exception: Whatever the policy raises.
        """

    @abstractmethod
    def _forget(self) -> None:
        """Forget what the filter remembers."""


class StepwiseSession(DrivenSession):
    """Goes through ``_predict_action_chunk`` step by step, without what it does for nothing.

    Args:
        driven: See `DrivenSession`.
        spec: See `DrivenSession`.
        on_close: See `DrivenSession`.
        surroundings: Of the policy, for this session's features.
    """

    def __init__(
        self,
        driven: DrivenPolicyServer,
        spec: SessionSpec,
        on_close: Callable[[DrivenSession], None],
        surroundings: Surroundings,
    ) -> None:
        super().__init__(driven, spec, on_close)
        self._around = surroundings
        self._filter = SimilarityFilter()

    def answer(self, observation: Observation, release: Callable[[], None]) -> NDArray[np.float32] | None:  # noqa: D102
        timestep, recorder, around = observation.timestep, stages.recorder, self._around
        # The filter's own: a policy may write into the tensors that it is given.
        state = observation.state.copy()
        if not self._filter.passes(timestep, observation.must_go, state):
            return None
        self._filter.begin(timestep)
        batch, finished = around.prepare(observation)
        release()
        if recorder is not None:
            recorder.mark(stages.PREPARE, timestep)
        batch = around.preprocess(batch, finished)
        self._filter.remember(state)
        if recorder is not None:
            recorder.mark(stages.PREPROCESS, timestep)
        chunk = self._driven.act(batch, self._spec.actions_per_chunk)
        if recorder is not None:
            recorder.mark(stages.FORWARD, timestep)
        actions = around.postprocess(chunk)
        if recorder is not None:
            recorder.mark(stages.POSTPROCESS, timestep)
        return actions

    def _forget(self) -> None:
        self._filter.forget()


class WholesaleSession(DrivenSession):
    """Calls ``_predict_action_chunk`` itself, which this lerobot writes differently from the tested one."""

    def __init__(
        self, driven: DrivenPolicyServer, spec: SessionSpec, on_close: Callable[[DrivenSession], None]
    ) -> None:
        super().__init__(driven, spec, on_close)
        self._memory = FilterState()

    def answer(self, observation: Observation, release: Callable[[], None]) -> NDArray[np.float32] | None:  # noqa: D102
        return self._driven.predict_as_upstream(observation, self._spec, self._memory)

    def _forget(self) -> None:
        self._memory = FilterState()


def open_session(
    driven: DrivenPolicyServer, spec: SessionSpec, on_close: Callable[[DrivenSession], None]
) -> DrivenSession:
    """A session with the policy that is loaded.

    Raises:
        SetupRefusedError: The policy cannot take what the session observes.
    """
    driven.check_features(spec)
    surroundings = driven.surroundings(spec)
    if surroundings is None:
        return WholesaleSession(driven, spec, on_close)
    return StepwiseSession(driven, spec, on_close, surroundings)
