"""A small random ACT: what a session with it asks for and observes, and what PolicyServer itself makes of that."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from async_delta_inference.server_adapter.lerobot_internals import load_policy_server_module
from async_delta_inference.transport import Answer, EpisodeStart, Observation, ObservationFeatures, Request, SessionSpec

FEATURES = ObservationFeatures(tuple(f"s{i}" for i in range(8)), {"image": (96, 96, 3), "image2": (96, 96, 3)})
LARGER = ObservationFeatures(FEATURES.state_names, {"image": (120, 160, 3), "image2": (96, 96, 3)})
ROWS, COLUMNS = 12, 7


def build(folder: Path) -> Path:
    from random_act import build_random_act

    return build_random_act(folder, FEATURES, COLUMNS, chunk_size=16)


def spec(checkpoint: Path, features: ObservationFeatures = FEATURES, **changes: Any) -> SessionSpec:
    fields = {"policy_type": "act", "actions_per_chunk": ROWS, "action_dim": COLUMNS, **changes}
    return SessionSpec(pretrained_name_or_path=str(checkpoint), features=features, **fields)


def observe(timestep: int, features: ObservationFeatures = FEATURES, **scalars: Any) -> Observation:
    rng = np.random.default_rng(timestep)
    observation = Observation.empty(features)
    observation.state[...] = rng.normal(size=features.state_dim) * 3
    for image in observation.images.values():
        image[...] = rng.integers(0, 256, image.shape, np.uint8)
        image.setflags(write=False)
    observation.timestep, observation.task = timestep, "pick up the soup"
    for name, value in scalars.items():
        setattr(observation, name, value)
    return observation


def request(session: Any, observation: Observation, release: Any = lambda: None) -> Request:
    return Request(session, observation, release)


def ask(policy: Any, session: Any, observation: Observation) -> Answer:
    """One observation's answer, without a transport in between."""
    (answer,) = policy.infer([request(session, observation)])
    return answer


def begin(session: Any, episode: int = 0) -> None:
    """What the host calls before the first observation of an episode."""
    session.reset(EpisodeStart(episode, "pick up the soup"))


class Context:
    def peer(self) -> str:
        return "test"


def upstream_server(wanted: SessionSpec) -> Any:
    """A PolicyServer of its own, left as it is, set up as a RobotClient would."""
    module: Any = load_policy_server_module()
    server = module.PolicyServer(module.PolicyServerConfig())
    server.Ready(None, Context())
    asked = module.RemotePolicyConfig(
        wanted.policy_type,
        wanted.pretrained_name_or_path,
        wanted.features.to_lerobot(),
        wanted.actions_per_chunk,
        wanted.device,
    )
    server.SendPolicyInstructions(module.services_pb2.PolicySetup(data=pickle.dumps(asked)), Context())
    return server


def forward_of(policy: Any) -> tuple[Any, str]:
    """Whose attribute of which name is the forward pass of a policy that is loaded."""
    if hasattr(policy, "driven"):
        return policy.driven.server, "_get_action_chunk"
    return policy.loaded.policy, "predict_action_chunk"


def raw_observation(observation: Observation, features: ObservationFeatures) -> dict[str, Any]:
    raw = dict(zip(features.state_names, observation.state.tolist(), strict=True))
    return {**raw, **observation.images, "task": observation.task}


def timed(observation: Observation, features: ObservationFeatures) -> Any:
    """The observation as a RobotClient sends it."""
    module: Any = load_policy_server_module()
    return module.TimedObservation(
        timestamp=0.0,
        timestep=observation.timestep,
        observation=raw_observation(observation, features),
        must_go=observation.must_go,
    )


def upstream_actions(server: Any, observation: Observation, features: ObservationFeatures) -> np.ndarray:
    server.lerobot_features = features.to_lerobot()
    return torch.stack([row.get_action() for row in server._predict_action_chunk(timed(observation, features))]).numpy()
