"""Verification of latent shards, and the estimate of disk space."""

import json
import re
from pathlib import Path

import pytest
from toys.command_line import encode_latents
from toys.recipes import clip_recipe, save_checkpoint, sized_codec_section
from toys.shards import write_toy_shards

from leam_mm.data.array_format import array_bytes, read_array, to_stored
from leam_mm.data.shard_index import ShardWriter, read_samples
from leam_mm.errors import UserError


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path, toy_tokenizer: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return {
        "codec": save_checkpoint(folder / "kl.ckpt", sized_codec_section("KLCodec")),
        "clip": save_checkpoint(folder / "clip.ckpt", clip_recipe(folder, toy_shards, toy_tokenizer)["model"]),
    }


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_shards(tmp_path_factory.mktemp("few") / "shards", samples=18, samples_per_shard=8)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_intact_folder_is_verified(parts: dict[str, Path], shards: Path, tmp_path: Path, dtype: str) -> None:
    more = ["--dtype", dtype, "--moments", "--features", str(parts["clip"]), "--verify", "6"]
    said = encode_latents(shards, parts, tmp_path / "out", *more)
    found = re.search(r"read back 18 samples; 6 decoded: PSNR ([\d.]+) dB, without storing ([\d.]+) dB", said)
    assert found and abs(float(found[1]) - float(found[2])) < 0.2
    for name in ("latent.npy", "latent_log_variance.npy", "caption_state.npy", "image_feature.npy"):
        assert f"{name} " in said
    again = encode_latents(shards, parts, tmp_path / "out", *more)
    assert "nothing to do" in again and "read back 18 samples" in again


def rewritten(folder: Path, output: Path, change: dict[str, object]) -> Path:
    """The folder with other members in its fourth sample, and correct digests."""
    with ShardWriter(output, 8) as writer:
        for number, (key, members) in enumerate(read_samples(folder)):
            writer.write(key, members | change if number == 3 else members)  # type: ignore[arg-type]
    for name in ("encoding.json", "codec_statistics.json"):
        (output / name).write_text((folder / name).read_text())
    return output


def test_differences_are_found(parts: dict[str, Path], shards: Path, tmp_path: Path) -> None:
    encode_latents(shards, parts, tmp_path / "sound")
    _, members = list(read_samples(tmp_path / "sound"))[3]
    shifted = array_bytes(to_stored(read_array(members, "latent.npy") + 0.5, "float16"))
    for name, change, reason in [
        ("latent", {"latent.npy": shifted}, r"latent\.npy differs by [\d.]+ from"),
        ("json", {"json": json.dumps({"captions": [{"text": "x", "language": "en"}]}).encode()}, "its json or its"),
        ("more", {"image_feature.npy": shifted}, "image_feature.npy has shape"),
    ]:
        broken = rewritten(tmp_path / "sound", tmp_path / name, change)
        with pytest.raises(UserError, match=reason):
            encode_latents(shards, parts, broken, "--verify", "18")
    statistics = json.loads((tmp_path / "sound" / "codec_statistics.json").read_text())
    wrong = rewritten(tmp_path / "sound", tmp_path / "wrong", {})
    (wrong / "codec_statistics.json").write_text(json.dumps(statistics | {"scale": 3 * statistics["scale"]}))
    with pytest.raises(UserError, match=r"latent\.npy differs by [\d.]+ from"):
        encode_latents(shards, parts, wrong, "--verify")
    tar = sorted((tmp_path / "sound").glob("*.tar"))[1]
    content = bytearray(tar.read_bytes())
    content[-3000] ^= 1
    tar.write_bytes(content)
    with pytest.raises(UserError, match="its sha256 is not the one"):
        encode_latents(shards, parts, tmp_path / "sound", "--verify")


@pytest.mark.parametrize(
    "more", [[], ["--moments", "--features", "clip", "--dtype", "float32", "--image-size", "16", "--image-size", "32"]]
)
def test_disk_space_is_estimated(parts: dict[str, Path], tmp_path: Path, more: list[str]) -> None:
    shards = write_toy_shards(tmp_path / "shards", samples=60, samples_per_shard=30)
    said = encode_latents(shards, parts, tmp_path / "out", *[str(parts.get(word, word)) for word in more])
    estimate = re.search(r"samples will take about ([\d.]+) MB", said)
    taken = sum(file.stat().st_size for file in (tmp_path / "out").rglob("*.tar")) / 1e6
    assert estimate and abs(float(estimate[1]) - taken) < 0.15 * taken + 0.05
    listed = dict(re.findall(r"(latents|caption states|records|features) ([\d.]+)", said))
    assert abs(sum(map(float, listed.values())) - float(estimate[1])) < 0.3 and ("features" in listed) == bool(more)
