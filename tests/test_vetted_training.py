"""Training on a keep-list equals training on materialised shards, sample by sample."""

from pathlib import Path

import pytest
import yaml
from toys.recipes import clip_recipe
from toys.runs import assert_equal, last_checkpoint, step_losses
from toys.shards import first_batch
from toys.vetting import vet, write_rules
from toys.vetting_rules import Third

from leam_mm.checkpoint import EVIDENCE
from leam_mm.cli import main
from leam_mm.data.sample_plan import SamplePlan, Source
from leam_mm.data.shard_index import ShardFolder, read_samples
from leam_mm.errors import UserError


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path) -> list[Path]:
    """Folder with a keep-list, folder of materialised shards."""
    folder = tmp_path_factory.mktemp("both")
    listed = write_rules(folder / "r.yaml", Third)
    return [vet(toy_shards, listed, folder / "list"), vet(toy_shards, listed, folder / "copy", "--materialise")]


def test_the_order_is_the_same(both: list[Path], toy_shards: Path) -> None:
    kept, copied = (SamplePlan([Source(path), Source(toy_shards)], 4, True) for path in both)
    for number in range(200):
        first, second = kept.read(number), copied.read(number)
        assert (first.row, first.key, first.members) == (second.row, second.key, second.members)
        assert kept.read(number, 2)[1:] == copied.read(number, 2)[1:]
    assert list(read_samples(both[0])) == list(read_samples(both[1]))
    assert [entry.samples for entry in ShardFolder(both[0]).shards] == [
        entry.samples for entry in ShardFolder(both[1]).shards
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same(both: list[Path], workers: int) -> None:
    kept, copied = (first_batch(path, batch_size=8, seed=3, workers=workers) for path in both)
    assert_equal(kept, copied, "batch")


@pytest.mark.slow
def test_training_is_the_same(both: list[Path], toy_tokenizer: Path, tmp_path: Path) -> None:
    runs = [tmp_path / "list", tmp_path / "copy"]
    for run, shards in zip(runs, both, strict=True):
        recipe = clip_recipe(run, shards, toy_tokenizer, max_samples=32)
        recipe["data"]["init_args"]["validation"] = str(shards)
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        main(["fit", "--config", str(tmp_path / "recipe.yaml")])
    kept, copied = (last_checkpoint(run) for run in runs)
    assert_equal(kept["state_dict"], copied["state_dict"], "weights")
    assert step_losses(runs[0]) == step_losses(runs[1]) and len(step_losses(runs[0])) == 4
    names = [list(found[EVIDENCE]["data"].values()) for found in (kept, copied)]
    base, _, digest = names[0][0].partition("+keep.")
    assert len(base) == len(digest) == 64 and names == [[ShardFolder(path).merkle_root] for path in both]


def test_a_list_of_other_shards_is_refused(both: list[Path], tmp_path: Path, toy_shards: Path) -> None:
    (tmp_path / "list").mkdir()
    for path in both[0].iterdir():
        (tmp_path / "list" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "list" / "keep.json").write_text(f'{{"shards": "{both[1]}"}}')
    with pytest.raises(UserError, match="Merkle root"):
        SamplePlan([Source(tmp_path / "list")], 4, True)
    (tmp_path / "list" / "keep.json").write_text(f'{{"shards": "{toy_shards}"}}')
    assert SamplePlan([Source(tmp_path / "list")], 4, True).samples == ShardFolder(both[0]).samples
