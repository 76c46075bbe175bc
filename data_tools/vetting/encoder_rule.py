"""Vetting rules that look through an image-text encoder of ours or of open_clip, each process opening it for itself."""

import argparse
from typing import Any

import numpy as np
from PIL import Image

from data_tools.samples.image_repair import encode_image
from data_tools.vetting.vetting_rule import DatasetRule, Sample


class EncoderRule(DatasetRule):
    """A rule with an encoder, opened when it is first asked; its digest, not its place, is part of the settings.

    Args:
        teacher: Run or checkpoint of a contrastive training, or open_clip's folder or NAME:TAG.
        tokenizer: Of open_clip's models: a folder, or ``open_clip``; by default the teacher's.
        device: cpu or cuda.
    """

    def __init__(self, teacher: str, tokenizer: str | None, device: str) -> None:
        """See the class for the arguments."""
        self.teacher, self.tokenizer, self.device = teacher, tokenizer, device
        self._opened: Any = None
        self._sha256 = ""

    def setting(self) -> dict[str, Any]:
        """With the digest of the weights instead of their place."""
        self.opened()
        return super().setting() | {"teacher": self._sha256}

    def __getstate__(self) -> dict[str, Any]:
        """Each process opens the encoder for itself."""
        return vars(self) | {"_opened": None}

    def opened(self) -> Any:
        """The encoder with its tokenizer, as data_tools/embed_shards.py asks it."""
        if self._opened is None:
            from concurrent.futures import ThreadPoolExecutor

            import torch  # only here: rules without a network need not wait for it

            from data_tools.embed_shards import Teacher, open_teacher

            torch.set_num_threads(1)  # processes are many; and sums in another order would give other digits
            options = argparse.Namespace(teacher=self.teacher, tokenizer=self.tokenizer)
            encoder, tokenizer, self._sha256 = open_teacher(options)
            device = torch.device(self.device)
            self._opened = Teacher(encoder.to(device).eval(), tokenizer, device, ThreadPoolExecutor(1))
        return self._opened

    def embed_images(self, samples: list[Sample]) -> np.ndarray:
        """Embeddings of the pictures as they will be stored: (B, D) float16 of unit length."""
        import torch

        with torch.no_grad():
            return self.opened().images([(sample.key, {sample.extension: _shown(sample)}) for sample in samples])

    def embed_texts(self, samples: list[Sample]) -> list[np.ndarray]:
        """Embeddings of each sample's captions: B arrays (K, D) float16 of unit length."""
        import torch

        texts = [[str(caption["text"]) for caption in sample.captions] for sample in samples]
        with torch.no_grad():
            return self.opened().texts(texts, 256)


def _shown(sample: Sample) -> bytes:
    """The picture as it will be stored."""
    return encode_image(Image.fromarray(sample.pixels), sample.extension) if sample.changed else sample.content
