from types import SimpleNamespace

import pytest
import torch
from torch import nn

from leam_mm.captions.caption_encoder import CaptionEncoder, clean_caption


class WordTokenizer:
    """One id per word, begin 1, end 2, padded with 0 to eight tokens."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen = list(captions)
        rows = [[1, *(3 + len(word) for word in caption.split()), 2] for caption in captions]
        text = torch.tensor([row + [0] * (8 - len(row)) for row in rows])
        return text, torch.tensor([len(row) for row in rows])


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 6)
        self.dropout = nn.Dropout(0.5)

    def text_states(self, text: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.embedding(text))


@pytest.fixture
def encoder() -> CaptionEncoder:
    module = SimpleNamespace(ema_encoder=Tower, tokenizer=WordTokenizer())
    return CaptionEncoder.from_module(module)  # type: ignore[arg-type]


def test_shapes_and_mask(encoder: CaptionEncoder) -> None:
    state, mask = encoder.encode(["ein roter Kreis", "", "δύο"])
    assert state.shape == (3, 8, 6) and state.dtype == torch.float32
    assert mask.sum(1).tolist() == [5, 2, 3]
    assert mask[0].tolist() == [True] * 5 + [False] * 3


def test_captions_are_cleaned_as_by_the_released_pipeline(encoder: CaptionEncoder) -> None:
    encoder.encode(["  Ein ROTER (Kreis) ", "Два кръга"])
    assert encoder.tokenizer.seen == ["ein roter kreis", "два кръга"]  # type: ignore[attr-defined]
    assert clean_caption("Żewġ ċrieki ħomor") == "żewġ ċrieki ħomor"
    assert clean_caption("see https://example.com/a now") == "see now"


def test_it_is_frozen_and_stays_in_evaluation(encoder: CaptionEncoder) -> None:
    encoder.train()
    first, _ = encoder.encode(["a b c"])
    second, _ = encoder.encode(["a b c"])
    assert torch.equal(first, second)  # dropout is off
    assert not first.requires_grad
    assert not any(value.requires_grad for value in encoder.parameters())
