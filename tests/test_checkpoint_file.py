"""Damage to a checkpoint: every flipped byte is noticed or harmless, and a run resumes from the one before."""

import io
import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from toys.command_line import fit_here
from toys.recipes import clip_recipe

from leam_mm import checkpoint_file
from leam_mm.checkpoint import EVIDENCE, AtomicCheckpointIO, read_checkpoint
from leam_mm.checkpoint_generations import generations
from leam_mm.cli import main
from leam_mm.errors import UserError
from leam_mm.files import file_sha256


def content(step: int = 1) -> dict[str, Any]:
    state = {"w": torch.arange(3000.0) + step, "b": torch.ones(7, dtype=torch.bfloat16)}
    return {"state_dict": state, EVIDENCE: {"config": "model: {}", "samples_seen": step}, "global_step": step}


def save(path: Path, step: int = 1) -> Path:
    AtomicCheckpointIO().save_checkpoint(content(step), path)
    return path


def flip(path: Path, position: int, bit: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(equal(found[key], value) for key, value in wanted.items())
    return torch.equal(found, wanted) if isinstance(wanted, torch.Tensor) else bool(found == wanted)


def test_a_sound_file_is_read_by_us_and_by_torch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = save(tmp_path / "last.ckpt")
    assert equal(read_checkpoint(file), content()) and equal(torch.load(file, weights_only=True), content())
    assert equal(torch.load(file, weights_only=True, mmap=True), content())
    assert save(tmp_path / "again.ckpt").read_bytes() == file.read_bytes()
    with open(file, "rb") as stream:
        assert checkpoint_file.compare_digest(stream, file) == file_sha256(file)
    assert torch.serialization.get_crc32_options() and not caplog.records


def test_every_flipped_byte_is_refused_or_harmless(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = save(tmp_path / "last.ckpt")
    whole = file.read_bytes()
    generator = np.random.default_rng(0)
    tail = range(len(whole) - checkpoint_file.TAIL, len(whole))
    refused = 0
    for position in [*generator.integers(0, len(whole), 200).tolist(), *tail]:
        flip(file, position, int(generator.integers(8)))
        caplog.clear()
        try:
            assert equal(read_checkpoint(file), content()), position
            assert position in tail and "has no digest" in caplog.text  # the mark itself: said, and nothing is lost
        except UserError as error:
            refused += 1
            assert "last.ckpt cannot be read as a checkpoint" in str(error) and "\n" not in str(error)
        file.write_bytes(whole)
    assert refused >= 200
    assert equal(read_checkpoint(file), content())


def test_archives_in_which_torch_would_find_other_parts_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "last.ckpt")
    whole, place = file.read_bytes(), io.BytesIO()
    with open(file, "rb") as stream:
        checkpoint_file.check_archive(stream)
    with zipfile.ZipFile(place, "w") as archive:  # without the wider end record that torch writes
        archive.writestr("a/data.pkl", b"x")
        archive.comment = b"x" * 70
    checkpoint_file.check_archive(place)
    locator = whole.rindex(b"PK\6\7")
    moved = whole[: locator + 8] + bytes(8) + whole[locator + 16 :]
    without = whole[: locator - 56] + b"PK\0\0" + whole[locator - 52 :]
    for content in (whole + whole, bytes(100) + whole, moved, without, bytes(9) + place.getvalue()):
        with pytest.raises((ValueError, zipfile.BadZipFile)):  # some versions of zipfile refuse some of them
            checkpoint_file.check_archive(io.BytesIO(content))


def test_files_without_digest_load_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(content(), tmp_path / "old.ckpt")
    assert equal(read_checkpoint(tmp_path / "old.ckpt"), content())
    assert [record.levelno for record in caplog.records] == [logging.WARNING] and "old.ckpt has no" in caplog.text


def test_a_run_resumes_from_the_previous_checkpoint_bit_for_bit(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=48)
    fit_here(recipe, tmp_path)
    folder = tmp_path / "run" / "checkpoints"
    whole = read_checkpoint(folder / "last.ckpt")
    assert [read_checkpoint(file)["global_step"] for file in generations(folder)] == [6, 4]
    (folder / "generation-000004-samples-000000000056.ckpt.tmp-1-ab").touch()  # of a killed run
    flip(folder / "last.ckpt", 5000)
    fit_here(recipe, tmp_path)
    lines = [line for line in caplog.messages if "resumes from the checkpoint before the last one" in line]
    assert len(lines) == 1 and "it is damaged" in lines[0]
    again = read_checkpoint(folder / "last.ckpt")
    for part in ("state_dict", "lr_schedulers", "global_step", EVIDENCE):
        assert str(again[part]) == str(whole[part]) and (part != "state_dict" or equal(again[part], whole[part]))
    states = [each["optimizer_states"][0]["state"] for each in (again, whole)]
    assert equal(*states)
    names = [f"generation-{number:06d}-samples-{8 * step:012d}.ckpt" for number, step in ((2, 4), (3, 6))]
    assert sorted(file.name for file in folder.iterdir()) == ["damaged.ckpt", *names, "last.ckpt"]


def test_a_damaged_file_that_is_named_is_one_line(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    flip(save(tmp_path / "mine.ckpt"), 5000)
    with pytest.raises(UserError, match=r"mine\.ckpt cannot be read as a checkpoint: it is damaged.*an older one"):
        main(["fit", "--config", str(tmp_path / "recipe.yaml"), "--ckpt_path", str(tmp_path / "mine.ckpt")])
