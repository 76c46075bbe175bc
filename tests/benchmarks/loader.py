"""Our PairsModule against open_clip_train's get_wds_dataset on the same tar files: 512 px JPEG to 224 px, captions.

``--peers litdata mosaic`` measures it beside litData and MosaicML Streaming, which read the same samples from files of
their own formats. Both sides end at uint8 and tokenize a batch in one call. The peer decodes as it does by itself and
crops with torchvision; in ``loader_NAME_our_decoding`` it decodes and crops as ours, so that only the reading differs.

The pictures are made for it: leaves of all sizes that hide each other, which gives the edges and the statistics of
photographs (Lee, Mumford and Huang 2001, "Occlusion models for natural images"), some smooth and some rough.

A pass covers every sample once. Ours ends at uint8 and leaves the normalisation to the training device, the peer ends
at normalised floats: `loader` normalises ours on the CPU too, `loader_as_shipped` does not.
"""

import functools
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
from open_clip_peer import skip_nameless_entries
from PIL import Image, ImageDraw, ImageFilter
from streaming_peers import PACKAGES, Item, as_handed_out, label, load, random_crop, stored_rows
from toy_input import captions, photo, write_tokenizer

from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.pairs_module import PairCaptions, PairsModule
from leam_mm.data.plan_datamodule import Loading
from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import run

SIZE, STORED, CONTEXT, BATCH, SHARDS = 224, 512, 77, 50, 4
SCALE, ASPECT = (0.9, 1.0), (3 / 4, 4 / 3)  # of open_clip's RandomResizedCrop
MEAN = torch.tensor(OPENAI_DATASET_MEAN)[:, None, None]
STD = torch.tensor(OPENAI_DATASET_STD)[:, None, None]


