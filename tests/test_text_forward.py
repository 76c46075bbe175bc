"""Every kind of text tower gives open_clip's own embeddings, and computes as little padding as it may."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn
from toys.encoders import PACKED_LENGTH, VOCABULARY, packed_texts

from leam_mm.encoders.text_forward import PackedForward, PaddedForward, choose_text_forward
from leam_mm.errors import UserError

VISION = {"image_size": 8, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
TEXT = {"context_length": PACKED_LENGTH, "vocab_size": VOCABULARY, "width": 24, "heads": 2, "layers": 2}
SIGLIP = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "pad_id": 1}


def build(kind: type, **text: Any) -> Any:
    torch.manual_seed(0)
    model = kind(16, VISION, {**TEXT, **text})
    tower = model.text if hasattr(model, "text") else model
    nn.init.normal_(tower.positional_embedding)
    return model.double().eval()


@pytest.mark.parametrize(
    ("kind", "text", "reading", "reason"),
    [
        (CLIP, {}, PackedForward, ""),
        (CLIP, {"pool_type": "eos", "eos_id": VOCABULARY - 1}, PackedForward, ""),
        (CustomTextCLIP, {}, PackedForward, ""),
        (CustomTextCLIP, {"proj_bias": True}, PackedForward, ""),
        (CustomTextCLIP, {"proj_type": "none"}, PackedForward, ""),
        (CustomTextCLIP, SIGLIP, PaddedForward, "not causal"),
        (CustomTextCLIP, {"pool_type": "last"}, PaddedForward, "pools by last"),
        (CustomTextCLIP, {"embed_cls": True, "pad_id": 0}, PaddedForward, "class token"),
        (CLIP, {"scale_fc": True}, PaddedForward, "CustomResidualAttentionBlock"),
    ],
)
def test_embeddings_are_those_of_open_clip(
    kind: type, text: dict[str, Any], reading: type, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, (tokens, length) = build(kind, **text), packed_texts()
    pad = text.get("pad_id", 0)
    tokens = torch.where(torch.arange(PACKED_LENGTH) < length[:, None], tokens, pad)
    theirs = model.encode_text(tokens)
    with caplog.at_level("INFO"):
        chosen = choose_text_forward(model, PACKED_LENGTH, pad)
    assert type(chosen) is reading and reason in caplog.text
    torch.testing.assert_close(chosen.embed(model, tokens, length), theirs, rtol=0, atol=1e-12)
    few = length.clamp(max=11)  # a batch whose longest caption is shorter than the context
    short = torch.where(torch.arange(PACKED_LENGTH) < few[:, None], tokens, pad)
    short[torch.arange(len(few)), few - 1] = VOCABULARY - 1
    cut = chosen.embed(model, short[:, :11], few)
    torch.testing.assert_close(cut, model.encode_text(short), rtol=0, atol=1e-12)


def test_lengths_on_the_device_need_no_packing() -> None:
    model, (tokens, length) = build(CLIP), packed_texts()
    reading = choose_text_forward(model, PACKED_LENGTH, 0)
    asked: list[str] = []

    class OnDevice(torch.Tensor):
        @property
        def device(self) -> torch.device:  # type: ignore[override]
            asked.append("device")
            return torch.device("meta")

    far = length.as_subclass(OnDevice)
    torch.testing.assert_close(
        reading.embed(model, tokens, far).as_subclass(torch.Tensor), reading.embed(model, tokens, length)
    )
    assert asked


def test_states_need_a_causal_tower() -> None:
    model, (tokens, _) = build(CustomTextCLIP, **SIGLIP), packed_texts()
    with pytest.raises(UserError, match="has no token states"):
        choose_text_forward(model, PACKED_LENGTH, 1).states(model, tokens)
    causal = build(CustomTextCLIP)
    states = choose_text_forward(causal, PACKED_LENGTH, 0).states(causal, tokens)
    pooled = F.normalize(states[torch.arange(8), tokens.argmax(1)] @ causal.text.text_projection, dim=-1)
    torch.testing.assert_close(pooled, causal.encode_text(tokens, normalize=True))


@pytest.mark.parametrize(
    ("text", "tokenizer", "message"),
    [
        ({}, {"end": 2, "pad": 0}, "id 2, not the highest"),
        ({"pool_type": "eos", "eos_id": 3}, {"end": 2, "pad": 0}, "id 2, but the text tower pools at 3"),
        (SIGLIP, {"end": 1, "pad": 0}, "pads with id 0, but the text tower was trained with 1"),
    ],
)
def test_tokenizers_of_other_towers_are_refused(text: dict[str, Any], tokenizer: dict[str, int], message: str) -> None:
    model = build(CustomTextCLIP, **text)
    given: Any = SimpleNamespace(path=Path("words"), vocabulary=VOCABULARY, **tokenizer)
    with pytest.raises(UserError, match=message):
        choose_text_forward(model, PACKED_LENGTH, text.get("pad_id", 0)).check(model, given)
