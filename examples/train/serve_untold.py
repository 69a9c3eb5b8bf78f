"""Serves a policy that is told of the robot's actions, and tells it none: shows what being told is worth.

python examples/train/serve_untold.py &
async-delta-sweep --server_address=shm://untold ...
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.transport import ActionPrefix, Request, serve
from async_delta_inference.transport.policy import Launched


class Untold(LeRobotPolicy):
    """As it is, but for what its observations say of the robot's actions."""

    def launch(self, requests: Sequence[Request]) -> Launched:
        """See `LeRobotPolicy`."""
        for request in requests:
            if (told := request.observation.prefix) is not None:
                nothing = np.empty((0, told.executed.shape[1]), np.float32)
                request.observation.prefix = ActionPrefix.of_rows(nothing, 0)
        return super().launch(requests)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt), serve(Untold(), "shm://untold") as server:
        print(f"serving {server.uris[0]}, until Ctrl-C", flush=True)
        server.wait()
