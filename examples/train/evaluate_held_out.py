"""A LIBERO checkpoint's rate on held-out init states, through PolicyServer over shared memory, with several delays.

What `async-delta-eval` does, with three differences: it starts at init state 40, not 0; one server and one simulator
serve all the settings; and each setting's result is appended to a file, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from evaluate_policy import BASE_SEED
from libero_setup import SUITE_NAME

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.environments.construction import build_tasks
from async_delta_inference.client.environments.episode import EpisodeSpec
from async_delta_inference.client.environments.libero import LiberoEnvironment
from async_delta_inference.client.environments.libero_setup import prepare_libero
from async_delta_inference.client.record.statistics import success_interval
from async_delta_inference.client.run.embedded_server import EmbeddedServer
from async_delta_inference.client.sim_client import SimClient

Setting = tuple[int, str]
AGGREGATES = ("weighted_average", "latest_only", "average", "conservative")


class HeldOutLibero(LiberoEnvironment):
    """Starts at a given init state, and stays alive when a client that used it stops."""

    _first_init_state = 0

    def start_at(self, init_state_id: int) -> None:
        """Makes episode 0 use this init state; the ones after it follow."""
        self._first_init_state = init_state_id

    def episode(self, episode: int, seed: int | None) -> EpisodeSpec:
        """The episode of a held-out state."""
        return replace(super().episode(episode, seed), init_state_id=self._first_init_state + episode)

    def close(self) -> None:
        """Does nothing: the next setting uses the same simulator. `release` closes it."""

    def release(self) -> None:
        """Closes the simulator."""
        super().close()


def make_environment(task_id: int, image_size_px: int) -> tuple[Any, HeldOutLibero]:
    """Builds LeRobot's configuration and the environment of one libero_object task."""
    from lerobot.envs.configs import LiberoEnv as LiberoConfig

    config = LiberoConfig(
        task=SUITE_NAME,
        task_ids=[task_id],
        observation_height=image_size_px,
        observation_width=image_size_px,
    )
    prepare_libero()
    (task,) = build_tasks(config)
    return config, HeldOutLibero(task)


def settings(delays: list[int], aggregates: list[str]) -> list[Setting]:
    """Every delay with every aggregation; they differ without a delay, too, since half a chunk is queued by then."""
    return list(product(delays, aggregates))


def evaluate(
    args: argparse.Namespace, setting: Setting, uri: str, env_config: Any, environment: HeldOutLibero
) -> dict[str, Any]:
    """Runs the episodes of one setting and returns what is written about it."""
    delay, aggregate = setting
    config = SimClientConfig(
        env=env_config,
        policy_type="act",
        pretrained_name_or_path=str(args.checkpoint),
        actions_per_chunk=args.actions_per_chunk,
        n_episodes=args.episodes,
        seed=BASE_SEED + args.first_init_state,
        output_dir=args.output.parent / f"{args.output.stem}_{delay}_{aggregate}",
        overwrite=True,  # A setting that is not among the results was not finished.
        server_address=uri,
        chunk_size_threshold=args.chunk_size_threshold,
        aggregate_fn_name=aggregate,
        clock="simulated",
        inference_delay=str(delay),
        on_starvation=args.on_starvation,
        progress=False,
    )
    environment.start_at(args.first_init_state)
    result = SimClient(config, environments=[environment]).run()
    successes = [episode.success for episode in result.episodes]
    return {
        "task_id": args.task_id,
        "delay_steps": delay,
        "aggregate": aggregate,
        "on_starvation": args.on_starvation,
        "n_successes": sum(successes),
        "n_episodes": len(successes),
        "interval": [round(bound, 3) for bound in success_interval(successes)],
        "init_states": [episode.init_state_id for episode in result.episodes],
        "successes": [bool(episode.success) for episode in result.episodes],
        "lengths": [episode.length for episode in result.episodes],
        "starved_steps": sum(episode.starved_steps for episode in result.episodes),
        "eval_s": round(result.eval_s, 1),
    }


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, one a setting; known ones are skipped")
    parser.add_argument("--task-id", type=int, default=0)
    parser.add_argument("--first-init-state", type=int, default=40)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--delays", type=int, nargs="+", default=[0, 2, 5, 10], help="control steps of 50 ms")
    parser.add_argument("--aggregates", nargs="+", default=list(AGGREGATES), choices=AGGREGATES)
    parser.add_argument("--actions-per-chunk", type=int, default=50)
    parser.add_argument("--chunk-size-threshold", type=float, default=0.5)
    parser.add_argument("--on-starvation", choices=("wait", "hold", "skip"), default="skip")
    parser.add_argument("--image-size-px", type=int, default=128)
    return parser.parse_args()


def main() -> None:
    """Evaluates every setting that the output does not hold yet."""
    args = parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    lines = args.output.read_text().splitlines() if args.output.exists() else []
    known = {(entry["delay_steps"], entry["aggregate"]) for entry in map(json.loads, lines)}
    wanted = [setting for setting in settings(args.delays, args.aggregates) if setting not in known]
    env_config, environment = make_environment(args.task_id, args.image_size_px)
    with EmbeddedServer("shm", env_config.fps, args.output.with_suffix(".server.log")) as server:
        uri = server.wait_until_ready(timeout_s=300.0)
        for number, setting in enumerate(wanted, start=1):
            entry = evaluate(args, setting, uri, env_config, environment)
            with args.output.open("a") as output:
                output.write(json.dumps(entry) + "\n")
            print(f"{number}/{len(wanted)} {entry}", flush=True)
    environment.release()


if __name__ == "__main__":
    main()
