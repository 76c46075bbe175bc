"""Parts of a release that were damaged on the way are refused by name."""

import json
from pathlib import Path

import pytest
import torch
from toys.recipes import CODEC_SECTION, save_checkpoint

from leam_mm.codecs.pretrained_codec import load_codec
from leam_mm.errors import UserError
from leam_mm.files import file_sha256
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
