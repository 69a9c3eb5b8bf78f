"""`ScriptedPolicy`: a policy whose answers a test can predict, hold back and spoil, and which remembers what it saw."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import PolicyError, SetupRefusedError
from async_delta_inference.transport.computation import Computation
from async_delta_inference.transport.messages import Observation, SessionSpec
from async_delta_inference.transport.policy import Answer, EpisodeStart, PolicyNeeds, Request
from async_delta_inference.transport.testing.messages import scripted_actions

__all__ = ["COMPUTATION", "DESCRIPTION", "ScriptedPolicy", "SessionRecord", "scripted_function"]

DESCRIPTION = "the contract's scripted policy"
COMPUTATION: Computation = {"device": "cpü", "threads": 2, "tf32": False, "scale": 0.5, "driver": None}

SIMILAR = 1.0
"""Distance of two states below which the second is not worth an answer, unless it must have one. PolicyServer's."""

LONGEST_HOLD_S = 120.0
"""A test that forgot to release the policy must not keep its server for ever."""


@dataclass
class SessionRecord:
    """What the policy was told of one session, in order of the calls: plain data.

    Args:
        spec: What the client asked for.
        events: ``("reset", episode, task)`` and ``("infer", timestep, episode)``.
        histories: The timesteps of every observation's history.
        delays: The inference delay of every observation.
        prefixes: Of every observation that has them, the executed and the committed actions.
        client: The number that the client wrote into the state; None before its first observation.
        closed: How often the session was closed.
    """

    spec: SessionSpec
    events: list[tuple[str | int, ...]] = field(default_factory=list)
    histories: list[list[int]] = field(default_factory=list)
    delays: list[int | None] = field(default_factory=list)
    prefixes: list[list[list[list[float]]]] = field(default_factory=list)
    client: int | None = None
    closed: int = 0

    def episodes(self) -> list[tuple[str | int, ...]]:
        """Episode and task of every reset."""
        return [event[1:] for event in self.events if event[0] == "reset"]

    def timesteps(self) -> list[str | int]:
        """The timesteps of the observations that the policy was asked about."""
        return [event[1] for event in self.events if event[0] == "infer"]


class _Session:
    """The policy's half of one session."""

    def __init__(self, record: SessionRecord) -> None:
        self.record = record
        self.answered_state: NDArray[np.float32] | None = None

    def reset(self, episode: EpisodeStart) -> None:
        self.record.events.append(("reset", episode.episode, episode.task))
        self.answered_state = None

    def close(self) -> None:
        self.record.closed += 1


