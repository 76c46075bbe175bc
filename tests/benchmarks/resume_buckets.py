"""A generator on aspect-ratio buckets, killed (signal 9) at random moments and started again: what is lost of it.

Each attempt is a process of its own with another number of loader workers; some trainings change the number of ranks
too. All is compared with a run that is not killed: samples, losses, shapes of batches and, on one rank, the last
checkpoint to the bit. There is no peer: no open trainer resumes inside an epoch of buckets. Counts, not times.
"""

import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import measure
import numpy as np
import torch
from resume import BATCH, SAMPLES, SAVE_EVERY, Attempts, check_ranks, compare, killed, train_program
from rich.table import Table
from toys.shards import npy_bytes

from leam_mm.data.aspect_buckets import BUCKETS, AspectBuckets, folder_name
from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import UserError, run

DOWNSCALE, CHANNELS, WIDTH = 8, 4, 16
LONGEST = 24  # steps of an attempt before its kill


def make_latents(folder: Path) -> dict[int, str]:
    """Random latents in buckets of very different sizes; returns the folder of each sample by its number."""
    shapes = AspectBuckets(128, 2 * DOWNSCALE, 2.0).shapes
    generator, bucket, entries = np.random.default_rng(0), dict[int, str](), []
    counts = 4 + generator.multinomial(SAMPLES - 4 * len(shapes), [0.5, 0.25, 0.15, 0.08, 0.02])  # five shapes
    for (height, width), count in zip(shapes, counts.tolist(), strict=True):
        name = folder_name((height, width))
        with ShardWriter(folder / name, 50) as writer:
            for _ in range(count):
                number = len(bucket)
                bucket[number] = name
                state = {"text": str(number), "language": "en", "length": 3}
                record = {"captions": [state], "caption_states": [state]}
                record |= {"picture_size": [height + number, width, number, 0, height, width]}
                latent = generator.normal(size=(CHANNELS, height // DOWNSCALE, width // DOWNSCALE))
                members = {
                    "latent.npy": npy_bytes(latent.astype(np.float16)),
                    "caption_state.npy": npy_bytes(generator.normal(size=(1, 3, WIDTH)).astype(np.float16)),
                }
                writer.write(str(number), {**members, "json": json.dumps(record).encode()})
        entries.append({"folder": name, "height": height, "width": width, "samples": count})
    (folder / BUCKETS).write_text(json.dumps({"buckets": entries}))
    return bucket


def ours(folder: Path, steps: int) -> Callable[..., Popen[bytes]]:
    """train.py with the recipe of this benchmark."""
    sizes = {"in_channels": CHANNELS, "context_dim": WIDTH, "hidden_size": 32, "depth": 2, "num_heads": 2}
    data = {
        "class_path": "leam_mm.data.latents_module.LatentsModule",
        "init_args": {"train": str(folder.parent / "latents"), "batch_size": BATCH},
    }
    model = {
        "class_path": "leam_mm.diffusion_module.LatentDiffusionModule",
        "init_args": {
            "denoiser": {
                "class_path": "leam_mm.denoisers.denoiser.PRXDenoiser",
                "init_args": {**sizes, "size_conditioning": 128},
            },
            "process": {"class_path": "leam_mm.diffusion.rectified_flow.RectifiedFlow"},
            "latent_size": 16,
            "caption_dropout": 0.0,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "eps": 1e-6}},
        },
    }
    return train_program(folder, steps, data, model)


def weights(folder: Path) -> list[torch.Tensor]:
    """Of the last checkpoint, with the optimizer's."""
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    moments = [value for each in last["optimizer_states"] for one in each["state"].values() for value in one.values()]
    return [*last["state_dict"].values(), *moments]


@measure.benchmark(repeats=1, kills=(10, "on one rank"), rank_kills=(2, "with other numbers of ranks"))
def main(settings: measure.Settings) -> list[Path]:
    """Run a whole training and killed ones, compare, write."""
    if settings.kills < 1 or not 0 <= settings.rank_kills <= settings.kills:
        raise UserError("--kills must be at least 1, and --rank-kills at most as many")
    rng = random.Random(0)
    kills = [rng.randint(1, LONGEST) for _ in range(settings.kills)]
    # So many that the last kill finds something to do: an attempt makes some steps more before the kill reaches it.
    steps = sum(kills) + 8 * settings.kills
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bucket = make_latents(folder / "latents")
        whole = killed(ours(folder / "whole", steps), [], folder / "of_whole")
        broken = killed(ours(folder / "broken", steps), kills, folder / "of_broken")
        found = compare(whole, broken) | shapes(whole, bucket)
        pairs = zip(weights(folder / "whole"), weights(folder / "broken"), strict=True)
        found["tensors_of_the_last_checkpoint_that_differ"] = sum(not torch.equal(one, two) for one, two in pairs)
        ranked: dict[str, Any] = {}
        if settings.rank_kills:
            start, few = ours(folder / "ranked", steps), kills[: settings.rank_kills]
            ranked = compare(whole, killed(start, few, folder / "of_ranked", changing_ranks=True))
    return [write(settings, found, ranked, kills)]


def shapes(attempts: Attempts, bucket: dict[int, str]) -> dict[str, int]:
    """Number of shapes trained on, and of batches that mix them."""
    batches = [{bucket[sample] for sample in line["samples"]} for line in attempts.kept.values()]
    return {"shapes": len(set.union(*batches)), "batches_of_several_shapes": sum(len(found) > 1 for found in batches)}


def write(settings: measure.Settings, found: dict[str, Any], ranked: dict[str, Any], kills: list[int]) -> Path:
    """Check what is promised, print the table, write the file."""
    nothing = (
        "largest_loss_difference",
        "batches_with_other_samples",
        "samples_lost_or_doubled",
        "batches_of_several_shapes",
        "tensors_of_the_last_checkpoint_that_differ",
    )
    same = [measure.require_same(name.replace("_", " "), found[name], 0) for name in nothing]
    same += check_ranks(ranked, "with other ranks")
    table = Table("", "ours", "ours, ranks change", title=f"resume on buckets after {len(kills)} kills")
    for name in found:
        table.add_row(name.replace("_", " "), *(f"{side.get(name, '')}" for side in (found, ranked)))
    content: dict[str, Any] = {
        "ours": {"label": f"train.py on latents in buckets, checkpoint every {SAVE_EVERY} steps"} | found,
        "ours_with_other_ranks": ranked or "not measured",
        "peer": "none resumes inside an epoch of buckets",
        "same_work": same,
        "kills_after_steps": kills,
    }
    return measure.write_result(content, settings, table)


if __name__ == "__main__":
    run(main)
