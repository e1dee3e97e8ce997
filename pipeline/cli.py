"""`linewatch ...`: the table of commands, and how an error becomes a message and an exit code.

1. `COMMANDS` names every command with its module and one line of help. One that has the name of a
   group is what the group does without a further word.
2. Only the module of the command that is called is imported: `linewatch watch` loads no torch, and
   `linewatch --help` nothing at all.
3. A `LinewatchError` (or one of `models.errors`, which share their names) is printed without a
   traceback and ends the program with its exit code; Ctrl-C ends it with 130, a wrong command line
   with 2.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import errors
from pipeline.errors import LinewatchError

OWN_PACKAGES = ("pipeline", "models", "calibrate", "tools")


@dataclass(frozen=True, slots=True)
class Command:
    """`module` has a function `command`; `summary` is its line in `linewatch --help`."""

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "pipeline.commands.demo",
        "Train, calibrate and run a rendered line; figures and pictures in demo-out/.",
    ),
    "train": Command(
        "pipeline.commands.train", "Learn a part from images of good ones; writes a bundle."
    ),
    "calibrate": Command(
        "pipeline.commands.calibrate", "Choose a bundle's thresholds from images of good parts."
    ),
    "evaluate": Command(
        "pipeline.commands.evaluate",
        "How good a calibrated bundle is on images it has not seen; writes a report.",
    ),
    "explain": Command(
        "pipeline.commands.explain", "Why an image passes or fails, step by step, with a picture."
    ),
    "compare": Command(
        "pipeline.commands.compare", "Two bundles on the same images: figures, verdicts, speed."
    ),
    "compile": Command(
        "pipeline.commands.compile", "Compile a bundle's engines ahead, on the station."
    ),
    "run": Command("pipeline.commands.run", "Run a station as a daemon, until it is told to stop."),
    "record": Command(
        "pipeline.commands.record", "Record a station's cameras, lossless, without inspecting."
    ),
    "replay": Command(
        "pipeline.commands.replay", "Send recordings through the whole line; writes all verdicts."
    ),
    "bridge": Command(
        "pipeline.commands.bridge", "Run one PLC bridge of a station: Modbus TCP, OPC UA or MQTT."
    ),
    "watch": Command(
        "pipeline.commands.watch", "Print the verdicts of a running line, and what was missed."
    ),
    "status": Command("pipeline.commands.status", "How a running station is: line and cameras."),
    "trigger": Command(
        "pipeline.commands.trigger", "Have a running station look at a part; prints its verdict."
    ),
    "cameras": Command("pipeline.commands.cameras", "The cameras that are connected."),
    "cameras snap": Command(
        "pipeline.commands.cameras_snap", "Take one picture with a camera of a station."
    ),
    "doctor": Command(
        "pipeline.commands.doctor", "Look at this machine, and say what to do for a line to run."
    ),
    "flatfield": Command(
        "pipeline.commands.flatfield", "Make a camera's pixels answer alike: dark and flat field."
    ),
    "prepare": Command(
        "pipeline.commands.prepare", "A camera's images as the line sees them, for training."
    ),
    "calibrate-lens": Command(
        "pipeline.commands.calibrate_lens",
        "Straight edges straight, pixels in mm: a lens from images of a board.",
    ),
    "config check": Command(
        "pipeline.commands.config_check", "Read a configuration and name every fault in it."
    ),
    "recipe set": Command(
        "pipeline.commands.recipe_set", "Change a camera's recipe, and write down when and why."
    ),
    "recipe log": Command("pipeline.commands.recipe_log", "Every revision of a camera's recipe."),
    "fixture teach": Command(
        "pipeline.commands.fixture_teach", "Teach how the part is found in a frame."
    ),
    "fixture try": Command(
        "pipeline.commands.fixture_try", "Show where parts are found in a folder of frames."
    ),
    "evidence": Command(
        "pipeline.commands.evidence", "The picture of a verdict's frame, with its boxes."
    ),
    "journal find": Command(
        "pipeline.commands.journal_find", "Verdicts in the journal, by time, part and label."
    ),
    "journal stats": Command("pipeline.commands.journal_stats", "The journal's figures."),
    "journal vacuum": Command(
        "pipeline.commands.journal_vacuum", "Make the journal's file as small as its rows."
    ),
    "journal export": Command(
        "pipeline.commands.journal_export", "Write the journal's verdicts to a Parquet file."
    ),
    "keys make": Command("pipeline.commands.keys_make", "Make a pair of keys."),
    "keys allow": Command("pipeline.commands.keys_allow", "Let a client's key in."),
    "keys list": Command("pipeline.commands.keys_list", "Every key in a folder, and its faults."),
    "teacher train": Command(
        "pipeline.commands.teacher_train", "Make the built-in teacher from rendered images."
    ),
    "teacher import": Command(
        "pipeline.commands.teacher_import", "Take over a published teacher's weights."
    ),
    "teacher distill": Command(
        "pipeline.commands.teacher_distill", "Distil a teacher from a backbone of yours."
    ),
}
GROUPS = {
    "cameras": "The cameras that are connected, and a picture of one.",
    "config": "Configuration files.",
    "recipe": "How a camera's maps become verdicts, and every revision of that.",
    "fixture": "Finding the part, so that zones lie on it wherever it is.",
    "journal": "What the line has decided, for as long as it is kept.",
    "keys": "Who may talk to the line (CURVE).",
    "teacher": "The network that students learn from.",
}


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Faults that are foreseen go to stderr."""
    try:
        from pipeline.application import build  # imports typer

        build(arguments)(args=list(arguments), prog_name="linewatch")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `linewatch watch | head`: nobody reads on, and the interpreter must not flush into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except LinewatchError as error:
        return _report(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] in OWN_PACKAGES:
            raise
        return _report(
            f"the Python package {error.name!r} is not installed, and this command needs it: "
            "pip install 'linewatch[station]'",
            errors.RuntimeUnavailable.exit_code,
        )
    except Exception as error:
        code = _models_exit_code(error)
        if code is None:
            raise
        return _report(str(error), code)
    return 0


def _models_exit_code(error: Exception) -> int | None:
    """The exit code of the class in `pipeline.errors` that has the name of this one's."""
    from models.errors import ModelsError

    if not isinstance(error, ModelsError):
        return None
    for kind in type(error).__mro__:
        ours = getattr(errors, kind.__name__, None)
        if ours is not None:
            return int(ours.exit_code)
    return LinewatchError.exit_code


def _report(message: str, code: int) -> int:
    print(f"linewatch: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
