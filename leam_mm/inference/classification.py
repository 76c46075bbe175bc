"""Zero-shot classification of images by labels that a person names (Radford et al. 2103.00020, section 3.1.4)."""

import csv
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from scipy.special import softmax

from leam_mm.errors import UserError
from leam_mm.evaluators.zero_shot import read_classes
from leam_mm.files import write_text
from leam_mm.inference.embedded_items import Item, Items
from leam_mm.inference.embedder import Embedder
from leam_mm.languages import LANGUAGE_NAMES

MAX_LABELS = 100_000


@dataclass(frozen=True)
class Labels:
    """What images are sorted into.

    Args:
        names: C names.
        prompts: For each name, the texts whose embeddings are averaged.
    """

    names: list[str]
    prompts: list[list[str]]


@dataclass(frozen=True)
class Classified:
    """The labels of one image.

    Args:
        key: Its name.
        labels: The likeliest labels, the best first.
        probabilities: Softmax over all labels of the encoder's scale times the cosines.
        fault: Why the image cannot be read, or empty.
    """

    key: str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    fault: str = ""


def read_labels(given: str, classes: Path | None, templates: Sequence[str]) -> Labels:
    """Return the labels of a text file, or the class names of a language.

    Args:
        given: File with one label a line; or the code of a language, such as ``de``.
        classes: For a language, a class file as that of zero-shot evaluation.
        templates: Texts with ``{}`` in place of the label; none takes the label itself, or the class file's own.

    Raises:
        UserError: There are fewer than two labels, or some twice.
    """
    if wrong := next((template for template in templates if "{}" not in template), None):
        raise UserError(f"--template {wrong!r}: write {{}} in place of the label")
    if given in LANGUAGE_NAMES and not Path(given).exists():
        if classes is None:
            raise UserError(f"--labels {given} is a language: give its class names with --classes FILE, or a text file")
        _, languages = read_classes(classes, [given])
        texts = [prompts for prompts in languages[given].prompts if prompts]
        names = [min(prompts, key=len) for prompts in texts]
        prompts = [[template.replace("{}", name) for template in templates] for name in names] if templates else texts
        return Labels(names, prompts)
    try:
        lines = Path(given).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--labels {given} cannot be read ({error}): give a text file, one label a line") from None
    names = [line.strip() for line in lines if line.strip()]
    if not 2 <= len(names) <= MAX_LABELS:
        raise UserError(f"{given} holds {len(names)} labels: give 2 to {MAX_LABELS}, one a line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{given} names {twice!r} twice: each label once")
    return Labels(names, [[template.replace("{}", name) for template in templates or ["{}"]] for name in names])


def embed_labels(embedder: Embedder, labels: Labels) -> np.ndarray:
    """Return the normalised mean of each label's text embeddings: (C, D) float32."""
    flat = embedder.embed_texts([text for prompts in labels.prompts for text in prompts]).astype(np.float64)
    owner = np.repeat(np.arange(len(labels.names)), [len(prompts) for prompts in labels.prompts])
    total = np.zeros((len(labels.names), flat.shape[1]))
    np.add.at(total, owner, flat)
    return (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)


def classify_items(
    items: Items, embedder: Embedder, labels: Labels, top: int, batch_size: int, threads: int
) -> Iterator[Classified]:
    """Yield the labels of each image, in order.

    Args:
        items: The images.
        embedder: The encoder.
        labels: The labels.
        top: Labels of each image.
        batch_size: Images at a time.
        threads: Threads that decode images.
    """
    text, source = embed_labels(embedder, labels), items.part(0, len(items))

    def decode(item: Item) -> np.ndarray | str:
        try:
            return item.fault or items.pixels(item, embedder.image_size)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(source, batch_size)):
            decoded = list(pool.map(decode, batch))
            pixels = [one for one in decoded if not isinstance(one, str)]
            chances = iter(softmax(embedder.scale * (embedder.embed_pixels(pixels) @ text.T), axis=1) if pixels else ())
            for item, one in zip(batch, decoded, strict=True):
                if isinstance(one, str):
                    yield Classified(item.key, fault=one)
                    continue
                chance = next(chances)
                best = np.lexsort((np.arange(len(chance)), -chance))[:top]
                names = tuple(labels.names[place] for place in best)
                yield Classified(item.key, names, tuple(float(chance[place]) for place in best))


def write_table(path: Path, found: Sequence[Classified], top: int) -> None:
    """Write a csv: key, and label and probability of the best labels; then why an image was not read."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [name for place in range(1, top + 1) for name in (f"label_{place}", f"probability_{place}")]
    writer.writerow(["key", *columns, "fault"])
    for one in found:
        pairs = zip(one.labels, one.probabilities, strict=True)
        cells = [cell for label, chance in pairs for cell in (label, f"{chance:.6f}")]
        writer.writerow([one.key, *cells, *[""] * (len(columns) - len(cells)), one.fault])
    write_text(path, buffer.getvalue())
