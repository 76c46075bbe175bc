"""Identifiers of persons in generated images: a detector reads text in them, and validators look at it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from leam_mm.audits.audit import Audit, AuditContext, AuditResult, Threshold
from leam_mm.audits.detectors import TextDetector
from leam_mm.audits.identifiers import IdentifierCounts, load_finder
from leam_mm.audits.personal_data import MAPS_TO
from leam_mm.audits.stored_samples import FEWEST, rate_slice
from leam_mm.data.image_limits import IMAGE_SUFFIXES
from leam_mm.data.upright_image import read_upright
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError
from leam_mm.evaluators.embedding import read_image_samples
from leam_mm.evaluators.generated_images import generate, published

MAX_FILE = 1 << 28  # bytes of an image file
BATCH = 16  # images


class GeneratedText(Audit):
    """Reads text in generated images and counts images with a validated identifier.

    The images are those of a folder, or are generated from captions of the training shards. What the detector cannot
    read is not found: the bound holds for text that it reads.

    - class_path: leam_mm.audits.generated_text.GeneratedText
      init_args:
        detector: {class_path: my_lab.Ocr}

    Args:
        detector: Detector of text.
        folder: Folder of generated images, with all below it; None generates them with the generator.
        images: Number of images to generate; in a folder all count.
        kinds: Kinds of identifiers that count, such as [email, iban]; None counts all.
        sampling: How the images are sampled.
        seed: Seed of the noise.
    """

    name = "personal_data/generated_text"

    def __init__(
        self,
        detector: TextDetector,
        folder: Path | None = None,
        images: int = 64,
        kinds: Sequence[str] | None = None,
        sampling: SamplerSettings = SamplerSettings(),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        """See the class for the arguments."""
        if images < 1:
            raise UserError(f"GeneratedText: images is {images}: give at least 1")
        self.detector, self.folder, self.images = detector, folder, images
        self.kinds = None if kinds is None else list(kinds)
        self.sampling, self.seed = sampling, seed

    def run(self, context: AuditContext) -> list[AuditResult]:
        """Read the text of every image."""
        find = load_finder(self.kinds)
        found = _stored(self.folder) if self.folder is not None else self._generate(context)
        counts, with_text = IdentifierCounts(self.kinds), 0
        for number, image in enumerate(found):
            text = "\n".join(self.detector(image))
            with_text += bool(text.strip())
            counts.add(text, str(number), find)
        value, reader = float(counts.hits), type(self.detector).__name__
        return [
            AuditResult(
                self.name, value, value, value, "count", counts.texts, Threshold(most=0),
                counts.slices() | {"images with any text": rate_slice(with_text, counts.texts)},
                f"{counts.summary('generated images')}; text was read in {with_text:,} by {reader}",
                fewest=0 if counts.hits else FEWEST, maps_to=MAPS_TO,
            )
        ]  # fmt: skip

    def _generate(self, context: AuditContext) -> Iterator[Image.Image]:
        samples = read_image_samples(context.require("shards"), self.images)
        module = context.require_generator()
        captions = [entry["text"] for sample in samples for entry in sample.record.get("captions", [])[:1]]
        if not captions:
            raise UserError(f"{context.shards}: no sample has a caption to generate an image from")
        prompts = [captions[number % len(captions)] for number in range(self.images)]
        for first in range(0, len(prompts), BATCH):
            batch = prompts[first : first + BATCH]
            for pixels in published(generate(module, batch, self.sampling, self.seed, first)):
                yield Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _stored(folder: Path) -> Iterator[Image.Image]:
    """Yield the images of a folder in the order of their paths.

    Raises:
        UserError: There is none, or one cannot be read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise UserError(f"{folder} holds no image: give the folder of generated images")
    for path in paths:
        try:
            if path.stat().st_size > MAX_FILE:
                raise UserError(f"it has more than {MAX_FILE:,} bytes")
            yield read_upright(path.read_bytes())
        except (UserError, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}): remove it from the folder") from None
