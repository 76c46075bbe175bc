"""Fixtures of all tests. What they build comes from tests/toys; test files import from there, never from each other."""

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Equality to the bit is tested in a mode in which it holds on every processor; must be set before torch loads.
if "GenuineIntel" not in (Path("/proc/cpuinfo").read_text()[:4096] if Path("/proc/cpuinfo").exists() else ""):
    os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
# A shell ignores Ctrl-C for its background jobs, and programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from toys.built_releases import built_release, release
from toys.namespaces import hosts
from toys.published import fetch_setting
from toys.ranks import mesh
from toys.recipes import CODEC_SECTION, clip_recipe, save_checkpoint
from toys.servers import server
from toys.shards import write_toy_shards, write_toy_tokenizer
from toys.slurm import cluster, two_nodes

from leam_mm.callbacks.compilation import probe

__all__ = ["built_release", "cluster", "fetch_setting", "hosts", "mesh", "release", "server", "two_nodes"]
# The key that signs generated images is made there, not in the home of who runs the tests; programs inherit it.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="leam_mm_tests_")
atexit.register(shutil.rmtree, os.environ["XDG_CONFIG_HOME"], ignore_errors=True)
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 samples in five shards."""
    return write_toy_shards(tmp_path_factory.mktemp("toy") / "shards")


@pytest.fixture(scope="session")
def toy_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder."""
    return write_toy_tokenizer(tmp_path_factory.mktemp("toy") / "tokenizer")


@pytest.fixture
def compiler() -> None:
    """Skip if torch.compile does not work. Checked when a test runs, because the probe takes seconds."""
    if reason := probe(torch.device("cpu")):
        pytest.skip(f"torch.compile does not work on this machine's CPU: {reason}")


@pytest.fixture(scope="session")
def toy_checkpoints(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path, toy_tokenizer: Path) -> dict[str, Path]:
    """Checkpoints of an untrained codec and of an untrained CLIP, by the names of encode_latents' options."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "codec": save_checkpoint(folder / "codec.ckpt", CODEC_SECTION),
        "clip": save_checkpoint(folder / "clip.ckpt", clip_recipe(folder, toy_shards, toy_tokenizer)["model"]),
    }
