"""The report says what was found, holds all pictures, and takes no harm from odd names."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from judged import crowd, curves_of, judged

from calibrate.gallery import Range, wrongness
from calibrate.report import PRINTED, render, write_report
from calibrate.results import Evaluation
from models.bundle import Bundle, EngineThresholds
from models.untrained import untrained_bundle
from pipeline.errors import DataError

THRESHOLDS = EngineThresholds(
    image_threshold=1.0,
    pixel_threshold=0.5,
    images=600,
    above=0,
    false_reject_bound=0.00498,
    confidence=0.95,
    chosen="at most 0.50% false rejects at 95%: 0 of 600 good images reach the threshold",
    bad_images=20,
    bad_below=1,
    escape_bound=0.21,
)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    bundle = Bundle.load(untrained_bundle(tmp_path_factory.mktemp("bundles")))
    found = crowd(40, 30)
    curves_about = {
        "1": {
            "steps": 90,
            "loss": [3.0, 1.0, 0.5],
            "auroc": [[45, 0.7], [90, 0.8]],
            "kept_step": 90,
        },
    }
    bundle = dataclasses.replace(
        bundle, provenance={"images": 400, "teacher": "ours-1", "curves": curves_about}
    )
    bundle.provenance["other_losses"] = {
        "wide view, scale 2": {"steps": 20, "loss": [1.0, 0.4]},
        "global branch": {"steps": 10, "loss": [0.0]},
    }
    return Evaluation(
        bundle=bundle,
        engine_id="openvino/bf16/cpu",
        thresholds=THRESHOLDS,
        judged=found,
        curves=curves_of(found),
        least_iou=0.33,
        notes=["left out: 3 image(s) that trained the bundle"],
        pictures=[f"picture {k}".encode() for k in range(len(found))],
        title="Boards & <tiles>",
    )


class Tags(HTMLParser):
    """Counts tags, and finds those that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_says_what_was_found(evaluation: Evaluation) -> None:
    page = render(evaluation)
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert tags.seen["svg"] == 7  # scores, ROC, precision and recall, loss, validations, two more
    assert tags.seen["img"] == 70
    confusion = evaluation.plain()["confusion"]
    for key, value in confusion.items():
        assert f'id="{key.replace("_", "-")}">{value}<' in page
    auroc = evaluation.tables["all"]["image_auroc"]
    assert f"<b>{auroc.value:.3f}</b>" in page
    assert "0 of 600 good parts reached the threshold: at most 0.50% false rejects" in page
    assert "1 of 20 defective parts stayed under the threshold: at most 21.00% escapes" in page
    assert "left out: 3 image(s)" in page
    assert "Good images learnt from" in page
    for name in ("wide view, scale 2", "global branch"):
        assert f"Loss of a step: {name}." in page
    for name in ("crack", "dent"):
        assert f"<th>{name}</th>" in page


def test_nothing_comes_from_the_network_and_names_are_only_names(evaluation: Evaluation) -> None:
    page = render(evaluation)
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page)
    assert "url(" not in page
    assert "hole <b>" not in page
    assert "Boards &amp; &lt;tiles&gt;" in page


def test_the_most_wrong_come_first_and_every_picture_is_there_once(evaluation: Evaluation) -> None:
    page = render(evaluation)
    names = re.findall(r"<p>((?:good|bad)-\d+\.png)", page)
    expected = sorted(evaluation.judged, key=lambda each: -wrongness(each))
    assert names == [each.image.path.name for each in expected]
    block = re.search(r'id="pictures">(.*?)</script>', page, re.DOTALL)
    assert block
    later = [text for text in json.loads(block[1]) if text]
    inline = re.findall(r'src="(data:image/webp;base64,[^"]+)"', page)
    assert len(inline) == PRINTED
    assert len(set(later) | set(inline)) == len(evaluation.judged)
    assert not set(later) & set(inline)


@pytest.mark.parametrize("which", [[], [judged(0.5)], [judged(0.5, "a")], crowd(6, 0)])
def test_reports_of_hardly_anything(evaluation: Evaluation, which: list[object]) -> None:
    few = dataclasses.replace(evaluation, judged=which, pictures=[b""] * len(which))
    page = render(few)
    assert f"Results on {len(which)} images" in page
    json.dumps(few.plain())


def test_wrongness_grows_on_the_wrong_side() -> None:
    assert wrongness(judged(3.0)) > wrongness(judged(1.5)) > 0 > wrongness(judged(0.2))
    assert wrongness(judged(0.1, "a")) > wrongness(judged(0.9, "a")) > 0
    assert wrongness(judged(-5.0)) < 0


def test_a_range_is_one() -> None:
    for low, high in ((1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="low < high"):
            Range(low, high)
    with pytest.raises(ValueError, match="low > 0"):
        Range(0.0, 1.0, logarithmic=True)


@pytest.mark.parametrize(("high", "logarithmic"), [(5.0, False), (1e5, True)])
def test_heat_over_powers_of_ten_is_logarithmic(high: float, logarithmic: bool) -> None:
    shown = Range.of_scores(-0.1, 1.0, high)
    assert shown.logarithmic == logarithmic
    scores = np.array([-1e9, shown.low, shown.high, 1e9], np.float32)
    np.testing.assert_allclose(shown.level(scores), [0, 0, 1, 1], atol=1e-6)
    middle = math.sqrt(shown.low * shown.high) if logarithmic else (shown.low + shown.high) / 2
    assert shown.level(np.array([middle], np.float32))[0] == pytest.approx(0.5, abs=0.01)
    nothing = Range.of_scores(-0.1, 1.0, -9.0)
    assert nothing.low < nothing.high


def test_a_report_that_cannot_be_written(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_report(tmp_path / "file" / "report.html", evaluation)
