"""Reconstruction quality of a codec: distance to the originals (rFID), PSNR, SSIM and mean absolute error.

- class_path: leam_mm.evaluators.reconstruction.Reconstruction
  init_args:
    reference: runs/quickstart/shards/test
    image_size: 32
    features: {class_path: leam_mm.evaluators.image_features.EfficientNetLite0}
"""

from pathlib import Path

import numpy
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from leam_mm.codecs.latent_codec import LatentCodec
from leam_mm.data.image_range import signed
from leam_mm.distances.frechet import frechet_distance_of_features
from leam_mm.distances.frechet_halves import frechet_of_halves
from leam_mm.errors import UserError
from leam_mm.evaluators.contact_sheet import ShownImage, write_contact_sheet
from leam_mm.evaluators.embedding import ImageSample, keep_own_bytes, read_image_samples
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric
from leam_mm.evaluators.image_features import ImageFeatures, exact_arithmetic
from leam_mm.evaluators.ranks import agree, over_ranks, rank
from leam_mm.intervals.distance_interval import FINITE, interval_of_halves
from leam_mm.intervals.indicative import indicative
from leam_mm.intervals.intervals import mean_interval

WINDOW = 11  # pixels of the structural similarity's Gaussian window
EXACT = 100.0  # decibels of an image that is reconstructed without any error


class Reconstruction(Evaluator):
    """Fréchet distance of reconstructions to their own originals, PSNR, SSIM and mean absolute error.

    Images are encoded to the posterior's mode, normalised as for a generator, decoded and rounded to 8 bits. The
    Fréchet distance is the rFID of the literature if `features` is Inception; zero is a perfect codec. PSNR is the mean
    over images, SSIM that of 10.1109/TIP.2003.819861 on each channel (Gaussian window of 11 pixels with deviation 1.5,
    whole windows only). Ranks share the work and give the same numbers as one process.

    Args:
        reference: Shard folder of images that the codec was not trained on.
        image_size: Side in pixels to which they are decoded, as in training.
        features: The network whose features are compared.
        samples: Number of images, spread evenly over the folder; None takes all.
        batch_size: Images in one forward pass.
        tile: Side of the tiles in which a large image is processed, or None; see LatentCodec.set_tile.
        shown: Images in the contact sheet `reconstructions.json`, each before its reconstruction.
        seed: Seed of the intervals' draws.
        name: Prefix of the metrics' names.
    """

    def __init__(
        self,
        reference: Path,
        image_size: int,
        features: ImageFeatures,
        samples: int | None = None,
        batch_size: int = 32,
        tile: int | None = None,
        shown: int = 8,
        seed: int = 0,
        name: str = "reconstruction",
    ) -> None:
        """See the class for the arguments."""
        if image_size < WINDOW:
            raise UserError(f"Reconstruction: image_size is {image_size}; give at least {WINDOW} (window of SSIM)")
        self.reference, self.image_size, self.features = Path(reference), image_size, features
        self.samples, self.batch_size, self.tile = samples, batch_size, tile
        self.shown, self.seed, self.name = shown, seed, name

    def run(self, context: EvaluationContext) -> list[Metric]:
        """Reconstruct on all ranks and compare."""
        self.features.to(context.device)
        codec = context.require_codec()
        samples = agree(self._read, context.device)

        def read(part: slice) -> Tensor:
            return torch.stack([sample.pixels(self.image_size) for sample in samples[part]])

        def compute(original: Tensor) -> Tensor:
            made = reconstruct(codec, original.to(context.device))
            scores = torch.stack(image_scores(made, original.to(context.device)), dim=1).cpu()
            return torch.cat([scores, self.features.extract(original), self.features.extract(made)], dim=1)

        codec.set_tile(self.tile)
        try:
            rows = over_ranks(len(samples), self.batch_size, read, compute, context.device)
            if rank() == 0 and self.shown:
                self._draw(codec, samples, rows, context)
        finally:
            codec.set_tile(None)
        return self._metrics(rows)

    def _read(self) -> list[ImageSample]:
        samples = keep_own_bytes(read_image_samples(self.reference, self.samples), self.batch_size)
        if len(samples) < 8:
            raise UserError(f"{self.reference} has {len(samples)} images: give at least 8, for a distance")
        return samples

    def _metrics(self, rows: Tensor) -> list[Metric]:
        """Return the metrics of rows: PSNR, SSIM, error, features of the original, features of the reconstruction."""
        count = len(rows)
        note = f"{count} images of {self.image_size} px" + (f" in tiles of {self.tile}" if self.tile else "")
        scores, features = rows[:, :3].numpy(), rows[:, 3:]
        size = features.shape[1] // 2
        original, made = features[:, :size], features[:, size:]
        value = frechet_distance_of_features(original, made)
        low, high = interval_of_halves(frechet_of_halves(original, made, self.seed, paired=True), value)
        text = f"{note}; {self.features.protocol}; {FINITE}"
        if count < 2 * size:
            text += "; " + indicative(f"{count} images are fewer than twice the {size} features")
        name = f"{self.name}/frechet_distance"
        metrics = [Metric(name, value, max(low, 0.0), high, "distance", count, note=text)]
        exact = int((scores[:, 0] == EXACT).sum())
        remark = f"; {exact} of them without any error count {EXACT:g} dB" if exact else ""
        kinds = [
            ("psnr", "dB", note + remark),
            ("ssim", "ratio", note),
            ("l1", "fraction", f"{note}; of white to black"),
        ]
        for column, (kind, unit, text) in enumerate(kinds):
            values = scores[:, column]
            low, high = mean_interval(values)
            metrics.append(Metric(f"{self.name}/{kind}", _mean(values), low, high, unit, count, note=text))
        return metrics

    def _draw(self, codec: LatentCodec, samples: list[ImageSample], rows: Tensor, context: EvaluationContext) -> None:
        # Every rank has the bytes of the first batch.
        shown = samples[: min(self.shown, self.batch_size)]
        original = torch.stack([sample.pixels(self.image_size) for sample in shown])
        made = reconstruct(codec, original.to(context.device)).cpu()
        pairs = [
            ShownImage(images[number].permute(1, 2, 0).numpy(), sample.key, label=label, generated=False)
            for number, sample in enumerate(shown)
            for label, images in (("image", original), (f"codec, {float(rows[number][0]):.1f} dB", made))
        ]
        write_contact_sheet(context.output, "reconstructions", "Images and their reconstructions", pairs, columns=2)


