"""`linewatch teacher distill`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from models.distill import DistillSettings, distil_file
from models.good_images import check_images
from models.images import list_images
from models.variants import VARIANTS
from pipeline.commands.progress import progress_bar
from pipeline.errors import ConfigError


def command(
    backbone: Annotated[
        Path, typer.Argument(help="TorchScript (torch.jit.save), or torch.export.save (.pt2).")
    ],
    images: Annotated[Path, typer.Option(help="A folder of pictures of anything, many of them.")],
    licence: Annotated[
        str, typer.Option(help="Under which the backbone's weights are; kept in every bundle.")
    ],
    origin: Annotated[str, typer.Option(help="Where they are from: an address, a paper.")],
    variant: Annotated[str, typer.Option(help=f"{', '.join(VARIANTS)}.")] = "pdn_small",
    out: Annotated[
        Path | None, typer.Option(help="The file. Default: teacher_VARIANT.safetensors here.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="The paper takes 60,000.")] = (
        DistillSettings().steps
    ),
    batch: Annotated[int, typer.Option(min=1, help="Crops in each step.")] = (
        DistillSettings().batch
    ),
    seed: Annotated[int, typer.Option(min=0, help="The same seed, the same weights.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make a teacher that repeats a backbone of yours, as EfficientAD does.

    The backbone takes normalised colour pixels [N, 3, H, W] and returns one feature map or
    several, such as layers 2 and 3 of a wide ResNet. Nothing is downloaded; find out whether the
    terms of its weights fit your use.

    [bold]linewatch teacher distill wrn101.pt2 --images photos/ --licence ... --origin ...[/]
    """
    if variant not in VARIANTS:
        raise ConfigError(f"--variant {variant!r} found, expected one of {', '.join(VARIANTS)}")
    out = out or Path(f"teacher_{variant}.safetensors")
    settings = DistillSettings(steps=steps, batch=batch, seed=seed)
    photos = check_images(list_images(images), convert_into=out.parent)
    with progress_bar(f"Distilling {variant}", steps, quiet=as_json) as update:
        path = distil_file(
            backbone,
            photos.paths,
            variant,
            out,
            settings,
            licence=licence,
            origin=origin,
            device=device,
            progress=update,
        )
    note = path.with_suffix(".json")
    if as_json:
        found = {"teacher": str(path), "left_out": photos.left_out}
        print(json.dumps(found | json.loads(note.read_text()), indent=2))
    else:
        for sentence in photos.left_out:
            print(f"left out: {sentence}")
        print(f"teacher: {path}, with {note}")
