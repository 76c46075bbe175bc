"""Sizes of images and texts as functions of the samples seen."""

from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from toys.recipes import clip_recipe
from toys.runs import assert_same_run, step_losses

from leam_mm.cli import main
from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.pairs_module import PairCaptions, PairsModule
from leam_mm.data.plan_datamodule import Loading
from leam_mm.data.stages import Stage, Stages
from leam_mm.errors import UserError


def test_a_stage_lasts_until_the_next_begins() -> None:
    small, large = Stage(0, 112, text_length=16, patch_dropout=0.5), Stage(64, 224)
    stages = Stages([small, large], 8, 77, seed=0)
    assert [stages.at(index) is small for index in (0, 63, 64, 10**9)] == [True, True, False, False]
    assert [stages.image_size(index) for index in (0, 63, 64)] == [112, 112, 224]
    assert stages.sizes == [112, 224]


def test_a_batch_has_one_size_and_batches_all_of_them_evenly() -> None:
    stages = Stages([Stage(0, [96, 128, 160])], 8, 77, seed=3)
    sizes = [stages.image_size(index) for index in range(8 * 600)]
    assert all(len(set(sizes[first : first + 8])) == 1 for first in range(0, len(sizes), 8))
    assert all(150 < count < 250 for count in Counter(sizes[::8]).values()) and len(set(sizes)) == 3
    assert sizes != [Stages([Stage(0, [96, 128, 160])], 8, 77, seed=4).image_size(index) for index in range(8 * 600)]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "begin at 0 and ascend"),
        ([Stage(8, 32)], "begin at 0 and ascend"),
        ([Stage(0, 32), Stage(16, 32), Stage(16, 64)], "begin at 0 and ascend"),
        ([Stage(0, 32), Stage(12, 64)], r"stages\[1\]\.samples is 12: choose a multiple of the batch size 8"),
        ([Stage(0, [])], "give one size in pixels"),
        ([Stage(0, 32, text_length=99)], "between 3 and 77"),
        ([Stage(0, 32, patch_dropout=1.0)], r"lies in \[0, 1\)"),
    ],
)
def test_mistakes_are_refused_before_the_first_step(stages: list[Stage], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Stages(stages, 8, 77, seed=0)


STAGES = [
    {"samples": 0, "image_size": 8, "text_length": 4, "patch_dropout": 0.0},
    {"samples": 16, "image_size": [16, 24], "patch_dropout": 0.5},
    {"samples": 40, "image_size": 16},
]


def staged(run: Path, shards: Path, tokenizer: Path, workers: int = 0, samples: int = 64) -> dict:
    recipe = clip_recipe(run, shards, tokenizer, max_samples=samples, workers=workers)
    recipe["data"]["init_args"]["stages"] = STAGES
    recipe["model"]["init_args"]["encoder"]["vision"]["patch_dropout"] = 0.25
    return recipe


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_the_sizes_of_their_stage_whoever_loads_them(
    workers: int, toy_shards: Path, toy_tokenizer: Path
) -> None:
    stages = [Stage(**stage) for stage in STAGES]  # type: ignore[arg-type]
    captions = PairCaptions(tokenizer=toy_tokenizer, context_length=12)
    parts = {"captions": captions, "loading": Loading(workers), "seed": 5, "stages": stages}
    module = PairsModule(toy_shards, ImageDecoding(16, (0.7, 1.0)), 8, **parts)  # type: ignore[arg-type]
    module.setup("fit")
    loader = module.train_dataloader()
    batches = list(loader)
    assert module.stages is not None and len(batches) == 12
    sizes = [module.stages.image_size(8 * number) for number in range(12)]
    assert sizes[:2] == [8, 8] and sizes[5:] == [16] * 7 and set(sizes[2:5]) <= {16, 24}
    for number, batch in enumerate(batches):
        assert batch["image"].shape == (8, 3, sizes[number], sizes[number])
        assert batch.get("patch_dropout") == (None if number >= 5 else 0.0 if number < 2 else 0.5)
        if number < 2:  # cut captions end as whole ones do
            assert batch["text"].shape[1] == 4 and batch["text_length"].tolist() == [4] * 8
            assert len(set(batch["text"][:, 3].tolist())) == 1
        assert (batch["text"].shape[1] > 4) == (number >= 2)
    plain = PairsModule(toy_shards, ImageDecoding(16, (0.7, 1.0)), 8, **{**parts, "stages": None})  # type: ignore[arg-type]
    plain.setup("fit")
    assert torch.equal(list(plain.train_dataloader())[7]["image"], batches[7]["image"])


class Killed(BaseException):
    """Nobody catches it."""


class Killer(Callback):
    """Ends the run after a step."""

    step = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # type: ignore[no-untyped-def]
        if trainer.global_step == Killer.step:
            raise Killed


def test_a_staged_run_resumes_bit_for_bit_with_other_workers(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(name: str, workers: int) -> None:
        made = staged(tmp_path / name, toy_shards, toy_tokenizer, workers)
        made["trainer"]["callbacks"] = [{"class_path": f"{__name__}.Killer"}]
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(made))
        main(["fit", "--config", str(tmp_path / f"{name}.yaml")])

    start("whole", 0)
    for step, workers in ((3, 1), (5, 0)):
        monkeypatch.setattr(Killer, "step", step)
        with pytest.raises(Killed):
            start("broken", workers)
    monkeypatch.setattr(Killer, "step", 0)
    start("broken", 2)
    assert len(step_losses(tmp_path / "whole")) == 8
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_size_that_the_tower_cannot_process_is_refused_before_the_first_step(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    made = staged(tmp_path / "run", toy_shards, toy_tokenizer)
    made["data"]["init_args"]["stages"] = [{"samples": 0, "image_size": 12}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(made))
    with pytest.raises(UserError, match="12 x 12 pixels are not a multiple of the patch size 8"):
        main(["fit", "--config", str(tmp_path / "recipe.yaml")])
