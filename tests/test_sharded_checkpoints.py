"""Parts of a sharded checkpoint: any number of ranks reads them; damage or a fault on one rank costs no older one."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from toys.ranks import process_group
from toys.recipes import stable_recipe
from toys.runs import assert_equal, last_checkpoint, run_recorded

from leam_mm.callbacks.asynchronous_save import AsynchronousCheckpointIO
from leam_mm.callbacks.save_failures import RetriedCheckpointIO
from leam_mm.checkpoint import EVIDENCE, load_module, read_checkpoint, read_places, sound_checkpoint
from leam_mm.checkpoint_generations import generations, make_room
from leam_mm.checkpoint_shards import MANIFEST, PLACE, shards_folder
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.errors import UserError
from leam_mm.optim.sharded_parts import gather_whole, open_parts_together, read_shard, save_parts


def build(world: int, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A sharded network with uneven shards, a scalar, and weights that most ranks have no rows of."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 1), nn.Conv2d(3, 7, 2))
    module.scale = nn.Parameter(torch.tensor(3.0 + seed))  # type: ignore[assignment]
    fully_shard(module, mesh=init_device_mesh("cpu", (world,)), ignored_params={module.scale})  # type: ignore[arg-type]
    return module, torch.optim.AdamW(module.parameters(), lr=0.1)


def state(module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    named: Any = get_optimizer_state_dict(module, optimizer)
    return {
        "state_dict": get_model_state_dict(module),
        "optimizer_states": [{"state": named["state"], "param_groups": []}],
        EVIDENCE: {"config": "model: {}", "samples_seen": step},
        "global_step": step,
    }


def train_step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for weight in module.parameters():
        weight.grad = torch.ones_like(weight) * weight.detach()
    optimizer.step()


def on_ranks(rank: int, world: int, folder: str, asynchronous: bool, *files: str) -> None:
    """Save on some ranks, then read checkpoints of others."""
    with process_group(folder, rank, world):
        save_steps(rank, world, folder, asynchronous)
        for file in files:
            load(rank, world, file)


def save_steps(rank: int, world: int, folder: str, asynchronous: bool) -> None:
    """Save steps 1 and 2, fail at 3 on the last rank, save 4; beside each the whole state for comparison."""
    module, optimizer = build(world)
    writer = AsynchronousCheckpointIO(2) if asynchronous else RetriedCheckpointIO(2)
    group = dist.new_group(backend="gloo")
    place = Path(folder) / "checkpoints"
    for step in (1, 2, 3, 4):
        train_step(module, optimizer)
        whole = gather_whole(state(module, optimizer, step))
        if rank == 0:
            torch.save(whole, Path(folder) / f"whole.{step}")
        flush = os.fsync
        if step == 3 and rank == world - 1:
            os.fsync = broken  # type: ignore[assignment]
        save_parts(state(module, optimizer, step), place, writer, group)
        with torch.no_grad():
            module[0].weight += 1.0  # type: ignore[operator]
            dist.barrier()
        writer.finish()
        os.fsync = flush
        assert (writer.failure is None) == (step != 3), writer.failure
        if step == 3:
            assert "Input/output error: check the disk" in str(writer.failure)
            if rank == 0:
                assert [read_checkpoint(file)["global_step"] for file in generations(place)] == [2, 1]
                assert not list(place.glob("*.tmp-*"))
            dist.barrier()


def broken(_: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def load(rank: int, world: int, file: str) -> None:
    """Read a checkpoint into a network of other weights, and compare the whole of it with what was saved."""
    module, optimizer = build(world, seed=1)
    train_step(module, optimizer)
    checkpoint = read_places(Path(file))[0]
    parts = open_parts_together(checkpoint, Path(file))
    weights, moments = get_model_state_dict(module), get_optimizer_state_dict(module, optimizer)["state"]
    saved = checkpoint["state_dict"], checkpoint["optimizer_states"][0]["state"]
    assert weights.keys() == saved[0].keys() and moments.keys() == saved[1].keys()
    for name, like in weights.items():
        weights[name] = read_shard(saved[0][name], like, parts)
        assert isinstance(weights[name], DTensor) == (name != "scale")
        of_moments = saved[1][name]
        moments[name] = {key: read_shard(value, like, parts) for key, value in of_moments.items()}  # type: ignore[index]
    found = gather_whole({"state_dict": weights, "optimizer_states": [{"state": moments}]})
    if rank == 0:
        whole = read_checkpoint(file)
        assert_equal(found["state_dict"], whole["state_dict"], "weights")
        assert_equal(found["optimizer_states"][0]["state"], whole["optimizer_states"][0]["state"], "moments")


def last_of(folder: Path) -> str:
    return str(folder / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one rank saved."""
    folder = tmp_path_factory.mktemp("one")
    on_ranks(0, 1, str(folder), False)
    return folder


