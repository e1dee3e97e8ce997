"""`linewatch replay`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from calibrate.boxes_eval import Box, TruthScore, score_against_truth
from pipeline.commands.progress import line_progress
from pipeline.commands.run import stop_on_signal
from pipeline.config import FolderSource, Recipe, SourceConfig, VideoSource, WorkerConfig
from pipeline.config import load_recipe as read_recipe
from pipeline.errors import ConfigError
from pipeline.replay import Replay, replay, replay_config, write_results
from pipeline.sources.truth import Truth, load_truth, truth_path
from pipeline.summary import rows, summarise


def command(
    recording: Annotated[
        list[Path],
        typer.Argument(
            help="Videos or image folders; each is a camera of its own, cam0, cam1, ..."
        ),
    ],
    bundle: Annotated[
        Path | None, typer.Option(help="The calibrated bundle; not needed with --runtime null.")
    ] = None,
    out: Annotated[Path, typer.Option(help="One JSON line per frame.")] = Path("results.jsonl"),
    cameras: Annotated[
        int, typer.Option(min=1, max=64, help="Play one recording on so many cameras at once.")
    ] = 1,
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe (YAML): zones, thresholds, minimum area.")
    ] = None,
    continuous: Annotated[
        bool,
        typer.Option(
            "--continuous", help="Frames are blocks of one web, as of a line-scan camera."
        ),
    ] = False,
    runtime: Annotated[
        str, typer.Option(help="auto, tensorrt, cuda, openvino, torch, null.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="auto, int8, fp16, bf16, f32.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Of the engine; 0: all cores.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Send recordings through the whole line, and write a verdict for every frame.

    The same recording, bundle and recipe give the same file, byte for byte. Where a recording has
    a file of true boxes beside it (`NAME.truth.json`, as `tools/make_recording.py` writes), its
    zones are used as the recipe unless you give one, and recall and AUROC are printed.

    Ends with 3 when frames of a recording could not be read: they are `invalid`, the rest is there.

    [bold]linewatch replay monday.mkv --bundle bundles/pdn_tiny-0123456789ab --out monday.jsonl[/]
    """
    if cameras > 1 and len(recording) > 1:
        raise ConfigError(
            f"--cameras {cameras} with {len(recording)} recordings found, expected one of the two: "
            "every recording is a camera of its own already"
        )
    played = recording * cameras
    truths = [load_truth(p) if (p := truth_path(path)).exists() else None for path in played]
    chosen = read_recipe(recipe) if recipe else _recipe_of(truths)
    worker = WorkerConfig.model_validate(
        {
            "bundle": str(bundle.absolute()) if bundle else None,
            "runtime": runtime,
            "precision": precision,
            "threads": threads,
        }
    )
    with tempfile.TemporaryDirectory(prefix="linewatch-") as work:
        config = replay_config(
            [_source(path) for path in played],
            Path(work),
            worker=worker,
            recipe=chosen,
            station=f"replay-{Path(work).name.rpartition('-')[2]}",
            continuous=continuous,
        )
        total = sum(len(t.frames) for t in truths if t) if all(truths) else None
        with line_progress("Replaying", total, quiet=as_json) as watch:
            result = replay(config, stop=stop_on_signal().is_set, watch=watch)
    write_results(out, result.verdicts)
    score = _score(result, truths) if any(truths) else None
    _show(result, score, out, as_json)
    if result.fault:
        raise result.fault


def _source(path: Path) -> SourceConfig:
    if path.is_dir():
        return FolderSource(kind="folder", path=str(path.absolute()))
    return VideoSource(kind="video", path=str(path.absolute()))


def _recipe_of(truths: list[Truth | None]) -> Recipe:
    """The recipe that the recordings carry. All cameras of one replay share it."""
    recipes = {truth.recipe for truth in truths if truth and truth.recipe}
    if len(recipes) > 1:
        raise ConfigError(
            f"{len(recipes)} different recipes found in the recordings' side files, expected one: "
            "give --recipe, or replay them one by one"
        )
    return recipes.pop() if recipes else Recipe()


def _score(result: Replay, truths: list[Truth | None]) -> TruthScore:
    true_boxes: dict[tuple[str, int], list[Box]] = {}
    for number, truth in enumerate(truths):
        for frame in truth.frames if truth else ():
            # A recording's frame i (from 0) is its camera's frame i + 1.
            true_boxes[f"cam{number}", frame.index + 1] = [d.box_xyxy for d in frame.defects]
    return score_against_truth(result.verdicts, true_boxes)


def _show(result: Replay, score: TruthScore | None, out: Path, as_json: bool) -> None:
    summary = summarise(result.verdicts, result.captured, result.wall_s)
    summary["restarts"] = result.restarts
    if score:
        summary |= {
            "image_auroc": score.image_auroc,
            "defects": score.defects,
            "defect_recall": score.defect_recall,
            "false_reject_rate": score.false_reject_rate,
        }
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    table = Table("figure", "value", title="Replay")
    table.columns[1].justify = "right"
    for name, value in rows(summary):
        table.add_row(name, value)
    if score:
        table.add_row("image AUROC", f"{score.image_auroc:.4f}")
        table.add_row("defects found", f"{score.defects_found} / {score.defects}")
        table.add_row("defect recall", f"{score.defect_recall:.3f}")
        rejects = f"{score.good_failed} / {score.good_frames}"
        table.add_row("good frames rejected", f"{rejects} ({score.false_reject_rate:.1%})")
    if result.verdicts:
        engines = {v.engine_id for v in result.verdicts if v.engine_id}
        table.caption = f"{', '.join(sorted(engines))}; verdicts in {out}"
    Console().print(table)
