"""Serve a torch module: a function is all that is needed around it.

::

    python examples/serve_torch_module.py
    async-delta-eval --server_address=shm://mine --env.type=pusht --actions_per_chunk=8

The network is not trained: put your own in its place, and load its weights.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import torch

from async_delta_inference.transport import Observation, serve


class Network(torch.nn.Module):
    """From a frame (B, 3, H, W) in 0..1 and a state (B, 2) in 0..1 to eight actions (B, 8, 2) in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.see = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 8, stride=8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten()
        )
        self.act = torch.nn.Sequential(torch.nn.Linear(16 * 16 + 2, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16))

    def forward(self, frame: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.act(torch.cat([self.see(frame), state], dim=1)).sigmoid().unflatten(1, (8, 2))


network = Network().eval()


@torch.inference_mode()
def act(observation: Observation) -> np.ndarray:
    """What the server calls, in one thread: float32 (8, 2)."""
    frame = torch.tensor(observation.images["image"]).permute(2, 0, 1)[None] / 255
    state = torch.tensor(observation.state)[None] / 512
    return (512 * network(frame, state)[0]).numpy()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt), serve(act, "shm://mine") as server:
        print(f"serving {server.uris[0]}, until Ctrl-C", flush=True)
        server.wait()
