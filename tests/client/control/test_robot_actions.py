"""What a policy is told of the robot's own actions is what the simulator executes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from control_run import Run
from stub_environment import StubEnvironment

from async_delta_inference.client import EpisodeResult
from async_delta_inference.errors import ConfigError
from async_delta_inference.transport import (
    Answer,
    EpisodeStart,
    Observation,
    PolicyNeeds,
    PrefixLimits,
    Request,
    SessionSpec,
)

LIMITS = PrefixLimits(executed=3, committed=8)
CHUNK = 10


class Curious:
    """Wants to be told. Its chunks are all different, so that what a chunk changed shows."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def describe(self, spec: SessionSpec) -> PolicyNeeds:
        return PolicyNeeds("curious", prefix=LIMITS)

    def open(self, spec: SessionSpec) -> Curious:
        return self

    def reset(self, episode: EpisodeStart) -> None:
        pass

    def close(self) -> None:
        pass

    def infer(self, requests: Sequence[Request]) -> Sequence[Answer]:
        return [self._rng.normal(size=(CHUNK, 2)).astype(np.float32) for _ in requests]


def answered(run: Run, episodes: Sequence[EpisodeResult]) -> Iterator[tuple[Observation, int, EpisodeResult]]:
    """The observations whose answers took effect, before which step each was made, and in which episode."""
    numbers = list(dict.fromkeys(observation.episode for observation in run.transport.sent))
    for number, episode in zip(numbers, episodes, strict=True):
        sent = [observation for observation in run.transport.sent if observation.episode == number]
        yield from ((o, chunk.requested_step, episode) for o, chunk in zip(sent, episode.chunks, strict=False))


@pytest.mark.parametrize("on_starvation", ["wait", "hold", "skip"])
@pytest.mark.parametrize("delay", [0, 1, 3, 5, 8])
def test_what_is_committed_is_executed(run: Run, delay: int, on_starvation: str) -> None:
    run.policy, run.environments = Curious(), [StubEnvironment(40)]
    result = run(
        n_episodes=2,
        inference_delay=str(delay),
        on_starvation=on_starvation,
        chunk_size_threshold=0.5,
        aggregate_fn_name="weighted_average",
    )
    known = []
    for observation, step, episode in answered(run, result.episodes):
        assert observation.inference_delay == delay
        assert observation.prefix is not None
        executed, committed = observation.prefix.executed, observation.prefix.committed[:delay]
        np.testing.assert_array_equal(executed, episode.actions[max(0, step - LIMITS.executed) : step])
        np.testing.assert_array_equal(committed, episode.actions[step : step + len(committed)])
        known.append(len(committed))
    # Half of a chunk is left when the next one is asked for; where time passes without actions, what was not stale.
    left = CHUNK - delay if on_starvation == "skip" else CHUNK
    assert (known[0], max(known)) == (0, min(delay, CHUNK // 2, left))


def test_actions_that_another_chunk_may_change_are_not_told(run: Run) -> None:
    run.policy = Curious()
    with pytest.raises(ConfigError, match="--one_request_in_flight=false"):
        run.episode(one_request_in_flight=False)


def test_function_that_does_not_ask_is_told_nothing(run: Run) -> None:
    run.episode(inference_delay="2")
    assert all(observation.prefix is None for observation in run.transport.sent)


def test_delay_is_measured_with_nothing_queued(run: Run) -> None:
    run.policy = Curious()
    run.episode(inference_delay="auto")
    prefix = run.transport.sent[0].prefix
    assert prefix is not None
    assert (prefix.executed.shape, prefix.committed.shape) == ((0, 2), (0, 2))
