"""``--n_videos``: which episodes are recorded, and what of them."""

from __future__ import annotations

import json
from pathlib import Path

from control_run import Run
from stub_environment import SOLVED, StubEnvironment


def test_first_episodes_are_recorded_and_nothing_else_changes(run: Run) -> None:
    """The first ones of each task, named by task, episode and outcome; the policy is shown the same frames as ever."""
    run.environments = [StubEnvironment(task_id=0), StubEnvironment(task_id=4, outcomes={9: SOLVED})]
    client = run.client(n_videos=2, n_episodes=3)
    client.run()
    folder = client.output_dir / "videos"
    names = ["stub_0/eval_episode_0_failure.mp4", "stub_0/eval_episode_1_failure.mp4"]
    names += ["stub_4/eval_episode_0_success.mp4", "stub_4/eval_episode_1_success.mp4"]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.mp4")) == names
    written = json.loads((client.output_dir / "eval_info.json").read_text())
    assert written["overall"]["video_paths"] == [str(folder / name) for name in names]
    for environment in run.environments:
        assert environment.rendered[0] == environment.rendered[2]
    # The first frame is the reset's, and every step adds one.
    assert [frames_in(folder / name) for name in names] == [31, 31, 10, 10]


def frames_in(path: Path) -> int:
    import av

    with av.open(str(path)) as video:
        return sum(1 for _ in video.decode(video=0))
