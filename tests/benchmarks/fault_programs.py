"""The training and data programs that ``faults`` breaks: their toy inputs, and digests of what they leave."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leam_mm.files import files_sha256

KEPT = ("*.tar", "*.index.parquet", "manifest.jsonl", "keep.json", "codec_statistics.json")
STEPS = 16  # of the training run


@dataclass(frozen=True)
class Program:
    """A command, its output below a folder, and how to digest it.

    Args:
        main: Main function of the program.
        words: Command line for an output folder.
        digest: Digests of what the output holds, in the order in which it is written; none if there is nothing.
        steps: Whether it has optimizer steps.
        older: What the output holds before the program starts.
        added: Whether the program always finds the older output and adds to it; others replace it, if it is there.
        replaces: About how many files it renames when they are finished.
    """

    main: Callable[[list[str]], object]
    words: Callable[[Path], list[str]]
    digest: Callable[[Path], list[str]]
    steps: bool = False
    older: Path | None = None
    added: bool = False
    replaces: int = 12


def digest_files(output: Path) -> list[str]:
    """Digest of shards, indexes, manifests and statistics."""
    found = sorted(path for kind in KEPT for path in output.rglob(kind))
    return [files_sha256(found)] if found else []


def digest_run(output: Path) -> list[str]:
    """Digest of weights, optimizer state, position and losses of a training run."""
    import torch
    from toys.runs import step_losses

    from leam_mm.checkpoint import read_checkpoint

    file = output / "checkpoints" / "last.ckpt"
    if not file.exists():
        return []
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for each in value:
                add(each)
        else:
            digest.update(repr(value).encode())

    checkpoint = read_checkpoint(file)
    add([checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")])
    last = checkpoint["global_step"]
    add([row for row in step_losses(output) if int(row[0]) < last])  # later rows will be written again
    return [digest.hexdigest()]


def data_programs(folder: Path) -> dict[str, Program]:
    """Write the toy inputs and return the programs that train or prepare data."""
    import torch
    import yaml
    from toys.images import soft_jpeg
    from toys.recipes import CODEC_SECTION, clip_recipe, save_checkpoint
    from toys.shards import small_sample, write_samples, write_toy_shards, write_toy_tokenizer

    from data_tools import download_shards, encode_latents, vet_shards
    from leam_mm import cli

    torch.set_num_threads(1)
    shards = write_toy_shards(folder / "shards", samples=48, samples_per_shard=16)
    tokenizer = write_toy_tokenizer(folder / "tokenizer")
    images = folder / "images"
    images.mkdir()
    for number in range(12):
        (images / f"{number}.jpg").write_bytes(soft_jpeg(number))
        (images / f"{number}.txt").write_text(f"image {number}")
    samples = [small_sample(number, image=soft_jpeg(number % 16)) for number in range(20)]
    to_vet = write_samples(folder / "to_vet", samples, per_shard=5)
    rules = folder / "rules.yaml"
    names = ("caption_quality.CaptionQuality", "exact_duplicates.ExactDuplicates")
    rules.write_text(yaml.safe_dump({"rules": [{"class_path": f"data_tools.vetting.{name}"} for name in names]}))
    codec = save_checkpoint(folder / "codec.ckpt", CODEC_SECTION)
    clip = save_checkpoint(folder / "clip.ckpt", clip_recipe(folder, shards, tokenizer)["model"])

    def train(output: Path) -> list[str]:
        recipe = clip_recipe(output, shards, tokenizer, max_samples=8 * STEPS, workers=2)
        recipe["checkpoint"]["every_n_train_steps"] = 3
        del recipe["trainer"]["logger"]
        path = folder / f"{output.name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return ["fit", "--config", str(path)]

    def vet(output: Path, processes: int) -> list[str]:
        given = ["--shards", str(to_vet), "--rules", str(rules), "--output", str(output), "--materialise"]
        return [*given, "--overwrite", "--processes", str(processes)]

    def encode(output: Path) -> list[str]:
        given = ["--shards", shards, "--codec", codec, "--clip", clip, "--output", output, "--batch-size", 7]
        return list(map(str, given))

    fetch = ["--folder", str(images), "--samples-per-shard", "5", "--processes", "1", "--threads", "2", "--output"]
    return {
        "train": Program(cli.main, train, digest_run, steps=True),
        "download": Program(download_shards.main, lambda output: [*fetch, str(output)], digest_files),
        "vet": Program(vet_shards.main, lambda output: vet(output, 1), digest_files, older=to_vet),
        "vet_workers": Program(vet_shards.main, lambda output: vet(output, 2), digest_files, older=to_vet),
        "encode": Program(encode_latents.main, encode, digest_files),
    }
