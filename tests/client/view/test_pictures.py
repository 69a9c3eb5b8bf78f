"""The pictures of a run are written; what is in them is for eyes."""

from __future__ import annotations

from pathlib import Path

from control_run import Run


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_pictures_are_written_when_asked_for(run: Run) -> None:
    client = run.client(debug_visualize_queue_size=True, plot_latency=True, n_episodes=2)
    client.run()
    assert is_png(client.output_dir / "queue_size.png")
    assert is_png(client.output_dir / "latency.png")


def test_no_picture_is_written_unless_asked_for(run: Run) -> None:
    client = run.client()
    client.run()
    assert not list(client.output_dir.rglob("*.png"))
