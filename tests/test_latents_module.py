import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from toys.shards import TOY_BUCKETS, latent_members, npy_bytes, write_toy_buckets

from leam_mm.data.array_format import read_array
from leam_mm.data.batch import SamplePosition
from leam_mm.data.caption_choice import CaptionChoice, CaptionMixture
from leam_mm.data.language_balance import LanguageBalance
from leam_mm.data.language_curriculum import LanguageCurriculum
from leam_mm.data.latents_module import LatentDecoding, LatentsModule
from leam_mm.data.plan_datamodule import Loading
from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import UserError


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents") / "shards"
    with ShardWriter(folder, 5) as writer:
        for number in range(13):
            writer.write(f"{number:06d}", latent_members(number))
    return folder


def test_batch_keeps_latent_and_caption_together(latents: Path) -> None:
    made = LatentsModule(latents, 26, loading=Loading(0))
    made.setup("fit")
    batch = next(iter(made.train_dataloader()))
    assert batch["latent"].shape == (26, 4, 2, 2) and batch["latent"].dtype == torch.float32
    # The longest caption of the batch has 3 tokens; what is beyond a caption's end is padding.
    assert batch["caption_state"].shape == (26, 3, 6) and batch["caption_state"].dtype == torch.float32
    chosen = set()
    for row in range(26):
        number, k = (int(word) for word in batch["caption"][row].split())
        chosen.add(k)
        assert int(batch["key"][row]) == number and torch.all(batch["latent"][row] == number)
        state = batch["caption_state"][row]
        assert torch.all(state[: k + 1] == number + k / 8) and not state[k + 1 :].any()
        assert batch["caption_length"][row] == k + 1
    assert chosen == {0, 1, 2}
    assert sorted(batch["key"][:13]) == sorted(batch["key"][13:])


def test_validation_in_order_with_its_own_seed(latents: Path) -> None:
    captions = []
    for seed in (1, 2):
        made = LatentsModule(latents, 4, validation=latents, validation_samples=6, loading=Loading(0), seed=seed)
        made.setup("fit")
        batches = list(made.val_dataloader())
        assert [key for batch in batches for key in batch["key"]] == [f"{number:06d}" for number in range(6)]
        captions.append([text for batch in batches for text in batch["caption"]])
    assert captions[0] == captions[1]


def test_image_shards_are_refused(toy_shards: Path) -> None:
    made = LatentsModule(toy_shards, 4, loading=Loading(0))
    made.setup("fit")
    with pytest.raises(UserError, match=r"00\d+\.tar, key \d+: its json has no usable caption_states"):
        next(iter(made.train_dataloader()))


def test_pickled_arrays_are_never_executed() -> None:
    harmful = npy_bytes(np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"latent\.npy cannot be read"):
        read_array({"latent.npy": harmful}, "latent.npy")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", npy_bytes(np.zeros((4, 2, 2)))[:-9]])
def test_damaged_array_is_one_line(content: bytes) -> None:
    with pytest.raises(UserError, match="check_shards"):
        read_array({"latent.npy": content}, "latent.npy")


def test_choice_follows_seed_and_number() -> None:
    texts = {seed: [LatentDecoding(seed)("0", latent_members(0), n)["caption"] for n in range(20)] for seed in (1, 2)}
    assert texts[1] == [LatentDecoding(1)("0", latent_members(0), n)["caption"] for n in range(20)]
    assert texts[1] != texts[2]


def test_missing_member_says_what_these_shards_are() -> None:
    with pytest.raises(UserError, match="no latent shards"):
        read_array({"png": b""}, "latent.npy")


def bucketed(
    folder: Path, world: int = 1, rank: int = 0, accumulate: int = 1, seen: int = 0, workers: int = 0, **data: Any
) -> LatentsModule:
    """A module over buckets under a trainer that only says who and where it is."""
    made = LatentsModule(folder, 8, validation=folder, loading=Loading(workers), **{"seed": 4, **data})
    position = SamplePosition()
    position.load_state_dict({"samples_seen": seen})
    made.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=world, global_rank=rank, accumulate_grad_batches=accumulate, max_steps=12, callbacks=[position]
    )
    made.setup("fit")
    return made


