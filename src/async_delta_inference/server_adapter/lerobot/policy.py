"""`LeRobotPolicy`: LeRobot's policies as a `Policy` of many sessions, on any transport."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch

from async_delta_inference.checkpoint_config import CheckpointConfig
from async_delta_inference.errors import PolicyError, SetupRefusedError
from async_delta_inference.server_adapter.computation import computation_of
from async_delta_inference.server_adapter.lerobot.asking import REFUSED_TYPES, Way, way_of
from async_delta_inference.server_adapter.lerobot.batches import Together, together_of
from async_delta_inference.server_adapter.lerobot.checkpoint import PolicyIdentity, checkpoint_config
from async_delta_inference.server_adapter.lerobot.loading import LoadedPolicy
from async_delta_inference.server_adapter.lerobot.session import LeRobotSession
from async_delta_inference.server_adapter.lerobot.surroundings import Surroundings
from async_delta_inference.transport.action_prefix import PrefixLimits
from async_delta_inference.transport.computation import Computation
from async_delta_inference.transport.failures import PolicyFailures
from async_delta_inference.transport.finite import is_finite
from async_delta_inference.transport.messages import Observation, SessionSpec
from async_delta_inference.transport.policy import Answer, Launched, PolicyNeeds, Request

__all__ = ["LeRobotPolicy"]

logger = logging.getLogger(__name__)


class LeRobotPolicy:
    """Serves one checkpoint at a time, of any type that LeRobot or an installed plugin knows.

    All sessions that ask for it are served, each with its own history, noise, names and chunks.

    Args:
        pinned: Whether a policy on a GPU gets frames out of pinned memory, where the transport has shared memory and
            the driver allows it.
    """

    def __init__(self, *, pinned: bool = True) -> None:
        import lerobot.policies  # noqa: F401 - types are known once their configurations are imported
        from lerobot.utils.import_utils import register_third_party_plugins

        register_third_party_plugins()
        self._failures = PolicyFailures()
        self._pinned = pinned
        self._loaded: LoadedPolicy | None = None
        self._way: Way
        self._together: Together | None = None
        self._surroundings: dict[object, Surroundings] = {}
        self._sessions: set[LeRobotSession] = set()

    @property
    def loaded(self) -> LoadedPolicy | None:
        """What is loaded; None before the first session."""
        return self._loaded

    def describe(self, spec: SessionSpec) -> PolicyNeeds:
        """What the checkpoint's configuration says, nothing of it loaded.

        Raises:
            SetupRefusedError: The session names no checkpoint, or one that cannot be served.
        """
        described, policy_type = _described(spec)
        return PolicyNeeds(
            f"{policy_type} from {spec.pretrained_name_or_path}",
            action_dim=described.action_dim,
            n_obs_steps=described.n_obs_steps,
            prefix=PrefixLimits(*described.prefix_lengths),
        )

    def open(self, spec: SessionSpec) -> LeRobotSession:
        """Begin a session, and load its policy unless it is loaded.

        Raises:
            SetupRefusedError: Sessions with another policy are open, the policy cannot be loaded, or it cannot take
                what the session observes; the message says which.
        """
        self.describe(spec).check(spec, carries_history=True, carries_prefix=True)
        described, policy_type = _described(spec)
        wanted = PolicyIdentity.of(spec, policy_type)
        identity = self._loaded.identity if self._loaded is not None else None
        if self._loaded is None or wanted != identity:
            wanted.check_replaces(identity, len(self._sessions))
            # Before: two policies at once may be more than the memory holds.
            self._loaded = None
            self._surroundings.clear()
            self._loaded = LoadedPolicy(wanted, described, spec.action_dim, spec.options.seed, pinned=self._pinned)
            self._way = way_of(self._loaded)
            self._together = together_of(self._loaded, self._way)
        session = self._make_session(self._loaded, spec)
        self._sessions.add(session)
        return session

    def computation(self) -> Computation:
        """See `TellingPolicy`."""
        if self._loaded is None:
            return {}
        return computation_of(self._loaded.policy, autocast=bool(self._loaded.config.use_amp))

    def infer(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """Answer all requests, in one forward pass where the policy allows it, else one after the other.

        What one of them raises is that one's answer.
        """
        return self.launch(requests)()

    @property
    def overlaps(self) -> bool:
        """Whether the next batch is prepared while this one is computed: by a policy on a GPU that takes batches."""
        return self._together is not None and self._loaded is not None and self._loaded.device.type == "cuda"

    def prepare(self, request: Request) -> None:
        """See `OverlappingPolicy`."""
        session = _session_of(request)
        if self._together is None or session.continues_chunks or _fault_of(request.observation) is not None:
            return
        if session.wants(request.observation):
            self._together.prepare(request)

    def launch(self, requests: Sequence[Request]) -> Launched:
        """See `OverlappingPolicy`. What cannot be asked in one forward pass is asked when the answers are wanted."""
        answers: list[Answer] = [_fault_of(request.observation) for request in requests]
        asked = {
            i: request for i, request in enumerate(requests) if answers[i] is None and self._is_to_be_answered(request)
        }
        joining = self._launch_together(asked) if len(asked) > 1 or self._has_prepared(asked) else None

        def collect() -> Sequence[Answer]:
            joint = {} if joining is None else self._collected(*joining)
            for i, request in asked.items():
                answers[i] = joint[i] if i in joint else self._answer(request)
            return answers

        return _Launched(collect, None if joining is None else joining[1])

    def _is_to_be_answered(self, request: Request) -> bool:
        is_prepared = self._together is not None and self._together.has_prepared(request)
        return is_prepared or _session_of(request).wants(request.observation)

    def _has_prepared(self, requests: Mapping[int, Request]) -> bool:
        together = self._together
        return together is not None and any(together.has_prepared(request) for request in requests.values())

    def _launch_together(self, requests: Mapping[int, Request]) -> tuple[list[int], Launched] | None:
        """Asks those that can be asked at once, if any; gives their keys, and what waits for their answers."""
        joining = {i: request for i, request in requests.items() if not _session_of(request).continues_chunks}
        if self._together is None or (len(joining) < 2 and not self._has_prepared(joining)):
            return None
        try:
            return list(joining), self._together.launch(list(joining.values()))
        except Exception as exc:  # noqa: BLE001 - told, and then each is asked by itself
            self._as_error("inference of several at once", exc)
            return None

    def _collected(self, keys: Sequence[int], launched: Launched) -> Mapping[int, Answer]:
        try:
            return dict(zip(keys, launched(), strict=True))
        except Exception as exc:  # noqa: BLE001 - the device failed, and what they were asked with is gone
            return dict.fromkeys(keys, self._as_error("inference of several at once", exc))

    def _answer(self, request: Request) -> Answer:
        try:
            return _session_of(request).answer(request.observation, request.release)
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - its author reads it, its client hears of it
            return self._as_error("inference", exc)

    def _as_error(self, what: str, exc: BaseException) -> PolicyError:
        error = self._failures.as_error(what, exc)
        if not _is_lack_of_memory(exc):
            return error
        # What the failed pass had is torch's still; the next one, of another shape, may need it.
        exc.__traceback__ = None
        torch.cuda.empty_cache()
        return PolicyError(
            f"the memory of the policy's device does not hold this inference: let fewer sessions be asked at once "
            f"(--max_batch), use a device with more memory, or a smaller type of numbers ({error})"
        )

    def _make_session(self, loaded: LoadedPolicy, spec: SessionSpec) -> LeRobotSession:
        """With surroundings that are shared by all that are alike, unless a processor remembers something."""
        features, options = spec.features, spec.options
        alike = (features.state_names, features.image_shapes, tuple(options.rename_map.items()))
        around = self._surroundings.get(alike)
        if around is None:
            around = Surroundings.of(loaded, spec)
            # A session of its own: what it draws is not drawn from the client's stream.
            LeRobotSession(loaded, self._way, spec, around, lambda _: None).try_out()
            _warn_of_sizes(loaded, around, spec)
            if around.processors[0] is loaded.preprocessor:
                self._surroundings[alike] = around
        return LeRobotSession(loaded, self._way, spec, around, self._forget)

    def _forget(self, session: LeRobotSession) -> None:
        self._sessions.discard(session)
        if self._together is not None:
            self._together.forget(session)


def _described(spec: SessionSpec) -> tuple[CheckpointConfig, str]:
    """What the checkpoint's file says, and of which type it is."""
    if not spec.names_policy:
        raise SetupRefusedError("this server serves LeRobot's checkpoints: give --pretrained_name_or_path")
    from lerobot.configs import PreTrainedConfig

    path = spec.pretrained_name_or_path
    overrides = dict(text.split("=", 1) for text in spec.options.overrides)
    described = checkpoint_config(path, overrides)
    policy_type = described.policy_type or spec.policy_type
    if not policy_type:
        raise SetupRefusedError(f"the config.json of {path} says no type of policy: give --policy_type")
    if spec.policy_type and spec.policy_type != policy_type:
        raise SetupRefusedError(f"{path} is of type {policy_type}, not {spec.policy_type}")
    if policy_type in REFUSED_TYPES:
        raise SetupRefusedError(f"the policy type {policy_type} cannot be served: {REFUSED_TYPES[policy_type]}")
    known = PreTrainedConfig.get_known_choices()
    if policy_type not in known:
        raise SetupRefusedError(
            f"the policy type {policy_type!r} is not supported by this LeRobot, nor by an installed plugin; it knows "
            f"{', '.join(sorted(known))}"
        )
    return described, policy_type


