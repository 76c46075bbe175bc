"""Captions of a batch read the same way from each source: stored states, texts, tokens; dropout and errors."""

from pathlib import Path

import pytest
import torch
from torch import nn
from toys.encoders import tiny_clip
from toys.generators import CAPTION_WIDTH, generator_module

from leam_mm.captions.caption_encoder import CaptionEncoder, caption_tokens
from leam_mm.captions.caption_tower import CaptionTower
from leam_mm.captions.conditioning import Conditioning
from leam_mm.denoisers.denoiser import PRXDenoiser
from leam_mm.encoders.dual_encoder import TextTower
from leam_mm.errors import UserError

TEXTS = ["ein rotes Quadrat", "a blue square", "a red square", "un cercle"] * 4
INDEX = torch.arange(len(TEXTS))


@pytest.mark.parametrize("learning", [False, True])
def test_stored_states_are_read_like_the_texts_they_came_from(learning: bool) -> None:
    conditioning = generator_module(caption_dropout=0.5).conditioning
    state, mask = conditioning.encoder().encode(TEXTS)
    stored = {"caption_state": state, "caption_length": mask.sum(1), "sample_index": INDEX}
    read = [conditioning.read(batch, learning) for batch in (stored, {"caption": TEXTS, "sample_index": INDEX})]
    assert all(torch.equal(one, other) for one, other in zip(*read, strict=True))
    assert torch.equal(read[0][0], state) is not learning  # half of the captions are dropped in training alone


def test_states_of_another_width_are_refused_with_the_key() -> None:
    conditioning = generator_module().conditioning
    state = torch.zeros(len(TEXTS), 3, CAPTION_WIDTH + 1)
    batch = {"caption_state": state, "caption_length": torch.ones(len(TEXTS)), "sample_index": INDEX}
    with pytest.raises(UserError, match="context_dim"):
        conditioning.read(batch)


def test_tokens_of_loader_workers_are_read_like_texts_by_the_tower(toy_tokenizer: Path) -> None:
    frozen = CaptionEncoder.from_module(tiny_clip(toy_tokenizer))  # type: ignore[arg-type]
    vocabulary = frozen.tokenizer.vocabulary
    torch.manual_seed(1)
    denoiser = PRXDenoiser(in_channels=4, context_dim=32, hidden_size=32, depth=1, num_heads=2)
    sizes = {"context_length": 12, "vocab_size": vocabulary, "width": 32, "heads": 2, "layers": 2}
    denoiser.caption_tower = CaptionTower(TextTower(**sizes))

    class Frozen:
        """Opens the encoder without a checkpoint."""

        def caption_encoder(self, width: int) -> CaptionEncoder:
            assert width == 32
            return frozen

    conditioning = Conditioning(Frozen(), denoiser, [], seed=3, dropout=0.5)  # type: ignore[arg-type]
    conditioning.start(new_run=True)
    for weight in denoiser.caption_tower.parameters():
        nn.init.normal_(weight, std=0.1)
    text, length = caption_tokens(TEXTS, frozen.tokenizer)
    texts = {"caption": TEXTS, "sample_index": INDEX}
    tokens = {"prompt": text, "prompt_length": length, "sample_index": INDEX}
    from_texts, from_tokens = conditioning.read(texts, learning=True), conditioning.read(tokens, learning=True)
    assert all(torch.equal(one, other) for one, other in zip(from_texts, from_tokens, strict=True))
    kept = Conditioning(Frozen(), denoiser, [], seed=3, dropout=0.0).read(texts, learning=True)  # type: ignore[arg-type]
    dropped = from_texts[1].sum(1) != kept[1].sum(1)
    assert 0 < dropped.sum() < len(TEXTS)
    state, mask = (part[:, : kept[1].shape[1]] for part in conditioning.read(texts))  # the same tower, no dropout
    assert torch.equal(mask, kept[1])
    assert torch.allclose(state[mask], kept[0][mask], atol=1e-6)
