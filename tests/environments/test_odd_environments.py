"""What an environment gives is checked where it comes in: heard, converted, or refused in one line; never guessed."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from odd_gym import PIXELS, STATE, STEPS, Plain, evaluate_odd, odd, saying
from rich.console import Console

from async_delta_inference.client.environments import make_environments
from async_delta_inference.client.environments.gymnasium_id import GymnasiumEnv
from async_delta_inference.client.environments.outcome import heard_success
from async_delta_inference.client.view.table import result_table
from async_delta_inference.errors import ConfigError, EpisodeError
from async_delta_inference.transport import Observation

WAYS_TO_SAY_IT = {
    "is_success": lambda solved: {"is_success": solved},
    "success": lambda solved: {"success": np.bool_(solved)},
    "succeed": lambda solved: {"succeed": np.array([solved])},
    "as a number": lambda solved: {"success": float(solved)},
    "at the end": lambda solved: {"success": True} if solved else {},
    "in final_info": lambda solved: {"final_info": {"success": solved}},
    "in an array of one": lambda solved: {"final_info": np.array([{"succeed": solved}], object)},
    "of the episode that ended": lambda solved: {"is_success": False, "final_info": {"is_success": solved}},
}


@pytest.mark.parametrize("way", WAYS_TO_SAY_IT)
def test_success_is_heard_whatever_it_is_called(way: str, tmp_path: Path) -> None:
    _, result = evaluate_odd(odd(f"Says{list(WAYS_TO_SAY_IT).index(way)}", **saying(WAYS_TO_SAY_IT[way])), tmp_path)
    assert [(episode.success, episode.length) for episode in result.episodes] == [(True, 4)]
    assert result.success_rate == 1.0


def test_success_key_names_another(tmp_path: Path) -> None:
    task = odd("SaysDone", **saying(lambda solved: {"is_success": False, "task_done": solved}))
    assert evaluate_odd(task, tmp_path / "a")[1].success_rate == 0.0
    assert evaluate_odd(task, tmp_path / "b", success_key="task_done")[1].success_rate == 1.0


@pytest.mark.parametrize("said", [0.4, "yes", np.array([True, False]), math.nan, {}])
def test_success_that_is_neither_yes_nor_no_is_refused(said: Any) -> None:
    with pytest.raises(EpisodeError, match=r"env gave info\['success'\] = .* needed is yes or no"):
        heard_success("env", {"success": said})


def test_success_that_nobody_reports_is_not_known_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = odd("SaysNothing", **saying(lambda solved: {"distance": 0.1}))
    with caplog.at_level(logging.WARNING):
        client, result = evaluate_odd(task, tmp_path, n_episodes=2, n_videos=1, save_trajectories=True)
    assert [episode.success for episode in result.episodes] == [None, None]
    assert math.isnan(result.success_rate)
    (said,) = [record.getMessage() for record in caplog.records if "succe" in record.getMessage()]
    assert "SaysNothing" in said
    assert "distance" in said
    assert "--success_key" in said
    info = json.loads((client.output_dir / "eval_info.json").read_text(), parse_constant=pytest.fail)
    assert info["per_task"][0]["metrics"]["successes"] == [None, None]
    assert info["overall"]["pc_success"] is None
    assert info["overall"]["async"]["success_interval"] == [None, None]
    assert info["overall"]["async"]["success_unknown"] == 2
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(result_table(result))
    assert console.export_text().count("n/a") == 2
    assert [path.name for path in tmp_path.rglob("*.mp4")] == ["eval_episode_0_unknown.mp4"]
    (first, _) = sorted(tmp_path.rglob("*.npz"))
    assert "success" not in np.load(first)


def step_giving(**changed: Any) -> dict[str, Any]:
    """Members of an environment that gives something else in its third step."""

    def step(self: Plain, action: Any) -> Any:
        observation, reward, terminated, truncated, info = Plain.step(self, action)
        given = {"reward": reward, "terminated": terminated, "truncated": truncated, "info": info}
        given |= changed if self.t == 3 else {}
        return observation, *given.values()

    return {"step": step}


def observing(pixels: Any = None, agent_pos: Any = None, **others: Any) -> dict[str, Any]:
    """Members of an environment that observes something else from its third step on."""

    def observe(self: Plain) -> Any:
        seen: dict[str, Any] = {"pixels": self.picture(), "agent_pos": np.zeros(2, np.float32)}
        if self.t >= 3:
            seen |= {"pixels": pixels} if pixels is not None else {}
            seen |= {"agent_pos": agent_pos} if agent_pos is not None else {}
            seen |= others
        return seen

    return {"observe": observe}


ODDITIES: dict[str, tuple[dict[str, Any], str]] = {
    "RewardNone": (step_giving(reward=None), "a reward of None"),
    "RewardNaN": (step_giving(reward=math.nan), "a reward of nan"),
    "RewardText": (step_giving(reward="1.0"), "a reward of '1.0'"),
    "RewardTwo": (step_giving(reward=np.ones(2)), r"a reward of array\(\[1., 1.\]\)"),
    "InfoNone": (step_giving(info=None), "an info of None"),
    "InfoList": (step_giving(info=[]), r"an info of \[\]"),
    "TerminatedNone": (step_giving(terminated=None), "terminated = None"),
    "TruncatedText": (step_giving(truncated="no"), "truncated = 'no'"),
    "FrameGrows": (observing(np.zeros((32, 32, 3), np.uint8)), r"uint8 \(32, 32, 3\).*declared uint8 \(16, 16, 3\)"),
    "FrameShrinks": (observing(np.zeros((1, 1, 3), np.uint8)), r"uint8 \(1, 1, 3\).*declared uint8 \(16, 16, 3\)"),
    "FrameGreys": (observing(np.zeros((16, 16), np.uint8)), r"uint8 \(16, 16\).*declared"),
    "FrameFloats": (observing(np.zeros((16, 16, 3))), r"float64 \(16, 16, 3\).*declared uint8"),
    "FrameNone": (observing({"eye": np.zeros((16, 16, 3), np.uint8)}), r"\['eye'\]; it declared \['image'\]"),
    "FrameList": (observing([[0]]), "got a list"),
    "StateShrinks": (observing(agent_pos=np.zeros(1, np.float32)), r"float32 \(1,\); it declared float32 \(2,\)"),
    "StateRow": (observing(agent_pos=np.zeros((1, 2), np.float32)), r"float32 \(1, 2\); it declared float32 \(2,\)"),
    "StateNaN": (observing(agent_pos=np.array([0, math.nan])), "not finite"),
    "StateText": (observing(agent_pos=np.array(["a", "b"])), "declared float32"),
    "StateNone": (observing(agent_pos=[None, None]), "declared float32"),
    "Exits": ({"step": lambda self, action: sys.exit(5)}, "SystemExit: 5"),
    "OldStep": ({"step": lambda self, action: (self.observe(), 0.0, False, {})}, "failed in step"),
    "OldReset": ({"reset": lambda self, seed=None, options=None: self.observe()}, "gave a dict in reset"),
}


@pytest.mark.parametrize("name", ODDITIES)
def test_what_does_not_fit_is_an_episode_error_in_one_line(name: str, tmp_path: Path) -> None:
    members, words = ODDITIES[name]
    with pytest.raises(EpisodeError, match=words) as info:
        evaluate_odd(odd(name, **members), tmp_path, render="always")
    assert str(info.value).startswith(f"odd_gym_{name}-v0/0")
    assert "\n" not in str(info.value)


SPACES = {
    "Discretes": MultiDiscrete([3, 3]),
    "Discrete": Discrete(3),
    "Switches": MultiBinary(2),
    "Whole": Box(0, 9, (2,), np.int64),
    "Matrix": Box(-1, 1, (2, 2), np.float32),
    "Parts": Dict(arm=Box(-1, 1, (2,), np.float32)),
}


@pytest.mark.parametrize("name", SPACES)
def test_actions_that_are_not_a_vector_of_floats_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"needed is a vector of floats \(a Box\)"):
        make_environments(GymnasiumEnv(task=odd(name, action_space=SPACES[name])))


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
PICTURES = {
    "Grey": (Box(0, 255, (16, 16, 1), np.uint8), GREY[..., None]),
    "Flat": (Box(0, 255, (16, 16), np.uint8), GREY),
    "Clear": (Box(0, 255, (16, 16, 4), np.uint8), np.dstack([GREY, GREY, GREY, np.zeros_like(GREY)])),
    "Floats": (Box(0, 1, (16, 16, 3), np.float32), np.dstack([GREY] * 3).astype(np.float32) / 255),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_frame_that_is_grey_clear_or_of_floats_is_served_as_three_channels(name: str, tmp_path: Path) -> None:
    space, picture = PICTURES[name]
    members = {"observation_space": Dict(pixels=space, agent_pos=STATE), "picture": lambda self: picture}
    task = odd(f"Sees{name}", **members)
    (env,) = make_environments(GymnasiumEnv(task=task))
    assert dict(env.features.images) == {"image": (16, 16, 3)}
    env.reset(env.episode(0, 0))
    observation = Observation.empty(env.features)
    env.write_observation(observation)
    assert np.array_equal(observation.images["image"], np.dstack([GREY] * 3))
    assert np.array_equal(env.video_frame(), np.dstack([GREY] * 3))
    env.close()
    evaluate_odd(task, tmp_path, n_videos=1)
    assert len(list(tmp_path.rglob("*.mp4"))) == 1


UNSERVABLE = {
    "First": (Box(0, 255, (3, 16, 16), np.uint8), "channels first"),
    "Two": (Box(0, 255, (16, 16, 2), np.uint8), "1, 3 or 4 channels"),
    "Wide": (Box(0, 255, (16, 16, 3), np.float32), "from 255 to 255; needed is uint8, or floats from 0 to 1"),
    "Words": (Box(0, 65535, (16, 16, 3), np.uint16), "of uint16"),
}


@pytest.mark.parametrize("name", UNSERVABLE)
def test_a_frame_that_would_have_to_be_guessed_is_refused(name: str) -> None:
    space, words = UNSERVABLE[name]
    task = odd(f"Cannot{name}", observation_space=Dict(pixels=space, agent_pos=STATE))
    with pytest.raises(ConfigError, match=words):
        make_environments(GymnasiumEnv(task=task))


@pytest.mark.parametrize(
    ("name", "frame"), [("Nothing", None), ("List", [1]), ("Wide", np.full((16, 16, 3), 99.0)), ("Row", np.zeros(3))]
)
def test_what_cannot_be_a_video_is_said_and_the_run_goes_on(
    name: str, frame: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client, result = evaluate_odd(odd(f"Shows{name}", render=lambda self: frame), tmp_path, n_episodes=2, n_videos=2)
    assert [episode.length for episode in result.episodes] == [STEPS, STEPS]
    assert len(client.unwritten) == 2
    assert list(tmp_path.rglob("*.mp4")) == []
    assert all("a video frame" in reason for reason in client.unwritten.values())


def test_of_several_cameras_a_video_shows_the_first(tmp_path: Path) -> None:
    cameras = [np.full((16, 16, 3), value, np.uint8) for value in (5, 9)]
    (env,) = make_environments(GymnasiumEnv(task=odd("ShowsTwo", render=lambda self: cameras)))
    env.reset(env.episode(0, 0))
    assert np.all(env.video_frame() == 5)


def test_a_video_frame_that_changes_its_size_is_said_and_the_run_goes_on(tmp_path: Path) -> None:
    task = odd("Zooms", render=lambda self: np.zeros((16 + 2 * self.t, 16, 3), np.uint8))
    client, result = evaluate_odd(task, tmp_path, n_videos=1)
    assert result.episodes[0].length == STEPS
    assert len(client.unwritten) == 1


def test_a_simulator_that_cannot_close_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def close(self: Plain) -> None:
        raise RuntimeError("close failed")

    with caplog.at_level(logging.WARNING):
        _, result = evaluate_odd(odd("CloseRaises", close=close), tmp_path)
    assert result.episodes[0].length == STEPS
    assert "odd_gym_CloseRaises-v0/0 failed in close: RuntimeError: close failed" in caplog.text


def test_a_plain_one_is_evaluated(tmp_path: Path) -> None:
    _, result = evaluate_odd("odd_gym/Plain-v0", tmp_path, n_videos=1)
    assert PIXELS.shape == (16, 16, 3)
    assert [(episode.success, episode.sum_reward) for episode in result.episodes] == [(False, 3.0)]
