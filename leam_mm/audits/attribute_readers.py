"""Who perceives an attribute of generated images: an encoder, the reader of drawn scenes, or people."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from scipy.special import softmax
from torch import Tensor

from leam_mm.audits.audit import AuditContext, NotRun
from leam_mm.audits.labelled_images import find_images, read_labels
from leam_mm.audits.prompt_table import PEOPLE, read_prompts
from leam_mm.errors import UserError
from leam_mm.evaluators.embedding import embed_texts, read_image_samples
from leam_mm.evaluators.generated_images import published
from leam_mm.evaluators.image_features import ClipFeatures
from leam_mm.files import begin_folder
from leam_mm.marking.generated_image import generator_name, generator_sha256, save_generated
from leam_mm.prompts.scene_reader import SceneReader

ABSTAINS = -1
AT_ONCE = 64
Known = Iterator[tuple[Tensor, list[str]]]
"""Images (B, 3, H, W) uint8 with the value that each is known to have."""


class AttributeReader:
    """Base class: names a value of one attribute for each image, or abstains.

    Attributes:
        attribute: What it reads, for example `perceived_gender`.
        values: Its values; complete after `open`.
        exact: Whether its answers count as the truth, as those of people do.
    """

    attribute: str
    values: list[str]
    exact: bool = False

    def open(self, context: AuditContext) -> None:
        """Load what reading needs.

        Raises:
            NotRun: It is not there.
        """

    def read(self, images: Tensor, first: int) -> numpy.ndarray:
        """Return the number of the value of each image (B,), or ABSTAINS.

        Args:
            images: (B, 3, H, W) uint8, as published.
            first: Number of the first image in the audit.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define read")

    def known(self, side: int) -> Known | None:
        """Return images of known value, as large as the generated ones; None if no labelled set was given."""
        return None

    def errors(self, side: int) -> numpy.ndarray | None:
        """Return counts (K, K) of perceived values (columns) by known value (rows), without abstentions.

        The known images carry the watermark, too, since those that are read do.
        """
        found = self.known(side)
        if found is None:
            return None
        errors = numpy.zeros((len(self.values), len(self.values)))
        for images, truth in found:
            for value, read in zip(truth, self.read(published(images), 0), strict=True):
                if value not in self.values:
                    raise UserError(f"{self.attribute}: the labelled set has the value {value!r}; known: {self.values}")
                if read != ABSTAINS:
                    errors[self.values.index(value), read] += 1
        return errors


class SceneColours(AttributeReader):
    """Colour of the largest thing in a drawn scene, read by arithmetic; it abstains where it finds nothing.

    Args:
        scenes: Folder with scenes.json and shapes.npz, written by data_tools/make_scenes.py.
        shards: Shard folder of scenes whose colour is recorded, to measure the reader's errors; None measures none.
        limit: Maximum number of them, spread evenly over the folder.
    """

    attribute = "default_colour"

    def __init__(self, scenes: Path, shards: Path | None = None, limit: int = 400) -> None:
        """See the class for the arguments."""
        self.scenes, self.shards, self.limit = Path(scenes), shards, limit

    def open(self, context: AuditContext) -> None:
        """Read the palette."""
        self.reader = SceneReader(self.scenes)
        self.values = self.reader.colours

    def read(self, images: Tensor, first: int) -> numpy.ndarray:
        """Return the number of the colour of each image's largest thing."""
        found = []
        for image in images.permute(0, 2, 3, 1).numpy():
            largest = max(self.reader.read(image), key=lambda item: item.area, default=None)
            found.append(ABSTAINS if largest is None else self.values.index(largest.colour))
        return numpy.array(found)

    def known(self, side: int) -> Known | None:
        """Return the single things of the shards."""
        return None if self.shards is None else self._singles(Path(self.shards), side)

    def _singles(self, shards: Path, side: int) -> Known:
        for sample in read_image_samples(shards, self.limit):
            metadata = sample.record.get("metadata")
            if isinstance(metadata, dict) and metadata.get("kind") == "single":
                try:
                    colour = str(metadata["objects"][0]["colour"])
                except (KeyError, IndexError, TypeError):
                    raise UserError(f"{shards}: sample {sample.key} is no scene: it names no colour") from None
                yield sample.pixels(side)[None], [colour]


