"""Images of a folder with their embeddings, and from them training and test images of probes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from torch import Tensor

from leam_mm.evaluators.embedding import embed_images
from leam_mm.evaluators.image_set import ImageSet
from leam_mm.evaluators.probe_data import ProbeData, divide_by_content, new_to_test
from leam_mm.evaluators.stored_image import StoredImage


@dataclass(frozen=True)
class EmbeddedImages:
    """Images, their embeddings and the digests of their files.

    Args:
        images: The images.
        embedding: (B, D) float32 of length 1, on the CPU.
        digests: sha256 of each image's file.
    """

    images: ImageSet
    embedding: Tensor
    digests: list[str]

    def of(self, rows: Sequence[int]) -> "EmbeddedImages":
        """Return the images of some rows."""
        part = replace(self.images, samples=[self.images.samples[row] for row in rows])
        return EmbeddedImages(part, self.embedding[list(rows)], [self.digests[row] for row in rows])

    def classified(self) -> "EmbeddedImages":
        """Return the images that have one of the classes."""
        known = set(self.images.classes)
        return self.of([row for row, sample in enumerate(self.images.samples) if sample.class_id in known])

    def captioned(self, languages: Sequence[str]) -> "EmbeddedImages":
        """Return the images that have a caption in one of the languages."""
        samples = self.images.samples
        return self.of([row for row, one in enumerate(samples) if any(one.captions(code) for code in languages)])

    def protocol(self, module: Any) -> dict[str, Any]:
        """Return what must be equal for two numbers to be comparable, beside names, settings and the checkpoint."""
        encoder = module.ema_encoder()
        return {
            "layout": self.images.layout,
            "split": self.images.split,
            "images": len(self.digests),
            "images_sha256": hashlib.sha256("\n".join(sorted(self.digests)).encode()).hexdigest(),
            "image_preparation": self.images.samples[0].preparation.described(),
            "image_size": int(encoder.image_size),
            "image_mean": [round(float(one), 6) for one in encoder.image_mean],
            "image_std": [round(float(one), 6) for one in encoder.image_std],
            "embeddings": "float32, length 1",
            "ties": "count against the encoder",
        }


def embed(module: Any, images: ImageSet, batch_size: int, device: torch.device) -> EmbeddedImages:
    """Embed images with a contrastive module on its device.

    Raises:
        UserError: An image cannot be decoded, or embeddings are not finite.
    """
    digests = [sample.sha256() for sample in images.samples]
    return EmbeddedImages(images, embed_images(module, list(images.samples), batch_size, device), digests)


def labels(samples: Sequence[StoredImage], classes: Sequence[str]) -> numpy.ndarray:
    """Return (B,) int64, the place of each image's class among the classes."""
    number = {class_id: place for place, class_id in enumerate(classes)}
    return numpy.array([number[str(sample.class_id)] for sample in samples], numpy.int64)


def probe_data(test: EmbeddedImages, train: EmbeddedImages | None) -> ProbeData | str:
    """Return training and test images of probes, or why there are none.

    Args:
        test: Test images; those without a class are left out.
        train: Training images, of which those whose file is a test image are left out. None divides the test images:
            half of the different files of each class, by digest, become training images.
    """
    test = test.classified()
    classes = test.images.classes
    if train is None:
        trained, tested = divide_by_content(test.digests, labels(test.images.samples, classes))
        left = len(test.digests) - len(trained) - len(tested)
        note = "no training split: half of the different files of each class, by digest, are for training"
        note += f"; {left} files that stand in two classes are left out" if left else ""
        train, test = test.of(trained), test.of(tested)
    else:
        known = [row for row, sample in enumerate(train.images.samples) if sample.class_id in classes]
        new = sorted(set(new_to_test(train.digests, test.digests)) & set(known))
        note = f"{len(new)} training images of {train.images.place.name}"
        note += f", without {len(known) - len(new)} whose file is a test image, too" if len(new) < len(known) else ""
        train = train.of(new)
    seen = {sample.class_id for sample in train.images.samples}
    absent = sorted({str(sample.class_id) for sample in test.images.samples if sample.class_id not in seen})
    if absent or not test.digests:
        return f"class {absent[0]} has no training image ({note})" if absent else f"there is no test image ({note})"
    trained_classes = [one for one in classes if one in seen]
    if len(trained_classes) < 2:
        return f"there are training images of {len(trained_classes)} classes, at least two are needed ({note})"
    return ProbeData(
        train.embedding.double().numpy(), labels(train.images.samples, trained_classes), train.digests,
        test.embedding.double().numpy(), labels(test.images.samples, trained_classes),
        [sample.key for sample in test.images.samples], trained_classes, note,
    )  # fmt: skip