def leaves(seed: int, size: int, count: int = 700) -> Image.Image:
    """A picture of discs whose radii follow a power law, each with its own colour and roughness, seen by a lens."""
    generator = np.random.default_rng(seed)
    palette = generator.normal(120, 50, (8, 1)) + generator.normal(0, 25, (8, 3))
    ground = tuple(int(value) for value in palette[0].clip(0, 255))
    scene, roughness = Image.new("RGB", (size, size), ground), Image.new("L", (size, size), 60)
    draw, mark = ImageDraw.Draw(scene), ImageDraw.Draw(roughness)
    for _ in range(count):
        radius = (4.0**-2 * (1 - generator.random()) + (size / 2) ** -2) ** -0.5
        x, y = generator.uniform(-radius, size + radius, 2)
        colour = palette[generator.integers(len(palette))] + generator.normal(0, 15, 3)
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=tuple(int(value) for value in colour.clip(0, 255)))
        mark.ellipse(box, fill=int(255 * generator.random() ** 2))
    lens = ImageFilter.GaussianBlur(0.8)
    texture = np.asarray(photo(seed, size).filter(lens)) - 127.5
    pixels = np.asarray(scene.filter(lens)) + texture * (np.asarray(roughness.filter(lens))[..., None] / 320)
    pixels += generator.normal(0, 1.5, pixels.shape)  # of the sensor
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(seed: int, size: int = STORED, quality: int = 90) -> bytes:
    """Such a picture as JPEG, about 0.3 bytes a pixel."""
    buffer = io.BytesIO()
    leaves(seed, size).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_pairs(folder: Path, samples: int, stored: int = STORED) -> Path:
    """Shards that both sides read: the peer takes the caption from .txt, ours from .json."""
    with ShardWriter(folder, samples // SHARDS) as writer:
        for number, text in enumerate(captions(samples, seed=3)):
            record = {"captions": [{"text": text, "language": "en"}]}
            members = {"jpg": jpeg(number, stored), "json": json.dumps(record).encode(), "txt": text.encode()}
            writer.write(f"{number:06d}", members)
    return folder


def open_ours(shards: Path, tokenizer: Path, workers: int) -> PairsModule:
    """Our data module, ready to hand out its loader."""
    image = ImageDecoding(SIZE, SCALE, crop_aspect=ASPECT)
    captions = PairCaptions(tokenizer=tokenizer, context_length=CONTEXT)
    module = PairsModule(shards, image, BATCH, captions=captions, loading=Loading(workers))
    module.setup("fit")
    return module


def make_ours(shards: Path, tokenizer: Path, workers: int) -> Callable[[], Iterator[tuple[torch.Tensor, ...]]]:
    """Batches of (image uint8, text)."""
    module = open_ours(shards, tokenizer, workers)

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        for batch in module.train_dataloader():
            yield batch["image"], batch["text"]

    return batches


def open_peer(shards: Path, tokenizer: Path, samples: int, workers: int) -> Any:
    """open_clip_train's DataInfo."""
    skip_nameless_entries()
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
    return open_clip_data.get_wds_dataset(settings, transform, is_train=True, epoch=0, tokenizer=read)


def make_peer(
    shards: Path, tokenizer: Path, samples: int, workers: int
) -> Callable[[], Iterator[tuple[torch.Tensor, ...]]]:
    """Batches of (image float32, text)."""
    info = open_peer(shards, tokenizer, samples, workers)
    return lambda: iter(info.dataloader)


def normalise(image: torch.Tensor) -> torch.Tensor:
    """The step that ours leaves to the training device, as DualEncoder.normalise does it."""
    return (image * (1 / (255 * STD))).sub_(MEAN / STD)


def make_streaming(
    name: str, rows: Path, tokenizer: Path, workers: int, decode: Callable[[Any], torch.Tensor]
) -> Callable[[], Iterator[tuple[torch.Tensor, ...]]]:
    """Batches (image uint8, text) of a streaming peer; ``decode`` gets an image as the library hands it out."""
    read = HFTokenizer(str(tokenizer), context_length=CONTEXT)

    def decode_item(item: Item) -> Item:
        return {**item, "image": decode(item["image"])}

    def collate(items: list[Item]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([item["image"] for item in items]), read([item["caption"] for item in items])

    loader = load(name).open_loader(rows, BATCH, workers, decode_item, collate)
    return lambda: iter(loader)


def check_texts(
    ours: Callable[[], Iterator[tuple[torch.Tensor, ...]]],
    peer: Callable[[], Iterator[tuple[torch.Tensor, ...]]],
    samples: int,
) -> dict[str, Any]:
    """The same samples and texts in a pass."""
    texts = []
    for batches in (ours, peer):
        rows = torch.cat([torch.nn.functional.pad(text, (0, CONTEXT - text.shape[1])) for _, text in batches()])
        texts.append(sorted(tuple(row) for row in rows.tolist()))
    differing = sum(a != b for a, b in zip(*texts, strict=False)) + abs(len(texts[0]) - len(texts[1]))
    return measure.require_same(f"token rows of the {samples} samples of a pass, number that differs", differing, 0)


def check_pixels() -> list[dict[str, Any]]:
    """The same pixels as open_clip_train's where nothing is drawn at random, nearly so in training."""
    raw = jpeg(0)
    mine = normalise(ImageDecoding(SIZE)(raw, np.random.default_rng(0)))
    plain = image_transform(SIZE, is_train=False, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD)
    theirs = plain(Image.open(io.BytesIO(raw)))
    levels = float(((mine - theirs) * STD * 255).abs().max())
    trained = normalise(ImageDecoding(SIZE, crop_aspect=(1.0, 1.0))(raw, np.random.default_rng(0)))
    blurred = float(((trained - theirs) * STD * 255).abs().mean())
    return [
        measure.require_same("pixels of the transform without a random crop, levels of 255", levels, 1.01),
        measure.require_same("pixels decoded as in training, mean over the whole picture, levels of 255", blurred, 2.5),
    ]


def check_streaming_pixels(name: str) -> dict[str, Any]:
    """Nearly the same pixels as a library's own decoder and torchvision's crop, where the crop is the whole picture."""
    raw, whole = jpeg(0), (1.0, 1.0)
    theirs = random_crop(SIZE, whole, whole)(as_handed_out(name, raw))
    mine = ImageDecoding(SIZE, crop_aspect=whole)(raw, np.random.default_rng(0))
    difference = float((mine.float() - theirs.float()).abs().mean())
    return measure.require_same("pixels of the whole picture, mean, levels of 255", difference, 2.5)


def time_open_clip(
    ours: Callable[[], Iterator[tuple[torch.Tensor, ...]]],
    shards: Path,
    tokenizer: Path,
    samples: int,
    settings: measure.Settings,
    notes: str,
) -> list[Path]:
    """Beside open_clip_train, with and without the normalisation."""
    peer = make_peer(shards, tokenizer, samples, settings.workers)
    same = [check_texts(ours, peer, samples), *check_pixels()]

    def pass_ours() -> None:
        for image, _ in ours():
            normalise(image)

    written = []
    for name, work in (("loader", pass_ours), ("loader_as_shipped", lambda: exhaust(ours))):
        found = measure.time_pairs(work, lambda: exhaust(peer), settings.repeats)
        labels = ("PairsModule", "open_clip_train get_wds_dataset")
        written.append(measure.write_comparison(name, labels, found, (samples, "sample"), same, settings, notes))
    return written


def time_streaming(
    name: str,
    ours: Callable[[], Iterator[tuple[torch.Tensor, ...]]],
    shards: Path,
    tokenizer: Path,
    samples: int,
    settings: measure.Settings,
    notes: str,
) -> list[Path]:
    """Beside litData or MosaicML Streaming, with its own decoding and with ours."""
    generator, decoding = np.random.default_rng(0), ImageDecoding(SIZE, SCALE, crop_aspect=ASPECT)
    decodings = {
        "": (True, random_crop(SIZE, SCALE, ASPECT)),
        "_our_decoding": (False, lambda content: decoding(bytes(content), generator)),
    }
    written = []
    for kind, (encoded, decode) in decodings.items():
        rows = load(name).write(stored_rows(shards), shards.parent / f"{name}{kind}", None, encoded)
        peer = make_streaming(name, rows, tokenizer, settings.workers, decode)
        same = [check_texts(ours, peer, samples), *([check_streaming_pixels(name)] if encoded else [])]
        found = measure.time_pairs(lambda: exhaust(ours), functools.partial(exhaust, peer), settings.repeats)
        labels = (
            "PairsModule",
            label(name) + (", its own decoder, torchvision's crop" if encoded else ", our decoding"),
        )
        case = f"loader_{name}{kind}"
        written.append(measure.write_comparison(case, labels, found, (samples, "sample"), same, settings, notes))
    return written


def exhaust(batches: Callable[[], Iterator[tuple[torch.Tensor, ...]]]) -> None:
    """One pass."""
    for _ in batches():
        pass


@measure.benchmark(
    repeats=7,
    workers=(0, "loader processes; 0 is in process"),
    samples=(200, "pictures of a pass"),
    stored=(STORED, "side of the stored pictures, in pixels"),
    peers=(["open_clip"], "what ours is measured beside", {"choices": ("open_clip", *PACKAGES)}),
)
def main(settings: measure.Settings) -> list[Path]:
    """Measure beside each peer."""
    for name in set(settings.peers) - {"open_clip"}:
        load(name)
    samples = settings.samples // (BATCH * SHARDS) * BATCH * SHARDS or BATCH * SHARDS
    written = []
    with tempfile.TemporaryDirectory() as scratch:
        shards = write_pairs(Path(scratch) / "shards", samples, settings.stored)
        tokenizer = write_tokenizer(Path(scratch) / "tokenizer", CONTEXT, captions(500))
        ours = make_ours(shards, tokenizer, settings.workers)
        size = sum(path.stat().st_size for path in shards.glob("*.tar")) / samples / 1000
        notes = (
            f"{settings.workers} workers; {settings.stored} px, samples of {size:.0f} kB; random crops of 90 to 100 % "
            "of the area with aspect 3/4 to 4/3 and the same tokenizer class on both sides; whole passes, with the "
            "start of the iterator"
        )
        for name in settings.peers:
            time = time_open_clip if name == "open_clip" else functools.partial(time_streaming, name)
            written += time(ours, shards, tokenizer, samples, settings, notes)
    return written


if __name__ == "__main__":
    run(main)
