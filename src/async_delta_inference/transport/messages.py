"""What crosses the process boundary: plain dataclasses of numpy arrays and scalars, without torch.

The names are LeRobot's. A *timestep* counts the actions of a whole session and never restarts: the observation with
timestep k is the input for action k, and the first row of the chunk it is answered with is action k.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import InvalidMessageError, ProtocolError
from async_delta_inference.transport.action_prefix import ActionPrefix, PrefixLimits
from async_delta_inference.transport.finite import is_finite
from async_delta_inference.transport.policy_options import PolicyOptions

__all__ = [
    "ENVIRONMENT_STATE_PREFIX",
    "ActionChunk",
    "Observation",
    "ObservationFeatures",
    "PastObservation",
    "SessionSpec",
]

ENVIRONMENT_STATE_PREFIX = "environment_state."
"""What begins the names of a state's elements that LeRobot calls ``observation.environment_state``: they come last."""

MAX_DELAY_STEPS = 2**30
MAX_TASK_BYTES = 4096
"""Upper bound of the UTF-8 length of ``Observation.task``, so that a fixed slot can hold it."""

_UINT8 = np.dtype(np.uint8)
_FLOAT32 = np.dtype(np.float32)
_INTEGERS = (int, np.integer)


@dataclass(frozen=True)
class ObservationFeatures:
    """Names and shapes of what an environment observes: the schema of every `Observation` of a session.

    Args:
        state_names: One name per element of the state vector, in order; all different. PolicyServer receives the state
            as one float per name. Those of the robot come first, before those with `ENVIRONMENT_STATE_PREFIX`.
        images: Camera name (LeRobot's ``observation.images.`` prefix left out) to its shape (height, width, channels).
    """

    state_names: tuple[str, ...]
    images: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    # The same, in the form that checking every message needs.
    image_shapes: tuple[tuple[str, tuple[int, int, int]], ...] = field(init=False, repr=False, compare=False)
    state_shape: tuple[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "state_names", tuple(self.state_names))
        images = {name: (int(h), int(w), int(c)) for name, (h, w, c) in self.images.items()}
        object.__setattr__(self, "images", MappingProxyType(images))
        object.__setattr__(self, "image_shapes", tuple(images.items()))
        object.__setattr__(self, "state_shape", (len(self.state_names),))
        if not self.state_names:
            raise InvalidMessageError("an observation needs a state: PolicyServer cannot serve a policy without one")
        if len(set(self.state_names)) != len(self.state_names):
            raise InvalidMessageError(f"state names must differ from each other, got {self.state_names}")
        if any(not name.startswith(ENVIRONMENT_STATE_PREFIX) for name in self.state_names[self.robot_dim :]):
            raise InvalidMessageError(
                f"the state's elements {ENVIRONMENT_STATE_PREFIX}... come last, got {self.state_names}"
            )
        if clash := set(self.state_names) & {*self.images, "task"}:
            raise InvalidMessageError(f"names are used for a state element and something else: {sorted(clash)}")
        for name, shape in images.items():
            if not name or min(shape) < 1:
                raise InvalidMessageError(f"camera {name!r} needs a name and a shape of positive sizes, got {shape}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.state_names, dict(self.images))

    @property
    def state_dim(self) -> int:
        """Length S of the state vector."""
        return len(self.state_names)

    @property
    def robot_dim(self) -> int:
        """How many elements of the state are the robot's; what follows is LeRobot's environment_state."""
        return sum(not name.startswith(ENVIRONMENT_STATE_PREFIX) for name in self.state_names)

    def to_lerobot(self) -> dict[str, dict[str, Any]]:
        """The same as LeRobot dataset features, the form in which PolicyServer takes them."""
        features: dict[str, dict[str, Any]] = {
            "observation.state": {
                "dtype": "float32",
                "shape": (self.state_dim,),
                "names": list(self.state_names),
            }
        }
        for name, shape in self.images.items():
            features[f"observation.images.{name}"] = {
                "dtype": "image",
                "shape": shape,
                "names": ["height", "width", "channels"],
            }
        return features


@dataclass(frozen=True)
class SessionSpec:
    """What a client asks of a server for one session.

    Args:
        policy_type: LeRobot's name of the policy class, such as ``act``; empty for whatever the server serves.
        pretrained_name_or_path: Checkpoint folder on the server, or hub name; empty for whatever the server serves.
        actions_per_chunk: Upper bound of the rows of a chunk.
        features: Schema of the observations that will be sent.
        action_dim: Length A of one action; a chunk of another width is a `ProtocolError`.
        device: Torch device of the policy on the server.
        options: How the policy is to be loaded and asked.

    Raises:
        InvalidMessageError: A number is out of its range.
    """

    policy_type: str
    pretrained_name_or_path: str
    actions_per_chunk: int
    features: ObservationFeatures
    action_dim: int
    device: str = "cpu"
    options: PolicyOptions = field(default_factory=PolicyOptions)

    def __post_init__(self) -> None:
        if self.actions_per_chunk < 1:
            raise InvalidMessageError(f"actions_per_chunk must be at least 1, got {self.actions_per_chunk}")
        if self.action_dim < 1:
            raise InvalidMessageError(f"action_dim must be at least 1, got {self.action_dim}")

    @property
    def names_policy(self) -> bool:
        """Whether it asks for a checkpoint; else for whatever the server serves."""
        return bool(self.pretrained_name_or_path)


@dataclass(slots=True, eq=False)
class PastObservation:
    """What the robot saw one or more steps before an observation.

    Args:
        images: As `Observation.images`.
        state: As `Observation.state`.
    """

    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]

    @classmethod
    def empty(cls, features: ObservationFeatures) -> PastObservation:
        """One of ordinary, uninitialised memory that fits ``features``."""
        return cls(_empty_images(features), np.empty(features.state_dim, np.float32))

    def copy(self) -> PastObservation:
        """A deep copy: shares no memory with this one."""
        return PastObservation({name: image.copy() for name, image in self.images.items()}, self.state.copy())


