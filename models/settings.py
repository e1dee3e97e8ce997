"""What decides a detector, beside its images and its teacher: one definition for code and files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from models.augment import Augmentation, check_augmentation
from models.errors import DataError
from models.masks import MASKS
from models.tiles import INCOMPLETE
from models.variants import ALLOWED_SCALES, RECEPTIVE_FIELD_PX

BEGINNINGS = ("teacher", "random")


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What decides a detector, beside its images and its teacher."""

    scales: tuple[int, ...] = (1,)
    """At which the frame is looked at: 2 sees faint wide defects and costs a quarter of 1."""
    steps: int = 3000
    """At each scale."""
    epochs: float = 0.0
    """Over 0: as many steps as show each tile so often (in each process), instead of `steps`."""
    batch: int = 4
    """Crops in each step."""
    begin: str = "teacher"
    """The student's first state: the teacher's (`models.student`), or `random` as in the paper."""
    accumulate: int = 1
    """Batches whose gradients are averaged for one step; they run side by side where they can."""
    crop_px: int = 128
    learning_rate: float = 8e-3
    """At its highest. The paper's 1e-4 is for 70,000 steps; README.md beside this file has more."""
    optimiser: str = "muon"
    """Or `adam`, the paper's."""
    max_gradient: float = 1.0
    """With `adam`: the gradient's norm is cut down to this; 0: as it is, as in the paper."""
    one_cycle: bool = True
    """Raise and lower the learning rate in one cycle; otherwise as in the paper, see decay_at."""
    weight_decay: float = 1e-5
    decay_at: float = 0.95
    """Share of the steps after which the learning rate is a tenth."""
    hard_quantile: float = 0.99
    """The loss is the mean of this quantile's upper share of the squared differences."""
    hard_weight: float = 0.1
    mean_weight: float = 1.0
    spoiled: float = 0.5
    """Share of the crops with drawn defects; 0 leaves the good cells' losses alone."""
    revisited: float = 0.5
    """Share of the crops that come back to the hardest good places."""
    margin: float = 0.5
    """Raw map value between good cells and drawn defects."""
    good_weight: float = 3.0
    """Of the good cells' logistic loss; the defects' has 1."""
    augment: Augmentation = field(default_factory=Augmentation)
    penalty: float = 0.0
    """Weight of the student's own output on pictures of nothing (the paper's equation 4)."""
    validations: int = 5
    """How often each student is validated on the way; its best state is kept. 0: the last is."""
    precedents: bool = False
    """Look suspicions up among the training images: for boards and prints, that repeat exactly."""
    wide_view: bool = False
    """Weigh the map by a network that sees 200 px, taught by drawn defects: for what only its
    surroundings tell from good structure, and for faint wide defects."""
    wide_scales: tuple[int, ...] = (1,)
    """2: of the frame at half its size, where it sees 400 px: for textures and their shades. Both:
    a network for each."""
    wide_steps: int = 1500
    """Of each network."""
    wide_crop_px: int = 192
    global_branch: bool = False
    """Look at the whole frame at 256x256 too: for what is missing, misplaced or too much."""
    global_steps: int = 2000
    map_channels: int = 0
    """Directions of the difference that make up the map (`models.rotation`); 0: all. With 96 of
    pdn_small's 384 a CPU needs three quarters of the time."""
    held_out: float = 0.2
    q_a: float = 0.9
    q_b: float = 0.995
    tile: int = 256
    stride: int = 0
    """Between tiles; 0: side by side."""
    incomplete: str = "shifted"
    """Tiles that would end beyond the frame: `shifted` inwards, or `left_out`."""
    mask: str = "none"
    """How the object is told from the background (`models.masks`): only its tiles are learnt."""
    mask_threshold: float = 0.5
    """With `mask: threshold`, of pixels in 0..1."""
    least_object: float = 0.25
    """Share of a tile that must be object and inspected."""
    seed: int = 0


def check_settings(settings: TrainingSettings) -> None:
    """Raise `DataError` for settings that cannot be trained with."""
    check_augmentation(settings.augment)
    allowed = {
        "scales": settings.scales in ALLOWED_SCALES,
        "steps": settings.steps >= 1,
        "batch": settings.batch >= 1,
        "epochs": 0 <= settings.epochs < math.inf,
        "accumulate": settings.accumulate >= 1,
        "validations": settings.validations >= 0,
        "begin": settings.begin in BEGINNINGS,
        "max_gradient": 0 <= settings.max_gradient < math.inf,
        "incomplete": settings.incomplete in INCOMPLETE,
        "optimiser": settings.optimiser in ("muon", "adam"),
        "crop_px": settings.crop_px >= RECEPTIVE_FIELD_PX,
        "learning_rate": 0 < settings.learning_rate < math.inf,
        "weight_decay": 0 <= settings.weight_decay < math.inf,
        "decay_at": 0 < settings.decay_at <= 1,
        "hard_quantile": 0 <= settings.hard_quantile < 1,
        "spoiled": 0 <= settings.spoiled <= 1,
        "revisited": 0 <= settings.revisited <= 1,
        "hard_weight": 0 <= settings.hard_weight < math.inf,
        "mean_weight": 0 <= settings.mean_weight < math.inf,
        "margin": 0 < settings.margin < math.inf,
        "good_weight": 0 <= settings.good_weight < math.inf,
        "penalty": 0 <= settings.penalty < math.inf,
        "seed": settings.seed >= 0,
        "global_steps": settings.global_steps >= 1,
        "wide_scales": settings.wide_scales in ALLOWED_SCALES,
        "wide_steps": settings.wide_steps >= 1,
        "wide_crop_px": settings.wide_crop_px >= RECEPTIVE_FIELD_PX,
        "map_channels": settings.map_channels >= 0,
        "stride": settings.stride >= 0,
        "mask": settings.mask in MASKS,
        "mask_threshold": 0 <= settings.mask_threshold <= 1,
        "least_object": 0 <= settings.least_object <= 1,
        "held_out": 0 < settings.held_out < 1,
        "q_a": 0 < settings.q_a < settings.q_b < 1,
    }
    for name, fits in allowed.items():
        if not fits:
            raise DataError(
                f"training setting {name}: {getattr(settings, name)!r} found, which cannot be "
                f"trained with; the default is {getattr(TrainingSettings(), name)!r}"
            )
