"""How well captions fit their picture, by an encoder of ours or of open_clip (CLIP score, 2104.08718, without its 2.5).

DataComp (2304.14108) keeps the best 30 % by such a score of the pictures whose sides and captions are sound.
"""

from typing import Any, Literal

import numpy as np

from data_tools.vetting.encoder_rule import EncoderRule
from data_tools.vetting.vetting_rule import Finding, Sample
from leam_mm.errors import UserError


class ClipScore(EncoderRule):
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
        super().__init__(teacher, tokenizer, device)
        self.threshold, self.fraction, self.captions = threshold, fraction, captions

    def measure(self, samples: list[Sample]) -> np.ndarray:
        """Cosines: (B, 1) float32."""
        images, texts = self.embed_images(samples), self.embed_texts(samples)
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
