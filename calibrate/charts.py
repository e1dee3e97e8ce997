"""Charts of the report as SVG text: axes with round numbers, lines, bars.

Colours come by class from the page's style sheet, so that they print, and follow a dark screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 30, 42
TICKS = 5
HISTOGRAM_BARS = 36
LETTER_PX = 6.2
"""Of the legend, about."""
MOST_POINTS = 400
"""Of a line: more cannot be seen."""


@dataclass(frozen=True, slots=True)
class Line:
    """points: (x, y). css: the class that colours it."""

    points: Sequence[tuple[float, float]]
    css: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """low < high; name: with its unit. logarithmic: both over 0."""

    low: float
    high: float
    name: str
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high one; beyond them it is at the end."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, 1e-300))
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            if last - first >= 1:
                every = max(1, (last - first) // TICKS)
                return [10.0**k for k in range(first, last + 1, every)]
            return [self.low * (self.high / self.low) ** (k / 3) for k in range(4)]
        step = _round_step((self.high - self.low) / TICKS)
        lowest = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(lowest, math.floor(self.high / step + 1e-9) + 1)]


def lines(
    series: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    marks: Sequence[tuple[float, float, str]] = (),
    upright: Sequence[tuple[float, str]] = (),
    title: str,
) -> str:
    """marks: dots (x, y, name); upright: lines at x with a name; title: read to who cannot see."""
    body = []
    for line in series:
        points = _thinned(line.points)
        path = " ".join(f"{_x(x, at):.1f},{_y(y, value):.1f}" for at, value in points)
        name = f"<title>{escape(line.name)}</title>" if line.name else ""
        body.append(f'<polyline class="line {line.css}" points="{path}">{name}</polyline>')
    body += [_upright(x, at, name) for at, name in upright]
    for at, value, name in marks:
        body.append(
            f'<circle class="mark" cx="{_x(x, at):.1f}" cy="{_y(y, value):.1f}" r="4.5">'
            f"<title>{escape(name)}</title></circle>"
        )
    names = [(line.css, line.name) for line in series if line.name]
    return _frame(x, y, "".join(body) + _legend(names), title)


def histogram(
    groups: Sequence[tuple[str, str, Sequence[float]]], x: Axis, threshold: float, *, title: str
) -> str:
    """groups: (css, name, values), drawn over one another as shares of each group."""
    edges = np.linspace(0, 1, HISTOGRAM_BARS + 1)
    heights = [
        np.histogram([x.share(value) for value in values], edges)[0] / max(1, len(values))
        for _, _, values in groups
    ]
    tallest = max([float(bars.max()) for bars in heights] + [0.01])
    y = Axis(0.0, tallest * 1.05, "share of the images")
    body = []
    for (css, name, values), bars in zip(groups, heights, strict=True):
        for number, share in enumerate(bars):
            if share == 0:
                continue
            left = LEFT + edges[number] * (WIDTH - LEFT - RIGHT)
            width = (WIDTH - LEFT - RIGHT) / HISTOGRAM_BARS - 1
            top = _y(y, float(share))
            body.append(
                f'<rect class="bar {css}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
                f'height="{HEIGHT - BOTTOM - top:.1f}"><title>{escape(name)}: '
                f"{round(float(share) * len(values))} of {len(values)}</title></rect>"
            )
    body.append(_upright(x, threshold, "threshold"))
    body.append(_legend([(css, f"{name} ({len(values)})") for css, name, values in groups]))
    return _frame(x, y, "".join(body), title)


def _frame(x: Axis, y: Axis, body: str, title: str) -> str:
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
    ]
    for value in y.ticks():
        at = _y(y, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" ')
        parts.append(f'y2="{at:.1f}"/><text class="tick" text-anchor="end" x="{LEFT - 6}" ')
        parts.append(f'y="{at + 4:.1f}">{_number(value)}</text>')
    for value in x.ticks():
        at = _x(x, value)
        parts.append(f'<line class="grid" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="{at:.1f}" ')
        parts.append(f'x2="{at:.1f}"/><text class="tick" text-anchor="middle" x="{at:.1f}" ')
        parts.append(f'y="{HEIGHT - BOTTOM + 16}">{_number(value)}</text>')
    parts.append(body)
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" text-anchor="middle" x="{middle}" y="{HEIGHT - 6}">')
    parts.append(f"{escape(x.name)}</text>")
    high = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text class="axis" text-anchor="middle" transform="translate(12 {high}) ')
    parts.append(f'rotate(-90)">{escape(y.name)}</text></svg>')
    return "".join(parts)


def _legend(names: Sequence[tuple[str, str]]) -> str:
    parts, at = [], float(LEFT)
    for css, name in names:
        parts.append(f'<rect class="key {css}" x="{at:.0f}" y="8" width="10" height="10"/>')
        parts.append(f'<text class="tick" x="{at + 15:.0f}" y="17">{escape(name)}</text>')
        at += 32 + LETTER_PX * len(name)
    return "".join(parts)


def _upright(x: Axis, at: float, name: str) -> str:
    place = _x(x, at)
    left = x.share(at) > 0.75
    anchor, beside = ("end", -5) if left else ("start", 5)
    return (
        f'<line class="upright" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" '
        f'y2="{HEIGHT - BOTTOM}"/><text class="tick" text-anchor="{anchor}" '
        f'x="{place + beside:.1f}" y="{TOP + 12}">{escape(name)}</text>'
    )


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    if len(points) <= MOST_POINTS:
        return points
    return [points[round(k)] for k in np.linspace(0, len(points) - 1, MOST_POINTS)]


def _round_step(raw: float) -> float:
    scale = 10.0 ** math.floor(math.log10(raw))
    for factor in (1, 2, 2.5, 5, 10):
        if factor * scale >= raw * (1 - 1e-9):
            return factor * scale
    raise AssertionError(raw)


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.0e}"


def padded_axis(
    values: Sequence[float], name: str, widen: Callable[[float], float] = lambda spread: 0.05
) -> Axis:
    """A linear axis that holds all finite values, with a little room."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    room = max(high - low, 1e-3 * max(abs(high), 1.0))
    return Axis(low - room * widen(room), high + room * widen(room), name)
