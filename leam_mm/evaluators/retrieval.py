"""Retrieval in both directions and many languages: recall at 1, 5 and 10 (Karpathy and Fei-Fei 1412.2306)."""

from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from leam_mm.errors import UserError
from leam_mm.evaluators.embedding import ImageSample, embed_images, embed_texts, keep_own_bytes, read_image_samples
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric
from leam_mm.evaluators.language_summary import language_metrics
from leam_mm.evaluators.ranks import agree, over_ranks

CHUNK = 1024
RECALLS = (1, 5, 10)


class Retrieval(Evaluator):
    """Find the caption of an image among all captions of a language, and the image of a caption.

    Ranks are pessimistic: every wrong candidate that scores at least as high as the best right one comes before it, so
    an encoder that gives everything the same embedding finds nothing. Captions with the same text are one candidate and
    right for every image that has it. Several captions of an image count as its share of hits; intervals are a
    bootstrap over images, with all their captions in all languages.

    Args:
        shards: Final shard folder.
        languages: Codes to measure.
        limit: Maximum number of samples, spread evenly over the folder; None takes all. Recall falls as the number
            grows: compare only results of the same number.
        batch_size: Images or texts in one forward pass.
        name: Prefix of the metrics' names.
    """

    def __init__(
        self,
        shards: Path,
        languages: list[str],
        limit: int | None = None,
        batch_size: int = 256,
        name: str = "retrieval",
    ) -> None:
        """See the class for the arguments."""
        self.shards, self.languages, self.limit = Path(shards), languages, limit
        self.batch_size, self.name = batch_size, name

    @torch.no_grad()
    def run(self, context: EvaluationContext) -> list[Metric]:
        """Measure image to text and text to image."""
        samples = agree(self._read, context.device)
        module = context.require_clip()
        image = embed_images(module, samples, self.batch_size, context.device)
        return self.measure(module, image, samples, context.device)

    @torch.no_grad()
    def measure(self, module: Any, image: Tensor, samples: list[ImageSample], device: torch.device) -> list[Metric]:
        """Measure both directions, from embeddings of the images.

        Args:
            module: The contrastive module, on the device.
            image: (B, D) normalised embeddings.
            samples: The images; at least one has a caption in one of the languages.
            device: Device of the networks.
        """
        ranks: dict[str, list[list[Tensor]]] = {"image_to_text": [], "text_to_image": []}
        candidates = []
        for language in self.languages:
            rows = [row for row, sample in enumerate(samples) if sample.captions(language)]
            per_sample: dict[str, list[Tensor]] = {key: [torch.empty(0)] * len(samples) for key in ranks}
            if rows:
                captions = [samples[row].captions(language) for row in rows]
                unique = sorted({text for texts in captions for text in texts})
                text = embed_texts(module, unique, self.batch_size, device)
                index = {caption: number for number, caption in enumerate(unique)}
                owned = [torch.tensor([index[caption] for caption in texts]) for texts in captions]
                forward, backward = ranks_both_ways(image[rows], text, owned, device)
                for number, row in enumerate(rows):
                    per_sample["image_to_text"][row] = forward[number][None]
                    per_sample["text_to_image"][row] = backward[owned[number]]
                candidates.append(len(unique))
            for key, value in per_sample.items():
                ranks[key].append(value)
        note = f"among {len(samples)} pictures and {min(candidates)} to {max(candidates)} different captions a language"
        metrics, keys = [], [sample.key for sample in samples]
        for direction, by_language in ranks.items():
            for top in RECALLS:
                hits = numpy.array([[_share(rank, top) for rank in column] for column in by_language]).T
                metrics += language_metrics(f"{self.name}/{direction}/r{top}", hits, self.languages, note, keys=keys)
        return metrics

    def _read(self) -> list[ImageSample]:
        samples = keep_own_bytes(read_image_samples(self.shards, self.limit, self._has_caption), self.batch_size)
        if not samples:
            raise UserError(f"{self.shards}: no sample has a caption in {', '.join(self.languages)}")
        return samples

    def _has_caption(self, sample: ImageSample) -> bool:
        return any(sample.captions(language) for language in self.languages)


def ranks_both_ways(
    image: Tensor, text: Tensor, owned: list[Tensor], device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return the pessimistic ranks of captions for each image, and of images for each caption.

    Args:
        image: (B, D) embeddings.
        text: (T, D) embeddings of captions that all differ.
        owned: For each image the numbers of its captions; each caption belongs to at least one image.
        device: Device for communication between ranks; None is the CPU.

    Returns:
        (B,) number of wrong captions that score at least as high as the best right one, and (T,) of images likewise.
    """
    device = device or torch.device("cpu")
    owners: list[list[int]] = [[] for _ in range(len(text))]
    for row, numbers in enumerate(owned):
        for number in numbers.tolist():
            owners[number].append(row)
    return _rank(image, text, owned, device), _rank(text, image, [torch.tensor(rows) for rows in owners], device)


def _rank(query: Tensor, candidate: Tensor, right: list[Tensor], device: torch.device) -> Tensor:
    def compute(part: slice) -> Tensor:
        score = query[part] @ candidate.T
        good = torch.zeros_like(score, dtype=torch.bool)  # of this part only, to save memory
        for row, numbers in enumerate(right[part]):
            good[row, numbers] = True
        best = score.masked_fill(~good, -torch.inf).amax(dim=1, keepdim=True)
        return ((score >= best) & ~good).sum(dim=1)

    return over_ranks(len(query), CHUNK, lambda part: part, compute, device)


def _share(rank: Tensor, top: int) -> float:
    return float((rank < top).double().mean()) if len(rank) else float("nan")
