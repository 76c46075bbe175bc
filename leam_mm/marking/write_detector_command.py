"""Turn a marked codec's extractor into a detector: whiten its bits on unmarked images, measure, and write."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from leam_mm.checkpoint import load_module, load_part
from leam_mm.command_line import PositiveInt, Range
from leam_mm.data.image_decoding import ImageDecoding, image_member
from leam_mm.data.image_range import signed
from leam_mm.data.sample_order import sample_generator
from leam_mm.data.shard_index import ShardFolder, read_samples
from leam_mm.errors import UserError
from leam_mm.marking.agreeing_bits import measured_dispersion
from leam_mm.marking.decoder_mark import DecoderMark, summarize
from leam_mm.marking.image_changes import ImageChanges, rounded

BATCH = 16  # images that are read at once
KINDS = ("plain", "changed", "decoded", "decoded and changed")


@dataclass(frozen=True)
class WriteDetectorOptions:
    """Write the detector of a codec whose decoder marks its images.

    Args:
        codec: Run folder or checkpoint of the marked codec.
        shards: Shard folder of unmarked images, of the kind that the generator makes.
        output: Folder of the detector; an older one is replaced.
        original: Run folder of the codec before it was marked, whose decodings count as unmarked images, too; by
            default it is where the marked codec's run found it.
        samples: Images; half of them whiten the bits, the other half measures them.
        sizes: Sides in pixels at which the images are read, multiples of the codec's downscale.
        seed: Seed of crops and changes.
        device: Where extractor and codec run.
    """

    codec: Path
    shards: Path
    output: Path
    original: Path | None = None
    samples: PositiveInt = 4096
    sizes: list[Annotated[int, Range(least=16, most=1024)]] = field(default_factory=lambda: [32, 64, 128, 256])
    seed: int = 0
    device: str = "cpu"


def write_detector(options: WriteDetectorOptions) -> int:
    """Write the folder, and print what was measured."""
    module: Any = load_module(options.codec, "mark")
    if module.mark is None:
        raise UserError(f"--codec {options.codec} has no mark: train it with model.losses.mark, see docs/marking.md")
    extractor, message = module.mark.extractor.requires_grad_(False), module.mark.message.numpy()
    if options.samples < 8 * extractor.bits:
        raise UserError(f"--samples {options.samples}: {extractor.bits} bits need at least {8 * extractor.bits} images")
    codec = load_part(options.original or module.weights, "ema_codec").to(options.device)
    folder, extractor = ShardFolder(options.shards), extractor.to(options.device)
    features, kinds = [], []
    with torch.inference_mode():
        for kind, image in unmarked_images(options, codec):
            features.append(extractor.average(image.to(options.device)).cpu())
            kinds += [kind] * len(image)
        codec = module.ema_codec().to(options.device)
        parts = [extractor.average(image.to(options.device)).cpu() for image in marked_images(options, codec)]
    found, marked, extractor = torch.cat(features), torch.cat(parts), extractor.cpu()
    half = np.arange(len(found)) // BATCH % 2 == 0
    extractor.whiten(extractor.read(found[torch.from_numpy(half)]), extractor.read(marked), message)
    bits = (extractor.read(found[torch.from_numpy(~half)]) > 0).numpy()
    held_out, agreeing = np.array(kinds)[~half], (bits == message).sum(1)
    spread = {kind: measured_dispersion(agreeing[held_out == kind], extractor.bits) for kind in KINDS}
    mark = DecoderMark(extractor, message, summarize(bits, folder.merkle_root, max(spread.values())))
    mark.write(options.output)
    report(mark, spread, options.output)
    return 0


def unmarked_images(
    options: WriteDetectorOptions, codec: Any, kinds: tuple[str, ...] = KINDS
) -> Iterator[tuple[str, Tensor]]:
    """Yield batches of unmarked images (B, 3, H, W) in [-1, 1], each of one size and kind, with their kind."""
    changes = ImageChanges()
    samples = itertools.chain.from_iterable(read_samples(options.shards) for _ in itertools.count())
    turns = itertools.cycle(itertools.product(options.sizes, kinds, range(2)))  # two batches, one for each half
    for number in range(-(-options.samples // BATCH)):
        size, kind, _ = next(turns)
        generator = sample_generator(options.seed, number, "unmarked")
        decode = ImageDecoding(size, crop_scale=(0.25, 1.0))
        members = [members for _, members in itertools.islice(samples, BATCH)]
        image = signed(torch.stack([decode(image_member(one), generator) for one in members]))
        if kind.startswith("decoded"):
            image = rounded(codec.decode(codec.encode(image.to(options.device))))
        yield kind, changes(image, generator) if kind.endswith("changed") else image


def marked_images(options: WriteDetectorOptions, codec: Any) -> Iterator[Tensor]:
    """Yield batches of decodings of the marked codec, an eighth as many as there are unmarked images."""
    some = replace(options, samples=max(4 * len(options.sizes) * BATCH, options.samples // 8))
    for kind, image in unmarked_images(some, codec, KINDS[2:]):
        assert kind in KINDS[2:]
        yield image


def report(mark: DecoderMark, spread: dict[str, float], folder: Path) -> None:
    """Print what was measured on unmarked images."""
    console, unmarked, bits = Console(soft_wrap=True), mark.unmarked, mark.extractor.bits
    console.print(
        f"{unmarked.images} unmarked images: bits are 1 in {unmarked.least_fair:.1%} to {unmarked.most_fair:.1%}, two "
        f"bits correlate by at most {unmarked.largest_correlation:.2f}"
    )
    for kind, value in spread.items():
        console.print(f"  {kind}: variance of the number of agreeing bits at most {value:.2f} times the binomial's")
    for rate in (1e-3, 1e-6):
        least = mark.distribution.least(rate)
        text = f"{least} of {bits} bits must agree" if least <= bits else "not reached by any number of bits"
        console.print(f"false positive rate of {rate:g}: {text}")
    console.print(f"wrote {folder}")
