"""Teachers: the built-in ones that lie in `weights/`, and the program that trained them.

A teacher must tell local structures apart and be indifferent to light and sensor. It is trained on
procedural pictures alone (`models.procedural`), so its weights are the project's own:

1. Draw a picture, photograph it twice under different lights, and once more after it was spoiled
   by small defects.
2. A cell's features in the first photograph must resemble those of the same cell in the second
   more than those of any other cell (InfoNCE over positions: van den Oord et al. 2018), and more
   than those of its own cell in the spoiled photograph, where a defect is near the cell's centre.
   All features shall be about equally long, whatever the contrast.
3. Last, outputs are scaled to mean 0 and deviation 1 over procedural pictures.

A teacher's file is safetensors: the network's parameters, `input_mean` and `input_std` [3] of
pixels in 0..1, and a few lines of metadata. Same variant, seed and steps give the same weights on
one machine.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from models.compute import channels_last, compute_type, one_cycle, seeded
from models.defects import spoil
from models.errors import DataError
from models.pdn import PDN
from models.procedural import draw, photograph
from models.variants import MARGIN_PX, RECEPTIVE_FIELD_PX, STRIDE, VARIANTS

LICENCE = "part of linewatch, under its licence; trained on pictures that linewatch drew itself"
INPUT_MEAN, INPUT_STD = 0.5, 0.25
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TeacherSettings:
    """What decides a teacher's weights, beside its variant."""

    seed: int = 0
    steps: int = 2000
    pictures: int = 12
    """New pictures in each step."""
    crop_px: int = 128
    positions: int = 96
    """Cells of each picture that are compared."""
    temperature: float = 0.1
    evenness: float = 0.1
    """Weight of the squared deviation of the features' mean square from 1."""
    learning_rate: float = 2e-3
    near_cells: int = 2
    """Cells of one picture this close to each other need not differ."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A frozen network and what its input is normalised with. `identity` goes into bundles."""

    net: PDN
    input_mean: torch.Tensor
    """[in_channels], of pixels in 0..1."""
    input_std: torch.Tensor
    identity: str
    licence: str
    about: dict[str, str] = field(default_factory=dict)


def load_builtin_teacher(variant: str, in_channels: int) -> Teacher:
    """The teacher that comes with linewatch. Raises `DataError` when the variant has none."""
    name = f"teacher_{variant}.safetensors"
    path = Path(__file__).parent / "weights" / name
    if not path.is_file():
        known = sorted(p.stem.removeprefix("teacher_") for p in path.parent.glob("*.safetensors"))
        raise DataError(
            f"no built-in teacher for {variant!r} found, expected one of {', '.join(known)}: "
            f"train one with `linewatch teacher train --variant {variant}` and name its file"
        )
    return load_teacher(path, in_channels)


def load_teacher(path: Path, in_channels: int) -> Teacher:
    """A teacher's file, with its first layer folded to one grey channel if `in_channels` is 1."""
    try:
        data = path.read_bytes()
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
        tensors = safetensors.torch.load(data)
    except OSError as error:
        raise DataError(f"{path}: unreadable ({error.strerror or error})") from error
    except safetensors.SafetensorError as error:
        raise DataError(f"{path}: not safetensors ({error}): copy it again") from error
    variant = about.get("variant", "")
    if variant not in VARIANTS or not {"input_mean", "input_std"} <= tensors.keys():
        raise DataError(
            f"{path}: variant {variant!r} with tensors {sorted(tensors)[:4]}... found, expected a "
            f"teacher of {', '.join(VARIANTS)}: make one with `linewatch teacher train`"
        )
    mean, std = tensors.pop("input_mean").double(), tensors.pop("input_std").double()
    if in_channels == 1:
        tensors, mean, std = _fold_grey(tensors, mean, std)
    net = PDN(variant, in_channels)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(f"{path}: not a {variant} of this linewatch: {error}") from error
    digest = hashlib.sha256(data).hexdigest()
    return Teacher(
        net=net.requires_grad_(False).eval(),
        input_mean=mean.float(),
        input_std=std.float(),
        identity=f"{about.get('name', path.stem)}-{digest[:12]}",
        licence=about.get("licence", "unknown"),
        about=about,
    )


