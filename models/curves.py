"""A picture of how a training went: losses, and what the validations said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from models.fit import Fit

WIDTH, PANEL, LEFT, ABOVE, BELOW, RIGHT = 900, 300, 80, 40, 40, 30
STRETCHES = 200
COLOURS = ((31, 119, 180), (214, 98, 20))
"""RGB, by scale."""
GREY, BLACK = (205, 205, 205), (40, 40, 40)

Picture = NDArray[np.uint8]
Line = tuple[list[float], list[float], tuple[int, int, int], str]
"""x, y, colour and name."""


def curves(fits: Mapping[int, Fit], others: Mapping[str, Sequence[float]] = {}) -> Picture:
    """Loss (logarithmic) over the steps, and below it the validations' AUROC; RGB (H, W, 3).

    A dot marks the state that was kept. Losses are means of up to 200 stretches. others: losses of
    the networks beside the students, each in a panel of its own.
    """
    losses: list[Line] = []
    aurocs: list[Line] = []
    kept: list[tuple[float, float]] = []
    for number, (scale, fit) in enumerate(fits.items()):
        colour, name = COLOURS[number % len(COLOURS)], f"scale {scale}"
        losses.append(_of_losses(fit.losses, colour, name))
        if fit.curve:
            steps = [float(point.step) for point in fit.curve]
            aurocs.append((steps, [point.auroc for point in fit.curve], colour, name))
            best = next(point for point in fit.curve if point.step == fit.kept_step)
            kept.append((float(best.step), best.auroc))
    panels = [_panel(losses, "loss of a step", [], logarithmic=True)]
    if aurocs:
        panels.append(_panel(aurocs, "AUROC of the validations; the dot was kept", kept))
    for name, each in others.items():
        line = _of_losses(each, COLOURS[0], "")
        panels.append(_panel([line], f"loss of a step: {name}", [], logarithmic=True))
    return np.asarray(np.vstack(panels), np.uint8)


def _of_losses(losses: Sequence[float], colour: tuple[int, int, int], name: str) -> Line:
    parts = np.array_split(np.array(losses), min(STRETCHES, max(1, len(losses))))
    ends = np.cumsum([len(part) for part in parts]).astype(float)
    return ends.tolist(), [math.log10(max(part.mean(), 1e-6)) for part in parts], colour, name


def _panel(
    lines: Sequence[Line],
    title: str,
    dots: Sequence[tuple[float, float]],
    *,
    logarithmic: bool = False,
) -> Picture:
    panel = np.full((PANEL, WIDTH, 3), 255, np.uint8)
    values = [value for _, y, _, _ in lines for value in y]
    low, high = min(values), max(values)
    if high - low < 1e-3:
        low, high = low - 0.01, high + 0.01
    last = max(max(x) for x, _, _, _ in lines)

    def place(x: float, y: float) -> tuple[int, int]:
        right, down = WIDTH - LEFT - RIGHT, PANEL - ABOVE - BELOW
        return (
            LEFT + round(right * x / last),
            ABOVE + round(down * (high - y) / (high - low)),
        )

    for part in range(5):
        y = low + (high - low) * part / 4
        row = place(0, y)[1]
        cv2.line(panel, (LEFT, row), (WIDTH - RIGHT, row), GREY, 1)
        _write(panel, f"{10**y if logarithmic else y:.3g}", (12, row + 5))
        x = last * part / 4
        _write(panel, f"{x:.0f}", (place(x, low)[0] - 14, PANEL - 14))
    _write(panel, title, (LEFT, 22))
    for number, (steps, heights, colour, name) in enumerate(lines):
        points = np.array([place(*at) for at in zip(steps, heights, strict=True)], np.int32)
        cv2.polylines(panel, [points], False, colour, 2, cv2.LINE_AA)
        _write(panel, name, (WIDTH - 200 + 95 * number, 22), colour)
    for x_kept, y_kept in dots:
        cv2.circle(panel, place(x_kept, y_kept), 5, BLACK, -1, cv2.LINE_AA)
    return panel


def _write(
    panel: Picture, text: str, at: tuple[int, int], colour: tuple[int, int, int] = BLACK
) -> None:
    cv2.putText(panel, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
