"""The report: one HTML file that needs no network, to be read, argued with, printed and signed.

Pictures of the first images are in the page, all others in a block of text that is shown piece by
piece as one scrolls, so that thousands of images open fast.
"""

from __future__ import annotations

import base64
import datetime
import importlib.metadata
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from calibrate.charts import Axis, Line, histogram, lines, padded_axis
from calibrate.figures import LABELS, Confusion, Figure
from calibrate.gallery import wrongness
from calibrate.results import VERDICTS, Evaluation, quantile, verdict_of
from models.bundle import Bundle
from pipeline.errors import DataError

TEMPLATE = "report.html.j2"
PRINTED = 21
"""Images that are printed: the most wrong ones."""
MOST_PICTURES = 2000
POLICY_NAMES = {
    "good": "from good images alone",
    "youden": "Youden's point of the ROC curve",
    "f": "the best F-score",
    "cost": "the least expected cost",
    "recall": "a wanted recall",
}
GROUP_COLUMNS = ("image_auroc", "recall", "defect_recall", "box_recall")
CAMERA_COLUMNS = ("image_auroc", "recall", "false_rejects", "box_f")
SEPARATOR = "\x1f"


def short(value: float) -> str:
    """Three digits, or all before the point: `0.0123`, `5,956`."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def write_report(path: Path, evaluation: Evaluation) -> None:
    """Write the HTML file. Raises `DataError` when it cannot be written."""
    text = render(evaluation)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}): name another file"
        ) from error


def render(evaluation: Evaluation) -> str:
    """The page's text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    tables = evaluation.tables
    judged = evaluation.judged
    times = sorted(each.milliseconds for each in judged)
    cards, pictures, left_out = _cards(evaluation)
    counts = Counter(verdict_of(each) for each in judged)
    types = Counter(kind for each in judged for kind in each.image.kinds)
    return environment.get_template(TEMPLATE).render(
        title=evaluation.title,
        bundle=evaluation.bundle,
        engine=evaluation.engine_id,
        images=judged,
        when=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=importlib.metadata.version("linewatch"),
        tiles=_tiles(tables["all"], times),
        promise=_promise(evaluation),
        notes=evaluation.notes,
        charts=_charts(evaluation),
        confusion=Confusion.of(judged),
        tables=_tables(tables),
        least_iou=evaluation.least_iou,
        training=_training(evaluation.bundle),
        range={
            "low": short(evaluation.shown.low),
            "high": short(evaluation.shown.high),
            "how": "logarithmic, " if evaluation.shown.logarithmic else "",
        },
        left_out=left_out,
        verdicts=[(key, name, counts[key]) for key, name in VERDICTS.items() if counts[key]],
        types=sorted(types.items()),
        cameras=sorted({each.image.camera for each in judged}) if tables["cameras"] else [],
        cards=cards,
        # Base64 and brackets only: nothing in it ends the script.
        pictures=Markup(json.dumps(pictures)),
    )


def _tiles(found: dict[str, Figure], times: Sequence[float]) -> list[dict[str, str]]:
    tiles = []
    for key in ("image_auroc", "recall", "false_rejects", "defect_recall", "box_f", "au_pro"):
        if key in found and math.isfinite(found[key].value):
            cell = _cell(key, found[key])
            tiles.append({"name": LABELS[key], "value": cell["value"], "more": cell["interval"]})
    tiles.append(
        {
            "name": "Time for an image",
            "value": f"{short(quantile(times, 0.5))} ms",
            "more": f"p99 {short(quantile(times, 0.99))} ms, engine and rule",
        }
    )
    return tiles


def _promise(evaluation: Evaluation) -> dict[str, Any]:
    found = evaluation.thresholds
    confidence = f"{found.confidence:.0%} confidence"
    bad = ""
    if found.bad_images:
        bad = (
            f"{found.bad_below} of {found.bad_images} defective parts stayed under the threshold: "
            f"at most {found.escape_bound:.2%} escapes of such defects at {confidence}."
        )
    own = sorted({each.threshold for each in evaluation.judged} - {found.image_threshold})
    facts = [
        ("Wished for", f"at most {found.wished:.2%} false rejects at {confidence}"),
        ("Image threshold", f"{found.image_threshold:.5g}"),
        ("Pixel threshold", f"{found.pixel_threshold:.5g}"),
        ("Chosen by", POLICY_NAMES.get(found.policy, found.policy)),
        (
            "Tolerance for each place",
            f"yes, parts lie within {found.still_px} px" if found.still_px else "no",
        ),
    ]
    if own:
        applied = ", ".join(f"{value:.5g}" for value in own)
        facts.append(
            (
                "Overridden",
                f"a recipe's own image threshold, {applied}, was applied to images below: nothing "
                "is promised of it",
            )
        )
    return {
        "kept": found.kept and not own,
        "chosen": found.chosen[:1].upper() + found.chosen[1:] + ".",
        "good": f"{found.above} of {found.images} good parts reached the threshold: at most "
        f"{found.false_reject_bound:.2%} false rejects of such parts at {confidence}.",
        "bad": bad,
        "facts": facts,
    }


