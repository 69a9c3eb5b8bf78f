"""The page of ``async-delta-report``: HTML text of finished runs, which loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from async_delta_inference.client.compare.runs import FinishedRun
from async_delta_inference.client.record.figures import RunFigures, run_figures
from async_delta_inference.client.record.results import EpisodeResult
from async_delta_inference.client.report.charts import Bar, bar_chart
from async_delta_inference.client.report.clips import Clip
from async_delta_inference.client.report.curves import delay_charts, latency_chart, queue_chart

__all__ = ["ReportedRun", "report_page"]

FIGURES = {
    "steps_to_completion": "steps to completion",
    "reaction_latency_steps": "reaction latency, steps",
    "action_jerk": "jerk of actions, units/s³",
    "state_jerk": "jerk of state, units/s³",
    "switch_jump": "jump at a switch, units",
    "stale_share": "stale actions",
    "starved_share": "starved steps",
}
_HIDDEN = ("output_dir", "overwrite", "resume", "progress", "trace", "checkpoint")


@dataclass(frozen=True, slots=True)
class ReportedRun:
    """A run and what is shown of it.

    Args:
        name: On the page.
        run: As it was read.
        clips: Its videos.
        figures: Of all its episodes.
    """

    name: str
    run: FinishedRun
    clips: Sequence[Clip]
    figures: RunFigures

    @property
    def episodes(self) -> list[EpisodeResult]:
        """In the order of tasks and episodes."""
        return [self.run.episodes[key] for key in sorted(self.run.episodes)]


def report_page(runs: Sequence[ReportedRun]) -> str:
    """The whole file.

    Args:
        runs: At least one.
    """
    style = files("async_delta_inference.client.report").joinpath("page.css").read_text()
    title = f"Evaluation of {runs[0].name}" if len(runs) == 1 else f"{len(runs)} evaluations"
    sections = [
        _section("Results", _summary(runs)),
        _section("Success by task", _success(runs)),
        _section("Against delay", "".join(chart for _, chart in delay_charts([(r.name, r.run) for r in runs]))),
        *(_section(f"Videos of {run.name}", _videos(run.clips)) for run in runs if run.clips),
        *(_section(f"Latency and queue of {run.name}", _pictures(run)) for run in runs),
        _section("Where time went", _times(runs)),
        _section("What was run", "".join(map(_flags, runs))),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:; media-src data:">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main><h1>{escape(title)}</h1>"
        f"{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _summary(runs: Sequence[ReportedRun]) -> str:
    rows = []
    for reported in runs:
        figures = reported.figures
        means = [_number(figures.means[name], share=name.endswith("share")) for name in FIGURES]
        given_up = f" ({reported.run.given_up} given up)" if reported.run.given_up else ""
        rows.append([reported.name, f"{figures.episodes}{given_up}", _rate(figures), *means])
    return _table(["run", "episodes", "success (95 %)", *FIGURES.values()], rows)


def _rate(figures: RunFigures) -> str:
    if figures.success_rate is None or figures.success_interval is None:
        return "n/a"
    low, high = (100 * end for end in figures.success_interval)
    return f"{figures.successes} of {figures.known}: {100 * figures.success_rate:.1f} % ({low:.0f}-{high:.0f} %)"


def _number(value: float | None, *, share: bool = False) -> str:
    if value is None:
        return "n/a"
    return f"{100 * value:.1f} %" if share else f"{value:.4g}"


def _success(runs: Sequence[ReportedRun]) -> str:
    bars = []
    for number, reported in enumerate(runs):
        episodes = reported.episodes
        for group, task_id in dict.fromkeys((e.task_group, e.task_id) for e in episodes):
            figures = run_figures([e for e in episodes if (e.task_group, e.task_id) == (group, task_id)])
            low, high = figures.success_interval or (None, None)
            label = f"{group}/{task_id}" if len(runs) == 1 else f"{reported.name}: {group}/{task_id}"
            bars.append(Bar(label, _percent(figures.success_rate), _percent(low), _percent(high), number))
    return bar_chart(bars, title="Success by task, with 95 % Wilson intervals", top=100.0, unit="%")


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _videos(clips: Iterable[Clip]) -> str:
    return '<div class="clips">' + "".join(map(_figure, clips)) + "</div>"


def _figure(clip: Clip) -> str:
    width, height = clip.size
    speed = f", {clip.speed} times as fast" if clip.speed > 1 else ""
    return (
        f'<figure><video controls muted loop autoplay playsinline width="{width}" height="{height}" src="{clip.data}">'
        f'</video><figcaption><span class="{clip.outcome}">{clip.outcome}</span> {escape(clip.name)}{speed}'
        "</figcaption></figure>"
    )


def _pictures(reported: ReportedRun) -> str:
    return latency_chart(reported.episodes) + queue_chart(reported.episodes)


def _times(runs: Sequence[ReportedRun]) -> str:
    rows = []
    for reported in runs:
        episodes = reported.episodes
        reset_s, stepping_s = sum(e.reset_s for e in episodes), sum(e.stepping_s for e in episodes)
        steps = sum(e.length for e in episodes)
        rows.append(
            [
                reported.name,
                f"{reset_s:.1f} s",
                f"{stepping_s:.1f} s",
                f"{1000 * stepping_s / steps:.1f} ms" if steps else "n/a",
                str(steps),
                f"{(reset_s + stepping_s) / len(episodes):.1f} s",
            ]
        )
    return _table(["run", "resets", "stepping and waiting", "a step", "steps", "an episode"], rows)


def _flags(reported: ReportedRun) -> str:
    flags = [
        [f"--{name}", str(value)]
        for name, value in reported.run.flags.items()
        if value is not None and name not in _HIDDEN
    ]
    versions = [[name, str(version)] for name, version in (reported.run.described.get("versions") or {}).items()]
    return (
        f"<details><summary>{escape(reported.name)}: {escape(str(reported.run.folder))}</summary>"
        f"{_table(['flag', 'value'], flags)}{_table(['package', 'version'], versions)}</details>"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
