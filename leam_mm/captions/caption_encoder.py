"""The frozen text tower of our CLIP as a caption encoder, with the text cleaning of the released pipeline."""

from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from leam_mm.data.tokenizer import Tokenizer, cut_padding
from leam_mm.encoders.dual_encoder import DualEncoder

Caption = tuple[Tensor, Tensor]
"""state (B, L, D) and mask (B, L) bool, True at real tokens."""


class TrainedEncoder(Protocol):
    """What a caption encoder takes from a ContrastiveModule."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the captions."""

    def ema_encoder(self) -> DualEncoder:
        """Return the averaged towers."""


def clean_caption(text: str) -> str:
    """Clean a caption as diffusers' PRXPipeline does by default: lower case, no addresses, brackets or markup."""
    return _preprocessor().clean_text(text)


@lru_cache(maxsize=1)
def _preprocessor() -> Any:
    from diffusers.pipelines.prx.pipeline_prx import TextPreprocessor  # imports transformers: seconds, so only here

    return TextPreprocessor()


def caption_tokens(captions: list[str], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Return token ids (B, L) of cleaned captions, cut to the longest one, and their lengths (B,)."""
    text, length = tokenizer.encode([clean_caption(caption) for caption in captions])
    return cut_padding(text, length), length


class CaptionEncoder(nn.Module):
    """Captions to the hidden states of our CLIP's text tower; frozen, always in evaluation mode.

    Args:
        encoder: Both towers; the text side is used.
        tokenizer: Tokenizer of the towers.
    """

    def __init__(self, encoder: DualEncoder, tokenizer: Tokenizer) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.tokenizer = tokenizer

    @classmethod
    def from_module(cls, module: TrainedEncoder) -> "CaptionEncoder":
        """Take the averaged weights of a trained encoder, or the last ones if no average was kept."""
        return cls(module.ema_encoder(), module.tokenizer)

    @property
    def device(self) -> torch.device:
        """Device of the text tower."""
        return next(self.encoder.parameters()).device

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Caption:
        """Clean, tokenize and encode captions; "" is the empty caption of classifier-free guidance.

        Args:
            captions: B captions in any language.

        Returns:
            state (B, L, D), after the final layer norm, and mask (B, L) bool, True from the begin to the end token.
        """
        text, length = self.tokenizer.encode([clean_caption(caption) for caption in captions])
        text, length = text.to(self.device), length.to(self.device)
        mask = torch.arange(text.shape[1], device=self.device) < length[:, None]
        return self.encoder.text_states(text).float(), mask

    def train(self, mode: bool = True) -> "CaptionEncoder":
        """Stay in evaluation mode: the encoder is frozen."""
        return super().train(False)