@dataclass(slots=True, eq=False)
class Observation:
    """One observation: what the robot saw before action ``timestep``.

    Args:
        images: Camera name to uint8 (height, width, channels), as the policy is to see it (already rotated).
        state: float32 (S,).
        timestep: Of the action that this observation is the input for. Never restarts within a session.
        task: The instruction in natural language, at most `MAX_TASK_BYTES` of UTF-8.
        must_go: Whether the server must answer it; False leaves it to PolicyServer's similarity filter.
        episode: Index of the episode; a change tells the server to reset the policy where the backend can carry it.
        timestamp_s: Wall clock at capture, seconds since the epoch; orientation for logs, never compared across hosts.
        history: What was observed at the steps before, the oldest first: as many as the policy looks at besides this
            one, see `PolicyNeeds.n_obs_steps`. Where there were fewer, the episode's first observation is repeated.
        inference_delay: Steps from this observation to its answer taking effect, as the client expects it; None: not
            known. LeRobot's gRPC protocol cannot carry it.
        prefix: What the robot did and is about to do, where the policy wants to be told, see `PolicyNeeds.prefix`; else
            None.
    """

    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    timestep: int = 0
    task: str = ""
    must_go: bool = True
    episode: int = 0
    timestamp_s: float = 0.0
    history: tuple[PastObservation, ...] = ()
    inference_delay: int | None = None
    prefix: ActionPrefix | None = None
    loan: object | None = field(default=None, repr=False)
    """The transport that loaned the arrays, set by it alone; None for the caller's own."""

    @classmethod
    def empty(cls, features: ObservationFeatures, n_obs_steps: int = 1) -> Observation:
        """An observation of ordinary, uninitialised memory that fits ``features``, with its history."""
        return cls(
            images=_empty_images(features),
            state=np.empty(features.state_dim, np.float32),
            history=tuple(PastObservation.empty(features) for _ in range(n_obs_steps - 1)),
        )

    def steps(self) -> tuple[PastObservation, ...]:
        """What was observed, the oldest first, this observation last; with the same arrays."""
        return (*self.history, PastObservation(self.images, self.state))

    def make_read_only(self) -> None:
        """Have every later write to its arrays raise."""
        for seen in self.steps():
            seen.state.setflags(write=False)
            for image in seen.images.values():
                image.setflags(write=False)
        if self.prefix is not None:
            self.prefix.make_read_only()

    def copy(self) -> Observation:
        """A deep copy: shares no memory with this one."""
        return Observation(
            images={name: image.copy() for name, image in self.images.items()},
            state=self.state.copy(),
            timestep=self.timestep,
            task=self.task,
            must_go=self.must_go,
            episode=self.episode,
            timestamp_s=self.timestamp_s,
            history=tuple(past.copy() for past in self.history),
            inference_delay=self.inference_delay,
            prefix=None if self.prefix is None else self.prefix.copy(),
        )

    def check_prefix(self, limits: PrefixLimits, action_dim: int) -> None:
        """Refuse a prefix that was not agreed, or none where one was.

        Raises:
            InvalidMessageError: It says what is wrong.
        """
        if not limits:
            if self.prefix is not None:
                raise InvalidMessageError("the policy does not ask for the robot's actions: leave the prefix out")
        elif type(self.prefix) is not ActionPrefix:
            raise InvalidMessageError("the policy wants to be told of the robot's actions: give a prefix")
        else:
            self.prefix.check(limits, action_dim)

    def check(self, features: ObservationFeatures, n_obs_steps: int = 1) -> None:
        """Refuse what does not fit the schema.

        Args:
            features: The schema.
            n_obs_steps: How many observations the policy looks at: one more than the history has.

        Raises:
            InvalidMessageError: A camera is missing or unknown, or a shape, a dtype or a scalar is wrong.
        """
        images = self.images
        schema = features.image_shapes
        if len(images) != len(schema):
            self._refuse_cameras(features)
        for name, shape in schema:
            image = images.get(name)
            # This runs once per message: look for what is as it should be, and ask what is wrong only then.
            if type(image) is not np.ndarray or image.shape != shape or image.dtype is not _UINT8:
                if image is None:
                    self._refuse_cameras(features)
                _check_array(f"image {name!r}", image, shape, np.uint8)
        state = self.state
        if type(state) is not np.ndarray or state.shape != features.state_shape or state.dtype is not _FLOAT32:
            _check_array("state", state, features.state_shape, np.float32)
        if len(self.history) != n_obs_steps - 1:
            raise InvalidMessageError(
                f"the policy looks at {n_obs_steps} observations, so the history must have {n_obs_steps - 1}, "
                f"got {len(self.history)}"
            )
        for past in self.history:
            Observation(past.images, past.state).check(features)
        self.check_scalars()

    def check_scalars(self) -> None:
        """The part of `check` that is about scalars.

        Raises:
            InvalidMessageError: One is out of its range.
        """
        for name, value in (("timestep", self.timestep), ("episode", self.episode)):
            if not isinstance(value, _INTEGERS) or not 0 <= value < 2**63:
                raise InvalidMessageError(f"{name} must be an integer in [0, 2**63), got {value!r}")
        delay = self.inference_delay
        if delay is not None and (not isinstance(delay, _INTEGERS) or not 0 <= delay <= MAX_DELAY_STEPS):
            raise InvalidMessageError(f"inference_delay must be an integer in [0, {MAX_DELAY_STEPS}], got {delay!r}")
        if not _is_finite(self.timestamp_s):
            raise InvalidMessageError(f"timestamp_s must be a finite number, got {str(self.timestamp_s)[:40]}")
        task = self.task
        if not isinstance(task, str):
            raise InvalidMessageError(f"task must be a text, got {task!r}")
        if not task.isascii() or len(task) > MAX_TASK_BYTES:
            _check_text(task)

    def _refuse_cameras(self, features: ObservationFeatures) -> None:
        raise InvalidMessageError(
            f"observation has the cameras {sorted(self.images)}, agreed were {sorted(features.images)}"
        )


