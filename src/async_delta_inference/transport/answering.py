"""`Answering`: asks the policy for a batch of requests, and gives every session its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from async_delta_inference.errors import PolicyError
from async_delta_inference.transport.failures import PolicyFailures
from async_delta_inference.transport.finite import is_finite
from async_delta_inference.transport.inbox import Seat
from async_delta_inference.transport.messages import SessionSpec
from async_delta_inference.transport.policy import Answer, EpisodeStart, Launched, OverlappingPolicy, Policy

__all__ = ["Answering", "Computation"]

_FLOAT32 = np.dtype(np.float32)


class Answering:
    """What the inference loop does with the seats that its inbox hands out.

    Args:
        policy: Answers.
        on_failure: Told of a session that raised, and what; the others go on.
    """

    def __init__(self, policy: Policy, on_failure: Callable[[Seat, Exception], None]) -> None:
        self._infer = policy.infer
        self._overlapping = policy if isinstance(policy, OverlappingPolicy) else None
        self._on_failure = on_failure
        self._failures = PolicyFailures()

    def one(self, seats: tuple[Seat]) -> None:
        """Answer the observation that the only seat holds, on the shortest path. Raises nothing."""
        (seat,) = seats
        if seat.observation.episode != seat.episode and not self._is_in_episode(seat):
            return
        try:
            answers = self._infer(seats)
            answer = answers[0] if len(answers) == 1 else _miscounted(answers, seats)
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - its author reads it, its client hears of it
            answer = self._failures.as_error("inference", exc)
        self._pass_on(seat, answer)

    def several(self, seats: Sequence[Seat]) -> None:
        """Answer the observations that the seats hold, each of another session. Raises nothing."""
        seats = [seat for seat in seats if self._is_in_episode(seat)]
        if seats:
            self._pass_all_on(seats, partial(self._infer, seats))

    def _pass_all_on(self, seats: Sequence[Seat], ask: Callable[[], Sequence[Answer]]) -> None:
        try:
            answers = ask()
            if len(answers) != len(seats):
                answers = [_miscounted(answers, seats)] * len(seats)
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - its author reads it, its client hears of it
            answers = [self._failures.as_error("inference", exc)] * len(seats)
        for seat, answer in zip(seats, answers, strict=True):
            self._pass_on(seat, answer)

    @property
    def overlaps(self) -> bool:
        """Whether the policy is to be asked with `launch`."""
        return self._overlapping is not None and self._overlapping.overlaps

    def launch(self, seats: Sequence[Seat]) -> Computation:
        """As `several`, without waiting for the policy. Raises nothing."""
        assert self._overlapping is not None
        seats = [seat for seat in seats if self._is_in_episode(seat)]
        try:
            collect = self._overlapping.launch(seats) if seats else _AtOnce([])
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - its author reads it, its client hears of it
            error = self._failures.as_error("inference", exc)
            collect = _AtOnce([error] * len(seats))
        return Computation(self, seats, collect)

    def prepare(self, seats: Sequence[Seat], meanwhile: Computation) -> Sequence[Seat]:
        """Have the policy begin with the next batch as long as it computes; gives the seats that stay in it.

        Raises nothing: what cannot be prepared is asked for as it is.
        """
        assert self._overlapping is not None
        staying = [seat for seat in seats if self._is_in_episode(seat)]
        for seat in staying:
            if meanwhile.is_done():
                break
            try:
                self._overlapping.prepare(seat)
            except Exception as exc:  # noqa: BLE001 - told, and raised again when it is its turn
                self._failures.as_error("preparing an inference", exc)
        return staying

    def _pass_on(self, seat: Seat, answer: Answer) -> None:
        try:
            # Look for what is as it should be, and ask what is wrong only then: this runs once per message.
            if (
                type(answer) is np.ndarray
                and answer.shape == seat.whole_chunk
                and answer.dtype is _FLOAT32
                and is_finite(data := answer.tobytes())
            ):
                seat.served.answer(seat.observation, data)
            else:
                self._reply(seat, answer)
        except Exception as exc:  # noqa: BLE001 - whatever a session raises ends that session alone
            self._on_failure(seat, exc)

    def _is_in_episode(self, seat: Seat) -> bool:
        """Whether the policy is reset for the episode of the seat's observation; else the client was told."""
        observation = seat.observation
        if observation.episode == seat.episode:
            return True
        try:
            seat.session.reset(EpisodeStart(observation.episode, observation.task))
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - its author reads it, its client hears of it
            self._pass_on(seat, self._failures.as_error("the policy's reset", exc))
            return False
        seat.episode = observation.episode
        return True

    def _reply(self, seat: Seat, answer: Answer) -> None:
        """Pass on whatever an answer may be: a shorter chunk, an error, nothing, or what no policy should give."""
        session, observation = seat.served, seat.observation
        if answer is None:
            session.pass_over(observation)
        elif isinstance(answer, PolicyError):
            session.fail(observation, str(answer))
        elif fault := _fault_of(answer, session.spec):
            session.fail(observation, fault)
        elif is_finite(data := answer.tobytes()):
            session.answer(observation, data)
        else:
            timestep = observation.timestep
            session.fail(observation, f"the policy gave actions that are not finite for timestep {timestep}")


def _miscounted(answers: Sequence[Answer], seats: Sequence[Seat]) -> PolicyError:
    return PolicyError(f"the policy gave {len(answers)} answers to {len(seats)} requests")


def _fault_of(actions: object, spec: SessionSpec) -> str:
    """What is wrong with the form of a policy's answer; empty for nothing."""
    rows, columns = spec.actions_per_chunk, spec.action_dim
    if not isinstance(actions, np.ndarray):
        return f"the policy gave a {type(actions).__name__}; agreed were float32 (n, {columns})"
    shape = actions.shape
    if actions.dtype != _FLOAT32 or len(shape) != 2 or shape[1] != columns:
        return f"the policy gave actions of {actions.dtype} {shape}; agreed were float32 (n, {columns})"
    if not 1 <= shape[0] <= rows:
        return f"the policy gave {shape[0]} actions, agreed were 1 to {rows}"
    return ""


class Computation:
    """A batch that the policy's device computes.

    Args:
        answering: Passes the answers on.
        seats: Whose they are.
        launched: Waits for them.
    """

    def __init__(self, answering: Answering, seats: Sequence[Seat], launched: Launched) -> None:
        self._answering = answering
        self._seats = seats
        self._launched = launched

    def is_done(self) -> bool:
        """Whether the answers can be passed on without waiting; what cannot say it is waited for."""
        try:
            return self._launched.is_done()
        except Exception:  # noqa: BLE001 - waiting for it raises the same
            return True

    def wait_and_answer(self) -> None:
        """Raises nothing."""
        self._answering._pass_all_on(self._seats, self._launched)


class _AtOnce:
    """Answers that are there."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = answers

    def __call__(self) -> Sequence[Answer]:
        return self._answers

    def is_done(self) -> bool:
        return True
