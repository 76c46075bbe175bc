"""Draw images for prompts with a trained generator.

    python -m leam_mm.draw --generator runs/quickstart/generator --prompt "ein roter Kreis" --output drawings
    python -m leam_mm.draw --generator GENERATOR --prompts prompts.txt --images 4 --grid --output drawings
    python -m leam_mm.draw --generator GENERATOR --prompt "a blue star" --edit photo.jpg --strength 0.7 --output edited

Writes prompt0001_seed0.png and so on, and drawings.jsonl with prompt, seed, settings and digests of each. An image
depends on the generator, the prompt, the seed and the settings alone; the same command gives the same pixels on one
processor model (the files differ: a signature holds random numbers and the time). A second run keeps what is there and
draws the rest. Each image is marked as generated: docs/marking.md.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from leam_mm.command_line import NonNegativeInt, PositiveInt, Range, Share, parse_settings
from leam_mm.errors import UserError, run
from leam_mm.recorded_classes import trust_modules
from leam_mm.run_lock import output_lock

MAX_SIDE = 4096  # pixels


@dataclass(frozen=True)
class DrawSettings:
    """Settings of the program.

    Args:
        generator: Run, checkpoint, release, or folder of a pipeline of diffusers.
        output: Folder of the images; created if missing.
        prompt: Text, in any language; may be repeated. An empty one draws without a description.
        prompts: File of texts: .txt with one a line, or .json with a list. Empty lines are left out.
        images: Images of each prompt, with the seeds from --seed on.
        seed: First seed.
        steps: Steps of the sampler; more are slower and often better.
        guidance: Strength of classifier-free guidance; 1 or less is off.
        size: Width x height in pixels, such as 64x96; by default that of the training images.
        edit: Image file to start from; its centre square is used.
        strength: How much of the edited image is replaced, from 0 (nothing) to 1 (everything).
        mask: Image file, white where the edited image is replaced; by default everywhere.
        grid: Write grid.png with all images and their prompts, too.
        overwrite: Replace files in the output folder that hold other images.
        batch_size: Images at a time; it changes memory and speed.
        device: cpu or cuda.
        clip: The generator's text encoder, if it was moved since training.
        codec: The generator's codec, if it was moved since training.
        deletion_list: File of hashes of images that are not returned; by default that of the release, if it has one.
        trust: Modules of your own, such as my_lab, whose classes the checkpoint may name; several between commas.
    """

    generator: str
    output: Path
    prompt: list[str] = field(default_factory=list)
    prompts: Path | None = None
    images: PositiveInt = 1
    seed: NonNegativeInt = 0
    steps: PositiveInt = 28
    guidance: Annotated[float, Range(least=0, most=1000)] = 4.0
    size: str | None = None
    edit: Path | None = None
    strength: Share = 0.6
    mask: Path | None = None
    grid: bool = False
    overwrite: bool = False
    batch_size: PositiveInt = 16
    device: str = "cpu"
    clip: str | None = None
    codec: str | None = None
    deletion_list: Path | None = None
    trust: str = ""


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return width and height of "64" or "64x96"; None stays None."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,4})(?:[xX×](\d{1,4}))?", text.strip())
    sides = tuple(int(side) for side in (match[1], match[2] or match[1])) if match else (0, 0)
    if not all(0 < side <= MAX_SIDE for side in sides):
        raise UserError(f"--size {text}: give width x height in pixels up to {MAX_SIDE}, such as 64x96")
    return sides[0], sides[1]


def draw(settings: DrawSettings, console: Console) -> None:
    """Draw the images and write their record."""
    import torch  # seconds of imports, not needed for --help

    from leam_mm.diffusion.sampler_settings import SamplerSettings
    from leam_mm.evaluators.image_grid import read_prompts
    from leam_mm.inference.drawing import GRID, RECORD, Drawer, DrawingSettings, Source, plan_drawings
    from leam_mm.marking.deletion_list import deletion_list_of
    from leam_mm.model_address import load_generator

    prompts = [*settings.prompt, *(read_prompts(settings.prompts) if settings.prompts is not None else [])]
    if not prompts:
        raise UserError('give --prompt "ein roter Kreis", or --prompts FILE')
    if settings.edit is None and settings.mask is not None:
        raise UserError("--mask belongs to an image: give --edit IMAGE, too")
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {settings.device}: no GPU is visible here; give --device cpu")
    trust_modules(settings.trust)
    source = Source(settings.edit, settings.strength, settings.mask) if settings.edit is not None else None
    how = DrawingSettings(SamplerSettings(settings.steps, settings.guidance), parse_size(settings.size), source)
    drawings = plan_drawings(prompts, settings.seed, settings.images)
    with console.status("opening the generator"):
        module = load_generator(settings.generator, settings.clip, settings.codec).to(settings.device)
        listed = deletion_list_of(settings.deletion_list, settings.generator)
        drawer = Drawer(module, how, settings.output, settings.batch_size, listed)
    done, other = drawer.present(drawings)
    if other and not settings.overwrite:
        raise UserError(
            f"{settings.output / other[0].file} and {len(other) - 1} more hold other images than this command draws: "
            "give another --output, or --overwrite"
        )
    with output_lock(settings.output):
        for kind, found in (("keeps", done), ("replaces", other)):
            if found:
                console.print(f"{kind} {len(found)} images that are in {settings.output} already")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("draw", total=len(drawings))
            drawer.draw(drawings, lambda count: bar.advance(task, count))
        drawer.record(drawings)
        console.print(
            f"drew {len(drawings) - len(done) - len(drawer.refused)} images to {settings.output}; {RECORD} says how"
        )
        if settings.grid:
            console.print(f"{GRID} shows {drawer.grid(drawings)} of them")
    if drawer.refused:
        raise UserError(f"{len(drawer.refused)} images are not returned; the first: {drawer.refused[0]}")


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    settings = parse_settings(DrawSettings, __doc__, args, program="python -m leam_mm.draw")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    draw(settings, Console(soft_wrap=True, highlight=False))


if __name__ == "__main__":
    run(main)
