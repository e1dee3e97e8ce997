"""`linewatch calibrate-lens`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.progress import Update, progress_bar
from pipeline.commands.stations import images_in
from pipeline.errors import ConfigError, DataError
from pipeline.overlay import write_png
from pipeline.prepare.boards import Board, write_sheet
from pipeline.prepare.lens import Lens
from pipeline.prepare.lens_calibration import Seen, calibrate, picture, read_grey, with_scale

_FEW_VIEWS = 10
_LITTLE_COVERED = 0.6
_ASKEW = 0.01


def command(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Images of the board, or folders of them.")
    ] = None,
    pattern: Annotated[
        tuple[str, str],
        typer.Option(
            metavar="KIND CORNERS",
            help="checkerboard or charuco, and its inner corners: 9x6 has 10 x 7 squares.",
        ),
    ] = ("checkerboard", "9x6"),
    square_mm: Annotated[float, typer.Option(help="Side of a square, measured on the board.")] = 10,
    marker_mm: Annotated[
        float | None, typer.Option(help="Side of a ChArUco marker. [0.7 of a square]")
    ] = None,
    dictionary: Annotated[str, typer.Option(help="Of the ChArUco markers.")] = "5X5_250",
    plane: Annotated[
        Path | None,
        typer.Option(help="The image in which the board lies where the parts will be: gives mm."),
    ] = None,
    wide: Annotated[
        bool, typer.Option("--wide", help="A wide-angle lens: fit k3, too. Needs good coverage.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The lens file (JSON); a picture of it goes beside it.")
    ] = None,
    board: Annotated[
        Path | None, typer.Option(help="Instead of all this, draw the board to print, as a PNG.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lens file.")] = False,
) -> None:
    """Make straight edges straight, and pixels millimetres: calibrate a camera's lens.

    [bold]linewatch calibrate-lens --board board.png --pattern charuco 9x6 --square-mm 10[/] draws
    a board. Print it at 100 %, glue it on something flat, and measure a square.

    Take 15 images or more, with the camera's focus and aperture fixed: the board tilted by 20 to 40
    degrees to all sides, and in all corners of the frame; and one in which it lies where the parts
    will be.

    [bold]linewatch calibrate-lens shots/ --pattern charuco 9x6 --square-mm 10 --plane
    shots/plane.png --out lens.json[/]

    Then name the file in the camera's `prepare: {lens: lens.json}`. Images are in full size, as the
    camera gives them: a `roi_xyxy` is cut out later.
    """
    wanted = Board.of(pattern[0], pattern[1], square_mm, marker_mm, dictionary)
    if board is not None:
        _draw(wanted, board)
        return
    if not images or out is None:
        raise ConfigError(
            f"{'no --out' if images else 'no images'} found, expected images of the board and "
            "--out lens.json; or --board board.png, to draw a board"
        )
    if not out.absolute().parent.is_dir():
        raise DataError(f"{out}: no folder {out.parent} found to write into; make it first")
    paths = images_in(images)
    if plane is not None and plane.resolve() not in [path.resolve() for path in paths]:
        paths.append(plane)
    with progress_bar("Finding the board", len(paths), quiet=as_json) as update:
        seen, missed, size_wh = _find(paths, wanted, update)
    lens = calibrate(seen, wanted, size_wh, wide)
    lying = None
    if plane is not None:
        lying = next((each for each in seen if each.path.resolve() == plane.resolve()), None)
        if lying is None:
            raise DataError(f"{plane}: no board found in it, expected {wanted}")
        lens = with_scale(lens, lying)
    try:
        out.write_text(lens.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}); check the disk") from error
    sample = lying or next(each for each in seen if each.used)
    shown = out.with_suffix(".png")
    write_png(shown, picture(lens, seen, read_grey(sample.path), lying))
    if as_json:
        print(lens.model_dump_json(indent=2))
    else:
        _print(lens, missed, out, shown)


def _draw(board: Board, path: Path) -> None:
    sheet, px_per_mm = board.draw()
    write_sheet(path, sheet, px_per_mm)
    width, height = (side / px_per_mm for side in sheet.shape[::-1])
    print(
        f"{path}: {board}; the page is {width:.1f} x {height:.1f} mm, {px_per_mm * 25.4:.0f} dpi. "
        "Print it at 100 %, and measure a square: paper and printers differ"
    )


def _find(
    paths: Sequence[Path], board: Board, update: Update
) -> tuple[list[Seen], list[Path], tuple[int, int]]:
    """The images with the board, those without, and the size of all of them."""
    seen: list[Seen] = []
    missed: list[Path] = []
    size_wh = (0, 0)
    for number, path in enumerate(paths, start=1):
        grey = read_grey(path)
        found_wh = (grey.shape[1], grey.shape[0])
        if number > 1 and found_wh != size_wh:
            raise DataError(
                f"{path}: {found_wh[0]} x {found_wh[1]} px found, expected {size_wh[0]} x "
                f"{size_wh[1]} as of {paths[0]}: images of one camera, in full size"
            )
        size_wh = found_wh
        found = board.find(grey)
        if found is None:
            missed.append(path)
        else:
            seen.append(Seen(path, *found))
        update(number, len(paths))
    return seen, missed, size_wh


def _print(lens: Lens, missed: Sequence[Path], out: Path, shown: Path) -> None:
    for view in lens.views:
        used = "" if view.used else "  left out: far off the others"
        print(f"  {view.file}  {view.corners} corners  {view.error_px:.3f} px{used}")
    for path in missed:
        print(f"  {path.name}  no board found")
    used_views = sum(view.used for view in lens.views)
    (fx, _, cx), (_, fy, cy), _ = lens.camera_matrix
    print(f"{used_views} views, rms {lens.rms_px:.3f} px; corners cover {lens.coverage:.0%}")
    print(
        f"focal length {fx:.1f}, {fy:.1f} px (to {lens.focal_std:.2%}), centre {cx:.1f}, {cy:.1f}"
    )
    if lens.mm_per_px is not None:
        print(f"{lens.mm_per_px:.5f} mm per pixel, {lens.mm_per_px_spread:.1%} apart in the frame")
        if lens.mm_per_px_spread > _ASKEW:
            print("  the camera looks at the plane askew: lengths are wrong by up to that much")
    if used_views < _FEW_VIEWS:
        print(f"  {used_views} views are few: take {_FEW_VIEWS} or more, tilted to all sides")
    if lens.coverage < _LITTLE_COVERED:
        print("  the frame's border is a guess: take images with the board in its corners")
    print(f"{out}: name it in prepare.lens of the camera; {shown}: look at it")
