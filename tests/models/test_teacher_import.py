"""Published state dicts become teachers with the same features; anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from models.errors import DataError
from models.pdn import PDN
from models.teacher import load_teacher
from models.teacher_import import IMAGENET_MEAN, IMAGENET_STD, import_teacher
from models.variants import VARIANTS
from pipeline.cli import run


def sequential(variant: str) -> nn.Sequential:
    """The layers as published: numbered, with ReLUs and pools between."""
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    channels, specs = 3, VARIANTS[variant]
    for number, spec in enumerate(specs, start=1):
        layers.append(nn.Conv2d(channels, spec.out_channels, spec.kernel))
        channels = spec.out_channels
        if number < len(specs):
            layers.append(nn.ReLU())
        if spec.pool:
            layers.append(nn.AvgPool2d(2))
    return nn.Sequential(*layers)


def take(source: Path, out: Path) -> Path:
    return import_teacher(source, out, licence="MIT", origin="a paper")


@pytest.mark.parametrize("variant", ["pdn_small", "pdn_medium"])
@pytest.mark.parametrize("named", ["numbers", "convs", "prefixed", "nested"])
def test_features_are_those_of_the_published_network(
    tmp_path: Path, variant: str, named: str
) -> None:
    published = sequential(variant)
    state = dict(published.state_dict())
    if variant == "pdn_small":
        assert {name.partition(".")[0] for name in state} == {"0", "3", "6", "8"}
    if named in ("convs", "prefixed"):
        order = sorted({int(name.partition(".")[0]) for name in state})
        prefix = "model." if named == "prefixed" else ""
        state = {
            f"{prefix}conv{order.index(int(number)) + 1}.{kind}": value
            for (number, _, kind), value in zip(
                (name.partition(".") for name in state), state.values(), strict=True
            )
        }
    torch.save({"state_dict": state} if named == "nested" else state, tmp_path / "small.pth")
    path = take(tmp_path / "small.pth", tmp_path / "new" / "teacher.safetensors")
    teacher = load_teacher(path, 3)
    assert teacher.net.variant == variant
    assert teacher.licence == "MIT"
    x = torch.randn(1, 3, 45, 41)
    with torch.inference_mode():
        torch.testing.assert_close(teacher.net(x), published(x))
    torch.testing.assert_close(teacher.input_mean, torch.tensor(IMAGENET_MEAN))
    torch.testing.assert_close(teacher.input_std, torch.tensor(IMAGENET_STD))
    note = json.loads(path.with_suffix(".json").read_text())
    assert note["origin"] == "a paper"
    assert len(note["imported_sha256"]) == 64


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must not be printed",)


def with_(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(PDN("pdn_small", 3).state_dict()) | {name: value}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a state dict"),
        (b"garbage" * 100, "not a state dict"),
        (Harmful(), "without running its code"),
        ([1, 2, 3], "list found"),
        ({"a": 1}, "expected a state dict of tensors"),
        ({}, "expected the convolutions"),
        (PDN("pdn_small", 1).state_dict(), "on three channels"),
        (with_("extra.weight", torch.zeros(3)), "expected the convolutions"),
        (
            with_("conv2.bias", torch.full((256,), torch.nan)),
            r"conv2\.bias of torch\.float32 with NaN",
        ),
        (with_("conv2.bias", torch.zeros(256, dtype=torch.complex64)), r"torch\.complex64"),
        (with_("conv2.bias", torch.zeros(7)), "expected the convolutions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_else_is_refused(
    tmp_path: Path, content: object, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "teacher.pth", tmp_path / "teacher.safetensors"
    if isinstance(content, bytes):
        source.write_bytes(content)
    else:
        torch.save(content, source)
    with pytest.raises(DataError, match=words):
        take(source, out)
    assert not out.exists()
    assert "must not be printed" not in capfd.readouterr().out


def test_truncated_file(tmp_path: Path) -> None:
    source = tmp_path / "teacher.pth"
    torch.save(PDN("pdn_small", 3).state_dict(), source)
    source.write_bytes(source.read_bytes()[:5000])
    with pytest.raises(DataError, match="not a state dict"):
        take(source, tmp_path / "out.safetensors")


def test_the_file_itself_is_never_overwritten(tmp_path: Path) -> None:
    source = tmp_path / "teacher.safetensors"  # a state dict all the same
    torch.save(PDN("pdn_small", 3).state_dict(), source)
    before = source.read_bytes()
    with pytest.raises(DataError, match="name --out"):
        take(source, tmp_path / "." / "teacher.safetensors")
    assert source.read_bytes() == before
    take(source, tmp_path / "new.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {
        "teacher.safetensors",
        "new.safetensors",
        "new.json",
    }


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "small.pth", tmp_path / "t.safetensors"
    torch.save(PDN("pdn_small", 3).state_dict(), source)
    line = ["teacher", "import", str(source), "--licence", "MIT", "--origin", "here"]
    assert run([*line, "--out", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["variant"] == "pdn_small"
    assert answer["teacher"] == str(out)
    assert run([*line, "--out", str(source / "t.safetensors")]) == 9
    assert "--out" in capsys.readouterr().err
    assert run(["teacher", "import", str(tmp_path / "none.pth"), *line[3:]]) == 9
    assert "none.pth: unreadable" in capsys.readouterr().err
