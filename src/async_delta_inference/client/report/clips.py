"""Videos for a page: short, small, and part of it."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from async_delta_inference.errors import ConfigError

__all__ = ["Clip", "chosen_videos", "clip_of"]

SECONDS = 6.0
WIDEST_PX = 320
_ORDER = {"failure": 0, "unknown": 1, "success": 2}


@dataclass(frozen=True, slots=True)
class Clip:
    """A video in the page.

    Args:
        name: Of the task and episode.
        outcome: ``success``, ``failure`` or ``unknown``.
        data: As a data URI.
        speed: How many times faster than it was recorded.
        size: Width and height in pixels.
    """

    name: str
    outcome: str
    data: str
    speed: int
    size: tuple[int, int]


def chosen_videos(folder: Path, most: int) -> list[Path]:
    """The videos of a run to show: failures first, then episode by episode.

    Args:
        folder: Of the run.
        most: How many at most.
    """
    found = sorted(folder.glob("videos/*/eval_episode_*.mp4"), key=lambda path: (_outcome(path), _episode(path), path))
    return found[:most]


def clip_of(video: Path) -> Clip:
    """Read a video, and make it last a few seconds by leaving frames out.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        av: Any = import_module("av")
    except ModuleNotFoundError as exc:
        raise ConfigError("videos in a report need the package av: pip install av, or --videos=0") from exc
    try:
        with av.open(str(video)) as source:
            stream = source.streams.video[0]
            fps = float(stream.average_rate or 20)
            frames = [frame.to_image() for frame in source.decode(stream)]
    except (av.error.FFmpegError, OSError, IndexError) as exc:
        raise ConfigError(f"{video} cannot be read: {exc}") from exc
    speed = max(1, math.ceil(len(frames) / fps / SECONDS))
    kept = [*frames[:-1:speed], frames[-1]]
    width, height = _size(*kept[0].size)
    data = base64.b64encode(_encoded(av, kept, (width, height), max(1, round(fps)))).decode()
    name = f"{video.parent.name}, episode {_episode(video)}"
    return Clip(name, video.stem.rpartition("_")[2], f"data:video/mp4;base64,{data}", speed, (width, height))


def _encoded(av: Any, images: list[Any], size: tuple[int, int], fps: int) -> bytes:
    # What plays at once needs its index in front, for which the file is read again: it must be one.
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with av.open(str(path), "w", options={"movflags": "faststart"}) as target:
            out = target.add_stream("libx264", rate=fps, options={"crf": "26"})
            (out.width, out.height), out.pix_fmt = size, "yuv420p"
            for image in images:
                target.mux(out.encode(av.VideoFrame.from_image(image.resize(size))))
            target.mux(out.encode())
        return path.read_bytes()


def _outcome(path: Path) -> int:
    return _ORDER.get(path.stem.rpartition("_")[2], 1)


def _episode(path: Path) -> int:
    digits = path.stem.removeprefix("eval_episode_").partition("_")[0]
    return int(digits) if digits.isdecimal() else 0


def _size(width: int, height: int) -> tuple[int, int]:
    """Even, and no wider than the page shows it."""
    scale = min(1.0, WIDEST_PX / width)
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)
