"""Controls of the audits of bias: a rigged and a fair classifier, a one-sided and a balanced generator."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy
import torch
from torch import Tensor

from leam_mm.audits.attribute_readers import EncoderAttribute
from leam_mm.audits.audit import AuditContext, AuditResult
from leam_mm.audits.encoder_bias import EncoderBias
from leam_mm.audits.generator_bias import GeneratorBias
from leam_mm.audits.prompt_table import PEOPLE, read_prompts
from leam_mm.controls.coded_models import CodedEncoder, CodedGenerator
from leam_mm.controls.control import Control, Outcome
from leam_mm.controls.control_images import SIDE, image_numbers, numbered_png

GROUPS = ["a", "b", "c"]
EACH = 900  # images of a group
LANGUAGES = ["en", "de"]
SECTIONS = ["neutral", "harmful", "pleasant", "unpleasant"]


def _directions() -> dict[str, int]:
    """Return a number for each text of the people's prompts; texts of one thing share it in all languages."""
    found: dict[str, int] = {}
    for section in SECTIONS:
        first = len(set(found.values()))
        for table in read_prompts(PEOPLE, section, LANGUAGES).values():
            for thing, texts in enumerate(table.texts):
                found |= dict.fromkeys(texts, first + thing)
    return found


def _write_people(folder: Path) -> tuple[Path, Path]:
    images = folder / "images"
    images.mkdir()
    lines = ["file,group"]
    for number in range(EACH * len(GROUPS)):
        (images / f"{number}.png").write_bytes(numbered_png(number))
        lines.append(f"{number}.png,{GROUPS[number % len(GROUPS)]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv", images


def _encoder_bias(harms: Callable[[int], bool], verdict: str, folder: Path) -> Outcome:
    labels, images = _write_people(folder)
    number_of = _directions()
    codes = torch.eye(max(number_of.values()) + 1)
    neutral = len(read_prompts(PEOPLE, "neutral", ["en"])["en"].names)
    generator = numpy.random.default_rng(0)
    strength = torch.from_numpy(generator.uniform(0.2, 1.0, EACH * len(GROUPS))).float()

    def image(pixels: Tensor) -> Tensor:
        found = image_numbers(pixels)
        chosen = torch.tensor([neutral if harms(n) else n // 3 % neutral for n in found.tolist()])
        return strength[found][:, None] * codes[chosen] + 0.05 * codes[(chosen + 1) % neutral]

    encoder = CodedEncoder(image, lambda text: codes[number_of[text]], image_size=SIDE, scale=5.0)
    audit = EncoderBias(labels, images, languages=LANGUAGES, permutations=200)
    return _judged(audit.run(AuditContext(encoder, None, folder))[0], verdict)


def _generator_bias(draws: Callable[[int], int], verdict: str, folder: Path) -> Outcome:
    """Let a generator draw dark (woman) or bright (man) images; the reader errs on one known image in ten."""
    values = {text: number for number, (text,) in enumerate([("woman",), ("man",)])}
    known = folder / "known"
    known.mkdir()
    lines = ["file,value"]
    for number in range(400):
        (known / f"{number}.png").write_bytes(numbered_png(255 * (number % 2 != (number % 20 < 2))))
        lines.append(f"{number}.png,{list(values)[number % 2]}")
    (folder / "known.csv").write_text("\n".join(lines) + "\n")
    codes = torch.eye(2)
    encoder = CodedEncoder(
        lambda image: codes[(image_numbers(image) > 127).long()],
        lambda text: codes[0 if "woman" in text else 1],
        image_size=SIDE,
        scale=5.0,
    )
    wrong = numpy.random.default_rng(0).random(4096) < 0.1

    def draw(prompt: str, number: int) -> Tensor:
        value = draws(number) ^ int(wrong[number])
        image = torch.zeros(3, SIDE, SIDE)
        image[0] = float(value)
        return image

    reader = EncoderAttribute(labels=folder / "known.csv", images=known)
    audit = GeneratorBias(reader, languages=LANGUAGES, images=64, batch_size=512)
    return _judged(audit.run(AuditContext(encoder, CodedGenerator(draw), folder))[0], verdict)


def _judged(result: AuditResult, verdict: str) -> Outcome:
    ends = "not measured" if result.low is None else f"{result.value:.3f} ({result.low:.3f} to {result.high:.3f})"
    return Outcome(f"{result.verdict}: {ends}", result.verdict == verdict)


def bias_controls() -> list[Control]:
    """Return the controls."""
    encoder, generator = "audit/encoder_bias", "audit/generator_bias"
    return [
        Control(encoder, "classifier that calls every tenth image of one group criminal", True, "fail",
                partial(_encoder_bias, lambda number: number % 3 == 0 and number % 10 == 0, "fail")),
        Control(encoder, "classifier that is as often harmful for each group", False, "pass",
                partial(_encoder_bias, lambda number: number // 3 % 150 == 0, "pass")),
        Control(generator, "generator that always draws the same value", True, "fail",
                partial(_generator_bias, lambda number: 1, "fail")),
        Control(generator, "generator that draws both values equally often", False, "pass",
                partial(_generator_bias, lambda number: number % 2, "pass")),
    ]  # fmt: skip
