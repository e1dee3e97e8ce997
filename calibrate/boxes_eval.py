"""Verdicts against known defects: how many were found, how many good frames were rejected.

A defect is found when a box of a failed frame lies on it and is at most four times its area
(`pipeline.boxes.finds`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibrate.metrics import image_auroc
from pipeline.boxes import finds, iou
from pipeline.types import Label, Verdict

Box = tuple[int, int, int, int]
RIGHT_IOU = 0.33
"""At which a box is right, as DeepPCB counts."""


@dataclass(frozen=True, slots=True)
class TruthScore:
    """Counts over judged frames; `invalid` frames count as neither found nor rejected."""

    defects: int
    defects_found: int
    good_frames: int
    good_failed: int
    defect_frames: int
    defect_frames_failed: int
    boxes: int
    boxes_right: int
    image_auroc: float
    """Of `raw_peak`s, which also rank frames that are under the thresholds; NaN without both."""
    missed: tuple[tuple[str, int, Box], ...]
    """Camera, frame id and true box of each defect that was not found."""

    @property
    def defect_recall(self) -> float:
        return self.defects_found / self.defects if self.defects else float("nan")

    @property
    def false_reject_rate(self) -> float:
        return self.good_failed / self.good_frames if self.good_frames else float("nan")


def score_against_truth(
    verdicts: Sequence[Verdict], truth: Mapping[tuple[str, int], Sequence[Box]]
) -> TruthScore:
    """truth: half-open true boxes by (camera, frame_id); a frame without an entry is left out.

    A missing or invalid verdict on a frame with defects loses its defects.
    """
    by_frame = {(v.camera, v.frame_id): v for v in verdicts}
    found = boxes = right = 0
    good: list[float] = []
    bad: list[float] = []
    good_failed = bad_failed = 0
    missed: list[tuple[str, int, Box]] = []
    for key, true_boxes in truth.items():
        verdict = by_frame.get(key)
        failed = verdict is not None and verdict.label is Label.FAIL
        shown = [d.box_xyxy for d in verdict.defects] if verdict and failed else []
        hits = [any(finds(box, true) for box in shown) for true in true_boxes]
        found += sum(hits)
        missed += [(*key, t) for t, hit in zip(true_boxes, hits, strict=True) if not hit]
        boxes += len(shown)
        right += sum(any(finds(box, true) for true in true_boxes) for box in shown)
        if verdict is None or verdict.label is Label.INVALID:
            continue
        if true_boxes:
            bad.append(verdict.raw_peak)
            bad_failed += failed
        else:
            good.append(verdict.raw_peak)
            good_failed += failed
    return TruthScore(
        defects=sum(len(boxes) for boxes in truth.values()),
        defects_found=found,
        good_frames=len(good),
        good_failed=good_failed,
        defect_frames=len(bad),
        defect_frames_failed=bad_failed,
        boxes=boxes,
        boxes_right=right,
        image_auroc=image_auroc(good, bad),
        missed=tuple(missed),
    )


def matched(
    boxes: Sequence[Box], truths: Sequence[Box], least_iou: float = RIGHT_IOU
) -> dict[int, int]:
    """Which box finds which true one: {true: found}, by an IoU over `least_iou`.

    The best pairs first; each box finds one true box.
    """
    pairs = [
        (overlap, true, found)
        for true, wanted in enumerate(truths)
        for found, box in enumerate(boxes)
        if (overlap := iou(box, wanted)) > least_iou
    ]
    result: dict[int, int] = {}
    used: set[int] = set()
    for _, true, found in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if true not in result and found not in used:
            result[true] = found
            used.add(found)
    return result


def f_score(right: int, boxes: int, truths: int) -> float:
    """Of boxes: twice the right ones over all found and all true ones. NaN without any."""
    return 2 * right / (boxes + truths) if boxes + truths else float("nan")
