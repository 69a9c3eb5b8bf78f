"""Small charts as SVG text: they scale with the page, and their colours follow its light or dark look."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "Line", "Point", "bar_chart", "line_chart"]

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 14, 44
COLOURS = ("#2f6fb0", "#d9822b", "#3a8f5c", "#b0413e", "#7a5ba8", "#6b6b6b")


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its interval.

    Args:
        label: Below it.
        value: None draws 'n/a'.
        low: Lower end of the interval; None where there is none.
        high: Upper end.
        series: Which colour.
    """

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    series: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """Of a line, with its interval where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A named series of points, by rising x."""

    name: str
    points: Sequence[Point]
    marks: bool = True


def bar_chart(bars: Sequence[Bar], *, title: str, top: float, unit: str) -> str:
    """Horizontal bars, one below another, so that any number of labels stays readable.

    Args:
        bars: From the top.
        title: For those who cannot see it.
        top: The value of a full bar.
        unit: Behind the numbers.
    """
    row, label = 26, 190
    height = row * len(bars) + 24
    scale = (WIDTH - label - 90) / top
    parts = [_open(title, height)]
    for i, bar in enumerate(bars):
        y = 8 + i * row
        parts.append(f'<text x="{label - 8}" y="{y + 15}" text-anchor="end">{escape(_short(bar.label, 28))}</text>')
        if bar.value is None:
            parts.append(f'<text x="{label}" y="{y + 15}">n/a</text>')
            continue
        colour = COLOURS[bar.series % len(COLOURS)]
        parts.append(f'<rect x="{label}" y="{y + 3}" width="{bar.value * scale:.1f}" height="16" fill="{colour}"/>')
        if bar.low is not None and bar.high is not None:
            parts.append(_whisker(label + bar.low * scale, label + bar.high * scale, y + 11))
        parts.append(f'<text x="{WIDTH - 4}" y="{y + 15}" text-anchor="end">{bar.value:.1f} {escape(unit)}</text>')
    return "".join([*parts, "</svg>"])


def line_chart(lines: Sequence[Line], *, title: str, x_label: str, y_label: str, y_top: float | None = None) -> str:
    """Lines over a common x, from 0 up.

    Args:
        lines: At least one point among them.
        title: For those who cannot see it.
        x_label: Below.
        y_label: Above.
        y_top: End of the y axis; None: above the highest point.
    """
    points = [point for line in lines for point in line.points]
    x_low, x_high = min(p.x for p in points), max(p.x for p in points)
    x_span = (x_high - x_low) or 1.0
    y_high = y_top or max(p.y if p.high is None else p.high for p in points) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / x_span if x_high > x_low else 0.5
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / y_high * (HEIGHT - TOP - BOTTOM)

    parts = [_open(title, HEIGHT + 20 * len(lines) * (len(lines) > 1))]
    for y in _ticks(0.0, y_high):
        _, at = place(x_low, y)
        parts.append(
            f'<line class="grid" stroke="#8884" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in _ticks(x_low, x_high):
        at, _ = place(x, 0.0)
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 2}">{escape(y_label)}</text>')
    for i, line in enumerate(lines):
        parts.extend(_drawn(line, COLOURS[i % len(COLOURS)], place))
        if len(lines) > 1:
            y = HEIGHT + 14 + 20 * i
            parts.append(f'<rect x="{LEFT}" y="{y - 10}" width="14" height="10" fill="{COLOURS[i % len(COLOURS)]}"/>')
            parts.append(f'<text x="{LEFT + 20}" y="{y}">{escape(_short(line.name, 80))}</text>')
    return "".join([*parts, "</svg>"])


def _drawn(line: Line, colour: str, place: object) -> Iterator[str]:
    assert callable(place)
    placed = [(point, *place(point.x, point.y)) for point in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for _, x, y in placed)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    if not line.marks:
        return
    for point, x, y in placed:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
        if point.low is not None and point.high is not None:
            (_, low), (_, high) = place(point.x, point.low), place(point.x, point.high)
            yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}"/>'


def _open(title: str, height: float) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="13"><title>{escape(title)}</title>'
    )


def _whisker(low: float, high: float, y: float) -> str:
    path = f"M{low:.1f} {y - 4:.1f}v8M{low:.1f} {y:.1f}H{high:.1f}M{high:.1f} {y - 4:.1f}v8"
    return f'<path class="whisker" fill="none" stroke="#333" d="{path}"/>'


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, four or so."""
    span = high - low
    if span <= 0:
        return [low]
    rough = span / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [round(tick * step, 12) for tick in range(first, math.floor(high / step + 1e-9) + 1)]
