"""Which caption of a sample is drawn: a language first, then a source, then a length, then one of those that remain."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from leam_mm.data.language_balance import LanguageBalance
from leam_mm.data.language_curriculum import LanguageCurriculum
from leam_mm.errors import UserError

Caption = Mapping[str, object]  # with text and language, and mostly source


@dataclass(frozen=True)
class CaptionMixture:
    """How often captions of each source and length are drawn within a language.

    The source is drawn first, then the length, each among those present. If a sample has captions of every kind, the
    shares of language, source and length multiply. A caption with weight 0 is drawn only if the sample has no other.

    Args:
        sources: Relative weight of each ``source`` of a caption (say original, synthetic); 1 for any other.
        short: Relative weight of short captions.
        long: Relative weight of long captions.
        long_from: Number of words from which a caption is long.
    """

    sources: dict[str, float] = field(default_factory=dict)
    short: float = 1.0
    long: float = 1.0
    long_from: int = 16

    def __post_init__(self) -> None:
        """Check the values."""
        weights = {**self.sources, "short": self.short, "long": self.long}
        wrong = {name: weight for name, weight in weights.items() if not 0 <= weight < float("inf")}
        if wrong or not self.short + self.long or self.long_from < 1:
            raise UserError(
                f"captions.mixture has {wrong or self}: weights are numbers from 0, short and long are not both 0, and "
                "long_from is at least 1"
            )

    def source(self, caption: Caption) -> str:
        """Return the source of a caption."""
        if "source" not in caption and self.sources:
            raise UserError(
                f"captions.mixture weighs sources, and the caption {str(caption['text'])[:40]!r} has none: drop "
                "captions.mixture.sources, or encode the latents again if the data are latents"
            )
        return str(caption.get("source", ""))

    def length(self, caption: Caption) -> str:
        """Return ``"long"`` or ``"short"``."""
        return "long" if len(str(caption["text"]).split()) >= self.long_from else "short"

    def source_weight(self, source: str) -> float:
        """Return the relative weight of a source."""
        return self.sources.get(source, 1.0)

    def length_weight(self, length: str) -> float:
        """Return the relative weight of a length."""
        return self.long if length == "long" else self.short

    def wanted(self, captions: Sequence[Caption]) -> Sequence[Caption]:
        """Return the captions with a weight above 0, or all if there are none."""
        weights = [self.source_weight(self.source(one)) * self.length_weight(self.length(one)) for one in captions]
        return [one for one, weight in zip(captions, weights, strict=True) if weight] or captions

    def draw(self, captions: Sequence[Caption], generator: np.random.Generator) -> Sequence[Caption]:
        """Draw a source, then a length; return the captions that have both."""
        captions = _draw_kind(captions, self.source, self.source_weight, generator)
        return _draw_kind(captions, self.length, self.length_weight, generator)


@dataclass(frozen=True)
class CaptionChoice:
    """How the captions of a sample are chosen in training.

    Args:
        language_weights: Relative weight of each language of a sample; 1 for any other.
        language_balance: Weights of the languages by their frequency, multiplied with ``language_weights``; not used in
            validation.
        mixture: Weights of sources and lengths within a language; None draws its captions evenly. Not used in
            validation.
        curriculum: One language at the start of the run; None draws all languages throughout. Not used in validation.
    """

    language_weights: dict[str, float] | None = None
    language_balance: LanguageBalance | None = None
    mixture: CaptionMixture | None = None
    curriculum: LanguageCurriculum | None = None

    def languages_at(
        self,
        captions: Sequence[Caption],
        index: int,
        generator: np.random.Generator,
        languages: Sequence[str] | None = None,
    ) -> Sequence[str] | None:
        """Return the languages from which a caption of the sample that is seen ``index``-th is drawn; None is all.

        Args:
            captions: Captions of the sample.
            index: Number of the sample in the run.
            generator: Generator of this sample.
            languages: What the recipe allows.
        """
        if self.curriculum is None or not self.curriculum.is_alone(index, generator):
            return languages
        alone = self.curriculum.language
        return [alone] if any(caption["language"] == alone for caption in captions) else languages


def choose_caption(
    captions: Sequence[Caption],
    generator: np.random.Generator,
    languages: Sequence[str] | None = None,
    language_weights: Mapping[str, float] | None = None,
    mixture: CaptionMixture | None = None,
) -> Caption:
    """Draw a language among those present, then one of its captions.

    Args:
        captions: Entries with ``text`` and ``language``.
        generator: Generator of this sample (see sample_order.sample_generator).
        languages: Draw only these, if the sample has any of them.
        language_weights: Relative weight of each language; 1 for any other.
        mixture: Weights of sources and lengths within the language; None draws its captions evenly.
    """
    allowed = [caption for caption in captions if languages is None or caption["language"] in languages] or captions
    weights = language_weights or {}
    if mixture is not None:
        allowed = mixture.wanted(allowed)
    chosen = _draw_kind(allowed, lambda one: str(one["language"]), lambda name: weights.get(name, 1.0), generator)
    if mixture is not None:
        chosen = mixture.draw(chosen, generator)
    return chosen[int(generator.integers(len(chosen)))]


def _draw_kind(
    captions: Sequence[Caption],
    kind: Callable[[Caption], str],
    weight: Callable[[str], float],
    generator: np.random.Generator,
) -> Sequence[Caption]:
    """Draw one of the kinds that are present by its relative weight, and return the captions of that kind."""
    present: dict[str, list[Caption]] = {}
    for caption in captions:
        present.setdefault(kind(caption), []).append(caption)
    names = sorted(present)
    weights = [weight(name) for name in names]
    if not any(weights):  # all kinds present have weight 0
        weights = [1.0] * len(names)
    edges = list(accumulate(weights))  # plain floats: numpy takes ten times as long for so few
    return present[names[min(bisect_right(edges, generator.random() * edges[-1]), len(names) - 1)]]
