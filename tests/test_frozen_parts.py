"""Frozen parts of a generator: opened once, recorded in checkpoints, and refused when they change."""

import json
from pathlib import Path

import pytest
import torch
from toys.codecs import tiny_kl

from leam_mm.captions.frozen_parts import FrozenParts
from leam_mm.errors import UserError


def test_without_paths_the_record_is_empty_and_nothing_opens() -> None:
    parts = FrozenParts(None, None, None)
    assert parts.record() == {}
    with pytest.raises(UserError, match=r"model\.init_args\.frozen\.clip is empty"):
        parts.caption_encoder(8)
    with pytest.raises(UserError, match=r"model\.init_args\.frozen\.codec is empty"):
        parts.latent_codec(4)


def test_record_names_the_files_and_is_compared(tmp_path: Path) -> None:
    codec = tmp_path / "codec.ckpt"
    codec.write_bytes(b"one")
    (tmp_path / "codec_statistics.json").write_text(json.dumps({"shift": 1.0}))
    before = FrozenParts(None, str(codec), str(tmp_path)).record()
    assert before["latents"]["statistics"] == {"shift": 1.0} and before["codec"]["path"] == str(codec)
    codec.write_bytes(b"two")
    FrozenParts(None, None, str(tmp_path)).compare(before)
    with pytest.raises(UserError, match="another codec"):
        FrozenParts(None, str(codec), None).compare(before)
    (tmp_path / "codec_statistics.json").write_text(json.dumps({"shift": 2.0}))
    with pytest.raises(UserError, match="another latents"):
        FrozenParts(None, None, str(tmp_path)).compare(before)


def test_file_that_is_no_checkpoint_is_reported(tmp_path: Path) -> None:
    (tmp_path / "codec.ckpt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"codec\.ckpt cannot be read as a checkpoint"):
        FrozenParts(None, str(tmp_path / "codec.ckpt"), None).latent_codec(4)


def test_codec_in_a_folder_of_diffusers_is_frozen_and_may_not_change(tmp_path: Path) -> None:
    codec = tiny_kl()
    codec.measure(codec.encode_raw(torch.rand(2, 3, 16, 16)))
    codec.save(tmp_path / "vae")
    parts = FrozenParts(None, str(tmp_path / "vae"), None)
    opened, image = parts.latent_codec(4), torch.rand(1, 3, 16, 16)
    assert torch.equal(opened.encode(image), codec.eval().encode(image))
    assert not any(weight.requires_grad for weight in opened.parameters())
    before = parts.record()
    tiny_kl().save(tmp_path / "vae")
    with pytest.raises(UserError, match="another codec"):
        FrozenParts(None, str(tmp_path / "vae"), None).compare(before)
