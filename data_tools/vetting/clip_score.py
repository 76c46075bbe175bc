"""How well captions fit their picture, by an encoder of ours or of open_clip (CLIP score, 2104.08718, without its 2.5).

DataComp (2304.14108) keeps the best 30 % by such a score of the pictures whose sides and captions are sound.
"""

import argparse
from typing import Any, Literal

import numpy as np
from PIL import Image

from data_tools.download.image_repair import encode_image
from data_tools.vetting.vetting_rule import DatasetRule, Finding, Sample
from leam_mm.errors import UserError


class ClipScore(DatasetRule):
    """Drops samples whose captions do not fit their picture.

    Args:
        teacher: Run or checkpoint of a contrastive training, or open_clip's folder or NAME:TAG.
        tokenizer: Of open_clip's models: a folder, or ``open_clip``; by default the teacher's.
        threshold: Smallest cosine that is kept, in [-1, 1]; None where ``fraction`` decides.
        fraction: Share of the samples that is kept, the best ones, in (0, 1]; None where ``threshold`` decides.
        captions: The ``best`` caption of a sample counts, or their ``mean``.
        device: cpu or cuda.
    """

    name = "clip_score"

    def __init__(
        self,
        teacher: str,
        tokenizer: str | None = None,
        threshold: float | None = None,
        fraction: float | None = None,
        captions: Literal["best", "mean"] = "best",
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> None:
        """See the class for the arguments."""
        if (threshold is None) == (fraction is None):
            raise UserError("ClipScore: give either threshold or fraction")
        if threshold is not None and not -1 <= threshold <= 1:
            raise UserError(f"ClipScore: threshold {threshold} is no cosine, which lie between -1 and 1")
        if fraction is not None and not 0 < fraction <= 1:
            raise UserError(f"ClipScore: fraction {fraction} is no share above 0 and up to 1")
        self.teacher, self.tokenizer, self.threshold, self.fraction = teacher, tokenizer, threshold, fraction
        self.captions, self.device = captions, device
        self._teacher: Any = None
        self._sha256 = ""

    def setting(self) -> dict[str, Any]:
        """With the digest of the weights instead of their place."""
        self._open()
        return super().setting() | {"teacher": self._sha256}

    def __getstate__(self) -> dict[str, Any]:
        """Each process opens the encoder for itself."""
        return vars(self) | {"_teacher": None}

    def _open(self) -> Any:
        if self._teacher is None:
            from concurrent.futures import ThreadPoolExecutor

            import torch  # only here: rules without a network need not wait for it

            from data_tools.embed_shards import Teacher, open_teacher

            torch.set_num_threads(1)  # processes are many; and sums in another order would give other digits
            options = argparse.Namespace(teacher=self.teacher, tokenizer=self.tokenizer)
            encoder, tokenizer, self._sha256 = open_teacher(options)
            device = torch.device(self.device)
            self._teacher = Teacher(encoder.to(device).eval(), tokenizer, device, ThreadPoolExecutor(1))
        return self._teacher

    def measure(self, samples: list[Sample]) -> np.ndarray:
        """Cosines: (B, 1) float32."""
        import torch

        teacher = self._open()
        with torch.no_grad():
            images = teacher.images([(sample.key, {sample.extension: _shown(sample)}) for sample in samples])
            texts = teacher.texts([[str(each["text"]) for each in sample.captions] for sample in samples], 256)
        cosines = [
            text.astype(np.float32) @ image.astype(np.float32) for image, text in zip(images, texts, strict=True)
        ]
        each = [values.max() if self.captions == "best" else values.mean() for values in cosines]
        return np.array(each, np.float32)[:, None]

    def resolve(self, keys: list[str], records: list[dict[str, Any]], measured: np.ndarray) -> list[Finding]:
        """Keep what reaches the threshold, or the best share; of equal ones those that come first."""
        scores = measured[:, 0]
        kept = scores >= (self.threshold if self.threshold is not None else -np.inf)
        if self.fraction is not None:
            best = np.argsort(-scores, kind="stable")[: max(1, round(self.fraction * len(scores)))]
            kept = np.zeros(len(scores), bool)
            kept[best] = True
        limit = f"below {self.threshold:g}" if self.threshold is not None else f"not in the best {self.fraction:.0%}"
        return [
            Finding(f"{score:.4f}", bool(stays), "" if stays else limit, record={"clip_score": round(float(score), 4)})
            for score, stays in zip(scores, kept, strict=True)
        ]


def _shown(sample: Sample) -> bytes:
    """The picture as it will be stored."""
    return encode_image(Image.fromarray(sample.pixels), sample.extension) if sample.changed else sample.content
