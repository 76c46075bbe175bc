"""Content of latent shards: moments, types, several text encoders, features, sizes and shapes."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from toys.command_line import encode_latents
from toys.encoders import write_caption_encoder
from toys.images import encoded_image
from toys.recipes import clip_recipe, save_checkpoint, sized_codec_section
from toys.shards import write_toy_shards

from data_tools import encode_latents as program
from data_tools.latents.latent_encoder import centre_square, statistics_of
from leam_mm.captions.caption_encoder import CaptionEncoder
from leam_mm.captions.hugging_face_captions import HuggingFaceCaptions
from leam_mm.checkpoint import load_module
from leam_mm.codec_module import LatentCodecModule
from leam_mm.codecs.latent_codec import LatentCodec
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.array_format import read_array
from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.latents_module import LatentDecoding, LatentsModule
from leam_mm.data.plan_datamodule import Loading
from leam_mm.data.shard_index import ShardFolder, ShardWriter, read_samples
from leam_mm.encoders.patch_features import open_patch_features
from leam_mm.errors import UserError
from leam_mm.files import file_sha256


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path, toy_tokenizer: Path) -> dict[str, Path]:
    """Checkpoints, and a folder of few samples."""
    folder = tmp_path_factory.mktemp("parts")
    return {
        "dc": save_checkpoint(folder / "dc.ckpt", sized_codec_section("DCCodec")),
        "kl": save_checkpoint(folder / "kl.ckpt", sized_codec_section("KLCodec")),
        "clip": save_checkpoint(folder / "clip.ckpt", clip_recipe(folder, toy_shards, toy_tokenizer)["model"]),
        "text": write_caption_encoder(folder / "text"),
        "shards": write_toy_shards(folder / "shards", samples=18, samples_per_shard=8),
    }


def make(parts: dict[str, Path], output: Path, codec: str = "dc", *more: str) -> str:
    return encode_latents(parts["shards"], {"codec": parts[codec], "clip": parts["clip"]}, output, *more)


def pixels(parts: dict[str, Path], size: int = 16) -> torch.Tensor:
    contents = [members["png"] for _, members in read_samples(parts["shards"])]
    images = [ImageDecoding(size)(content, np.random.default_rng(0)) for content in contents]
    return torch.stack(images).float() / 127.5 - 1


def arrays(folder: Path, name: str) -> np.ndarray:
    return np.stack([read_array(members, name).astype(np.float32) for _, members in read_samples(folder)])


def trained_codec(parts: dict[str, Path], codec: str, output: Path) -> LatentCodec:
    opened = load_module(parts[codec], LatentCodecModule).codec
    opened.load_statistics(output)
    return opened


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_moments_are_those_of_the_normalised_posterior(parts: dict[str, Path], tmp_path: Path, dtype: str) -> None:
    make(parts, tmp_path / "out", "kl", "--moments", "--dtype", dtype)
    codec = trained_codec(parts, "kl", tmp_path / "out")
    with torch.no_grad():
        posterior = codec.posterior(pixels(parts))
    mean = codec.normalise(posterior.mean).numpy()
    spread = (posterior.std * codec.scale).numpy()
    near = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-4}[dtype]
    np.testing.assert_allclose(arrays(tmp_path / "out", "latent.npy"), mean, rtol=near, atol=near)
    log_variance = arrays(tmp_path / "out", "latent_log_variance.npy")
    np.testing.assert_allclose(np.exp(0.5 * log_variance), spread, rtol=20 * near, atol=near)
    about = json.loads(next(read_samples(tmp_path / "out"))[1]["json"])["latent"]
    assert about["dtype"] == dtype and about["moments"] is True

    # Draws in training have mean 0 and variance 1, as the statistics promise.
    statistics = json.loads((tmp_path / "out" / "codec_statistics.json").read_text())
    power = np.square(mean).mean() + np.square(spread).mean()
    assert abs(mean.mean()) < 1e-4 and np.isclose(power, 1, rtol=1e-4) and statistics["count"] == 18 * 64
    decode, drawn = LatentDecoding(3), []
    for key, members in read_samples(tmp_path / "out"):
        drawn += [decode(key, members, index)["latent"] for index in range(40)]
    values = torch.stack(drawn)
    assert abs(float(values.mean())) < 0.02 and abs(float(values.std()) - 1) < 0.02


def test_statistics_of_moments_in_closed_form() -> None:
    torch.manual_seed(0)
    raw, log_variance = torch.randn(5, 3, 4, 2).numpy(), torch.randn(5, 3, 4, 2).numpy()
    whole = statistics_of({"raw": raw, "log_variance": log_variance})
    mean = raw.astype(np.float64).mean((0, 2, 3))
    variance = raw.astype(np.float64).var((0, 2, 3)) + np.exp(log_variance.astype(np.float64)).mean((0, 2, 3))
    np.testing.assert_allclose(whole.mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(whole.std.numpy() ** 2, variance, rtol=1e-12)
    merged = [statistics_of({"raw": raw[part], "log_variance": log_variance[part]}) for part in (slice(2), slice(2, 5))]
    np.testing.assert_allclose(merged[0].merge(merged[1]).std.numpy(), whole.std.numpy(), rtol=1e-12)


def test_moments_need_a_codec_with_a_posterior(parts: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is an AutoencoderDC, which has no posterior"):
        make(parts, tmp_path / "out", "dc", "--moments")
    assert not list(tmp_path.iterdir())


def test_states_of_several_encoders_are_packed_for_training(parts: dict[str, Path], tmp_path: Path) -> None:
    make(parts, tmp_path / "out", "dc", "--text-encoder", str(parts["text"]), "--dtype", "float32")
    own = CaptionEncoder.from_module(load_module(parts["clip"], ContrastiveModule))
    other = HuggingFaceCaptions(str(parts["text"]))
    made = LatentsModule(tmp_path / "out", 18, loading=Loading(0))
    made.setup("fit")
    batch = next(iter(made.train_dataloader()))
    assert batch["caption_state"].shape[2] == 32 + other.width
    for row, text in enumerate(batch["caption"]):
        (first, first_mask), (second, second_mask) = own.encode([text]), other.encode([text])
        length = int(first_mask.sum()), int(second_mask.sum())
        state = batch["caption_state"][row]
        assert int(batch["caption_length"][row]) == sum(length) and not state[sum(length) :].any()
        torch.testing.assert_close(state[: length[0], :32], first[0, : length[0]], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(state[length[0] : sum(length), 32:], second[0, : length[1]], rtol=1e-4, atol=1e-4)
        assert not state[: length[0], 32:].any() and not state[length[0] :, :32].any()
    settings = json.loads((tmp_path / "out" / "encoding.json").read_text())
    assert settings["text_sha256"] == [file_sha256(parts["clip"]), other.sha256]


def test_an_encoder_of_transformers_suffices(parts: dict[str, Path], tmp_path: Path) -> None:
    given = ["--shards", str(parts["shards"]), "--codec", str(parts["dc"]), "--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match="no text encoder is given"):
        program.parse(given)
    options = program.parse([*given, "--text-encoder", str(parts["text"]), "--text-length", "5"])
    program.encode_latents(options, Console(file=io.StringIO()))
    _, members = next(read_samples(tmp_path / "out"))
    entries = json.loads(members["json"])["caption_states"]
    assert {entry["length"] for entry in entries} <= {2, 3, 4, 5} and "lengths" not in entries[0]
    assert entries[0]["source"] == "generated"
    assert read_array(members, "caption_state.npy").shape[1:] == (max(entry["length"] for entry in entries), 24)


def test_features_are_those_of_the_encoder(parts: dict[str, Path], tmp_path: Path) -> None:
    make(parts, tmp_path / "out", "dc", "--features", str(parts["clip"]))
    features = open_patch_features(str(parts["clip"]))
    stored = arrays(tmp_path / "out", "image_feature.npy")
    np.testing.assert_allclose(stored, features.encode(pixels(parts)).numpy(), rtol=2e-3, atol=2e-3)
    _, members = next(read_samples(tmp_path / "out"))
    about = json.loads(members["json"])["latent"]["feature"]
    assert about == {"sha256": file_sha256(parts["clip"]), "grid": [2, 2]}
    batch = LatentDecoding(0).collate([LatentDecoding(0)("k", members, 0)])
    assert batch["image_feature"].shape == (1, 4, 32) and batch["image_feature"].dtype == torch.float32
    make(parts, tmp_path / "finer", "dc", "--features", str(parts["clip"]), "--feature-size", "32")
    assert arrays(tmp_path / "finer", "image_feature.npy").shape == (18, 16, 32)


def test_several_sizes_are_folders_with_shared_statistics(parts: dict[str, Path], tmp_path: Path) -> None:
    make(parts, tmp_path / "out", "dc", "--image-size", "16", "--image-size", "8")
    listed = json.loads((tmp_path / "out" / "buckets.json").read_text())["buckets"]
    assert listed == [{"folder": f"{size}x{size}", "height": size, "width": size, "samples": 18} for size in (8, 16)]
    raw = [
        read_array(members, "latent.npy")
        for size in (8, 16)
        for _, members in read_samples(tmp_path / f"out/{size}x{size}")
    ]
    power = sum(float(np.square(latent.astype(np.float64)).sum()) for latent in raw) / sum(
        latent.size for latent in raw
    )
    assert np.isclose(power, 1, rtol=2e-3) and raw[0].shape == (4, 2, 2) and raw[-1].shape == (4, 4, 4)
    statistics = [(tmp_path / "out" / name / "codec_statistics.json").read_text() for name in ("", "8x8", "16x16")]
    assert len(set(statistics)) == 1 and json.loads(statistics[0])["count"] == 18 * (4 + 16)
    made = LatentsModule(tmp_path / "out", 4, loading=Loading(0))
    made.setup("fit")
    assert {batch["latent"].shape[-1] for batch in made.train_dataloader()} == {2, 4}


def write_gradients(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    """Shards of images of a gradient, width x height."""
    with ShardWriter(folder, 4) as writer:
        for number, (width, height) in enumerate(sizes):
            across = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
            across[..., 1] = np.linspace(0, 255, height)[:, None]
            image = encoded_image(Image.fromarray(across.astype(np.uint8)))
            record = {"captions": [{"text": f"{width} by {height}", "language": "en"}]}
            writer.write(f"{number:03d}", {"png": image, "json": json.dumps(record).encode()})
    return folder


def test_buckets_keep_every_image_in_its_shape(parts: dict[str, Path], tmp_path: Path) -> None:
    sizes = [(32, 32), (64, 32), (30, 61), (40, 41), (100, 48), (20, 40), (33, 33), (16, 16), (60, 31), (31, 31)]
    given = {**parts, "shards": write_gradients(tmp_path / "shards", sizes)}
    make(given, tmp_path / "out", "dc", "--image-size", "16", "--buckets", "--bucket-multiple", "4")
    found: dict[str, tuple[int, int]] = {}
    listed = json.loads((tmp_path / "out" / "buckets.json").read_text())["buckets"]
    for bucket in listed:
        folder = tmp_path / "out" / bucket["folder"]
        assert ShardFolder(folder).samples == bucket["samples"]
        keys = [key for key, _ in read_samples(folder)]
        assert keys == sorted(keys)
        for key, members in read_samples(folder):
            latent, record = read_array(members, "latent.npy"), json.loads(members["json"])
            shape = bucket["height"], bucket["width"]
            assert latent.shape == (4, shape[0] // 4, shape[1] // 4) and shape[0] * shape[1] <= 16 * 16
            width, height = sizes[int(key)]
            assert record["latent"]["original_size"] == [height, width]
            assert record["latent"]["crop"][2:] == list(shape) == record["picture_size"][4:]
            assert record["picture_size"][:4] == [height, width, *record["latent"]["crop"][:2]]
            found[key] = shape
    assert len(found) == len(sizes) == sum(bucket["samples"] for bucket in listed) and len(listed) > 2
    assert found["001"][1] > found["001"][0] and found["002"][0] > found["002"][1] and found["000"] == (16, 16)
    made = LatentsModule(tmp_path / "out", 2, loading=Loading(0))
    made.setup("fit")
    for batch in made.train_dataloader():
        assert batch["picture_size"].shape == (2, 6)
    with pytest.raises(UserError, match="--buckets takes one --image-size"):
        make(given, tmp_path / "no", "dc", "--image-size", "16", "--image-size", "8", "--buckets")
    with pytest.raises(UserError, match="--bucket-multiple 6 does not fit"):
        make(given, tmp_path / "no", "dc", "--image-size", "16", "--buckets", "--bucket-multiple", "6")


def test_crop_of_a_centre_square(tmp_path: Path) -> None:
    for (width, height), expected in {(40, 20): (0, 8), (20, 40): (8, 0), (16, 16): (0, 0), (60, 45): (0, 3)}.items():
        _, members = next(read_samples(write_gradients(tmp_path / f"{width}-{height}", [(width, height)])))
        image, size = centre_square(members["png"], 16)
        assert (size.crop_top, size.crop_left) == expected and size[:2] == (height, width) and size[4:] == (16, 16)
        # The colours of the gradient give the position of the crop.
        share = (size.crop_left + 8) / (16 * width / min(width, height))
        assert abs(float(image[0, :, 7:9].float().mean()) / 255 - share) < 0.03


def test_values_that_do_not_fit_are_named(parts: dict[str, Path], tmp_path: Path) -> None:
    statistics = json.loads('{"shift": 0.0, "scale": 1e7, "mean": [0, 0, 0, 0], "std": [1, 1, 1, 1], "count": 1}')
    (tmp_path / "codec_statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(UserError, match=r"latent\.npy between sample 000000 and 000006 does not fit float16"):
        make(parts, tmp_path / "out", "dc", "--statistics", str(tmp_path))
    make(parts, tmp_path / "wide", "dc", "--statistics", str(tmp_path), "--dtype", "bfloat16")
    assert np.abs(arrays(tmp_path / "wide", "latent.npy")).max() > 65504
