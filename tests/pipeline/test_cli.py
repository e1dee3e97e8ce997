"""The command line: help, exit codes, and errors without tracebacks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from models import errors as models_errors
from pipeline import errors
from pipeline.cli import COMMANDS, GROUPS, _models_exit_code, run

ROOT = Path(__file__).parents[2]
STATION = ROOT / "configs" / "station.yaml"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert name.split()[0] in text
    assert "linewatch replay" in text


@pytest.mark.parametrize("group", GROUPS)
def test_help_of_a_group_names_its_commands(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([group, "--help"]) == 0
    text = capsys.readouterr().out
    names = [name.split()[1] for name in COMMANDS if name.startswith(group + " ")]
    assert names
    assert all(name in text for name in names)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Sentences on what it does, with an example of it or of what comes next."""
    assert run([*name.split(), "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    description = text.partition("[OPTIONS]")[2].partition("╭")[0]
    assert description.count(".") >= 2
    assert "linewatch " in description


@pytest.mark.parametrize(
    "arguments",
    [["frob"], ["--frob"], ["config", "chekc"], ["config", "check"], ["doctor", "--jsn"]],
)
def test_a_wrong_command_line_ends_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    caught = capsys.readouterr()
    assert "Usage: linewatch" in caught.err
    assert "Traceback" not in caught.err + caught.out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == "0.1.0"


def test_config_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "check", str(STATION)]) == 0
    assert "station line-1" in capsys.readouterr().out
    assert run(["config", "check", "--json", str(STATION)]) == 0
    resolved = json.loads(capsys.readouterr().out)
    assert resolved["cameras"]["left"]["source"]["path"] == str(
        STATION.parent / "recordings" / "left.mkv"
    )
    bad = tmp_path / "bad.yaml"
    bad.write_text("station: a\ncamras: {}\n")
    assert run(["config", "check", str(bad)]) == 2
    caught = capsys.readouterr()
    assert caught.err == f"linewatch: {bad}:2: camras: unknown key; did you mean 'cameras'?\n"
    assert caught.out == ""


def test_no_such_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "check", str(tmp_path / "none.yaml")]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["BundleError", "ParityError", "RuntimeUnavailable", "DataError"])
def test_errors_of_models_end_like_those_of_the_pipeline(name: str) -> None:
    error = getattr(models_errors, name)("what")
    assert _models_exit_code(error) == getattr(errors, name).exit_code
    assert _models_exit_code(models_errors.ModelsError()) == 1
    assert _models_exit_code(ValueError()) is None


def test_an_exit_code_for_each_kind_of_error() -> None:
    """The table at the top of `pipeline.errors` says what the classes do."""
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.LinewatchError)
    ]
    for kind in kinds:
        row = next(
            row for row in (errors.__doc__ or "").splitlines() if f" {kind.__name__} " in row
        )
        assert kind is errors.LinewatchError or f" {kind.exit_code} " in row
    assert len({kind.exit_code for kind in kinds}) >= 10


def blocked(tmp_path: Path, package: str) -> dict[str, str]:
    """An environment in which importing `package` fails as if it was not installed."""
    code = f"raise ModuleNotFoundError('none', name={package!r})\n"
    (tmp_path / f"{package}.py").write_text(code)
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("typer", ["--help"]),
        ("rich", ["doctor"]),
        ("pydantic", ["config", "check", str(STATION)]),
        ("yaml", ["config", "check", str(STATION)]),
    ],
)
def test_a_bare_install_is_told_what_to_install(
    tmp_path: Path, package: str, arguments: list[str]
) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        env=blocked(tmp_path, package),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 5
    assert package in answer.stderr
    assert "pip install 'linewatch[station]'" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_ctrl_c_ends_with_130(tmp_path: Path) -> None:
    """A fifo keeps the command reading until it is interrupted."""
    fifo = tmp_path / "line.yaml"
    os.mkfifo(fifo)
    # Tests that run in a shell's background have inherited that Ctrl-C is ignored.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pipeline.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, "config", "check", str(fifo)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        writer = os.open(fifo, os.O_WRONLY)  # returns when the command reads
        try:
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=20)
        finally:
            os.close(writer)
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    program = "import sys; from pipeline.cli import run; sys.exit(run(sys.argv[1:]))"
    with subprocess.Popen(
        [sys.executable, "-c", program, "config", "check", "--json", str(STATION)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        stderr = process.stderr.read()
        process.wait(20)
    assert "Traceback" not in stderr
