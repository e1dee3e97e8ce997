"""Under `torchrun`: which of the processes this is, and the device that is its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from pipeline.errors import ConfigError


@contextmanager
def join_processes(device: str) -> Iterator[tuple[int, str]]:
    """Rank and device; (0, device) when it was not started by `torchrun`."""
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