class _Gate:
    """Where inferences wait that have begun and may not end."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._permits: int | None = None

    def set_permits(self, permits: int | None) -> None:
        """How many may pass; None for all."""
        with self._condition:
            self._permits = permits
            self._condition.notify_all()

    def let_one_pass(self) -> None:
        with self._condition:
            assert self._permits is not None, "hold() comes first"
            self._permits += 1
            self._condition.notify_all()

    def wait(self) -> None:
        with self._condition:
            if not self._condition.wait_for(lambda: self._permits is None or self._permits > 0, LONGEST_HOLD_S):
                raise RuntimeError("the test did not release the policy that it held")
            if self._permits is not None:
                self._permits -= 1


class ScriptedPolicy:
    """A `Policy` that answers `scripted_actions`. What a test tells it may come from any thread."""

    def __init__(self) -> None:
        self._needs = PolicyNeeds(DESCRIPTION)
        self._gate = _Gate()
        self._records: list[SessionRecord] = []
        self._batches: list[list[tuple[int, int]]] = []
        # By the number of the client; None stands for whoever is next.
        self._failures: dict[int | None, str] = {}
        self._misbehaviours: dict[int | None, str] = {}
        self._open_failure = ""

    # The policy.

    def describe(self, spec: SessionSpec) -> PolicyNeeds:
        """See `Policy`."""
        if spec.policy_type == "nonsense":
            raise SetupRefusedError("the policy type 'nonsense' is not known here")
        return self._needs

    def open(self, spec: SessionSpec) -> _Session:
        """See `Policy`."""
        if self._open_failure:
            failure, self._open_failure = self._open_failure, ""
            raise RuntimeError(failure)
        record = SessionRecord(spec)
        self._records.append(record)
        return _Session(record)

    def computation(self) -> Computation:
        """See `TellingPolicy`."""
        return COMPUTATION

    def infer(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """See `Policy`."""
        self._batches.append([_sender(request.observation) for request in requests])
        for request in requests:
            assert isinstance(request.session, _Session)
            observation, record = request.observation, request.session.record
            client, timestep = _sender(observation)
            record.client = client
            record.events.append(("infer", timestep, observation.episode))
            record.delays.append(observation.inference_delay)
            if (told := observation.prefix) is not None:
                record.prefixes.append([told.executed.tolist(), told.committed.tolist()])
            record.histories.append([_sender(Observation(past.images, past.state))[1] for past in observation.history])
        self._gate.wait()
        if None in self._failures:
            raise RuntimeError(self._failures.pop(None))
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Answer:
        session, observation = request.session, request.observation
        assert isinstance(session, _Session)
        client, _ = _sender(observation)
        if client in self._failures:
            return PolicyError(self._failures.pop(client))
        last = session.answered_state
        if not observation.must_go and last is not None and np.linalg.norm(observation.state - last) < SIMILAR:
            return None
        try:
            answer = scripted_function(observation, session.record.spec)
        except ValueError as exc:
            return PolicyError(str(exc))
        session.answered_state = observation.state.copy()
        how = self._misbehaviours.pop(client, "") or self._misbehaviours.pop(None, "")
        return _spoiled(answer, how)

    # What a test tells it.

    def hold(self) -> None:
        """Let inferences begin but not end until `release`."""
        self._gate.set_permits(0)

    def step(self) -> None:
        """Let one inference end while the others are held."""
        self._gate.let_one_pass()

    def release(self) -> None:
        """End `hold`."""
        self._gate.set_permits(None)

    def fail_next(self, message: str, client: int | None = None) -> None:
        """Make the next inference raise ``RuntimeError(message)``; or answer the next of one client with an error."""
        self._failures[client] = message

    def misbehave_next(self, how: str, client: int | None = None) -> None:
        """Make the next answer, or the next of one client, wrong.

        Args:
            how: ``"wide"`` for one column too many, ``"long"`` for one row too many, or ``"nan"``.
            client: Whose answer; None for the next one's.
        """
        self._misbehaviours[client] = how

    def fail_open(self, message: str) -> None:
        """Make the next session's opening raise ``RuntimeError(message)``."""
        self._open_failure = message

    def ask_for(self, needs: PolicyNeeds) -> None:
        """What the next session must bring."""
        self._needs = needs

    # What a test asks it.

    def batches(self) -> list[list[tuple[int, int]]]:
        """The requests of every inference that began, each as its client and timestep."""
        return [list(batch) for batch in self._batches]

    def sessions(self) -> list[SessionRecord]:
        """In the order in which they were opened."""
        return list(self._records)


def scripted_function(observation: Observation, spec: SessionSpec | None = None) -> NDArray[np.float32]:
    """The scripted policy's answer as a plain function.

    Args:
        observation: What a contract's client sent.
        spec: For the shape of the answer; the contract's by default.

    Raises:
        ValueError: A frame is torn: its pixels differ.
    """
    client, timestep = _sender(observation)
    for past in observation.history:
        _pixel_of(Observation(past.images, past.state))
    pixel = _pixel_of(observation)
    if spec is None:
        return scripted_actions(timestep, pixel, client)
    return scripted_actions(timestep, pixel, client, spec.actions_per_chunk, spec.action_dim)


def _pixel_of(observation: Observation) -> int:
    pixels = sorted({int(value) for image in observation.images.values() for value in np.unique(image)})
    if len(pixels) > 1:
        raise ValueError(f"torn frame: pixels {pixels}")
    return pixels[0] if pixels else 0


def _sender(observation: Observation) -> tuple[int, int]:
    """Client and timestep, from the state: what a backend may have mixed up is not asked."""
    return int(observation.state[1]), int(observation.state[0])


def _spoiled(actions: NDArray[np.float32], how: str) -> NDArray[np.float32]:
    if how == "wide":
        return np.hstack([actions, actions[:, :1]])
    if how == "long":
        return np.vstack([actions, actions[:1]])
    if how == "nan":
        actions[2, 1] = np.nan
    return actions
