"""Zero-shot classification in many languages (Radford et al. 2103.00020, section 3.1.4: averaged prompts).

- class_path: leam_mm.evaluators.zero_shot.ZeroShot
  init_args: {name: scenes, shards: runs/quickstart/shards/test, classes: runs/quickstart/scenes/classes.json}
"""

import json
from collections import Counter
from dataclasses import dataclass
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
MOST_CLASSES = 50  # of a confusion table


@dataclass(frozen=True)
class LanguageClasses:
    """The classes of one language.

    Args:
        prompts: For each class of the file, its texts; empty where the language has no name for it.
        group: (C,) classes with equal numbers count as right for one another: ambiguous names or equal spelling.
    """

    prompts: list[list[str]]
    group: list[int]


class ZeroShot(Evaluator):
    """Classify the images of a shard folder by the class names of each language.

    Ties count against the encoder: a class is right within the top k if fewer than k wrong classes score at least as
    high. Classes that a language spells alike, or lists as ambiguous, are right for one another. An image whose class
    has no name in a language is not measured in that language; mean and min compare all languages over the classes that
    every one of them names, so that no language has fewer alternatives to choose from.

    Args:
        shards: Final shard folder; samples whose metadata has a `class_id` of the class file are used.
        classes: Class file with templates and names in each language.
        languages: Codes to measure; None takes all of the class file.
        limit: Maximum number of samples, spread evenly over the folder; None takes all.
        batch_size: Images or texts in one forward pass.
        name: Prefix of the metrics' names.
    """

    def __init__(
        self,
        shards: Path,
        classes: Path,
        languages: list[str] | None = None,
        limit: int | None = None,
        batch_size: int = 256,
        name: str = "zero_shot",
    ) -> None:
        """See the class for the arguments."""
        self.shards, self.classes, self.languages = Path(shards), Path(classes), languages
        self.limit, self.batch_size, self.name = limit, batch_size, name

    @torch.no_grad()
    def run(self, context: EvaluationContext) -> list[Metric]:
        """Measure top-1 and top-5 in each language."""
        class_ids, languages, samples = agree(self._read, context.device)
        module = context.require_clip()
        image = embed_images(module, samples, self.batch_size, context.device)
        return self.measure(module, image, samples, class_ids, languages, context.device)

    @torch.no_grad()
    def measure(
        self,
        module: Any,
        image: Tensor,
        samples: list[ImageSample],
        class_ids: list[str],
        languages: dict[str, LanguageClasses],
        device: torch.device,
    ) -> list[Metric]:
        """Measure top-1 and top-5 in each language, from embeddings of the images.

        Args:
            module: The contrastive module, on the device.
            image: (B, D) normalised embeddings.
            samples: The images; each has one of the classes.
            class_ids: The classes.
            languages: For each language its texts and groups.
            device: Device of the networks.
        """
        index = {class_id: number for number, class_id in enumerate(class_ids)}
        target = torch.tensor([index[str(sample.class_id)] for sample in samples])
        named = torch.tensor([[bool(texts) for texts in entry.prompts] for entry in languages.values()])
        common = named.all(dim=0)
        rank, paired, slices = [], [], {}
        for code, known in zip(languages, named, strict=True):
            text = self._class_embedding(module, languages[code], device)
            group = torch.tensor(languages[code].group)
            ranks, predicted = self._ranks(image, text, target, group, known, device)
            rank.append(ranks)
            same = bool(torch.equal(known, common))
            paired.append(ranks if same else self._ranks(image, text, target, group, common, device)[0])
            slices[code] = {"confusions": confusions(target, predicted, ranks, class_ids), "classes": int(known.sum())}
            slices[code] |= confusion_table(target, predicted, ranks, class_ids)
        metrics = []
        for top in (1, 5):
            if len(class_ids) > top:
                note = f"chance {top / len(class_ids):.2%} with {len(class_ids)} classes"
                if not bool(named.all()):
                    note += f"; languages are compared over the {int(common.sum())} classes that all of them name"
                hits, compared = (_hits(torch.stack(ranks, dim=1), top) for ranks in (rank, paired))
                metrics += language_metrics(
                    f"{self.name}/top{top}",
                    hits,
                    list(languages),
                    note,
                    compared,
                    slices if top == 1 else None,
                    keys=[sample.key for sample in samples],
                )
        return metrics

    def _read(self) -> tuple[list[str], dict[str, LanguageClasses], list[ImageSample]]:
        class_ids, languages = read_classes(self.classes, self.languages)
        known = set(class_ids)
        found = read_image_samples(self.shards, self.limit, lambda sample: sample.class_id in known)
        samples = keep_own_bytes(found, self.batch_size)
        if not samples:
            raise UserError(f"{self.shards}: no sample has a metadata.class_id that {self.classes} lists")
        return class_ids, languages, samples

    def _ranks(
        self, image: Tensor, text: Tensor, target: Tensor, group: Tensor, known: Tensor, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Compute `rank_of_target`, each rank for its part of the images."""

        def compute(part: slice) -> Tensor:
            return torch.stack(rank_of_target(image[part], text, target[part], group, known), dim=1)

        ranks, predicted = over_ranks(len(image), CHUNK, lambda part: part, compute, device).unbind(dim=1)
        return ranks, predicted

    def _class_embedding(self, module: Any, entry: LanguageClasses, device: torch.device) -> Tensor:
        """Return (C, D): the normalised mean of each class's normalised text embeddings; zero for a class without."""
        texts = [text for prompts in entry.prompts for text in prompts]
        owner = torch.tensor([number for number, prompts in enumerate(entry.prompts) for _ in prompts])
        if not texts:
            raise UserError(f"{self.classes}: a language names no class at all; leave it out with `languages`")
        embedding = embed_texts(module, texts, self.batch_size, device).double()
        total = torch.zeros(len(entry.prompts), embedding.shape[1], dtype=torch.float64).index_add_(0, owner, embedding)
        return torch.nn.functional.normalize(total, dim=-1).float()


def read_classes(path: Path, languages: list[str] | None) -> tuple[list[str], dict[str, LanguageClasses]]:
    """Read a class file.

    Args:
        path: JSON with `classes` and `languages` (templates, names, and optionally ambiguous: lists of class ids).
        languages: Codes to read; None reads all.

    Returns:
        The class ids, and for each language its texts and groups.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        class_ids = [str(class_id) for class_id in content["classes"]]
        found = content["languages"]
        missing = sorted(set(languages or []) - set(found))
        if missing:
            raise UserError(f"{path}: has no language {', '.join(missing)}; it has {', '.join(sorted(found))}")
        return class_ids, {code: language_classes(class_ids, found[code]) for code in (languages or sorted(found))}
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); write it with the program that made the links"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: is not a class file ({type(error).__name__}: {error}); write it again") from None


def language_classes(class_ids: list[str], entry: dict[str, Any]) -> LanguageClasses:
    """Return the classes of one language from its entry of a class file: names, templates, ambiguous."""
    names = [[str(name) for name in entry["names"].get(class_id) or []] for class_id in class_ids]
    # format() would let a name or a template reach attributes; replacing braces cannot.
    prompts = [[t.replace("{}", name) for name in own for t in entry.get("templates") or ["{}"]] for own in names]
    parent = list(range(len(class_ids)))

    def root(number: int) -> int:
        while parent[number] != number:
            number = parent[number]
        return number

    index = {class_id: number for number, class_id in enumerate(class_ids)}
    spelled: dict[frozenset[str], list[int]] = {}
    for number, own in enumerate(names):
        if own:
            spelled.setdefault(frozenset(name.casefold() for name in own), []).append(number)
    ambiguous = [[index[str(c)] for c in group if str(c) in index] for group in entry.get("ambiguous") or []]
    for group in [*ambiguous, *spelled.values()]:
        for number in group[1:]:
            parent[root(number)] = root(group[0])
    return LanguageClasses(prompts, [root(number) for number in range(len(class_ids))])


def rank_of_target(image: Tensor, text: Tensor, target: Tensor, group: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rank of the right class, ties counted against it.

    Args:
        image: (B, D) embeddings.
        text: (C, D) class embeddings.
        target: (B,) right class.
        group: (C,) classes of equal number are right for one another.
        known: (C,) bool, classes that may be chosen.

    Returns:
        (B,) number of wrong classes that score at least as high as the best right one, -1 where the target is not
        known; and (B,) the class chosen.
    """
    ranks, predicted = [], []
    for start in range(0, len(image), CHUNK):
        score = (image[start : start + CHUNK] @ text.T).masked_fill(~known, -torch.inf)
        own = target[start : start + CHUNK]
        right = (group[own][:, None] == group[None, :]) & known
        best = score.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        rank = ((score >= best) & ~right & known).sum(dim=1)
        ranks.append(torch.where(known[own], rank, -1))
        wrong = score.masked_fill(right, -torch.inf).argmax(dim=1)
        predicted.append(torch.where(rank > 0, wrong, score.masked_fill(~right, -torch.inf).argmax(dim=1)))
    return torch.cat(ranks), torch.cat(predicted)


def confusions(target: Tensor, predicted: Tensor, rank: Tensor, class_ids: list[str], most: int = 10) -> list[dict]:
    """Return the most frequent mistakes: right class, class chosen instead, and count."""
    wrong = (rank > 0).tolist()
    pairs = Counter(
        (t, p) for t, p, mistaken in zip(target.tolist(), predicted.tolist(), wrong, strict=True) if mistaken
    )
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:most]
    return [{"true": class_ids[t], "predicted": class_ids[p], "count": count} for (t, p), count in ordered]


def confusion_table(target: Tensor, predicted: Tensor, rank: Tensor, class_ids: list[str]) -> dict[str, Any]:
    """Return how many images of each class are taken for each class, for a metric's slices.

    Args:
        target: (B,) right class.
        predicted: (B,) class chosen.
        rank: (B,) rank of the right class; negative for images that are not measured.
        class_ids: The classes.

    Returns:
        {"confusion_table": {"classes": ids, "counts": rows of right classes}}; empty for more than ``MOST_CLASSES``.
    """
    size = len(class_ids)
    if size > MOST_CLASSES:
        return {}
    measured = rank >= 0
    counts = torch.bincount(target[measured] * size + predicted[measured], minlength=size * size)
    return {"confusion_table": {"classes": class_ids, "counts": counts.view(size, size).tolist()}}


def _hits(rank: Tensor, top: int) -> numpy.ndarray:
    return torch.where(rank < 0, torch.nan, (rank < top).double()).numpy()
