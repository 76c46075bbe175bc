"""Language curriculum: captions of one language at first, those of all languages later.

What holds in every language, such as which of two things lies left, is learned from one language in far fewer samples
than from many at once; the others then only have to learn their words.
"""

from dataclasses import dataclass

import numpy as np

from leam_mm.errors import UserError


@dataclass(frozen=True)
class LanguageCurriculum:
    """Draws captions of one language alone at first, then of this language or of all, at last of all.

    Args:
        language: Code of the language; a sample that lacks it is drawn as usual.
        alone: Number of samples, from the first of the run, that have this language alone.
        until: Number of samples after which the language is drawn like any other; in between, the share of samples
            that have it alone falls linearly from 1 to 0.
    """

    language: str
    alone: int
    until: int

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 <= self.alone <= self.until:
            raise UserError(
                f"captions.curriculum: alone is {self.alone} and until {self.until}: give 0 <= alone <= until"
            )

    def share(self, index: int) -> float:
        """Return the share, in [0, 1], of samples that have this language alone at sample number ``index``."""
        if index < self.alone:
            return 1.0
        return (self.until - index) / (self.until - self.alone) if index < self.until else 0.0

    def is_alone(self, index: int, generator: np.random.Generator) -> bool:
        """Return whether a sample has this language alone.

        Args:
            index: Number of the sample in the run.
            generator: Generator of this sample; one number is drawn from it.
        """
        return bool(generator.random() < self.share(index))