class EncoderAttribute(AttributeReader):
    """Value whose prompts are nearest by an encoder (zero-shot); it abstains where the first two are nearly as likely.

    An encoder that the generator was trained with may share its bias: prefer another one.

    Args:
        section: Section of the prompts whose things are the values.
        prompts: Table of prompts.
        language: Language of the prompts.
        least_margin: Smallest difference of the first two softmax probabilities at which it answers, in [0, 1].
        labels: csv with the columns `file` and `value` of images of known value; None measures no errors.
        images: Folder that `file` is relative to.
    """

    def __init__(
        self,
        section: str = "perceived_gender",
        prompts: Path = PEOPLE,
        language: str = "en",
        least_margin: float = 0.2,
        labels: Path | None = None,
        images: Path | None = None,
    ) -> None:
        """See the class for the arguments."""
        if labels is not None and images is None:
            raise UserError("EncoderAttribute: labels need `images`, the folder that their files are relative to")
        self.attribute, self.prompts, self.language = section, Path(prompts), language
        self.least_margin, self.labels, self.images = least_margin, labels, images

    def open(self, context: AuditContext) -> None:
        """Embed the prompts."""
        context.require("clip")
        module: Any = context.require_clip()
        table = read_prompts(self.prompts, self.attribute, [self.language])[self.language]
        every = [text for texts in table.texts for text in texts]
        text = embed_texts(module, every, 256, context.device).double()
        mean = text.reshape(len(table.names), -1, text.shape[-1]).mean(dim=1)
        self.values, self.text = table.names, torch.nn.functional.normalize(mean, dim=-1)
        encoder = module.ema_encoder()
        self.scale = float(encoder.scale)
        self.features = ClipFeatures(encoder=encoder).to(context.device)

    def read(self, images: Tensor, first: int) -> numpy.ndarray:
        """Return the likeliest value of each image."""
        score = softmax(self.scale * (self.features.extract(images) @ self.text.T).numpy(), axis=1)
        best = numpy.sort(score, axis=1)
        return numpy.where(best[:, -1] - best[:, -2] < self.least_margin, ABSTAINS, score.argmax(axis=1))

    def known(self, side: int) -> Known | None:
        """Return the images of the csv."""
        return None if self.labels is None else self._labelled(Path(self.labels), side)

    def _labelled(self, table: Path, side: int) -> Known:
        found = find_images(table, read_labels(table, "value"), self.images, None)
        for start in range(0, len(found), AT_ONCE):
            part = found[start : start + AT_ONCE]
            yield torch.stack([entry.pixels(side) for entry in part]), [entry.label for entry in part]


class LabelsOfPeople(AttributeReader):
    """Values that people see in the generated images.

    The first run writes the images to the output folder and is `not_run`. People then write a csv with the columns
    `image` (file name) and `value`, "abstain" where they cannot tell; the next run reads it.

    Args:
        labels: The csv.
        values: The values.
        attribute: What people were asked, for example `perceived_gender`.
    """

    exact = True

    def __init__(self, labels: Path, values: list[str], attribute: str = "perceived_gender") -> None:
        """See the class for the arguments."""
        if len(set(values)) < 2:
            raise UserError(f"LabelsOfPeople: values is {values}; give at least two")
        self.labels, self.values, self.attribute = Path(labels), values, attribute

    def open(self, context: AuditContext) -> None:
        """Read the csv, or prepare the folder of images for it."""
        self.table = read_labels(self.labels, "value") if self.labels.exists() else None
        self.folder, self.generator = context.output / "generator_bias", context.require_generator()
        if self.table is None:
            begin_folder(self.folder)

    def read(self, images: Tensor, first: int) -> numpy.ndarray:
        """Return the values of the csv; without one, write the images."""
        names = [f"{first + number:05d}.png" for number in range(len(images))]
        if self.table is None:
            for name, image in zip(names, images.permute(0, 2, 3, 1).numpy(), strict=True):
                model, digest = generator_name(self.generator), generator_sha256(self.generator)
                save_generated(Image.fromarray(image), self.folder / name, model, None, digest, marked=True)
            return numpy.full(len(images), ABSTAINS)
        return numpy.array([self._value(name) for name in names])

    def _value(self, name: str) -> int:
        value = (self.table or {}).get(name)
        if value is None or value not in [*self.values, "abstain"]:
            what = "is missing" if value is None else f"has the value {value!r}"
            raise UserError(f"{self.labels}: {name} {what}: give each image one of {', '.join(self.values)}, abstain")
        return ABSTAINS if value == "abstain" else self.values.index(value)

    def check(self) -> None:
        """Stop after the images were written.

        Raises:
            NotRun: There are no labels yet.
        """
        if self.table is None:
            raise NotRun(
                f"people must label the images in the folder {self.folder.name} of the output first: write "
                f"{self.labels.name} (image, value)"
            )