def _charts(evaluation: Evaluation) -> list[dict[str, Any]]:
    judged, threshold = evaluation.judged, 1.0
    good = [each.rank for each in judged if not each.image.defective]
    bad = [each.rank for each in judged if each.image.defective]
    highest = max([*good, *bad, 2 * threshold])
    name = "score / threshold (logarithmic)"
    axis = Axis(threshold / 30, highest * 1.05, name, logarithmic=True)
    groups = [("good", "good", good), ("bad", "defective", bad)]
    charts = [
        {
            "svg": Markup(
                histogram([group for group in groups if group[2]], axis, threshold, title="Scores")
            ),
            "caption": "Scores over the threshold. From 1 on an image fails; the first bar holds "
            "all lower scores too.",
        }
    ]
    if good and bad:
        charts += _ranked_charts(good, bad, threshold)
    return charts


def _ranked_charts(
    good: Sequence[float], bad: Sequence[float], threshold: float
) -> list[dict[str, Any]]:
    from sklearn.metrics import precision_recall_curve, roc_curve

    labels = np.repeat([0, 1], [len(good), len(bad)])
    scores = np.concatenate([good, bad])
    rejected, recalled, _ = roc_curve(labels, scores, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(labels, scores)
    confusion_recall = float(np.mean(np.asarray(bad) >= threshold))
    false_rejects = float(np.mean(np.asarray(good) >= threshold))
    failed = int((scores >= threshold).sum())
    share = Axis(0.0, 1.0, "")
    right = int(labels[scores >= threshold].sum())
    marks = [(confusion_recall, right / max(1, failed), "threshold")]
    roc = lines(
        [
            Line(list(zip(rejected, recalled, strict=True)), "bad"),
            Line([(0.0, 0.0), (1.0, 1.0)], "chance"),
        ],
        Axis(0.0, 1.0, "false rejects"),
        Axis(0.0, 1.0, "recall"),
        marks=[(false_rejects, confusion_recall, "threshold")],
        title="ROC curve",
    )
    pr = lines(
        [Line(list(zip(recall, precision, strict=True)), "third")],
        Axis(0.0, 1.0, "recall"),
        Axis(share.low, share.high, "precision"),
        marks=marks if failed else [],
        title="Precision and recall",
    )
    return [
        {"svg": Markup(roc), "caption": "ROC curve; the dot is the threshold."},
        {"svg": Markup(pr), "caption": "Precision over recall; the dot is the threshold."},
    ]


def _tables(tables: dict[str, Any]) -> list[dict[str, Any]]:
    whole = [
        {"name": LABELS[key], "cells": [_cell(key, figure)]}
        for key, figure in tables["all"].items()
        if math.isfinite(figure.value)
    ]
    found = [{"name": "", "columns": ["value"], "rows": whole}]
    for name, key, columns in (
        ("By type of defect", "types", GROUP_COLUMNS),
        ("By camera", "cameras", CAMERA_COLUMNS),
    ):
        groups: dict[str, dict[str, Figure]] = tables[key]
        used = [c for c in columns if any(_known(group, c) for group in groups.values())]
        if groups and used:
            rows = [
                {"name": group, "cells": [_cell(c, figures_.get(c)) for c in used]}
                for group, figures_ in groups.items()
            ]
            found.append({"name": name, "columns": [LABELS[c] for c in used], "rows": rows})
    return found


def _known(group: dict[str, Figure], key: str) -> bool:
    return key in group and math.isfinite(group[key].value)


PERCENT = ("recall", "false_rejects", "escapes", "specificity", "precision", "defect_recall")


def _cell(key: str, figure: Figure | None) -> dict[str, str]:
    if figure is None or not math.isfinite(figure.value):
        return {"value": "–", "interval": ""}

    def text(value: float) -> str:
        return f"{value:.1%}" if key in PERCENT else f"{value:.3f}"

    interval = ""
    if math.isfinite(figure.low):
        interval = f"{text(figure.low)} to {text(figure.high)}"
    return {"value": text(figure.value), "interval": interval}


def _training(bundle: Bundle) -> dict[str, Any]:
    about = bundle.provenance
    settings = about.get("settings", {})
    versions = ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())
    facts = [
        ("Network", f"{bundle.variant}, {bundle.in_channels} channel(s)"),
        ("Scales", ", ".join(map(str, bundle.scales))),
        ("Good images learnt from", about.get("images")),
        ("Held out (quantiles)", about.get("held_out")),
        ("Tiles", ", ".join(map(str, about.get("tiles", [])))),
        ("Teacher", about.get("teacher")),
        ("Licence of the teacher", about.get("teacher_licence")),
        ("Best state chosen by", about.get("validated_on")),
        ("Steps, batch, seed", _steps(settings)),
        ("Arithmetic", f"{about.get('compute', '?')} on {about.get('device', '?')}; {versions}"),
        ("Parent", bundle.parent or "none"),
    ]
    return {
        "facts": [(name, value) for name, value in facts if value not in (None, "")],
        "charts": _curves(about.get("curves", {})) + _others(about.get("other_losses", {})),
    }


