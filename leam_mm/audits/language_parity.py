"""Language parity: an encoder serves every language about as well as the mean of all.

On parallel captions, the same images in all languages: the score of a language is the mean of image-to-text and
text-to-image recall at 1.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from leam_mm.audits.audit import Audit, AuditContext, AuditResult, NotRun
from leam_mm.audits.language_spread import parity_result, results_of_evaluations
from leam_mm.audits.tokenizer_fertility import tokenizer_results
from leam_mm.data.sample_json import sample_captions
from leam_mm.data.shard_index import ShardFolder
from leam_mm.errors import UserError
from leam_mm.evaluators.embedding import ImageSample, embed_images, embed_texts, read_image_samples
from leam_mm.evaluators.results import RESULTS, read_results
from leam_mm.evaluators.retrieval import ranks_both_ways
from leam_mm.languages import LANGUAGES


class LanguageParity(Audit):
    """Compare languages on the images of `held_out` that have a caption in all of them.

    Equal captions are one candidate, right for each image that has it. Ranks are pessimistic. Scores are corrected for
    the chance of a random order. Results: `language_parity` (worst over mean), its tokenizer's `fertility` and
    `truncation`, and the same ratio of what `results` hold: zero-shot classification and text to image.

    Args:
        languages: Codes to compare.
        limit: Maximum number of images, spread evenly over the folder; None takes all.
        batch_size: Images or texts in one forward pass.
        least_parity: Smallest ratio of the worst language to the mean that passes.
        most_fertility: Largest ratio of tokens per word to English that passes.
        most_truncation: Largest share of images with a cut caption that passes.
        fewest: Smallest number of images that may decide: among few, recall at 1 is easy in every language.
        counted: Maximum number of training samples whose captions are counted, spread evenly over `shards`.
    """

    name = "language_parity"

    def __init__(
        self,
        languages: list[str] = list(LANGUAGES),  # noqa: B006 (never changed; jsonargparse shows it in --help)
        limit: int | None = 1000,
        batch_size: int = 256,
        least_parity: float = 0.80,
        most_fertility: float = 2.0,
        most_truncation: float = 0.01,
        fewest: int = 100,
        counted: int = 100_000,
    ) -> None:
        """See the class for the arguments."""
        if len(set(languages)) < 2:
            raise UserError(f"LanguageParity: languages is {languages}; give at least two to compare")
        if limit is not None and limit < 1:
            raise UserError(f"LanguageParity: limit is {limit}; give at least 1, or null for all")
        self.languages, self.limit, self.batch_size = list(dict.fromkeys(languages)), limit, batch_size
        self.least_parity, self.most_fertility = least_parity, most_fertility
        self.most_truncation, self.fewest, self.counted = most_truncation, fewest, counted

    @torch.no_grad()
    def run(self, context: AuditContext) -> list[AuditResult]:
        """Measure recall in each language, and the tokens of its captions."""
        shards = Path(context.require("held_out"))
        context.require("clip")
        samples, languages = parallel_samples(shards, self.languages, self.limit)
        module = context.require_clip()
        image = embed_images(module, samples, self.batch_size, context.device)
        hits, chance = numpy.empty((len(samples), len(languages))), numpy.empty(len(languages))
        for i, code in enumerate(languages):
            captions = [sample.captions(code) for sample in samples]
            unique = sorted({text for texts in captions for text in texts})
            text = embed_texts(module, unique, self.batch_size, context.device)
            index = {caption: number for number, caption in enumerate(unique)}
            owned = [torch.tensor([index[caption] for caption in dict.fromkeys(texts)]) for texts in captions]
            hits[:, i], chance[i] = recall_at_one(image, text, owned, context.device)
        missing = [code for code in self.languages if code not in languages]
        translated = _translated(samples, languages)
        parity = replace(parity_result(
            self.name, hits, chance, languages, self.least_parity,
            f"mean of image-to-text and text-to-image recall at 1 among {len(samples)} images; equal captions count as "
            "one",
            _training_captions(context.shards, self.counted),
            f"no captions in {', '.join(missing)}" if missing else "",
        ), fewest=self.fewest)  # fmt: skip
        for code in languages:
            parity.slices[code]["machine_translated"] = translated[code]
        limits = (self.most_fertility, self.most_truncation)
        found = _earlier_results(context.results)
        return [
            parity,
            *tokenizer_results(self.name, module.tokenizer, samples, languages, *limits),
            *results_of_evaluations(self.name, found, self.languages, context.generator is not None, self.least_parity),
        ]


def parallel_samples(shards: Path, wanted: list[str], limit: int | None) -> tuple[list[ImageSample], list[str]]:
    """Return the samples that have captions in all of the languages that occur, and these languages.

    Raises:
        NotRun: Fewer than two languages occur, or no sample has all that occur.
    """
    found = list(read_image_samples(shards, limit))
    languages = [code for code in wanted if any(sample.captions(code) for sample in found)]
    complete = [sample for sample in found if all(sample.captions(code) for code in languages)]
    if len(languages) < 2 or not complete:
        what = f"no image has captions in all of {', '.join(languages)}" if len(languages) > 1 else "one language only"
        raise NotRun(f"{what}: give parallel captions with --held_out, or fewer `languages`")
    return complete, languages


def recall_at_one(
    image: Tensor, text: Tensor, owned: list[Tensor], device: torch.device
) -> tuple[numpy.ndarray, float]:
    """Return the score (B,) of each image, and the mean score of a random order.

    Args:
        image: (B, D) embeddings.
        text: (T, D) embeddings of captions that all differ.
        owned: For each image the numbers of its captions.
        device: Device for communication between ranks.
    """
    _, (forward, backward) = ranks_both_ways(image, text, owned, device)  # equal captions are right
    owners = torch.bincount(torch.cat(owned), minlength=len(text)).double()
    first = [torch.stack([(ranks < 1).double().mean() for ranks in found]) for found in (forward, backward)]
    # In a random order, the first candidate is one of m right ones among n with probability m / n.
    by_chance = torch.stack([(len(numbers) / len(text) + owners[numbers].mean() / len(image)) / 2 for numbers in owned])
    return torch.stack(first).mean(dim=0).numpy(), float(by_chance.mean())


def _earlier_results(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None:
        return {}
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    if not (folder / RESULTS).is_file():
        raise UserError(f"--results {path}: there is no {RESULTS}; evaluate first, or leave it out")
    return read_results(folder)


def _translated(samples: list[ImageSample], languages: list[str]) -> dict[str, float]:
    """Return the share of machine-translated captions in each language."""
    total: Counter[str] = Counter()
    translated: Counter[str] = Counter()
    for sample in samples:
        for caption in sample_captions(sample.record):
            total[caption["language"]] += 1
            translated[caption["language"]] += bool(caption.get("machine_translated"))
    return {code: translated[code] / max(total[code], 1) for code in languages}


def _training_captions(shards: Path | None, most: int) -> dict[str, int] | None:
    """Return the number of captions by language in the training shards, from at most `most` samples."""
    if shards is None:
        return None
    found: Counter[str] = Counter()
    read = 0
    for sample in read_image_samples(Path(shards), most):
        read += 1
        found.update({caption["language"] for caption in sample_captions(sample.record)})
    scale = ShardFolder(Path(shards)).samples / max(read, 1)
    return {code: round(count * scale) for code, count in found.items()}
