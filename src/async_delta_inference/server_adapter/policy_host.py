"""The one place that touches LeRobot's `PolicyServer`, private methods included.

Tested with the lerobot versions in `lerobot_internals.TESTED_VERSIONS`. Others are accepted as long as the internals
used here are there with the same parameters; where the body of a method that is taken apart here differs from the
tested one, the method itself is called instead.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from async_delta_inference import stages
from async_delta_inference.errors import PolicyError, SetupRefusedError
from async_delta_inference.server_adapter.image_tables import image_tables
from async_delta_inference.server_adapter.lerobot_internals import (
    are_as_tested,
    check_attributes,
    check_internals,
    load_policy_server_module,
)
from async_delta_inference.server_adapter.processors import Postprocessor, Preprocessor, as_chunk
from async_delta_inference.server_adapter.tensors import Preparation
from async_delta_inference.transport.finite import is_finite
from async_delta_inference.transport.messages import Observation, SessionSpec

__all__ = ["PolicyHost"]

logger = logging.getLogger(__name__)

_IMAGE_PREFIX = "observation.images."

_TOLERANT_TYPES = ("smolvla", "pi0", "pi05", "groot")
"""Policies that fill in for cameras they do not get."""


class PolicyHost:
    """LeRobot's own `PolicyServer`, driven by calls instead of by gRPC. Not for two threads at once.

    Args:
        fps: Control steps per second, for PolicyServer's configuration.
        inference_latency: Seconds that an inference lasts at least, as PolicyServer's flag of that name.

    Raises:
        ConfigError: This lerobot's PolicyServer has other internals than the tested ones.
    """

    def __init__(self, *, fps: int = 30, inference_latency: float = 0.0) -> None:
        self._module: Any = load_policy_server_module()
        check_internals(self._module.PolicyServer)
        config = self._module.PolicyServerConfig(fps=fps, inference_latency=inference_latency)
        self.policy_server: Any = self._module.PolicyServer(config)
        check_attributes(self.policy_server)
        self._act = self.policy_server._get_action_chunk
        self._helpers: Any = import_module("lerobot.async_inference.helpers")
        self._may_take_apart = are_as_tested(self._module, self._helpers)
        if not self._may_take_apart:
            logger.warning("lerobot %s differs from the tested one: inference takes its slower way", version("lerobot"))
        self._prepare: Preparation | None = None
        self._preprocess: Preprocessor | None = None
        self._postprocess: Postprocessor | None = None
        self._inference_latency_s = inference_latency
        self._key: object = None
        self._policy: SessionSpec | None = None
        self._episode: int | None = None
        self._instructions = b""

    @property
    def instructions(self) -> bytes:
        """The pickled set-up that this host last made and gave to PolicyServer: all that is unpickled on this path."""
        return self._instructions

    def set_up(self, policy: SessionSpec) -> None:
        """Load the policy, unless it is the one that is loaded, and begin a session.

        Raises:
            SetupRefusedError: PolicyServer refuses the type, the checkpoint cannot be loaded, or its features are not
                the observation's; the message says which.
        """
        server = self.policy_server
        server.Ready(None, _Context())
        key = (
            policy.policy_type,
            policy.pretrained_name_or_path,
            _fingerprint(policy.pretrained_name_or_path),
            policy.device,
            policy.features,
        )
        if key != self._key:
            self._key = None
            self._load(policy)
        _check_features(server.policy.config, policy)
        if key != self._key and self._may_take_apart:
            self._take_apart(policy)
        self._key = key
        server.actions_per_chunk = policy.actions_per_chunk
        self._policy = policy
        self._episode = None

    def infer(self, observation: Observation, release: Callable[[], None] | None = None) -> NDArray[np.float32] | None:
        """Filter and answer one observation, as ``SendObservations`` and ``GetActions`` do.

        Args:
            observation: Its arrays are not used after ``release`` was called.
            release: Called as soon as the images have become the policy's tensors.

        Returns:
            float32 (n, A), finite; None if PolicyServer filters the observation out.

        Raises:
            PolicyError: The state or the actions are not finite.
            Exception: Whatever the policy raises.
        """
        start_s = time.perf_counter()
        if not is_finite(observation.state):
            raise PolicyError(f"the state of timestep {observation.timestep} is not finite", observation.timestep)
        if observation.episode != self._episode:
            self.begin_episode(observation.episode)
        server = self.policy_server
        timed = self._wrap(observation)
        if not server._enqueue_observation(timed):
            return None
        timed = server.observation_queue.get_nowait()
        # Timesteps do not decrease within a session, so the last one stands for all; upstream's set grows for ever.
        server._predicted_timesteps = {timed.get_timestep()}
        actions = self._predict(observation, timed, release)
        if not is_finite(actions):
            raise PolicyError(
                f"the policy returned actions that are not finite for timestep {observation.timestep}",
                observation.timestep,
            )
        if self._inference_latency_s:
            time.sleep(max(0.0, self._inference_latency_s - (time.perf_counter() - start_s)))
        return actions

    def begin_episode(self, episode: int) -> None:
        """Reset the policy and whatever of the last episode would reach into the next."""
        server = self.policy_server
        server.policy.reset()
        for pipeline in (server.preprocessor, server.postprocessor):
            if hasattr(pipeline, "reset"):
                pipeline.reset()
        server.last_processed_obs = None
        server._predicted_timesteps = set()
        with contextlib.suppress(Empty):
            server.observation_queue.get_nowait()
        self._episode = episode

    def _load(self, policy: SessionSpec) -> None:
        module = self._module
        self._instructions = pickle.dumps(
            module.RemotePolicyConfig(
                policy.policy_type,
                policy.pretrained_name_or_path,
                policy.features.to_lerobot(),
                policy.actions_per_chunk,
                policy.device,
            )
        )
        try:
            self.policy_server.SendPolicyInstructions(
                module.services_pb2.PolicySetup(data=self._instructions), _Context()
            )
        except Exception as exc:
            logger.info("cannot set up %s", policy.pretrained_name_or_path, exc_info=True)
            raise SetupRefusedError(
                f"PolicyServer cannot set up {policy.policy_type!r} from {policy.pretrained_name_or_path}: "
                f"{type(exc).__name__}: {exc}"
            ) from exc

    def _take_apart(self, policy: SessionSpec) -> None:
        """Make what `_predict` does around the policy, for the policy that is loaded."""
        server = self.policy_server
        shapes = {key: tuple(feature.shape) for key, feature in server.policy.config.image_features.items()}
        sent = {
            key: shape for key, shape in shapes.items() if key.removeprefix(_IMAGE_PREFIX) in policy.features.images
        }
        rest: dict[str, Any] = {
            "observation.state": torch.linspace(-3, 3, policy.features.state_dim)[None],
            "task": "a",
        }
        tables = image_tables(server.preprocessor, sent, rest)
        self._prepare = Preparation(shapes, self._helpers.resize_robot_observation_image, tables)
        images = {key: torch.zeros(1, *shape) for key, shape in sent.items()}
        self._preprocess = Preprocessor(server.preprocessor, {**rest, **images})
        self._postprocess = Postprocessor(server.postprocessor)

    def _wrap(self, observation: Observation) -> Any:
        """What PolicyServer's filter looks at: images would pin their slot for as long as it remembers them."""
        assert self._policy is not None
        names = self._policy.features.state_names
        raw: dict[str, Any] = dict(zip(names, observation.state.tolist(), strict=True))
        raw.update(dict.fromkeys(observation.images, _NO_IMAGE))
        raw["task"] = observation.task
        return self._module.TimedObservation(
            timestamp=observation.timestamp_s,
            timestep=observation.timestep,
            observation=raw,
            must_go=observation.must_go,
        )

    def _predict(self, observation: Observation, timed: Any, release: Callable[[], None] | None) -> NDArray[np.float32]:
        """`_predict_action_chunk`, step by step, unless this lerobot's is another one."""
        if self._prepare is None or self._preprocess is None or self._postprocess is None:
            return self._predict_as_upstream(observation, timed)
        server, timestep, recorder = self.policy_server, observation.timestep, stages.recorder
        batch, finished = self._prepare(observation)
        if release is not None:
            release()
        if recorder is not None:
            recorder.mark(stages.PREPARE, timestep)
        batch = self._preprocess(batch, finished)
        server.last_processed_obs = timed
        if recorder is not None:
            recorder.mark(stages.PREPROCESS, timestep)
        chunk = self._act(batch)
        if recorder is not None:
            recorder.mark(stages.FORWARD, timestep)
        actions = self._postprocess(chunk)
        if recorder is not None:
            recorder.mark(stages.POSTPROCESS, timestep)
        return actions

    def _predict_as_upstream(self, observation: Observation, timed: Any) -> NDArray[np.float32]:
        raw = {**timed.observation, **observation.images}
        full = self._module.TimedObservation(
            timestamp=timed.timestamp, timestep=timed.timestep, observation=raw, must_go=timed.must_go
        )
        try:
            rows = self.policy_server._predict_action_chunk(full)
        finally:
            if self.policy_server.last_processed_obs is full:
                self.policy_server.last_processed_obs = timed
        return as_chunk(torch.stack([row.get_action() for row in rows])[None])


