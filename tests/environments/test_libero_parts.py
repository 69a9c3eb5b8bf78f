"""What makes LIBERO lean and offline, piece by piece, without building a simulator."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from async_delta_inference.client.environments import libero_setup
from async_delta_inference.client.environments.libero_cameras import (
    LiberoFrameGate,
    gated_sensor,
    samples_in_next_steps,
)
from async_delta_inference.errors import ConfigError, MissingExtraError


class Camera:
    """A sensor that counts what it renders."""

    __modality__ = "image"

    def __init__(self) -> None:
        self.rendered = 0

    def __call__(self, obs_cache: dict[str, Any]) -> NDArray[np.uint8]:
        self.rendered += 1
        return np.full((2, 2, 3), self.rendered, np.uint8)


def gated() -> tuple[LiberoFrameGate, Camera, Any]:
    gate, camera = LiberoFrameGate(), Camera()
    return gate, camera, gated_sensor(gate, "eye", camera, (2, 2, 3))


def never() -> bool:
    return False


def test_a_closed_gate_repeats_the_last_image() -> None:
    gate, camera, sensor = gated()
    assert sensor.__modality__ == "image"
    assert not sensor({}).any()
    gate.expect_step(True)
    gate.begin_step(never)
    assert sensor({}).max() == 1
    assert gate.fresh
    gate.expect_step(False)
    gate.begin_step(never)
    assert sensor({}).max() == 1
    assert camera.rendered == 1
    assert not gate.fresh


def test_of_a_reset_only_the_last_settling_step_renders() -> None:
    gate, camera, sensor = gated()
    gate.expect_reset(True, settling_steps=3)
    sensor({})
    for expected in (0, 0, 1):
        gate.begin_step(never)
        sensor({})
        assert camera.rendered == expected
    assert gate.fresh


def test_a_reset_without_settling_steps_renders_what_it_forces() -> None:
    gate, _, sensor = gated()
    gate.expect_reset(True, settling_steps=0)
    sensor({})
    assert gate.fresh


def test_an_unwanted_reset_renders_nothing() -> None:
    gate, camera, sensor = gated()
    gate.expect_reset(False, settling_steps=2)
    for _ in range(2):
        gate.begin_step(never)
        sensor({})
    assert camera.rendered == 0
    assert not gate.fresh


def test_a_step_before_one_without_a_sample_renders() -> None:
    gate, camera, sensor = gated()
    gate.expect_step(False)
    gate.begin_step(lambda: True)
    sensor({})
    assert camera.rendered == 1
    assert gate.fresh


@settings(max_examples=60, deadline=None)
@given(fps=st.integers(5, 120), offset=st.integers(0, 40))
def test_the_timer_run_ahead_is_robosuites_own(fps: int, offset: int) -> None:
    libero_setup.prepare_libero()
    from robosuite.utils.observables import Observable

    camera = Camera()
    observable = Observable("eye", camera, sampling_rate=fps)
    timestep_s, substeps = 0.002, int(1 / fps / 0.002)
    for _ in range(offset):
        observable.update(timestep_s, {})
    expected = samples_in_next_steps(observable, timestep_s, substeps, 40)
    got = []
    for _ in range(40):
        before = camera.rendered
        for _ in range(substeps):
            observable.update(timestep_s, {})
        got.append(camera.rendered > before)
    assert got == expected


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    # Set first, so that what the code under test sets is undone.
    monkeypatch.setenv("LIBERO_CONFIG_PATH", "")
    monkeypatch.delenv("LIBERO_CONFIG_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_a_config_is_written_to_a_private_place(clean: Path) -> None:
    libero_setup._ensure_config(clean / "libero")
    folder = Path(os.environ["LIBERO_CONFIG_PATH"])
    assert folder.is_relative_to(clean / "cache" / "async-delta-inference")
    lines = (folder / "config.yaml").read_text().splitlines()
    assert f"bddl_files: {clean / 'libero' / 'bddl_files'}" in lines
    assert not (clean / ".libero").exists()
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_the_users_own_config_is_respected(clean: Path) -> None:
    (clean / ".libero").mkdir()
    (clean / ".libero" / "config.yaml").write_text("bddl_files: /mine\ninit_states: /mine\n")
    libero_setup._ensure_config(clean / "libero")
    assert "LIBERO_CONFIG_PATH" not in os.environ
    assert not (clean / "cache").exists()


def test_a_chosen_folder_without_a_config_gets_one(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(clean / "chosen"))
    libero_setup._ensure_config(clean / "libero")
    assert (clean / "chosen" / "config.yaml").exists()


def test_a_cache_that_cannot_be_written_falls_back_to_the_temporary_folder(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(clean / "tmp"))
    libero_setup._ensure_config(clean / "libero")
    assert Path(os.environ["LIBERO_CONFIG_PATH"]).is_relative_to(clean / "tmp")


def test_a_config_of_a_removed_installation_is_named(tmp_path: Path) -> None:
    libero = SimpleNamespace(config_file="config.yaml", get_libero_path=lambda name: str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"config\.yaml says that LIBERO's bddl_files are in .*gone"):
        libero_setup._check_folders(libero)


def test_libero_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "robosuite", None)
    with pytest.raises(MissingExtraError, match=r"async-delta-inference\[libero\]"):
        libero_setup.prepare_libero()


@pytest.mark.parametrize("text", ["", "[]", "bddl_files: 3", "a: [", "bddl_files: /x", "\x00"])
def test_a_config_that_says_nothing_is_named(clean: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (clean / "config.yaml").write_text(text)
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(clean))
    with pytest.raises(ConfigError, match=f"{clean}/config.yaml .*: remove the file, or set LIBERO_CONFIG_PATH"):
        libero_setup.prepare_libero()
