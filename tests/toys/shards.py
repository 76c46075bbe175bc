"""Toy shards, a toy tokenizer, and latents in buckets."""

import io
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from leam_mm.data.aspect_buckets import BUCKETS, Shape, folder_name
from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.pairs_module import PairCaptions, PairsModule
from leam_mm.data.plan_datamodule import Loading
from leam_mm.data.sample_plan import Source
from leam_mm.data.shard_index import ShardWriter
from toys.images import COLOURS, GERMAN, blank_png, coloured_square, soft_jpeg

Members = dict[str, bytes]  # file ending in the tar -> content


def npy_bytes(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    """An array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def write_toy_shards(folder: Path, samples: int = 96, samples_per_shard: int = 20, first: int = 0) -> Path:
    """Shards of coloured squares with English and German captions; four classes."""
    with ShardWriter(folder, samples_per_shard) as writer:
        for number in range(first, first + samples):
            colour = sorted(COLOURS)[number % 4]
            origin = {"source": "generated", "machine_translated": False}
            texts = {"en": f"a {colour} square", "de": f"Quadrat, {GERMAN[colour]}"}
            captions = [{"text": text, "language": language, **origin} for language, text in texts.items()]
            record = {
                "captions": captions,
                "url": f"http://127.0.0.1/{number}.png",
                "page_url": "",
                "domain": "127.0.0.1",
                "licence": "CC0-1.0",
                "legal_basis": "synthetic",
                "metadata": {"class_id": colour, "kind": "single"},
            }
            writer.write(f"{number:06d}", {"png": coloured_square(colour, number), "json": json.dumps(record).encode()})
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
    """Number of tokens of the toy tokenizer."""
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(folder))


TOY_BUCKETS = {(8, 24): 11, (16, 16): 30, (24, 8): 7}  # shape in pixels -> samples; the codec makes an eighth of them


def write_toy_buckets(folder: Path, samples: dict[Shape, int] | None = None, first: int = 0) -> Path:
    """Random latents (4, H/8, W/8) in buckets, seeded by their number, each with two captions and the image's size."""
    entries, number = [], first
    for (height, width), count in (TOY_BUCKETS if samples is None else samples).items():
        name = folder_name((height, width))
        with ShardWriter(folder / name, 4) as writer:
            for _ in range(count):
                generator = np.random.default_rng(number)
                states = [
                    {"text": f"{number} {language}", "language": language, "length": 2 + extra, "source": source}
                    for extra, (language, source) in enumerate([("en", "original"), ("de", "synthetic")])
                ]
                record = {"captions": states, "caption_states": states}
                record["picture_size"] = [2 * height, 3 * width, 0, width // 2, height, width]
                members = {
                    "latent.npy": npy_bytes(generator.normal(size=(4, height // 8, width // 8)).astype(np.float16)),
                    "caption_state.npy": npy_bytes(generator.normal(size=(2, 5, 6)).astype(np.float16)),
                    "json": json.dumps(record).encode(),
                }
                writer.write(f"{number:06d}", members)
                number += 1
        entries.append({"folder": name, "height": height, "width": width, "samples": count})
    (folder / BUCKETS).write_text(json.dumps({"buckets": entries}))
    return folder


def latent_members(number: int) -> dict[str, bytes]:
    """A latent filled with ``number``; state k of its captions is filled with ``number + k / 8``."""
    states = [{"text": f"{number} {k}", "language": "en", "length": k + 1} for k in range(3)]
    caption_state = np.stack([np.full((5, 6), number + k / 8, np.float16) for k in range(3)])
    return {
        "latent.npy": npy_bytes(np.full((4, 2, 2), number, np.float16)),
        "caption_state.npy": npy_bytes(caption_state),
        "json": json.dumps({"captions": states, "caption_states": states}).encode(),
    }


def complete_sample(**changes: object) -> Members:
    """A blank image with a record of all required fields."""
    captions = [{"text": f"a {language}", "language": language} for language in ("en", "de")]
    record: dict[str, object] = {"captions": captions, "url": "u", "domain": "d", "licence": "CC0-1.0"}
    record |= {"legal_basis": "licensed", "sha256": "0", "width": 8, "height": 6, "metadata": {}} | changes
    return {"png": blank_png(), "json": json.dumps(record).encode()}


def first_batch(shards: Path | list[Source], **settings: Any) -> dict[str, Any]:
    """First training batch of a PairsModule; ``settings`` are fields of PairCaptions or Loading, or its own."""

    def taken(kind: type[Any]) -> dict[str, Any]:
        return {field.name: settings.pop(field.name) for field in fields(kind) if field.name in settings}

    captions, loading = PairCaptions(**taken(PairCaptions)), Loading(**({"workers": 0} | taken(Loading)))
    settings = {"batch_size": 12, "captions": captions, "loading": loading} | settings
    made = PairsModule(shards, ImageDecoding(16, crop_scale=(0.6, 1.0)), **settings)
    made.setup("fit")
    return next(iter(made.train_dataloader()))


def small_sample(seed: int, text: str | None = None, image: bytes | None = None, **changes: Any) -> Members:
    """A sample with an image of its own that passes all checks."""
    captions = [{"text": text or f"a meadow with {seed} grey horses", "language": "en", "source": "alt"}]
    record = {"captions": captions, "url": f"http://pictures.example/{seed}.jpg", "domain": "pictures.example"}
    record |= {"licence": "CC0-1.0", "legal_basis": "licensed", "sha256": f"{seed:064x}", "width": 72, "height": 64}
    record |= {"metadata": {}, "uid": f"{seed:032x}"} | changes
    content = soft_jpeg(seed) if image is None else image
    kind = "png" if content.startswith(b"\x89PNG") else "jpg"
    return {kind: content, "json": json.dumps(record, ensure_ascii=False).encode()}


def write_samples(folder: Path, samples: list[Members], per_shard: int = 10) -> Path:
    """A shard folder with keys 000000, 000001, ..."""
    with ShardWriter(folder, per_shard) as writer:
        for number, members in enumerate(samples):
            writer.write(f"{number:06d}", members)
    return folder
