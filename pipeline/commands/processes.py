"""Under `torchrun`: which of the processes this is, and the device that is its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from pipeline.errors import ConfigError


@contextmanager
def one_after_the_other() -> Iterator[None]:
    """The first process alone, then the others, which find its files there."""
    if distributed.is_initialized() and distributed.get_rank() > 0:
        distributed.barrier()
    yield
    if distributed.is_initialized() and distributed.get_rank() == 0:
        distributed.barrier()


@contextmanager
def join_processes(device: str) -> Iterator[tuple[int, str]]:
    """Rank and device; (0, device) when it was not started by `torchrun`."""
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"--device {device!r} found, expected cpu, cuda or cuda:1") from error
    if kind.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device!r} found, expected cpu, cuda or cuda:1")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count() > 0:
        raise ConfigError(f"--device {device!r} found, and torch sees {torch.cuda.device_count()}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"--device {device} found, and torch sees no GPU: leave it away, or install torch's "
            "CUDA build"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield distributed.get_rank(), device
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
