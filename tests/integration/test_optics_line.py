"""Whole lines whose lens, lamp or camera change while they run: `invalid/optics`, and when.

One line replays a folder of frames for each fault, with a bundle that was calibrated on good
frames of the same camera. Its networks have learned nothing: what is shown is the guard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from calibrate.calibration import calibrate
from models.untrained import untrained_bundle
from pipeline.config import LineConfig, Recipe, WorkerConfig
from pipeline.config.optics import OpticsConfig
from pipeline.config.sources import FolderSource
from pipeline.replay import Replay, replay, replay_config, result_line
from pipeline.sources.synthetic import SyntheticLine
from pipeline.station import Station
from pipeline.types import Label, Reason, Verdict

Frame = NDArray[np.uint8]
Fault = Callable[[Frame], Frame]

WIDTH, HEIGHT = 240, 192
"""Too small for a stamp, whose white pixels would tell of every blur."""
FRAMES, BEGIN, END = 60, 16, 36
"""The fault is there in frames with ids over BEGIN, up to END."""
AVERAGE = 8
NOTICED = 12
"""Frames in which a fault of two and a half times calibration's limit is noticed, by an average of
8: 1 - (7/8)^12 = 0.8 of it is over 2."""
FORGOTTEN = 13
"""Frames in which the average of the greatest deviation there is, 8, comes back under 1.6."""


def blurred(frame: Frame) -> Frame:
    return np.asarray(cv2.GaussianBlur(frame, (0, 0), 1.2), np.uint8)[..., None]


def dimmed(frame: Frame) -> Frame:
    return np.asarray(frame * 0.75, np.uint8)


def shifted(frame: Frame) -> Frame:
    return np.roll(frame, (-20, 26), (0, 1))


def dusty(frame: Frame) -> Frame:
    """A soft, grey spot that lies on the lens."""
    spot = cv2.circle(np.zeros((HEIGHT, WIDTH), np.float32), (200, 110), 26, 0.6, -1)
    spot = np.asarray(cv2.GaussianBlur(spot, (0, 0), 8), np.float32)
    return np.asarray(frame * (1 - spot[..., None]), np.uint8)


def black(frame: Frame) -> Frame:
    return np.zeros_like(frame)


def strange(frame: Frame) -> Frame:
    return frame[::-1, ::-1] // 2 + 60


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    fault: Fault
    sentence: str
    end: int = END
    watch: str = "invalid"


CASES = (
    Case("good", lambda frame: frame, ""),
    Case("blurred", blurred, "out of focus"),
    Case("dimmed", dimmed, "lamp"),
    Case("shifted", shifted, "camera, lens or fixture were moved"),
    Case("dusty", dusty, "dirt"),
    Case("black", black, "the picture is dark", end=BEGIN + 3),
    Case("odd", strange, "", end=BEGIN + 1),
    Case("warned", dimmed, "lamp", watch="warn"),
    Case("off", dimmed, "", watch="off"),
)
CAMERA = {case.name: f"cam{number}" for number, case in enumerate(CASES)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibrated with good frames from all over the lamp's drift."""
    work = tmp_path_factory.mktemp("bundle")
    scene = SyntheticLine(WIDTH, HEIGHT, defect_share=0.0)
    good = [scene.render(5 * number)[0] for number in range(60)]
    return calibrate(untrained_bundle(work / "plain"), good, runtimes=["torch"], out_dir=work)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    work = tmp_path_factory.mktemp("frames")
    scene = SyntheticLine(WIDTH, HEIGHT, defect_share=0.0)
    frames = [scene.render(1000 + number)[0] for number in range(FRAMES)]
    for case in CASES:
        (work / case.name).mkdir()
        for number, frame in enumerate(frames):
            seen = case.fault(frame) if BEGIN <= number < case.end else frame
            cv2.imwrite(str(work / case.name / f"{number:04d}.png"), seen)
    return {case.name: work / case.name for case in CASES}


def line_of(
    work: Path, bundle: Path, folders: dict[str, Path], cases: Sequence[Case] = CASES
) -> LineConfig:
    config = replay_config(
        [FolderSource(kind="folder", path=str(folders[case.name])) for case in cases],
        work,
        worker=WorkerConfig(bundle=str(bundle), runtime="torch", precision="f32", threads=1),
    )
    cameras = dict(config.cameras)
    for case in cases:
        optics = OpticsConfig.model_validate({"watch": case.watch, "average_frames": AVERAGE})
        name = CAMERA[case.name]
        cameras[name] = cameras[name].model_copy(update={"recipe": Recipe(optics=optics)})
    return config.model_copy(update={"cameras": cameras})


