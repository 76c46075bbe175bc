"""Inputs that benchmarks make for themselves: photo-like pictures, captions of natural lengths, a tokenizer."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.corpora.tokenizer_training import save, train

WORDS = [
    "a",
    "the",
    "of",
    "red",
    "blue",
    "old",
    "small",
    "house",
    "tree",
    "river",
    "mountain",
    "cat",
    "child",
    "street",
]
WORDS += ["market", "bridge", "morning", "light", "snow", "behind", "with", "and", "under", "station", "bicycle"]


def photo(seed: int, size: int) -> Image.Image:
    """Noise with the 1/f spectrum of photographs (Field 1987), smooth with detail at every scale: (size, size) RGB."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) + 1 / size
    spectrum = np.fft.rfft2(generator.standard_normal((3, size, size))) / frequency
    shared = 0.8 * spectrum[:1] + 0.2 * spectrum  # colours of neighbouring things go together
    pixels = np.fft.irfft2(shared, s=(size, size))
    pixels = 127.5 + 60 * (pixels - pixels.mean()) / pixels.std()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def jpeg(seed: int, size: int, quality: int = 90) -> bytes:
    """A photo-like picture as JPEG."""
    buffer = io.BytesIO()
    photo(seed, size).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def captions(count: int, seed: int = 0) -> list[str]:
    """Captions of log-normal length: half of them up to 9 words, one in fifty above 35."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(np.round(np.exp(generator.normal(np.log(9), 0.66, count))), 1, 200).astype(int)
    return [" ".join(generator.choice(WORDS, length)) for length in lengths]


def write_tokenizer(folder: Path, context_length: int, texts: list[str]) -> Path:
    """A small tokenizer of our own kind."""
    save(train(iter(texts), 512), context_length, {"captions": Counter(texts).total()}, folder)
    return folder
