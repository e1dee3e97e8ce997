"""The bundle: all that a station loads, as an immutable directory named by its own hash. No torch.

    <variant>-<first 12 hex of the manifest's SHA-256>/
        manifest.json        schema, detector kind, variant, channels, scales, global branch or not,
                             stride, provenance, parent, and the SHA-256 of each other file
        weights.safetensors  a detector's parameters and buffers, float32
        calibration.json     map quantiles; per `runtime/precision` the thresholds and how sure
        reference.npz        padded uint8 crops and the raw maps that an engine must give for them
        tolerance.npz        per `runtime/precision`, if parts lie still: uint8 (h, w), how high the
                             map may be at each place (see calibrate.places)
        precedents.npz       the training images, where suspicions are looked up among them, else
                             empty (see models.precedents)
        wide.npz             the wide view's weights, if there is one, else empty (models.wide)

1. `write_bundle` writes into a temporary directory beside the final one and renames it.
2. `Bundle.load` checks the name against the manifest, and every file against its SHA-256. Anything
   missing, added or changed is a `BundleError`.
3. Nothing changes in place: `recalibrated` writes a new bundle that names its parent.

No pickle is ever loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from models.errors import BundleError, RuntimeUnavailable
from models.fused import FusedGraph, Weights, check_weights, fuse
from models.schema import (
    CALIBRATION,
    FILES,
    KIND,
    MANIFEST,
    PRECEDENTS,
    REFERENCE,
    RESTORE,
    SCHEMA,
    TOLERANCE,
    WEIGHTS,
    WIDE,
    Calibration,
    EngineThresholds,
    Reference,
    check_calibration,
    check_references,
    check_tolerances,
    parse_calibration,
    parse_manifest,
)
from models.variants import STRIDE
from models.wide import WideView, views_arrays, views_of_arrays

if TYPE_CHECKING:
    from models.precedents import Precedents

__all__ = ["Bundle", "Calibration", "EngineThresholds", "Reference", "recalibrated", "write_bundle"]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files were found whole. Weights and references are read when asked for."""

    path: Path
    sha256: str
    """Of the manifest, and by it of everything: the identity that stands in verdicts."""
    variant: str
    in_channels: int
    scales: tuple[int, ...]
    global_branch: bool
    provenance: Mapping[str, Any]
    parent: str | None
    calibration: Calibration
    files: Mapping[str, str]

    @classmethod
    def load(cls, path: Path | str) -> Bundle:
        """Check and open a bundle. Raises `BundleError` naming the file and the remedy."""
        path = Path(path)
        if not path.is_dir():
            found = "a file" if path.exists() else "nothing"
            raise BundleError(
                f"{path}: {found} found, expected a bundle's directory: "
                "make one with `linewatch train`, or give the right path"
            )
        path = path.resolve()
        manifest_bytes = _read(path, MANIFEST)
        sha256 = hashlib.sha256(manifest_bytes).hexdigest()
        manifest = parse_manifest(path, manifest_bytes)
        if path.name.rpartition("-")[2] != sha256[:12]:
            raise BundleError(
                f"{path / MANIFEST}: SHA-256 {sha256[:12]}... found, expected the one that ends "
                f"the directory's name {path.name!r}: if the directory was renamed, name it "
                f"{manifest['variant']}-{sha256[:12]} again; otherwise the manifest has changed: "
                f"{RESTORE}"
            )
        extra = sorted({entry.name for entry in path.iterdir()} - {MANIFEST, *FILES})
        if extra:
            raise BundleError(
                f"{path}: extra {', '.join(extra)} found, expected only "
                f"{', '.join((MANIFEST, *FILES))}: move anything else out of the bundle"
            )
        files = {str(name): str(digest) for name, digest in manifest["files"].items()}
        for name in FILES:
            _read_checked(path, name, files)
        return cls(
            path=path,
            sha256=sha256,
            variant=manifest["variant"],
            in_channels=manifest["in_channels"],
            scales=tuple(manifest["scales"]),
            global_branch=manifest["global_branch"],
            provenance=manifest["provenance"],
            parent=manifest["parent"],
            calibration=parse_calibration(path, _read_checked(path, CALIBRATION, files)),
            files=files,
        )

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The detector's tensors by name, checked against the variant's shapes."""
        data = _read_checked(self.path, WEIGHTS, self.files)
        try:
            weights: dict[str, NDArray[np.float32]] = safetensors.numpy.load(data)
        except safetensors.SafetensorError as error:
            raise BundleError(
                f"{self.path / WEIGHTS}: not safetensors ({error}): {RESTORE}"
            ) from error
        check_weights(
            weights,
            self.variant,
            self.in_channels,
            self.scales,
            global_branch=self.global_branch,
        )
        return weights

    def graph(self) -> FusedGraph:
        """The fused graph of the detector (see `models.fused`)."""
        return fuse(
            self.weights(),
            self.variant,
            self.in_channels,
            self.scales,
            global_branch=self.global_branch,
        )

    def references(self) -> list[Reference]:
        """At least one crop with the map that every engine must reproduce."""
        arrays = _arrays(self.path, REFERENCE, self.files)
        try:
            count = len(arrays) // 2
            pairs = [Reference(arrays[f"padded_{k}"], arrays[f"map_{k}"]) for k in range(count)]
        except KeyError as error:
            raise BundleError(f"{self.path / REFERENCE}: no {error} found: {RESTORE}") from error
        check_references(pairs, self.in_channels, str(self.path / REFERENCE))
        return pairs

    def tolerance(self, engine: str) -> NDArray[np.uint8] | None:
        """How high the map may be at each place, uint8 (h, w); None where parts lie anywhere."""
        return self.tolerances().get(engine)

    def tolerances(self) -> dict[str, NDArray[np.uint8]]:
        """Those of all engines that were calibrated for parts that lie still."""
        arrays = _arrays(self.path, TOLERANCE, self.files)
        check_tolerances(arrays, self.calibration, str(self.path / TOLERANCE))
        return arrays

    def precedents(self) -> Precedents | None:
        """The training images to look suspicions up in; None where that was not asked for."""
        arrays = _arrays(self.path, PRECEDENTS, self.files)
        if not arrays:
            return None
        from models.precedents import Precedents  # brings OpenCV, which most stations do without

        try:
            return Precedents.of_arrays(arrays)
        except ValueError as error:
            raise BundleError(f"{self.path / PRECEDENTS}: {error}: {RESTORE}") from error

    def wide(self) -> tuple[WideView, ...]:
        """The networks that weigh the map; none where that was not asked for."""
        arrays = _arrays(self.path, WIDE, self.files)
        try:
            return views_of_arrays(arrays, self.in_channels)
        except ValueError as error:
            raise BundleError(f"{self.path / WIDE}: {error}: {RESTORE}") from error

    def thresholds(self, engine: str) -> EngineThresholds:
        """Of one `runtime/precision`. Raises `RuntimeUnavailable` when it was not calibrated."""
        found = self.calibration.engines.get(engine)
        if found is None:
            known = ", ".join(sorted(self.calibration.engines)) or "none"
            raise RuntimeUnavailable(
                f"{self.path.name}: thresholds for {known} found, expected some for {engine}: run "
                f"`linewatch calibrate {self.path} --runtime {engine} --good FOLDER`"
            )
        return found


def write_bundle(
    out_dir: Path,
    *,
    variant: str,
    in_channels: int,
    scales: Sequence[int],
    weights: Weights,
    provenance: Mapping[str, Any],
    calibration: Calibration,
    references: Sequence[Reference],
    precedents: Precedents | None = None,
    wide: Sequence[WideView] = (),
    global_branch: bool = False,
    parent: str | None = None,
) -> Path:
    """Write a bundle into `out_dir` and return its directory. The same content, the same name.

    parent: SHA-256 of the bundle that this one was recalibrated from. Raises `BundleError` for
    weights, calibration, references or wide views that `Bundle.load` would refuse.
    """
    check_weights(weights, variant, in_channels, scales, global_branch=global_branch)
    check_calibration(calibration, "calibration")
    check_references(references, in_channels, "references")
    try:
        views_of_arrays(views_arrays(wide), in_channels)
    except ValueError as error:
        raise BundleError(f"the wide view: {error}; train it again") from error
    arrays: dict[str, NDArray[Any]] = {}
    for k, reference in enumerate(references):
        arrays[f"padded_{k}"] = reference.padded
        arrays[f"map_{k}"] = reference.raw_map
    # Sorted: safetensors keeps the order of the mapping, and equal content shall have one hash.
    plain = {name: np.ascontiguousarray(weights[name]) for name in sorted(weights)}
    contents = {
        WEIGHTS: safetensors.numpy.save(plain),
        CALIBRATION: _to_json(dataclasses.asdict(calibration)),
        REFERENCE: _npz(arrays),
        TOLERANCE: _npz({}),
        PRECEDENTS: _npz(precedents.arrays() if precedents else {}),
        WIDE: _npz(views_arrays(wide) if wide else {}),
    }
    about = {
        "variant": variant,
        "in_channels": in_channels,
        "scales": list(scales),
        "global_branch": global_branch,
        "provenance": dict(provenance),
        "parent": parent,
    }
    return _write(out_dir, about, contents)


def recalibrated(
    bundle: Bundle,
    out_dir: Path,
    calibration: Calibration,
    tolerances: Mapping[str, NDArray[np.uint8]] | None = None,
) -> Path:
    """Write the bundle anew with another calibration; it names `bundle` as its parent.

    tolerances: of each engine whose `still_px` is over 0. Raises `BundleError` if they do not fit.
    """
    check_calibration(calibration, "calibration")
    check_tolerances(tolerances or {}, calibration, "tolerances")
    contents = {
        WEIGHTS: _read_checked(bundle.path, WEIGHTS, bundle.files),
        CALIBRATION: _to_json(dataclasses.asdict(calibration)),
        REFERENCE: _read_checked(bundle.path, REFERENCE, bundle.files),
        TOLERANCE: _npz(tolerances or {}),
        PRECEDENTS: _read_checked(bundle.path, PRECEDENTS, bundle.files),
        WIDE: _read_checked(bundle.path, WIDE, bundle.files),
    }
    about = {
        "variant": bundle.variant,
        "in_channels": bundle.in_channels,
        "scales": list(bundle.scales),
        "global_branch": bundle.global_branch,
        "provenance": dict(bundle.provenance),
        "parent": bundle.sha256,
    }
    return _write(out_dir, about, contents)


def _write(out_dir: Path, about: Mapping[str, Any], contents: Mapping[str, bytes]) -> Path:
    files = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    fixed = {"schema": SCHEMA, "kind": KIND, "stride": STRIDE}
    manifest = _to_json({**fixed, **about, "files": files})
    final = out_dir / f"{about['variant']}-{hashlib.sha256(manifest).hexdigest()[:12]}"
    if final.exists():
        Bundle.load(final)  # the same content, or a damaged copy of it that must not be hidden
        return final
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".bundle-", dir=out_dir))
    except OSError as error:
        raise BundleError(f"{out_dir}: no folder for bundles ({error.strerror})") from error
    try:
        for name, data in {**contents, MANIFEST: manifest}.items():
            with (work / name).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        work.chmod(0o755)  # mkdtemp's 0700 would keep the station's own user out
        work.rename(final)
    except OSError as error:
        raise BundleError(
            f"{final}: cannot be written ({error.strerror or error}): is the disk full? Make room, "
            "or name another folder with --out"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The same arrays, the same bytes: numpy dates the entries 1980."""
    npz = io.BytesIO()
    np.savez_compressed(npz, allow_pickle=False, **{name: arrays[name] for name in sorted(arrays)})
    return npz.getvalue()


def _arrays(path: Path, name: str, files: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    data = _read_checked(path, name, files)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (ValueError, OSError, BadZipFile) as error:
        raise BundleError(f"{path / name}: unreadable ({error}): {RESTORE}") from error


def _to_json(content: Any) -> bytes:
    try:
        text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BundleError(f"provenance or calibration is not plain JSON: {error}") from error
    return (text + "\n").encode()


def _read(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except FileNotFoundError as error:
        what = "not a bundle" if name == MANIFEST else "incomplete"
        raise BundleError(f"{path}: {what}: no {name} found: {RESTORE}") from error
    except OSError as error:
        raise BundleError(f"{path / name}: unreadable ({error.strerror}): {RESTORE}") from error


def _read_checked(path: Path, name: str, files: Mapping[str, str]) -> bytes:
    data = _read(path, name)
    found = hashlib.sha256(data).hexdigest()
    if found != files[name]:
        raise BundleError(
            f"{path / name}: SHA-256 {found} found, expected {files[name]}: the file has changed; "
            f"{RESTORE}"
        )
    return data