def _steps(settings: dict[str, Any]) -> str:
    if not settings:
        return ""
    crops = settings.get("batch", 1) * settings.get("accumulate", 1)
    return f"{settings.get('steps')} steps of {crops} crops, seed {settings.get('seed')}"


def _curves(curves: dict[str, Any]) -> list[dict[str, Any]]:
    """curves: of each scale, see `models.training`."""
    css = ("third", "bad", "good")
    losses, aurocs, kept = [], [], []
    for number, (scale, curve) in enumerate(curves.items()):
        name, color = f"scale {scale}", css[number % len(css)]
        losses.append(_loss_line(curve, color, name))
        if curve["auroc"]:
            points = [(float(step), float(auroc)) for step, auroc in curve["auroc"]]
            aurocs.append(Line(points, color, name))
            kept += [(*at, "kept") for at in points if at[0] == curve["kept_step"]]
    charts = []
    if losses:
        x, y = _loss_axes(losses)
        charts.append(
            {"svg": Markup(lines(losses, x, y, title="Loss")), "caption": "Loss of a step."}
        )
        if aurocs:
            y = padded_axis([v for line in aurocs for _, v in line.points], "AUROC")
            svg = lines(aurocs, x, y, marks=kept, title="Validation")
            charts.append(
                {"svg": Markup(svg), "caption": "AUROC of the validations; the dot was kept."}
            )
    return charts


def _others(losses: dict[str, Any]) -> list[dict[str, Any]]:
    """losses: of each network beside the students; no two of them are measured alike."""
    charts = []
    for name, curve in losses.items():
        line = _loss_line(curve, "third", name)
        svg = lines([line], *_loss_axes([line]), title=f"Loss: {name}")
        charts.append({"svg": Markup(svg), "caption": f"Loss of a step: {name}."})
    return charts


def _loss_line(curve: dict[str, Any], color: str, name: str) -> Line:
    steps = np.linspace(0, curve["steps"], len(curve["loss"]) + 1)[1:].tolist()
    return Line(list(zip(steps, curve["loss"], strict=True)), color, name)


def _loss_axes(losses: list[Line]) -> tuple[Axis, Axis]:
    values = [max(y, 1e-6) for line in losses for _, y in line.points]
    x = Axis(0.0, max(x for line in losses for x, _ in line.points), "step")
    return x, Axis(min(values) / 1.1, max(values) * 1.1, "loss", logarithmic=True)


def _cards(evaluation: Evaluation) -> tuple[list[dict[str, Any]], list[str], str]:
    """The gallery, the pictures that are not in the page itself, and what is not shown."""
    if not evaluation.pictures:
        return [], [], "No pictures were made."
    order = sorted(range(len(evaluation.judged)), key=lambda k: -wrongness(evaluation.judged[k]))
    cards, pictures = [], []
    for place, number in enumerate(order[:MOST_PICTURES]):
        judged = evaluation.judged[number]
        code = base64.b64encode(evaluation.pictures[number]).decode()
        source = f"data:image/webp;base64,{code}"
        printed = place < PRINTED
        pictures.append("" if printed else source)
        verdict = verdict_of(judged)
        kinds = sorted(judged.image.kinds)
        missed = [d.kind for d, hit in zip(judged.truth, judged.found, strict=True) if not hit]
        more = ", ".join(kinds)
        if judged.truth:
            more += f" · {len(judged.truth) - len(missed)} of {len(judged.truth)} defects boxed"
        cards.append(
            {
                "src": source if printed else "",
                "printed": printed,
                "verdict": verdict,
                "wrong": judged.failed is not judged.image.defective,
                "types": SEPARATOR.join(kinds),
                "camera": judged.image.camera,
                "what": VERDICTS[verdict],
                "score": short(judged.score),
                "threshold": short(judged.threshold),
                "name": judged.image.path.name,
                "more": more,
            }
        )
    left = len(order) - len(cards)
    return cards, pictures, f"{left} images that are least wrong are not shown." if left else ""
