"""`linewatch fixture teach`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from models.images import read_image
from pipeline.commands.fixture_drawing import drawn
from pipeline.config import Recipe, load_recipe
from pipeline.config.fixture import TemplateFixture, ThresholdFixture
from pipeline.errors import ConfigError, DataError
from pipeline.fixture.find import Fixture, Pose
from pipeline.overlay import write_png
from pipeline.recipes import revise

MIN_SCORE = 0.6


def command(
    image: Annotated[
        Path, typer.Argument(help="A frame as the line sees it, with one good part, whole.")
    ],
    recipe: Annotated[Path, typer.Option(help="The camera's recipe (YAML); made if need be.")],
    box: Annotated[
        str, typer.Option(help="X0,Y0,X1,Y1: the template. Without it: by threshold.")
    ] = "",
    part: Annotated[str, typer.Option(help="By threshold: light or dark.")] = "light",
    level: Annotated[int, typer.Option(help="Grey level of the threshold; -1: by itself.")] = -1,
    angle_by: Annotated[str, typer.Option(help="By threshold: axis, rectangle, none.")] = "axis",
    max_turn: Annotated[float, typer.Option(help="Degrees that parts are turned by.")] = 15.0,
    out: Annotated[
        Path | None, typer.Option(help="The picture. Default: NAME-taught.png here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Teach how the part is found, and where it lies on the frame that zones are drawn on.

    With --box that piece of the picture is the template: choose one that looks the same on every
    part, has edges in all directions, and holds no place where defects are likely. Without it the
    part is found by its brightness, on a background that is plain.

    Zones that the recipe has are taken to be drawn on this very frame. The template lies beside the
    recipe, and the change is written into the recipe's history. Look at the picture; then
    `linewatch fixture try` shows how other frames fare.

    [bold]linewatch fixture teach part.png --recipe recipes/front.yaml --box 420,300,860,640[/]
    """
    frame = read_image(image, 1)
    found: dict[str, Any] = {"max_turn_degrees": max_turn}
    if box:
        x0, y0, x1, y1 = _box(box, frame.shape[1], frame.shape[0])
        piece = frame[y0:y1, x0:x1]
        name = f"{recipe.stem}-template-{hashlib.sha256(piece.tobytes()).hexdigest()[:8]}.png"
        path = recipe.absolute().parent / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(path, piece)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
        found |= {"kind": "template", "template": str(path)}
        found |= {"taught_x": (x0 + x1 - 1) / 2, "taught_y": (y0 + y1 - 1) / 2}
        found["min_score"] = _min_score(frame, _fixture(found))
        fixture = _fixture(found)
    else:
        found |= {"kind": "threshold", "part": part, "angle_by": angle_by}
        found |= {} if level < 0 else {"level": level}
        # Where and how the part lies is what is to be learned: any angle will do.
        anywhere = {"taught_x": 0.0, "taught_y": 0.0, "max_turn_degrees": max(90.0, max_turn)}
        pose = _one(_fixture(found | anywhere), image)
        found |= {"taught_x": round(pose.x, 2), "taught_y": round(pose.y, 2)}
        found |= {"taught_angle": round(pose.angle, 2)}
        fixture = _fixture(found)
    pose = _one(fixture, image)
    if pose.cut_off:
        raise DataError(f"{image}: the part reaches to the frame's edge, expected a whole one")
    kept = found | ({"template": Path(found["template"]).name} if box else {})
    revise(recipe, {"fixture": kept}, f"fixture taught on {image.name}")
    taught: Recipe = load_recipe(recipe)
    picture = out or Path(f"{image.stem}-taught.png")
    try:
        write_png(picture, drawn(frame, [pose], fixture, taught.zones))
    except OSError as error:
        raise DataError(f"{picture}: cannot be written ({error.strerror or error})") from error
    if as_json:
        print(json.dumps({"fixture": kept, "recipe": str(recipe), "picture": str(picture)}))
        return
    print(
        f"{recipe}: the part lies at ({pose.x:.1f}, {pose.y:.1f}), angle {pose.angle:.1f} degrees"
    )
    print(f"picture: {picture}")


def _box(text: str, width: int, height: int) -> tuple[int, int, int, int]:
    try:
        x0, y0, x1, y1 = (int(word) for word in text.split(","))
    except ValueError:
        x0 = y0 = x1 = y1 = -1
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ConfigError(
            f"--box {text!r} found, expected X0,Y0,X1,Y1 in whole pixels within {width}x{height}"
        )
    return x0, y0, x1, y1


def _fixture(found: dict[str, Any]) -> Fixture:
    """Raises `ConfigError` for values that a recipe cannot have."""
    kind = TemplateFixture if found["kind"] == "template" else ThresholdFixture
    try:
        return Fixture(kind.model_validate(found))
    except ValueError as error:
        raise ConfigError(f"fixture: {error}") from error


def _min_score(frame: NDArray[np.uint8], fixture: Fixture) -> float:
    """Well over that of parts that lie on their side or upside down, where those are to be told."""
    if fixture.config.max_turn_degrees >= 45:
        return MIN_SCORE
    wrong = [fixture.find(np.ascontiguousarray(np.rot90(frame, k))) for k in (1, 2, 3)]
    highest = max((pose.score for poses in wrong for pose in poses), default=0.0)
    return max(MIN_SCORE, round((1 + highest) / 2, 2))


def _one(fixture: Fixture, image: Path) -> Pose:
    poses = fixture.find(read_image(image, 1))
    if not poses:
        raise DataError(
            f"{image}: no part found, expected one on a plain background: say whether it is light "
            "or dark (--part), where the threshold lies (--level), that it is round (--angle-by "
            "none), or give a template (--box)"
        )
    return poses[0]