@dataclass(frozen=True, slots=True)
class Seen:
    config: LineConfig
    replay: Replay
    log: str

    def of(self, name: str) -> list[Verdict]:
        return [each for each in self.replay.verdicts if each.camera == CAMERA[name]]

    def logged(self, name: str) -> list[str]:
        mark = f"camera {CAMERA[name]}: optics"
        return [line for line in self.log.splitlines() if mark in line]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, bundle: Path, folders: dict[str, Path]) -> Seen:
    config = line_of(tmp_path_factory.mktemp("line"), bundle, folders)
    found = replay(config)
    log = (Station.of(config).state_dir / "log" / "decision.log").read_text()
    return Seen(config, found, log)


def optics(verdicts: list[Verdict]) -> list[int]:
    return [each.frame_id for each in verdicts if each.reason is Reason.OPTICS]


def fails(verdicts: list[Verdict], begin: int, end: int) -> int:
    return sum(each.label is Label.FAIL for each in verdicts[begin:end])


def test_every_frame_has_its_verdict(seen: Seen) -> None:
    assert seen.replay.fault is None
    for case in CASES:
        assert [each.frame_id for each in seen.of(case.name)] == list(range(1, FRAMES + 1))
        assert {each.reason for each in seen.of(case.name)} <= {
            Reason.OK,
            Reason.DEFECT,
            Reason.OPTICS,
        }


@pytest.mark.parametrize("name", ["blurred", "dimmed", "shifted", "dusty"])
def test_a_fault_makes_frames_invalid_until_it_is_gone(seen: Seen, name: str) -> None:
    verdicts = seen.of(name)
    found = optics(verdicts)
    assert BEGIN < found[0] <= BEGIN + NOTICED
    assert END < found[-1] + 1 <= END + FORGOTTEN
    # One run, without a verdict between that the picture does not deserve.
    assert all(after == before + 1 for before, after in pairwise(found))
    for each in verdicts:
        if each.reason is Reason.OPTICS:
            assert (each.label, each.defects, each.image_score) == (Label.INVALID, (), 0.0)
    # What was judged before the fault was noticed is no run of rejects.
    assert fails(verdicts, BEGIN, found[0] - 1) <= 2
    [case] = [case for case in CASES if case.name == name]
    logged = seen.logged(name)
    assert any(case.sentence in line for line in logged), logged
    assert "as calibrated again" in logged[-1]
    assert any(case.sentence in each.detail for each in verdicts)


def test_a_picture_that_is_gone_is_invalid_at_once(seen: Seen) -> None:
    found = optics(seen.of("black"))
    assert found[:3] == [BEGIN + 1, BEGIN + 2, BEGIN + 3]
    assert len(found) <= 3 + FORGOTTEN
    assert any("the picture is dark" in line for line in seen.logged("black"))


@pytest.mark.parametrize("name", ["good", "odd"])
def test_good_frames_and_a_single_odd_one_are_no_matter_of_the_optics(
    seen: Seen, name: str
) -> None:
    assert not optics(seen.of(name))


def test_where_it_only_warns_verdicts_stay(seen: Seen) -> None:
    assert not optics(seen.of("warned"))
    assert any("lamp" in line for line in seen.logged("warned"))


def test_where_it_is_off_nothing_is_said(seen: Seen) -> None:
    assert not optics(seen.of("off"))
    assert not [line for line in seen.logged("off") if "not watched" not in line]
    warned, off = (
        [(each.label, each.raw_peak, each.image_score) for each in seen.of(name)]
        for name in ("warned", "off")
    )
    assert warned == off


def test_a_second_replay_gives_the_same(
    seen: Seen, tmp_path: Path, bundle: Path, folders: dict[str, Path]
) -> None:
    some = CASES[:4]
    again = replay(line_of(tmp_path, bundle, folders, some)).verdicts
    before = [verdict for case in some for verdict in seen.of(case.name)]
    assert list(map(result_line, again)) == list(map(result_line, before))
