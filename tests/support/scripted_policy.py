"""A policy whose answer a test can predict, hold back and spoil, put in the place of a checkpoint in lerobot's own
PolicyServer. It stands for the weights only: the server around it is the real one.
"""

from __future__ import annotations

import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature

from async_delta_inference.transport.testing import CONTRACT_POLICY, scripted_actions


class ScriptedPolicy:
    """What PolicyServer asks of a policy, answering `scripted_actions`."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.resets = 0
        self.go = threading.Event()
        self.go.set()
        self.failure: str | None = None
        self.misbehaviour: str | None = None
        self.config = SimpleNamespace(
            image_features={
                f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (c, h, w))
                for name, (h, w, c) in CONTRACT_POLICY.features.images.items()
            }
        )

    def install(self, policy_server: ModuleType) -> None:
        """Make ``lerobot.async_inference.policy_server`` load this policy, whatever checkpoint it is told."""
        policy_server.get_policy_class = lambda policy_type: SimpleNamespace(from_pretrained=lambda path: self)
        policy_server.make_pre_post_processors = lambda *args, **kwargs: (lambda x: x, lambda x: x)

    def to(self, device: str) -> ScriptedPolicy:
        return self

    def reset(self) -> None:
        self.resets += 1

    def predict_action_chunk(self, batch: dict[str, Any]) -> torch.Tensor:
        timestep = int(batch["observation.state"][0, 0])
        self.seen.append(timestep)
        self.go.wait()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise RuntimeError(failure)
        pixels = {
            int(value) for key, image in batch.items() if "image" in key for value in (image * 255).round().unique()
        }
        if len(pixels) != 1:
            raise RuntimeError(f"torn frame: pixels {sorted(pixels)}")
        width = 4 if self.misbehaviour == "wide" else 3
        actions = torch.from_numpy(scripted_actions(timestep, pixels.pop(), width=width))
        if self.misbehaviour == "nan":
            actions[2, 1] = torch.nan
        self.misbehaviour = None
        return actions.unsqueeze(0)
