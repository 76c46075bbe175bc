"""Samples and embeddings: decoding, spread of the limit, hostile samples, embeddings that are not finite."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from toys.images import encoded_image

from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import UserError
from leam_mm.evaluators.embedding import ImageSample, embed_texts, read_image_samples


def test_pixels_crop_the_centre() -> None:
    image = Image.new("RGB", (30, 10), (255, 0, 0))
    image.paste((0, 0, 255), (10, 0, 20, 10))
    pixels = ImageSample("a", encoded_image(image), {}).pixels(10)
    assert pixels.shape == (3, 10, 10)
    assert pixels.dtype == torch.uint8
    assert (pixels[2] == 255).all() and (pixels[0] == 0).all()
    assert ImageSample("a", encoded_image(image), {}).pixels(16).shape == (3, 16, 16)


def test_broken_or_huge_image_is_one_line() -> None:
    with pytest.raises(UserError, match="sample a: unreadable image"):
        ImageSample("a", b"GIF89a nothing", {}).pixels(8)
    with pytest.raises(UserError, match="exceeds the limit"):
        ImageSample("a", encoded_image(Image.new("1", (9600, 9600))), {}).pixels(8)


def test_record_access() -> None:
    captions = [{"text": " a ", "language": "en"}, {"text": "", "language": "en"}, {"text": "b", "language": "de"}]
    sample = ImageSample("a", b"", {"captions": captions, "metadata": {"class_id": 7}})
    assert (sample.captions("en"), sample.captions("fr"), sample.class_id) == (["a"], [], "7")
    assert ImageSample("a", b"", {"metadata": None}).class_id is None


def test_limit_takes_samples_evenly(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", 4) as writer:
        for number in range(10):
            record = json.dumps({"captions": []}).encode()
            writer.write(f"{number}", {"png": encoded_image(Image.new("RGB", (2, 2))), "json": record})
    assert [sample.key for sample in read_image_samples(tmp_path / "s", 5)] == ["0", "2", "4", "6", "8"]
    assert len(list(read_image_samples(tmp_path / "s"))) == 10
    assert [p.key for p in read_image_samples(tmp_path / "s", 99, lambda p: p.key in "37")] == ["3", "7"]


def test_sample_without_image_is_named(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", 4) as writer:
        writer.write("k", {"txt": b"", "json": b"{}"})
    with pytest.raises(UserError, match="sample k: the sample has no image"):
        list(read_image_samples(tmp_path / "s"))


def test_embeddings_that_are_not_finite_are_refused() -> None:
    class Broken:
        tokenizer = property(lambda self: self)

        def ema_encoder(self) -> "Broken":
            return self

        def encode(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(len(texts), 1), torch.ones(len(texts))

        def encode_text(self, text: torch.Tensor, text_length: torch.Tensor) -> torch.Tensor:
            return torch.full((len(text), 3), torch.nan)

    with pytest.raises(UserError, match="not finite"):
        embed_texts(Broken(), ["a"], 1, torch.device("cpu"))
