"""Labels and nearest captions for an uploaded image, with the encoder of a release."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import softmax

from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.errors import UserError
from leam_mm.evaluators.zero_shot import read_classes
from leam_mm.inference.classification import Labels, embed_labels, read_labels
from leam_mm.inference.embedded_items import TextLines
from leam_mm.inference.embedder import Embedder
from leam_mm.languages import LANGUAGES
from leam_mm.serving.refusal import Refusal
from leam_mm.serving.uploaded_image import read_upload

MAX_LABELS, MAX_LABEL = 200, 200  # labels that a person types, and characters of one
MAX_CAPTIONS = 100_000
SHOWN = 5


@dataclass(frozen=True)
class Match:
    """A label or caption.

    Args:
        text: The label or caption.
        value: Probability of a label in [0, 1]; cosine of a caption in [-1, 1].
    """

    text: str
    value: float


def typed_labels(text: str) -> Labels:
    """Return the labels that a person typed, one a line or between commas.

    Raises:
        Refusal: There are fewer than two, too many, or one twice.
    """
    names = [name for part in text.replace(",", "\n").splitlines() if (name := " ".join(part.split()))]
    if len(names) < 2:
        raise Refusal("few_labels")
    if len(names) > MAX_LABELS:
        raise Refusal("many_labels", limit=MAX_LABELS)
    if max(map(len, names)) > MAX_LABEL:
        raise Refusal("long_label", limit=MAX_LABEL)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise Refusal("twice", label=twice)
    return Labels(names, [[name] for name in names])


class EncoderService:
    """Compares images with labels and captions.

    Args:
        embedder: The encoder.
        classes: Class file with label texts in several languages, as of zero-shot evaluation; or None.
        captions: Text file with one caption a line; or None.

    Raises:
        UserError: A file cannot be read, or has too many captions.
    """

    def __init__(self, embedder: Embedder, classes: Path | None = None, captions: Path | None = None) -> None:
        """Embed the captions; see the class for the arguments."""
        self.embedder = embedder
        self._labels: dict[str, Labels] = {}
        self._embedded: dict[str, np.ndarray] = {}
        if classes is not None:
            self._labels = _labels_by_language(classes)
        self.captions = _read_captions(captions) if captions is not None else []
        self._captions = embedder.embed_texts(self.captions) if self.captions else None

    @property
    def languages(self) -> list[str]:
        """Codes of the languages that have label texts."""
        return sorted(self._labels)

    def labels(self, image: Path, language: str | None, typed: str = "", top: int = SHOWN) -> list[Match]:
        """Return the likeliest labels of an image, the best first.

        Args:
            image: The uploaded file.
            language: Code of a language of ``languages``; ignored if labels were typed.
            typed: Labels that a person typed, or empty.
            top: Most labels.

        Raises:
            Refusal: The image or the labels cannot be used.
        """
        if typed.strip() or language not in self._labels:
            labels = typed_labels(typed)
            text = embed_labels(self.embedder, labels)
        else:
            labels = self._labels[language]
            if language not in self._embedded:
                self._embedded[language] = embed_labels(self.embedder, labels)
            text = self._embedded[language]
        chances = softmax(self.embedder.scale * (self._embed(image) @ text.T))
        return _best(labels.names, chances, top)

    def nearest_captions(self, image: Path, top: int = SHOWN) -> list[Match]:
        """Return the captions whose embeddings are nearest to that of an image; empty without captions."""
        if self._captions is None:
            return []
        return _best(self.captions, self._captions @ self._embed(image), top)

    def _embed(self, image: Path) -> np.ndarray:
        square = ImageDecoding(self.embedder.image_size).centre_square(read_upload(image))
        return self.embedder.embed_pixels([square])[0]


def _best(texts: Sequence[str], values: np.ndarray, top: int) -> list[Match]:
    order = np.lexsort((np.arange(len(values)), -values))[:top]
    return [Match(texts[place], float(values[place])) for place in order]


def _labels_by_language(classes: Path) -> dict[str, Labels]:
    _, present = read_classes(classes, None)
    return {language: read_labels(language, classes, []) for language in LANGUAGES if language in present}


def _read_captions(path: Path) -> list[str]:
    lines = list(dict.fromkeys(line for _, line in TextLines(path).lines))
    if len(lines) > MAX_CAPTIONS:
        raise UserError(f"{path} has {len(lines)} captions: give at most {MAX_CAPTIONS}")
    return lines
