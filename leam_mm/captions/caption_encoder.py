"""The frozen text tower that tells a generator what to draw, with the text preprocessing of the released pipeline."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from leam_mm.contrastive_module import ContrastiveModule
    from leam_mm.data.tokenizer import Tokenizer
    from leam_mm.encoders.dual_encoder import DualEncoder


def clean_caption(text: str) -> str:
    """Clean a caption as diffusers' PRXPipeline does by default: lower case, no addresses, brackets or markup."""
    return _preprocessor().clean_text(text)


@lru_cache(maxsize=1)
def _preprocessor() -> Any:
    from diffusers.pipelines.prx.pipeline_prx import TextPreprocessor  # imports transformers: seconds, so only here

    return TextPreprocessor()


class CaptionEncoder(nn.Module):
    """Captions to the hidden states of our CLIP's text tower; frozen, always in evaluation mode.

    Args:
        encoder: Both towers; the text side is used.
        tokenizer: That of the towers.
    """

    def __init__(self, encoder: "DualEncoder", tokenizer: "Tokenizer") -> None:
        """See the class for the arguments."""
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.tokenizer = tokenizer

    @classmethod
    def from_module(cls, module: "ContrastiveModule") -> "CaptionEncoder":
        """Take the averaged weights of a trained encoder, or the last ones where no average was kept."""
        return cls(module.ema_encoder(), module.tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the text tower is."""
        return next(self.encoder.parameters()).device

    @torch.no_grad()
    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Clean, tokenize and encode captions; "" is the caption that classifier-free guidance pushes away from.

        Args:
            captions: B of them, any language.

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
