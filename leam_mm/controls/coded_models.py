"""Stand-ins for trained models in controls: an encoder with given embeddings, and a generator of given images."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from leam_mm.data.tokenizer import Tokenizer


class CodedEncoder:
    """Stands for a contrastive module and its encoder; images and texts have the embeddings of two functions.

    Args:
        image_embedding: Function of (B, 3, H, W) uint8, gives (B, D).
        text_embedding: Function of a text, gives (D,).
        tokenizer: A tokenizer for the audit of tokens; None counts words.
        image_size: Side of the images.
        scale: Inverse temperature.
    """

    def __init__(
        self,
        image_embedding: Callable[[Tensor], Tensor],
        text_embedding: Callable[[str], Tensor],
        tokenizer: Tokenizer | None = None,
        image_size: int = 8,
        scale: float = 100.0,
    ) -> None:
        """See the class for the arguments."""
        self.image_embedding, self.text_embedding, self.real = image_embedding, text_embedding, tokenizer
        self.image_size, self.scale, self.tokenizer = image_size, torch.tensor(scale), self
        self.context_length = tokenizer.context_length if tokenizer is not None else 77
        self.texts: list[str] = []

    def ema_encoder(self) -> "CodedEncoder":
        """Return the encoder."""
        return self

    def to(self, device: torch.device) -> "CodedEncoder":
        """Return itself: it computes where its functions do."""
        return self

    def eval(self) -> "CodedEncoder":
        """Return itself: it has no training mode."""
        return self

    def origin(self) -> dict[str, str]:
        """Return no evidence: there are no weights."""
        return {}

    def normalise(self, image: Tensor) -> Tensor:
        """Return the pixels as they are."""
        return image

    def encode_image(self, image: Tensor) -> Tensor:
        """Return the embeddings (B, D)."""
        return self.image_embedding(image).float()

    def encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Return the number of each text (B, 1) in place of its tokens, and lengths (B,)."""
        first = len(self.texts)
        self.texts += texts
        return torch.arange(first, first + len(texts))[:, None], torch.ones(len(texts), dtype=torch.int64)

    def encode_text(self, text: Tensor, length: Tensor) -> Tensor:
        """Return the embeddings (B, D) of the numbered texts."""
        return torch.stack([self.text_embedding(self.texts[number]) for number in text[:, 0].tolist()]).float()

    def full_lengths(self, captions: list[str]) -> Tensor:
        """Return the number of tokens (B,) with begin and end."""
        if self.real is not None:
            return self.real.full_lengths(captions)
        return torch.tensor([len(text.split()) + 2 for text in captions])


class CodedGenerator:
    """Stands for a diffusion module; each image is a function of its prompt and its number.

    Args:
        image: Function of prompt and number, gives (3, H, W) in [0, 1].
    """

    def __init__(self, image: Callable[[str, int], Tensor]) -> None:
        """See the class for the arguments."""
        self.image = image

    def sample(self, prompts: list[str], first_index: int = 0, **settings: Any) -> Tensor:
        """Return the images (B, 3, H, W) of the prompts."""
        return torch.stack([self.image(text, first_index + number) for number, text in enumerate(prompts)])
