"""Episodes an hour over the number of simulators: a real evaluation, and a model of one whose parts only sleep.

::

    python benchmarks/evaluation_rate.py real --n_envs 1 2 --episodes 6
    python benchmarks/evaluation_rate.py model --workers 1 4 16 64

The real one is LIBERO with the policy trained here, in the simulated clock; start-up is told apart from the rate, which
is measured from the first episode that ended to the last. In the model a step sleeps 12 ms and a batch of up to 16
observations 60 ms (40 ms for one), so that 64 simulators need next to no cores and what is left is what workers,
transport and server take themselves.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from worker_world import STEPS, WorldConfig

from async_delta_inference.client import Evaluation, SimClientConfig
from async_delta_inference.client.record.events import EpisodeEnded
from async_delta_inference.transport import FunctionPolicy, serve

ROOT = Path(__file__).parents[1]
STEP_S, ONE_S, BATCH_S, MAX_BATCH, ROWS = 0.012, 0.040, 0.060, 16, 5


class SleepingPolicy(FunctionPolicy):
    """Answers a batch after as long as a large model takes."""

    def __init__(self) -> None:
        super().__init__(lambda observation: np.zeros((ROWS, 2), np.float32))
        self.requests = 0

    def infer(self, requests: Sequence[Any]) -> Sequence[Any]:
        """One chunk each."""
        self.requests += len(requests)
        time.sleep(ONE_S if len(requests) == 1 else BATCH_S)
        return [np.zeros((ROWS, 2), np.float32) for _ in requests]


def rate(config: SimClientConfig, n_envs: int) -> tuple[float, float, float]:
    """Episodes a second between the first that ended and the last, seconds until the first, seconds in all."""
    started_s = time.monotonic()
    ends_s = [time.monotonic() for event in Evaluation(config, n_envs=n_envs) if isinstance(event, EpisodeEnded)]
    # The first of each simulator end together: the rate is that of the others.
    return (len(ends_s) - n_envs) / (ends_s[-1] - ends_s[n_envs - 1]), ends_s[0] - started_s, ends_s[-1] - started_s


def real(args: argparse.Namespace) -> None:
    """LIBERO with the trained ACT."""
    from lerobot.envs.configs import LiberoEnv

    print("n_envs  episodes/h  s/episode  first after s")
    for n_envs in args.n_envs:
        with tempfile.TemporaryDirectory() as folder:
            config = SimClientConfig(
                env=LiberoEnv(task="libero_object", task_ids=[0], observation_height=128, observation_width=128),
                policy_type="act",
                pretrained_name_or_path=str(ROOT / "examples" / "policies" / "act_libero_object_0"),
                actions_per_chunk=50,
                n_episodes=args.episodes,
                clock="simulated",
                inference_delay="2",
                output_dir=Path(folder) / "out",
            )
            per_s, first_s, _ = rate(config, n_envs)
        print(f"{n_envs:6d}  {3600 * per_s:10.0f}  {1 / per_s:9.2f}  {first_s:13.1f}", flush=True)


def model(args: argparse.Namespace) -> None:
    """What only sleeps, against what the arithmetic allows."""
    print("workers  episodes/s  of the arithmetic  server CPU ms/request")
    for workers in args.workers:
        policy = SleepingPolicy()
        with (
            tempfile.TemporaryDirectory() as folder,
            serve(policy, f"shm://{Path(folder).name}", max_sessions=128, max_batch=MAX_BATCH, linger_s=0.0) as server,
        ):
            config = SimClientConfig(
                env=WorldConfig(tasks=1, step_s=STEP_S),
                server_address=server.uris[0],
                actions_per_chunk=ROWS,
                chunk_size_threshold=0.0,
                n_episodes=args.episodes * workers,
                clock="simulated",
                inference_delay="0",
                output_dir=Path(folder) / "out",
            )
            before = resource.getrusage(resource.RUSAGE_SELF)
            per_s, _, _ = rate(config, workers)
            after = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        allowed = allowed_per_s(workers)
        # The server shares this process with whoever hands out the episodes: an upper bound.
        print(
            f"{workers:7d}  {per_s:10.2f}  {100 * per_s / allowed:15.0f} %  {1000 * cpu_s / policy.requests:21.2f}",
            flush=True,
        )


def allowed_per_s(workers: int) -> float:
    """Episodes a second of workers that step, and wait for a server that answers one batch after the other."""
    chunks = -(-STEPS // ROWS)
    # What one worker could do if it never waited for another, and what the server can do at all.
    alone = workers / (STEPS * STEP_S + chunks * (ONE_S if workers == 1 else BATCH_S))
    served = min(workers, MAX_BATCH) / (chunks * (ONE_S if workers == 1 else BATCH_S))
    return min(alone, served)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("real")
    one.add_argument("--n_envs", type=int, nargs="+", default=[1, 2])
    one.add_argument("--episodes", type=int, default=10)
    one.set_defaults(run=real)
    other = commands.add_parser("model")
    other.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64])
    other.add_argument("--episodes", type=int, default=10, help="of each worker")
    other.set_defaults(run=model)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
