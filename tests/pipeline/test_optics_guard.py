"""What the optics guard must notice, how soon, and what it must leave alone: on rendered frames."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config.optics import OpticsConfig
from pipeline.errors import ConfigError, DataError
from pipeline.optics.guard import FINE, Level, OpticsGuard, Sight, open_guard
from pipeline.optics.measure import OpticsLimits, learn, measure
from pipeline.sources.synthetic import SyntheticLine

Frame = NDArray[np.uint8]
Change = Callable[[Frame], Frame]
WIDTH, HEIGHT = 640, 480
PATIENCE = 100


@cache
def line() -> SyntheticLine:
    return SyntheticLine(WIDTH, HEIGHT, seed=5, defect_share=1.0)


@cache
def limits() -> OpticsLimits:
    scores = np.random.default_rng(0).gamma(4, 0.01, 200)
    good = [measure(line().render(7 * k, good=True)[0]) for k in range(40)]
    return learn(good, {"torch/f32": scores.tolist()})


@cache
def frames() -> Sequence[Frame]:
    """Good ones that the limits have not seen."""
    return [line().render(2000 + 9 * k, good=True)[0] for k in range(20)]


def see(
    change: Change | None = None,
    guard: OpticsGuard | None = None,
    count: int = PATIENCE,
    over: Iterable[Frame] | None = None,
) -> list[Sight]:
    guard = guard or OpticsGuard(limits(), OpticsConfig())
    some = list(over or frames())
    shown = [measure(change(frame) if change else frame) for frame in some]
    return [guard.see(shown[k % len(some)]) for k in range(count)]


def noisy(frame: NDArray[np.float32]) -> Frame:
    """As the rendered sensor: noise comes after the lens."""
    spread = np.sqrt(0.028 * np.maximum(frame, 0) + 1.56)
    noise = np.random.default_rng(1).standard_normal(frame.shape, np.float32)
    return np.clip(np.rint(frame + spread * noise), 0, 255).astype(np.uint8)


def blurred(sigma: float) -> Change:
    def change(frame: Frame) -> Frame:
        return noisy(cv2.GaussianBlur(frame.astype(np.float32), (0, 0), sigma)[..., None])

    return change


def dimmed(share: float) -> Change:
    return lambda frame: np.rint(frame * (1 - share)).astype(np.uint8)


def moved(dx: float, dy: float, degrees: float = 0.0) -> Change:
    def change(frame: Frame) -> Frame:
        turn = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), degrees, 1.0)
        turn[:, 2] += dx, dy
        size = (WIDTH, HEIGHT)
        return cv2.warpAffine(frame, turn, size, borderMode=cv2.BORDER_REFLECT_101)[..., None]  # type: ignore[no-any-return]

    return change


def dusty(radius: float, share: float) -> Change:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    far = (x - 200) ** 2 + (y - 300) ** 2
    shade = 1 - share * np.exp(-far / (2 * radius**2))
    return lambda frame: np.rint(frame * shade[..., None]).astype(np.uint8)


def test_good_frames_and_defective_ones_are_fine() -> None:
    assert see() == [FINE] * PATIENCE
    defective = [line().render(2000 + 9 * k)[0] for k in range(20)]
    assert see(over=defective) == [FINE] * PATIENCE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (blurred(2.0), "out of focus"),
        (blurred(3.0), "out of focus"),
        (dimmed(0.2), "lamp"),
        (dimmed(0.4), "lamp"),
        (dimmed(0.6), "lamp"),
        (moved(20, 0), "to the right"),
        (moved(-40, 12), "to the left"),
        (moved(0, 25), "down"),
        (moved(0, 0, 6.0), "the picture"),
        (dusty(30, 0.3), "dirt"),
        (dusty(80, 0.2), "dirt"),
        (lambda frame: np.rint(frame * 0.7 + 40).astype(np.uint8), "mist"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_lasting_fault_warns_first_and_says_why(change: Change, words: str) -> None:
    levels = see(change)
    first = next(k for k, sight in enumerate(levels) if sight.level is not Level.OK)
    assert 1 <= first < 40
    assert levels[first].level is Level.WARNING
    assert any(words in sight.sentence for sight in levels)
    # It stays, and gets no better by itself.
    assert all(sight.level is not Level.OK for sight in levels[first:])


@pytest.mark.parametrize(
    "change",
    [blurred(3.0), dimmed(0.4), moved(40, 0), dusty(80, 0.4)],
    ids=["blurred", "dimmed", "moved", "dusty"],
)
def test_a_grave_fault_ends_invalid(change: Change) -> None:
    assert see(change)[-1].level is Level.INVALID


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (np.zeros_like, "dark"),
        (lambda frame: noisy(np.full(frame.shape, 2, np.float32)), "dark"),
        (dimmed(0.9), "dark"),
        (lambda frame: np.full_like(frame, 255), "empty"),
        (lambda frame: np.full_like(frame, 90), "empty"),
        (lambda frame: cv2.GaussianBlur(frame, (0, 0), 12)[..., None], "blurred"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_picture_that_is_gone_is_invalid_at_once(change: Change, words: str) -> None:
    guard = OpticsGuard(limits(), OpticsConfig())
    assert guard.see(measure(frames()[0])) == FINE
    gone = guard.see(measure(change(frames()[1])))
    assert gone.level is Level.INVALID
    assert words in gone.sentence
    assert guard.see(measure(frames()[2])) == FINE  # one frame alone, and it is over


def test_a_blank_picture_of_a_plain_scene_is_empty_and_not_blurred() -> None:
    def plain(k: int) -> NDArray[np.uint8]:
        frame = np.full((256, 256, 1), 255, np.uint8)
        cv2.circle(frame, (40 + 9 * k, 128), 8, 0, -1)  # too little for the spread
        return frame

    guard = OpticsGuard(learn([measure(plain(k)) for k in range(20)]), OpticsConfig())
    assert guard.see(measure(plain(3))) == FINE
    gone = guard.see(measure(np.full((256, 256, 1), 255, np.uint8)))
    assert gone.level is Level.INVALID
    assert "empty: no pixel differs" in gone.sentence


def test_one_odd_frame_in_ten_is_no_matter() -> None:
    guard = OpticsGuard(limits(), OpticsConfig())
    for k in range(100):
        change = dimmed(0.4) if k % 10 == 5 else dimmed(0.0)
        assert guard.see(measure(change(frames()[k % 20]))) == FINE


def test_a_lamp_that_flickers_as_it_did_for_calibration_is_fine() -> None:
    def flicker(k: int) -> Change:
        return dimmed(0.15 * (k % 3 == 0))

    own = learn([measure(flicker(k)(line().render(7 * k, good=True)[0])) for k in range(40)])
    guard = OpticsGuard(own, OpticsConfig())
    assert all(guard.see(measure(flicker(k)(frames()[k % 20]))) == FINE for k in range(60))


def test_it_recovers_when_the_lens_is_clean_again() -> None:
    guard = OpticsGuard(limits(), OpticsConfig())
    assert see(dusty(80, 0.4), guard)[-1].level is Level.INVALID
    after = see(None, guard)
    assert [after[0].level, after[-1].level] == [Level.INVALID, Level.OK]
    seen = [sight.level for sight in after]
    assert seen == sorted(seen, reverse=True)


def test_it_does_not_flutter_at_its_limit() -> None:
    guard = OpticsGuard(limits(), OpticsConfig(average_frames=5))
    levels = [sight.level for sight in see(dimmed(0.13), guard, 200)]
    changes = sum(a is not b for a, b in itertools.pairwise(levels))
    assert changes <= 6


@pytest.mark.parametrize(("watch", "most"), [("off", Level.OK), ("warn", Level.WARNING)])
def test_what_is_watched_is_configured(watch: str, most: Level) -> None:
    config = OpticsConfig.model_validate({"watch": watch})
    for change in (dimmed(0.6), dimmed(0.95)):
        found = see(change, OpticsGuard(limits(), config), 40)
        assert max(sight.level for sight in found) is most


def test_limits_of_the_recipe_move_the_levels() -> None:
    wide = OpticsConfig(warn_at=3.0, invalid_at=6.0)
    assert see(dimmed(0.2), OpticsGuard(limits(), wide)) == [FINE] * PATIENCE
    quick = OpticsConfig(average_frames=1)
    assert see(dimmed(0.3), OpticsGuard(limits(), quick), 1)[0].level is not Level.OK


@pytest.mark.parametrize(("factor", "words"), [(2.0, "higher"), (0.3, "lower")])
def test_scores_that_drift_warn_in_time(factor: float, words: str) -> None:
    rng = np.random.default_rng(3)
    guard = OpticsGuard(limits(), OpticsConfig(), "torch/f32")
    shown = [measure(frame) for frame in frames()]
    for k in range(500):
        assert guard.see(shown[k % 20], float(rng.gamma(4, 0.01))) == FINE
    found = [guard.see(shown[k % 20], factor * float(rng.gamma(4, 0.01))) for k in range(400)]
    assert found[-1].level is not Level.OK
    assert words in found[-1].sentence
    # Scores of another engine are another matter; frames that fail do not count.
    other = OpticsGuard(limits(), OpticsConfig(), "openvino/int8")
    assert all(other.see(shown[k % 20], 9.0) == FINE for k in range(50))
    third = OpticsGuard(limits(), OpticsConfig(), "torch/f32")
    assert all(third.see(shown[k % 20], None) == FINE for k in range(50))


def test_opened_by_what_the_calibration_holds() -> None:
    found = {"left": limits().plain()}
    size = (HEIGHT, WIDTH)
    guard, why = open_guard(found, "left", size, OpticsConfig(), "torch/f32")
    assert guard is not None
    assert not why
    assert open_guard({"": limits().plain()}, "left", size, OpticsConfig())[0] is not None
    for known, camera, hw, config, words in (
        ({}, "left", size, OpticsConfig(), "no limits"),
        (found, "right", size, OpticsConfig(), "no limits"),
        (found, "left", (HEIGHT, WIDTH + 8), OpticsConfig(), "not of 648x480"),
        (found, "left", size, OpticsConfig(watch="off"), "the recipe says so"),
    ):
        nobody, why = open_guard(known, camera, hw, config)
        assert nobody is None
        assert words in why
    with pytest.raises(ConfigError, match="calibrate again"):
        open_guard({"left": {"images": 3}}, "left", size, OpticsConfig())


def test_a_frame_of_another_size_is_an_error() -> None:
    with pytest.raises(DataError, match="expected 640x480"):
        OpticsGuard(limits(), OpticsConfig()).see(measure(np.zeros((480, 600, 1), np.uint8)))


@pytest.mark.parametrize("config", [{"invalid_at": 0.5}, {"warn_at": 3.0}, {"average_frames": 0}])
def test_configurations_without_sense_are_refused(config: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        OpticsConfig.model_validate(config)
