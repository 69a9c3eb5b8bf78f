"""`LeRobotPolicy`: noise of its sessions, old checkpoints, overrides, names, the hub's cache, and a LeRobot to come."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.policies.act.modeling_act import ACTPolicy
from pusht_policies import build_for_pusht, observe, spec, statistics
from safetensors.torch import load_file, save_file
from small_act import ask, begin

from async_delta_inference.client.lerobot_flags import in_our_words
from async_delta_inference.errors import ConfigError, SetupRefusedError
from async_delta_inference.server_adapter import computation
from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.transport import ObservationFeatures, SessionSpec
from async_delta_inference.transport.computation import checked_computation


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_for_pusht("diffusion", tmp_path_factory.mktemp("diffusion"))


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_for_pusht("act", tmp_path_factory.mktemp("act"))


def answers(policy: LeRobotPolicy, session: Any, seeds: Iterator[int] | range, steps: int) -> list[bytes]:
    return [np.asarray(ask(policy, session, observe(seed, steps))).tobytes() for seed in seeds]


def answers_of_one(policy: LeRobotPolicy, wanted: SessionSpec, steps: int = 1) -> list[bytes]:
    session = policy.open(wanted)
    begin(session)
    found = answers(policy, session, range(3), steps)
    session.close()
    return found


# Noise.


@pytest.mark.parametrize("noise", ["request", "stream"])
@pytest.mark.parametrize("kind", ["diffusion", "tdmpc with MPC"])
def test_two_sessions_at_once_get_what_each_gets_alone(
    policy: LeRobotPolicy, kind: str, noise: str, tmp_path: Path
) -> None:
    folder = build_for_pusht(kind, tmp_path)
    steps = 2 if kind == "diffusion" else 1
    wanted = [spec(folder, noise=noise, seed=seed) for seed in (7, 8)]
    alone = [answers_of_one(policy, one, steps) for one in wanted]
    sessions = [policy.open(one) for one in wanted]
    for session in sessions:
        begin(session)
    together: list[list[bytes]] = [[], []]
    for seed in range(3):
        for found, session in zip(together, sessions, strict=True):
            found += answers(policy, session, range(seed, seed + 1), steps)
    assert together == alone
    assert alone[0] != alone[1]
    for session in sessions:
        session.close()


def test_noise_of_a_request_depends_on_episode_and_step_alone(policy: LeRobotPolicy, diffusion: Path) -> None:
    session = policy.open(spec(diffusion))
    found = []
    for episode, first in ((0, 0), (1, 40), (1, 90)):
        begin(session, episode)
        observation = observe(5, 2)
        observation.episode = episode
        answered = []
        for step in (0, 8):
            observation.timestep = first + step
            answered.append(np.asarray(ask(policy, session, observation)).tobytes())
        found.append(answered)
    assert found[1] == found[2]
    assert len({*found[0], *found[1]}) == 4
    session.close()


# Checkpoints.


def without_processors(folder: Path, source: Path) -> Path:
    """As checkpoints were before there were processors: statistics as buffers of the weights."""
    shutil.copytree(source, folder)
    for file in folder.glob("policy_*processor*"):
        file.unlink()
    config = json.loads((folder / "config.json").read_text())
    features = {
        **{key: tuple(feature["shape"]) for key, feature in config["input_features"].items()},
        "action": tuple(config["output_features"]["action"]["shape"]),
    }
    weights = load_file(folder / "model.safetensors")
    named = {key: type("Feature", (), {"shape": shape})() for key, shape in features.items()}
    for key, values in statistics(named).items():
        part = "unnormalize_outputs" if key == "action" else "normalize_inputs"
        for name, value in values.items():
            weights[f"{part}.buffer_{key.replace('.', '_')}.{name}"] = value.contiguous()
    save_file(weights, folder / "model.safetensors")
    return folder


def test_processors_of_an_old_checkpoint_are_made_of_its_weights(
    policy: LeRobotPolicy, diffusion: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = answers_of_one(policy, spec(diffusion), 2)
    old = without_processors(tmp_path / "old", diffusion)
    assert answers_of_one(policy, spec(old), 2) == expected
    assert "made of the statistics in its weights" in caplog.text


def test_old_checkpoint_without_statistics_is_refused_with_what_is_missing(
    policy: LeRobotPolicy, act: Path, tmp_path: Path
) -> None:
    old = shutil.copytree(act, tmp_path / "old")
    for file in old.glob("policy_*processor*"):
        file.unlink()
    with pytest.raises(SetupRefusedError, match=r"no policy_preprocessor.*no statistics of observation\.image, obs"):
        policy.open(spec(old))


def test_configuration_of_2024_is_read(policy: LeRobotPolicy, diffusion: Path, tmp_path: Path) -> None:
    expected = answers_of_one(policy, spec(diffusion), 2)
    old = without_processors(tmp_path / "old", diffusion)
    config = json.loads((old / "config.json").read_text())
    modes = config.pop("normalization_mapping")
    del config["type"]
    for side in ("input", "output"):
        features = config.pop(f"{side}_features")
        config[f"{side}_shapes"] = {key: feature["shape"] for key, feature in features.items()}
        config[f"{side}_normalization_modes"] = {key: modes[f["type"]].lower() for key, f in features.items()}
    (old / "config.json").write_text(json.dumps(config))
    with pytest.raises(SetupRefusedError, match="says no type of policy: give --policy_type"):
        policy.describe(spec(old))
    assert answers_of_one(policy, replace(spec(old), policy_type="diffusion"), 2) == expected


def test_loading_leaves_no_temporary_file(
    policy: LeRobotPolicy, act: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    policy.open(spec(act)).close()
    assert list(tmp_path.iterdir()) == []


def test_overrides_are_the_checkpoints_configuration(policy: LeRobotPolicy, act: Path) -> None:
    session = policy.open(spec(act, overrides=("n_action_steps=3", "temporal_ensemble_coeff=null")))
    assert policy.loaded is not None
    assert policy.loaded.config.n_action_steps == 3
    session.close()
    with pytest.raises(SetupRefusedError, match="no_such_thing"):
        policy.open(spec(act, overrides=("no_such_thing=3",)))


def test_policy_says_how_it_computes(policy: LeRobotPolicy, act: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert policy.computation() == {}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    policy.open(spec(act, overrides=("use_amp=true",))).close()
    said = checked_computation(policy.computation())
    assert {name: said[name] for name in ("device", "parameters", "autocast", "compiled", "threads", "torch")} == {
        **{"device": "cpu", "parameters": "float32", "autocast": "bfloat16"},
        **{"compiled": False, "threads": 3, "torch": str(torch.__version__)},
    }
    # What a CPU has not got is not said to be off.
    assert {said[name] for name in ("cuda", "driver", "tf32_matmul", "cudnn_benchmark")} == {None}


def test_policy_on_a_gpu_says_how_it_computes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The GPU is made up."""
    (tmp_path / "version").write_text("580.65.06\n")
    monkeypatch.setattr(computation, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    on_it = torch.device("cuda:0")
    parameters = [
        SimpleNamespace(dtype=dtype, device=on_it, numel=lambda many=many: many)
        for dtype, many in ((torch.float32, 5), (torch.bfloat16, 10), (torch.float32, 4))
    ]
    config = SimpleNamespace(device="cuda", compile_model=True, compile_mode="max-autotune")
    asked = SimpleNamespace(config=config, parameters=lambda: iter(parameters))
    said = checked_computation(computation.computation_of(asked, autocast=True))
    assert said["device"] == "cuda:0"
    assert said["device_name"] == "GPU of cuda:0"
    assert (said["cuda"], said["driver"]) == ("13.0", "580.65.06")
    assert said["parameters"] == "bfloat16, float32"
    assert said["autocast"] == "float16"
    assert (said["compiled"], said["compile_mode"]) == (True, "max-autotune")
    assert said["cudnn_benchmark"] is True
    assert isinstance(said["tf32_matmul"], bool)


def test_policy_is_compiled_where_its_own_flag_says_so(
    policy: LeRobotPolicy, diffusion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By LeRobot, which nothing slow is left to; a type that cannot be compiled has no such flag."""
    compiled: list[tuple[str, str]] = []

    def compile_nothing(model: Any, *, mode: str) -> Any:
        compiled.append((type(model).__name__, mode))
        return model

    monkeypatch.setattr(torch, "compile", compile_nothing)
    words = in_our_words(["--policy.compile_model=true", "--policy.compile_mode=max-autotune"])
    (word,) = words
    overrides = tuple(json.loads(word.removeprefix("--policy_overrides=")))
    session = policy.open(spec(diffusion, overrides=overrides))
    assert set(compiled) == {("DiffusionConditionalUnet1d", "max-autotune")}
    said = policy.computation()
    assert (said["compiled"], said["compile_mode"]) == (True, "max-autotune")
    session.close()
    assert policy.loaded is not None


def adapted(folder: Path, base: Path) -> Path:
    """As LeRobot saves a policy that was trained with PEFT: the adapter, and where its base is."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"use_peft": True}))
    return folder


def test_an_adapter_is_loaded_over_its_base(policy: LeRobotPolicy, tmp_path: Path) -> None:
    """ACT with ensembling, which remembers: the policy within the adapter does."""
    peft = pytest.importorskip("peft", reason="PEFT's adapters need peft: lerobot[peft]")
    base = build_for_pusht("act with ensembling", tmp_path / "base")
    whole = ACTPolicy.from_pretrained(base)
    torch.manual_seed(0)
    lora = peft.LoraConfig(target_modules=r".*linear1", init_lora_weights=False)
    model = peft.get_peft_model(whole, lora)
    model.peft_config["default"].base_model_name_or_path = str(base)
    folder = adapted(tmp_path / "adapted", base)
    model.save_pretrained(folder)
    merged = shutil.copytree(base, tmp_path / "merged")
    model.merge_and_unload().save_pretrained(merged)
    found = [np.frombuffer(answer, np.float32) for answer in answers_of_one(policy, spec(folder))]
    expected = [np.frombuffer(answer, np.float32) for answer in answers_of_one(policy, spec(merged))]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert answers_of_one(policy, spec(folder)) != answers_of_one(policy, spec(base))
    wanted = [spec(folder), spec(folder, rename_map={"unseen": "unused"})]
    sessions = [policy.open(one) for one in wanted]
    for session in sessions:
        begin(session)
    by_turns = [[answers(policy, session, range(seed, seed + 1), 1) for session in sessions] for seed in range(3)]
    for row, alone in zip(by_turns, found, strict=True):
        assert row == [[alone.tobytes()]] * 2
    for session in sessions:
        session.close()


@pytest.mark.skipif(find_spec("peft") is not None, reason="peft is installed")
def test_an_adapter_without_peft_is_refused_with_what_to_install(
    policy: LeRobotPolicy, act: Path, tmp_path: Path
) -> None:
    with pytest.raises(SetupRefusedError, match=r"'peft' is required.*lerobot\[peft\]"):
        policy.open(spec(adapted(tmp_path / "adapted", act)))


def test_checkpoint_in_the_hubs_cache_is_loaded(
    policy: LeRobotPolicy, act: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    expected = answers_of_one(policy, spec(act))
    model = tmp_path / "models--somebody--act_pusht"
    shutil.copytree(act, model / "snapshots" / "0123456789")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123456789")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert answers_of_one(policy, spec("somebody/act_pusht")) == expected


# Names.


@pytest.mark.parametrize("camera", ["observation.image", "observation.images.image", "observation.images.top"])
def test_a_cameras_name_does_not_change_what_is_seen(
    policy: LeRobotPolicy, act: Path, tmp_path: Path, camera: str
) -> None:
    folder = build_for_pusht("act", tmp_path, camera)
    renames = {"observation.image": camera} if camera.endswith("top") else {}
    assert answers_of_one(policy, spec(folder, rename_map=renames)) == answers_of_one(policy, spec(act))
    if renames:
        with pytest.raises(SetupRefusedError, match=r"--rename_map=.*observation\.images\.image.*images\.top"):
            policy.open(spec(folder))


def test_image_of_another_size_is_served_and_said(
    policy: LeRobotPolicy, act: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy.open(spec(act, ObservationFeatures(("x", "y"), {"image": (64, 80, 3)}))).close()
    assert "gives images of 64x80x3" in caplog.text


# Plugins.

PLUGIN = {
    "lerobot_policy_tiny-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: lerobot_policy_tiny\nVersion: 1\n",
    "lerobot_policy_tiny/__init__.py": "from lerobot_policy_tiny import configuration_tiny\n",
    "lerobot_policy_tiny/configuration_tiny.py": """
from dataclasses import dataclass
from lerobot.configs import PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig

@PreTrainedConfig.register_subclass("tiny")
@dataclass
class TinyConfig(ACTConfig):
    pass
""",
    "lerobot_policy_tiny/modeling_tiny.py": """
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot_policy_tiny.configuration_tiny import TinyConfig

class TinyPolicy(ACTPolicy):
    config_class, name = TinyConfig, "tiny"
""",
}


def test_type_of_an_installed_plugin_is_served(
    policy: LeRobotPolicy, act: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in PLUGIN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = shutil.copytree(act, tmp_path / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"type": "tiny"}))
    expected = answers_of_one(policy, spec(act))
    found = answers_of_one(LeRobotPolicy(), spec(checkpoint))
    assert [len(answer) for answer in found] == [config["n_action_steps"] * 2 * 4] * 3  # Asked action by action.
    assert all(whole.startswith(answer) for whole, answer in zip(expected, found, strict=True))


# A LeRobot to come.


def test_nothing_of_lerobots_asynchronous_packages_is_needed(diffusion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith(("async_delta_inference.server_adapter.", "lerobot.async_inference", "lerobot.transport")):
            monkeypatch.delitem(sys.modules, name)
    for name in ("lerobot.async_inference", "lerobot.transport"):
        monkeypatch.setitem(sys.modules, name, None)  # As if it could not be found.
    fresh = importlib.import_module("async_delta_inference.server_adapter.lerobot").LeRobotPolicy()
    assert len(answers_of_one(fresh, spec(diffusion), 2)) == 3
    cli = importlib.import_module("async_delta_inference.server_adapter.cli")
    with pytest.raises(ConfigError, match="this LeRobot has no PolicyServer"):
        cli._make_policy("policy_server")