def _session_of(request: Request) -> LeRobotSession:
    assert isinstance(request.session, LeRobotSession)
    return request.session


class _Launched:
    """See `Launched`.

    Args:
        collect: Waits for all answers.
        joint: Of those that are computed together; None where nothing was launched.
    """

    def __init__(self, collect: Callable[[], Sequence[Answer]], joint: Launched | None) -> None:
        self._collect = collect
        self._joint = joint

    def __call__(self) -> Sequence[Answer]:
        return self._collect()

    def is_done(self) -> bool:
        return self._joint is None or self._joint.is_done()


def _is_lack_of_memory(exc: BaseException) -> bool:
    """Libraries of CUDA's say it in their own words."""
    said = str(exc)
    return isinstance(exc, torch.OutOfMemoryError) or (
        isinstance(exc, RuntimeError) and ("out of memory" in said or "ALLOC_FAILED" in said)
    )


def _fault_of(observation: Observation) -> PolicyError | None:
    """The error that an observation deserves instead of an answer."""
    for seen in observation.steps() if observation.history else (observation,):
        if not is_finite(seen.state.tobytes()):
            return PolicyError(f"the state of timestep {observation.timestep} is not finite", observation.timestep)
    if (told := observation.prefix) is not None and not is_finite(told.rows().tobytes()):
        return PolicyError(f"the actions before timestep {observation.timestep} are not finite", observation.timestep)
    return None


def _warn_of_sizes(loaded: LoadedPolicy, around: Surroundings, spec: SessionSpec) -> None:
    """An image of another size than the policy was trained with is served as lerobot-eval serves it: as it is."""
    declared = {key: tuple(feature.shape) for key, feature in (loaded.config.input_features or {}).items()}
    for name, (height, width, channels) in spec.features.image_shapes:
        shape = declared.get(around.names.cameras[name])
        if shape is not None and shape != (channels, height, width):
            logger.warning(
                "camera %r gives images of %dx%dx%d, %s was trained with %s: they are not resized",
                *(name, height, width, channels, loaded.identity, shape),
            )
