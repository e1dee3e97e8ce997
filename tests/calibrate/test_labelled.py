"""Labelled images from folders: found by type, known by content, and refused where they lie."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from calibrate.labelled import load_labels, unseen
from models.bundle import Bundle
from models.untrained import textured_frame, untrained_bundle
from pipeline.errors import DataError

HW = (48, 64)


def write(path: Path, seed: int, hw: tuple[int, int] = HW) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), textured_frame(*hw, 1, seed=seed))
    return path


def write_mask(path: Path, boxes: list[tuple[int, int, int, int]], on: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask: NDArray[np.uint8] = np.zeros(HW, np.uint8)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = on
    cv2.imwrite(str(path), mask)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """good/, bad/crack and bad/dent, with a mask and a file of boxes for each."""
    for number in range(3):
        write(tmp_path / "good" / f"{number}.png", number)
    for k, kind in enumerate(("crack", "dent")):
        for number in range(2):
            name = f"{kind}{number}"
            write(tmp_path / "bad" / kind / f"{name}.png", 10 + 2 * k + number)
            ending = "_mask" if number else ""
            write_mask(
                tmp_path / "masks" / kind / f"{name}{ending}.png", [(4, 6, 10, 9)], 255 - 254 * k
            )
            (tmp_path / "boxes").mkdir(exist_ok=True)
            (tmp_path / "boxes" / f"{name}.txt").write_text("4 6 10 9 hole\n\n20 20 30 40\n")
    return tmp_path


def test_types_are_the_names_of_folders(root: Path) -> None:
    labels = load_labels([str(root / "good")], [str(root / "bad")])
    assert [len(labels.good), len(labels.bad)] == [3, 4]
    assert (
        sorted(kind for image in labels.bad for kind in image.kinds) == ["crack"] * 2 + ["dent"] * 2
    )
    assert not labels.notes
    assert not labels.good[0].kinds
    assert not any(image.located for image in labels.images)


def test_a_folder_that_is_named_as_good_is_no_type_of_defect(root: Path) -> None:
    (root / "good").rename(root / "bad" / "good")
    labels = load_labels([str(root / "bad/good")], [str(root / "bad")])
    assert [len(labels.good), len(labels.bad)] == [3, 4]


def test_masks_are_found_by_type_and_name_whatever_white_is(root: Path) -> None:
    write_mask(root / "masks" / "of-another-image.png", [])
    labels = load_labels([], [str(root / "bad")], masks=root / "masks")
    assert labels.notes == (f"{root / 'masks'}: 1 masks have no image among the given ones",)
    for image in labels.bad:
        truth = image.truth(HW)
        assert truth.mask.sum() == 18
        assert [defect.box_xyxy for defect in truth.defects] == [(4, 6, 10, 9)]
        assert truth.defects[0].kind == image.kind


def test_boxes_bring_their_types(root: Path) -> None:
    labels = load_labels([], [str(root / "bad")], boxes=root / "boxes", types={"hole": "pin-hole"})
    assert labels.bad[0].kinds == {"pin-hole", "crack"}
    truth = labels.bad[0].truth(HW)
    assert truth.mask.sum() == 6 * 3 + 10 * 20
    assert [defect.kind for defect in truth.defects] == ["pin-hole", "crack"]


def test_cameras_have_their_own_folders(root: Path) -> None:
    write(root / "side" / "0.png", 99)
    labels = load_labels([f"front={root / 'good'}", f"side={root / 'side'}"])
    assert [image.camera for image in labels.good] == ["front"] * 3 + ["side"]


def test_one_file_called_good_and_defective_is_refused(root: Path) -> None:
    copy = root / "bad" / "crack" / "copy.png"
    copy.write_bytes((root / "good" / "1.png").read_bytes())
    with pytest.raises(DataError, match=r"copy\.png is the same file as .*1\.png, one is called"):
        load_labels([str(root / "good")], [str(root / "bad")])


def test_a_file_that_is_there_twice_counts_once(root: Path) -> None:
    (root / "good" / "copy.png").write_bytes((root / "good" / "1.png").read_bytes())
    labels = load_labels([str(root / "good")])
    assert len(labels.good) == 3
    assert labels.notes == ("1 image(s) are there twice, and count once",)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1 2 3", r"crack0\.txt:1: '1 2 3' found"),
        ("5 5 5 9", "x1 < x2"),
        ("a b c d", "whole pixels"),
        ("1 2 3 4 two words", "found, expected"),
    ],
)
def test_a_line_that_is_no_box(root: Path, line: str, words: str) -> None:
    (root / "boxes" / "crack0.txt").write_text(line + "\n")
    with pytest.raises(DataError, match=words):
        load_labels([], [str(root / "bad")], boxes=root / "boxes")


@pytest.mark.parametrize("box", ["60 0 65 9", "-1 0 4 4", "0 40 8 49"])
def test_a_box_outside_of_the_frame(root: Path, box: str) -> None:
    (root / "boxes" / "crack0.txt").write_text(box)
    labels = load_labels([], [str(root / "bad")], boxes=root / "boxes")
    with pytest.raises(DataError, match="expected one within 64x48 pixels"):
        labels.bad[0].truth(HW)


def test_missing_masks_and_boxes_are_named(root: Path) -> None:
    next((root / "masks" / "dent").iterdir()).unlink()
    with pytest.raises(DataError, match=r"no mask for 1 of 4 defective images found, .*dent"):
        load_labels([], [str(root / "bad")], masks=root / "masks")
    (root / "boxes" / "dent1.txt").unlink()
    with pytest.raises(DataError, match=r"no boxes for 1 of 4 .*dent1\.txt"):
        load_labels([], [str(root / "bad")], boxes=root / "boxes")
    for folder in ("masks", "boxes"):
        with pytest.raises(DataError, match="not there"):
            load_labels([], [str(root / "bad")], **{folder: root / "none"})
    with pytest.raises(DataError, match="one of both"):
        load_labels([], [str(root / "bad")], masks=root / "masks", boxes=root / "boxes")


def test_a_mask_of_another_size_and_one_that_is_none(root: Path) -> None:
    mask = root / "masks" / "crack" / "crack0.png"
    cv2.imwrite(str(mask), np.zeros((48, 60), np.uint8))
    labels = load_labels([], [str(root / "bad")], masks=root / "masks")
    with pytest.raises(DataError, match=r"60x48 found, expected 64x48 as crack0\.png"):
        labels.bad[0].truth(HW)
    mask.write_bytes(b"no image")
    with pytest.raises(DataError, match="expected a mask"):
        labels.bad[0].truth(HW)


def test_empty_folders_are_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for good, bad in (([str(tmp_path / "empty")], []), ([], [str(tmp_path / "empty")])):
        with pytest.raises(Exception, match="no image found"):
            load_labels(good, bad)


def test_what_the_bundle_has_seen_is_left_out(root: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(untrained_bundle(tmp_path / "bundles"))
    labels = load_labels([str(root / "good")], [str(root / "bad")])
    digests = [image.sha256 for image in labels.images]
    bundle = dataclasses.replace(
        bundle,
        provenance={"sha256": {"a.png": digests[0]}, "validated_sha256": [digests[4]]},
        calibration=dataclasses.replace(bundle.calibration, images=(digests[1], digests[0])),
    )
    kept = unseen(labels, bundle)
    assert [image.sha256 for image in kept.images] == [digests[k] for k in (2, 3, 5, 6)]
    assert [note.split()[2] for note in kept.notes] == ["1", "1", "1"]
    for_thresholds = unseen(labels, bundle, calibrated=False)
    assert [image.sha256 for image in for_thresholds.images] == [
        digests[k] for k in (1, 2, 3, 5, 6)
    ]


def test_masks_inside_the_folder_of_defective_images_are_no_defects(root: Path) -> None:
    (root / "masks").rename(root / "bad" / "masks")
    labels = load_labels([], [str(root / "bad")], masks=root / "bad" / "masks")
    assert len(labels.bad) == 4


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_of_the_numbers_of_types(root: Path, dtype: type) -> None:
    for path in (root / "masks").rglob("*.png"):
        mask = np.zeros(HW, dtype)
        mask[6:9, 4:10] = 3
        cv2.imwrite(str(path), mask)
    labels = load_labels([], [str(root / "bad")], masks=root / "masks")
    assert [image.truth(HW).mask.sum() for image in labels.bad] == [18] * 4


def test_a_folder_without_a_defective_image_is_no_answer(root: Path) -> None:
    (root / "good").rename(root / "only")
    (root / "outer").mkdir()
    (root / "only").rename(root / "outer" / "good")
    with pytest.raises(DataError, match="no defective image found"):
        load_labels([str(root / "outer/good")], [str(root / "outer")])


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_one_file_does_not_tell_of_two_images(root: Path, kind: str) -> None:
    """Two types that count their images from 0 each."""
    for number, name in enumerate(("crack", "dent")):
        write(root / "same" / name / "000.png", 60 + number)
    if kind == "masks":
        write_mask(root / "told" / "000.png", [(4, 6, 10, 9)])
    else:
        (root / "told").mkdir()
        (root / "told" / "000.txt").write_text("4 6 10 9\n")
    good, bad = [str(root / "good")], [str(root / "same")]
    told = {kind: root / "told"}
    with pytest.raises(
        DataError, match=r"000\.\w+: found for .* and for .*, expected one for each"
    ):
        load_labels(good, bad, **told)
    (file,) = (root / "told").iterdir()
    for name in ("crack", "dent"):
        (root / "told" / name).mkdir()
        (root / "told" / name / file.name).write_bytes(file.read_bytes())
    (root / "told" / "crack" / "000.txt").write_text("1 2 3 4\n")
    labels = load_labels(good, bad, **told)
    if kind == "boxes":
        boxes = {defect.kind: defect.box_xyxy for i in labels.bad for defect in i.boxes or ()}
        assert boxes == {"crack": (1, 2, 3, 4), "dent": (4, 6, 10, 9)}
    else:
        assert len({image.mask for image in labels.bad}) == 2
