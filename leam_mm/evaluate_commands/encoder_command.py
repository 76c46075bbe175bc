"""Measure any image-text encoder on any folder of images: zero-shot, retrieval, linear probe and few-shot.

python evaluate.py encoder --model runs/quickstart/release --images photos --output runs/photos

The model is a run, checkpoint, release, open_clip folder, or NAME:TAG of the local cache. The folder holds a sub-folder
of images for each class (with or without splits above them), a clip-benchmark folder of tars, or shards. Nothing is
downloaded.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy
import torch

from leam_mm.command_line import PositiveInt, Range, parse_settings
from leam_mm.errors import UserError, printable
from leam_mm.evaluators.class_names import ClassNames, name_classes
from leam_mm.evaluators.embedded_images import EmbeddedImages, embed, labels, probe_data
from leam_mm.evaluators.embedding import ImageSample
from leam_mm.evaluators.evaluator import EvaluationContext, Metric
from leam_mm.evaluators.few_shot import few_shot
from leam_mm.evaluators.image_preparation import preparation_of
from leam_mm.evaluators.image_set import ImageSet, find_layout, read_image_set
from leam_mm.evaluators.linear_probe import linear_probe
from leam_mm.evaluators.probe_data import ProbeData
from leam_mm.evaluators.results import RESULTS, append_results, evidence
from leam_mm.evaluators.retrieval import Retrieval
from leam_mm.evaluators.zero_shot import ZeroShot
from leam_mm.intervals.effective_interval import mean_of_classes
from leam_mm.intervals.outcomes import read_outcomes
from leam_mm.languages import LANGUAGE_NAMES
from leam_mm.recorded_classes import trust_modules
from leam_mm.report.report_page import write_report
from leam_mm.run_lock import output_lock

Kind = Literal["zero_shot", "retrieval", "linear_probe", "few_shot"]
KINDS: tuple[Kind, ...] = ("zero_shot", "retrieval", "linear_probe", "few_shot")


@dataclass(frozen=True)
class EncoderOptions:
    """Settings of the command.

    Args:
        model: Run, checkpoint, release, folder of open_clip, or its NAME:TAG in the local cache.
        images: Folder of class sub-folders, clip-benchmark folder, or shards; the layout is detected.
        output: Folder for results.jsonl (new lines are appended) and report.html.
        classes: Class names: text, one a line in the order of the classes; JSON with a list of them for each language;
            or a class file of zero-shot evaluation.
        templates: Templates: text, one a line, or JSON with a list for each language; {} stands for the name.
        languages: Languages to measure; without it all that have class names or captions.
        measure: What to measure: zero_shot, retrieval, linear_probe, few_shot.
        split: Split with the test images, if the folder has splits.
        train_split: Split that probes are trained on.
        train_images: Another folder that probes are trained on, in any layout.
        limit: Maximum number of test images, spread evenly.
        train_limit: Maximum number of training images, spread evenly.
        shots: Training images of each class in few-shot classification.
        draws: Draws of them, at least two; the interval is over draws and test images.
        name: Prefix of the metrics' names, such as birds/.
        batch_size: Images or texts at a time.
        device: cpu, cuda, or auto, which uses the GPU if there is one.
        trust: Modules of your own, such as my_lab, whose classes the checkpoint may name; several between commas.
    """

    model: str
    images: Path
    output: Path
    classes: Path | None = None
    templates: Path | None = None
    languages: list[str] = field(default_factory=list)
    measure: list[Kind] = field(default_factory=lambda: list(KINDS))
    split: str = "test"
    train_split: str = "train"
    train_images: Path | None = None
    limit: PositiveInt | None = None
    train_limit: PositiveInt | None = None
    shots: list[PositiveInt] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    draws: Annotated[int, Range(least=2)] = 5
    name: str = ""
    batch_size: PositiveInt = 64
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trust: str = ""


class EncoderMeasures:
    """Measurements of one encoder on one set of images.

    Args:
        options: Settings of the command.
        module: The contrastive module, on the device.
        test: The images, embedded.
        names: Names of their classes, or None.
        device: Device of the networks.
    """

    def __init__(
        self, options: EncoderOptions, module: Any, test: EmbeddedImages, names: ClassNames | None, device: torch.device
    ) -> None:
        """See the class for the arguments."""
        self.options, self.module, self.test, self.names, self.device = options, module, test, names, device

    def measure(self, kind: Kind) -> list[Metric]:
        """Return the metrics of one kind; a single one without a value if it cannot be measured."""
        title = f"{self.options.name}{kind}"
        if kind == "retrieval":
            return self._retrieval(title)
        if not self.test.images.classes:
            return [_missing(title, "the images have no classes")]
        if len(self.test.images.classes) < 2:
            return [_missing(title, "the images have one class")]
        if kind == "zero_shot":
            return self._zero_shot(title)
        if isinstance(self._probe_data, str):
            return [_missing(title, self._probe_data)]
        if kind == "linear_probe":
            return linear_probe(title, self._probe_data, self.device)
        return few_shot(title, self._probe_data, sorted(set(self.options.shots)), self.options.draws, self.device)

    def _zero_shot(self, title: str) -> list[Metric]:
        """Measure zero-shot classification, and add the mean over classes of each language."""
        if self.names is None:
            return [_missing(title, "the classes have no names: give them with --classes")]
        names, test = self.names, self.test.classified()
        why = f"there are no class names in this language ({names.source}): give them with --classes"
        metrics = [_missing(f"{title}/top1/{code}", why) for code in names.unnamed]
        if not names.languages:
            return metrics
        evaluator = ZeroShot(test.images.place, Path(names.source), batch_size=self.options.batch_size, name=title)
        samples: list[ImageSample] = list(test.images.samples)
        found = evaluator.measure(self.module, test.embedding, samples, names.classes, names.languages, self.device)
        label = labels(test.images.samples, names.classes)
        for metric in found:
            prefix, _, code = metric.name.rpartition("/")
            hits = read_outcomes(metric.as_dict()) if prefix == f"{title}/top1" else None
            if hits is not None and code in names.languages:
                named = numpy.array([bool(texts) for texts in names.languages[code].prompts])
                value, low, high = mean_of_classes(hits.values, label[named[label]])
                note = f"mean over classes of top-1; chance {1 / int(named.sum()):.2%} with {int(named.sum())} classes"
                if alike := len(named) - len(set(names.languages[code].group)):
                    note += f"; {alike} classes share their name with another class and are right for it"
                name = f"{title}/mean_per_class/{code}"
                metrics.append(Metric(name, value, low, high, metric.unit, metric.samples, note=note))
        return found + metrics

    def _retrieval(self, title: str) -> list[Metric]:
        there = self.test.images.caption_languages()
        if not there:
            return [_missing(title, "the images have no captions")]
        languages = [code for code in (self.options.languages or there) if code in there]
        absent = [code for code in self.options.languages if code not in there]
        metrics = [_missing(f"{title}/image_to_text/r1/{code}", "no image has a caption in it") for code in absent]
        test = self.test.captioned(languages)
        if not test.digests:
            return metrics
        evaluator = Retrieval(test.images.place, languages, batch_size=self.options.batch_size, name=title)
        found = evaluator.measure(self.module, test.embedding, list(test.images.samples), self.device)
        chance = f"chance of R@k about k / {len(test.digests)}"
        return [replace(metric, note=f"{metric.note}; {chance}") for metric in found] + metrics

    @cached_property
    def _probe_data(self) -> ProbeData | str:
        """Training and test images of probes, or why there are none."""
        options, images = self.options, self.test.images
        if options.train_images is None and (not images.split or options.train_split == images.split):
            return probe_data(self.test, None)
        folder = options.train_images or options.images
        if options.train_images is None:
            try:
                find_layout(folder, options.train_split)
            except UserError as error:
                return f"there are no training images: {error}; --train-split {images.split} divides the test images"
        found = read_image_set(folder, options.train_split, preparation_of(options.model), options.train_limit)
        known = [sample for sample in found.samples if sample.class_id in images.classes]
        if not known:
            return f"no image of {folder} has one of the classes"
        train = embed(self.module, replace(found, samples=known), options.batch_size, self.device)
        return probe_data(self.test, train)


def evaluate_encoder(options: EncoderOptions) -> None:
    """Measure and write results.jsonl and report.html.

    Raises:
        UserError: The model, the folder or a file of names cannot be used.
    """
    trust_modules(options.trust)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu")
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    language = (options.languages or ["en"])[0]
    images = read_image_set(options.images, options.split, preparation_of(options.model), options.limit, language)
    print(f"{options.images}: {images.described()}")
    names = name_classes(images, options.classes, options.templates, options.languages)
    images = _named(images, names)
    context = EvaluationContext(options.model, None, options.output, device)
    module = context.require_clip()
    with output_lock(options.output):
        start, found = time.monotonic(), list[Metric]()
        test = embed(module, images, options.batch_size, device)
        measures = EncoderMeasures(options, module, test, names, device)
        protocol = test.protocol(module) | (names.record if names else {})
        for kind in dict.fromkeys(options.measure):
            metrics = measures.measure(kind)
            record = evidence(context, options, time.monotonic() - start) | {"protocol": protocol}
            append_results(options.output, metrics, record)
            found, start = found + metrics, time.monotonic()
        write_report(options.output, options.output / "report.html", title=f"Encoder {options.output.name}")
    _print(found, options, names)


def _named(images: ImageSet, names: ClassNames | None) -> ImageSet:
    """Return the images with the classes that have names; of shards, images of other classes lose theirs.

    Raises:
        UserError: Another folder has images of a class without a name.
    """
    if names is None:
        return images
    strange = sorted({sample.class_id for sample in images.samples if sample.class_id is not None} - set(names.classes))
    if strange and images.layout != "shards":
        raise UserError(
            f"{images.place} has images of class {strange[0]!r}, which {names.source} does not name: add it"
        )
    samples = [one for one in images.samples if one.class_id in names.classes or one.record.get("captions")]
    return replace(images, samples=samples, classes=names.classes)


def _missing(name: str, why: str) -> Metric:
    return Metric(name, None, None, None, "fraction", 0, note=why)


def _print(found: Sequence[Metric], options: EncoderOptions, names: ClassNames | None) -> None:
    width = max(len(metric.name) for metric in found)
    for metric in found:
        if metric.value is None:
            print(printable(f"{metric.name:{width}}  not measured: {metric.note}"))
        else:
            low, high = (f"{end:.4f}" if end is not None else "?" for end in (metric.low, metric.high))
            print(printable(f"{metric.name:{width}}  {metric.value:.4f}  [{low}, {high}]  n = {metric.samples}"))
    if names is not None and len(names.languages) < len(LANGUAGE_NAMES) and "zero_shot" in options.measure:
        there = ", ".join(names.languages) or "none of these languages"
        print(
            f"class names are in {there} ({names.source}): zero-shot in other languages is not "
            "measured; give their names with --classes"
        )
    print(f"wrote {options.output / RESULTS} and {options.output / 'report.html'}")


def main(args: list[str]) -> None:
    """Parse the command line and measure."""
    evaluate_encoder(parse_settings(EncoderOptions, __doc__, args, program="evaluate.py encoder"))
