"""Vetting rule: keep samples whose captions fit their image by CLIP score (2104.08718, without its factor of 2.5).

DataComp (2304.14108) keeps the best 30 % by this score after filters on image sizes and captions.
"""

from typing import Any, Literal

import numpy as np

from data_tools.vetting.encoder_rule import EncoderRule
from data_tools.vetting.vetting_rule import Finding, Sample
from leam_mm.errors import UserError


class ClipScore(EncoderRule):
    """Drops samples whose captions do not fit their image.

    Args:
        teacher: Run or checkpoint of a contrastive model, or open_clip's folder or NAME:TAG.
        tokenizer: For open_clip's models, a folder or ``open_clip``; by default the teacher's.
        threshold: Smallest cosine that is kept, in [-1, 1]; None if ``fraction`` is given.
        fraction: Share of samples with the best scores that is kept, in (0, 1]; None if ``threshold`` is given.
        captions: Use the ``best`` caption of a sample, or the ``mean`` over its captions.
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
            raise UserError(f"ClipScore: threshold is {threshold}: give a cosine between -1 and 1")
        if fraction is not None and not 0 < fraction <= 1:
            raise UserError(f"ClipScore: fraction is {fraction}: give a share above 0 and at most 1")
        super().__init__(teacher, tokenizer, device)
        self.threshold, self.fraction, self.captions = threshold, fraction, captions

    def measure(self, samples: list[Sample]) -> np.ndarray:
        """Return cosines, (B, 1) float32."""
        images, texts = self.embed_images(samples), self.embed_texts(samples)
        cosines = [
            text.astype(np.float32) @ image.astype(np.float32) for image, text in zip(images, texts, strict=True)
        ]
        each = [values.max() if self.captions == "best" else values.mean() for values in cosines]
        return np.array(each, np.float32)[:, None]

    def resolve(self, keys: list[str], records: list[dict[str, Any]], measured: np.ndarray) -> list[Finding]:
        """Keep samples that reach the threshold, or the best share; among equal scores the first samples."""
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
