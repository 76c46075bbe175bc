"""Generated images: their distance to real ones, and a grid of them for prompts in many languages.

- class_path: leam_mm.evaluators.generation.Generation
  init_args:
    reference: runs/quickstart/shards/train
    prompts_from: runs/quickstart/shards/test
    features: {class_path: leam_mm.evaluators.image_features.EfficientNetLite0}
    samples: 512
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import Progress, track
from torch import Tensor

from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.distances.set_distances import (
    FEWEST,
    FEWEST_OF_DISTRIBUTIONS,
    compare_features,
    set_distances,
)
from leam_mm.errors import UserError
from leam_mm.evaluators.contact_sheet import ShownImage, spread_evenly, write_contact_sheet
from leam_mm.evaluators.embedding import ImageSample, keep_own_bytes, read_image_samples
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric
from leam_mm.evaluators.generated_images import PUBLISHED, generate, published
from leam_mm.evaluators.image_features import ImageFeatures
from leam_mm.evaluators.image_grid import save_grid
from leam_mm.evaluators.ranks import over_ranks, rank
from leam_mm.files import begin_folder, write_text
from leam_mm.marking.generated_image import generator_name, generator_sha256, save_generated


class Generation(Evaluator):
    """Distances of generated to real images, and precision and recall; all ranks share the work.

    Measured are the Fréchet distance, the kernel distance, MIND, precision, recall, density and coverage; with features
    of length 1 (ClipFeatures) CMMD, too.

    Generated images are scored as published: with the watermark. The real images are split into two halves. Generated
    images are compared with the first half. The second half, compared with the first in the same way, shows what a
    perfect generator would reach: names that end in `real`. All three sets have the same size, since these numbers
    depend on it. With fewer than 100 images in each set only the kernel distance is measured; with fewer than 8,
    nothing is. The result names the reason.

    Args:
        reference: Shard folder of real images.
        prompts_from: Shard folder whose captions are the prompts.
        features: The network whose features are compared.
        samples: Number of images to generate; at most half the number of real ones.
        sampling: How the images are sampled.
        seed: Seed of the images' noise.
        batch_size: Images in one forward pass.
        languages: Codes of the prompts, taken in turn; a sample without the language gives its next one.
        name: Prefix of the metrics' names.
    """

    def __init__(
        self,
        reference: Path,
        prompts_from: Path,
        features: ImageFeatures,
        samples: int = 1000,
        sampling: SamplerSettings = SamplerSettings(),  # noqa: B008 (frozen)
        seed: int = 0,
        batch_size: int = 64,
        languages: list[str] = ["en"],  # noqa: B006 (never changed; jsonargparse shows it in --help)
        name: str = "generation",
    ) -> None:
        """See the class for the arguments."""
        self.reference, self.prompts_from, self.features = Path(reference), Path(prompts_from), features
        self.samples, self.sampling, self.seed = samples, sampling, seed
        self.batch_size, self.languages, self.name = batch_size, languages, name
        self.scored = PUBLISHED  # kept with the results: earlier ones are of images before the mark

    def run(self, context: EvaluationContext) -> list[Metric]:
        """Generate, extract features of all three sets, and compare."""
        self.features.to(context.device)
        real = list(read_image_samples(self.reference, 2 * self.samples))
        count = min(self.samples, len(real) // 2)
        if count < FEWEST:
            return [self._not_measured(count, FEWEST, "distances to real images are")]
        prompts = self._prompts(count)
        texts = [text for _, text in prompts]
        module = context.require_generator()

        def make(part: slice) -> Tensor:
            return generate(module, texts[part], self.sampling, self.seed, part.start)

        generated = self._each(count, lambda part: part, make, context, "generating")
        if rank() == 0:
            pixels = generated.permute(0, 2, 3, 1).numpy()
            shown = [ShownImage(pixels[n], prompts[n][1], prompts[n][0]) for n in spread_evenly(count)]
            write_contact_sheet(
                context.output, "generated", "Images generated for captions of the test set", shown, module
            )
        size = generated.shape[-1]
        # Every other image, since neighbours in a folder often have one source.
        halves = [self._extract_real(real[half : 2 * count : 2], size, context) for half in (0, 1)]
        own = self._each(count, lambda part: published(generated[part]), self.features.extract, context, "features")
        return self._compare("generated", halves[0], own) + self._compare("real", halves[0], halves[1])

    def _each(
        self,
        rows: int,
        read: Callable[[slice], Any],
        compute: Callable[[Any], Tensor],
        context: EvaluationContext,
        title: str,
    ) -> Tensor:
        """Compute all batches, each rank its part, with a progress bar on the first rank."""
        with Progress(transient=True, disable=rank() != 0) as progress:
            task = progress.add_task(title, total=rows)

            def advance(part: slice) -> Any:
                progress.update(task, completed=part.stop)
                return read(part)

            return over_ranks(rows, self.batch_size, advance, compute, context.device)

    def _prompts(self, count: int) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for sample in read_image_samples(self.prompts_from, count):
            turn = len(found) % len(self.languages)
            for language in self.languages[turn:] + self.languages[:turn]:
                if captions := sample.captions(language):
                    found.append((language, captions[0]))
                    break
        if not found:
            raise UserError(f"{self.prompts_from}: no sample has a caption in {', '.join(self.languages)}")
        # Fewer captions than images: they are used again, each time with other noise.
        return [found[number % len(found)] for number in range(count)]

    def _extract_real(self, samples: list[ImageSample], size: int, context: EvaluationContext) -> Tensor:
        own = keep_own_bytes(samples, self.batch_size)

        def read(part: slice) -> Tensor:
            return torch.stack([sample.pixels(size) for sample in own[part]])

        return self._each(len(own), read, self.features.extract, context, "real images")

    def _not_measured(self, count: int, needed: int, what: str) -> Metric:
        note = f"{what} not measured: {count} images in each set, at least {needed} are needed"
        return Metric(f"{self.name}/frechet_distance/generated", None, None, None, "distance", count, note=note)

    def _compare(self, kind: str, real: Tensor, other: Tensor) -> list[Metric]:
        count = len(other)
        against = "generated against real" if kind == "generated" else "real against other real images: the floor"
        note = f"{against}; {count} images each; {self.features.protocol}"
        if kind == "generated":
            note += f"; {self.sampling}, seed {self.seed}; {PUBLISHED}"
        distances = set_distances(self.features.unit_length)
        names = [name for name in distances if name != "frechet_distance_infinity"]  # needs more images
        missing = []
        if count < FEWEST_OF_DISTRIBUTIONS:
            names = [name for name in names if distances[name].fewest <= count]
            what = "all but the kernel distance are"
            missing = [self._not_measured(count, FEWEST_OF_DISTRIBUTIONS, what)] if kind == "generated" else []
        found = [
            Metric(
                f"{self.name}/{each.name}/{kind}", each.value, each.low, each.high, each.unit, count,
                note="; ".join(part for part in (note, each.remark) if part),
            )
            for each in compare_features(real, other, distances, names, self.seed)
        ]  # fmt: skip
        return missing + found


class PromptGrid(Evaluator):
    """Images for prompts in several languages, which the report shows first.

    Writes `prompts.png` (one row for each concept, one column for each language), the single images in `prompts/`, and
    their index `prompts.json`.

    Args:
        prompts: JSON file {"prompts": [{"language", "text", ...}]}, where prompts that differ only in language and text
            are one concept; or a class file, where each class is a concept.
        languages: Columns; None takes all of the file.
        per_language: Number of concepts, spread evenly over those that most languages have.
        sampling: How the images are sampled.
        seed: Seed of the images' noise; a concept has the same noise in all languages.
    """

    def __init__(
        self,
        prompts: Path,
        languages: list[str] | None = None,
        per_language: int = 4,
        sampling: SamplerSettings = SamplerSettings(),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        """See the class for the arguments."""
        self.prompts, self.languages, self.per_language = Path(prompts), languages, per_language
        self.sampling, self.seed = sampling, seed

    def run(self, context: EvaluationContext) -> list[Metric]:
        """Generate and write the images."""
        languages, rows = choose_prompts(self.prompts, self.languages, self.per_language)
        module = context.require_generator()
        columns = []
        for code in track(languages, description="prompts", transient=True):
            # The noise is a function of the prompt's number: a row has one noise, so that only the language differs.
            texts = [texts.get(code, "") for texts in rows]
            columns.append(generate(module, texts, self.sampling, self.seed))
        cells = [(row, column) for row in range(len(rows)) for column in range(len(languages))]
        cells = [(row, column) for row, column in cells if languages[column] in rows[row]]
        chosen = [(row, languages[column], rows[row][languages[column]]) for row, column in cells]
        images = torch.stack([columns[column][row] for row, column in cells])
        note = f"{len(rows)} concepts in {len(languages)} languages; {self.sampling}"
        metric = Metric("prompts/pictures", float(len(chosen)), None, None, "count", len(chosen), note=note)
        if rank() != 0:  # all ranks generate, since weights may be sharded; one writes the images
            return [metric]
        folder = context.output / "prompts"
        begin_folder(folder)
        entries = []
        for number, (row, code, text) in enumerate(chosen):
            image = Image.fromarray(images[number].permute(1, 2, 0).numpy())
            save_generated(image, folder / f"{number:03d}.png", generator_name(module), None, generator_sha256(module))
            entries.append({"row": row, "language": code, "text": text, "image": f"prompts/{number:03d}.png"})
        content = json.dumps({"languages": languages, "pictures": entries}, ensure_ascii=False, indent=1)
        write_text(context.output / "prompts.json", content)
        labels = [f"{code}: {text}" for _, code, text in chosen]
        save_grid(context.output / "prompts.png", images, labels, len(languages), generator_name(module))
        return [metric]


def choose_prompts(path: Path, languages: list[str] | None, most: int) -> tuple[list[str], list[dict[str, str]]]:
    """Return the languages and, for each concept, its text by language; concepts in most languages come first."""
    concepts: dict[str, dict[str, str]] = {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "classes" in content:
            for class_id in content["classes"]:
                for code, entry in content["languages"].items():
                    if names := entry["names"].get(class_id):
                        text = str(entry["templates"][0]).replace("{}", str(names[0]))
                        concepts.setdefault(str(class_id), {})[code] = text
        for prompt in [] if "classes" in content else content["prompts"]:
            concept = {key: value for key, value in prompt.items() if key not in ("language", "text")}
            # Without a description of the scene all prompts would be one concept; then the text is the concept.
            key = json.dumps(concept, sort_keys=True) if concept else str(prompt["text"])
            concepts.setdefault(key, {}).setdefault(str(prompt["language"]), str(prompt["text"]))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); it is written with the data set") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not a file of prompts ({type(error).__name__}: {error}); write it again") from None
    found = languages or sorted({code for texts in concepts.values() for code in texts})
    rows = [{code: texts[code] for code in found if code in texts} for texts in concepts.values()]
    if not any(rows):
        raise UserError(f"{path}: has no prompt in {', '.join(languages or ['any language'])}; give other languages")
    widest = max(len(texts) for texts in rows)
    complete = [texts for texts in rows if len(texts) == widest]
    if len(complete) > most:
        # Shifted by one each time: classes are often a product (colour by shape), where an even stride finds one shape.
        shift = 1 if most * most <= len(complete) else 0
        complete = [complete[number * len(complete) // most + shift * number] for number in range(most)]
    elif len(complete) < most:
        complete = sorted(filter(None, rows), key=lambda texts: -len(texts))[:most]
    return [code for code in found if any(code in texts for texts in complete)], complete
