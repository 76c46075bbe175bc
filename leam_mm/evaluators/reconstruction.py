"""What a codec loses: distance between originals and reconstructions (rFID), signal to noise, structure, pixels.

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
from leam_mm.errors import UserError
from leam_mm.evaluators.embedding import Picture, pictures_to_embed, read_pictures
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric, bootstrap_interval
from leam_mm.evaluators.frechet import frechet_distance_of_features, half_sample_interval
from leam_mm.evaluators.generation import save_grid
from leam_mm.evaluators.image_features import ImageFeatures, exact_arithmetic
from leam_mm.evaluators.ranks import agree, over_ranks, rank

WINDOW = 11  # pixels of the structural similarity's Gaussian window
EXACT = 100.0  # decibels that a picture counts which is given back without any error


class Reconstruction(Evaluator):
    """Fréchet distance of reconstructions to their own originals, PSNR, SSIM and mean absolute error.

    Pictures are encoded to the posterior's mode, normalised as for a generator, decoded and rounded to 8 bits. The
    Fréchet distance is what the literature calls rFID where `features` is Inception; zero is a perfect codec. PSNR is
    the mean over pictures of each one's, SSIM that of 10.1109/TIP.2003.819861 on each channel (Gaussian window of 11
    pixels with deviation 1.5, whole windows only). Ranks share the work and find the numbers of one process.

    Args:
        reference: Shard folder of pictures that the codec was not trained on.
        image_size: Side in pixels to which they are decoded, as in training.
        features: The network that the sets are compared with.
        samples: How many, spread evenly over the folder; None takes all.
        batch_size: Pictures in one forward pass.
        tile: Side of the tiles in which a large picture is worked on, or None; see LatentCodec.set_tile.
        shown: Pictures in `reconstructions.png`, above their reconstructions.
        seed: Of the intervals' draws.
        name: Start of the metrics' names.
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
        """Keep the settings; nothing is opened before `run`."""
        if image_size < WINDOW:
            raise UserError(f"Reconstruction: image_size is {image_size}, the SSIM's window takes {WINDOW} at least")
        self.reference, self.image_size, self.features = Path(reference), image_size, features
        self.samples, self.batch_size, self.tile = samples, batch_size, tile
        self.shown, self.seed, self.name = shown, seed, name

    def run(self, context: EvaluationContext) -> list[Metric]:
        """Reconstruct on all ranks and compare."""
        self.features.to(context.device)
        codec = context.require_codec()
        pictures = agree(self._read, context.device)

        def read(part: slice) -> Tensor:
            return torch.stack([picture.pixels(self.image_size) for picture in pictures[part]])

        def compute(original: Tensor) -> Tensor:
            made = reconstruct(codec, original.to(context.device))
            scores = torch.stack(picture_scores(made, original.to(context.device)), dim=1).cpu()
            return torch.cat([scores, self.features.extract(original), self.features.extract(made)], dim=1)

        codec.set_tile(self.tile)
        try:
            rows = over_ranks(len(pictures), self.batch_size, read, compute, context.device)
            if rank() == 0 and self.shown:
                self._draw(codec, pictures, rows, context)
        finally:
            codec.set_tile(None)
        return self._metrics(rows)

    def _read(self) -> list[Picture]:
        pictures = pictures_to_embed(read_pictures(self.reference, self.samples), self.batch_size)
        if len(pictures) < 8:
            raise UserError(f"{self.reference}: {len(pictures)} pictures are too few for a distance, 8 at least")
        return pictures

    def _metrics(self, rows: Tensor) -> list[Metric]:
        """The metrics of rows: PSNR, SSIM, error, features of the original, features of the reconstruction."""
        count = len(rows)
        note = f"{count} pictures of {self.image_size} px" + (f" in tiles of {self.tile}" if self.tile else "")
        scores, features = rows[:, :3].numpy(), rows[:, 3:]
        size = features.shape[1] // 2

        def distance(pairs: Tensor, _: Tensor) -> float:
            return frechet_distance_of_features(pairs[:, :size], pairs[:, size:])

        value = distance(features, features)
        low, high = half_sample_interval(features, features, distance, value, self.seed)
        text = f"{note}; {self.features.protocol}"
        if count < 2 * size:
            text += f"; indicative only: {count} pictures are fewer than twice the {size} features"
        name = f"{self.name}/frechet_distance"
        metrics = [Metric(name, value, max(low, 0.0), high, "distance", count, note=text)]
        exact = int((scores[:, 0] == EXACT).sum())
        told = f"; {exact} of them without any error count {EXACT:g} dB" if exact else ""
        kinds = [("psnr", "dB", note + told), ("ssim", "ratio", note), ("l1", "fraction", f"{note}; of white to black")]
        for column, (kind, unit, text) in enumerate(kinds):
            values = scores[:, column]
            low, high = bootstrap_interval(values, _mean, self.seed)
            metrics.append(Metric(f"{self.name}/{kind}", _mean(values), low, high, unit, count, note=text))
        return metrics

    def _draw(self, codec: LatentCodec, pictures: list[Picture], rows: Tensor, context: EvaluationContext) -> None:
        # All ranks hold the first batch.
        shown = pictures[: min(self.shown, self.batch_size)]
        original = torch.stack([picture.pixels(self.image_size) for picture in shown])
        made = reconstruct(codec, original.to(context.device)).cpu()
        labels = [picture.key for picture in shown] + [f"{float(row[0]):.1f} dB" for row in rows[: len(shown)]]
        save_grid(context.output / "reconstructions.png", torch.cat([original, made]), labels, columns=len(shown))


def reconstruct(codec: LatentCodec, image: Tensor) -> Tensor:
    """Encode and decode pictures (B, 3, H, W) uint8 with the codec's own normalisation; uint8 again, rounded.

    Raises:
        UserError: The codec gives pixels that are not finite.
    """
    with exact_arithmetic():
        made = codec.decode(codec.encode(image.float() / 127.5 - 1))
        if not torch.isfinite(made).all():
            raise UserError("the codec gives pixels that are not finite: its checkpoint diverged")
        return ((made + 1) * 127.5).round().to(torch.uint8)


def picture_scores(made: Tensor, original: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compare pictures (B, 3, H, W) uint8 one by one, in float64.

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
    edge = WINDOW // 2  # torchmetrics mirrors the picture there and counts it; the definition has whole windows only
    whole = similarity[:, :, edge:-edge, edge:-edge].mean((1, 2, 3))
    return ratio, whole, (first - second).abs().mean((1, 2, 3)) / 255


def _mean(values: numpy.ndarray) -> float:
    return float(values.mean())
