"""Teachers load exactly, on colour and on grey, and the program that trains them is repeatable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.defects import spoil
from models.errors import DataError
from models.pdn import PDN
from models.procedural import draw, photograph
from models.teacher import (
    TeacherSettings,
    load_builtin_teacher,
    load_teacher,
    train_teacher,
    train_teacher_file,
)
from models.untrained import textured_frame

ABOUT_TINY = {"about": '{"variant": "pdn_tiny"}'}
QUICK = TeacherSettings(steps=3, pictures=2, crop_px=64, positions=16)


def features(path: Path, pixels: np.ndarray) -> torch.Tensor:
    """[C, h, w] for uint8 (H, W, C)."""
    teacher = load_teacher(path, pixels.shape[2])
    x = torch.from_numpy(pixels).double().permute(2, 0, 1)[None] / 255
    x = (x - teacher.input_mean[:, None, None]) / teacher.input_std[:, None, None]
    with torch.inference_mode():
        found: torch.Tensor = teacher.net.double()(x)[0]
    return found


@settings(deadline=None, max_examples=10)
@given(
    st.lists(st.floats(0.2, 0.7), min_size=3, max_size=3),
    st.lists(st.floats(0.1, 0.4), min_size=3, max_size=3),
)
def test_grey_is_the_same_as_grey_in_three_channels(
    tmp_path_factory: pytest.TempPathFactory, mean: list[float], std: list[float]
) -> None:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    tensors = {**PDN("pdn_tiny", 3).state_dict(), "input_mean": torch.tensor(mean)}
    tensors["input_std"] = torch.tensor(std)
    safetensors.torch.save_file(tensors, path, metadata=ABOUT_TINY)
    grey = textured_frame(60, 72, 1)
    grey[:30] = 255  # the extremes of brightness too
    grey[30:36] = 0
    torch.testing.assert_close(
        features(path, grey), features(path, grey.repeat(3, axis=2)), rtol=1e-5, atol=1e-5
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "new" / "teacher.safetensors"
    steps: list[tuple[int, int]] = []
    train_teacher_file("pdn_tiny", out, QUICK, progress=lambda *now: steps.append(now))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    return out


def test_the_same_seed_gives_the_same_file(trained: Path, tmp_path: Path) -> None:
    again = train_teacher_file("pdn_tiny", tmp_path / "again.safetensors", QUICK)
    assert again.read_bytes() == trained.read_bytes()
    note = json.loads(trained.with_suffix(".json").read_text())
    assert note["settings"]["steps"] == 3
    assert "--steps 3" in note["made_by"]


def test_another_seed_gives_another(trained: Path) -> None:
    net, _ = train_teacher("pdn_tiny", TeacherSettings(5, 3, 2, 64, 16))
    assert not torch.equal(net.get_parameter("conv1.weight"), load(trained, "conv1.weight"))


def load(path: Path, name: str) -> torch.Tensor:
    return load_teacher(path, 3).net.get_parameter(name)


def test_training_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train_teacher("pdn_tiny", QUICK)
    assert torch.equal(torch.rand(3), expected)


def test_outputs_have_unit_size_on_pictures(trained: Path) -> None:
    shots = [
        photograph(rng, draw(rng, 96)) for rng in (np.random.default_rng(k) for k in range(40))
    ]
    values = torch.stack([features(trained, shot) for shot in shots])
    assert abs(float(values.mean())) < 0.5
    assert 0.4 < float(values.std()) < 2


@pytest.mark.parametrize("variant", ["pdn_tiny", "pdn_small"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_builtin_teacher_sees_defects_rather_than_light(variant: str, channels: int) -> None:
    teacher = load_builtin_teacher(variant, channels)
    assert teacher.licence.startswith("part of linewatch")
    assert teacher.identity.startswith(f"linewatch-{variant}-")
    separated = []
    for seed in range(40):
        rng = np.random.default_rng([99, seed])
        picture = draw(rng, 128)
        spoiled, taken = spoil(rng, picture, 8)
        shots = np.stack([photograph(rng, scene) for scene in (picture, picture, spoiled)])
        x = torch.from_numpy(shots[..., :channels]).permute(0, 3, 1, 2).float() / 255
        x = (x - teacher.input_mean[:, None, None]) / teacher.input_std[:, None, None]
        with torch.inference_mode():
            one, two, three = teacher.net(x)
        # Cells whose centre is in a defect, against all cells with nothing near.
        at = taken[16:-16:4, 16:-16:4] > 0
        if not at.any():
            continue
        light = ((one - two) ** 2).mean(dim=0).numpy()
        defect = ((one - three) ** 2).mean(dim=0).numpy()
        separated.append(np.median(defect[at]) > 1.5 * np.median(light))
    assert len(separated) >= 20
    assert np.mean(separated) > 0.75


def test_every_shipped_teacher_says_how_it_was_made() -> None:
    folder = Path(__file__).parents[2] / "models" / "weights"
    files = sorted(folder.glob("*.safetensors"))
    assert files
    assert sum(path.stat().st_size for path in files) < 15e6
    for path in files:
        note = json.loads(path.with_suffix(".json").read_text())
        teacher = load_teacher(path, 3)
        assert teacher.identity.endswith(note["sha256"][:12])
        assert note["variant"] == teacher.net.variant
        assert {"made_by", "seed", "steps", "torch", "licence"} <= note.keys()


def test_what_is_no_teacher(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected one of"):
        load_builtin_teacher("pdn_medium", 1)
    with pytest.raises(DataError, match="unreadable"):
        load_teacher(tmp_path / "absent.safetensors", 1)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(trained.read_bytes()[:200])
    with pytest.raises(DataError, match="not safetensors"):
        load_teacher(broken, 1)
    tensors = safetensors.torch.load_file(trained)
    safetensors.torch.save_file(tensors, broken)
    with pytest.raises(DataError, match="expected a teacher of"):
        load_teacher(broken, 1)
    safetensors.torch.save_file(tensors, broken, metadata={"about": '{"variant": "pdn_small"}'})
    with pytest.raises(DataError, match="not a pdn_small"):
        load_teacher(broken, 3)
