r"""Text to image in 24 languages, scored atom by atom by judges that are tested first.

python evaluate.py text_to_image --generator runs/quickstart/generator --judge runs/quickstart/scenes \
    runs/quickstart/clip --prompts runs/quickstart/scenes/prompt_set.json --known runs/quickstart/shards/test \
    --output runs/quickstart/text_to_image
python evaluate.py text_to_image --images drawn --judge models/SmolVLM-256M-Instruct --output scored

The first form draws the images and writes them into the folder text_to_image of the output; a second run draws what is
missing. The second form scores images of any program, drawn/CONCEPT/LANGUAGE_0.png, of the 480 prompts of this package.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch

from leam_mm.command_line import NonNegativeInt, PositiveInt, Range, Share, parse_settings
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError
from leam_mm.evaluators.encoder_judge import EncoderJudge
from leam_mm.evaluators.evaluator import EvaluationContext
from leam_mm.evaluators.image_features import ClipFeatures, EfficientNetLite0
from leam_mm.evaluators.image_judge import ImageJudge
from leam_mm.evaluators.image_text_judge import ImageTextJudge
from leam_mm.evaluators.results import RESULTS, append_results, evidence
from leam_mm.evaluators.scene_judge import SceneJudge
from leam_mm.evaluators.text_to_image import TextToImage
from leam_mm.intervals.indicative import INDICATIVE
from leam_mm.recorded_classes import trust_modules
from leam_mm.report.report_page import write_report
from leam_mm.run_lock import output_lock


@dataclass(frozen=True)
class TextToImageOptions:
    """Settings of the command.

    Args:
        output: Folder for results.jsonl, the answers, the images and report.html.
        judge: Judges: folder of an image-text model of transformers, address of an encoder, or folder of scenes.
        generator: Run, checkpoint, release, or folder of a pipeline of diffusers.
        images: Folder of images that another program drew, in place of a generator.
        prompts: File of parallel prompts; by default the 480 prompts in 24 languages.
        known: Shard folder of scenes on which judges are tested; by default coloured shapes are drawn.
        known_limit: Number of known images.
        least_accuracy: Accuracy that a judge must reach; below it, scores are marked as indicative.
        features: Encoder for the likeness of images across languages; by default EfficientNet-Lite0.
        per_kind: Maximum number of concepts of each kind.
        images_per_prompt: Images of each prompt.
        steps: Steps of the sampler.
        guidance: Strength of classifier-free guidance.
        seed: First seed of the noise.
        clip: The generator's text encoder, if it was moved since training.
        codec: The generator's codec, if it was moved since training.
        device: Device; auto uses the GPU if there is one.
        trust: Modules of your own, such as my_lab, whose classes the checkpoint may name; several between commas.
    """

    output: Path
    judge: list[str] = field(default_factory=list)
    generator: Path | None = None
    images: Path | None = None
    prompts: Path | None = None
    known: Path | None = None
    known_limit: PositiveInt = 400
    least_accuracy: Share = 0.9
    features: Path | None = None
    per_kind: PositiveInt | None = None
    images_per_prompt: PositiveInt = 1
    steps: PositiveInt = 28
    guidance: Annotated[float, Range(least=0, most=1000)] = 4.0
    seed: NonNegativeInt = 0
    clip: Path | None = None
    codec: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trust: str = ""


def open_judge(address: str, number: int) -> ImageJudge:
    """Return the judge of an address; a further one of the same sort gets a number in its name.

    Args:
        address: Folder of scenes, folder of an image-text model of transformers, or address of an encoder.
        number: How many judges of this sort come before it.

    Raises:
        UserError: There is nothing at the address.
    """
    path, ending = Path(address), f"_{number + 1}" if number else ""
    kind = judge_kind(address)
    if kind is SceneJudge:
        return SceneJudge(path, f"scene_reader{ending}")
    if kind is ImageTextJudge:
        return ImageTextJudge(path, name=f"image_text_model{ending}")
    return EncoderJudge(path, name=f"encoder{ending}")


def judge_kind(address: str) -> type[ImageJudge]:
    """Return the class of the judge of an address, from the files that are there.

    Raises:
        UserError: There is nothing at the address.
    """
    from leam_mm.model_address import address_kind

    path = Path(address)
    if (path / "scenes.json").is_file():
        return SceneJudge
    try:
        kind = address_kind(address)
    except UserError as error:
        raise UserError(f"--judge {address}: {error}; or the folder of an image-text model, or of scenes") from None
    return ImageTextJudge if kind == "autoencoder" else EncoderJudge


def text_to_image(options: TextToImageOptions) -> None:
    """Draw, judge and write the results.

    Raises:
        UserError: An option is missing or wrong; nothing is written then.
    """
    if not options.judge:
        raise UserError("give at least one --judge: an image-text model, an encoder, or a folder of scenes")
    if (options.generator is None) == (options.images is None):
        raise UserError("give either --generator, which draws the images, or --images with those of another program")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu")
    trust_modules(options.trust)
    kinds = [judge_kind(address) for address in options.judge]
    judges = [open_judge(address, kinds[:n].count(kinds[n])) for n, address in enumerate(options.judge)]
    features = ClipFeatures(options.features) if options.features is not None else EfficientNetLite0()
    evaluator = TextToImage(
        judges, options.prompts, options.known, options.known_limit, least_accuracy=options.least_accuracy,
        features=features, images=options.images, per_kind=options.per_kind,
        sampling=SamplerSettings(options.steps, options.guidance), seed=options.seed,
        images_per_prompt=options.images_per_prompt,
    )  # fmt: skip
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    context = EvaluationContext(options.clip, options.generator, options.output, device, options.codec)
    from time import monotonic

    with output_lock(options.output):
        start = monotonic()
        metrics = evaluator.run(context)
        append_results(options.output, metrics, evidence(context, evaluator, monotonic() - start))
        write_report(options.output, options.output / "report.html", title=f"Text to image {options.output.name}")
    for metric in metrics:
        if metric.name.rpartition("/")[2] in ("mean", "min_over_mean", "accuracy", "parity", "image_likeness"):
            value = "not measured" if metric.value is None else f"{metric.value:.4f}"
            doubt = INDICATIVE if INDICATIVE in metric.note else ""
            print(f"{metric.name:52} {value:>12}  {_interval(metric.low, metric.high)}  {doubt}".rstrip())
    print(f"wrote {options.output / RESULTS} and {options.output / 'report.html'}")


def main(args: list[str]) -> None:
    """Parse the command line and measure."""
    text_to_image(parse_settings(TextToImageOptions, __doc__, args, program="evaluate.py text_to_image"))


def _interval(low: float | None, high: float | None) -> str:
    return f"({low:.4f} to {high:.4f})" if low is not None and high is not None and low == low else ""
