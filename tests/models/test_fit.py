"""A killed training goes on as if it had not been killed, keeps its best, and stops on nonsense."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from models.checkpoint import FORMAT, load_state, save_state
from models.compute import one_cycle
from models.efficientad import StudentTeacher
from models.errors import DataError
from models.fit import Companions, fit_student
from models.settings import TrainingSettings
from models.tiles import TileSet, build_tiles
from models.untrained import textured_frame, untrained_model

SETTINGS = TrainingSettings(steps=12, batch=2, crop_px=64, validations=3)

TRAIN = """
import sys
from pathlib import Path
import torch
from models import fit
from models.settings import TrainingSettings
from models.training import train
fit.SAVE_SECONDS = 0.0
torch.set_num_threads(1)
images, states, out, steps = sys.argv[1:5]
settings = TrainingSettings(
    scales=(1, 2), steps=int(steps), batch=2, crop_px=64, tile=128, validations=2
)
def tell(what, done, total):
    print(what, done, flush=True)
trained = train(
    sorted(Path(images).iterdir()), settings=settings, state_dir=Path(states), resume=True,
    progress=tell,
)
torch.save({"model": trained.model.state_dict(), "losses": trained.losses,
            "q": [trained.q_a, trained.q_b]}, out)
"""


def images(folder: Path, count: int = 5) -> list[Path]:
    folder.mkdir()
    for k in range(count):
        cv2.imwrite(str(folder / f"{k}.png"), textured_frame(150, 170, 1, seed=k))
    return sorted(folder.iterdir())


def pair_and_tiles(tmp_path: Path) -> tuple[StudentTeacher, TileSet]:
    torch.manual_seed(0)
    return untrained_model("pdn_tiny", 1).pair(1), build_tiles(images(tmp_path / "good"), 1)


def test_killed_and_resumed_is_as_not_killed(tmp_path: Path) -> None:
    good = tmp_path / "good"
    images(good)

    def start(states: str, out: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", TRAIN, str(good), str(tmp_path / states)]
        return subprocess.Popen(
            [*command, str(tmp_path / out), "24"], stdout=subprocess.PIPE, text=True
        )

    whole = start("a", "whole.pt")
    assert whole.communicate()[0]
    assert whole.returncode == 0
    kills = 0
    for stop_at in (5, 30):
        victim = start("b", "resumed.pt")
        assert victim.stdout is not None
        for line in victim.stdout:
            what, _, done = line.strip().rpartition(" ")
            if what.startswith("train student") and int(done) >= stop_at:
                os.kill(victim.pid, signal.SIGKILL)
                kills += 1
                break
        victim.wait()
        victim.stdout.close()
    assert kills == 2
    last = start("b", "resumed.pt")
    told = last.communicate()[0].splitlines()
    assert last.returncode == 0
    steps = [int(line.rpartition(" ")[2]) for line in told if line.startswith("train student")]
    assert len(steps) < 40  # of 48: it did go on
    first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("whole", "resumed"))
    assert first["losses"] == second["losses"]
    assert first["q"] == second["q"]
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name


@pytest.mark.parametrize(("optimiser", "one_cycle"), [("muon", True), ("adam", False)])
def test_state_goes_on_with_either_optimiser(
    tmp_path: Path, optimiser: str, one_cycle: bool
) -> None:
    settings = replace(
        SETTINGS,
        optimiser=optimiser,
        one_cycle=one_cycle,
        accumulate=2,
        penalty=0.5,
        learning_rate=1e-3,
    )
    path = tmp_path / "s.state"

    tiles = build_tiles(images(tmp_path / "good"), 1)

    def run(stop_at: int | None) -> tuple[StudentTeacher, list[float]]:
        model = untrained_model("pdn_tiny", 1).pair(1)
        validations = iter([0.5, 0.9, 0.7])

        def validate(_: StudentTeacher) -> float:
            return next(validations)

        def watch(step: int, loss: float, auroc: float) -> None:
            if step == stop_at:
                raise KeyboardInterrupt

        fit = fit_student(model, tiles, settings, Companions(watch, validate, path, "key"))
        return model, fit.losses

    expected, losses = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(5)  # a validation was due after 4, and the next loss bore its state out
    state = load_state(path, "key")
    assert state is not None
    assert state["step"] == 4

    # The validations before the stop are in the state: the rest is what comes now.
    model = untrained_model("pdn_tiny", 1).pair(1)
    rest = iter([0.9, 0.7])
    companions = Companions(None, lambda _: next(rest), path, "key", resume=True)
    fit = fit_student(model, tiles, settings, companions)
    assert fit.losses == losses
    assert [point.auroc for point in fit.curve] == [0.5, 0.9, 0.7]
    assert fit.kept_step == 8
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_the_best_is_kept_not_the_last(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    values = iter([0.6, 0.8, 0.7])

    def validate(model: StudentTeacher) -> float:
        seen.append(model.student.conv1.weight.detach().clone())
        return next(values)

    model, tiles = pair_and_tiles(tmp_path)
    fit = fit_student(model, tiles, SETTINGS, Companions(validate=validate))
    assert [point.step for point in fit.curve] == [4, 8, 12]
    assert fit.kept_step == 8
    assert torch.equal(model.student.conv1.weight, seen[1])
    assert not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("validations", [0, 1, 5, 12, 100])
def test_validations_are_as_many_as_asked(tmp_path: Path, validations: int) -> None:
    model, tiles = pair_and_tiles(tmp_path)
    settings = replace(SETTINGS, validations=validations)
    fit = fit_student(model, tiles, settings, Companions(validate=lambda _: 0.5))
    assert len(fit.curve) == min(validations, settings.steps)
    assert fit.kept_step == settings.steps


def test_nonsense_stops_it_and_the_state_before_stays(tmp_path: Path) -> None:
    model, tiles = pair_and_tiles(tmp_path)
    path = tmp_path / "s.state"

    def poison(step: int, loss: float, auroc: float) -> None:
        assert math.isfinite(loss)
        if step == 5:
            with torch.no_grad():
                model.student.conv2.weight.fill_(math.nan)

    with pytest.raises(DataError, match=r"loss nan .* found at step 6.*learning rate"):
        fit_student(model, tiles, SETTINGS, Companions(poison, lambda _: 0.5, path, "key"))
    state = load_state(path, "key")
    assert state is not None
    assert state["step"] == 4
    assert all(torch.isfinite(tensor).all() for tensor in state["student"].values())


def test_a_state_that_no_loss_has_borne_out_is_not_written(tmp_path: Path) -> None:
    model, tiles = pair_and_tiles(tmp_path)
    path = tmp_path / "s.state"
    said = iter([0.5, 0.6])

    def validate(found: StudentTeacher) -> float:
        value = next(said)
        if value == 0.6:  # after step 8, before its state
            with torch.no_grad():
                found.student.conv4.bias.fill_(math.inf)
        return value

    named = r"found at step 9.*go on with --resume: .*s\.state is the state of 4"
    with pytest.raises(DataError, match=named):
        fit_student(model, tiles, SETTINGS, Companions(None, validate, path, "key"))
    state = load_state(path, "key")
    assert state is not None
    assert state["step"] == 4


def test_a_gradient_that_overflows_is_not_followed(tmp_path: Path) -> None:
    model, tiles = pair_and_tiles(tmp_path)
    hook = model.student.conv4.bias.register_hook(lambda gradient: gradient * math.inf)
    before = model.student.conv4.weight.detach().clone()
    with pytest.raises(DataError, match=r"with a gradient of (nan|inf) found at step 1 "):
        fit_student(model, tiles, SETTINGS)
    hook.remove()
    assert torch.equal(model.student.conv4.weight, before)


@pytest.mark.parametrize(("optimiser", "one_cycle"), [("muon", True), ("adam", False)])
def test_what_diverged_goes_on_with_another_learning_rate(
    tmp_path: Path, optimiser: str, one_cycle: bool
) -> None:
    path = tmp_path / "s.state"
    model, tiles = pair_and_tiles(tmp_path)
    settings = replace(SETTINGS, optimiser=optimiser, one_cycle=one_cycle, decay_at=0.5)
    settings = replace(settings, learning_rate=1e-3)

    def run(learning_rate: float, stop_at: int | None = None) -> dict[str, Any]:
        def watch(step: int, loss: float, auroc: float) -> None:
            if step == stop_at:
                raise KeyboardInterrupt

        chosen = replace(settings, learning_rate=learning_rate)
        companions = Companions(watch, lambda _: 0.5, path, "key", resume=stop_at is None)
        fit_student(model, tiles, chosen, companions)
        state = load_state(path, "key")
        assert state is not None
        return state

    with pytest.raises(KeyboardInterrupt):
        run(1e-3, stop_at=5)
    kept = path.read_bytes()
    as_before = run(1e-3)
    path.write_bytes(kept)
    lower = run(1e-4)
    assert as_before["fit"]["rates"] == [(0, 1e-3)]
    assert lower["fit"]["rates"] == [(0, 1e-3), (4, 1e-4)]
    rates = [state["optimiser"]["param_groups"][0]["lr"] for state in (as_before, lower)]
    assert rates[1] == pytest.approx(rates[0] / 10)
    assert as_before["fit"]["losses"][:4] == lower["fit"]["losses"][:4]
    assert as_before["fit"]["losses"] != lower["fit"]["losses"]


def test_the_rate_drops_once(tmp_path: Path) -> None:
    path = tmp_path / "s.state"
    model, tiles = pair_and_tiles(tmp_path)
    settings = replace(
        SETTINGS, optimiser="adam", one_cycle=False, decay_at=0.3, learning_rate=1e-3, validations=1
    )
    fit_student(model, tiles, settings, Companions(state=path, key="key"))
    state = load_state(path, "key")
    assert state is not None
    assert state["optimiser"]["param_groups"][0]["lr"] == pytest.approx(1e-4)


def test_a_state_of_something_else_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "s.state"
    assert load_state(path, "key") is None
    save_state(path, "key", {"step": 3})
    assert load_state(path, "key") == {"format": FORMAT, "key": "key", "step": 3}
    assert load_state(path, "other") is None
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"", whole[:100], b"no state", whole[:-200], bytes(flipped)):
        path.write_bytes(damaged)
        assert load_state(path, "key") is None


def test_what_a_killed_writer_left_is_swept_up(tmp_path: Path) -> None:
    path = tmp_path / "s.state"
    left, of_another = tmp_path / ".s.state-half", tmp_path / ".t.state-half"
    for each in (left, of_another):
        each.write_bytes(b"half")
    save_state(path, "key", {"step": 3})
    assert sorted(tmp_path.iterdir()) == [of_another, path]


def test_no_room_for_a_state_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="cannot be written"):
        save_state(tmp_path / "file" / "s.state", "key", {"step": 1})


RANKS = """
import os, signal, sys, torch
from pathlib import Path
from torch import distributed
from models import fit
from models.settings import TrainingSettings
from models.training import train
fit.SAVE_STEPS = 1
torch.set_num_threads(1)
distributed.init_process_group("gloo")
rank = distributed.get_rank()
images, out, die_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def tell(what, done, total):
    if rank == 1 and what.startswith("train student") and done == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
