"""The one place that touches LeRobot's `PolicyServer`, private methods included.

Tested with the lerobot versions in `lerobot_internals.TESTED_VERSIONS`. Others are accepted as long as the internals
used here are there with the same parameters.
"""

from __future__ import annotations

import logging
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from async_delta_inference.errors import SetupRefusedError
from async_delta_inference.server_adapter.lerobot.checkpoint import PolicyIdentity
from async_delta_inference.server_adapter.lerobot_internals import (
    check_attributes,
    check_internals,
    load_policy_server_module,
)
from async_delta_inference.server_adapter.processors import as_chunk
from async_delta_inference.transport.messages import Observation, ObservationFeatures, SessionSpec

__all__ = ["DrivenPolicyServer", "FilterState"]

logger = logging.getLogger(__name__)

_IMAGE_PREFIX = "observation.images."

_TOLERANT_TYPES = ("smolvla", "pi0", "pi05", "groot")
"""Policies that fill in for cameras they do not get."""


@dataclass
class FilterState:
    """What PolicyServer remembers of a client, as its attributes hold it."""

    last_processed_obs: Any = None
    predicted_timesteps: frozenset[int] = frozenset()


class DrivenPolicyServer:
    """LeRobot's own `PolicyServer`, driven by calls instead of by gRPC. For one thread.

    Raises:
        ConfigError: This lerobot's PolicyServer has other internals than the tested ones.
    """

    def __init__(self) -> None:
        self._module: Any = load_policy_server_module()
        check_internals(self._module.PolicyServer)
        self.server: Any = self._module.PolicyServer(self._module.PolicyServerConfig(inference_latency=0.0))
        check_attributes(self.server)
        self.instructions = b""
        """The pickled set-up that was last made here and given to PolicyServer: all that it unpickles."""

    def load(self, identity: PolicyIdentity, spec: SessionSpec) -> None:
        """Load a policy in the place of the one before.

        Raises:
            SetupRefusedError: PolicyServer refuses the type, or the checkpoint cannot be loaded.
        """
        server, module = self.server, self._module
        # Before: two policies at once may be more than the memory holds.
        server.policy = server.preprocessor = server.postprocessor = None
        self.instructions = pickle.dumps(
            module.RemotePolicyConfig(
                identity.policy_type,
                identity.path,
                spec.features.to_lerobot(),
                spec.actions_per_chunk,
                identity.device,
            )
        )
        try:
            server.SendPolicyInstructions(module.services_pb2.PolicySetup(data=self.instructions), _Context())
        except Exception as exc:
            logger.info("cannot set up %s", identity.path, exc_info=True)
            raise SetupRefusedError(
                f"PolicyServer cannot set up {identity.policy_type!r} from {identity.path}: {type(exc).__name__}: {exc}"
            ) from exc

    def check_features(self, spec: SessionSpec) -> None:
        """Refuse a session whose observations the loaded policy cannot take.

        Raises:
            SetupRefusedError: Naming both sides.
        """
        config, features = self.server.policy.config, spec.features
        if features.robot_dim < features.state_dim:
            raise SetupRefusedError(
                "PolicyServer cannot give a policy observation.environment_state: leave --policy_host=policy_server out"
            )
        sent = {f"{_IMAGE_PREFIX}{name}" for name in features.images}
        known = set(config.image_features or {})
        if sent - known or (known - sent and spec.policy_type not in _TOLERANT_TYPES):
            raise SetupRefusedError(
                f"the environment sends the cameras {sorted(sent)}, the policy takes {sorted(known)}: they must be the "
                "same"
            )
        for name, (_, _, channels) in features.images.items():
            shape = tuple(config.image_features[f"{_IMAGE_PREFIX}{name}"].shape)
            if shape[0] != channels:
                raise SetupRefusedError(
                    f"the environment's camera {name!r} has {channels} channels, the policy's image has shape {shape}"
                )
        for what, feature, size in (
            ("state", getattr(config, "robot_state_feature", None), features.state_dim),
            ("action", getattr(config, "action_feature", None), spec.action_dim),
        ):
            if feature is not None and tuple(feature.shape) != (size,):
                raise SetupRefusedError(
                    f"the environment's {what} has {size} elements, the policy's has shape {tuple(feature.shape)}"
                )

    def reset(self) -> None:
        """Have the policy and its processors forget the last episode."""
        for part in (self.server.policy, self.server.preprocessor, self.server.postprocessor):
            if hasattr(part, "reset"):
                part.reset()

    def predict(self, observation: Observation, spec: SessionSpec, memory: FilterState) -> NDArray[np.float32] | None:
        """Filter and answer by PolicyServer's own methods.

        Args:
            observation: Of a session.
            spec: That session's.
            memory: That session's, put into PolicyServer before and taken out again afterwards.
        """
        server = self.server
        server.lerobot_features, server.actions_per_chunk = spec.features.to_lerobot(), spec.actions_per_chunk
        server.last_processed_obs = memory.last_processed_obs
        server._predicted_timesteps = set(memory.predicted_timesteps)
        seen = self._wrap(observation, spec.features)
        try:
            if not server._enqueue_observation(seen):
                return None
            server.observation_queue.get_nowait()
            # Timesteps do not decrease within a session, so the last one stands for all; upstream's set grows for ever.
            memory.predicted_timesteps = frozenset({observation.timestep})
            raw = {**seen.observation, **observation.images}
            full = self._module.TimedObservation(seen.timestamp, seen.timestep, raw, seen.must_go)
            rows = server._predict_action_chunk(full)
            return as_chunk(torch.stack([row.get_action() for row in rows])[None])
        finally:
            if server.last_processed_obs is not memory.last_processed_obs:
                memory.last_processed_obs = seen
            server.last_processed_obs = None

    def _wrap(self, observation: Observation, features: ObservationFeatures) -> Any:
        """What PolicyServer's filter looks at: images would pin their slot for as long as it is remembered."""
        raw: dict[str, Any] = dict(zip(features.state_names, observation.state.tolist(), strict=True))
        raw.update(dict.fromkeys(observation.images, _NO_IMAGE))
        raw["task"] = observation.task
        return self._module.TimedObservation(
            timestamp=observation.timestamp_s,
            timestep=observation.timestep,
            observation=raw,
            must_go=observation.must_go,
        )


class _Context:
    """The part of a gRPC context that PolicyServer asks for."""

    def peer(self) -> str:
        return "async-delta-inference"


_NO_IMAGE: NDArray[np.uint8] = np.zeros((1, 1, 3), np.uint8)