def reconstruct(codec: LatentCodec, image: Tensor) -> Tensor:
    """Encode and decode images (B, 3, H, W) uint8 with the codec's own normalisation; round to uint8 again.

    Raises:
        UserError: The codec gives pixels that are not finite.
    """
    with exact_arithmetic():
        made = codec.decode(codec.encode(signed(image)))
        if not torch.isfinite(made).all():
            raise UserError("the codec gives pixels that are not finite: its checkpoint diverged; take an earlier one")
        return ((made + 1) * 127.5).round().to(torch.uint8)


def image_scores(made: Tensor, original: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compare images (B, 3, H, W) uint8 one by one, in float64.

    Returns:
        Peak signal to noise ratio in decibels (at most `EXACT`), structural similarity in [-1, 1], and mean absolute
        difference as a share of the range from black to white; each (B,).
    """
    first, second = made.double(), original.double()
    noise = (first - second).square().mean((1, 2, 3))
    ratio = (20 * numpy.log10(255.0) - 10 * noise.log10()).clamp(max=EXACT)  # no noise is infinite
    _, similarity = structural_similarity_index_measure(
        first, second, sigma=1.5, kernel_size=WINDOW, data_range=255.0, reduction="none", return_full_image=True
    )
    edge = WINDOW // 2  # torchmetrics pads by reflection and counts the border; the definition has whole windows only
    whole = similarity[:, :, edge:-edge, edge:-edge].mean((1, 2, 3))
    return ratio, whole, (first - second).abs().mean((1, 2, 3)) / 255


def _mean(values: numpy.ndarray) -> float:
    return float(values.mean())
