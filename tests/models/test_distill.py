"""A teacher comes to repeat its backbone, whichever way the backbone was written down."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from models.distill import DistillSettings, distil, features, load_backbone
from models.errors import DataError
from models.teacher import load_teacher
from models.untrained import textured_frame
from pipeline.cli import run

QUICK = DistillSettings(steps=60, batch=4, crop_px=64, learning_rate=2e-3)


class Edges(nn.Module):
    """Two maps, of stride 8 and 16, of which local contrast can be told."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 12, 8, stride=8)
        self.second = nn.Conv2d(12, 20, 2, stride=2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fine = torch.relu(self.first(x))
        return fine, self.second(fine)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for k in range(6):
        size = (60, 90) if k == 0 else (140, 180)  # one is enlarged
        cv2.imwrite(str(folder / f"{k}.png"), textured_frame(*size, 3, seed=k))
    return folder


def test_the_loss_falls(photos: Path) -> None:
    _, losses = distil(Edges().eval(), sorted(photos.iterdir()), "pdn_tiny", QUICK)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def test_one_seed_gives_one_teacher(photos: Path) -> None:
    few = replace(QUICK, steps=5)
    net, losses = distil(Edges().eval(), sorted(photos.iterdir()), "pdn_tiny", few)
    again, same = distil(Edges().eval(), sorted(photos.iterdir()), "pdn_tiny", few)
    assert losses == same
    assert torch.equal(net.conv1.weight, again.conv1.weight)


@pytest.mark.parametrize("answer", ["tensor", "tuple", "list", "dict"])
def test_maps_of_any_number_come_to_one_grid(answer: str) -> None:
    maps = [torch.rand(2, 12, 16, 16), torch.rand(2, 20, 8, 8)]
    given = {
        "tensor": maps[0],
        "tuple": tuple(maps),
        "list": maps,
        "dict": {"layer2": maps[0], "layer3": maps[1]},
    }[answer]
    found = features(lambda _: given, torch.zeros(2, 3, 128, 128), 10)
    assert found.shape == (2, 10, 16, 16)


@pytest.mark.parametrize("answer", [None, [], torch.rand(2, 5), [torch.rand(2, 5)], "map"])
def test_answers_that_are_no_maps_are_refused(answer: object) -> None:
    with pytest.raises(DataError, match="no map"):
        features(lambda _: answer, torch.zeros(2, 3, 32, 32), 10)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["torchscript", "export"])
def test_the_command_writes_a_teacher(
    photos: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    example = torch.zeros(2, 3, 512, 512)
    if kind == "torchscript":
        path = tmp_path / "backbone.pt"
        torch.jit.trace(Edges().eval(), example).save(str(path))
    else:
        path = tmp_path / "backbone.pt2"
        torch.export.save(torch.export.export(Edges().eval(), (example,)), path)
    out = tmp_path / "teacher.safetensors"
    words = ["--licence", "MIT", "--origin", "a test", "--variant", "pdn_tiny"]
    options = ["--images", str(photos), *words, "--steps", "1", "--batch", "2", "--out", str(out)]
    assert run(["teacher", "distill", str(path), *options, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["teacher"] == str(out)
    assert told["left_out"] == []
    teacher = load_teacher(out, 1)
    assert teacher.licence == "MIT"
    assert teacher.about["distilled_from"] == path.name
    backbone = load_backbone(path)
    expected = Edges().eval()(example)
    found = backbone(example)
    assert isinstance(found, tuple)
    torch.testing.assert_close(found[0], expected[0])


def test_what_is_no_network_is_refused(photos: Path, tmp_path: Path) -> None:
    for name in ("none.pt", "text.pt", "text.pt2"):
        if name.startswith("text"):
            (tmp_path / name).write_text("no network")
        with pytest.raises(DataError, match="no network found"):
            load_backbone(tmp_path / name)
    with pytest.raises(DataError, match="no images"):
        distil(Edges().eval(), [], "pdn_tiny", QUICK)


def test_a_backbone_that_says_nothing_is_refused(photos: Path) -> None:
    def silent(pixels: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(pixels), 8, 16, 16)

    with pytest.raises(DataError, match="does not vary"):
        distil(silent, sorted(photos.iterdir()), "pdn_tiny", QUICK)
