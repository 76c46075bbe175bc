"""How captions go through a text tower of open_clip, without computing padding where that changes nothing.

Causal towers read packed captions. Hugging Face's towers mask their padding, so groups of similar length are cut to
their longest. What looks at its padding (SigLIP's towers do) is read whole, as open_clip reads it.
"""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP
from torch import Tensor, nn

from leam_mm.data.tokenizer import Tokenizer
from leam_mm.encoders.sequence_packing import enable_packing, group_lengths, packed_states
from leam_mm.errors import UserError

log = logging.getLogger(__name__)
GROUP_FILLING = 256  # tokens of filling that cost about as much as one more pass through a whole tower


class TextForward:
    """The way of captions through the text tower of ``clip``, which is handed over with each call."""

    def embed(self, clip: Any, text: Tensor, text_length: Tensor) -> Tensor:
        """Captions (B, L) int64 with lengths (B,), best on the host -> (B, D), not yet of unit length."""
        raise NotImplementedError(f"{type(self).__name__} must say how captions are embedded")

    def states(self, clip: Any, text: Tensor) -> Tensor:
        """Hidden states after the final layer norm: (B, L) int64 -> (B, L, E)."""
        raise UserError(f"the text tower {type(text_tower(clip)).__name__} gives no states of single tokens")

    def check(self, clip: Any, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer whose padding or end token this tower does not know."""


class PackedForward(TextForward):
    """Causal towers: the state of the end token does not depend on what follows."""

    def embed(self, clip: Any, text: Tensor, text_length: Tensor) -> Tensor:
        """Packed where the lengths are known on the host; a device is not asked for them, which would make it wait."""
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
        """Of the padding too, which means nothing."""
        tower, length = text_tower(clip), text.shape[1]
        states = tower.token_embedding(text) + tower.positional_embedding[:length]
        mask = tower.attn_mask[:length, :length].to(states.dtype)
        return tower.ln_final(tower.transformer(states, attn_mask=mask))

    def check(self, clip: Any, tokenizer: Tokenizer) -> None:
        """The end token is where open_clip pools."""
        tower = text_tower(clip)
        pool, wanted = _pooling(tower)
        if pool == "argmax" and tokenizer.end != tokenizer.vocabulary - 1:
            raise UserError(
                f"{tokenizer.path}: the end token has id {tokenizer.end}, not the highest "
                f"({tokenizer.vocabulary - 1}), where this tower pools: retrain it"
            )
        if pool == "eos" and tokenizer.end != wanted:
            raise UserError(f"{tokenizer.path}: the end token has id {tokenizer.end}, the text tower pools at {wanted}")


class GroupedForward(TextForward):
    """Towers of Hugging Face: groups of similar length, each cut to its longest caption."""

    def embed(self, clip: Any, text: Tensor, text_length: Tensor) -> Tensor:
        """In groups where the lengths are known on the host."""
        if text_length.device.type != "cpu":
            return clip.text(text)
        order = text_length.argsort(stable=True)
        groups = group_lengths(text_length[order].tolist(), GROUP_FILLING)
        moved, place = order.to(text.device, non_blocking=True), order.argsort().to(text.device, non_blocking=True)
        rows = text[moved].split([count for count, _ in groups])
        parts = [clip.text(part[:, :length]) for part, (_, length) in zip(rows, groups, strict=True)]
        return torch.cat(parts)[place]

    def states(self, clip: Any, text: Tensor) -> Tensor:
        """The tower's last hidden states; those of the padding mean nothing."""
        tower = clip.text
        mask = (text != tower.config.pad_token_id).long()
        return tower.transformer(input_ids=text, attention_mask=mask).last_hidden_state

    def check(self, clip: Any, tokenizer: Tokenizer) -> None:
        """The tower tells padding by its id."""
        wanted = clip.text.config.pad_token_id
        if tokenizer.pad != wanted:
            raise UserError(
                f"{tokenizer.path} pads with id {tokenizer.pad}, the text tower takes {wanted} for padding: give the "
                "tokenizer that belongs to it"
            )


class PaddedForward(TextForward):
    """Towers whose embedding depends on the padding: all of the context, as open_clip does it.

    Args:
        context_length: L.
        pad: Id of the padding.
    """

    def __init__(self, context_length: int, pad: int) -> None:
        """See the class for the arguments."""
        self.context_length, self.pad = context_length, pad

    def embed(self, clip: Any, text: Tensor, text_length: Tensor) -> Tensor:
        """Filled up again to the context; lengths do not matter."""
        return clip.encode_text(F.pad(text, (0, self.context_length - text.shape[1]), value=self.pad))

    def check(self, clip: Any, tokenizer: Tokenizer) -> None:
        """The padding is looked at, so it must be the right one."""
        if tokenizer.pad != self.pad:
            raise UserError(
                f"{tokenizer.path} pads with id {tokenizer.pad}, the text tower was trained with {self.pad}: give the "
                "tokenizer that belongs to it"
            )


def text_tower(clip: Any) -> Any:
    """The text tower; open_clip's older kind keeps its parts in the model itself."""
    return clip if isinstance(clip, CLIP) else clip.text


def choose_text_forward(clip: Any, context_length: int, pad: int) -> TextForward:
    """The way that computes least among those that are exact for this tower; one log line where padding must stay.

    Args:
        clip: A CLIP or CustomTextCLIP of open_clip; its blocks are taught to take packed captions.
        context_length: L.
        pad: Id of the padding where the config names one.
    """
    tower = text_tower(clip)
    if isinstance(tower, HFTextEncoder):
        return GroupedForward()
    pool, _ = _pooling(tower)
    if tower.attn_mask is None:
        reason = "its attention is not causal"
    elif getattr(tower, "cls_emb", None) is not None:
        reason = "it has a class token behind the caption"
    elif pool not in ("argmax", "eos"):
        reason = f"it pools by {pool}"
    else:
        reason = enable_packing(tower.transformer)
    if not reason:
        return PackedForward()
    log.info("text tower: captions are read with all of their padding, for %s", reason)
    return PaddedForward(context_length, pad)


def _pooling(tower: Any) -> tuple[str, int]:
    """Where the tower pools, and the end token that it looks for."""
    if isinstance(tower, CLIP):
        return tower.text_pool_type, tower.text_eos_id
    return tower.pool_type, tower.eos_id
