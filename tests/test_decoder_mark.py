"""Detectors of a decoder's mark: their files, their statistics, and a whole training of a small one."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.marking.decoder_mark import DETECTOR, WEIGHTS, DecoderMark, UnmarkedImages
from leam_mm.marking.mark_extractor import MarkExtractor
from leam_mm.marking.watermark import Watermark

MEASURED = UnmarkedImages(1000, "ab" * 32, 1.2, 0.48, 0.52, 0.05)


def toy_mark(bits: int = 16) -> DecoderMark:
    torch.manual_seed(0)
    message = np.random.default_rng(0).integers(0, 2, bits).astype(bool)
    return DecoderMark(MarkExtractor(bits, width=8, depth=1), message, MEASURED)


def noise(side: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side + 8, 3), dtype=np.uint8)


def test_a_detector_is_read_as_it_was_written(tmp_path: Path) -> None:
    mark = toy_mark(20)  # not a multiple of eight bits
    mark.write(tmp_path / "detector")
    found = DecoderMark.read(tmp_path / "detector")
    assert isinstance(found, Watermark) and np.array_equal(found.message, mark.message)
    assert found.unmarked == MEASURED and found.sha256 == mark.sha256
    for seed in range(3):
        assert found.score(noise(seed=seed)) == mark.score(noise(seed=seed))
    assert np.array_equal(found.embed(noise()), noise())


def test_scores_count_agreeing_bits_at_any_size() -> None:
    mark = toy_mark()
    for side in (16, 33, 1100):
        bits = mark.read_bits(noise(side))
        assert mark.score(noise(side)) == (bits == mark.message).sum()
    assert mark.score(noise(15)) == 0 and mark.false_positive_rate(0) == 1
    assert mark.false_positive_rate(16) < mark.false_positive_rate(15) < 0.01


def test_whitened_bits_of_unmarked_images_are_fair_and_uncorrelated() -> None:
    torch.manual_seed(0)
    extractor = MarkExtractor(16, width=16, depth=1)
    with torch.no_grad():
        images = [torch.randn(4000, 3, 16, 16).cumsum(3) / 4 for _ in range(2)]
        before = extractor(images[0])
        extractor.whiten(before)
        bits = (extractor(images[1]) > 0).numpy()
    correlation = np.corrcoef(bits, rowvar=False) - np.eye(16)
    assert np.abs((before > 0).numpy().mean(0) - 0.5).max() > 0.3
    assert np.abs(correlation).max() < 0.1 and np.abs(bits.mean(0) - 0.5).max() < 0.05
    with torch.no_grad():
        message = np.random.default_rng(1).integers(0, 2, 16).astype(bool)
        shifted = images[1] + 0.2 * torch.cos(torch.arange(16) * 2.0)
        extractor.whiten(extractor(images[0]), extractor(shifted[:2000]), message)
        bits, marked = ((extractor(one) > 0).numpy() for one in (images[1], shifted[2000:]))
    correlation = np.corrcoef(bits, rowvar=False) - np.eye(16)
    assert np.abs(correlation).max() < 0.1 and np.abs(bits.mean(0) - 0.5).max() < 0.05  # rotated bits stay white
    shares = (marked == message).mean(0)
    assert shares.min() > 0.55 and np.ptp(shares) < 0.15  # every bit has an equal part of what marked images share
    with pytest.raises(UserError, match="10 images are too few"):
        extractor.whiten(before[:10])


def edit(folder: Path, **values: Any) -> None:
    content = json.loads((folder / DETECTOR).read_text()) | values
    (folder / DETECTOR).write_text(json.dumps(content))


def change_weights(folder: Path, **tensors: torch.Tensor | None) -> None:
    weights = {k: v for k, v in (load_file(folder / WEIGHTS) | tensors).items() if v is not None}
    save_file(weights, folder / WEIGHTS)
    edit(folder, sha256=file_sha256(folder / WEIGHTS))


def test_hostile_detectors_are_refused_with_one_line(tmp_path: Path) -> None:
    def flip(folder: Path) -> None:
        content = bytearray((folder / WEIGHTS).read_bytes())
        content[-3] ^= 1
        (folder / WEIGHTS).write_bytes(content)

    def pickle(folder: Path) -> None:
        torch.save({"read.weight": torch.zeros(2)}, folder / WEIGHTS)
        edit(folder, sha256=file_sha256(folder / WEIGHTS))

    def header(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + b"{}")
        edit(folder, sha256=file_sha256(folder / WEIGHTS))

    settings = {"bits": 16, "width": 8, "depth": 1}
    cases = {
        "digest": flip,
        "eader": pickle,
        "header": header,
        "width of the mark's extractor is 1000000": lambda f: edit(f, extractor=settings | {"width": 10**6}),
        "size mismatch": lambda f: edit(f, extractor=settings | {"bits": 24}, message="000000"),
        "give 4 hexadecimal digits, for 16 bits": lambda f: edit(f, message="00"),
        "give 4 hexadecimal digits": lambda f: edit(f, message="zzzz"),
        "format is": lambda f: edit(f, format="x" * 10_000),
        "dispersion is nan": lambda f: edit(f, unmarked={**vars(MEASURED), "dispersion": float("nan")}),
        "not finite": lambda f: change_weights(f, **{"read.bias": torch.full((16,), float("nan"))}),
        "Missing key|read.bias": lambda f: change_weights(f, **{"read.bias": None}),
        "larger than": lambda f: (f / DETECTOR).write_text(" " * (1 << 20) + "{}"),
        "nested too deeply": lambda f: (f / DETECTOR).write_text("[" * 10**5),
        "No such file": lambda f: (f / WEIGHTS).unlink(),
    }
    for number, (reason, damage) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        toy_mark().write(folder)
        damage(folder)
        with pytest.raises(UserError, match=f"holds no readable detector .*({reason})") as caught:
            DecoderMark.read(folder)
        assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
