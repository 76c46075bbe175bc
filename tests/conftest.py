"""Shared fixtures: a tiny shard folder, a tiny tokenizer, and recipes small enough for two CPU cores."""

import io
import json
import os
import shutil
import subprocess
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from PIL import Image

from leam_mm.callbacks.compilation import probe
from leam_mm.data.shard_index import ShardWriter

torch.set_num_threads(1)
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (220, 200, 40)}
GERMAN = {"red": "rot", "green": "grün", "blue": "blau", "yellow": "gelb"}


def toy_picture(colour: str, seed: int, size: int = 16) -> bytes:
    """A coloured square somewhere on white, as PNG."""
    generator = np.random.default_rng(seed)
    pixels = np.full((size, size, 3), 250, np.uint8)
    top, left = generator.integers(0, size // 2, 2)
    pixels[top : top + size // 2, left : left + size // 2] = COLOURS[colour]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_toy_shards(folder: Path, samples: int = 96, samples_per_shard: int = 20, first: int = 0) -> Path:
    """Shards of coloured squares with English and German captions; four classes."""
    with ShardWriter(folder, samples_per_shard) as writer:
        for number in range(first, first + samples):
            colour = sorted(COLOURS)[number % 4]
            captions = [
                {"text": f"a {colour} square", "language": "en", "source": "generated", "machine_translated": False},
                {
                    "text": f"Quadrat, {GERMAN[colour]}",
                    "language": "de",
                    "source": "generated",
                    "machine_translated": False,
                },
            ]
            record = {
                "captions": captions,
                "url": f"http://127.0.0.1/{number}.png",
                "page_url": "",
                "domain": "127.0.0.1",
                "licence": "CC0-1.0",
                "legal_basis": "synthetic",
                "metadata": {"class_id": colour, "kind": "single"},
            }
            writer.write(f"{number:06d}", {"png": toy_picture(colour, number), "json": json.dumps(record).encode()})
    return folder


def write_toy_tokenizer(folder: Path, context_length: int = 12) -> Path:
    """A byte-level tokenizer in the form of data_tools/train_tokenizer.py, trained on the toy captions."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [f"a {colour} square" for colour in COLOURS] + [f"quadrat, {word}" for word in GERMAN.values()]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=298, initial_alphabet=alphabet, special_tokens=["<pad>"], show_progress=False),
    )
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    begin, end = tokenizer.token_to_id("<bos>"), tokenizer.token_to_id("<eos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", begin), ("<eos>", end)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=context_length,
        padding_side="right",
    )
    fast.save_pretrained(folder)
    return folder


def toy_vocabulary(folder: Path) -> int:
    """How many tokens the toy tokenizer has."""
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(folder))


def clip_recipe(run: Path, shards: Path, tokenizer: Path, max_samples: int = 64, workers: int = 0) -> dict:
    """A complete recipe for a toy CLIP."""
    return {
        "seed_everything": 1,
        "max_samples": max_samples,
        "trainer": {
            "default_root_dir": str(run),
            "accelerator": "cpu",
            "devices": 1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(run), "name": "logs", "version": "", "flush_logs_every_n_steps": 1},
            },
        },
        "checkpoint": {"every_n_train_steps": 2},
        "data": {
            "class_path": "leam_mm.data.pairs_module.PairsModule",
            "init_args": {
                "train": str(shards),
                "image": {"image_size": 16, "crop_scale": [0.7, 1.0]},
                "batch_size": 8,
                "tokenizer": str(tokenizer),
                "context_length": 12,
                "workers": workers,
                "seed": 5,
            },
        },
        "model": {
            "class_path": "leam_mm.contrastive_module.ContrastiveModule",
            "init_args": {
                "encoder": {
                    "embed_dim": 16,
                    "vision": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
                    "text": {
                        "context_length": 12,
                        "vocab_size": toy_vocabulary(tokenizer),
                        "width": 32,
                        "heads": 2,
                        "layers": 1,
                    },
                },
                "loss": {"class_path": "leam_mm.losses.contrastive.InfoNCE"},
                "tokenizer": str(tokenizer),
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
                "warmup_steps": 2,
                "ema_decay": 0.9,
            },
        },
        "ckpt_path": "last",
    }


@pytest.fixture(scope="session")
def toy_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 samples in five shards."""
    return write_toy_shards(tmp_path_factory.mktemp("toy") / "shards")


@pytest.fixture(scope="session")
def toy_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder."""
    return write_toy_tokenizer(tmp_path_factory.mktemp("toy") / "tokenizer")


@pytest.fixture
def compiler() -> None:
    """Skip where torch.compile does not work; asked when a test runs, for the answer takes seconds."""
    if reason := probe(torch.device("cpu")):
        pytest.skip(f"torch.compile does not work on this machine's CPU: {reason}")


def shown_in_browser(page: Path, profile: Path) -> str:
    """The page as a real browser has built it, without a word on its console; skips where there is no browser."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --dump-dom"
    )
    command = [browser, *flags.split(), f"--user-data-dir={profile}", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout
