import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from leam_mm.data.latents_module import LatentDecoding, LatentsModule, read_array
from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import UserError


def stored(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def members(number: int) -> dict[str, bytes]:
    """Latent of the sample's number; state k of its captions is filled with number + k / 8."""
    states = [{"text": f"{number} {k}", "language": "en", "length": k + 1} for k in range(3)]
    caption_state = np.stack([np.full((5, 6), number + k / 8, np.float16) for k in range(3)])
    return {
        "latent.npy": stored(np.full((4, 2, 2), number, np.float16)),
        "caption_state.npy": stored(caption_state),
        "json": json.dumps({"captions": states, "caption_states": states}).encode(),
    }


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents") / "shards"
    with ShardWriter(folder, 5) as writer:
        for number in range(13):
            writer.write(f"{number:06d}", members(number))
    return folder


def test_batch_keeps_latent_and_caption_together(latents: Path) -> None:
    made = LatentsModule(latents, 26, workers=0)
    made.setup("fit")
    batch = next(iter(made.train_dataloader()))
    assert batch["latent"].shape == (26, 4, 2, 2) and batch["latent"].dtype == torch.float32
    # The longest caption of the batch has 3 tokens; what was stored beyond it is padding.
    assert batch["caption_state"].shape == (26, 3, 6) and batch["caption_state"].dtype == torch.float32
    chosen = set()
    for row in range(26):
        number, k = (int(word) for word in batch["caption"][row].split())
        chosen.add(k)
        assert int(batch["key"][row]) == number and torch.all(batch["latent"][row] == number)
        assert torch.all(batch["caption_state"][row] == number + k / 8) and batch["caption_length"][row] == k + 1
    assert chosen == {0, 1, 2}
    assert sorted(batch["key"][:13]) == sorted(batch["key"][13:])


def test_validation_in_order_with_its_own_seed(latents: Path) -> None:
    captions = []
    for seed in (1, 2):
        made = LatentsModule(latents, 4, validation=latents, validation_samples=6, workers=0, seed=seed)
        made.setup("fit")
        batches = list(made.val_dataloader())
        assert [key for batch in batches for key in batch["key"]] == [f"{number:06d}" for number in range(6)]
        captions.append([text for batch in batches for text in batch["caption"]])
    assert captions[0] == captions[1]


def test_image_shards_are_refused(toy_shards: Path) -> None:
    made = LatentsModule(toy_shards, 4, workers=0)
    made.setup("fit")
    with pytest.raises(UserError, match=r"00\d+\.tar, key \d+: its json has no usable caption_states"):
        next(iter(made.train_dataloader()))


def test_pickled_arrays_are_never_executed() -> None:
    harmful = stored(np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"latent\.npy cannot be read"):
        read_array({"latent.npy": harmful}, "latent.npy")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", stored(np.zeros((4, 2, 2)))[:-9]])
def test_damaged_array_is_one_line(content: bytes) -> None:
    with pytest.raises(UserError, match="check_shards"):
        read_array({"latent.npy": content}, "latent.npy")


def test_choice_follows_seed_and_number() -> None:
    texts = {seed: [LatentDecoding(seed)("0", members(0), n)["caption"] for n in range(20)] for seed in (1, 2)}
    assert texts[1] == [LatentDecoding(1)("0", members(0), n)["caption"] for n in range(20)]
    assert texts[1] != texts[2]


def test_missing_member_says_what_these_shards_are() -> None:
    with pytest.raises(UserError, match="no latent shards"):
        read_array({"png": b""}, "latent.npy")
