"""Controls of membership inference: models that know their training samples, models that do not, and shifted data."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leam_mm.audits.audit import AuditContext, Verdict
from leam_mm.audits.membership_inference import MembershipInference
from leam_mm.controls.coded_models import CodedEncoder
from leam_mm.controls.control import Control, Outcome
from leam_mm.controls.empirical_generator import EmpiricalGenerator
from leam_mm.controls.judged_results import judged
from leam_mm.controls.smooth_images import SIDE, smooth_images, write_image_shards

SUBJECT = "audit/membership_inference"
COUNT = 600


def _audit(
    models: Callable[[Tensor], dict[str, Any]], shift: int, expected: dict[str, Verdict], folder: Path
) -> Outcome:
    """Audit models made from the training images; the held-out images may be brighter."""
    images = smooth_images(2 * COUNT, 1)
    members, others = images[:COUNT], (images[COUNT:].int() + shift).clamp(0, 255).to(torch.uint8)
    generator = torch.Generator().manual_seed(8)
    words = torch.randint(0, 50, (2 * COUNT, 3), generator=generator).tolist()
    texts = [f"{number} " + " ".join(f"word{each}" for each in row) for number, row in enumerate(words)]
    training = write_image_shards(folder / "train", members, texts[:COUNT])
    held_out = write_image_shards(folder / "held", others, texts[COUNT:])
    audit = MembershipInference(samples=COUNT, draws=1, most_blind=0.6)  # few samples, a wide interval of the guard
    given = {"clip": None, "generator": None} | models(members)
    return judged(audit.run(AuditContext(**given, output=folder, shards=training, held_out=held_out)), expected)


def _generator(overfitted: bool, members: Tensor) -> dict[str, Any]:
    return {"generator": EmpiricalGenerator(SIDE, overfitted=members if overfitted else None)}


def _encoder(gain: float, members: Tensor) -> dict[str, Any]:
    """An encoder whose embeddings of an image and its caption, named by its first number, agree more for members."""

    def image_embedding(images: Tensor) -> Tensor:
        return images[:, :, ::8, ::8].flatten(1).float() / 127.5 - 1

    table = smooth_images(2 * COUNT, 1)
    own = image_embedding(table)
    noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(9))

    def text_embedding(text: str) -> Tensor:
        number = int(text.split()[0])
        return own[number] + (1.0 - gain if number < COUNT else 1.0) * noise[number]

    return {"clip": CodedEncoder(image_embedding, text_embedding, image_size=SIDE)}


def membership_controls() -> list[Control]:
    """Return the controls."""
    generator, encoder = "membership_inference/generator", "membership_inference/encoder"
    return [
        Control(SUBJECT, "overfitted generator", True, "fail",
                partial(_audit, partial(_generator, True), 0, {generator: "fail"})),
        Control(SUBJECT, "generator that saw no training image", False, "not fail",
                partial(_audit, partial(_generator, False), 0, {generator: "inconclusive"})),
        Control(SUBJECT, "encoder that fits its training pairs better", True, "fail",
                partial(_audit, partial(_encoder, 0.5), 0, {encoder: "fail"})),
        Control(SUBJECT, "encoder that fits all pairs alike", False, "not fail",
                partial(_audit, partial(_encoder, 0.0), 0, {encoder: "inconclusive"})),
        Control(SUBJECT, "brighter held-out images, which any classifier recognises", True, "inconclusive",
                partial(_audit, partial(_generator, True), 40, {generator: "inconclusive"})),
    ]  # fmt: skip
