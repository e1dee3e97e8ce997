"""How fast anomalib's EfficientAD-S is on this machine, exported to OpenVINO as anomalib does it.

python tools/anomalib_speed.py --size 640 --threads 2 [--json]
python tools/anomalib_speed.py --keep DIR       leave both OpenVINO models in DIR as well

Any Python 3.11 or newer with its venv module runs this. anomalib is no dependency of linewatch, so
a venv of its own is made (`--venv`), and this file runs itself again inside it. There anomalib's
own networks go through ONNX to OpenVINO, and two models are timed in turn: the whole one, and its
student and teacher alone. Weights are random: speed does not depend on them.

Where there is a choice it favours anomalib: the batch is fixed to one image, the image is float32
in 0..1 already, pre- and postprocessing are left out, and what only the autoencoder needs is cut
from the student that runs without it.

Exit status: 0 timed; 2 wrong options; 3 the venv cannot be made, and the message says what to do.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ANOMALIB = "2.7.0"
WITH_DEPENDENCIES = (
    *("torch==2.13.0", "openvino==2026.4.1", "onnx==1.23.2", "onnxscript==0.7.2"),
    *("numpy==2.4.6", "pillow==13.0.0"),
)
# Alone: anomalib asks for dozens of packages that its EfficientAD networks never import, and
# torchvision for a torch that may be another build than the one at hand.
ALONE = ("torchvision==0.28.0", f"anomalib=={ANOMALIB}")
STAMP = ".linewatch-anomalib"  # in the venv: what has been installed; empty while that goes on
MIN_SIZE = 256  # of an image: below, the encoder's last convolution has less than one output
NO_VENV = """
This needs Python's venv module, a package index, and room for torch in a folder of its own, which
--venv names. Without an NVIDIA GPU the CPU build of torch is enough, and much smaller: set
PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index. Then run this again."""
WARM_UP = 2
OUTPUTS = {"whole": ["pred_score", "anomaly_map"], "student_teacher": ["anomaly_map"]}


def prepared(venv: Path) -> Path:
    """The Python of a venv that holds the versions above, made first where missing.

    Raises `OSError` or `subprocess.CalledProcessError`.
    """
    python, stamp = venv / "bin" / "python", venv / STAMP
    wanted = "\n".join((*WITH_DEPENDENCIES, *ALONE))
    if python.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return python
    if venv.exists() and not stamp.is_file() and any(venv.iterdir()):
        raise FileExistsError(f"{venv} is there, and was not made by this program")
    venv.mkdir(parents=True, exist_ok=True)
    stamp.write_text("")
    _say(f"making {venv}; this happens once and takes minutes")
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    make = [sys.executable, "-m", "venv", str(venv)]
    for command in (make, [*pip, *WITH_DEPENDENCIES], [*pip, "--no-deps", *ALONE]):
        subprocess.run(command, stdout=sys.stderr, check=True)
    stamp.write_text(wanted)
    return python


def _say(line: str) -> None:
    print(f"anomalib_speed: {line}", file=sys.stderr, flush=True)


def networks() -> Any:
    """anomalib's module of EfficientAD's networks, without the rest of anomalib.

    The `__init__` files on the way import all models, data sets and trainers, and with them dozens
    of packages; empty packages with the same path stand in for them.
    """
    _import_torchvision()
    root = Path(importlib.import_module("anomalib").__file__ or "").parent
    for folder in ("data", "models/image/efficient_ad", "models/components/base/export_mixin"):
        for part in (Path(folder), *Path(folder).parents[:-1]):
            package = types.ModuleType(".".join(("anomalib", *part.parts)))
            package.__path__ = [str(root / part)]
            sys.modules[package.__name__] = package
    batches = importlib.import_module("anomalib.data.dataclasses")
    vars(sys.modules["anomalib.data"])["InferenceBatch"] = batches.InferenceBatch
    return importlib.import_module("anomalib.models.image.efficient_ad.torch_model")


def _import_torchvision() -> None:
    """torchvision, even where its compiled part does not fit the torch build.

    It then misses two operators at import. Declaring them is enough: no network here calls them.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = importlib.import_module("torch.library")
        for name in ("nms", "qnms"):
            library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
        importlib.import_module("torchvision")


def build() -> dict[str, Any]:
    """Both torch modules by name: float32 [N, 3, H, W] in 0..1 -> what `OUTPUTS` names."""
    import torch

    found = networks()
    torch.manual_seed(0)
    whole = found.EfficientAdModel(model_size=found.EfficientAdModelSize.S).eval()
    with torch.no_grad():
        # All zeros mean "not trained", and the normalisations would be left out of the graph.
        for numbers in (*whole.mean_std.values(), *whole.quantiles.values()):
            numbers.uniform_(0.5, 1.5)

    class StudentTeacher(torch.nn.Module):
        """Squared difference of student and teacher, mean over channels: [N, 1, H/4-8, W/4-8]."""

        def __init__(self) -> None:
            super().__init__()
            self.teacher = whole.teacher
            self.student = copy.deepcopy(whole.student)
            # The student's other half imitates the autoencoder: of no use here, so not computed.
            last, channels = self.student.conv4, whole.teacher_out_channels
            last.weight = torch.nn.Parameter(last.weight[:channels].detach())
            last.bias = torch.nn.Parameter(last.bias[:channels].detach())

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            difference = self.teacher(images) - self.student(images)
            return torch.mean(difference**2, dim=1, keepdim=True)

    return {"whole": whole, "student_teacher": StudentTeacher().eval()}


