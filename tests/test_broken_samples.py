import csv
import json
import logging
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from toys.images import coloured_square
from toys.recipes import clip_recipe
from toys.shards import write_toy_shards

from leam_mm.checkpoint import read_checkpoint
from leam_mm.cli import main
from leam_mm.data.batch import PlannedBatches, SamplePosition, batch_loader
from leam_mm.data.broken_samples import BrokenSamples
from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.loader_workers import FromPosition
from leam_mm.data.pairs_module import PairDecoding, PairsModule
from leam_mm.data.plan_datamodule import Loading
from leam_mm.data.sample_plan import SamplePlan, Source
from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import UserError, one_line

BAD_IMAGE, BAD_HEADER = 7, 30


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 samples in 12 shards: one without a picture, one under a destroyed header, a missing and a cut shard."""
    folder = tmp_path_factory.mktemp("damaged") / "shards"
    with ShardWriter(folder, 5) as writer:
        for number in range(60):
            record = {"captions": [{"text": f"number {number}", "language": "en"}]}
            picture = coloured_square("red", number)
            writer.write(
                f"{number:06d}",
                {"png": picture[:60] if number == BAD_IMAGE else picture, "json": json.dumps(record).encode()},
            )
    index = SamplePlan([Source(folder)], 0, False).readers[0].folder.index(BAD_HEADER // 5)
    with open(folder / f"{BAD_HEADER // 5:05d}.tar", "r+b") as file:
        file.seek(int(index.offset[BAD_HEADER % 5]))
        file.write(b"\xff" * 512)
    (folder / "00003.tar").unlink()
    with open(folder / "00009.tar", "r+b") as file:
        file.truncate(1000)
    return folder


BROKEN = {f"{number:06d}" for number in (BAD_IMAGE, BAD_HEADER, *range(15, 20), *range(45, 50))}


def plan(folder: Path, seed: int = 3) -> SamplePlan:
    return SamplePlan([Source(folder)], seed=seed, shuffle=True)


def batches(folder: Path, size: int = 6, rank: int = 0, world: int = 1, replace: bool = True) -> PlannedBatches:
    decode = PairDecoding(ImageDecoding(16, (0.5, 1.0)), seed=3)
    return PlannedBatches(plan(folder), decode, size, rank, world, replace=replace)


def equal(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) if isinstance(left[name], torch.Tensor) else left[name] == right[name]
        for name in left
    )


def whole(tmp_path: Path) -> Path:
    """The same samples without a fault."""
    folder = tmp_path / "whole"
    with ShardWriter(folder, 5) as writer:
        for number in range(60):
            record = {"captions": [{"text": f"number {number}", "language": "en"}]}
            writer.write(f"{number:06d}", {"png": coloured_square("red", number), "json": json.dumps(record).encode()})
    return folder


def test_only_the_broken_samples_are_replaced_and_all_are_named(damaged: Path, tmp_path: Path) -> None:
    good, made = batches(whole(tmp_path)), batches(damaged)
    named: list[str] = []
    for number in range(20):  # two epochs
        left, right = good[number], made[number]
        assert left["sample_index"].tolist() == right["sample_index"].tolist()
        for row, (key, found) in enumerate(zip(left["key"], right["key"], strict=True)):
            if key in BROKEN:
                assert found not in BROKEN and right["caption"][row] == f"number {int(found)}"
                assert right["sample_row"][row] == int(found)
            else:
                assert key == found and torch.equal(left["image"][row], right["image"][row])
        broken = right.get("broken", [])
        assert len(broken) == sum(key in BROKEN for key in left["key"])
        named += broken
    assert len(named) == 2 * len(BROKEN)
    text = "\n".join(named)
    for part in (
        r"00001.tar, key 000007: unreadable image",
        "00006.tar, key 000030: broken tar header",
        "00003.tar is missing",
        "00009.tar has 1000 bytes",
    ):
        assert part in text


@pytest.mark.parametrize("workers", [1, 3, 16])  # 16: more workers than shards
def test_workers_replace_alike_lose_nothing_and_end(damaged: Path, workers: int) -> None:
    alone = list(batch_loader(batches(damaged), FromPosition(0, 12), 0))
    shared = list(batch_loader(batches(damaged), FromPosition(0, 12), workers))
    assert len(alone) == len(shared) == 12 and any("broken" in batch for batch in alone)
    assert all(equal(left, right) for left, right in zip(alone, shared, strict=True))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_replace_alike(damaged: Path, world: int) -> None:
    one, parts = batches(damaged), [batches(damaged, rank=rank, world=world) for rank in range(world)]
    for number in range(10):
        many = [part[number] for part in parts]
        assert one[number]["key"] == [key for part in many for key in part["key"]]
        assert one[number].get("broken", []) == [message for part in many for message in part.get("broken", [])]


def test_resume_goes_on_with_the_same_substitutes(damaged: Path) -> None:
    first = list(batch_loader(batches(damaged), FromPosition(0, 10), 2))
    rest = list(batch_loader(batches(damaged), FromPosition(4, 10), 3))
    assert all(equal(left, right) for left, right in zip(first[4:], rest, strict=True))


def test_without_leave_the_first_broken_sample_ends_the_loading(damaged: Path) -> None:
    with pytest.raises(UserError, match=r"0000\d\.tar"):
        list(batch_loader(batches(damaged, replace=False), FromPosition(0, 10), 0))
    with pytest.raises(UserError) as caught:
        list(batch_loader(batches(damaged, replace=False), FromPosition(0, 10), 2))
    assert "\n" not in one_line(caught.value) and "shards/0000" in one_line(caught.value)


def test_a_folder_with_nothing_to_read_ends_the_loading(tmp_path: Path) -> None:
    folder = write_toy_shards(tmp_path / "gone", samples=8, samples_per_shard=4)
    for tar in folder.glob("*.tar"):
        tar.unlink()
    with pytest.raises(UserError, match=r"is missing.*and none of 64 substitutes can be read"):
        batches(folder, size=2)[0]


def fit(run: Path, shards: Path, tokenizer: Path, max_broken: float, **settings: Any) -> None:
    recipe = clip_recipe(run, shards, tokenizer, **settings)
    recipe["data"]["init_args"]["loading"]["max_broken"] = max_broken
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe))
    main(["fit", "--config", str(path)])


def test_training_counts_logs_sums_up_and_remembers(
    damaged: Path, toy_tokenizer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        fit(tmp_path / "run", damaged, toy_tokenizer, 0.5, max_samples=192, workers=2)
    position = next(
        state
        for name, state in read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["callbacks"].items()
        if name.startswith("SamplePosition")
    )
    drawn = plan(damaged, seed=5)  # the recipe's
    keys = [f"{5 * shard + row:06d}" for _, shard, row in map(drawn.locate, range(192))]
    assert position == {"samples_seen": 192, "broken": sum(key in BROKEN for key in keys)}
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        logged = [row["data/broken"] for row in csv.DictReader(file) if row.get("data/broken")]
    assert {float(value) for value in logged} == {sum(key in BROKEN for key in keys[:128])}  # after 16 batches
    lines = [record.getMessage() for record in caplog.records if "replaced" in record.getMessage()]
    assert sum(message.startswith("replaced: ") for message in lines) == 5
    assert f"{position['broken']} of 192 samples seen" in lines[-1]


def test_too_many_broken_samples_end_the_training(damaged: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"data.init_args.loading.max_broken 0\.1 allows 6.*check_shards.py.*the first was /"
    ):
        fit(tmp_path / "run", damaged, toy_tokenizer, 0.1, max_samples=640)


def test_limit_is_of_an_epoch_of_the_training_or_of_what_was_seen(toy_shards: Path) -> None:
    def limit(steps: int, seen: int) -> float:
        made = PairsModule(toy_shards, ImageDecoding(16), 8, loading=Loading(0, 0.25))
        made.trainer = SimpleNamespace(global_rank=0, world_size=1, accumulate_grad_batches=1, max_steps=steps)  # type: ignore[assignment]
        made.setup("fit")
        return made.broken_limit(seen)

    assert limit(100, 8) == 24  # an epoch has 96 samples
    assert limit(5, 8) == 10  # the training sees 40
    assert limit(100, 400) == 100
    for share in (-0.1, 1.0):
        with pytest.raises(UserError, match="max_broken"):
            PairsModule(toy_shards, ImageDecoding(16), 8, loading=Loading(max_broken=share))


def _count(rank: int, meeting: str, queue: Any) -> None:
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=2)

    def reduce(tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "sum"
        torch.distributed.all_reduce(tensor)
        return tensor

    data = SimpleNamespace(max_broken=0.5, broken_limit=lambda seen: 4.0)
    trainer = SimpleNamespace(datamodule=data, strategy=SimpleNamespace(reduce=reduce))
    module = SimpleNamespace(device="cpu", log=lambda *_, **__: None)
    broken, found = BrokenSamples(every_n_batches=2), []
    try:
        for number in range(6):
            batch = {"broken": ["a.tar, key 1"]} if rank == 1 or number == 0 else {}
            broken.watch(trainer, module, batch, seen=8)  # type: ignore[arg-type]
            found.append(broken.total)
    except UserError as error:
        queue.put((rank, found, str(error)))
    torch.distributed.destroy_process_group()


def test_ranks_add_up_and_end_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")  # a fork would copy locks of this process's threads
    queue = context.Queue()
    ranks = [context.Process(target=_count, args=(rank, f"file://{tmp_path}/meeting", queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    results = sorted(queue.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(60)
    for _, found, message in results:  # 3 after two batches; 5 after four, one more than allowed
        assert found == [0, 3, 3] and message.startswith("5 samples could not be read after 8 were seen")


def test_position_of_an_older_checkpoint_is_read() -> None:
    position = SamplePosition()
    position.load_state_dict({"samples_seen": 16})
    assert position.samples_seen == 16 and position.broken.total == 0
