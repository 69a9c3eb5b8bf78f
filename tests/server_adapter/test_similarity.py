"""The filter decides as PolicyServer's own does, observation by observation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_act import timed

from async_delta_inference.server_adapter.lerobot_internals import load_policy_server_module
from async_delta_inference.server_adapter.similarity import SimilarityFilter
from async_delta_inference.transport import Observation, ObservationFeatures

FEATURES = ObservationFeatures(("x", "y", "z"), {})


@pytest.fixture(scope="module")
def server() -> Any:
    module: Any = load_policy_server_module()
    server = module.PolicyServer(module.PolicyServerConfig())
    server.lerobot_features = FEATURES.to_lerobot()
    return server


# Steps around the distance at which the filter decides: the last bit counts.
STATES = st.one_of(
    st.lists(st.sampled_from([0.0, 0.5, -0.5, 1.0, 0.57735026, 0.57735032, 0.99999994]), min_size=3, max_size=3),
    st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3),
)
SENT = st.lists(st.tuples(STATES, st.integers(0, 1), st.booleans()), min_size=1, max_size=12)


@settings(max_examples=200)
@given(sent=SENT)
def test_it_passes_what_upstream_enqueues(server: Any, sent: list[tuple[list[float], int, bool]]) -> None:
    server.last_processed_obs, server._predicted_timesteps = None, set()
    ours, timestep = SimilarityFilter(), 0
    for values, step, must_go in sent:
        timestep += step
        state = np.array(values, np.float32)
        observation = timed(Observation({}, state, timestep, must_go=must_go), FEATURES)
        passes = server._enqueue_observation(observation)
        assert ours.passes(timestep, must_go, state) == passes
        if passes:
            server._predicted_timesteps.add(timestep)
            server.last_processed_obs = server.observation_queue.get_nowait()
            ours.begin(timestep)
            ours.remember(state)


def test_a_timestep_whose_preprocessor_failed_is_compared_with_the_one_before(server: Any) -> None:
    ours = SimilarityFilter()
    ours.begin(1)
    assert ours.passes(1, False, np.zeros(3, np.float32))  # as upstream, which has processed nothing yet
    ours.remember(np.zeros(3, np.float32))
    ours.begin(2)
    assert not ours.passes(2, False, np.full(3, 9, np.float32))
    assert not ours.passes(3, False, np.zeros(3, np.float32))
    assert ours.passes(3, False, np.full(3, 9, np.float32))
    ours.forget()
    assert ours.passes(3, False, np.zeros(3, np.float32))
