"""Controls of the memorization audit: generators that return training images, and others that do not."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from leam_mm.audits.altered_copies import altered_copies
from leam_mm.audits.audit import AuditContext, Verdict
from leam_mm.audits.canaries import Canaries
from leam_mm.audits.extraction import Extraction
from leam_mm.audits.first_step_signal import FirstStepSignal
from leam_mm.audits.memorization import Memorization
from leam_mm.audits.memorization_part import MemorizationPart
from leam_mm.audits.near_copies import NearCopies
from leam_mm.controls.coded_models import CodedGenerator
from leam_mm.controls.control import Control, Outcome
from leam_mm.controls.empirical_generator import EmpiricalGenerator
from leam_mm.controls.judged_results import judged
from leam_mm.controls.smooth_images import SIDE, png, smooth_images, write_image_shards
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.files import bytes_sha256, write_bytes, write_json

SUBJECT = "audit/memorization"
TRAINING, HELD_OUT, OTHERS, GENERATED = 300, 2000, 1000, 1000
MOST = 0.01  # ten times the false positives, which 1000 images can decide
Change = Callable[[Tensor], Tensor]


def _shards(folder: Path) -> tuple[Path, Path]:
    training = write_image_shards(folder / "train", smooth_images(TRAINING, 1), [f"image {n}" for n in range(TRAINING)])
    held_out = write_image_shards(folder / "held", smooth_images(HELD_OUT, 2), [f"image {n}" for n in range(HELD_OUT)])
    return training, held_out


def _measure(part: MemorizationPart, generator: object, verdict: Verdict, folder: Path) -> Outcome:
    training, held_out = _shards(folder)
    context = AuditContext(None, generator, folder, shards=training, held_out=held_out)
    return judged(Memorization([part]).run(context), {Memorization.name: verdict, part.name: verdict})


def _altered(name: str) -> Tensor:
    """Return altered copies of training images, in [0, 1]."""
    images = smooth_images(TRAINING, 1)
    return (altered_copies(images, None, 5)[name] if name else images).float() / 255


def _near_copies(images: Callable[[], Tensor], share: float, verdict: Verdict, folder: Path) -> Outcome:
    """A generator draws its images from a set, in a share of cases, and else new ones."""
    chosen, fresh = images(), smooth_images(GENERATED, 3).float() / 255

    def image(prompt: str, number: int) -> Tensor:
        return chosen[number % len(chosen)] if number % 100 < 100 * share else fresh[number]

    return _measure(
        NearCopies(samples=GENERATED, held_out=HELD_OUT, most=MOST, copies=50), CodedGenerator(image), verdict, folder
    )


def _extraction(memorized: bool, verdict: Verdict, folder: Path) -> Outcome:
    """A generator repeats the training image of each caption, or draws a new one each time."""
    training, fresh = smooth_images(TRAINING, 1).float() / 255, smooth_images(640, 4).float() / 255

    def image(prompt: str, number: int) -> Tensor:
        return training[int(prompt.split()[1])] if memorized else fresh[number % len(fresh)]

    part = Extraction(captions=20, samples=12, most=0.2, copies=20)
    return _measure(part, CodedGenerator(image), verdict, folder)


def write_canaries(folder: Path, duplications: list[int]) -> list[tuple[str, Tensor, int]]:
    """Write a list of canaries as data_tools/plant_canaries.py does; return caption, image and duplication of each."""
    images = smooth_images(len(duplications), 6)
    found = [(f"canary {number}", images[number], copies) for number, copies in enumerate(duplications)]
    entries = []
    for number, (caption, image, copies) in enumerate(found):
        content = png(image)
        write_bytes(folder / "images" / f"{number}.png", content)
        entry = {"image": f"images/{number}.png", "sha256": bytes_sha256(content)}
        entries.append(entry | {"caption": caption, "duplication": copies})
    write_json(folder / "canaries.json", json.loads(json.dumps({"version": 1, "canaries": entries})))
    return found


def _canaries(memorized_from: int, part: Callable[[Path], MemorizationPart], verdict: Verdict, folder: Path) -> Outcome:
    """A generator has memorized the canaries from a duplication on."""
    found = write_canaries(folder / "canaries", [1] * 24 + [16] * 12 + [0] * 40)
    memory = {caption: image for caption, image, copies in found if copies >= memorized_from}
    context = AuditContext(None, EmpiricalGenerator(SIDE, memory), folder)
    test = part(folder / "canaries")
    return judged(Memorization([test]).run(context), {Memorization.name: verdict, test.name: verdict})


def _curve(folder: Path) -> MemorizationPart:
    return Canaries(folder, samples=2, most_held_out=16, candidates=15, draws=1, sampling=SamplerSettings(8, 3.0))


def memorization_controls() -> list[Control]:
    """Return the controls."""
    near = [
        ("generator that returns training images", ""),
        ("generator that returns training images with noise", "noise"),
        ("generator that returns training images as JPEG", "jpeg"),
        ("generator that returns training images shifted by a pixel", "shift"),
    ]
    held_out = partial(_near_copies, lambda: smooth_images(OTHERS, 7).float() / 255, 1.0)
    signal = partial(FirstStepSignal, steps=8)
    return [
        *(Control(SUBJECT, name, True, "fail", partial(_near_copies, partial(_altered, kind), 1.0, "fail"))
          for name, kind in near),
        Control(SUBJECT, "generator that returns a training image every tenth time", True, "fail",
                partial(_near_copies, partial(_altered, ""), 0.1, "fail")),
        Control(SUBJECT, "generator that returns other real images", False, "pass", partial(held_out, "pass")),
        Control(SUBJECT, "generator that repeats the training image of a caption", True, "fail",
                partial(_extraction, True, "fail")),
        Control(SUBJECT, "generator that draws a new image each time", False, "pass",
                partial(_extraction, False, "pass")),
        Control(SUBJECT, "canaries memorized at every duplication", True, "fail",
                partial(_canaries, 1, _curve, "fail")),
        Control(SUBJECT, "canaries memorized at duplication 16 only", False, "pass",
                partial(_canaries, 16, _curve, "pass")),
        Control(SUBJECT, "captions that are memorized show at the first step", True, "fail",
                partial(_canaries, 1, signal, "fail")),
        Control(SUBJECT, "captions that are not memorized", False, "pass",
                partial(_canaries, 99, signal, "pass")),
    ]  # fmt: skip
