"""Parts of a release that were damaged on the way are refused by name."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from toys.encoders import tiny_clip
from toys.recipes import CODEC_SECTION, save_checkpoint
from transformers import BertConfig, BertModel

from leam_mm.captions.caption_encoders import open_caption_encoder
from leam_mm.codecs.pretrained_codec import load_codec
from leam_mm.encoders.hugging_face_text import transformers_model
from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.model_address import load_encoder
from leam_mm.release.encoder_folder import write_encoder
from leam_mm.released_files import RELEASE, compare_released_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A codec in the place that it has in a release."""
    folder = tmp_path / "release" / "vae"
    load_codec(save_checkpoint(tmp_path / "codec.ckpt", CODEC_SECTION)).save(folder)
    root = tmp_path / "release"
    files = {path.relative_to(root).as_posix(): {"sha256": file_sha256(path)} for path in folder.iterdir()}
    (root / RELEASE).write_text(json.dumps({"files": files}))
    return folder


def test_a_flipped_byte_of_the_weights_is_named(folder: Path) -> None:
    before = load_codec(folder).state_dict()
    file = next(folder.glob("*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 16]) + whole[-8:])
    with pytest.raises(UserError, match=rf"{file.name} is damaged or missing: it is not the file that was released"):
        load_codec(folder)
    file.write_bytes(whole)
    assert all(torch.equal(value, before[name]) for name, value in load_codec(folder).state_dict().items())


def test_only_files_of_the_named_patterns_are_compared(folder: Path) -> None:
    """An edited card beside the weights does not hinder their use."""
    root = folder.parent
    (root / "README.md").write_text("edited")
    description = json.loads((root / RELEASE).read_text())
    description["files"]["README.md"] = {"sha256": "0" * 64}
    (root / RELEASE).write_text(json.dumps(description))
    compare_released_files(root, ("open_clip_*", "tokenizer*.json"))
    with pytest.raises(UserError, match=r"README\.md is damaged"):
        compare_released_files(root)


def test_missing_files_and_broken_descriptions_are_one_line(folder: Path, tmp_path: Path) -> None:
    compare_released_files(tmp_path)  # belongs to no release
    (folder / "config.json").rename(folder / "config.old")
    with pytest.raises(UserError, match=r"config\.json is damaged or missing"):
        compare_released_files(folder)
    for text in ("", "[]", "{}", '{"files": []}', '{"files": {"a": 3}}'):
        (tmp_path / "release" / RELEASE).write_text(text)
        with pytest.raises(UserError, match="copy the release again") as caught:
            compare_released_files(folder)
        assert "\n" not in str(caught.value)


def state_digests(folder: Path) -> None:
    """Write the description of a release over all its files."""
    (folder / RELEASE).unlink(missing_ok=True)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    (folder / RELEASE).write_text(
        json.dumps({"files": {name: {"sha256": file_sha256(folder / name)} for name in names}})
    )


def too_long_a_header(whole: bytes) -> bytes:
    return struct.pack("<Q", 1 << 40) + whole[8:]


def a_weight_that_is_not_a_number(whole: bytes) -> bytes:
    """The last four bytes are part of a float32 tensor."""
    return whole[:-4] + struct.pack("<f", float("nan"))


def cut_off(whole: bytes) -> bytes:
    return whole[:-40]


@pytest.mark.parametrize("damage", [too_long_a_header, a_weight_that_is_not_a_number, cut_off])
@pytest.mark.parametrize("part", ["encoder", "codec", "text_encoder"])
def test_hostile_weights_with_matching_digests_are_refused_in_one_line(
    toy_tokenizer: Path, tmp_path: Path, part: str, damage: Callable[[bytes], bytes]
) -> None:
    """The publisher of a release states the digests, so they alone prove nothing."""
    write_encoder(tiny_clip(toy_tokenizer), tmp_path, "lab/model")  # type: ignore[arg-type]
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).save_pretrained(tmp_path / "vae")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=300, **sizes)).save_pretrained(tmp_path / "text_encoder")
    shutil.copytree(toy_tokenizer, tmp_path / "tokenizer")
    weights, load = {
        "encoder": (tmp_path / "open_clip_model.safetensors", lambda: load_encoder(tmp_path)),
        "codec": (tmp_path / "vae/diffusion_pytorch_model.safetensors", lambda: load_codec(tmp_path)),
        "text_encoder": (
            tmp_path / "text_encoder/model.safetensors", lambda: open_caption_encoder(tmp_path / "text_encoder")
        ),
    }[part]  # fmt: skip
    state_digests(tmp_path)
    load()
    weights.write_bytes(damage(weights.read_bytes()))
    state_digests(tmp_path)
    with pytest.raises(UserError, match=r"give|copy it again") as caught:
        load()
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_damaged_text_encoder_is_named(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=300, **sizes)).save_pretrained(tmp_path / "text_encoder")
    files = {"text_encoder/config.json": {"sha256": "0" * 64}}
    (tmp_path / RELEASE).write_text(json.dumps({"files": files}))
    with pytest.raises(UserError, match=r"config\.json is damaged or missing"):
        transformers_model(str(tmp_path / "text_encoder"), texts=True)
