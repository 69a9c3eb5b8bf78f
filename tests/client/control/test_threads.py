"""The control loop beside threads of the user's: one that receives, one that stops it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from control_run import Run, executed
from stub_environment import StubEnvironment

from async_delta_inference.client import RunObserver
from async_delta_inference.client.control.action_queue import ActionQueue
from async_delta_inference.errors import PolicyError, TransportClosed

END_S = 30.0
"""For a thread to end that was told to."""


def test_receiving_thread_of_the_users(run: Run) -> None:
    """The programming interface of RobotClient, verbatim."""
    client = run.client(clock="realtime", n_episodes=5, chunk_size_threshold=0.7, aggregate_fn_name="latest_only")
    client.start()
    action_thread = threading.Thread(target=client.receive_actions, daemon=True)
    action_thread.start()
    client.control_loop(task="")
    client.stop()
    action_thread.join(END_S)
    assert not action_thread.is_alive()
    # Unlike upstream's unlocked merge: nothing lost, nothing twice, whatever the two threads do.
    timesteps = [t for episode in client.result.episodes for t in executed(episode)]
    assert timesteps == list(range(150))


def test_unlike_upstream_one_thread_alone_touches_the_queue(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """RobotClient merges in the thread that receives, and reads the queue outside its lock meanwhile."""
    threads: dict[str, set[int]] = {}
    for name in ("merge", "pop", "start_episode", "wants_observation", "__len__"):
        original = getattr(ActionQueue, name)

        def watched(self: ActionQueue, *arguments: Any, name: str = name, original: Any = original) -> Any:
            threads.setdefault(name, set()).add(threading.get_ident())
            return original(self, *arguments)

        monkeypatch.setattr(ActionQueue, name, watched)
    client = run.client(clock="realtime", n_episodes=2, chunk_size_threshold=0.9)
    client.start()
    receiver = threading.Thread(target=client.receive_actions)
    receiver.start()
    client.control_loop()
    client.stop()
    receiver.join(END_S)
    assert set().union(*threads.values()) == {threading.get_ident()}
    assert threads.keys() >= {"merge", "pop", "__len__"}


def test_error_in_the_receiving_thread_reaches_the_control_loop(run: Run) -> None:
    client = run.client(clock="realtime")
    client.start()
    run.transport.errors.append(PolicyError("it broke", 0))
    receiver = threading.Thread(target=client.receive_actions)
    receiver.start()
    with pytest.raises(PolicyError, match="it broke"):
        client.control_loop()
    client.stop()
    receiver.join(END_S)
    assert not receiver.is_alive()


def test_receiving_thread_may_be_there_before_the_start(run: Run) -> None:
    client = run.client(clock="realtime")
    receiver = threading.Thread(target=client.receive_actions)
    receiver.start()
    client.start()
    client.control_loop()
    client.stop()
    receiver.join(END_S)
    assert not receiver.is_alive()


def test_receiving_thread_ends_when_the_client_is_stopped_before_its_start(run: Run) -> None:
    client = run.client(clock="realtime")
    receiver = threading.Thread(target=client.receive_actions)
    receiver.start()
    client.stop()
    receiver.join(END_S)
    assert not receiver.is_alive()


class StopAtStep(RunObserver):
    """Stops the client once, at one step of the run, from another thread."""

    def __init__(self, step: int) -> None:
        self.client: Any = None
        self._steps_left = step

    def stepped(self, environment: Any, outcome: Any) -> None:
        self._steps_left -= 1
        if self._steps_left == 0:
            stopper = threading.Thread(target=self.client.stop)
            stopper.start()
            stopper.join(END_S)


@pytest.mark.parametrize("clock", ["simulated", "realtime"])
def test_stop_from_another_thread_ends_the_loop_and_keeps_whole_episodes_only(run: Run, clock: str) -> None:
    """Between two requests, so that no call of the transport's is under way."""
    stop = StopAtStep(step=30 + 12)
    run.observers = [stop]
    stop.client = client = run.client(n_episodes=3, clock=clock, chunk_size_threshold=0.0)
    client.start()
    result = client.control_loop()
    assert [episode.length for episode in result.episodes] == [30]
    (environment,) = run.environments
    assert [len(actions) for actions in environment.actions] == [30, 12]
    assert environment.closed
    assert run.transport.closed
    assert not client.running


def test_stop_from_another_thread_ends_a_wait_for_an_answer(run: Run) -> None:
    """The loop closes the environments then, also those whose turn never came: `stop` left them to it."""
    run.environments = [StubEnvironment(task_id=0), StubEnvironment(task_id=1)]
    run.silent = True
    client = run.client(clock="realtime")
    client.start()
    waits = threading.Event()
    receive = run.transport.receive_actions

    def watched(timeout_s: float) -> Any:
        if timeout_s > 0:
            waits.set()
        return receive(timeout_s)

    run.transport.receive_actions = watched  # type: ignore[method-assign]

    def stop() -> None:
        waits.wait(END_S)
        client.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(TransportClosed):
        client.control_loop()
    stopper.join(END_S)
    assert all(environment.closed for environment in run.environments)
