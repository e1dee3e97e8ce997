"""What a bundle's files hold, and the checks of them: the schema of `models.bundle`. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import BundleError
from models.variants import ALLOWED_SCALES, FRAME_MARGIN_PX, STRIDE, map_hw

SCHEMA = 11
KIND = "student_teacher"
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
CALIBRATION = "calibration.json"
REFERENCE = "reference.npz"
TOLERANCE = "tolerance.npz"
PRECEDENTS = "precedents.npz"
"""Empty where nothing is looked up."""
WIDE = "wide.npz"
"""Empty where there is no wide view."""
FILES = (WEIGHTS, CALIBRATION, REFERENCE, TOLERANCE, PRECEDENTS, WIDE)
RESTORE = "copy the bundle again from where it was made, or make it again"


@dataclass(frozen=True, slots=True)
class EngineThresholds:
    """What was chosen for one runtime and precision. Thresholds are normalised scores."""

    image_threshold: float
    pixel_threshold: float
    images: int
    """Independent good images that it rests on."""
    above: int
    """How many of them reach the image threshold."""
    false_reject_bound: float
    """With `confidence`, at most this share of such good images would be rejected."""
    confidence: float
    chosen: str
    """How, in one sentence."""
    still_px: int = 0
    """Over 0: parts lie still up to so many pixels, and there is a tolerance for each place."""
    kept: bool = False
    """Whether what was wished of false rejects is promised."""
    wished: float = 0.005
    """The share of false rejects that was asked for."""
    policy: str = "good"
    """How the image threshold was chosen: `calibrate.policies.POLICIES`."""
    bad_images: int = 0
    """Independent defective images that it rests on, beside the good ones."""
    bad_below: int = 0
    """How many of them stay under the image threshold."""
    escape_bound: float = 1.0
    """With `confidence`, at most this share of such defective images would pass."""
    lowest: float = 0.0
    highest: float = 1.0
    """Of all scores that it rests on: what heatmaps show is a part of this range."""


LayerPeaks = tuple[tuple[float, ...], tuple[float, ...]]
"""Teacher's and student's; of each channel, or one of all."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A raw map value m is the score 0.1 (m - q_a) / (q_b - q_a) (EfficientAD, section 3.4)."""

    q_a: float
    q_b: float
    engines: Mapping[str, EngineThresholds]
    """By `runtime/precision`, such as `openvino/bf16`. Empty until calibrated."""
    images: tuple[str, ...] = ()
    """SHA-256 of the image files that any of the thresholds rests on: they cannot test it."""
    activation_peaks: Mapping[str, tuple[LayerPeaks, ...]] = field(default_factory=dict)
    """What int8 engines are quantised by: of `scale1` (and `scale2`), for each layer but the last,
    the highest outputs of teacher and student. Empty until calibrated for int8."""
    optics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What good images say is usual of lens, lamp and place, as `pipeline.optics` wrote it: by
    camera, "" for those without a name. Empty until calibrated with enough images."""

    def raw(self, score: float) -> float:
        """The raw map value of a normalised score."""
        return self.q_a + score * (self.q_b - self.q_a) / 0.1


@dataclass(frozen=True, slots=True)
class Reference:
    """padded: uint8 (H + 64, W + 64, C); raw_map: float32 (ceil(H/4), ceil(W/4)), by fp32 torch."""

    padded: NDArray[np.uint8]
    raw_map: NDArray[np.float32]


def parse_json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON ({error}): {RESTORE}") from error
    if not isinstance(parsed, dict):
        raise BundleError(
            f"{path}: {type(parsed).__name__} found, expected a JSON object: {RESTORE}"
        )
    return parsed


def parse_manifest(path: Path, data: bytes) -> dict[str, Any]:
    where = path / MANIFEST
    manifest = parse_json(where, data)
    schema = manifest.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise BundleError(
            f"{where}: schema {schema} found, expected at most {SCHEMA}: this bundle was made by a "
            "newer linewatch; update linewatch on this station"
        )
    if type(schema) is int and schema < SCHEMA:
        raise BundleError(
            f"{where}: schema {schema} found, expected {SCHEMA}: this bundle was made by an older "
            "linewatch; train it again"
        )
    expected: dict[str, tuple[type, ...]] = {
        "schema": (int,),
        "kind": (str,),
        "variant": (str,),
        "in_channels": (int,),
        "scales": (list,),
        "global_branch": (bool,),
        "stride": (int,),
        "provenance": (dict,),
        "parent": (str, type(None)),
        "files": (dict,),
    }
    for key, types in expected.items():
        if key not in manifest or type(manifest[key]) not in types:
            names = " or ".join(t.__name__ for t in types)
            raise BundleError(
                f"{where}: {key}: {manifest.get(key)!r} found, expected {names}: {RESTORE}"
            )
    for key, wanted in (
        ("schema", (SCHEMA,)),
        ("kind", (KIND,)),
        ("stride", (STRIDE,)),
        ("in_channels", (1, 3)),
        ("scales", [list(scales) for scales in ALLOWED_SCALES]),
    ):
        if manifest[key] not in wanted:
            raise BundleError(
                f"{where}: {key}: {manifest[key]!r} found, expected "
                f"{' or '.join(map(repr, wanted))}: use a bundle made for this linewatch"
            )
    if set(manifest["files"]) != set(FILES):
        raise BundleError(
            f"{where}: files: {sorted(manifest['files'])} found, expected {sorted(FILES)}: "
            f"{RESTORE}"
        )
    return manifest


def parse_calibration(path: Path, data: bytes) -> Calibration:
    where = str(path / CALIBRATION)
    content = parse_json(path / CALIBRATION, data)
    try:
        engines = {
            str(key): EngineThresholds(**values) for key, values in content["engines"].items()
        }
        images = tuple(str(digest) for digest in content["images"])
        peaks = {
            str(scale): tuple(
                (tuple(map(float, teacher)), tuple(map(float, student)))
                for teacher, student in layers
            )
            for scale, layers in content.get("activation_peaks", {}).items()
        }
        optics = {str(camera): dict(found) for camera, found in content.get("optics", {}).items()}
        calibration = Calibration(
            float(content["q_a"]), float(content["q_b"]), engines, images, peaks, optics
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{where}: {error}: calibrate again with this linewatch") from error
    check_calibration(calibration, where)
    return calibration


def check_calibration(calibration: Calibration, where: str) -> None:
    spread = calibration.q_b - calibration.q_a
    if not (math.isfinite(spread) and spread > 0):
        raise BundleError(
            f"{where}: quantiles {calibration.q_a!r} and {calibration.q_b!r} found, expected "
            "finite q_a < q_b: train on more varied good images"
        )
    for scale, layers in calibration.activation_peaks.items():
        values = [value for pair in layers for peaks in pair for value in peaks]
        highest = [max(peaks, default=0.0) for pair in layers for peaks in pair]
        if not all(math.isfinite(v) and v >= 0 for v in values) or not min(highest, default=0) > 0:
            raise BundleError(
                f"{where}: activation_peaks: {scale}: not finite, negative or all zero, expected "
                "what layers gave: calibrate again"
            )
    for key, engine in calibration.engines.items():
        for name in ("image_threshold", "pixel_threshold"):
            value = getattr(engine, name)
            if not (isinstance(value, float | int) and math.isfinite(value) and value > 0):
                raise BundleError(
                    f"{where}: {key}: {name}: {value!r} found, expected a positive number: "
                    "calibrate again"
                )


def check_tolerances(
    tolerances: Mapping[str, NDArray[np.uint8]], calibration: Calibration, where: str
) -> None:
    """Each engine that was calibrated for parts that lie still has one, and no other."""
    wanted = {key for key, engine in calibration.engines.items() if engine.still_px}
    if set(tolerances) != wanted:
        raise BundleError(
            f"{where}: tolerances for {sorted(tolerances)} found, expected {sorted(wanted)}: "
            "calibrate again"
        )
    for key, tolerance in tolerances.items():
        if tolerance.ndim != 2 or tolerance.dtype != np.uint8 or not tolerance.all():
            raise BundleError(
                f"{where}: {key}: {tolerance.dtype} {tolerance.shape} found, expected uint8 (h, w) "
                "of 1 to 255: calibrate again"
            )


def check_references(references: Sequence[Reference], in_channels: int, where: str) -> None:
    if not references:
        raise BundleError(f"{where}: no reference maps found, expected at least one")
    for k, reference in enumerate(references):
        padded, raw_map = reference.padded, reference.raw_map
        inner_hw = tuple(side - 2 * FRAME_MARGIN_PX for side in padded.shape[:2])
        fits = (
            padded.ndim == 3
            and padded.shape[2] == in_channels
            and padded.dtype == np.uint8
            and raw_map.dtype == np.float32
            and raw_map.shape == map_hw(*inner_hw)
            and raw_map.size > 0
            and bool(np.isfinite(raw_map).all())
        )
        if not fits:
            raise BundleError(
                f"{where}: crop {k}: {padded.dtype} {padded.shape} with a map {raw_map.dtype} "
                f"{raw_map.shape} found, expected uint8 (H + 64, W + 64, {in_channels}) and finite "
                "float32 (ceil(H / 4), ceil(W / 4)): make the bundle again"
            )
