"""``async-delta-report``: one file with everything in it, read as text and looked at in a browser."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from control_run import Run
from stub_environment import SOLVED, StubEnvironment

from async_delta_inference.client.compare.runs import read_finished
from async_delta_inference.client.report.clips import SECONDS, chosen_videos, clip_of
from async_delta_inference.client.report.curves import queue_sizes
from async_delta_inference.client.report_cli import main

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS_PX = {"phone": 390, "desktop": 1280}

LOOK = """<!DOCTYPE html><body><script>
const page = %s, widths = %s, seen = {};
async function look(name, width) {
  const frame = document.createElement('iframe');
  frame.style = `width:${width}px;height:900px;border:0`;
  frame.srcdoc = page;
  document.body.append(frame);
  await new Promise(done => frame.onload = done);
  const inside = frame.contentDocument;
  const videos = [...inside.querySelectorAll('video')];
  for (const video of videos)
    for (let i = 0; i < 100 && !(video.readyState >= 2 || video.error); i++)
      await new Promise(go => setTimeout(go, 50));
  seen[name] = {
    overflow: inside.documentElement.scrollWidth - inside.documentElement.clientWidth,
    videos: videos.map(v => [v.error ? v.error.message : 'plays', v.videoWidth, v.duration]),
    charts: [...inside.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width),
    loaded: inside.defaultView.performance.getEntriesByType('resource').map(r => r.name.slice(0, 5)),
  };
}
(async () => {
  for (const [name, width] of Object.entries(widths)) await look(name, width);
  document.body.innerHTML = '<pre id=seen>' + JSON.stringify(seen) + '</pre>';
})();
</script></body>"""


@pytest.fixture
def folder(run: Run) -> Path:
    """A run with videos: of ten episodes the third of the first task is solved, and nothing of the second."""
    run.environments = [
        StubEnvironment(outcomes={12: SOLVED}),
        StubEnvironment(task_id=1, max_episode_steps=40),
    ]
    client = run.client(n_episodes=2, n_videos=1, inference_delay="2", aggregate_fn_name="latest_only")
    client.run()
    return client.output_dir


def page_of(*arguments: str | Path) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return (Path(arguments[0]) / "report.html").read_text()


def test_everything_is_in_the_file(folder: Path) -> None:
    page = page_of(folder)
    assert "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\(|@import|<script|<link""", page)
    for wanted in ("Success by task", "stub/0", "stub/1", "2 of 4: 50.0 %", "--inference_delay", "Where time went"):
        assert wanted in html.unescape(page), wanted


def test_failures_come_first(folder: Path) -> None:
    names = [path.name for path in chosen_videos(folder, 8)]
    assert names == ["eval_episode_0_failure.mp4", "eval_episode_0_success.mp4"]
    page = page_of(folder)
    assert page.index("stub_1, episode 0") < page.index("stub_0, episode 0")
    assert len(chosen_videos(folder, 1)) == 1


def test_long_videos_last_a_few_seconds(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    from lerobot.utils.io_utils import write_video

    path = tmp_path / "videos" / "some_0" / "eval_episode_3_failure.mp4"
    path.parent.mkdir(parents=True)
    write_video(str(path), [np.full((64, 800, 3), i, np.uint8) for i in range(200)], 20)
    clip = clip_of(path)
    assert (clip.speed, clip.size, clip.outcome, clip.name) == (2, (320, 26), "failure", "some_0, episode 3")
    shown = tmp_path / "clip.mp4"
    shown.write_bytes(base64.b64decode(clip.data.partition(",")[2]))
    with av.open(str(shown)) as container:
        assert container.duration / 1e6 <= SECONDS


def test_a_video_that_cannot_be_read_is_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (video, _) = chosen_videos(folder, 8)
    video.write_bytes(b"no video")
    page = page_of(folder)
    assert page.count("<video") == 1
    assert str(video) in caplog.text


def test_delays_are_drawn_of_several_runs(run: Run) -> None:
    folders = []
    for delay in ("0", "2", "4"):
        run.environments = [StubEnvironment(outcomes={12: SOLVED})]
        client = run.client(n_episodes=2, inference_delay=delay, on_starvation="skip")
        client.run()
        folders.append(client.output_dir)
    page = page_of(*folders)
    assert "Against delay" in page
    assert page.count("inference delay, steps") >= 5
    assert "Against delay" not in page_of(folders[0])


def test_the_queue_follows_from_the_chunks(run: Run) -> None:
    """But for the steps before the first chunk, whose queue is drawn when it has come."""
    client = run.client(inference_delay="3", chunk_size_threshold=0.5)
    episode = client.run().episodes[0]
    (kept,) = read_finished(client.output_dir).episodes.values()
    assert queue_sizes(kept)[1:] == episode.queue_sizes.tolist()[1:]


def test_a_name_is_text_and_no_markup(run: Run, tmp_path: Path) -> None:
    run.folder = tmp_path / "<b>&amp;"
    client = run.client()
    client.run()
    assert "<b>&amp;" not in page_of(client.output_dir)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_it_fits_and_plays_at_a_phones_and_a_desktops_width(folder: Path, tmp_path: Path) -> None:
    page = page_of(folder)
    wrapper = tmp_path / "look.html"
    wrapper.write_text(LOOK % (json.dumps(page).replace("</", "<\\/"), json.dumps(WIDTHS_PX)))
    assert BROWSER is not None
    shown = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--autoplay-policy=no-user-gesture-required", "--virtual-time-budget=20000", "--window-size=1400,1000"),
            *("--dump-dom", wrapper.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', shown.stdout, re.DOTALL)
    assert found is not None, shown.stdout[-2000:] + shown.stderr[-2000:]
    for name, seen in json.loads(html.unescape(found[1])).items():
        assert seen["overflow"] <= 0, name
        assert [video[0] for video in seen["videos"]] == ["plays"] * 2
        assert all(video[1] > 0 and 0 < video[2] <= SECONDS for video in seen["videos"])
        assert all(0.5 * min(WIDTHS_PX[name], 736) < width <= WIDTHS_PX[name] for width in seen["charts"])
        assert set(seen["loaded"]) <= {"data:"}
