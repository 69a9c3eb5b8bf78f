"""Environment and checkpoint are compared before anything is sent."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from async_delta_inference.client.policy_flags import PolicyFlags
from async_delta_inference.client.run.checkpoint import check_checkpoint, local_checkpoint
from async_delta_inference.errors import ConfigError, FeatureMismatchError
from async_delta_inference.transport import ObservationFeatures

FEATURES = ObservationFeatures(("x", "y"), {"front": (4, 6, 3), "wrist": (4, 6, 3)})


def write_config(folder: Path, **changes: object) -> Path:
    inputs = {
        "observation.images.front": {"type": "VISUAL", "shape": [3, 96, 96]},
        "observation.images.wrist": {"type": "VISUAL", "shape": [3, 96, 96]},
        "observation.state": {"type": "STATE", "shape": [2]},
    }
    config = {
        "type": "act",
        "input_features": inputs,
        "output_features": {"action": {"type": "ACTION", "shape": [7]}},
    } | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_checkpoint_that_fits_is_accepted(tmp_path: Path) -> None:
    check_checkpoint(write_config(tmp_path), flags(), FEATURES, 7)


def test_other_policy_type_names_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use --policy_type=act"):
        check_checkpoint(write_config(tmp_path), flags(policy_type="smolvla"), FEATURES, 7)


def flags(**given: Any) -> PolicyFlags:
    return PolicyFlags(**{"policy_type": "act", "pretrained_name_or_path": "here", **given})


@pytest.mark.parametrize("cameras", [{"front": (4, 6, 3)}, {"front": (4, 6, 3), "top": (4, 6, 3)}])
def test_cameras_that_differ_are_named_on_both_sides(tmp_path: Path, cameras: dict) -> None:
    features = ObservationFeatures(("x", "y"), cameras)
    with pytest.raises(FeatureMismatchError, match=r"environment gives.*images\.front.*takes.*images\.wrist"):
        check_checkpoint(write_config(tmp_path), flags(), features, 7)


def test_cameras_that_the_policy_can_do_with_or_without_are_accepted(tmp_path: Path) -> None:
    shape = (4, 6, 3)
    more = ObservationFeatures(("x", "y"), {"front": shape, "wrist": shape, "top": shape})
    check_checkpoint(write_config(tmp_path), flags(), more, 7)
    less = ObservationFeatures(("x", "y"), {"front": shape})
    check_checkpoint(write_config(tmp_path, empty_cameras=1), flags(), less, 7)


def test_cameras_are_renamed(tmp_path: Path) -> None:
    other = ObservationFeatures(("x", "y"), {"one": (4, 6, 3), "two": (4, 6, 3)})
    renames = {
        "observation.images.one": "observation.images.front",
        "observation.images.two": "observation.images.wrist",
    }
    check_checkpoint(write_config(tmp_path), flags(rename_map=renames), other, 7)
    with pytest.raises(FeatureMismatchError, match=r"rename with --rename_map='.\"observation.images.one\": \"obs"):
        check_checkpoint(write_config(tmp_path), flags(), other, 7)


def test_state_that_the_policy_pads_may_have_another_length(tmp_path: Path) -> None:
    features = ObservationFeatures(("x", "y", "z"), FEATURES.images)
    check_checkpoint(write_config(tmp_path, max_state_dim=32), flags(), features, 7)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_features": ["observation.state"]}, "its input_features are a list"),
        ({"input_features": {"observation.state": {"shape": None}}}, "say the shape of observation.state is None"),
        ({"input_shapes": {"observation.state": 2}}, "LeRobot of 2024"),
    ],
)
def test_configuration_of_another_form_is_one_line(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_checkpoint(write_config(tmp_path, **changes), flags(), FEATURES, 7)


def test_state_that_differs_is_named(tmp_path: Path) -> None:
    features = ObservationFeatures(("x", "y", "z"), FEATURES.images)
    with pytest.raises(FeatureMismatchError, match=r"3 elements \(x, y, z\)"):
        check_checkpoint(write_config(tmp_path), flags(), features, 7)


def test_action_that_differs_is_named(tmp_path: Path) -> None:
    with pytest.raises(FeatureMismatchError, match="actions of 4 elements"):
        check_checkpoint(write_config(tmp_path), flags(), FEATURES, 4)


def test_input_that_the_environment_does_not_give_is_named(tmp_path: Path) -> None:
    inputs = {
        "observation.environment_state": {"shape": [3]},
        "observation.images.front": {"shape": [3, 9, 9]},
        "observation.images.wrist": {"shape": [3, 9, 9]},
    }
    with pytest.raises(FeatureMismatchError, match="environment_state"):
        check_checkpoint(write_config(tmp_path, input_features=inputs), flags(), FEATURES, 7)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_configuration_that_cannot_be_read_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        check_checkpoint(tmp_path, flags(), FEATURES, 7)


def test_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    assert local_checkpoint(tmp_path.name) == tmp_path


def test_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        local_checkpoint(str(tmp_path))


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nothing", "outputs/train/x/pretrained_model", "word"])
def test_path_to_nothing_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        local_checkpoint(path)


def test_path_of_the_servers_machine_is_left_to_the_server() -> None:
    assert local_checkpoint("/models/act/pretrained_model", shares_files=False) is None


class Hub:
    """The hub's models, or what comes of asking for one; counts who asks."""

    def __init__(self) -> None:
        self.models = {"lerobot/act_aloha_sim"}
        self.fails: Exception | None = None
        self.asked: list[str] = []

    def model_info(self, api: Any, name: str, *, timeout: float) -> None:
        self.asked.append(name)
        if self.fails is not None:
            raise self.fails
        if name not in self.models:
            raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Stands for the network, which tests do not have."""
    hub = Hub()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda api, *args, **kw: hub.model_info(api, *args, **kw))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return hub


@pytest.mark.parametrize(("there", "meant"), [("policy", "; is it outputs/policy"), ("other/config.json", "$")])
def test_a_typing_error_is_said_at_once_though_a_hub_could_have_that_name(
    there: str, meant: str, tmp_path: Path, hub: Hub
) -> None:
    (tmp_path / "outputs" / there).mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"outputs/polcy: there is no such folder{meant}"):
        local_checkpoint("outputs/polcy")
    assert hub.asked == []


def test_a_name_that_the_hub_does_not_have_is_neither(hub: Hub) -> None:
    with pytest.raises(ConfigError, match="no such folder here, and the hub has no such model"):
        local_checkpoint("outputs/polcy")


def test_a_hub_that_cannot_be_asked_is_no_reason_to_wait(hub: Hub, tmp_path: Path) -> None:
    hub.fails = ConnectionError("no network\nhere")
    with pytest.raises(ConfigError, match=r"no such folder here, and the hub cannot be asked for it: no network$"):
        local_checkpoint("lerobot/act_aloha_sim")
    (tmp_path / "hub" / "models--lerobot--act_aloha_sim").mkdir(parents=True)
    assert local_checkpoint("lerobot/act_aloha_sim") is None


def test_hub_name_is_left_to_the_server(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "lerobot" / "src").mkdir(parents=True)
    assert local_checkpoint("lerobot/act_aloha_sim") is None
    assert hub.asked == ["lerobot/act_aloha_sim"]
