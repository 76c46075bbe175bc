import json
from pathlib import Path

import pytest

from leam_mm.errors import UserError
from leam_mm.models.frozen_parts import FrozenParts


def test_nothing_named_is_an_empty_record_and_opens_nothing() -> None:
    parts = FrozenParts(None, None, None)
    assert parts.record() == {}
    with pytest.raises(UserError, match=r"model\.init_args\.clip is empty"):
        parts.caption_encoder(8)
    with pytest.raises(UserError, match=r"model\.init_args\.codec is empty"):
        parts.codec(4)


def test_a_record_is_kept_and_compared(tmp_path: Path) -> None:
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


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "codec.ckpt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"codec\.ckpt cannot be read as a checkpoint"):
        FrozenParts(None, str(tmp_path / "codec.ckpt"), None).codec(4)
