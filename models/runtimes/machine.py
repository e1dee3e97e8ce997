"""Whether this machine can run an engine, found out without importing torch, openvino or TensorRT.

In this order, since each is of use only with those before it: the packages, an NVIDIA driver with a
GPU, a torch that was built for it; and for bfloat16 and int8 on the CPU, one that multiplies them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import re
from functools import cache
from pathlib import Path

DRIVER = "libcuda.so.1"


def engine_fault(packages: tuple[str, ...], extra: str, *, gpu: bool, cpu_needs: str = "") -> str:
    """Why this machine cannot run an engine and what to do; "" if it can.

    packages: to be installed, as `linewatch[extra]` does. gpu: it needs an NVIDIA GPU. cpu_needs:
    the precision that the CPU must be able to multiply.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        what = f"package {missing[0]} is" if len(missing) == 1 else f"{' and '.join(missing)} are"
        return f"{what} not installed: run `pip install 'linewatch[{extra}]'`"
    if gpu and (fault := driver_fault() or torch_fault()):
        return fault
    if cpu_needs == "bf16" and not cpu_has_bf16():
        return "this CPU has neither avx512_bf16 nor amx_bf16: use precision f32"
    if cpu_needs == "int8" and not cpu_has_int8():
        return "this CPU has no avx512_vnni, avx_vnni or amx_int8: use precision bf16 or f32"
    return ""


@cache
def driver_fault() -> str:
    """Why no NVIDIA GPU can be used, by the driver's own word; "" if one can."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return (
            f"no NVIDIA driver ({DRIVER}) found: install it, in a container give it the GPU; "
            "without a GPU use runtime openvino"
        )
    if (code := driver.cuInit(0)) != 0:
        return (
            f"the NVIDIA driver does not start (cuInit gives {code}, expected 0): see `nvidia-smi` "
            "and whether the driver fits the kernel; without a GPU use runtime openvino"
        )
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return (
            "the NVIDIA driver finds no GPU: see `nvidia-smi` and CUDA_VISIBLE_DEVICES; without a "
            "GPU use runtime openvino"
        )
    return ""


def torch_fault() -> str:
    """Why the installed torch uses no NVIDIA GPU; "" if it is a CUDA build."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "package torch is not installed: run `pip install 'linewatch[station]'`"
    if cuda_of(Path(spec.origin).with_name("version.py")):
        return ""
    return (
        "torch is not a CUDA build: install one, such as that of `pip install torch` without "
        "another index, or use runtime openvino"
    )


def cuda_of(version_py: Path) -> str:
    """The CUDA version in torch's `version.py`, such as `12.8`; "" for a build without."""
    try:
        text = version_py.read_text(errors="replace")
    except OSError:
        return ""
    found = re.search(r"""^cuda\s*(?::[^=\n]*)?=\s*['"]([^'"]+)['"]""", text, re.MULTILINE)
    return found[1] if found else ""


def cpu_has_bf16(cpuinfo: str | None = None) -> bool:
    """Whether the CPU multiplies bfloat16 itself. cpuinfo: None reads this machine's."""
    text = _cpuinfo() if cpuinfo is None else cpuinfo
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", text) is not None


def cpu_bf16_is_fast(cpuinfo: str | None = None) -> bool:
    """Whether the CPU multiplies bfloat16 faster than float32. cpuinfo: None reads this machine's.

    Measured with OpenVINO and torch, one thread: an EPYC (Zen 4) with AVX-512 BF16 takes half the
    time; a Xeon with AVX-512 BF16, its AMX hidden from the virtual machine, 1.8 times as long.
    """
    text = _cpuinfo() if cpuinfo is None else cpuinfo
    if re.search(r"^vendor_id\s*:\s*GenuineIntel", text, re.MULTILINE):
        return re.search(r"\bamx_bf16\b", text) is not None
    return cpu_has_bf16(text)


def cpu_has_int8() -> bool:
    """Whether the CPU adds products of bytes in 32 bits.

    x86 without that adds pairs in 16 bits, which overflow where activations are high: at defects.
    """
    text = _cpuinfo()
    x86 = re.search(r"^flags\s*:", text, re.MULTILINE) is not None
    return not x86 or re.search(r"\b(avx512_vnni|avx_vnni|amx_int8)\b", text) is not None


@cache
def cpu_identity() -> str:
    """What tells CPUs apart that need other code: name and features of the first one."""
    telling = r"^(?:model name|flags|Features|CPU (?:implementer|part|variant))\s*:.*$"
    first, *_ = _cpuinfo().split("\n\n")
    return " ".join(re.findall(telling, first, re.MULTILINE)) or platform.machine()


@cache
def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""