@dataclass(slots=True, eq=False)
class ActionChunk:
    """The answer to one observation.

    Args:
        actions: float32 (n, A), 1 <= n <= actions_per_chunk. Owned by the receiver: it stays valid.
        timestep: Of the first row, equal to the timestep of the observation it answers.
        timestamp_s: The observation's ``timestamp_s``, returned unchanged.
        arrived_ns: ``time.monotonic_ns()`` when it became available to the client, which may have looked later.
        memory: The bytes in which ``actions`` lies, all of them; None where they are not known.
    """

    actions: NDArray[np.float32]
    timestep: int
    timestamp_s: float = 0.0
    arrived_ns: int = field(default_factory=time.monotonic_ns)
    memory: bytearray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.actions)

    def check(self, longest_chunk: int, action_dim: int, newest_timestep: int) -> None:
        """Refuse what the peer should not have sent.

        Args:
            longest_chunk: Most rows, as agreed.
            action_dim: Length of an action, as agreed.
            newest_timestep: The newest that was sent.

        Raises:
            ProtocolError: It says what was sent and what was agreed.
        """
        actions, timestep = self.actions, self.timestep
        if not 0 <= timestep <= newest_timestep:
            raise ProtocolError(f"the server answers timestep {timestep}; the newest sent is {newest_timestep}")
        if actions.ndim != 2 or actions.shape[1] != action_dim or actions.dtype != np.float32:
            raise ProtocolError(
                f"the server sent actions of {actions.dtype} {actions.shape}; the environment takes float32 "
                f"(n, {action_dim})"
            )
        if not 1 <= len(actions) <= longest_chunk:
            raise ProtocolError(f"the server sent {len(actions)} actions; agreed were 1 to {longest_chunk}")
        if not is_finite(actions.tobytes()):
            raise ProtocolError(f"the chunk of timestep {timestep} has actions that are not finite")


def _empty_images(features: ObservationFeatures) -> dict[str, NDArray[np.uint8]]:
    return {name: np.empty(shape, np.uint8) for name, shape in features.images.items()}


def _check_array(what: str, array: object, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    if not isinstance(array, np.ndarray):
        raise InvalidMessageError(f"{what} must be a numpy array, got {type(array).__name__}")
    if array.shape != shape or array.dtype != dtype:
        raise InvalidMessageError(f"{what} must be {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}")


def _is_finite(value: object) -> bool:
    try:
        return math.isfinite(value)  # type: ignore[arg-type]
    except (TypeError, OverflowError):
        return False


def _check_text(task: str) -> None:
    try:
        size = len(task.encode())
    except UnicodeEncodeError as exc:
        raise InvalidMessageError(f"task must be text that UTF-8 can hold: {exc}") from exc
    if size > MAX_TASK_BYTES:
        raise InvalidMessageError(f"task must be at most {MAX_TASK_BYTES} bytes of UTF-8, got {size}")
