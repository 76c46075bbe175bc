"""Shapes against brute force, and pictures that keep what they show."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image
from toys.command_line import encode_latents
from toys.recipes import CODEC_SECTION, buckets_recipe, clip_recipe, save_checkpoint

from leam_mm.checkpoint import load_module
from leam_mm.cli import main
from leam_mm.codecs.pretrained_codec import load_codec
from leam_mm.data.aspect_buckets import AspectBuckets, ImageSize, folder_name
from leam_mm.data.bucket_order import read_buckets
from leam_mm.data.image_decoding import image_member
from leam_mm.data.latent_members import read_latent
from leam_mm.data.shard_index import ShardWriter, read_samples
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.errors import UserError


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def ramp(height: int, width: int) -> np.ndarray:
    """Red counts the rows from 0 to 255, green the columns."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([(255 * rows / (height - 1)), (255 * columns / (width - 1)), np.zeros_like(rows)], axis=-1).astype(
        np.uint8
    )


@pytest.mark.parametrize(
    ("side", "multiple", "ratio"), [(1024, 64, 2.0), (512, 64, 4.0), (64, 16, 3.0), (96, 8, 1.5), (32, 32, 9.0)]
)
def test_shapes_are_all_that_cannot_grow(side: int, multiple: int, ratio: float) -> None:
    area = side**2
    sides = range(multiple, area // multiple + 1, multiple)
    expected = [
        (height, width)
        for height in sides
        for width in range(multiple, area // height + 1, multiple)
        if max(height, width) <= ratio * min(height, width)
        and (height + multiple) * width > area
        and height * (width + multiple) > area
    ]
    shapes = AspectBuckets(side, multiple, ratio).shapes
    assert shapes == expected and (side, side) in shapes
    assert {(width, height) for height, width in shapes} == set(shapes)


def test_published_shapes_of_one_megapixel() -> None:
    shapes = AspectBuckets(1024, 64, 2.0).shapes
    assert {(1024, 1024), (960, 1088), (896, 1152), (832, 1216), (768, 1344)} <= set(shapes)


def test_nearest_in_the_logarithm() -> None:
    buckets = AspectBuckets(256, 32, 3.0)
    generator = np.random.default_rng(0)
    for width, height in generator.integers(1, 4000, (300, 2)).tolist():
        height_, width_ = buckets.assign(width, height)
        apart = [abs(math.log(width * h / (height * w))) for h, w in buckets.shapes]
        assert abs(math.log(width * height_ / (height * width_))) <= min(apart) + 1e-12


def test_ties_have_one_answer() -> None:
    buckets = AspectBuckets(64, 16, 2.0)
    assert buckets.shapes == [(48, 80), (64, 64), (80, 48)]
    assert [buckets.assign(*size) for size in ((9, 9), (5, 3), (3, 5))] == [(64, 64), (48, 80), (80, 48)]
    buckets.shapes = [(16, 80), (32, 32), (80, 16)]  # the root of 5 lies in the middle: below it all go to the square
    assert [buckets.assign(*size) for size in ((2236, 1000), (2237, 1000))] == [(32, 32), (16, 80)]
    buckets.shapes = [(16, 64), (32, 32), (64, 16)]  # 2:1 lies between 4:1 and 1:1, which has as many pixels
    assert buckets.assign(20, 10) == buckets.assign(2000, 1000) == (32, 32)
    assert buckets.assign(10, 20) == (64, 16)  # and so the taller is taken, as of two shapes lying across
    buckets.shapes = [(48, 80), (80, 48)]
    assert buckets.assign(7, 7) == (80, 48)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(("height", "width"), [(300, 500), (500, 300), (400, 400), (90, 1000), (17, 23), (1200, 800)])
def test_cut_covers_the_bucket_and_says_what_it_was(kind: str, height: int, width: int) -> None:
    buckets = AspectBuckets(64, 16, 2.0)
    for place in ((0.5, 0.5), (0.0, 0.0), (1.0, 1.0)):
        image, size = buckets.cut(encoded(ramp(height, width), kind), place)
        target = buckets.assign(width, height)
        assert image.shape == (3, *target) and size[:2] == (height, width) and size[4:] == target
        scale = max(target[0] / height, target[1] / width)
        rest = height * scale - target[0], width * scale - target[1]
        assert min(rest) < 1e-9 and size[2:4] == (round(place[0] * rest[0]), round(place[1] * rest[1]))
        if min(height, width) < 100:
            continue
        # The ramps tell where the corners of the result lay in the picture.
        for channel, (length, axis) in enumerate(((height, 1), (width, 2))):
            values = image[channel].float().mean(2 - axis)
            first, last = (float(values[end]) / 255 * length * scale for end in (0, -1))
            assert abs(first - 0.5 - size[2 + channel]) < 2.5
            assert abs(last + 0.5 - size[2 + channel] - target[channel]) < 2.5


def test_a_picture_of_the_bucket_stays_bit_for_bit() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    image, size = AspectBuckets(64, 16, 2.0).cut(encoded(pixels))
    assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels) and size == ImageSize(48, 80, 0, 0, 48, 80)


@pytest.mark.parametrize("arguments", [(0, 16, 2.0), (60, 16, 2.0), (8, 16, 2.0), (64, 0, 2.0), (64, 16, 0.5)])
def test_impossible_shapes_are_refused(arguments: tuple[int, int, float]) -> None:
    with pytest.raises(UserError, match=r"buckets (of|with)"):
        AspectBuckets(*arguments)


@pytest.mark.parametrize("content", [b"", b"no picture", encoded(ramp(40, 60))[:90]])
def test_damaged_bytes_are_one_line(content: bytes) -> None:
    with pytest.raises(UserError, match="unreadable image") as caught:
        AspectBuckets(64, 16).cut(content)
    assert "\n" not in str(caught.value)


def test_name_of_a_folder() -> None:
    assert folder_name((512, 768)) == "512x768"


class Seen(Callback):
    """Notes what the training gets."""

    latents: list[tuple[int, ...]] = []  # noqa: RUF012 (one training at a time)
    sizes: list[torch.Tensor] = []  # noqa: RUF012

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # type: ignore[no-untyped-def]
        Seen.latents.append(tuple(batch["latent"].shape))
        Seen.sizes.append(batch["picture_size"])


def write_pictures(folder: Path, count: int = 24) -> Path:
    """Shards of pictures files of other sizes and three aspect ratios, with a caption each."""
    with ShardWriter(folder, 8) as writer:
        for number in range(count):
            height, width = [(30, 50), (64, 64), (90, 54)][number % 3]
            pixels = ramp(height + number, width + number)
            record = {"captions": [{"text": f"picture {number}", "language": "en", "source": "original"}]}
            kind = "jpg" if number % 2 else "png"
            picture = encoded(pixels, "JPEG" if number % 2 else "PNG")
            writer.write(f"{number:06d}", {kind: picture, "json": json.dumps(record).encode()})
    return folder


def test_pictures_of_three_shapes_train_a_generator(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    clip = clip_recipe(tmp_path / "clip", toy_shards, toy_tokenizer)["model"]
    frozen = {
        "clip": save_checkpoint(tmp_path / "clip.ckpt", clip),
        "codec": save_checkpoint(tmp_path / "c.ckpt", CODEC_SECTION),
    }
    shards, output = write_pictures(tmp_path / "shards"), tmp_path / "latents"
    settings = ("--image-size", "16", "--buckets", "--bucket-multiple", "4", "--dtype", "float32")
    encode_latents(shards, frozen, output, *settings)

    # Each latent is that of its picture as the buckets cut it.
    buckets, codec = AspectBuckets(16, 4), load_codec(frozen["codec"])
    codec.load_statistics(output)
    pictures = {key: members for key, members in read_samples(shards)}
    stored = [sample for bucket in read_buckets(output) or [] for sample in read_samples(bucket.path)]
    assert len(stored) == 24 and read_buckets(output) is not None
    for key, members in stored:
        pixels, size = buckets.cut(image_member(pictures[key]))
        assert json.loads(members["json"])["picture_size"] == list(size)
        with torch.no_grad():
            expected = codec.eval().encode(pixels[None].float() / 127.5 - 1)[0]
        assert expected.shape == (4, size.target_height // 4, size.target_width // 4)
        torch.testing.assert_close(read_latent(members, 0, 0), expected, rtol=1e-4, atol=1e-4)

    recipe = buckets_recipe(tmp_path / "run", output, toy_tokenizer)
    recipe["trainer"]["callbacks"] = [{"class_path": f"{__name__}.Seen"}]
    model = recipe["model"]["init_args"]
    model["denoiser"]["init_args"] |= {"context_dim": 32, "size_conditioning": None}
    parts = {name: str(path) for name, path in frozen.items()}
    model |= {"frozen": {**parts, "latents": str(output)}, "latent_size": 4}
    model["caption_dropout"] = 0.1
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    overlay = Path(__file__).parent.parent / "configs" / "overlay_buckets.yaml"
    Seen.latents, Seen.sizes = [], []
    option = "--model.init_args.denoiser.init_args.size_conditioning=16"
    main(["fit", "--config", str(tmp_path / "recipe.yaml"), "--config", str(overlay), option])
    assert len({shape[2:] for shape in Seen.latents}) == 3 and {shape[:2] for shape in Seen.latents} == {(8, 4)}
    for shape, sizes in zip(Seen.latents, Seen.sizes, strict=True):
        assert (sizes[:, 4:] == 4 * torch.tensor(shape[2:])).all()  # the network gets the shape of its input
        assert all(
            buckets.assign(width, height) == (shape[2] * 4, shape[3] * 4) for height, width in sizes[:, :2].tolist()
        )

    module = load_module(tmp_path / "run", LatentDiffusionModule)
    assert module.denoiser.size_conditioning is not None
    assert float(module.denoiser.size_conditioning.out.weight.detach().abs().max()) > 0  # it has learnt
    drawn = module.sample(["picture 1"], seed=0, steps=2, size=(3, 5))
    assert drawn.shape == (1, 3, 12, 20) and torch.isfinite(drawn).all()
