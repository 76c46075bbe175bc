"""Language balance: languages are drawn in proportion to count ** (1 / temperature) (Arivazhagan et al. 1907.05019)."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from leam_mm.data.batch import read_record
from leam_mm.data.sample_plan import SamplePlan, SampleReader, Source
from leam_mm.errors import UserError

COUNTED_SHARDS, COUNTED_SAMPLES = 16, 4096  # read per source; more would delay the start
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LanguageBalance:
    """Draws small languages more often than they occur.

    If a sample has captions in several languages, one of them is drawn by these weights. The total weight of all
    sources with a ``language`` is redistributed: each language gets its share, which is divided among its sources by
    weight times samples. Sources without a language keep their weight.

    Args:
        temperature: 1 draws languages as often as they occur, infinity draws all equally often; 3 to 5 are usual.
        counts: Captions by language; None counts those of the training data, or estimates them from a part.
    """

    temperature: float
    counts: dict[str, int] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.temperature > 0:
            raise UserError(f"language_balance.temperature is {self.temperature}: give a positive number or .inf")
        if self.counts is not None and (not self.counts or min(self.counts.values()) < 1):
            raise UserError(
                f"language_balance.counts is {self.counts}: give at least 1 for each language, or leave it out"
            )

    def weights(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Return the relative weight of each language; a caption of any other language has 1."""
        return {language: float(count) ** (1 / self.temperature) for language, count in counts.items()}

    def source_weights(self, sources: Sequence[Source], samples: Sequence[int]) -> list[float]:
        """Return the weights of the sources of a mixture.

        Args:
            sources: Sources of the recipe.
            samples: Number of samples of each.
        """
        mass: dict[str, float] = {}
        counts: dict[str, float] = {}
        for source, count in zip(sources, samples, strict=True):
            if source.language is not None:
                mass[source.language] = mass.get(source.language, 0.0) + source.weight * count
                counts[source.language] = counts.get(source.language, 0.0) + count
        given = {name: float(count) for name, count in (self.counts or {}).items() if name in counts}
        named = self.weights(counts | given)
        together = sum(source.weight for source in sources if source.language is not None)
        return [
            source.weight
            if source.language is None
            else together * named[source.language] / sum(named.values()) * source.weight * count / mass[source.language]
            for source, count in zip(sources, samples, strict=True)
        ]

    def apply(
        self, plan: SamplePlan, sources: Sequence[Source], language_weights: Mapping[str, float] | None, field: str
    ) -> dict[str, float]:
        """Set the weights of the sources of a plan.

        Args:
            plan: Plan over the sources.
            sources: Sources of the recipe.
            language_weights: Further weights of the recipe, multiplied with these; 1 for any other language.
            field: Entry of a sample's json that lists the captions.

        Returns:
            Relative weight of each language among the captions of one sample.
        """
        plan.weigh(self.source_weights(sources, plan.source_samples))
        balanced, given = self.caption_weights(plan, sources, field), language_weights or {}
        return {name: given.get(name, 1.0) * balanced.get(name, 1.0) for name in given.keys() | balanced.keys()}

    def caption_weights(self, plan: SamplePlan, sources: Sequence[Source], field: str = "captions") -> dict[str, float]:
        """Return the relative weight of each language among the captions of one sample.

        Args:
            plan: Plan over the sources.
            sources: Sources of the recipe; those without a language are counted, unless ``counts`` is given.
            field: Entry of a sample's json that lists the captions.
        """
        if self.counts is not None or self.temperature == float("inf"):
            return self.weights(self.counts or {})
        found: Counter[str] = Counter()
        for source, readers in zip(sources, plan.source_readers, strict=True):
            for reader in readers if source.language is None else []:
                found.update(count_languages(reader, field, len(readers)))
        return self.weights(found)


def count_languages(reader: SampleReader, field: str = "captions", parts: int = 1) -> Counter[str]:
    """Count captions by language in a folder, or estimate the counts from samples spread evenly over its shards.

    Args:
        reader: Reader of the folder.
        field: Entry of a sample's json that lists the captions.
        parts: Number of folders of the source; the more, the fewer samples of each are read.
    """
    shards = reader.folder.shards
    chosen = np.unique(
        np.linspace(0, len(shards) - 1, min(len(shards), max(1, COUNTED_SHARDS // parts))).round().astype(int)
    )
    each, counted, unreadable = max(1, COUNTED_SAMPLES // (len(chosen) * parts)), 0, 0
    counts: Counter[str] = Counter()
    for shard in chosen.tolist():
        for row in np.unique(np.linspace(0, shards[shard].samples - 1, min(shards[shard].samples, each)).round()):
            try:
                captions = read_record(reader.read(shard, int(row))[1], field)
            except UserError:  # whether the run may continue is decided when the sample is drawn
                unreadable += 1
                continue
            counted += 1
            counts.update(str(caption["language"]) for caption in captions)
    if counted < reader.folder.samples:
        log.info(
            "%s: languages estimated from %d of %d samples (%d unreadable); write them into language_balance.counts "
            "to fix them",
            reader.folder.name,
            counted,
            reader.folder.samples,
            unreadable,
        )
    scale = reader.folder.samples / max(counted, 1)
    return Counter({language: round(count * scale) for language, count in counts.items()})
