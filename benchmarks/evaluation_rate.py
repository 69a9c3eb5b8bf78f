"""Episodes an hour over the number of simulators: a real evaluation, and a model of one whose parts only sleep.

::

    python benchmarks/evaluation_rate.py real --n_envs 1 2 1 2 --episodes 20
    python benchmarks/evaluation_rate.py real --n_envs 1 2 --episodes 10 --lerobot_eval 1 2-sync 2-async
    python benchmarks/evaluation_rate.py model --workers 1 4 16 64

The real one is LIBERO with the policy trained here, in the simulated clock; start-up is told apart from the rate, which
is measured from the first episode that ended to the last. ``--lerobot_eval`` runs the same episodes in parity mode, and
lerobot-eval beside them with one simulator, with two in turn and with two in processes, whose rate is by its own
account, start-up left out. In the model a step sleeps 12 ms and a batch of up to 16 observations 60 ms (40 ms for one),
so that 64 simulators need next to no cores and what is left is what workers, transport and server take themselves.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from harness.evaluators import THEIRS, Subject, run_evaluator
from harness.occupancy import Occupancy
from worker_world import STEPS, WorldConfig

from async_delta_inference.client import Evaluation, SimClientConfig
from async_delta_inference.client.record.events import EpisodeEnded
from async_delta_inference.transport import FunctionPolicy, serve

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "examples" / "policies" / "act_libero_object_0"
STEP_S, ONE_S, BATCH_S, MAX_BATCH, ROWS = 0.012, 0.040, 0.060, 16, 5
LEROBOT_EVAL = {"1": (1, True), "2-sync": (2, True), "2-async": (2, False)}
"""What lerobot-eval is asked for: simulators, and whether they step one after the other in one process."""


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


@dataclass(frozen=True)
class Rate:
    """How fast an evaluation was.

    Args:
        per_s: Episodes a second between the first that ended and the last.
        first_s: Seconds until the first.
        busy: Share of the cores that its processes used meanwhile.
        outcomes: Success and rewards of each episode.
    """

    per_s: float
    first_s: float
    busy: float
    outcomes: dict[int, tuple[bool | None, float]]


def rate(config: SimClientConfig, n_envs: int) -> Rate:
    """Run it."""
    started_s = time.monotonic()
    ends_s, outcomes = [], {}
    occupancy = Occupancy()
    for event in Evaluation(config, n_envs=n_envs):
        if isinstance(event, EpisodeEnded):
            ends_s.append(time.monotonic())
            occupancy.look()
            outcomes[event.result.episode] = (event.result.success, event.result.sum_reward)
    # The first of each simulator end together: the rate is that of the others.
    per_s = (len(ends_s) - n_envs) / (ends_s[-1] - ends_s[n_envs - 1])
    return Rate(per_s, ends_s[0] - started_s, occupancy.busy(n_envs - 1), outcomes)


def real(args: argparse.Namespace) -> None:
    """LIBERO with the trained ACT."""
    print("n_envs  episodes/h  s/episode  first after s  cores busy")
    rates: dict[int, list[Rate]] = {}
    for n_envs in args.n_envs:
        with tempfile.TemporaryDirectory() as folder:
            one = rate(_libero(args, Path(folder) / "out"), n_envs)
        rates.setdefault(n_envs, []).append(one)
        columns = f"{3600 * one.per_s:10.0f}  {1 / one.per_s:9.2f}  {one.first_s:13.1f}  {100 * one.busy:8.0f} %"
        print(f"{n_envs:6d}  {columns}", flush=True)
    alone_per_s = _median_per_s(rates[args.n_envs[0]])
    for n_envs, several in rates.items():
        ratio = _median_per_s(several) / alone_per_s
        print(f"n_envs={n_envs}: {ratio:.2f} times the rate of n_envs={args.n_envs[0]}, by medians", flush=True)
    if args.lerobot_eval:
        _beside_lerobot_eval(args, rates)


def _median_per_s(several: Sequence[Rate]) -> float:
    return statistics.median(one.per_s for one in several)


def _libero(args: argparse.Namespace, output_dir: Path) -> SimClientConfig:
    from lerobot.envs.configs import LiberoEnv

    parity = {"inference_delay": "0", "chunk_size_threshold": 0.0, "aggregate_fn_name": "latest_only"}
    return SimClientConfig(
        env=LiberoEnv(task="libero_object", task_ids=[0], observation_height=128, observation_width=128),
        policy_type="act",
        pretrained_name_or_path=str(CHECKPOINT),
        actions_per_chunk=Subject(CHECKPOINT, "libero_object", 0, args.episodes).policy_config["n_action_steps"],
        n_episodes=args.episodes,
        clock="simulated",
        output_dir=output_dir,
        **(parity if args.lerobot_eval else {"inference_delay": "2"}),
    )


def _beside_lerobot_eval(args: argparse.Namespace, ours: dict[int, list[Rate]]) -> None:
    subject = Subject(CHECKPOINT, "libero_object", 0, args.episodes)
    seconds = {}
    for name in args.lerobot_eval:
        n_envs, sync = LEROBOT_EVAL[name]
        with tempfile.TemporaryDirectory() as folder:
            theirs = run_evaluator(THEIRS, subject, Path(folder) / "out", n_envs, sync)
        seconds[name] = theirs.eval_ep_s
        print(f"lerobot-eval {name}: {theirs.eval_ep_s:.2f} s/episode", flush=True)
        outcomes = dict(enumerate(zip(theirs.successes, theirs.sum_rewards, strict=True)))
        different = sum(one.outcomes != outcomes for several in ours.values() for one in several)
        print(f"  of our runs {different} have an episode that ends otherwise", flush=True)
    best, fastest = min(seconds.values()), max(map(_median_per_s, ours.values()))
    print(f"lerobot-eval's best / ours: {best * fastest:.1f}")


def model(args: argparse.Namespace) -> None:
    """What only sleeps, against what the arithmetic allows."""
    print("workers  episodes/s  ms/episode  of the arithmetic  server CPU ms/request")
    for workers in args.workers:
        with tempfile.TemporaryDirectory() as folder, _sleeping_server(Path(folder).name) as (uri, account):
            config = SimClientConfig(
                env=WorldConfig(tasks=1, step_s=STEP_S),
                server_address=uri,
                actions_per_chunk=ROWS,
                chunk_size_threshold=0.0,
                n_episodes=args.episodes * workers,
                clock="simulated",
                inference_delay="0",
                output_dir=Path(folder) / "out",
            )
            per_s = rate(config, workers).per_s
            account.send("end")
            requests, cpu_s = account.recv()
        share, each_ms = per_s / allowed_per_s(workers), 1000 * cpu_s / requests
        print(f"{workers:7d}  {per_s:10.2f}  {1000 / per_s:10.1f}  {100 * share:15.0f} %  {each_ms:21.2f}", flush=True)


@contextmanager
def _sleeping_server(name: str) -> Iterator[tuple[str, Connection]]:
    """A server in a process of its own: its address, and where it tells its requests and seconds when asked."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve_sleeping, args=(name, theirs))
    server.start()
    try:
        yield ours.recv(), ours
    finally:
        ours.close()
        theirs.close()
        server.join(timeout=10.0)


def _serve_sleeping(name: str, account: Connection) -> None:
    policy = SleepingPolicy()
    with serve(policy, f"shm://{name}", max_sessions=128, max_batch=MAX_BATCH, linger_s=0.0) as server:
        before = resource.getrusage(resource.RUSAGE_SELF)
        account.send(server.uris[0])
        try:
            account.recv()
            after = resource.getrusage(resource.RUSAGE_SELF)
            account.send((policy.requests, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
            account.recv()
        except EOFError:
            return  # whoever asked has ended


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
    one.add_argument("--n_envs", type=int, nargs="+", default=[1, 2, 1, 2], help="in turn; one may come again")
    one.add_argument("--episodes", type=int, default=10)
    one.add_argument(
        "--lerobot_eval", nargs="+", choices=list(LEROBOT_EVAL), help="in parity mode, with lerobot-eval beside it"
    )
    one.set_defaults(run=real)
    other = commands.add_parser("model")
    other.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64])
    other.add_argument("--episodes", type=int, default=10, help="of each worker")
    other.set_defaults(run=model)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