def export(module: Any, names: list[str], size: int, path: Path) -> None:
    """Write the OpenVINO model of `module` for float32 [1, 3, size, size]; outputs as `names`.

    The steps and arguments of anomalib's `ExportMixin.to_onnx` and `to_openvino`, with its own
    helpers; the methods themselves need its Lightning module. Only the reshape is ours.
    """
    import openvino as ov
    import torch

    helpers = importlib.import_module("anomalib.models.components.base.export_mixin.utils")
    axes = helpers.get_default_dynamic_axes((size, size), ["input"], names)
    shapes = helpers.get_dynamic_shapes_from_axes(axes, ["input"], names)
    example = (helpers.get_example_input((size, size), shapes),)
    called: dict[str, Any] = {"input_names": ["input"], "output_names": names, "opset_version": 14}
    how: dict[str, Any] = {"dynamo": True, "dynamic_shapes": shapes, "verbose": False}
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder) / "model.onnx"
        torch.onnx.export(module, example, str(onnx), **called, **how)
        model = ov.convert_model(onnx)
        model.reshape([1, 3, size, size])
        ov.save_model(model, path, compress_to_fp16=False)


def timed(folder: Path, size: int, threads: int, repeats: int) -> dict[str, Any]:
    """Median and 99th percentile in ms of each model, one run of each in turn."""
    import numpy as np
    import openvino as ov

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    image = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
    core, requests = ov.Core(), {}
    for name in OUTPUTS:
        compiled = core.compile_model(folder / f"{name}.xml", "CPU", settings)
        requests[name] = compiled.create_infer_request()
        requests[name].set_input_tensor(ov.Tensor(image, shared_memory=True))
    took_ms: dict[str, list[float]] = {name: [] for name in OUTPUTS}
    for _ in range(WARM_UP + repeats):
        for name, request in requests.items():
            begun = time.perf_counter()
            request.infer(share_outputs=True)
            took_ms[name].append((time.perf_counter() - begun) * 1e3)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    found = {"threads": compiled.get_property("INFERENCE_NUM_THREADS"), "precision": precision}
    for name, every in took_ms.items():
        median, p99 = np.percentile(every[WARM_UP:], (50, 99)).round(2).tolist()
        found[f"{name}_ms"] = {"median": median, "p99": p99}
    return found


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """All that `--json` prints. Runs inside the venv."""
    import openvino as ov
    import torch

    # The exporter warns at length that it writes operator set 18 where anomalib asks for 14.
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    # Whatever the exporter prints must not stand between the figures.
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as scratch:
        folder = chosen.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name, module in build().items():
            _say(f"exporting {name}")
            export(module, OUTPUTS[name], chosen.size, folder / f"{name}.xml")
        _say(f"timing, {chosen.repeats} times each")
        figures = timed(folder, chosen.size, chosen.threads, chosen.repeats)
    versions = {"anomalib": ANOMALIB, "openvino": ov.__version__, "torch": torch.__version__}
    return {**versions, "size": chosen.size, **figures}


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=640, help="side of the image in pixels")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as OpenVINO chooses")
    parser.add_argument("--repeats", type=int, default=20, help="of each model, after warm-up")
    parser.add_argument("--keep", type=Path, help="leave both models here, as .xml and .bin")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-anomalib")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(given)
    if chosen.size < MIN_SIZE or chosen.repeats < 1 or chosen.threads < 0:
        parser.error(f"--size: {MIN_SIZE} or more; --repeats: 1 or more; --threads: 0 or more")
    if not chosen.inside:
        try:
            python = str(prepared(chosen.venv.absolute()))
            # -I: neither the caller's PYTHONPATH nor the modules beside this file.
            os.execv(python, [python, "-I", str(Path(__file__).resolve()), *given, "--inside"])
        except (OSError, subprocess.CalledProcessError) as error:
            _say(f"{error}{NO_VENV}")
            return 3
    figures = measure(chosen)
    if chosen.json:
        print(json.dumps(figures))
        return 0
    print("anomalib {anomalib}, OpenVINO {openvino}, torch {torch}".format(**figures))
    print("{size}x{size}, {threads} threads, {precision}, random weights".format(**figures))
    for name in OUTPUTS:
        print(f"{name:<16}" + "median {median} ms, p99 {p99} ms".format(**figures[f"{name}_ms"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
