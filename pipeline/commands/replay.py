"""`linewatch replay`."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from calibrate.boxes_eval import Box, TruthScore, score_against_truth
from models.bundle import Bundle
from pipeline.commands.progress import line_progress
from pipeline.commands.replay_outputs import (
    Earlier,
    comparison_json,
    show_comparison,
    video_paths,
    write_overlays,
    write_videos,
)
from pipeline.commands.run import stop_on_signal
from pipeline.config import Recipe, WorkerConfig
from pipeline.config import load_recipe as read_recipe
from pipeline.errors import ConfigError
from pipeline.record.recordings import is_recording
from pipeline.replay import Replay, cameras_in, replay, replay_config, source_of, write_results
from pipeline.sources.recorded import promised_frames, read_head, recording_files
from pipeline.sources.truth import Truth, load_truth, truth_path
from pipeline.summary import rows, summarise


def command(
    recording: Annotated[
        list[Path],
        typer.Argument(
            help="Recordings, videos or image folders: each is a camera of its own, cam0, cam1, "
            "... The folder of a recorded station: all of its cameras."
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
    realtime: Annotated[
        bool,
        typer.Option("--realtime", help="At the recording's own pace, with deadlines and drops."),
    ] = False,
    deadline_ms: Annotated[
        float, typer.Option(min=0.001, help="With --realtime: later is invalid/late.")
    ] = 500.0,
    annotate: Annotated[
        Path | None,
        typer.Option(help="A video (.mp4) of the frames with their verdicts; of each camera one."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Results of an earlier replay, or a line's journal: what has flipped?"),
    ] = None,
    allow: Annotated[
        int, typer.Option(min=0, help="With --against: so many may flip; more end with 1.")
    ] = 0,
    overlays: Annotated[
        Path | None, typer.Option(help="With --against: a folder for pictures of what flipped.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Send recordings through the whole line, and write a verdict for every frame.

    The same recording, bundle and recipe give the same file, byte for byte. Where a recording has
    a file of true boxes beside it (`NAME.truth.json`, as `tools/make_recording.py` writes), its
    zones are used as the recipe unless you give one, and recall and AUROC are printed.

    Ends with 3 when frames of a recording could not be read: they are `invalid`, the rest is there.

    Try a new bundle or threshold on last week's recording before it goes live: every verdict that
    has flipped is named, and the command ends with 1.

    [bold]linewatch replay monday.mkv --bundle bundles/pdn_tiny-0123456789ab --out monday.jsonl[/]

    [bold]linewatch replay monday.mkv --bundle bundles/NEW --out new.jsonl --against monday.jsonl[/]
    """
    if overlays and not against:
        raise ConfigError(f"--overlays {overlays} without --against found, expected both")
    found_in = [one for path in recording for one in cameras_in(path)]
    if cameras > 1 and len(found_in) > 1:
        raise ConfigError(
            f"--cameras {cameras} with {len(found_in)} recordings found, expected one of the two: "
            "every recording is a camera of its own already"
        )
    played = found_in * cameras
    truths = [load_truth(p) if (p := truth_path(path)).exists() else None for path in played]
    chosen = read_recipe(recipe) if recipe else _recipe_of(truths)
    worker = WorkerConfig.model_validate(
        {
            "bundle": str(bundle.absolute()) if bundle else None,
            "runtime": runtime,
            "precision": precision,
            "threads": threads,
            "max_batch": 1,  # what shares a batch is chance, and a GPU's sums depend on it
        }
    )
    # Folders are read as the bundle was trained.
    color = bundle is not None and Bundle.load(bundle).in_channels == 3
    cameras_of = {f"cam{n}": source_of(path, color=color) for n, path in enumerate(played)}
    if annotate:
        video_paths(annotate, list(cameras_of))  # what is wrong with the name is said at once
    earlier = Earlier(against, cameras_of) if against else None
    with tempfile.TemporaryDirectory(prefix="linewatch-") as work:
        config = replay_config(
            [source_of(path, realtime=realtime, color=color) for path in played],
            Path(work),
            worker=worker,
            recipe=chosen,
            station=f"replay-{Path(work).name.rpartition('-')[2]}",
            continuous=continuous,
            deadline_ms=deadline_ms if realtime else None,
        )
        total = _total(played, truths)
        with (
            line_progress("Replaying", total, quiet=as_json) as watch,
            stop_on_signal() as stop,
        ):
            result = replay(config, stop=stop.is_set, watch=watch)
    if stop.is_set():
        partial = out.with_suffix(f".partial{out.suffix}")
        write_results(partial, result.verdicts)
        message = f"interrupted after {len(result.verdicts)} frames; their verdicts: {partial}"
        Console(stderr=True).print(f"[yellow]{message}[/]", highlight=False)
        raise KeyboardInterrupt
    write_results(out, result.verdicts)
    score = _score(result, truths) if any(truths) else None
    summary = _summary(result, score)
    found, drawn = None, {}
    if earlier:
        found = earlier.compare(result.verdicts)
        if overlays:
            drawn = write_overlays(overlays, found.flips, cameras_of, as_json)
        summary["against"] = comparison_json(found, allow, drawn)
    if annotate:
        videos = write_videos(annotate, cameras_of, result.verdicts, as_json)
        summary["videos"] = [str(path) for path in videos]
    if preparations := _preparations(played):
        summary["preparations"] = preparations
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        console = Console()
        _show(console, summary, score, result, out)
        if found:
            show_comparison(console, found, allow, drawn)
    if result.fault:
        raise result.fault
    if found and found.differing > allow:
        raise typer.Exit(1)


def _preparations(played: list[Path]) -> dict[str, list[str]]:
    """How the frames of each recording were prepared, by the hashes in its files."""
    return {
        f"cam{number}": sorted({read_head(file).preparation for file in recording_files(path)})
        for number, path in enumerate(played)
        if is_recording(path)
    }


def _total(played: list[Path], truths: list[Truth | None]) -> int | None:
    """Frames to come, where that is known without reading the recordings."""
    counts = [
        len(truth.frames) if truth else promised_frames(path)
        for path, truth in zip(played, truths, strict=True)
    ]
    return sum(counts) if all(counts) else None


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


def _summary(result: Replay, score: TruthScore | None) -> dict[str, Any]:
    summary = summarise(result.verdicts, result.captured, result.wall_s)
    summary["restarts"] = result.restarts
    if score:
        shares = {
            "image_auroc": score.image_auroc,
            "defects": score.defects,
            "defect_recall": score.defect_recall,
            "false_reject_rate": score.false_reject_rate,
        }
        # JSON knows no NaN, which is what there is to say without defects or good frames.
        summary |= {name: None if math.isnan(share) else share for name, share in shares.items()}
    return summary


def _show(
    console: Console, summary: dict[str, Any], score: TruthScore | None, result: Replay, out: Path
) -> None:
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
    console.print(table)
    for camera, hashes in summary.get("preparations", {}).items():
        if len(hashes) > 1:
            console.print(
                f"[yellow]{camera}: recorded with {len(hashes)} preparations, "
                f"{', '.join(one[:12] or 'none' for one in hashes)}: thresholds belong to one[/]",
                highlight=False,
            )
    for path in summary.get("videos", ()):
        console.print(f"video: {path}", highlight=False)
