"""Whatever comes out of a simulator is an error of its episode, with one line that says whose and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from control_run import Run
from stub_environment import StubEnvironment
from stub_process import episodes_kept, run_stub

from async_delta_inference.client import register_environment
from async_delta_inference.client.environments.guarded import GuardedEnvironment
from async_delta_inference.client.environments.registry import make_environments
from async_delta_inference.errors import ConfigError, EpisodeError


class StrangeError(BaseException):
    """Of somebody's who thinks that nobody should catch it."""


METHODS = ["reset", "step", "write_observation", "video_frame", "hold_action"]
FLAGS = {"n_episodes": 2, "n_videos": 2, "on_starvation": "skip", "inference_delay": "1"}


def failing(method: str, error: BaseException, episode: int = 1) -> StubEnvironment:
    """An environment whose method raises in one of its episodes."""
    environment = StubEnvironment()
    original: Callable[..., Any] = getattr(environment, method)

    def fail(*arguments: Any, **flags: Any) -> Any:
        result = original(*arguments, **flags)
        if len(environment.seeds) == episode + 1:
            raise error
        return result

    setattr(environment, method, fail)
    return environment


@pytest.mark.parametrize("method", METHODS)
def test_simulator_that_ends_the_program_ends_its_episode(run: Run, method: str) -> None:
    run.environments = [failing(method, SystemExit(3))]
    client = run.client(**FLAGS)
    with pytest.raises(EpisodeError) as info:
        client.run()
    assert str(info.value) == f"stub/0 failed in {method}: SystemExit: 3"
    assert isinstance(info.value.__cause__, SystemExit)
    assert len(client.result.episodes) == 1
    assert (client.output_dir / "eval_info.json").is_file()
    assert run.transport.closed
    assert run.environments[0].closed


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SystemExit(), "SystemExit"),
        (StrangeError("no\nreally"), "StrangeError: no really"),
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (MemoryError(), "MemoryError"),
        (GeneratorExit(), "GeneratorExit"),
        (StopIteration(), "StopIteration"),
    ],
)
def test_every_kind_of_exception_is_told_on_one_line(run: Run, error: BaseException, words: str) -> None:
    run.environments = [failing("step", error)]
    with pytest.raises(EpisodeError) as info:
        run.client(n_episodes=2).run()
    assert str(info.value) == f"stub/0 failed in step: {words}"


@pytest.mark.parametrize("error", [ConfigError("nobody said how"), EpisodeError("never reset")])
def test_error_of_ours_stays_what_it_is(run: Run, error: Exception) -> None:
    run.environments = [failing("step", error)]
    with pytest.raises(type(error), match=str(error)) as info:
        run.client(n_episodes=2).run()
    assert info.value is error


def test_interrupt_stays_an_interrupt(run: Run) -> None:
    run.environments = [failing("step", KeyboardInterrupt())]
    client = run.client(n_episodes=2)
    with pytest.raises(KeyboardInterrupt):
        client.run()
    assert (client.output_dir / "eval_info.json").is_file()


def test_simulator_that_ends_the_program_when_it_is_closed_loses_nothing(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    run.environments = [failing("close", SystemExit(3), episode=0), StubEnvironment(task_id=1)]
    client = run.client(plot_latency=True)
    client.run()
    assert "stub/0 failed in close: SystemExit: 3" in caplog.text
    assert len(client.result.episodes) == 2
    assert (client.output_dir / "latency.png").is_file()
    assert run.transport.closed


def test_simulator_that_ends_the_program_before_it_is_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from async_delta_inference.client.environments import registry

    monkeypatch.setattr(registry, "_factories", {})

    @register_environment("broken")
    def make_broken(config: Any) -> Any:
        raise SystemExit(4)

    with pytest.raises(EpisodeError, match=r"^--env\.type=broken failed in its construction: SystemExit: 4$"):
        make_environments(SimpleNamespace(type="broken"))


def test_environment_that_lerobot_cannot_build_is_told_whatever_it_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    from lerobot.envs import factory
    from lerobot.envs.configs import PushtEnv

    def exit_instead(*_: Any, **__: Any) -> Any:
        raise SystemExit("no display")

    monkeypatch.setattr(factory, "make_env", exit_instead)
    with pytest.raises(ConfigError, match=r"^--env\.type=pusht cannot be built: no display$"):
        make_environments(PushtEnv())


def test_command_says_it_on_one_line_and_keeps_what_was_done(tmp_path: Path) -> None:
    done = run_stub(tmp_path, n_episodes=3, does={"step 1": "exit"})
    assert done.stderr == "error: stub/0 failed in step: SystemExit: 3\n"
    assert done.returncode == 1
    assert episodes_kept(tmp_path) == 1


def test_attributes_of_the_environment_are_seen_through_its_guard() -> None:
    environment = StubEnvironment(max_episode_steps=7)
    guarded = GuardedEnvironment(environment)
    assert (guarded.max_episode_steps, guarded.fps, guarded.seeds) == (7, 200.0, [])
    environment.task_description = "changed by a reset"
    assert guarded.task_description == "changed by a reset"
    with pytest.raises(AttributeError, match="nonsense"):
        guarded.nonsense  # noqa: B018
