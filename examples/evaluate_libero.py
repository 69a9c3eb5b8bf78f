"""Evaluate a policy on one LIBERO task from Python, and look at what happened.

::

    python examples/evaluate_libero.py path/to/checkpoint
"""

from __future__ import annotations

import argparse

from lerobot.envs.configs import LiberoEnv

from async_delta_inference import SimClient, SimClientConfig


def main() -> None:
    """Run three episodes with an inference delay of two steps and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="folder that save_pretrained wrote, an ACT for LIBERO's two cameras")
    parser.add_argument("--task", type=int, default=0, help="index within libero_object")
    arguments = parser.parse_args()

    config = SimClientConfig(
        env=LiberoEnv(task="libero_object", task_ids=[arguments.task]),
        policy_type="act",
        pretrained_name_or_path=arguments.checkpoint,
        actions_per_chunk=50,
        n_episodes=3,
        clock="simulated",
        inference_delay="2",
    )
    result = SimClient(config).run()
    for episode in result.episodes:
        print(
            f"seed {episode.seed}: {'success' if episode.success else 'failure'} after {episode.length} steps, "
            f"{episode.asynchronous_chunks} of {len(episode.chunks)} chunks merged while actions were queued"
        )
    print(f"success rate {100 * result.success_rate:.0f} %")


if __name__ == "__main__":
    main()
