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
DIRECTIONS = ("image_to_text", "text_to_image")
EQUAL = "_equal_captions_right"
PROTOCOLS = {
    "": "the published protocol: each image's own captions are right, equal captions of other images are wrong",
    EQUAL: "not the published protocol: a caption is right for every image that has it",
}


class Retrieval(Evaluator):
    """Find the caption of an image among all captions of a language, and the image of a caption.

    Two protocols are measured. `NAME/...` is the published one, whose numbers papers report: only an image's own
    captions are right, every caption of every image is a candidate, and so the equal caption of another image is wrong.
    `NAME_equal_captions_right/...` counts captions with the same text as one candidate, right for every image that has
    it. Both are equal where all captions differ.

    Ranks are pessimistic: every wrong candidate that scores at least as high as the best right one comes before it, so
    an encoder that gives everything the same embedding finds nothing. Several captions of an image count as its share
    of hits; intervals are over images, with all their captions in all languages.

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
        # Per protocol and direction, for each language the ranks of each sample.
        ranks: dict[str, list[list[Tensor]]] = {f"{p}{d}": [] for p in PROTOCOLS for d in DIRECTIONS}
        candidates: dict[str, list[int]] = {protocol: [] for protocol in PROTOCOLS}
        for language in self.languages:
            rows = [row for row, sample in enumerate(samples) if sample.captions(language)]
            found = {key: [torch.empty(0)] * len(samples) for key in ranks}
            if rows:
                captions = [samples[row].captions(language) for row in rows]
                unique = sorted({text for texts in captions for text in texts})
                text = embed_texts(module, unique, self.batch_size, device)
                index = {caption: number for number, caption in enumerate(unique)}
                owned = [torch.tensor([index[caption] for caption in texts]) for texts in captions]
                for protocol, both in zip(PROTOCOLS, ranks_both_ways(image[rows], text, owned, device), strict=True):
                    for direction, values in zip(DIRECTIONS, both, strict=True):
                        for row, rank in zip(rows, values, strict=True):
                            found[f"{protocol}{direction}"][row] = rank
                candidates[""].append(sum(len(texts) for texts in captions))
                candidates[EQUAL].append(len(unique))
            for key, value in found.items():
                ranks[key].append(value)
        metrics, keys = [], [sample.key for sample in samples]
        for protocol, remark in PROTOCOLS.items():
            few, many = min(candidates[protocol]), max(candidates[protocol])
            note = f"among {len(samples)} images and {few} to {many} captions a language; {remark}"
            for direction in DIRECTIONS:
                for top in RECALLS:
                    columns = ranks[f"{protocol}{direction}"]
                    hits = numpy.array([[_share(rank, top) for rank in column] for column in columns]).T
                    name = f"{self.name}{protocol}/{direction}/r{top}"
                    metrics += language_metrics(name, hits, self.languages, note, keys=keys)
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
) -> tuple[tuple[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]:
    """Return the pessimistic ranks of captions for each image, and of images for each caption, by both protocols.

    Args:
        image: (B, D) embeddings.
        text: (T, D) embeddings of captions that all differ.
        owned: For each image the numbers of its captions; each caption belongs to at least one image.
        device: Device for communication between ranks; None is the CPU.

    Returns:
        For the published protocol, and for the one in which equal captions are right: for each image (1,) the number
        of wrong captions that score at least as high as its best right one; and for each image a tensor with that
        number of images for each of its captions.
    """
    device = device or torch.device("cpu")
    owners: list[list[int]] = [[] for _ in range(len(text))]
    for row, numbers in enumerate(owned):
        for number in numbers.tolist():
            owners[number].append(row)
    copies = torch.tensor([len(rows) for rows in owners])

    def captions(part: slice) -> Tensor:
        score = image[part] @ text.T
        own = torch.zeros(score.shape, dtype=torch.long)  # of this part only, to save memory
        for row, numbers in enumerate(owned[part]):
            own[row].index_add_(0, numbers, torch.ones_like(numbers))
        before = score >= score.masked_fill(own == 0, -torch.inf).amax(dim=1, keepdim=True)
        return torch.stack([(before * (copies - own)).sum(dim=1), (before & (own == 0)).sum(dim=1)], dim=1)

    of_caption = torch.tensor([number for numbers in owned for number in numbers.tolist()])
    of_image = torch.tensor([row for row, numbers in enumerate(owned) for _ in numbers.tolist()])

    def images(part: slice) -> Tensor:
        score = text[of_caption[part]] @ image.T
        own = torch.zeros_like(score, dtype=torch.bool)
        right = own.clone()
        own[torch.arange(len(own)), of_image[part]] = True
        for row, number in enumerate(of_caption[part].tolist()):
            right[row, owners[number]] = True
        counts = []
        for good in (own, right):
            best = score.masked_fill(~good, -torch.inf).amax(dim=1, keepdim=True)
            counts.append(((score >= best) & ~good).sum(dim=1))
        return torch.stack(counts, dim=1)

    forward = over_ranks(len(image), CHUNK, lambda part: part, captions, device)
    backward = over_ranks(len(of_caption), CHUNK, lambda part: part, images, device)
    sizes = [len(numbers) for numbers in owned]
    published, equal = ((list(forward[:, k : k + 1]), list(backward[:, k].split(sizes))) for k in (0, 1))
    return published, equal


def _share(rank: Tensor, top: int) -> float:
    return float((rank < top).double().mean()) if len(rank) else float("nan")
