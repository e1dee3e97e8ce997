"""The wide view: a network that sees some 200 px around each cell, and says how it looks. No torch.

A student-teacher sees 33 px: there a short looks like a track, a blob like a pad, and a faint wide
shade like grain. The wide view is a network in the shape of a U (Ronneberger et al., "U-Net",
2015), cheap because most of it works at an eighth to a thirty-second of the resolution. It learns
from good images alone, with defects drawn into them (`models.wide_defects`), to tell them from
good surface (as the segmentation half of Zavrtanik et al., "DRAEM", 2021). Its logit z, less the
level that good images reach, weighs the map m, as `models.precedents` does:

    sqrt(m q_b) exp(z), z held between `LEAST` and `MOST`

The root, because z tells more: twice as far off counts for the student as for 0.35 of z. q_b, the
bundle's, is where the root changes nothing. `LEAST` leaves of that what m / 7 would: drawn defects
are not all there are, and what the student alone sees must still show.

1. The frame shrunk by the view's scale, 1 or 2 (which sees 400 px), with 16 px around,
   (h + 32, w + 32, C), in blocks of at most `BLOCK_PX` a side that overlap by `OVERLAP_PX`, its
   sides made up to multiples of `GRID_PX` by repeating the last pixel.
2. `forward`, which each runtime fills with its own operations.
3. Cell (i, j) of the scale's map is cell (i + 4, j + 4) of that; between them linear. Then all
   of it is smoothed, by `SMOOTHED_CELLS`.

Several views, each with a scale of its own, weigh together: of each cell the highest z counts, each
less its own level. One sees thin cracks, the other one shades.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.errors import ParityError
from models.shrink import shrunk
from models.variants import FRAME_MARGIN_PX, MARGIN_PX, SCALES, STRIDE, map_hw

WIDTHS = (24, 48, 96, 128, 128)
"""Channels at 1/2, 1/4 (the map's), 1/8, 1/16 and 1/32 of the frame."""
VIEW_PX, BEHIND_PX = 236, 205
"""What lies further away from a cell, before it and behind, changes no z."""
PROBE_PX = 320
TOLERANCE = 0.025
"""Of a view's z: a fortieth of the map."""
SCALE, LEVEL, PROBE, ANSWER = "scale", "level", "probe", "answer"
"""Beside the weights in a file."""
GRID_PX = 2 ** len(WIDTHS)
BLOCK_PX = 2048
OVERLAP_PX = 512
"""Twice the view and more: blocks say exactly what the whole would."""
SMOOTHED_CELLS = 1.5
"""Deviation of the blur, in cells of the frame's map."""
LEAST, MOST = -1.0, 8.0
Floats = NDArray[np.float32]
Image = NDArray[np.uint8]
Infer = Callable[[Image], Floats]
"""uint8 (h, w, C), sides multiples of `GRID_PX` -> logits (h / 4, w / 4)."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Convolution:
    """Zero padding of kernel // 2."""

    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    relu: bool = True


def convolutions(in_channels: int) -> dict[str, Convolution]:
    """All of the network's, by name."""
    map_width = WIDTHS[1]
    found = {"stem": Convolution(in_channels, WIDTHS[0], kernel=5, stride=2)}
    for level in range(1, len(WIDTHS)):
        width = WIDTHS[level]
        found[f"down{level}"] = Convolution(WIDTHS[level - 1], width, stride=2)
        found[f"first{level}"] = Convolution(width, width)
        found[f"second{level}"] = Convolution(width, width)
        found[f"side{level}"] = Convolution(width, map_width, kernel=1, relu=False)
        found[f"up{level}"] = Convolution(map_width, map_width)
    del found[f"up{len(WIDTHS) - 1}"]
    found["logit"] = Convolution(map_width, 1, kernel=1, relu=False)
    return found


def forward(
    x: T,
    convolve: Callable[[str, T], T],
    add: Callable[[T, T], T],
    twice: Callable[[T], T],
) -> T:
    """Pixels in -1..1 -> logits. twice: linear, to twice the size, pixel centres aligned."""
    levels: list[T] = []
    x = convolve("stem", x)
    for level in range(1, len(WIDTHS)):
        x = convolve(f"down{level}", x)
        x = add(x, convolve(f"second{level}", convolve(f"first{level}", x)))
        levels.append(x)
    last = len(levels)
    y = convolve(f"side{last}", levels[-1])
    for level in range(last - 1, 0, -1):
        y = convolve(f"up{level}", add(twice(y), convolve(f"side{level}", levels[level - 1])))
    return convolve("logit", y)


@dataclass(frozen=True, slots=True)
class WideView:
    """A network: its weights are `NAME.weight` [out, in, k, k] and `NAME.bias` [out]."""

    in_channels: int
    weights: Mapping[str, Floats]
    scale: int = 1
    level: float = 0.0
    """What good images reach, without their sides: `models.wide_fit.good_level`."""
    probe: Image | None = None
    answer: Floats | None = None
    """A block, and z of it by the reference: what every engine must say (`check_answer`)."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For a file."""
        plain: dict[str, NDArray[Any]] = {
            SCALE: np.array(self.scale),
            LEVEL: np.array(self.level),
        }
        if self.probe is not None and self.answer is not None:
            plain |= {PROBE: self.probe, ANSWER: self.answer}
        return plain | {name: self.weights[name] for name in sorted(self.weights)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], in_channels: int) -> WideView:
        """Read what `arrays` gave. Raises `ValueError` for anything else."""
        arrays = dict(arrays)
        plain = [arrays.pop(name, np.array(np.nan)) for name in (SCALE, LEVEL)]
        if any(one.shape != () for one in plain) or plain[0] not in SCALES:
            raise ValueError(f"{SCALE} {plain[0]} found, expected one of {SCALES}")
        if not np.isfinite(plain[1]):
            raise ValueError(f"{LEVEL} {plain[1]} found, expected a finite number")
        probe, answer = (arrays.pop(name, np.zeros(0)) for name in (PROBE, ANSWER))
        if probe.dtype != np.uint8 or probe.shape != (PROBE_PX, PROBE_PX, in_channels):
            raise ValueError(f"{PROBE}: {probe.dtype} {probe.shape} found, expected a block")
        if answer.shape != (PROBE_PX // STRIDE,) * 2 or not np.isfinite(answer).all():
            raise ValueError(f"{ANSWER}: {answer.shape} found, expected finite z of the block")
        expected: dict[str, tuple[int, ...]] = {}
        for name, one in convolutions(in_channels).items():
            expected[f"{name}.weight"] = (one.outputs, one.inputs, one.kernel, one.kernel)
            expected[f"{name}.bias"] = (one.outputs,)
        if set(arrays) != set(expected):
            wrong = sorted(set(arrays) ^ set(expected))
            raise ValueError(f"{', '.join(wrong[:3])}: missing or too many")
        for name, shape in expected.items():
            found = arrays[name]
            if found.shape != shape or found.dtype != np.float32 or not np.isfinite(found).all():
                raise ValueError(
                    f"{name}: {found.dtype} {found.shape} found, expected finite float32 {shape}"
                )
        return cls(in_channels, arrays, int(plain[0]), float(plain[1]), probe, answer)


def views_arrays(views: Sequence[WideView]) -> dict[str, NDArray[Any]]:
    """Of all of them, for one file."""
    return {
        f"{number}.{name}": values
        for number, view in enumerate(views)
        for name, values in view.arrays().items()
    }


def views_of_arrays(arrays: Mapping[str, NDArray[Any]], in_channels: int) -> tuple[WideView, ...]:
    """Read what `views_arrays` gave. Raises `ValueError` for anything else."""
    numbers = sorted({name.partition(".")[0] for name in arrays})
    if numbers != [str(number) for number in range(len(numbers))]:
        raise ValueError(f"views {', '.join(numbers[:3])} found, expected them counted from 0")
    return tuple(
        WideView.of_arrays(
            {
                name.removeprefix(f"{number}."): values
                for name, values in arrays.items()
                if name.startswith(f"{number}.")
            },
            in_channels,
        )
        for number in numbers
    )


def check_answer(view: WideView, infer: Infer, frames_hw: Sequence[tuple[int, int]] = ()) -> None:
    """Raise `ParityError` for an engine that does not say of the probe what the reference did: one
    that is too low everywhere would let every frame pass.

    An engine is compiled for each size of block. So the probe is laid into two corners of each that
    frames of these sizes come in, where z is what it is in the probe itself, as far as the view
    does not reach beyond it. Of blocks that are smaller than the probe fewer cells are compared, at
    224 px those of the beginning alone; smaller ones must be finite only.
    """
    if view.probe is None or view.answer is None:
        return
    off = {(PROBE_PX, PROBE_PX): float(np.abs(infer(view.probe) - view.answer).max())}
    for hw in frames_hw:
        for size in block_sizes(hw, view.scale) - set(off):
            off[size] = _corners_off(view.probe, view.answer, infer, size)
    for (height, width), worst in off.items():
        if not worst <= TOLERANCE:  # NaN is not
            raise ParityError(
                f"the wide view's engine is {worst:g} off the reference's logits in a block of "
                f"{width}x{height}, at most {TOLERANCE:g} are allowed: use another runtime, and "
                "report it"
            )


def _corners_off(probe: Image, answer: Floats, infer: Infer, size: tuple[int, int]) -> float:
    """How far off z is, with as much of the probe as fits at the beginning and at the end of a
    block."""
    sides = [min(side, PROBE_PX) for side in size]
    block = np.full((*size, probe.shape[2]), 127, np.uint8)
    both_fit = max(size) >= 2 * PROBE_PX
    block[: sides[0], : sides[1]] = probe[: sides[0], : sides[1]]
    if both_fit:
        block[-sides[0] :, -sides[1] :] = probe[-sides[0] :, -sides[1] :]
    z = infer(block)
    rows, columns = (max(0, side - BEHIND_PX) // STRIDE for side in sides)
    off = np.abs(z[:rows, :columns] - answer[:rows, :columns]).max(initial=0)
    if not both_fit:
        block[-sides[0] :, -sides[1] :] = probe[-sides[0] :, -sides[1] :]
        z = infer(block)
    if not np.isfinite(z).all():
        return float("nan")
    rows, columns = (max(0, side - VIEW_PX) // STRIDE for side in sides)
    last = (slice(z.shape[0] - rows, None), slice(z.shape[1] - columns, None))
    end = (slice(answer.shape[0] - rows, None), slice(answer.shape[1] - columns, None))
    return float(np.maximum(off, np.abs(z[last] - answer[end]).max(initial=0)))


def logits(infer: Infer, padded: Image, scale: int = 1) -> Floats:
    """z of a frame's cells, float32 (ceil(H / 4), ceil(W / 4)); padded: (H + 64, W + 64, C)."""
    frame_hw = [side - 2 * FRAME_MARGIN_PX for side in padded.shape[:2]]
    spare = FRAME_MARGIN_PX - scale * MARGIN_PX  # crops have 16 px around their cells in training
    inner = padded[spare : padded.shape[0] - spare, spare : padded.shape[1] - spare]
    small = shrunk(inner, scale)
    rows, columns = (-(-side // (STRIDE * scale)) for side in frame_hw)
    found = np.empty((rows, columns), np.float32)
    for top, bottom, down in _blocks(small.shape[0], rows):
        for left, right, across in _blocks(small.shape[1], columns):
            block = small[top:bottom, left:right]
            beyond = [(0, -side % GRID_PX) for side in block.shape[:2]]
            z = infer(np.ascontiguousarray(np.pad(block, (*beyond, (0, 0)), mode="edge")))
            found[down, across] = z[_within(down, top), _within(across, left)]
    return _enlarged(found, scale, map_hw(*frame_hw))


def smoothed(z: Floats) -> Floats:
    """z of a frame's cells, each as its surroundings have it: what one cell alone says is noise."""
    reach = round(4 * SMOOTHED_CELLS)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1, dtype=np.float32) / SMOOTHED_CELLS) ** 2)
    for axis in (0, 1):
        beyond = [(0, 0), (0, 0)]
        beyond[axis] = (reach, reach)
        wider = np.moveaxis(np.pad(z, beyond, mode="edge"), axis, 0)
        rows = wider.shape[0] - 2 * reach
        shifted = (weight * wider[k : k + rows] for k, weight in enumerate(bell / bell.sum()))
        z = np.moveaxis(reduce(np.add, shifted), 0, axis)
    return np.ascontiguousarray(z, np.float32)


def block_sizes(frame_hw: tuple[int, int], scale: int) -> set[tuple[int, int]]:
    """Of all blocks that a frame of this size, without margin, is seen in."""
    rows, columns = (
        {
            -(-(end - begin) // GRID_PX) * GRID_PX
            for begin, end, _ in _blocks(
                -(-side // scale) + 2 * MARGIN_PX, -(-side // (STRIDE * scale))
            )
        }
        for side in frame_hw
    )
    return set(product(rows, columns))


def _enlarged(z: Floats, scale: int, hw: tuple[int, int]) -> Floats:
    """As `models.efficientad.enlarged`, of the first `hw` cells."""
    if scale == 1:
        return z
    sides = z.repeat(2, axis=0).repeat(2, axis=1)
    sides = np.pad(sides, ((0, 1), (0, 1)), mode="edge")
    rows = sides[:-1] + sides[1:]
    whole = (rows[:, :-1] + rows[:, 1:]) / np.float32(4)
    return np.asarray(whole[: hw[0], : hw[1]], np.float32)


def _blocks(side: int, cells: int) -> Iterator[tuple[int, int, slice]]:
    """Of one axis of a frame with 16 px around: blocks, each by begin and end in pixels, and
    the cells of the map that it is the one to say."""
    begin = first = 0
    while True:
        end = min(begin + BLOCK_PX, side)
        last = cells if end == side else (end - OVERLAP_PX // 2 - MARGIN_PX) // STRIDE
        yield begin, end, slice(first, last)
        if end == side:
            return
        begin, first = begin + BLOCK_PX - OVERLAP_PX, last


def _within(cells: slice, begin_px: int) -> slice:
    """Cells of the map, as cells of a block that begins at this pixel of the frame with 16 px
    around."""
    offset = (MARGIN_PX - begin_px) // STRIDE
    return slice(cells.start + offset, cells.stop + offset)


def above_level(views: Sequence[WideView], infers: Sequence[Infer], padded: Image) -> Floats:
    """Of each cell of a frame the highest z of all views, each smoothed and less its level; see
    `logits`."""
    found = [
        smoothed(logits(infer, padded, view.scale)) - np.float32(view.level)
        for view, infer in zip(views, infers, strict=True)
    ]
    return np.asarray(reduce(np.maximum, found), np.float32)


def weigh(raw_map: Floats, above: Floats, q_b: float) -> None:
    """Change a frame's map in place by what the wide view says of its cells; see the module.

    A global branch's share may be negative: that counts as 0.
    """
    root = np.sqrt(np.maximum(raw_map, 0) * np.float32(q_b))
    np.multiply(root, np.exp(np.clip(above, LEAST, MOST)), out=raw_map)