def seen_by(made: LatentsModule) -> list[tuple[tuple[int, ...], list[str], list[int], list[str]]]:
    """Shape, keys, numbers and captions of each batch."""
    return [
        (tuple(batch["latent"].shape[1:]), batch["key"], batch["sample_index"].tolist(), batch["caption"])
        for batch in made.train_dataloader()
    ]


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_buckets(tmp_path_factory.mktemp("buckets") / "latents")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_buckets_have_one_shape_whoever_loads_them(buckets: Path, workers: int) -> None:
    made = bucketed(buckets, workers=workers)
    batches = list(made.train_dataloader())
    shapes = {(4, height // 8, width // 8) for height, width in TOY_BUCKETS}
    assert {tuple(batch["latent"].shape[1:]) for batch in batches} == shapes
    assert torch.cat([batch["sample_index"] for batch in batches]).tolist() == list(range(96))
    for batch in batches:
        height, width = 8 * batch["latent"].shape[2], 8 * batch["latent"].shape[3]
        expected = torch.tensor([2 * height, 3 * width, 0, width // 2, height, width])
        assert torch.equal(batch["picture_size"], expected.expand(8, 6))
        for key, latent in zip(batch["key"], batch["latent"], strict=True):  # the latent is the key's own
            drawn = np.random.default_rng(int(key)).normal(size=latent.shape).astype(np.float16)
            assert np.array_equal(latent.numpy(), drawn.astype(np.float32))
    assert seen_by(made) == seen_by(bucketed(buckets))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_bucket_of_each_micro_batch(buckets: Path, world: int) -> None:
    whole = seen_by(bucketed(buckets))
    ranks = [seen_by(bucketed(buckets, world, rank)) for rank in range(world)]
    for one, *many in zip(whole, *ranks, strict=True):
        assert {part[0] for part in many} == {one[0]}
        assert [[each for part in many for each in part[column]] for column in (1, 2, 3)] == list(one[1:])


def test_buckets_resume_with_the_next_sample_on_other_ranks(buckets: Path) -> None:
    whole = seen_by(bucketed(buckets))
    assert seen_by(bucketed(buckets, seen=40)) == whole[5:]
    halves = [seen_by(bucketed(buckets, 2, rank, seen=40)) for rank in range(2)]
    assert [one[1] + two[1] for one, two in zip(*halves, strict=True)] == [batch[1] for batch in whole[5:]]


def test_accumulated_batches_have_their_own_buckets_and_the_order_is_in_the_checkpoint(buckets: Path) -> None:
    split = bucketed(buckets, accumulate=2)
    parts = seen_by(split)
    steps = list(zip(parts[::2], parts[1::2], strict=True))
    assert any(one[0] != two[0] for one, two in steps) and split.state_dict() == {"bucket_batch": 4}
    # A run that began without accumulation goes on in its order with it, but not the other way round.
    whole, resumed = bucketed(buckets), bucketed(buckets, accumulate=2, seen=40)
    assert whole.state_dict() == {"bucket_batch": 8}
    resumed.load_state_dict(whole.state_dict())
    found = seen_by(resumed)
    assert [one[1] + two[1] for one, two in zip(found[::2], found[1::2], strict=True)] == [
        batch[1] for batch in seen_by(whole)[5:]
    ]
    with pytest.raises(
        UserError, match="come in runs of 4 samples of one shape in a row, which is no multiple of the micro-batch 8"
    ):
        whole.load_state_dict(split.state_dict())
    with pytest.raises(UserError, match=r"in runs of 8 samples, data\.init_args\.bucket_batch is 16: set it to 8"):
        bucketed(buckets, bucket_batch=16).load_state_dict({"bucket_batch": 8})


@pytest.mark.parametrize("length", [4, 12, 0])
def test_runs_that_a_micro_batch_does_not_divide_are_refused(buckets: Path, length: int) -> None:
    with pytest.raises(UserError, match=rf"bucket_batch is {length} samples of one shape in a row, which is no"):
        bucketed(buckets, bucket_batch=length)


def test_longer_runs_make_accumulation_free(buckets: Path) -> None:
    one, two = (bucketed(buckets, accumulate=count, bucket_batch=8) for count in (1, 4))
    assert [key for batch in seen_by(one) for key in batch[1]] == [key for batch in seen_by(two) for key in batch[1]]


def test_a_folder_without_buckets_has_no_runs(latents: Path) -> None:
    with pytest.raises(UserError, match=r"bucket_batch is for folders of buckets, and data\.train has none"):
        bucketed(latents, bucket_batch=8)
    made = bucketed(latents)
    assert made.state_dict() == {}
    made.load_state_dict({})


def test_buckets_with_few_samples_are_logged(buckets: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        bucketed(buckets)
    assert "3 buckets, height x width: 8x24, 16x16, 24x8" in caplog.text
    assert "fewer samples than a batch of 8 repeat them in it: {'24x8': 7}" in caplog.text


@pytest.mark.parametrize("world", [1, 2])
def test_validation_of_buckets_is_in_order_and_never_mixes(buckets: Path, world: int) -> None:
    ranks = [list(bucketed(buckets, world, rank, validation_samples=24).val_dataloader()) for rank in range(world)]
    keys = [[key for part in parts for key in part["key"]] for parts in zip(*ranks, strict=True)]
    shapes = [{tuple(part["latent"].shape[1:]) for part in parts} for parts in zip(*ranks, strict=True)]
    # Half of 11, 30 and 7 samples, rounded so that the sum is 24; two ranks leave out what they cannot share.
    counts = [5, 15, 4] if world == 1 else [4, 14, 4]
    expected = [f"{first + n:06d}" for first, count in zip((0, 11, 41), counts, strict=True) for n in range(count)]
    assert [key for batch in keys for key in batch] == expected and all(len(found) == 1 for found in shapes)
    assert [len(batch) for batch in keys] == ([5, 8, 7, 4] if world == 1 else [4, 8, 6, 4])


def test_folders_with_and_without_sizes_make_batches_without(tmp_path: Path) -> None:
    decode = LatentDecoding(0)
    whole = latent_members(1)
    record = {**json.loads(whole["json"]), "picture_size": [1, 2, 3, 4, 5, 6]}
    sized = decode("1", {**whole, "json": json.dumps(record).encode()}, 0)
    assert sized["picture_size"].tolist() == [1, 2, 3, 4, 5, 6]
    assert "picture_size" not in decode.collate([sized, decode("2", latent_members(2), 1)])
    assert decode.collate([sized, sized])["picture_size"].shape == (2, 6)


@pytest.mark.parametrize("numbers", [[1, 2], "123456", [1, 2, 3, 4, 5, -6], [1, 2, 3, 4, 5, 6.5]])
def test_a_size_that_is_none_is_one_line(numbers: Any) -> None:
    whole = latent_members(1)
    record = {**json.loads(whole["json"]), "picture_size": numbers}
    with pytest.raises(UserError, match="six whole numbers"):
        LatentDecoding(0)("1", {**whole, "json": json.dumps(record).encode()}, 0)


def test_languages_and_sources_of_stored_captions_in_closed_form(buckets: Path) -> None:
    # Each sample has an English original and a German synthetic caption; German is drawn three times as often.
    made = bucketed(buckets, captions=CaptionChoice({"de": 3.0}))
    mixed = bucketed(buckets, captions=CaptionChoice(mixture=CaptionMixture({"synthetic": 0.0})))
    drawn = Counter[str]()
    for index in range(1200):
        stored = made.train_plan.read(index)  # type: ignore[union-attr]
        sample = made.decode(stored.key, stored.members, index)
        drawn[sample["language"]] += 1
        place = {"en": 0, "de": 1}[sample["language"]]
        assert sample["caption"] == f"{int(stored.key)} {sample['language']}" and sample["caption_length"] == 2 + place
        state = read_array(stored.members, "caption_state.npy")[place, : 2 + place]
        assert np.array_equal(sample["caption_state"].numpy(), state.astype(np.float32))
        assert mixed.decode(stored.key, stored.members, index)["language"] == "en"
    assert abs(drawn["de"] / 1200 - 0.75) < 4 * (0.75 * 0.25 / 1200) ** 0.5
    assert isinstance(made.decode_validation, LatentDecoding) and made.decode_validation.language_weights is None


def test_one_language_comes_first(buckets: Path) -> None:
    curriculum = LanguageCurriculum("de", alone=400, until=1200)
    made = bucketed(buckets, captions=CaptionChoice(curriculum=curriculum))
    german = []
    for index in range(1600):
        stored = made.train_plan.read(index)  # type: ignore[union-attr]
        german.append(made.decode(stored.key, stored.members, index)["language"] == "de")
    assert all(german[:400])
    # The share falls from 1 to 0, and half of the others are German, too.
    for start, share in ((400, 7 / 8), (600, 5 / 8), (800, 3 / 8), (1000, 1 / 8), (1200, 0.0), (1400, 0.0)):
        expected = share + (1 - share) / 2
        assert abs(sum(german[start : start + 200]) / 200 - expected) < 4 * (expected * (1 - expected) / 200) ** 0.5
    stored = made.train_plan.read(0)  # type: ignore[union-attr]
    assert isinstance(made.decode_validation, LatentDecoding)
    drawn = {made.decode_validation(stored.key, stored.members, n)["language"] for n in range(40)}
    assert drawn == {"de", "en"}


def test_languages_are_balanced_by_what_is_stored(tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    with ShardWriter(folder, 16) as writer:
        for number in range(64):  # every caption in en; one in mt for each fourth sample
            parts = latent_members(number)
            stored = [{"text": "x", "language": "en", "length": 1}] + [
                {"text": "y", "language": "mt", "length": 1} for _ in range(number % 4 == 0)
            ]
            several = [*stored, {"text": "z", "language": "fr"}]  # of which nothing was encoded
            writer.write(
                f"{number:06d}", {**parts, "json": json.dumps({"captions": several, "caption_states": stored}).encode()}
            )
    choice = CaptionChoice({"mt": 3.0}, LanguageBalance(2.0))
    made = LatentsModule(folder, 8, captions=choice, loading=Loading(0))
    made.setup("fit")
    assert isinstance(made.decode, LatentDecoding)
    assert made.decode.language_weights == pytest.approx({"en": 8.0, "mt": 3.0 * 4.0})  # roots of 64 and of 16


def test_balance_counts_all_buckets(buckets: Path) -> None:
    made = bucketed(buckets, captions=CaptionChoice(language_balance=LanguageBalance(1.0)))
    assert isinstance(made.decode, LatentDecoding) and made.decode.language_weights == {"en": 48.0, "de": 48.0}
