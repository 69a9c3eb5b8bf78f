"""`Policy`: what a server asks for actions, whoever wrote it and whichever transport the question came over.

::

    describe(spec)       cheap, before memory is laid out: what the policy says of itself and asks of a session
    open(spec)           a session begins; loads what is not loaded
        session.reset(episode_start)    an episode begins
        infer(requests)                 one observation each of different sessions; an answer each
    session.close()      the session is over

Three things are a policy's to have or not, and found by what it has: `SharingSession`, whose observations lie in memory
that it is shown first; `OverlappingPolicy`, which prepares the next batch while it computes this one; `TellingPolicy`,
which says how it computes.

All calls but `describe` come from one thread, the server's inference loop: thread pools and random generators of a
policy's framework belong to the thread that calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from async_delta_inference.errors import ConfigError, PolicyError, SetupRefusedError
from async_delta_inference.transport.action_prefix import NO_PREFIX, PrefixLimits
from async_delta_inference.transport.computation import Computation
from async_delta_inference.transport.failures import PolicyFailures
from async_delta_inference.transport.messages import Observation, SessionSpec

__all__ = [
    "Answer",
    "EpisodeStart",
    "FunctionPolicy",
    "Launched",
    "OverlappingPolicy",
    "Policy",
    "PolicyFunction",
    "PolicyNeeds",
    "PolicySession",
    "Request",
    "SharingSession",
    "TellingPolicy",
    "as_policy",
]

Answer = NDArray[np.float32] | PolicyError | None
"""To one request: float32 (n, A) with 1 <= n <= actions_per_chunk, copied before the next call of the policy; or the
error that the client is to raise; or None for an observation that the policy chose not to answer."""

PolicyFunction = Callable[[Observation], ArrayLike]
"""From an observation, whose arrays are read-only and valid until the function returns, to actions (n, A)."""


@dataclass(frozen=True)
class EpisodeStart:
    """What a policy is told when an episode begins.

    Args:
        episode: The observation's ``episode``.
        task: The instruction of the episode's first observation.
    """

    episode: int
    task: str


@dataclass(frozen=True)
class PolicyNeeds:
    """What a policy says of itself, and what a session must bring; None stands for anything.

    Args:
        description: What was evaluated, in words; it stands in the client's results.
        images: Camera name to its shape (height, width, channels), or to None for any shape. All of them, and no other.
        state_dim: Length of the state.
        action_dim: Length of an action.
        n_obs_steps: How many successive observations one inference looks at, see `Observation.history`.
        prefix: How many of the robot's own actions it wants to be told of, see `Observation.prefix`; none by default.
        computation: How it computes; put in by the host once a session is open, see `TellingPolicy`.
    """

    description: str
    images: Mapping[str, tuple[int, int, int] | None] | None = None
    state_dim: int | None = None
    action_dim: int | None = None
    n_obs_steps: int = 1
    prefix: PrefixLimits = NO_PREFIX
    computation: Computation = field(default_factory=dict)

    def check(self, spec: SessionSpec, *, carries_history: bool = False, carries_prefix: bool = False) -> None:
        """Refuse a session that cannot bring this.

        Args:
            spec: The session's.
            carries_history: Whether its transport carries more than one observation at a time.
            carries_prefix: Whether it carries the robot's own actions.

        Raises:
            SetupRefusedError: The message names both sides.
        """
        features = spec.features
        if self.images is not None:
            if set(self.images) != set(features.images):
                raise SetupRefusedError(
                    f"the environment sends the cameras {sorted(features.images)}, the policy {self.description} takes "
                    f"{sorted(self.images)}"
                )
            for name, shape in self.images.items():
                if shape is not None and tuple(shape) != features.images[name]:
                    raise SetupRefusedError(
                        f"the environment's camera {name!r} gives {features.images[name]}, the policy "
                        f"{self.description} takes {tuple(shape)}"
                    )
        for what, wanted, given in (
            ("state", self.state_dim, features.state_dim),
            ("action", self.action_dim, spec.action_dim),
        ):
            if wanted is not None and wanted != given:
                raise SetupRefusedError(
                    f"the environment's {what} has {given} elements, the policy {self.description} has {wanted}"
                )
        if self.n_obs_steps != 1 and not carries_history:
            raise SetupRefusedError(
                f"the policy {self.description} looks at {self.n_obs_steps} successive observations at once, and this "
                "transport carries one at a time: use shm"
            )
        if self.prefix and not carries_prefix:
            raise SetupRefusedError(
                f"the policy {self.description} wants to be told of the robot's own actions, which this transport does "
                "not carry: use shm, or gRPC in our own dialect (--grpc.dialect=native)"
            )


@runtime_checkable
class PolicySession(Protocol):
    """All that belongs to one client: nothing of it reaches another session."""

    def reset(self, episode: EpisodeStart) -> None:
        """Forget the last episode. Called before the first observation of each, the first one included."""

    def close(self) -> None:
        """The session is over, for whatever reason; called once."""


@dataclass(slots=True, eq=False)
class Request:
    """One observation that wants an answer.

    Args:
        session: What `Policy.open` returned for the client that sent it.
        observation: Its arrays are read-only, and the policy's until `Policy.infer` returns or ``release`` is called.
        release: Gives the observation's memory back early; a second call does nothing.
    """

    session: PolicySession
    observation: Observation
    release: Callable[[], None]


@runtime_checkable
class Policy(Protocol):
    """Answers the observations of many sessions."""

    def describe(self, spec: SessionSpec) -> PolicyNeeds:
        """What a session with this specification must bring. Called from any thread; loads nothing.

        Raises:
            SetupRefusedError: It cannot be served; the message says why.
        """

    def open(self, spec: SessionSpec) -> PolicySession:
        """Begin a session, and load what is not loaded.

        Raises:
            SetupRefusedError: It cannot be served. Any other exception refuses the session, too.
        """

    def infer(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """One answer per request, in order; the requests are of different sessions.

        Raises:
            Exception: Every request of the call is answered with it, as a `PolicyError`.
        """


@runtime_checkable
class SharingSession(PolicySession, Protocol):
    """A session that is shown where its observations will lie, to register that memory with a device, say."""

    def share(self, memory: memoryview) -> None:
        """Called once, before the first `reset`, and only by transports whose observations lie in one piece of memory.

        Args:
            memory: All of it, mapped until `close` has returned. The client writes to it: a policy only reads.
        """


class Launched(Protocol):
    """Answers that a device is computing."""

    def __call__(self) -> Sequence[Answer]:
        """Wait for them; called once."""

    def is_done(self) -> bool:
        """Whether nobody would have to wait."""


@runtime_checkable
class OverlappingPolicy(Policy, Protocol):
    """A policy that computes on a device: meanwhile the host looks at what it will compute next."""

    @property
    def overlaps(self) -> bool:
        """Whether it does, for the sessions that are open; else only `Policy.infer` is called."""

    def prepare(self, request: Request) -> None:
        """Begin with a request that will be among those of the next `launch`.

        Its session is not one of those that are being answered. `PolicySession.close` of its session calls it off.
        """

    def launch(self, requests: Sequence[Request]) -> Launched:
        """As `Policy.infer`, without waiting for the device; the answers are waited for before the next call."""


@runtime_checkable
class TellingPolicy(Policy, Protocol):
    """A policy that knows what its results may depend on besides itself; it stands in the client's record of a run."""

    def computation(self) -> Computation:
        """How it computes. Called each time that `Policy.open` has returned, before the session begins."""


