"""Forward passes of open_clip's text towers, which skip padding if that does not change the embeddings.

Causal towers use packed captions. Hugging Face's towers mask padding, so they use groups of captions of similar length,
each cut to its longest. Towers that attend to padding (SigLIP's do) use the full context length, as in open_clip.
"""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP
from torch import Tensor, nn

from leam_mm.data.tokenizer import Tokenizer
from leam_mm.encoders.sequence_packing import group_lengths, packed_states
from leam_mm.encoders.token_layout import enable_layouts
from leam_mm.errors import UserError

log = logging.getLogger(__name__)
GROUP_FILLING = 256  # padding tokens that cost about as much as one more forward pass of a tower


class TextForward:
    """Base class of the forward passes through the text tower of ``clip``, which each method takes."""

    def embed(self, clip: Any, text: Tensor, text_length: Tensor) -> Tensor:
        """Embed captions: (B, L) int64 with lengths (B,), preferably on the CPU -> (B, D), not normalised."""
        raise NotImplementedError(f"{type(self).__name__} must implement embed")

    def states(self, clip: Any, text: Tensor) -> Tensor:
        """Return hidden states after the final layer norm: (B, L) int64 -> (B, L, E)."""
        raise UserError(f"the text tower {type(text_tower(clip)).__name__} has no token states: use a causal tower")

    def check(self, clip: Any, tokenizer: Tokenizer) -> None:
        """Raise UserError if the tokenizer's padding or end token does not fit this tower."""


class PackedForward(TextForward):
    """Packed captions for causal towers, where the state of the end token does not depend on the padding."""

    def embed(self, clip: Any, text: Tensor, text_length: Tensor) -> Tensor:
        """Embed packed captions if the lengths are on the CPU, otherwise padded ones to avoid a synchronisation."""
        tower = text_tower(clip)
        if text_length.device.type == "cpu":
            states, packing = packed_states(tower, text, text_length)
            last = states[packing.last]
        else:
            states = self.states(clip, text)
            last = states[torch.arange(len(states), device=states.device), text_length - 1]
        projection = tower.text_projection
        if projection is None:
            return last
        return projection(last) if isinstance(projection, nn.Module) else last @ projection

    def states(self, clip: Any, text: Tensor) -> Tensor:
        """Return hidden states (B, L, E); ignore those of the padding."""
        tower, length = text_tower(clip), text.shape[1]
        states = tower.token_embedding(text) + tower.positional_embedding[:length]
        mask = tower.attn_mask[:length, :length].to(states.dtype)
        return tower.ln_final(tower.transformer(states, attn_mask=mask))

    def check(self, clip: Any, tokenizer: Tokenizer) -> None:
        """Raise UserError if open_clip does not pool at the tokenizer's end token."""
        tower = text_tower(clip)
        pool, wanted = _pooling(tower)
        if pool == "argmax" and tokenizer.end != tokenizer.vocabulary - 1:
            raise UserError(
                f"{tokenizer.path}: the end token has id {tokenizer.end}, not the highest "
                f"({tokenizer.vocabulary - 1}), where this tower pools: retrain the tokenizer"
            )
        if pool == "eos" and tokenizer.end != wanted:
            raise UserError(
                f"{tokenizer.path}: the end token has id {tokenizer.end}, but the text tower pools at {wanted}: "
                "use the tokenizer of this tower"
            )


class GroupedForward(TextForward):
    """Groups of captions of similar length for Hugging Face's towers, each cut to its longest caption."""

    def embed(self, clip: Any, text: Tensor, text_length: Tensor) -> Tensor:
        """Embed captions in groups if the lengths are on the CPU, otherwise as one batch."""
        if text_length.device.type != "cpu":
            return clip.text(text)
        order = text_length.argsort(stable=True)
        groups = group_lengths(text_length[order].tolist(), GROUP_FILLING)
        moved, index = order.to(text.device, non_blocking=True), order.argsort().to(text.device, non_blocking=True)
        rows = text[moved].split([count for count, _ in groups])
        parts = [clip.text(part[:, :length]) for part, (_, length) in zip(rows, groups, strict=True)]
        return torch.cat(parts)[index]

    def states(self, clip: Any, text: Tensor) -> Tensor:
        """Return the last hidden states (B, L, E); ignore those of the padding."""
        tower = clip.text
        mask = (text != tower.config.pad_token_id).long()
        return tower.transformer(input_ids=text, attention_mask=mask).last_hidden_state

    def check(self, clip: Any, tokenizer: Tokenizer) -> None:
        """Raise UserError if the tokenizer's padding is not the tower's, which masks it by its id."""
        wanted = clip.text.config.pad_token_id
        if tokenizer.pad != wanted:
            raise UserError(
                f"{tokenizer.path} pads with id {tokenizer.pad}, but the text tower masks id {wanted}: use the "
                "tokenizer of this tower"
            )


class PaddedForward(TextForward):
    """Full context length, as in open_clip, for towers whose embedding depends on the padding.

    Args:
        context_length: L, tokens per caption.
        pad: Id of the padding token.
    """

    def __init__(self, context_length: int, pad: int) -> None:
        """See the class for the arguments."""
        self.context_length, self.pad = context_length, pad

    def embed(self, clip: Any, text: Tensor, text_length: Tensor) -> Tensor:
        """Embed captions after padding them to the context length; ``text_length`` is ignored."""
        return clip.encode_text(F.pad(text, (0, self.context_length - text.shape[1]), value=self.pad))

    def check(self, clip: Any, tokenizer: Tokenizer) -> None:
        """Raise UserError if the tokenizer's padding is not the tower's, since it changes the embedding."""
        if tokenizer.pad != self.pad:
            raise UserError(
                f"{tokenizer.path} pads with id {tokenizer.pad}, but the text tower was trained with {self.pad}: "
                "use the tokenizer of this tower"
            )


def text_tower(clip: Any) -> Any:
    """Return the text tower: a CLIP itself, which holds the layers of its text tower, or ``clip.text``."""
    return clip if isinstance(clip, CLIP) else clip.text


def choose_text_forward(clip: Any, context_length: int, pad: int) -> TextForward:
    """Return the fastest forward pass that is exact for this tower; log one line if padding must be computed.

    Args:
        clip: A CLIP or CustomTextCLIP of open_clip; its blocks are changed to accept packed captions.
        context_length: L, tokens per caption.
        pad: Id of the padding token in the config, or 0.
    """
    tower = text_tower(clip)
    if isinstance(tower, HFTextEncoder):
        return GroupedForward()
    pool, _ = _pooling(tower)
    if tower.attn_mask is None:
        reason = "its attention is not causal"
    elif getattr(tower, "cls_emb", None) is not None:
        reason = "it has a class token after the caption"
    elif pool not in ("argmax", "eos"):
        reason = f"it pools by {pool}"
    else:
        reason = enable_layouts(tower.transformer, pooled=False)
    if not reason:
        return PackedForward()
    log.info("text tower: captions are padded to the context length (%s)", reason)
    return PaddedForward(context_length, pad)


def _pooling(tower: Any) -> tuple[str, int]:
    """Return the tower's pooling type and the id of its end token."""
    if isinstance(tower, CLIP):
        return tower.text_pool_type, tower.text_eos_id
    return tower.pool_type, tower.eos_id
