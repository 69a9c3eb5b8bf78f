"""async-delta-eval of `worker_world` with many simulators and a served function, without lerobot.

python evaluate_worlds.py '{"n_episodes": 3, "n_envs": "2", "output_dir": "out", "does": {"0 1": "hang"}}'
"""

from __future__ import annotations

import json
import sys
from typing import Any

from worker_world import Drift, WorldConfig

from async_delta_inference.client import SimClientConfig
from async_delta_inference.client.cli import _evaluate
from async_delta_inference.client.run import forking
from async_delta_inference.command_line import run_command
from async_delta_inference.transport import serve


def main() -> int:
    flags: dict[str, Any] = {"progress": False} | json.loads(sys.argv[1])
    forking._PRELOADED_IF_HERE = ()
    world = WorldConfig(tasks=1, does=flags.pop("does", {}), step_s=0.01)
    with serve(Drift(), "shm://worlds") as server:
        return _evaluate(SimClientConfig(env=world, actions_per_chunk=5, server_address=server.uris[0], **flags))


if __name__ == "__main__":
    sys.exit(run_command(main))