@pytest.fixture(scope="module")
def saved(of_one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks saved, which have also read what one saved."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(on_ranks, args=(2, str(folder), False, last_of(of_one)), nprocs=2)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    made = tmp_path / "copy"
    made.mkdir()
    for file in generations(saved / "checkpoints"):
        os.link(file, made / file.name)
        shards_folder(made / file.name).mkdir()
        for part in shards_folder(file).iterdir():
            (shards_folder(made / file.name) / part.name).write_bytes(part.read_bytes())
    os.link(generations(made)[0], made / "last.ckpt")
    return made


def check_files(saved: Path, rows: list[int]) -> None:
    """Require the newest two generations, which hold what was saved, and these rows of a weight in the parts."""
    place = saved / "checkpoints"
    assert sorted(file.name for file in place.iterdir()) == [
        "generation-000002-samples-000000000002.ckpt",
        "generation-000002-samples-000000000002.shards",
        "generation-000003-samples-000000000004.ckpt",
        "generation-000003-samples-000000000004.shards",
        "last.ckpt",
    ]
    for file, step in zip(generations(place), (4, 2), strict=True):
        assert_equal(read_checkpoint(file), torch.load(saved / f"whole.{step}", weights_only=True), "checkpoint")
    last = read_places(place / "last.ckpt")[0]
    assert last["state_dict"]["0.weight"][PLACE] == "/state_dict/0.weight" and last["state_dict"]["scale"].ndim == 0
    parts = [
        torch.load(part, weights_only=True) for part in sorted(shards_folder(generations(place)[0]).glob("*.part"))
    ]
    assert [part["pieces"]["/state_dict/0.weight"][0].shape[0] for part in parts] == rows


def test_the_parts_are_the_whole_and_one_rank_reads_those_of_two(of_one: Path, saved: Path, tmp_path: Path) -> None:
    check_files(of_one, [5])
    check_files(saved, [3, 2])
    with process_group(tmp_path):
        load(0, 1, last_of(saved))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_that_save_asynchronously_write_the_same(world: int, of_one: Path, saved: Path, tmp_path: Path) -> None:
    files = last_of(of_one), last_of(saved)
    torch.multiprocessing.spawn(on_ranks, args=(world, str(tmp_path), True, *files), nprocs=world)
    check_files(tmp_path, [3, 2] if world == 2 else [2, 2, 1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": lambda shards: flip(shards / "rank-00001.part"),
    "cut": lambda shards: os.truncate(shards / "rank-00000.part", 700),
    "missing": lambda shards: (shards / "rank-00001.part").unlink(),
    "manifest": lambda shards: flip(shards / MANIFEST),
    "no folder": lambda shards: shards.rename(shards.with_name("elsewhere")),
    "exchanged": lambda shards: (shards / "rank-00001.part").write_bytes((shards / "rank-00000.part").read_bytes()),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_part_gives_the_generation_before(kind: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    DAMAGES[kind](shards_folder(generations(folder)[0]))
    with pytest.raises(UserError, match=r"\.shards") as caught:
        read_checkpoint(folder / "last.ckpt")
    assert "\n" not in str(caught.value)
    found = sound_checkpoint(folder / "last.ckpt", replace=True)
    assert found is not None and found[1]["samples_seen"] == 2
    assert [line.count("\n") for line in caplog.messages if "resumes from the checkpoint before" in line] == [0]
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 2


def test_room_is_made_of_whole_generations_and_only_beside_a_good_one(folder: Path) -> None:
    newest, older = generations(folder)
    flip(shards_folder(newest) / "rank-00001.part")
    assert make_room(folder) == [] and older.is_file()  # the older one is the newest good one
    shards_folder(newest).rename(folder / "away")
    newest.unlink()
    (folder / "last.ckpt").unlink()
    assert make_room(folder) == [] and read_checkpoint(older)["global_step"] == 2


def test_a_hostile_manifest_reads_no_other_folder(folder: Path) -> None:
    newest = generations(folder)[0]
    manifest = shards_folder(newest) / MANIFEST
    parts = json.loads(manifest.read_text())
    parts["parts"]["../../x.part"] = parts["parts"].pop("rank-00001.part")
    manifest.write_text(json.dumps(parts))
    with pytest.raises(UserError, match=r"manifest\.json is damaged or of another checkpoint"):
        read_checkpoint(newest)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_with_parts_is_resumed_by_one_rank_and_the_reverse(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    def recipe(name: str) -> dict:
        made = stable_recipe(tmp_path / name, toy_shards, toy_tokenizer, max_samples=48)
        made["checkpoint"] = {"every_n_train_steps": 2}
        return made

    def with_parts(made: dict) -> dict:
        strategy = {"class_path": "leam_mm.optim.sharding.ShardedStrategy", "init_args": {"parts": True}}
        made["trainer"] |= {"strategy": strategy, "devices": 2}
        made["checkpoint"]["asynchronous"] = True
        return made

    whole = run_recorded(recipe("whole"))
    parts = run_recorded(with_parts(recipe("parts")))
    assert len(list((parts / "checkpoints").glob("*.shards"))) == 2
    found, wanted = read_checkpoint(parts), last_checkpoint(whole)
    assert found.keys() == wanted.keys() and load_module(parts, ContrastiveModule).ema is not None
    for name, value in wanted["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    recipes: dict[bool, Callable[[str], dict]] = {True: lambda name: with_parts(recipe(name)), False: recipe}
    for name, first, second in (("grown", False, True), ("shrunk", True, False), ("same", True, True)):
        # The runs of two ranks save asynchronously, those of one in step.
        run_recorded(recipes[first](name), stop_at=3)
        found = read_checkpoint(run_recorded(recipes[second](name)))
        assert found["global_step"] == 6
        for key, value in wanted["state_dict"].items():
            torch.testing.assert_close(found["state_dict"][key], value, rtol=1e-4, atol=1e-5, msg=key)