def _fold_grey(
    tensors: dict[str, torch.Tensor], mean: torch.Tensor, std: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """The network on one channel g that equals the network on (g, g, g). Exact: no padding.

    sum_c w_c (g - m_c) / s_c = w (g - m) / s + bias, with any m and s.
    """
    weight = tensors["conv1.weight"].double()
    grey_mean, grey_std = mean.mean(), std.mean()
    scaled = weight / std[:, None, None]
    bias = (scaled.sum(dim=(2, 3)) * (grey_mean - mean)).sum(dim=1)
    folded = {
        **tensors,
        "conv1.weight": (scaled.sum(dim=1, keepdim=True) * grey_std).float(),
        "conv1.bias": (tensors["conv1.bias"].double() + bias).float(),
    }
    return folded, grey_mean[None], grey_std[None]


def train_teacher_file(
    variant: str,
    out: Path,
    settings: TeacherSettings | None = None,
    *,
    progress: Progress | None = None,
) -> Path:
    """Train a teacher and write its file, with a note beside it of how it was made."""
    settings = settings or TeacherSettings()
    started = time.monotonic()
    net, losses = train_teacher(variant, settings, progress=progress)
    about = {
        "name": f"linewatch-{variant}",
        "variant": variant,
        "licence": LICENCE,
        "seed": str(settings.seed),
        "steps": str(settings.steps),
        "torch": torch.__version__.split("+")[0],
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "made_by": f"linewatch teacher train --variant {variant} --seed {settings.seed} "
        f"--steps {settings.steps}",
    }
    more = {
        "settings": {name: getattr(settings, name) for name in TeacherSettings.__slots__},
        "last_loss": round(float(np.mean(losses[-100:])), 4),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "threads": torch.get_num_threads(),
    }
    return save_teacher(out, net, about, more, mean=[INPUT_MEAN] * 3, std=[INPUT_STD] * 3)


def save_teacher(
    out: Path,
    net: PDN,
    about: dict[str, str],
    more: dict[str, Any],
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> Path:
    """Write a teacher's file and the note beside it. about: into both; more: into the note."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in net.state_dict().items()}
    tensors["input_mean"], tensors["input_std"] = torch.tensor(mean), torch.tensor(std)
    # One key: safetensors writes several in any order, and one training shall give one file.
    data = safetensors.torch.save(tensors, metadata={"about": json.dumps(about)})
    note = {**about, **more, "sha256": hashlib.sha256(data).hexdigest()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = out.with_name(f".{out.name}.part")  # a full disk must not cost the old file
        work.write_bytes(data)
        work.replace(out)
        out.with_suffix(".json").write_text(json.dumps(note, indent=2) + "\n")
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror or error}): name another file with --out"
        ) from error
    return out


def train_teacher(
    variant: str, settings: TeacherSettings, *, progress: Progress | None = None
) -> tuple[PDN, list[float]]:
    """The trained network of three input channels, and the loss of every step."""
    with seeded(settings.seed):
        net = PDN(variant, 3)
        for parameter in net.parameters():
            if parameter.dim() > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            else:
                nn.init.zeros_(parameter)
    channels_last(net)
    optimiser = torch.optim.Adam(net.parameters(), settings.learning_rate, weight_decay=1e-5)
    schedule = one_cycle(optimiser, settings.learning_rate, settings.steps, rising=0.05)
    losses = []
    for step, batch in enumerate(_batches(settings), start=1):
        with torch.autocast("cpu", compute_type(), enabled=compute_type() != torch.float32):
            features = net(_normalise(batch.photographs))
        loss = contrastive_loss(features, batch, settings)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise DataError(
                f"loss {losses[-1]} found at step {step}, expected a finite one: lower the "
                f"learning rate (it was {settings.learning_rate:g})"
            )
        if progress is not None:
            progress(step, settings.steps)
    _standardise(net, settings)
    return net.eval(), losses


@dataclass(frozen=True, slots=True)
class _Batch:
    photographs: torch.Tensor
    """uint8 [3 N, crop, crop, 3]: under one light, under another, and spoiled."""
    cells: torch.Tensor
    """[N, positions]: flat indices of the compared cells."""
    spoiled: torch.Tensor
    """[N, positions]: True where a defect is near the cell's centre."""


def contrastive_loss(
    features: torch.Tensor, batch: _Batch, settings: TeacherSettings
) -> torch.Tensor:
    """InfoNCE between the compared cells of the two lights; see the module's docstring."""
    rows = features.permute(0, 2, 3, 1).flatten(1, 2)  # [3 N, cells, C]: no copy, channels last
    index = batch.cells[:, :, None].expand(-1, -1, rows.shape[2])
    plain = [light.gather(1, index).flatten(0, 1).float() for light in rows.chunk(3)]
    one, two, wrong = (functional.normalize(light, dim=1) for light in plain)
    # The map is a plain squared difference: strong contrast must not mean large features.
    lengths = torch.stack([(light**2).mean(dim=1) for light in plain])
    uneven = ((lengths - 1) ** 2).mean()
    logits = one @ two.T / settings.temperature
    columns = features.shape[3]
    # Pictures far apart from each other in one plane: what is near lies in the same picture.
    far = columns + settings.near_cells + 1
    picture = torch.arange(len(batch.cells))[:, None]
    at = torch.stack([batch.cells // columns + far * picture, batch.cells % columns])
    at = at.flatten(1).to(torch.int32)
    near = ((at[:, :, None] - at[:, None, :]).abs() <= settings.near_cells).all(dim=0)
    logits = logits.masked_fill(near.fill_diagonal_(False), -torch.inf)
    hidden = ~batch.spoiled.flatten()
    target = torch.arange(len(logits))

    def against(anchor: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        defect = (anchor * wrong).sum(dim=1) / settings.temperature
        defect = defect.masked_fill(hidden, -torch.inf)
        return functional.cross_entropy(torch.cat([others, defect[:, None]], dim=1), target)

    compared = (against(one, logits) + against(two, logits.T)) / 2
    return compared + settings.evenness * uneven


def _batches(settings: TeacherSettings) -> Iterator[_Batch]:
    """All batches of a training, drawn ahead in a thread; each from its own seed."""
    with ThreadPoolExecutor(1) as pool:
        ahead = [pool.submit(_draw_batch, settings, k) for k in range(min(4, settings.steps))]
        for step in range(settings.steps):
            batch = ahead.pop(0).result()
            if step + 4 < settings.steps:
                ahead.append(pool.submit(_draw_batch, settings, step + 4))
            yield batch


def _draw_batch(settings: TeacherSettings, step: int) -> _Batch:
    rng = np.random.default_rng([settings.seed, step])
    lights: tuple[list[NDArray[np.uint8]], ...] = ([], [], [])
    cells, spoiled = [], []
    for _ in range(settings.pictures):
        picture = draw(rng, settings.crop_px)
        bad, taken = spoil(rng, picture, 12)
        for light, scene in zip(lights, (picture, picture, bad), strict=True):
            light.append(photograph(rng, scene))
        near = _near_defect(taken)
        # Half of the compared cells lie at defects, as far as there are so many.
        at_defects = rng.permutation(np.flatnonzero(near))[: settings.positions // 2]
        others = rng.permutation(np.setdiff1d(np.arange(near.size), at_defects))
        chosen = np.concatenate([at_defects, others])[: settings.positions]
        cells.append(chosen)
        spoiled.append(near.ravel()[chosen])
    photographs = np.stack([shot for light in lights for shot in light])
    return _Batch(
        torch.from_numpy(photographs),
        torch.from_numpy(np.stack(cells)),
        torch.from_numpy(np.stack(spoiled)),
    )


def _near_defect(taken: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Cells (rows, columns) with a visible defect within 6 px of their centres."""
    reached = cv2.dilate((taken > 0).astype(np.uint8), np.ones((13, 13), np.uint8))
    last = taken.shape[0] - RECEPTIVE_FIELD_PX + MARGIN_PX + 1
    near: NDArray[np.bool_] = reached[MARGIN_PX:last:STRIDE, MARGIN_PX:last:STRIDE] > 0
    return near


def _normalise(photographs: torch.Tensor) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W], laid out channels last."""
    return ((photographs.float() / 255 - INPUT_MEAN) / INPUT_STD).permute(0, 3, 1, 2)


@torch.no_grad()
def _standardise(net: PDN, settings: TeacherSettings) -> None:
    """Scale the last layer so that outputs have mean 0 and deviation 1 over fresh pictures."""
    batches = [_draw_batch(settings, settings.steps + 1 + k) for k in range(8)]
    outputs = torch.cat([net(_normalise(batch.photographs)) for batch in batches]).double()
    mean, std = outputs.mean(dim=(0, 2, 3)), outputs.std(dim=(0, 2, 3)).clamp_min(1e-6)
    last = net.get_submodule(f"conv{len(net.specs)}")
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    last.weight.copy_(last.weight.double() / std[:, None, None, None])
    last.bias.copy_((last.bias.double() - mean) / std)
