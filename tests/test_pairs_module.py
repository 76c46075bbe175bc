import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from toys.images import coloured_square
from toys.shards import first_batch, write_toy_shards

from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.caption_choice import CaptionMixture
from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.language_curriculum import LanguageCurriculum
from leam_mm.data.pairs_module import PairsModule
from leam_mm.data.plan_datamodule import Loading
from leam_mm.data.sample_plan import Source
from leam_mm.data.shard_index import ShardWriter
from leam_mm.data.tokenizer import Tokenizer
from leam_mm.encoders.dual_encoder import DualEncoder, ImageTower, TextTower
from leam_mm.errors import UserError, one_line
from leam_mm.losses.contrastive import InfoNCE


def test_batch_has_what_the_modules_take(toy_shards: Path, toy_tokenizer: Path) -> None:
    batch = first_batch(toy_shards, tokenizer=toy_tokenizer, context_length=12)
    assert batch["image"].shape == (12, 3, 16, 16) and batch["image"].dtype == torch.uint8
    assert batch["sample_index"].tolist() == list(range(12))
    text, length = Tokenizer(toy_tokenizer, 12).encode(batch["caption"])
    assert torch.equal(batch["text"], text[:, : length.max()]) and torch.equal(batch["text_length"], length)
    assert set(batch["language"]) == {"de", "en"} and len(set(batch["key"])) == 12


def test_caption_belongs_to_its_image(toy_shards: Path) -> None:
    words = {"blue": "blau", "green": "grün", "red": "rot", "yellow": "gelb"}
    batch = first_batch(toy_shards, batch_size=48)
    for key, caption in zip(batch["key"], batch["caption"], strict=True):
        colour = sorted(words)[int(key) % 4]
        assert colour in caption or words[colour] in caption


def test_several_captions_per_image_follow_each_other(toy_shards: Path, toy_tokenizer: Path) -> None:
    batch = first_batch(toy_shards, tokenizer=toy_tokenizer, context_length=12, per_image=3, batch_size=24)
    assert batch["image"].shape[0] == 24 and batch["text"].shape[0] == len(batch["caption"]) == 72
    words = {"blue": "blau", "green": "grün", "red": "rot", "yellow": "gelb"}
    for key, *captions in zip(batch["key"], *(batch["caption"][k::3] for k in range(3)), strict=True):
        colour = sorted(words)[int(key) % 4]
        assert all(colour in caption or words[colour] in caption for caption in captions)
    # Drawn independently: the languages of an image's captions differ where they happen to.
    assert len({tuple(batch["language"][3 * k : 3 * k + 3]) for k in range(24)}) > 2
    # The first caption, the crop and the order are those of a run with one caption.
    one = first_batch(toy_shards, tokenizer=toy_tokenizer, context_length=12, batch_size=24)
    assert one["caption"] == batch["caption"][::3] and torch.equal(one["image"], batch["image"])
    with pytest.raises(UserError, match=r"captions\.per_image is 0: give at least 1"):
        first_batch(toy_shards, per_image=0)


def test_loss_of_several_captions_is_the_mean_over_them(toy_shards: Path, toy_tokenizer: Path) -> None:
    batch = first_batch(toy_shards, tokenizer=toy_tokenizer, context_length=12, per_image=3)
    vision = ImageTower(image_size=16, patch_size=8, width=32, layers=1, head_width=16)
    text = TextTower(12, Tokenizer(toy_tokenizer, 12).vocabulary, width=32, heads=2, layers=1)
    module = ContrastiveModule(DualEncoder(16, vision, text), InfoNCE(), str(toy_tokenizer))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    with torch.no_grad():
        loss = module.training_step(batch, 0)
        single = [
            module.training_step({**batch, "text": batch["text"][k::3], "text_length": batch["text_length"][k::3]}, 0)
            for k in range(3)
        ]
    assert loss.item() == pytest.approx(sum(single).item() / 3, rel=1e-6)  # type: ignore[union-attr]


def test_without_tokenizer_there_is_no_text(toy_shards: Path) -> None:
    assert "text" not in first_batch(toy_shards)


def test_languages_choose(toy_shards: Path) -> None:
    assert set(first_batch(toy_shards, languages=["de"])["language"]) == {"de"}
    assert set(first_batch(toy_shards, language_weights={"de": 0.0})["language"]) == {"en"}


def test_one_language_comes_first(toy_shards: Path) -> None:
    first = first_batch(toy_shards, curriculum=LanguageCurriculum("de", 1000, 1000), per_image=3)
    assert set(first["language"]) == {"de"}
    assert len(set(first_batch(toy_shards, curriculum=LanguageCurriculum("de", 0, 0))["language"])) > 1


def test_seed_names_order_crops_and_captions(toy_shards: Path) -> None:
    one, again, other = (first_batch(toy_shards, seed=seed) for seed in (1, 1, 2))
    assert (
        one["key"] == again["key"] and one["caption"] == again["caption"] and torch.equal(one["image"], again["image"])
    )
    assert one["key"] != other["key"]


def test_validation_is_not_augmented(toy_shards: Path) -> None:
    plain = ImageDecoding(16)
    for seed in (1, 2):
        made = PairsModule(
            toy_shards,
            ImageDecoding(16, crop_scale=(0.2, 0.4)),
            4,
            validation=toy_shards,
            loading=Loading(0),
            seed=seed,
        )
        made.setup("validate")
        batch = next(iter(made.val_dataloader()))
        picture = plain(coloured_square("blue", 0), None)  # type: ignore[arg-type]
        assert batch["key"][0] == "000000" and torch.equal(batch["image"][0], picture)


def test_fault_in_a_worker_is_one_line_with_shard_and_key(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "broken", 4) as writer:
        writer.write("000000", {"png": b"no picture", "json": b'{"captions": [{"text": "a", "language": "en"}]}'})
    with pytest.raises(UserError) as caught:
        first_batch(tmp_path / "broken", batch_size=2, workers=1)
    assert "Traceback" in str(caught.value)  # so torch hands it over
    line = one_line(caught.value)
    assert line.startswith(f"{tmp_path}/broken/00000.tar, key 000000: unreadable image")
    assert "\n" not in line and "Traceback" not in line and line.endswith("on the folder")


def test_two_sources_with_weights(toy_shards: Path, tmp_path: Path) -> None:
    more = write_toy_shards(tmp_path / "more", samples=16, first=1000)
    batch = first_batch([Source(toy_shards, 3.0), Source(more, 1.0)], batch_size=200)
    assert 30 < sum(int(key) >= 1000 for key in batch["key"]) < 70  # exact over whole blocks: test_sample_order.py


def test_sources_of_captions_are_drawn_by_the_mixture(tmp_path: Path) -> None:
    captions = [{"text": text, "language": "en", "source": text} for text in ("original", "synthetic", "filename")]
    with ShardWriter(tmp_path / "shards", 8) as writer:
        writer.write("0", {"png": coloured_square("red", 0), "json": json.dumps({"captions": captions}).encode()})
    mixture = CaptionMixture({"original": 1.0, "synthetic": 3.0, "filename": 0.0})
    drawn = Counter(first_batch(tmp_path / "shards", batch_size=400, mixture=mixture)["caption"])
    assert drawn.keys() == {"original", "synthetic"} and abs(drawn["synthetic"] / 400 - 0.75) < 0.087  # 4 deviations
