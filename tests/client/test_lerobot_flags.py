"""A command line of lerobot-eval's, in our words."""

from __future__ import annotations

import pytest

from async_delta_inference.client.lerobot_flags import in_our_words, is_lerobots
from async_delta_inference.errors import ConfigError

LEROBOTS = [
    "--policy.path=folder",
    "--policy.device",
    "cpu",
    "--policy.n_action_steps=10",
    "--policy.num_inference_steps=5",
    "--env.type=libero",
    "--env.task=libero_object",
    "--eval.n_episodes=10",
    "--eval.batch_size=1",
    "--eval.use_async_envs=false",
    "--seed=1000",
    '--rename_map={"observation.images.image": "observation.images.camera1"}',
    "--output_dir=out",
    "--job_name=job",
]
OURS = [
    "--pretrained_name_or_path=folder",
    "--policy_device=cpu",
    "--env.type=libero",
    "--env.task=libero_object",
    "--n_episodes=10",
    "--seed=1000",
    '--rename_map={"observation.images.image": "observation.images.camera1"}',
    "--output_dir=out",
    '--policy_overrides=["n_action_steps=10", "num_inference_steps=5"]',
]


def test_lerobots_flags_are_ours_in_other_words() -> None:
    assert in_our_words(LEROBOTS) == OURS
    assert in_our_words(OURS) == OURS
    assert is_lerobots(LEROBOTS)
    assert not is_lerobots(OURS)


def test_preset_comes_first_so_that_a_flag_given_besides_counts() -> None:
    words = in_our_words(["--n_episodes=3", "--preset=lerobot-eval"])
    assert "--noise=stream" in words
    assert "--inference_delay=0" in words
    assert words[-1] == "--n_episodes=3"
    assert in_our_words(["--preset", "lerobot-eval"])[0] == "--clock=simulated"


@pytest.mark.parametrize("words", [["--preset=fast"], ["--preset"], ["--eval.recording=true"]])
def test_what_has_no_counterpart_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=words[0].partition("=")[0]):
        in_our_words(words)
