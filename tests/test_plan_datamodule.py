from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from leam_mm.data.batch import SamplePosition
from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.pairs_module import PairsModule
from leam_mm.data.plan_datamodule import Loading
from leam_mm.data.stages import Stage, Stages
from leam_mm.errors import UserError


def module(
    shards: Path, world: int = 1, rank: int = 0, accumulate: int = 1, seen: int = 0, steps: int = 6, size: int = 8
) -> PairsModule:
    """A module under a trainer that only says who and where it is."""
    made = PairsModule(shards, ImageDecoding(16), size, shards, 21, loading=Loading(0), seed=4)
    position = SamplePosition()
    position.load_state_dict({"samples_seen": seen})
    made.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=world,
        global_rank=rank,
        accumulate_grad_batches=accumulate,
        max_steps=steps,
        callbacks=[position],
    )
    made.setup("fit")
    return made


def numbers(made: PairsModule) -> list[list[int]]:
    return [batch["sample_index"].tolist() for batch in made.train_dataloader()]


def test_two_ranks_load_the_batches_of_one(toy_shards: Path) -> None:
    whole = numbers(module(toy_shards))
    assert whole == [list(range(8 * step, 8 * step + 8)) for step in range(6)]
    ranks = [numbers(module(toy_shards, world=2, rank=rank)) for rank in range(2)]
    assert whole == [first + second for first, second in zip(*ranks, strict=True)]


def test_accumulation_splits_the_batch_in_order(toy_shards: Path) -> None:
    whole, parts = numbers(module(toy_shards)), numbers(module(toy_shards, accumulate=4))
    assert len(parts) == 24
    assert [number for batch in parts for number in batch] == [number for batch in whole for number in batch]


def test_resume_goes_on_at_the_samples_seen(toy_shards: Path) -> None:
    whole = numbers(module(toy_shards))
    assert numbers(module(toy_shards, seen=32)) == whole[4:]
    # Another number of ranks or micro-batches is free to go on from any step.
    resumed = numbers(module(toy_shards, seen=32, accumulate=2))
    assert [first + second for first, second in zip(resumed[::2], resumed[1::2], strict=True)] == whole[4:]


def test_another_batch_size_resumes_at_any_sample_and_ends_at_the_same_one(toy_shards: Path) -> None:
    # 20 samples were seen with another batch size; the last step holds the 4 samples that are left of 48.
    rest = numbers(module(toy_shards, seen=20))
    assert rest == [list(range(20, 28)), list(range(28, 36)), list(range(36, 44)), list(range(44, 48))]
    made = module(toy_shards, seen=20, accumulate=2)
    assert [len(batch) for batch in numbers(made)] == [4, 4, 4, 4, 4, 4, 2, 2]
    assert made.spans is not None and [made.spans.size_after(seen) for seen in (20, 40, 44, 46)] == [4, 4, 2, 2]
    ranks = [numbers(module(toy_shards, world=2, rank=rank, seen=20)) for rank in range(2)]
    assert rest == [first + second for first, second in zip(*ranks, strict=True)]
    with pytest.raises(UserError, match=r"hold 4 samples .* 8 ranks .* set max_samples to 44 or 52"):
        module(toy_shards, world=8, seen=20).train_dataloader()


def test_a_batch_of_one_drawn_size_begins_where_the_size_was_drawn(toy_shards: Path) -> None:
    made = module(toy_shards, seen=20)
    made.stages = Stages([Stage(0, [8, 16])], 8, 77, seed=4)
    with pytest.raises(UserError, match=r"after 20 samples, which is no multiple of the batch size 8.*stages"):
        made.train_dataloader()


@pytest.mark.parametrize(("world", "accumulate"), [(3, 1), (2, 3), (16, 1)])
def test_divisibility_names_numbers_and_cure(toy_shards: Path, world: int, accumulate: int) -> None:
    with pytest.raises(UserError) as caught:
        module(toy_shards, world=world, accumulate=accumulate)
    for part in ("8", f"{world} ranks", f"{accumulate} accumulated", f"choose a multiple of {world * accumulate}"):
        assert part in str(caught.value)


def test_validation_walks_the_manifest_in_order(toy_shards: Path) -> None:
    batches = list(module(toy_shards).val_dataloader())
    assert [len(batch["key"]) for batch in batches] == [8, 8, 5]
    assert [key for batch in batches for key in batch["key"]] == [f"{number:06d}" for number in range(21)]
    again = list(module(toy_shards, seen=16).val_dataloader())
    assert all(torch.equal(left["image"], right["image"]) for left, right in zip(batches, again, strict=True))


def test_validation_of_two_ranks_takes_equal_steps(toy_shards: Path) -> None:
    ranks = [list(module(toy_shards, world=2, rank=rank).val_dataloader()) for rank in range(2)]
    assert [len(batches) for batches in ranks] == [2, 2]
    keys = [key for first, second in zip(*ranks, strict=True) for key in first["key"] + second["key"]]
    assert keys == [f"{number:06d}" for number in range(16)]


def test_without_a_trainer_an_epoch_is_all_samples(toy_shards: Path) -> None:
    made = PairsModule(toy_shards, ImageDecoding(16), 20, loading=Loading(0))
    made.setup("fit")
    assert len(made.train_dataloader()) == 5  # 96 samples, the last batch begins the next epoch
    assert made.val_dataloader() == []
    assert made.micro_batch_size == 20


def test_missing_folder_is_named(tmp_path: Path) -> None:
    made = PairsModule(tmp_path / "nothing", ImageDecoding(16), 8, loading=Loading(0))
    with pytest.raises(UserError, match=r"nothing is no shard folder"):
        made.setup("fit")