class FunctionPolicy:
    """A plain function as a policy: asked for one observation after the other, with no state of its own.

    Args:
        function: From an observation to actions (n, A), anything that becomes float32. Rows beyond the session's
            ``actions_per_chunk`` are left out, as LeRobot's server does.
        description: What the results call it; the function's own name where it is empty.
        action_dim: Length of its actions, for clients that do not say how long theirs are: RobotClient over LeRobot's
            gRPC protocol. None: the client's.
    """

    def __init__(self, function: PolicyFunction, description: str = "", *, action_dim: int | None = None) -> None:
        self._function = function
        self._action_dim = action_dim
        self._failures = PolicyFailures()
        name = getattr(function, "__qualname__", type(function).__qualname__)
        self._description = description or f"{getattr(function, '__module__', '?')}.{name}"

    def describe(self, spec: SessionSpec) -> PolicyNeeds:
        """A function asks for nothing else: what does not fit shows when it is called.

        Raises:
            SetupRefusedError: Real-time chunking is asked for, which a function knows nothing of.
        """
        if spec.options.rtc.enabled:
            raise SetupRefusedError(
                f"--rtc.enabled=true: {self._description} is a function, and has no real-time chunking; leave the flag "
                "out"
            )
        return PolicyNeeds(self._description, action_dim=self._action_dim)

    def open(self, spec: SessionSpec) -> PolicySession:
        """A session without state."""
        return _FunctionSession(spec.actions_per_chunk)

    def infer(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """Call the function once per request; an exception answers that request alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Answer:
        try:
            given = self._function(request.observation)
            if given is None:
                raise PolicyError("the function returned None: let it return actions (n, A)")
            actions = np.asarray(given, np.float32)
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - its author reads it, its client hears of it
            return self._failures.as_error("the function", exc)
        assert isinstance(request.session, _FunctionSession)
        return actions[: request.session.rows] if actions.ndim else actions


@dataclass
class _FunctionSession:
    rows: int = field(default=1)

    def reset(self, episode: EpisodeStart) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to close."""


def as_policy(policy_or_function: Policy | PolicyFunction) -> Policy:
    """A policy as it is, a function as a `FunctionPolicy`.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(policy_or_function, Policy):
        return policy_or_function
    if callable(policy_or_function):
        return FunctionPolicy(policy_or_function)
    raise ConfigError(
        f"a {type(policy_or_function).__name__} cannot be served: give a function from an Observation to actions "
        "(n, A), or an object with describe(), open() and infer()"
    )