class _Context:
    """The part of a gRPC context that PolicyServer asks for."""

    def peer(self) -> str:
        return "shared memory"


_NO_IMAGE: NDArray[np.uint8] = np.zeros((1, 1, 3), np.uint8)


def _check_features(config: Any, policy: SessionSpec) -> None:
    """Refuse observations that the policy cannot take.

    Raises:
        SetupRefusedError: Naming both sides.
    """
    sent = {f"{_IMAGE_PREFIX}{name}" for name in policy.features.images}
    known = set(config.image_features or {})
    if sent - known or (known - sent and policy.policy_type not in _TOLERANT_TYPES):
        raise SetupRefusedError(
            f"the environment sends the cameras {sorted(sent)}, the policy takes {sorted(known)}: they must be the same"
        )
    for what, feature, size in (
        ("state", getattr(config, "robot_state_feature", None), policy.features.state_dim),
        ("action", getattr(config, "action_feature", None), policy.action_dim),
    ):
        if feature is not None and tuple(feature.shape) != (size,):
            raise SetupRefusedError(
                f"the environment's {what} has {size} elements, the policy's has shape {tuple(feature.shape)}"
            )


def _fingerprint(path: str) -> tuple[tuple[str, int, int], ...]:
    """Tells a checkpoint folder that was written anew from the one that is loaded; empty for a name on the hub."""
    folder = Path(path)
    if not folder.is_dir():
        return ()
    with os.scandir(folder) as entries:
        return tuple(sorted((e.name, e.stat().st_mtime_ns, e.stat().st_size) for e in entries))
