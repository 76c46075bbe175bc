"""Our PairsModule against open_clip_train's get_wds_dataset on the same tar files: 512 px JPEG to 224 px, captions.

A pass covers every sample once. Ours ends at uint8 and leaves the normalisation to the training device, the peer ends
at normalised floats: `loader` normalises ours on the CPU too, `loader_as_shipped` does not.
"""

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import measure
import numpy as np
import open_clip_train.data as open_clip_data
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import image_transform
from PIL import Image
from toy_input import captions, jpeg, write_tokenizer

from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.pairs_module import PairsModule
from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import run

SIZE, CONTEXT, BATCH, SHARDS = 224, 77, 50, 4
MEAN = torch.tensor(OPENAI_DATASET_MEAN)[:, None, None]
STD = torch.tensor(OPENAI_DATASET_STD)[:, None, None]


def write_pairs(folder: Path, samples: int) -> Path:
    """Shards that both sides read: the peer takes the caption from .txt, ours from .json."""
    with ShardWriter(folder, samples // SHARDS) as writer:
        for number, text in enumerate(captions(samples, seed=3)):
            record = {"captions": [{"text": text, "language": "en"}]}
            members = {"jpg": jpeg(number, 512), "json": json.dumps(record).encode(), "txt": text.encode()}
            writer.write(f"{number:06d}", members)
    return folder


def make_ours(shards: Path, tokenizer: Path, workers: int) -> Callable[[], Iterator[tuple[torch.Tensor, ...]]]:
    """Batches of (image uint8, text)."""
    module = PairsModule(
        shards, ImageDecoding(SIZE, (0.9, 1.0)), BATCH, tokenizer=tokenizer, context_length=CONTEXT, workers=workers
    )
    module.setup("fit")

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        for batch in module.train_dataloader():
            yield batch["image"], batch["text"]

    return batches


def make_peer(
    shards: Path, tokenizer: Path, samples: int, workers: int
) -> Callable[[], Iterator[tuple[torch.Tensor, ...]]]:
    """Batches of (image float32, text), with webdataset >= 0.2.96 made to fit open_clip_train 3.3.0."""
    if not hasattr(open_clip_data, "leam_mm_expander"):
        expand = open_clip_data.tar_file_expander
        open_clip_data.leam_mm_expander = expand
        # It now ends each tar with an entry without a name, on which open_clip_train stumbles.
        open_clip_data.tar_file_expander = lambda *args, **named: (
            entry for entry in expand(*args, **named) if "fname" in entry
        )
    settings = SimpleNamespace(
        train_data=f"{shards}/{{00000..{SHARDS - 1:05d}}}.tar",
        train_num_samples=samples,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=BATCH,
        workers=workers,
        world_size=1,
        seed=0,
    )
    transform = image_transform(SIZE, is_train=True, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD)
    read = HFTokenizer(str(tokenizer), context_length=CONTEXT)
    info = open_clip_data.get_wds_dataset(settings, transform, is_train=True, epoch=0, tokenizer=read)
    return lambda: iter(info.dataloader)


def normalise(image: torch.Tensor) -> torch.Tensor:
    """The step that ours leaves to the training device, as DualEncoder.normalise does it."""
    return (image * (1 / (255 * STD))).sub_(MEAN / STD)


def check(
    ours: Callable[[], Iterator[tuple[torch.Tensor, ...]]],
    peer: Callable[[], Iterator[tuple[torch.Tensor, ...]]],
    samples: int,
) -> list[dict[str, Any]]:
    """The same samples and texts in a pass; the same pixels where nothing is drawn at random."""
    texts = []
    for batches in (ours, peer):
        rows = torch.cat([text for _, text in batches()])
        texts.append(sorted(tuple(row) for row in rows.tolist()))
    differing = sum(a != b for a, b in zip(*texts, strict=False)) + abs(len(texts[0]) - len(texts[1]))
    raw = jpeg(0, 512)
    mine = normalise(ImageDecoding(SIZE)(raw, np.random.default_rng(0)))
    plain = image_transform(SIZE, is_train=False, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD)
    theirs = plain(Image.open(io.BytesIO(raw)))
    levels = float(((mine - theirs) * STD * 255).abs().max())
    return [
        measure.require_same(f"token rows of the {samples} samples of a pass, number that differs", differing, 0),
        measure.require_same("pixels of the transform without a random crop, levels of 255", levels, 1.01),
    ]


def main(args: list[str] | None = None) -> list[Path]:
    """Measure with and without the normalisation."""

    def extend(parser: Any) -> None:
        parser.add_argument("--workers", type=int, default=0, help="loader processes; 0 is in process (%(default)s)")
        parser.add_argument("--samples", type=int, default=200, help="pictures of a pass (%(default)s)")

    settings = measure.parse_arguments("loader", __doc__ or "", args, 7, extend)
    samples = settings.samples // (BATCH * SHARDS) * BATCH * SHARDS or BATCH * SHARDS
    written = []
    with tempfile.TemporaryDirectory() as scratch:
        shards = write_pairs(Path(scratch) / "shards", samples)
        tokenizer = write_tokenizer(Path(scratch) / "tokenizer", CONTEXT, captions(500))
        ours = make_ours(shards, tokenizer, settings.workers)
        peer = make_peer(shards, tokenizer, samples, settings.workers)
        same = check(ours, peer, samples)

        def pass_ours() -> None:
            for image, _ in ours():
                normalise(image)

        def pass_ours_as_shipped() -> None:
            for _ in ours():
                pass

        def pass_peer() -> None:
            for _ in peer():
                pass

        for name, work in (("loader", pass_ours), ("loader_as_shipped", pass_ours_as_shipped)):
            found = measure.time_pairs(work, pass_peer, settings.repeats)
            notes = (
                f"{settings.workers} workers; random crops of 90 to 100 % of the area on both sides, ours square, the "
                "peer's of aspect 3/4 to 4/3; the same tokenizer class; whole passes, start of the iterator included"
            )
            labels = ("PairsModule", "open_clip_train get_wds_dataset")
            written.append(measure.write_comparison(name, labels, found, (samples, "sample"), same, settings, notes))
    return written


if __name__ == "__main__":
    run(main)
