"""Process groups for tests of code that runs on several ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@contextmanager
def process_group(folder: Path | str, rank: int = 0, world: int = 1) -> Iterator[None]:
    """Join a gloo group whose ranks meet in a file of ``folder``; each rank computes on one thread."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """A mesh of one rank: enough to see what is sharded and that the results stay the same."""
    with process_group(tmp_path):
        yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
