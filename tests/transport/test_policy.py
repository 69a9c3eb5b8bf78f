"""A plain function as a policy, and what a policy needs of a session."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from async_delta_inference.errors import ConfigError, PolicyError, SetupRefusedError
from async_delta_inference.transport import (
    FunctionPolicy,
    Observation,
    PolicyNeeds,
    PolicySession,
    Request,
    connect,
    serve,
)
from async_delta_inference.transport.policy import EpisodeStart, PolicyFunction, as_policy
from async_delta_inference.transport.testing import CONTRACT_POLICY, WAIT_S, ScriptedPolicy, contract_observation

NEEDS = PolicyNeeds("a policy", {"front": (12, 16, 3), "wrist": None}, state_dim=4, action_dim=3)


def request(policy: FunctionPolicy, observation: Observation, rows: int = 5) -> Request:
    session = policy.open(replace(CONTRACT_POLICY, actions_per_chunk=rows))
    return Request(session, observation, lambda: None)


def answer(function: PolicyFunction, rows: int = 5) -> object:
    policy = FunctionPolicy(function)
    (given,) = policy.infer([request(policy, contract_observation(3), rows)])
    return given


@pytest.mark.parametrize(
    "actions", [[[1, 2, 3]], ((1.0, 2.0, 3.0),), np.array([[1, 2, 3]], np.int64), np.array([[1, 2, 3]], np.float64)]
)
def test_what_becomes_float32_is_an_answer(actions: object) -> None:
    given = answer(lambda observation: actions)
    assert isinstance(given, np.ndarray)
    assert given.dtype == np.float32
    assert given.tolist() == [[1.0, 2.0, 3.0]]


def test_function_sees_the_observation() -> None:
    given = answer(lambda observation: np.full((1, 3), observation.state[0]))
    assert isinstance(given, np.ndarray)
    assert given.tolist() == [[3.0, 3.0, 3.0]]


def test_rows_too_many_are_left_out() -> None:
    given = answer(lambda observation: np.arange(12).reshape(4, 3), rows=2)
    assert isinstance(given, np.ndarray)
    assert given.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        ("text", "ValueError"),
        (None, "returned None"),
        ([[1], [2, 3]], "ValueError"),
        (7.0, r"float32 \(\)"),
    ],
)
def test_what_is_no_answer_is_an_error_that_the_client_hears(actions: object, said: str) -> None:
    with (
        serve(lambda observation: actions, "inproc://no-answer") as server,  # type: ignore[arg-type, return-value]
        connect(server.uris[0], CONTRACT_POLICY) as transport,
    ):
        transport.send_observation(contract_observation(0))
        with pytest.raises(PolicyError, match=said):
            transport.receive_actions(WAIT_S)


def test_exception_answers_one_request_alone() -> None:
    def function(observation: Observation) -> np.ndarray:
        if observation.timestep == 1:
            raise KeyError("lost")
        if observation.timestep == 2:
            raise PolicyError("on purpose", 2)
        return np.full((1, 3), observation.timestep)

    policy = FunctionPolicy(function)
    requests = [request(policy, contract_observation(timestep)) for timestep in range(4)]
    first, second, third, fourth = policy.infer(requests)
    assert isinstance(first, np.ndarray)
    assert isinstance(fourth, np.ndarray)
    assert (first[0, 0], fourth[0, 0]) == (0, 3)
    assert isinstance(second, PolicyError)
    assert str(second) == "KeyError: 'lost'"
    assert isinstance(third, PolicyError)
    assert str(third) == "on purpose"


def test_function_cannot_write_into_what_it_is_given() -> None:
    def function(observation: Observation) -> np.ndarray:
        observation.images["front"][:] = 0
        return np.zeros((1, 3))

    with serve(function, "inproc://read-only") as server, connect(server.uris[0], CONTRACT_POLICY) as transport:
        transport.send_observation(contract_observation(0))
        with pytest.raises(PolicyError, match="read-only"):
            transport.receive_actions(WAIT_S)


class Controller:
    def __call__(self, observation: Observation) -> np.ndarray:
        return np.zeros((1, 3))

    def act(self, observation: Observation, gain: float = 1.0) -> np.ndarray:
        return np.zeros((1, 3))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (Controller(), "Controller"),
        (Controller().act, "Controller.act"),
        (partial(Controller().act, gain=2.0), "partial"),
        (lambda observation: np.zeros((1, 3)), "<lambda>"),
    ],
)
def test_function_is_called_by_its_name(function: PolicyFunction, name: str) -> None:
    assert FunctionPolicy(function).describe(CONTRACT_POLICY).description.endswith(name)


def test_function_is_called_as_its_owner_says() -> None:
    assert FunctionPolicy(Controller(), "mine, v2").describe(CONTRACT_POLICY) == PolicyNeeds("mine, v2")


def test_session_of_a_function_has_nothing_to_do() -> None:
    session = FunctionPolicy(Controller()).open(CONTRACT_POLICY)
    assert isinstance(session, PolicySession)
    session.reset(EpisodeStart(0, "nothing"))
    session.close()


def test_policy_is_served_as_it_is() -> None:
    policy = ScriptedPolicy()
    assert as_policy(policy) is policy
    assert isinstance(as_policy(Controller()), FunctionPolicy)


@pytest.mark.parametrize("thing", [3, "shm://mine", None, np.zeros(3)])
def test_what_is_neither_policy_nor_function_is_refused(thing: object) -> None:
    with pytest.raises(ConfigError, match=f"{type(thing).__name__} cannot be served.*describe"):
        as_policy(thing)  # type: ignore[arg-type]


# Needs.


def test_session_that_brings_what_is_needed_is_served() -> None:
    NEEDS.check(CONTRACT_POLICY)
    PolicyNeeds("anything").check(CONTRACT_POLICY)
    PolicyNeeds("no cameras", {}).check(replace(CONTRACT_POLICY, features=replace(CONTRACT_POLICY.features, images={})))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": {}}, r"sends the cameras \['front', 'wrist'\], the policy a policy takes \[\]"),
        ({"images": {"front": None}}, r"\['front', 'wrist'\].*\['front'\]"),
        ({"images": {"front": None, "wrist": None, "top": None}}, r"\['front', 'wrist'\].*\['front', 'top', 'wrist'\]"),
        ({"images": {"front": (16, 12, 3), "wrist": None}}, r"'front' gives \(12, 16, 3\).*takes \(16, 12, 3\)"),
        ({"state_dim": 5}, "state has 4 elements, the policy a policy has 5"),
        ({"action_dim": 2}, "action has 3 elements, the policy a policy has 2"),
        ({"n_obs_steps": 2}, "looks at 2 successive observations"),
    ],
)
def test_session_that_does_not_is_told_both_sides(changed: dict, said: str) -> None:
    with pytest.raises(SetupRefusedError, match=said):
        replace(NEEDS, **changed).check(CONTRACT_POLICY)
