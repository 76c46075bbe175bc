"""Base class of vetting rules that compare embeddings of an image-text encoder, ours or open_clip's."""

from typing import Any

import numpy as np
from PIL import Image

from data_tools.samples.image_repair import encode_image
from data_tools.vetting.vetting_rule import DatasetRule, Sample


class EncoderRule(DatasetRule):
    """A rule with an encoder, which each process opens when it first needs it.

    The digest of its weights, not its path, is part of the rule's settings.

    Args:
        teacher: Run or checkpoint of a contrastive model, or open_clip's folder or NAME:TAG.
        tokenizer: For open_clip's models, a folder or ``open_clip``; by default the teacher's.
        device: cpu or cuda.
    """

    def __init__(self, teacher: str, tokenizer: str | None, device: str) -> None:
        """See the class for the arguments."""
        self.teacher, self.tokenizer, self.device = teacher, tokenizer, device
        self._opened: Any = None

    def setting(self) -> dict[str, Any]:
        """Return the settings with the digest of the weights in place of their path."""
        return super().setting() | {"teacher": self.encoder().sha256}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the encoder out: each process opens its own."""
        return vars(self) | {"_opened": None}

    def encoder(self) -> Any:
        """Return the ``Teacher`` of data_tools/latents/shard_embedding.py, opened at the first call."""
        if self._opened is None:
            import torch  # only here: rules without a network need not load it

            from data_tools.latents.shard_embedding import open_teacher

            torch.set_num_threads(1)  # several processes share the cores; and another order of sums gives other digits
            self._opened = open_teacher(self.teacher, self.tokenizer, self.device)
        return self._opened

    def embed_images(self, samples: list[Sample]) -> np.ndarray:
        """Return embeddings of the images as they will be stored: (B, D) float16 of unit length."""
        return self.encoder().embed_images([(sample.key, {sample.extension: _stored(sample)}) for sample in samples])

    def embed_texts(self, samples: list[Sample]) -> list[np.ndarray]:
        """Return embeddings of each sample's captions: B arrays (K, D) float16 of unit length."""
        return self.encoder().embed_texts(
            [[str(entry["text"]) for entry in sample.captions] for sample in samples], 256
        )


def _stored(sample: Sample) -> bytes:
    """Return the image file as it will be stored."""
    return encode_image(Image.fromarray(sample.pixels), sample.extension) if sample.changed else sample.content
