"""``async-delta-report``: runs as one HTML file, videos included, which loads nothing from anywhere."""

from __future__ import annotations

import logging
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from async_delta_inference.client.compare.runs import FinishedRun, read_finished
from async_delta_inference.client.record.figures import run_figures
from async_delta_inference.client.report.clips import Clip, chosen_videos, clip_of
from async_delta_inference.client.report.page import ReportedRun, report_page
from async_delta_inference.command_line import refuse, run_command
from async_delta_inference.errors import ConfigError
from async_delta_inference.whole_files import write_whole

__all__ = ["main"]

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 2 for a user's mistake, 1 where the file cannot be written.
    """
    return run_command(lambda: _report(_parse(sys.argv[1:] if arguments is None else arguments)))


def _parse(arguments: Sequence[str]) -> Namespace:
    parser = ArgumentParser(prog="async-delta-report", description=__doc__.partition(": ")[2])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="output folder of a run")
    parser.add_argument("--output", type=Path, help="the file; default: report.html in the first run's folder")
    parser.add_argument("--videos", type=int, default=8, help="of each run at most, failures first")
    parser.error = refuse  # type: ignore[method-assign]
    parsed = parser.parse_args(list(arguments))
    if parsed.videos < 0:
        raise ConfigError(f"--videos must not be negative, got {parsed.videos}")
    return parsed


def _report(args: Namespace) -> int:
    runs = [read_finished(folder) for folder in args.runs]
    names = _names([run.folder for run in runs])
    reported = [
        ReportedRun(name, run, _clips(run, args.videos), run_figures(list(run.episodes.values())))
        for name, run in zip(names, runs, strict=True)
    ]
    output = args.output or args.runs[0] / "report.html"
    page = report_page(reported)
    write_whole(output, lambda path: path.write_text(page))
    print(f"wrote {output}")
    return 0


def _clips(run: FinishedRun, most: int) -> list[Clip]:
    clips = []
    for video in chosen_videos(run.folder, most):
        try:
            clips.append(clip_of(video))
        except ConfigError as exc:  # A page without one of its videos is better than none.
            logger.warning("left out: %s", exc)
    return clips


def _names(folders: Sequence[Path]) -> list[str]:
    """Of each folder what it has of its own."""
    if len(folders) == 1:
        return [folders[0].resolve().name]
    absolute = [folder.resolve() for folder in folders]
    common = Path(os.path.commonpath(absolute))
    return [str(path.relative_to(common)) for path in absolute]
