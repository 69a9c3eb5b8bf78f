"""Our messages as the bytes that PolicyServer and RobotClient exchange, and back.

The objects pickled are LeRobot's own classes and the pickle is the one that RobotClient makes, so the bytes are its
bytes.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation

from async_delta_inference.errors import PolicyError, ProtocolError
from async_delta_inference.transport.grpc.unpickling import loads_actions
from async_delta_inference.transport.messages import ActionChunk, Observation, ObservationFeatures, SessionSpec

__all__ = ["decode_actions", "encode_observation", "encode_policy", "raw_observation"]


def encode_policy(policy: SessionSpec) -> bytes:
    """The payload of ``SendPolicyInstructions``."""
    return pickle.dumps(
        RemotePolicyConfig(
            policy.policy_type,
            policy.pretrained_name_or_path,
            policy.features.to_lerobot(),
            policy.actions_per_chunk,
            policy.device,
        )
    )


def raw_observation(observation: Observation, features: ObservationFeatures) -> dict[str, Any]:
    """The observation as a robot would give it: one Python float per state name, images by camera, the task."""
    raw: dict[str, Any] = dict(zip(features.state_names, observation.state.tolist(), strict=True))
    raw.update(observation.images)
    raw["task"] = observation.task
    return raw


def encode_observation(observation: Observation, features: ObservationFeatures) -> bytes:
    """The payload of ``SendObservations``: a copy, nothing of the caller's is retained."""
    return pickle.dumps(
        TimedObservation(
            timestamp=observation.timestamp_s,
            timestep=observation.timestep,
            observation=raw_observation(observation, features),
            must_go=observation.must_go,
        )
    )


def decode_actions(data: bytes) -> ActionChunk:
    """A ``GetActions`` reply as a chunk.

    Raises:
        ProtocolError: Not a list of actions with consecutive timesteps and equal widths.
        PolicyError: The policy computed actions that are not finite.
    """
    records = loads_actions(data)
    first = records[0].timestep
    if first < 0 or any(record.timestep != first + row for row, record in enumerate(records)):
        raise ProtocolError("the server sent actions whose timesteps are not consecutive")
    if any(record.action.shape != records[0].action.shape for record in records):
        raise ProtocolError("the server sent actions of different widths in one chunk")
    actions = np.stack([record.action for record in records])
    if not np.isfinite(actions).all():
        raise PolicyError(f"the policy returned actions that are not finite for timestep {first}", first)
    return ActionChunk(actions, timestep=first, timestamp_s=float(records[0].timestamp))
