import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leam_mm.data.array_format import array_bytes, to_stored
from leam_mm.data.latent_members import (
    FEATURE,
    LATENT,
    LOG_VARIANCE,
    read_caption_state,
    read_feature,
    read_latent,
    state_member,
)
from leam_mm.data.latents_module import LatentDecoding, LatentsModule
from leam_mm.data.plan_datamodule import Loading
from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import UserError

SHAPE = (4, 3, 2)


def members(number: int, dtype: str = "float32", spread: float = 0.5, features: bool = True) -> dict[str, bytes]:
    """A latent sample with moments, two text encoders of different widths, and features."""
    generator = np.random.default_rng(number)
    arrays = {
        LATENT: np.full(SHAPE, number, np.float32),
        LOG_VARIANCE: np.full(SHAPE, 2 * np.log(spread), np.float32),
        state_member(0): generator.standard_normal((2, 4, 3)).astype(np.float32),
        state_member(1): generator.standard_normal((2, 5, 2)).astype(np.float32),
    }
    if features:
        arrays[FEATURE] = generator.standard_normal((6, 5)).astype(np.float32)
    captions = [
        {"text": "a", "language": "en", "length": 5, "lengths": [2, 3]},
        {"text": "b", "language": "de", "length": 6, "lengths": [4, 2]},
    ]
    stored = {name: array_bytes(to_stored(array, dtype)) for name, array in arrays.items()}
    return stored | {"json": json.dumps({"captions": captions, "caption_states": captions}).encode()}


def test_draws_have_the_posteriors_mean_and_spread_and_belong_to_seed_and_number() -> None:
    one = members(3)
    draws = torch.stack([read_latent(one, 0, index) for index in range(2000)])
    count = draws.numel()
    assert abs(float(draws.mean()) - 3) < 5 * 0.5 / count**0.5
    assert abs(float(draws.std()) - 0.5) < 5 * 0.5 / (2 * count) ** 0.5
    assert torch.equal(read_latent(one, 0, 7), draws[7]) and not torch.equal(draws[7], draws[8])
    assert not torch.equal(read_latent(one, 1, 7), draws[7])
    del one[LOG_VARIANCE]
    assert torch.all(read_latent(one, 0, 7) == 3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_stored_type_is_read_as_float32(dtype: str) -> None:
    exact, stored = members(2), members(2, dtype)
    step = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 0}[dtype]
    sample, reference = (LatentDecoding(0)("k", each, 5) for each in (stored, exact))
    for name in ("latent", "caption_state", "image_feature"):
        assert sample[name].dtype == torch.float32
        torch.testing.assert_close(sample[name], reference[name], rtol=4 * step, atol=4 * step)
    assert sample["caption_length"] == len(sample["caption_state"])


def test_states_of_two_encoders_are_their_real_tokens() -> None:
    one = members(1)
    entries = json.loads(one["json"])["caption_states"]
    for place, lengths in enumerate([(2, 3), (4, 2)]):
        state = read_caption_state(one, entries[place], place)
        assert state.shape == (sum(lengths), 5)
        assert not state[: lengths[0], 3:].any() and not state[lengths[0] :, :3].any() and state.all(1).sum() == 0
    batch = LatentDecoding(0).collate([LatentDecoding(0)("k", members(n), n) for n in range(12)])
    assert batch["caption_state"].shape == (12, int(batch["caption_length"].max()), 5)
    assert set(batch["caption_length"].tolist()) == {5, 6} and batch["image_feature"].shape == (12, 6, 5)
    padding = torch.arange(batch["caption_state"].shape[1]) >= batch["caption_length"][:, None]
    assert not batch["caption_state"][padding].any()


@pytest.mark.parametrize("change", [{"lengths": [2]}, {"lengths": [5, 3]}, {"lengths": [-1, 3]}, {"lengths": "23"}])
def test_lengths_that_do_not_fit_are_one_line(change: dict[str, Any]) -> None:
    entry = {"length": 5, "lengths": [2, 3]} | change
    if change["lengths"] == [2]:  # fewer encoders are what an older folder has
        assert read_caption_state(members(1), entry, 0).shape == (2, 3)
        return
    with pytest.raises(UserError, match="encode the folder again"):
        read_caption_state(members(1), entry, 0)
    with pytest.raises(UserError, match="holds no caption 2"):
        read_caption_state(members(1), {"length": 1}, 2)


def test_moments_of_another_shape_are_refused_and_wild_ones_stay_finite() -> None:
    one = members(1)
    one[LOG_VARIANCE] = array_bytes(np.full(SHAPE, 1e4, np.float32))
    assert torch.isfinite(read_latent(one, 0, 0)).all()
    one[LOG_VARIANCE] = array_bytes(np.zeros((4, 3), np.float32))
    with pytest.raises(UserError, match=LOG_VARIANCE):
        read_latent(one, 0, 0)
    assert read_feature(members(1, features=False)) == {}


def test_folders_that_differ_cannot_be_mixed() -> None:
    decode = LatentDecoding(0)
    with pytest.raises(UserError, match="only some with --features"):
        decode.collate([decode("a", members(1), 0), decode("b", members(2, features=False), 1)])


def test_batches_with_drawn_latents_resume_exactly(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "latents", 3) as writer:
        for number in range(7):
            writer.write(str(number), members(number))
    batches = []
    for workers in (0, 1):
        made = LatentsModule(tmp_path / "latents", 7, loading=Loading(workers), seed=4)
        made.setup("fit")
        batches.append(next(iter(made.train_dataloader())))
    assert torch.equal(batches[0]["latent"], batches[1]["latent"])
    for row, (key, index) in enumerate(zip(batches[0]["key"], batches[0]["sample_index"], strict=True)):
        assert torch.equal(batches[0]["latent"][row], read_latent(members(int(key)), 4, int(index)))
