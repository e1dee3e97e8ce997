"""Published teachers (PyTorch state dicts of pdn_small or pdn_medium) as teacher files of ours.

1. Read with `weights_only`: no code in the file runs.
2. Layers are found by their names, `conv1` ... or numbers in a `Sequential` (`0`, `3`, `6`, `8`),
   with or without prefixes; in order, their shapes tell the variant.
3. Published teachers expect colour images normalised with the mean and deviation of ImageNet.

Their licence is for the user to know: it is asked for, kept in the file, and goes into every bundle
whose student learned from it.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from pathlib import Path

import torch

from models.errors import DataError
from models.pdn import PDN
from models.teacher import save_teacher
from models.variants import VARIANTS

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def import_teacher(source: Path, out: Path, *, licence: str, origin: str) -> Path:
    """Write the weights in `source` as a teacher's file, and a note beside it.

    licence, origin: what the file says of itself from then on. Raises `DataError` for a file that
    is no state dict, holds other layers, or weights that are not finite real numbers.
    """
    if out.resolve() == source.resolve():
        raise DataError(f"{out}: found as the file to read and to write, expected two: name --out")
    try:
        data = source.read_bytes()
    except OSError as error:
        raise DataError(f"{source}: unreadable ({error.strerror or error})") from error
    net = _network(source, _state(source, data))
    about = {
        "name": f"imported-{net.variant}",
        "variant": net.variant,
        "licence": licence,
        "origin": origin,
        "imported_from": source.name,
        "imported_sha256": hashlib.sha256(data).hexdigest(),
    }
    return save_teacher(out, net, about, {}, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _state(source: Path, data: bytes) -> dict[str, torch.Tensor]:
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{source}: not a state dict that can be read without running its code ({reason}): "
            "save the network's state_dict() with torch.save"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in loaded.items()
    ):
        raise DataError(
            f"{source}: {type(loaded).__name__} found, expected a state dict of tensors by name"
        )
    return loaded


def _network(source: Path, state: dict[str, torch.Tensor]) -> PDN:
    """The network of the variant whose layers these are."""
    numbers = {name: _layer_number(name) for name in state}
    kinds = {
        kind: [
            value
            for name, value in sorted(state.items(), key=lambda item: numbers[item[0]])
            if name.rpartition(".")[2] == kind
        ]
        for kind in ("weight", "bias")
    }
    shapes = [tuple(weight.shape) for weight in kinds["weight"]]
    for variant in VARIANTS:
        net = PDN(variant, 3)
        names = [f"conv{number}" for number in range(1, len(net.specs) + 1)]
        if [tuple(net.get_parameter(f"{name}.weight").shape) for name in names] != shapes:
            continue
        if len(kinds["bias"]) != len(names) or len(state) != 2 * len(names):
            break
        found = {
            f"{name}.{kind}": value
            for kind, values in kinds.items()
            for name, value in zip(names, values, strict=True)
        }
        for name, value in found.items():
            if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
                raise DataError(
                    f"{source}: {name} of {value.dtype} with NaN, infinity or no real numbers "
                    "found, expected finite floating-point weights: copy the file again"
                )
        try:
            net.load_state_dict(found)
        except RuntimeError:
            break
        return net.requires_grad_(False).eval()
    raise DataError(
        f"{source}: tensors {', '.join(sorted(state)[:6])} of shapes {shapes[:4]} found, expected "
        f"the convolutions of a teacher of {', '.join(VARIANTS)} on three channels"
    )


def _layer_number(name: str) -> tuple[int, ...]:
    """All numbers in a tensor's name, which put the layers in order."""
    return tuple(int(digits) for digits in re.findall(r"[0-9]+", name))
