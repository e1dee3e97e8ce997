"""A bundle comes back as it was written, and anything else is refused with the remedy."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import (
    Bundle,
    Calibration,
    EngineThresholds,
    Reference,
    recalibrated,
    write_bundle,
)
from models.errors import BundleError, DataError, RuntimeUnavailable
from models.references import make_references, weights_of
from models.schema import SCHEMA
from models.untrained import textured_frame, untrained_bundle, untrained_model
from models.variants import map_hw

THRESHOLDS = EngineThresholds(0.5, 0.4, 10, 0, 0.26, 0.95, "for a test")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_bundle(tmp_path_factory.mktemp("bundle"), in_channels=3)


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / original.name))


def write(out_dir: Path, **changes: Any) -> Path:
    model = untrained_model()
    content: dict[str, Any] = {
        "variant": "pdn_tiny",
        "in_channels": 1,
        "scales": (1,),
        "weights": weights_of(model),
        "provenance": {"seed": 1},
        "calibration": Calibration(0.1, 0.2, {}),
        "references": make_references(model, [textured_frame(64, 64, 1)]),
    }
    return write_bundle(out_dir, **{**content, **changes})


def reseal(bundle: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the manifest and name the directory by it, as another program might write it."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    data = json.dumps(manifest).encode()
    (bundle / "manifest.json").write_bytes(data)
    return bundle.rename(bundle.parent / f"x-{hashlib.sha256(data).hexdigest()[:12]}")


def test_comes_back_as_written(tmp_path: Path) -> None:
    model = untrained_model("pdn_small", 1)
    references = make_references(model, [textured_frame(70, 50, 1)])
    engines = {"openvino/bf16": THRESHOLDS}
    path = write(
        tmp_path,
        variant="pdn_small",
        weights=weights_of(model),
        calibration=Calibration(0.125, 0.25, engines),
        references=references,
        parent="f" * 64,
    )
    bundle = Bundle.load(path)
    assert path.name == f"pdn_small-{bundle.sha256[:12]}"
    assert bundle.sha256 == hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
    assert (bundle.variant, bundle.in_channels, bundle.parent) == ("pdn_small", 1, "f" * 64)
    assert bundle.provenance == {"seed": 1}
    assert bundle.calibration == Calibration(0.125, 0.25, engines)
    assert bundle.thresholds("openvino/bf16") == THRESHOLDS
    assert bundle.calibration.raw(0.1) == 0.25
    assert bundle.calibration.raw(0.0) == 0.125
    for found, expected in zip(bundle.references(), references, strict=True):
        assert np.array_equal(found.padded, expected.padded)
        assert np.array_equal(found.raw_map, expected.raw_map)
    expected_weights = weights_of(model)
    assert all(np.array_equal(v, expected_weights[k]) for k, v in bundle.weights().items())
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_same_content_same_name(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert first.name == second.name
    assert write(tmp_path / "a") == first
    assert write(tmp_path / "a", provenance={"seed": 2}).name != first.name


def test_writing_over_a_damaged_twin_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    (path / "reference.npz").write_bytes(b"")
    with pytest.raises(BundleError, match=r"reference\.npz"):
        write(tmp_path)


def test_recalibrated_is_a_new_bundle_that_names_its_parent(original: Path, tmp_path: Path) -> None:
    parent = Bundle.load(original)
    calibration = dataclasses.replace(parent.calibration, engines={"torch/f32": THRESHOLDS})
    child = Bundle.load(recalibrated(parent, tmp_path, calibration))
    assert child.parent == parent.sha256 != child.sha256
    assert child.calibration == calibration
    assert child.files["weights.safetensors"] == parent.files["weights.safetensors"]
    assert Bundle.load(original) == parent
    with pytest.raises(RuntimeUnavailable, match=r"thresholds for torch/f32 found, .*openvino/f32"):
        child.thresholds("openvino/f32")


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "calibration.json", "reference.npz", "manifest.json"]
)
@pytest.mark.parametrize("where", [0, 0.5, -1])
def test_a_changed_byte_is_named_with_both_hashes(copy: Path, name: str, where: float) -> None:
    data = bytearray((copy / name).read_bytes())
    at = -2 if where == -1 else int(where * len(data))
    expected = hashlib.sha256(data).hexdigest()
    data[at] ^= 0x01
    (copy / name).write_bytes(data)
    found = hashlib.sha256(data).hexdigest()
    with pytest.raises(BundleError, match=name) as caught:
        Bundle.load(copy)
    if name != "manifest.json":  # a broken manifest may not even be JSON
        assert found in str(caught.value)
        assert expected in str(caught.value)
        assert "copy the bundle again" in str(caught.value)


def test_a_manifest_with_other_provenance_is_noticed(copy: Path) -> None:
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace("untrained", "untrainer"))
    with pytest.raises(BundleError, match=r"manifest\.json: SHA-256 .* expected the one that ends"):
        Bundle.load(copy)


def test_renamed_is_refused_with_the_right_name_but_a_link_is_fine(copy: Path) -> None:
    link = copy.parent / "production"
    link.symlink_to(copy)
    assert Bundle.load(link).path == copy
    moved = copy.rename(copy.parent / "mine")
    with pytest.raises(BundleError, match=copy.name):
        Bundle.load(moved)


@pytest.mark.parametrize("name", ["weights.safetensors", "calibration.json", "reference.npz"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"incomplete: no {name} found: copy the bundle again"):
        Bundle.load(copy)


def test_an_extra_file_is_named(copy: Path) -> None:
    (copy / "notes.txt").write_text("hello")
    with pytest.raises(BundleError, match=r"extra notes\.txt found, .* move anything else out"):
        Bundle.load(copy)


def test_what_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nothing found, expected a bundle's directory"):
        Bundle.load(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"not a bundle: no manifest\.json"):
        Bundle.load(tmp_path)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(BundleError, match="a file found"):
        Bundle.load(file)
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match="not JSON"):
        Bundle.load(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(BundleError, match="list found, expected a JSON object"):
        Bundle.load(tmp_path)
    folder = tmp_path / "folder"
    (folder / "manifest.json").mkdir(parents=True)
    with pytest.raises(BundleError, match="unreadable"):
        Bundle.load(folder)


def test_a_newer_schema_says_so(copy: Path) -> None:
    newer = reseal(copy, lambda manifest: manifest.update(schema=SCHEMA + 1, surprise=[]))
    with pytest.raises(BundleError, match=rf"schema {SCHEMA + 1} found, .* newer linewatch"):
        Bundle.load(newer)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"schema": 0}, f"schema 0 found, expected {SCHEMA}"),
        ({"schema": "1"}, "schema: '1' found, expected int"),
        ({"schema": True}, "schema: True found"),
        ({"kind": "patchcore"}, "kind: 'patchcore' found, expected 'student_teacher'"),
        ({"schema": 1}, "made by an older linewatch; train it again"),
        ({"scales": [1, 4]}, "scales: [1, 4] found, expected [1] or [2] or [1, 2]"),
        ({"stride": 8}, "stride: 8 found, expected 4"),
        ({"in_channels": 2}, "in_channels: 2 found, expected 1 or 3"),
        ({"provenance": None}, "provenance: None found, expected dict"),
        ({"files": {}}, "files: "),
        ({"files": {"../escape": "0"}}, "files: "),
    ],
)
def test_manifests_of_another_kind(copy: Path, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.load(reseal(copy, lambda manifest: manifest.update(changes)))
    assert what in str(caught.value)


def test_a_variant_or_weights_that_do_not_fit(copy: Path) -> None:
    bundle = Bundle.load(reseal(copy, lambda manifest: manifest.update(variant="pdn_small")))
    with pytest.raises(BundleError, match=r"tensor .* found, expected .* for pdn_small"):
        bundle.weights()


@pytest.mark.parametrize(
    "calibration",
    [
        Calibration(0.2, 0.1, {}),
        Calibration(0.1, 0.1, {}),
        Calibration(0.0, float("nan"), {}),
        Calibration(0.0, float("inf"), {}),
        Calibration(0.1, 0.2, {"a/b": dataclasses.replace(THRESHOLDS, image_threshold=0.0)}),
        Calibration(
            0.1, 0.2, {"a/b": dataclasses.replace(THRESHOLDS, pixel_threshold=float("nan"))}
        ),
    ],
)
def test_useless_calibrations_are_not_written(tmp_path: Path, calibration: Calibration) -> None:
    with pytest.raises(BundleError, match="expected"):
        write(tmp_path, calibration=calibration)
    assert not list(tmp_path.iterdir())


def test_useless_references_and_provenance_are_not_written(tmp_path: Path) -> None:
    good = make_references(untrained_model(), [textured_frame(64, 64, 1)])[0]
    nan = np.full_like(good.raw_map, np.nan)
    for references in (
        [],
        [Reference(good.padded, nan)],
        [Reference(good.padded, good.raw_map[1:])],
        [Reference(good.padded[:, :, 0], good.raw_map)],
        [Reference(good.padded[0], good.raw_map)],
        [Reference(good.padded.astype(np.float32), good.raw_map)],
    ):
        with pytest.raises(BundleError, match="expected"):
            write(tmp_path, references=references)
    with pytest.raises(BundleError, match="not plain JSON"):
        write(tmp_path, provenance={"path": tmp_path})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("hw", [(33, 33), (64, 200), (97, 50)])
def test_reference_crops_fit_small_and_odd_frames(hw: tuple[int, int]) -> None:
    references = make_references(untrained_model("pdn_tiny", 3), [textured_frame(*hw, 3)])
    assert len(references) == 4
    for reference in references:
        height, width = (side - 64 for side in reference.padded.shape[:2])
        assert (height, width) == (min(96, hw[0]), min(96, hw[1]))
        assert reference.raw_map.shape == map_hw(height, width)
    peaks = [float(reference.raw_map.max()) for reference in references]
    assert peaks[0] > 1.5 * max(peaks[1:])


def test_tolerances_come_back_and_belong_to_their_engines(original: Path, tmp_path: Path) -> None:
    parent = Bundle.load(original)
    still = dataclasses.replace(THRESHOLDS, still_px=16)
    engines = {"torch/f32": still, "openvino/f32": THRESHOLDS}
    calibration = dataclasses.replace(parent.calibration, engines=engines)
    tolerance = np.arange(1, 13, dtype=np.uint8).reshape(3, 4)
    path = recalibrated(parent, tmp_path, calibration, {"torch/f32": tolerance})
    child = Bundle.load(path)
    found = child.tolerance("torch/f32")
    assert found is not None
    assert np.array_equal(found, tolerance)
    assert child.tolerance("openvino/f32") is None
    assert recalibrated(parent, tmp_path, calibration, {"torch/f32": tolerance}) == path
    for wrong in ({}, {"torch/f32": tolerance, "openvino/f32": tolerance}):
        with pytest.raises(BundleError, match="tolerances for"):
            recalibrated(parent, tmp_path, calibration, wrong)
    for damaged in (tolerance - 1, tolerance.astype(np.float32), tolerance[0]):
        with pytest.raises(BundleError, match="expected uint8"):
            recalibrated(parent, tmp_path, calibration, {"torch/f32": damaged})


def test_references_need_frames() -> None:
    model = untrained_model()
    with pytest.raises(DataError, match="no frames"):
        make_references(model, [])
    with pytest.raises(DataError, match="at least 33 px"):
        make_references(model, [textured_frame(32, 64, 1)])


def test_loading_a_bundle_needs_no_torch(original: Path) -> None:
    program = (
        "import sys; from models.bundle import Bundle; "
        f"b = Bundle.load({str(original)!r}); b.weights(); b.references(); b.graph(); "
        "sys.exit('torch' in sys.modules or 'openvino' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_bundle_can_be_read_by_another_user(original: Path) -> None:
    assert os.stat(original).st_mode & 0o777 == 0o755
