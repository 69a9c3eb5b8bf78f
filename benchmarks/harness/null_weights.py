"""`NullPolicyServer`: LeRobot's PolicyServer with a policy that costs nothing in the place of a checkpoint's weights.

It imports torch and lerobot.
"""

from __future__ import annotations

import pickle
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature

from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.server_adapter.lerobot.asking import AskForChunk
from async_delta_inference.server_adapter.lerobot.checkpoint import PolicyIdentity
from async_delta_inference.server_adapter.lerobot.session import LeRobotSession
from async_delta_inference.server_adapter.lerobot.surroundings import Surroundings
from async_delta_inference.server_adapter.lerobot_internals import load_policy_server_module
from async_delta_inference.transport import PolicyNeeds, SessionSpec
from harness.null_policy import constant_chunk
from harness.payloads import is_null_checkpoint, width_of_null_checkpoint

__all__ = ["NullLeRobotPolicy", "NullPolicyServer", "NullWeights", "WireOnly", "null_policy_server"]

_module: Any = load_policy_server_module()


class NullWeights:
    """What PolicyServer asks of a policy, answered at once. The server around it stays as it is.

    Args:
        features: Of a session, as LeRobot writes them.
        chunk_shape: Of the chunk that it answers with.
    """

    def __init__(self, features: dict[str, dict[str, Any]], chunk_shape: tuple[int, int]) -> None:
        images = {
            key: PolicyFeature(FeatureType.VISUAL, (feature["shape"][2], *feature["shape"][:2]))
            for key, feature in features.items()
            if key.startswith("observation.images.")
        }
        self.config = SimpleNamespace(image_features=images)
        self._camera = next(reversed(images), None)
        self.chunk_shape = chunk_shape
        self._actions = torch.from_numpy(constant_chunk(chunk_shape))[None]
        self._actions[0, 0, 1] = -1.0

    def reset(self) -> None:
        """Nothing to forget."""

    def predict_action_chunk(self, batch: dict[str, Any]) -> Any:
        """float32 (1, n, A), marked as the observation is."""
        self._actions[0, 0, 0] = batch["observation.state"][0, 0]
        if self._camera is not None:
            self._actions[0, 0, 1] = (batch[self._camera][0, -1, -1, -1] * 255).round()
        return self._actions


class NullPolicyServer(_module.PolicyServer):  # type: ignore[misc]
    """PolicyServer, but for one checkpoint's name, for which it loads `NullWeights` and processors that do nothing."""

    def SendPolicyInstructions(self, request: Any, context: Any) -> Any:  # noqa: N802
        """As PolicyServer does it; only loading is left out."""
        wanted = pickle.loads(request.data)  # noqa: S301 - this run's own client wrote it
        if not is_null_checkpoint(wanted.pretrained_name_or_path):
            return super().SendPolicyInstructions(request, context)
        self.device, self.policy_type = wanted.device, wanted.policy_type
        self.lerobot_features, self.actions_per_chunk = wanted.lerobot_features, wanted.actions_per_chunk
        shape = (wanted.actions_per_chunk, width_of_null_checkpoint(wanted.pretrained_name_or_path))
        self.policy = NullWeights(wanted.lerobot_features, shape)
        self.preprocessor = self.postprocessor = _unchanged
        return _module.services_pb2.Empty()


class WireOnly(NullPolicyServer):
    """Pickle over gRPC as PolicyServer uses them, without the rest of PolicyServer: the counterpart of shm alone."""

    def _predict_action_chunk(self, observation_t: Any) -> Any:
        raw = observation_t.get_observation()
        actions = torch.from_numpy(constant_chunk(self.policy.chunk_shape))
        actions[0, 0] = next(iter(raw.values()))
        images = [value for value in raw.values() if hasattr(value, "ndim")]
        actions[0, 1] = float(images[-1][-1, -1, -1]) if images else -1.0
        return self._time_action_chunk(observation_t.get_timestamp(), list(actions), observation_t.get_timestep())


def null_policy_server(kind: type[NullPolicyServer] = NullPolicyServer, inference_latency_s: float = 0.0) -> Any:
    """One that has loaded nothing yet.

    Args:
        kind: Of what is left out.
        inference_latency_s: Seconds that an answer takes at least.
    """
    return kind(_module.PolicyServerConfig(inference_latency=inference_latency_s))


def _unchanged(batch: Any) -> Any:
    return batch


class _Unchanged:
    """A pipeline of LeRobot's without steps."""

    steps: tuple[object, ...] = ()

    def __call__(self, batch: Any) -> Any:
        return dict(batch) if isinstance(batch, dict) else batch

    def reset(self) -> None:
        """Nothing to forget."""


class NullLeRobotPolicy(LeRobotPolicy):
    """The product's policy, which loads `NullWeights` and processors that do nothing where the null policy is named."""

    def describe(self, spec: SessionSpec) -> PolicyNeeds:
        """The null policy takes whatever comes; its actions are as wide as its name says."""
        if not is_null_checkpoint(spec.pretrained_name_or_path):
            return super().describe(spec)
        return PolicyNeeds("null weights", action_dim=width_of_null_checkpoint(spec.pretrained_name_or_path))

    def open(self, spec: SessionSpec) -> LeRobotSession:
        """A session of the product's."""
        if not is_null_checkpoint(spec.pretrained_name_or_path):
            return super().open(spec)
        weights = NullWeights(spec.features.to_lerobot(), (spec.actions_per_chunk, spec.action_dim))
        loaded: Any = SimpleNamespace(
            identity=PolicyIdentity("act", spec.pretrained_name_or_path, spec.device, (), ()),
            policy=weights,
            config=SimpleNamespace(input_features=weights.config.image_features, n_obs_steps=1),
            preprocessor=_Unchanged(),
            postprocessor=_Unchanged(),
            autocast=nullcontext,
        )
        return LeRobotSession(loaded, AskForChunk(loaded), spec, Surroundings.of(loaded, spec), lambda _: None)
