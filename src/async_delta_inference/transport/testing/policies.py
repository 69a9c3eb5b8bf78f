"""What a policy decides: whom it serves, its errors, its episodes, its name; and a plain function in its place."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from async_delta_inference.errors import PolicyError, ProtocolError, SetupRefusedError
from async_delta_inference.transport.client import Transport
from async_delta_inference.transport.messages import Observation, SessionSpec
from async_delta_inference.transport.policy import PolicyNeeds
from async_delta_inference.transport.registry import connect
from async_delta_inference.transport.testing.base import IMPATIENT, WAIT_S, ContractBase, eventually
from async_delta_inference.transport.testing.messages import CONTRACT_POLICY, contract_observation, expect_answer
from async_delta_inference.transport.testing.peer import ServedPeer
from async_delta_inference.transport.testing.policy import COMPUTATION, DESCRIPTION, scripted_function

__all__ = ["PolicyCases"]

SHAPES = dict(CONTRACT_POLICY.features.images)


class PolicyCases(ContractBase):
    """The policy's word, and how it reaches the client."""

    # Whom it serves.

    def test_policy_type_is_refused(self, peer: ServedPeer) -> None:
        with pytest.raises(SetupRefusedError, match="nonsense"):
            connect(peer.uri, replace(CONTRACT_POLICY, policy_type="nonsense"), IMPATIENT)
        _expect_service(peer)

    @pytest.mark.parametrize(
        ("needs", "both_sides"),
        [
            pytest.param({"images": {"front": None, "top": None}}, ["top", "wrist"], id="cameras"),
            pytest.param({"images": SHAPES | {"wrist": (9, 8, 3)}}, [r"\(9, 8, 3\)", r"\(8, 8, 3\)"], id="image shape"),
            pytest.param({"state_dim": 7}, ["7", "4"], id="state"),
            pytest.param({"action_dim": 6}, ["6", "3"], id="action"),
        ],
    )
    def test_session_that_does_not_bring_what_the_policy_needs_is_refused(
        self, peer: ServedPeer, needs: dict[str, object], both_sides: list[str]
    ) -> None:
        peer.ask_for(PolicyNeeds(DESCRIPTION, **needs))  # type: ignore[arg-type]
        with pytest.raises(SetupRefusedError) as info:
            connect(peer.uri, CONTRACT_POLICY, IMPATIENT)
        for side in both_sides:
            assert info.match(side)
        assert peer.sessions() == []
        peer.ask_for(PolicyNeeds(DESCRIPTION, SHAPES, state_dim=4, action_dim=3))
        _expect_service(peer)

    def test_policy_that_cannot_be_opened_refuses_the_session_and_serves_the_next(self, peer: ServedPeer) -> None:
        peer.fail_open("no such checkpoint")
        with pytest.raises(SetupRefusedError, match="no such checkpoint"):
            connect(peer.uri, CONTRACT_POLICY, IMPATIENT)
        _expect_service(peer)

    def test_session_that_names_no_policy_gets_what_is_served(self, peer: ServedPeer) -> None:
        anything = replace(CONTRACT_POLICY, policy_type="", pretrained_name_or_path="")
        with connect(peer.uri, anything, IMPATIENT) as transport:
            transport.send_observation(contract_observation(2))
            expect_answer(transport.receive_actions(WAIT_S), 2)
            assert transport.description == (DESCRIPTION if self.carries_description else "")

    def test_server_says_what_it_serves(self, peer: ServedPeer) -> None:
        described = "a policy with an ö in its name"
        peer.ask_for(PolicyNeeds(described))
        with connect(peer.uri, CONTRACT_POLICY, IMPATIENT) as transport:
            assert transport.description == (described if self.carries_description else "")

    def test_server_says_how_its_policy_computes(self, transport: Transport) -> None:
        assert transport.computation == (COMPUTATION if self.carries_computation else {})

    def test_policy_is_told_what_the_session_asked_for(self, peer: ServedPeer) -> None:
        asked = replace(CONTRACT_POLICY, actions_per_chunk=2)
        with connect(peer.uri, asked, IMPATIENT) as transport:
            transport.send_observation(contract_observation(0))
            chunk = transport.receive_actions(WAIT_S)
            assert chunk is not None
            assert len(chunk) == 2
        (session,) = peer.sessions()
        spec = session.spec
        assert (spec.policy_type, spec.pretrained_name_or_path) == ("act", "scripted")
        assert (spec.actions_per_chunk, spec.device) == (2, "cpu")
        assert spec.features.state_dim == 4
        assert dict(spec.features.images) == SHAPES

    def test_plain_function_is_served(self) -> None:
        with (
            ServedPeer(self.scheme, link=self.link, make_policy=_make_function) as peer,
            connect(peer.uri, CONTRACT_POLICY, IMPATIENT) as transport,
        ):
            for timestep in range(5):
                transport.send_observation(contract_observation(timestep, client=2, episode=timestep // 2))
                expect_answer(transport.receive_actions(WAIT_S), timestep, client=2)
            if self.carries_description:
                assert transport.description.endswith("answer_by_function")
            assert transport.computation == {}

    # Its errors.

    def test_policy_error_is_raised_and_the_session_goes_on(self, transport: Transport, peer: ServedPeer) -> None:
        peer.fail_next("the policy broke")
        transport.send_observation(contract_observation(0))
        with pytest.raises(PolicyError) as info:
            transport.receive_actions(WAIT_S)
        assert info.value.timestep == 0
        transport.send_observation(contract_observation(1))
        expect_answer(transport.receive_actions(WAIT_S), 1)

    def test_policy_that_fails_for_one_session_answers_the_others(self, transport: Transport, peer: ServedPeer) -> None:
        peer.fail_next("not for you", client=1)
        with connect(peer.uri, CONTRACT_POLICY, IMPATIENT) as other:
            for timestep in range(2):
                transport.send_observation(contract_observation(timestep))
                other.send_observation(contract_observation(timestep, client=1))
                expect_answer(transport.receive_actions(WAIT_S), timestep)
                if timestep == 0:
                    with pytest.raises(PolicyError):
                        other.receive_actions(WAIT_S)
                else:
                    expect_answer(other.receive_actions(WAIT_S), timestep, client=1)

    @pytest.mark.parametrize(
        ("how", "said"), [("nan", "finite"), ("wide", "4"), ("long", "6")], ids=["not finite", "too wide", "too long"]
    )
    def test_actions_that_were_not_agreed_are_an_error(
        self, transport: Transport, peer: ServedPeer, how: str, said: str
    ) -> None:
        peer.misbehave_next(how)
        transport.send_observation(contract_observation(0))
        with pytest.raises((PolicyError, ProtocolError), match=said):
            transport.receive_actions(WAIT_S)

    def test_wrong_answer_to_one_session_ends_no_other(self, transport: Transport, peer: ServedPeer) -> None:
        peer.misbehave_next("wide", client=1)
        with connect(peer.uri, CONTRACT_POLICY, IMPATIENT) as other:
            other.send_observation(contract_observation(0, client=1))
            with pytest.raises((PolicyError, ProtocolError)):
                other.receive_actions(WAIT_S)
            transport.send_observation(contract_observation(0))
            expect_answer(transport.receive_actions(WAIT_S), 0)

    # What it chooses not to answer.

    def test_filtered_observation_is_no_error(self, transport: Transport) -> None:
        transport.send_observation(contract_observation(0))
        expect_answer(transport.receive_actions(WAIT_S), 0)
        transport.send_observation(_same_state(1))
        until_s = time.monotonic() + 0.5
        assert transport.receive_actions(0.5) is None
        assert time.monotonic() >= until_s, "what is not answered must not end a wait"
        transport.send_observation(contract_observation(50))
        expect_answer(transport.receive_actions(WAIT_S), 50)

    def test_filter_knows_each_session_alone(self, transport: Transport, peer: ServedPeer) -> None:
        with connect(peer.uri, CONTRACT_POLICY, IMPATIENT) as other:
            transport.send_observation(contract_observation(0))
            expect_answer(transport.receive_actions(WAIT_S), 0)
            # The same that the first session was answered with: of the second it is the first.
            other.send_observation(contract_observation(0, must_go=False))
            expect_answer(other.receive_actions(WAIT_S), 0)

    def test_replaced_observation_leaves_its_claim_to_an_answer(self, transport: Transport, peer: ServedPeer) -> None:
        peer.hold()
        transport.send_observation(contract_observation(0))
        eventually(lambda: peer.seen() == [0])
        transport.send_observation(contract_observation(1))
        eventually(lambda: peer.waiting() == [1])
        similar = _same_state(2)
        transport.send_observation(similar)
        eventually(lambda: peer.waiting() == [2])
        peer.release()
        expect_answer(transport.receive_actions(WAIT_S), 0)
        chunk = transport.receive_actions(WAIT_S)
        assert chunk is not None, "the observation that took another's place was filtered"
        assert chunk.timestep == 2

    # Its episodes.

    def test_episodes_follow_each_other(self, transport: Transport, peer: ServedPeer) -> None:
        for timestep in range(6):
            transport.send_observation(contract_observation(timestep, episode=timestep // 2))
            expect_answer(transport.receive_actions(WAIT_S), timestep)
        (session,) = peer.sessions()
        if self.carries_episodes:
            assert session.events == [
                *(("reset", 0, "task 0"), ("infer", 0, 0), ("infer", 1, 0)),
                *(("reset", 1, "task 2"), ("infer", 2, 1), ("infer", 3, 1)),
                *(("reset", 2, "task 4"), ("infer", 4, 2), ("infer", 5, 2)),
            ]
        else:
            assert session.events == [("reset", 0, "task 0"), *(("infer", timestep, 0) for timestep in range(6))]

    def test_episodes_of_one_session_are_none_of_anothers(self, transport: Transport, peer: ServedPeer) -> None:
        with connect(peer.uri, CONTRACT_POLICY, IMPATIENT) as other:
            for timestep in range(4):
                transport.send_observation(contract_observation(timestep, episode=3))
                expect_answer(transport.receive_actions(WAIT_S), timestep)
                other.send_observation(contract_observation(timestep, client=1, episode=timestep))
                expect_answer(other.receive_actions(WAIT_S), timestep, client=1)
        first, second = peer.sessions()
        if self.carries_episodes:
            assert first.episodes() == [(3, "task 0")]
            assert second.episodes() == [(timestep, f"task {timestep}") for timestep in range(4)]
        else:
            assert first.episodes() == second.episodes() == [(0, "task 0")]

    @pytest.mark.parametrize("task", ["", "pick up the soup", "ü" * 2048])
    def test_any_task_is_carried(self, transport: Transport, peer: ServedPeer, task: str) -> None:
        observation = contract_observation(3)
        observation.task = task
        transport.send_observation(observation)
        expect_answer(transport.receive_actions(WAIT_S), 3)
        (session,) = peer.sessions()
        assert session.episodes() == [(0, task)]


def answer_by_function(observation: Observation) -> list[list[float]]:
    """What a user serves who has no policy class."""
    rows: list[list[float]] = scripted_function(observation).tolist()
    return rows


def _make_function() -> Callable[[Observation], list[list[float]]]:
    return answer_by_function


def _same_state(timestep: int) -> Observation:
    """An observation that need not be answered, since its state is that of timestep 0."""
    observation = contract_observation(timestep, must_go=False)
    observation.state[0] = 0.0
    return observation


def _expect_service(peer: ServedPeer, spec: SessionSpec = CONTRACT_POLICY) -> None:
    with connect(peer.uri, spec, IMPATIENT) as transport:
        transport.send_observation(contract_observation(0))
        expect_answer(transport.receive_actions(WAIT_S), 0)