settings = TrainingSettings(steps=6, batch=2, crop_px=64, tile=128, validations=0)
trained = train(sorted(images.iterdir()), settings=settings, state_dir=out / "states",
                resume=True, progress=tell)
torch.save([trained.model.state_dict(), trained.losses, trained.fits[1].resumed_at],
           out / f"{rank}.pt")
distributed.destroy_process_group()
"""


def test_two_processes_have_one_student_and_one_state(tmp_path: Path) -> None:
    images(tmp_path / "good")
    program = tmp_path / "ranks.py"
    program.write_text(RANKS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    meeting = ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]

    def go(out: str, die_at: int) -> int:
        (tmp_path / out).mkdir(exist_ok=True)
        told = [str(tmp_path / "good"), str(tmp_path / out), str(die_at)]
        return subprocess.run(
            [*launcher, *meeting, str(program), *told],
            capture_output=True,
            check=False,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        ).returncode

    def found(out: str) -> list[list[Any]]:
        return [torch.load(tmp_path / out / f"{rank}.pt") for rank in (0, 1)]

    assert go("whole", 0) == 0
    assert go("killed", 4) != 0
    assert not (tmp_path / "killed" / "0.pt").exists()
    assert go("killed", 0) == 0
    (first, losses, _), (second, same, _) = found("whole")
    assert losses == same
    (_, resumed, step), (other, _, same_step) = found("killed")
    assert 3 <= step == same_step <= 4
    assert resumed == losses
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(("steps", "rising"), [(1, 0.1), (2, 0.1), (10, 0.1), (20, 0.05)])
def test_a_cycle_of_any_length(steps: int, rising: float) -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = one_cycle(optimiser, 0.5, steps, rising=rising)
    rates = []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        if len(rates) < steps:
            schedule.step()
    assert np.isfinite(rates).all()
    assert 0 < max(rates) <= 0.5
