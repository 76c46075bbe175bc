"""An image-text encoder that embeds images and texts, with the digest of its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.tokenizer import cut_padding
from leam_mm.data.upright_image import read_upright
from leam_mm.errors import UserError
from leam_mm.inference.embedded_items import MAX_BYTES
from leam_mm.model_address import load_encoder


@dataclass
class Embedder:
    """An encoder on its device.

    Args:
        module: A ContrastiveModule in evaluation mode.
        device: Where it runs.
        sha256: Digest of its weights.
    """

    module: Any
    device: torch.device
    sha256: str

    @classmethod
    def open(cls, address: str | Path, device: str = "cpu") -> "Embedder":
        """Open a run, checkpoint, release, open_clip folder or NAME:TAG; see leam_mm/model_address.py."""
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"--device {device}: no GPU is visible here; give --device cpu")
        module: Any = load_encoder(address)
        return cls(module.to(device), torch.device(device), str(module.checkpoint_evidence["sha256"]))

    @property
    def image_size(self) -> int:
        """H = W in pixels of the images."""
        return int(self.module.ema_encoder().image_size)

    @property
    def size(self) -> int:
        """D, values of an embedding."""
        return int(self.module.ema_encoder().embed_dim)

    @property
    def scale(self) -> float:
        """Inverse temperature with which cosines become logits."""
        return float(self.module.ema_encoder().scale.detach())

    @torch.no_grad()
    def embed_pixels(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return embeddings of images.

        Args:
            images: B arrays (H, W, 3) uint8 of ``image_size``.

        Returns:
            (B, D) float32, each row of length 1.
        """
        encoder = self.module.ema_encoder()
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(self.device)
        return self._unit(encoder.encode_image(encoder.normalise(pixels)))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        """Return embeddings of B texts: (B, D) float32, each row of length 1."""
        encoder, parts = self.module.ema_encoder(), []
        for start in range(0, len(texts), batch_size):
            text, length = self.module.tokenizer.encode(list(texts[start : start + batch_size]))
            parts.append(self._unit(encoder.encode_text(cut_padding(text, length).to(self.device), length)))
        return np.concatenate(parts)

    def _unit(self, embedding: Tensor) -> np.ndarray:
        if not torch.isfinite(embedding).all():
            raise UserError("the encoder gives embeddings that are not finite: its training diverged; take another")
        return normalize(embedding.float(), dim=-1).cpu().numpy()


def embed_query(embedder: Embedder, text: str | None, image: Path | None) -> np.ndarray:
    """Return the embedding of a text or of an image file: (D,) float32 of length 1.

    Raises:
        UserError: The image cannot be read.
    """
    if image is None:
        return embedder.embed_texts([text or ""])[0]
    try:
        with image.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{image} cannot be read ({error.strerror}): give an image file") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{image} has more than {MAX_BYTES} bytes: make it smaller")
    try:
        return embedder.embed_pixels([ImageDecoding(embedder.image_size).centre_square(read_upright(content))])[0]
    except UserError as error:
        raise UserError(f"{image}: {error}") from None
