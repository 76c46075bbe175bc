"""Seconds until the emoji encoder has 60 % of the accuracy that open_clip's trainer ends with, over three seeds.

Both train the same towers on the same drawings with the same captions, tokens, batch size, number of samples and
schedule length, one torch thread and one loader process each. The peer is open_clip_train's `train_one_epoch` over
`get_wds_dataset`, with the augmentation and the learning rate that our recipe had for AdamW (four times open_clip's
default rate), and one of a drawing's captions drawn anew each time. Ours is the recipe as it
stands. Start-up and evaluation are not counted on either side. Needs runs/emoji, which `make emoji` writes.
"""

import io
import json
import random
import statistics
import tarfile
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import measure
import open_clip_train.data as open_clip_data
import torch
import yaml
from accuracy_clock import AccuracyClock, reached
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.factory import create_loss
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import AugmentationCfg, image_transform
from open_clip_peer import decay_groups, skip_nameless_entries
from open_clip_train.params import parse_args
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from rich.console import Console
from rich.table import Table

from leam_mm.cli import main as train
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.shard_index import read_samples
from leam_mm.encoders.dual_encoder import DualEncoder, ImageTower, TextTower
from leam_mm.errors import run
from leam_mm.losses.contrastive import InfoNCE

SHARE, PEER_RATE, WARMUP, WEIGHT_DECAY = 0.6, 0.002, 100, 0.2


def train_ours(recipe: dict[str, Any], emoji: Path, seed: int, samples: int, every: int, folder: Path) -> AccuracyClock:
    """The recipe through the command line of train.py, in this process."""
    made: dict[str, Any] = json.loads(json.dumps(recipe))
    clock = AccuracyClock(
        emoji / "shards/test", emoji / "drawings/classes.json", every, recipe["data"]["init_args"]["batch_size"]
    )
    made |= {"seed_everything": seed, "max_samples": samples}
    callbacks = [entry for entry in made["trainer"].get("callbacks", []) if "EvaluateEvery" not in entry["class_path"]]
    made["trainer"] |= {
        "default_root_dir": str(folder / "our recipe"),
        "callbacks": callbacks,
        "enable_progress_bar": False,
    }
    made["trainer"] |= {"limit_val_batches": 0, "num_sanity_val_steps": 0}
    made["checkpoint"] = {"every_n_train_steps": 10**9}
    made["data"]["init_args"]["seed"] = seed
    file = folder / "ours.yaml"
    file.write_text(yaml.safe_dump(made))
    with clock_in_trainer(clock):
        train(["fit", "--config", str(file)])
    return clock


class clock_in_trainer:
    """Adds the clock to the callbacks of the next trainer; YAML cannot hand over an object."""

    def __init__(self, clock: AccuracyClock) -> None:
        """See the class."""
        self.clock = clock

    def __enter__(self) -> None:
        """Wrap the constructor of trainers."""
        from leam_mm.cli import LeamCLI

        self.plain = LeamCLI.instantiate_trainer
        clock, plain = self.clock, self.plain

        def instantiate(cli: Any, **named: Any) -> Any:
            trainer = plain(cli, **named)
            trainer.callbacks.append(clock)
            return trainer

        LeamCLI.instantiate_trainer = instantiate  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        """Leave it as it was."""
        from leam_mm.cli import LeamCLI

        LeamCLI.instantiate_trainer = self.plain  # type: ignore[method-assign]


def write_peer_shards(shards: Path, languages: set[str], folder: Path) -> tuple[str, int]:
    """The same drawings as open_clip wants them: .png and .txt, which here holds all captions as a list."""
    folder.mkdir()
    count = 0
    with ExitStack() as stack:
        parts = [stack.enter_context(tarfile.open(folder / f"{number:05d}.tar", "w")) for number in range(4)]
        for key, members in read_samples(shards):
            written = json.loads(members["json"])["captions"]
            texts = [entry["text"] for entry in written if entry["language"] in languages]
            for extension, content in (("png", members["png"]), ("txt", json.dumps(texts).encode())):
                entry = tarfile.TarInfo(f"{key}.{extension}")
                entry.size = len(content)
                parts[count % 4].addfile(entry, io.BytesIO(content))
            count += 1
    return f"{folder}/{{00000..00003}}.tar", count


class OneCaption:
    """A tokenizer that draws one of the captions."""

    def __init__(self, folder: Path, context_length: int) -> None:
        """See the class."""
        self.read = HFTokenizer(str(folder), context_length=context_length)

    def __call__(self, text: str) -> torch.Tensor:
        """(1, L)."""
        return self.read(random.choice(json.loads(text)))


def train_peer(recipe: dict[str, Any], emoji: Path, seed: int, samples: int, every: int, shards: str) -> AccuracyClock:
    """open_clip_train's loop; an epoch of it is the interval between two measurements."""
    towers, data = recipe["model"]["init_args"]["encoder"], recipe["data"]["init_args"]
    batch, size, context = data["batch_size"], towers["vision"]["image_size"], data["captions"]["context_length"]
    torch.manual_seed(seed)
    random.seed(seed)
    encoder = DualEncoder(towers["embed_dim"], ImageTower(**towers["vision"]), TextTower(**towers["text"]))
    module, model = ContrastiveModule(encoder, InfoNCE(), str(emoji / "tokenizer")), encoder.clip
    model.output_dict = True
    words = ["--train-data", shards, "--train-num-samples", str(every * batch), "--dataset-type", "webdataset"]
    words += ["--dataset-resampled", "--batch-size", str(batch), "--workers", "1", "--precision", "fp32"]
    words += ["--lr", str(PEER_RATE), "--warmup", str(WARMUP), "--wd", str(WEIGHT_DECAY), "--seed", str(seed)]
    args = parse_args([*words, "--local-loss", "--gather-with-grad", "--log-every-n-steps", "1000000"])
    args.device, args.rank, args.local_rank, args.world_size, args.distributed = "cpu", 0, 0, 1, False
    args.distill, args.wandb, args.tensorboard, args.save_logs = False, False, False, False
    augmentation = AugmentationCfg(
        scale=tuple(data["image"]["crop_scale"]),
        color_jitter=(0.3, 0.3, 0.3, 0.0),
        color_jitter_prob=1.0,
        gray_scale_prob=data["image"]["greyscale"],
    )
    transform = image_transform(
        size, is_train=True, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD, aug_cfg=augmentation
    )
    skip_nameless_entries()
    reader = OneCaption(emoji / "tokenizer", context)
    loaded = {"train": open_clip_data.get_wds_dataset(args, transform, is_train=True, epoch=0, tokenizer=reader)}
    optimizer = torch.optim.AdamW(decay_groups(model, WEIGHT_DECAY), lr=PEER_RATE, betas=(0.9, 0.98), eps=1e-6)
    epochs = samples // (every * batch)
    schedule, loss = cosine_lr(optimizer, PEER_RATE, WARMUP, epochs * every), create_loss(args)
    clock = AccuracyClock(emoji / "shards/test", emoji / "drawings/classes.json", every, batch)
    for epoch in range(epochs):
        clock.start()
        train_one_epoch(model, loaded, loss, epoch, optimizer, None, schedule, None, args)
        clock.stop()
        clock.note(module, (epoch + 1) * every)
    return clock


@measure.benchmark(
    repeats=3,
    emoji=(Path("runs/emoji"), "folder that make emoji wrote"),
    recipe=(Path("configs/emoji_clip.yaml"), "our recipe"),
    samples=(128_000, "drawings seen in a run"),
    every=(50, "steps between two measurements"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Train both sides in turns, one seed after the other."""
    if not (settings.emoji / "shards/train/manifest.jsonl").is_file():
        Console().print(f"time_to_accuracy: {settings.emoji} is not there, not measured; make emoji writes it")
        return []
    recipe = yaml.safe_load(settings.recipe.read_text().replace("runs/emoji", str(settings.emoji.resolve())))
    languages = set(recipe["data"]["init_args"]["captions"]["languages"])
    curves: dict[str, list[list[dict[str, float]]]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as scratch:
        emoji = settings.emoji.resolve()
        shards, count = write_peer_shards(emoji / "shards/train", languages, Path(scratch) / "peer")
        for seed in range(1, settings.repeats + 1):
            folder = Path(scratch) / str(seed)
            folder.mkdir()
            for side in ("ours", "peer") if seed % 2 else ("peer", "our recipe"):
                if side == "ours":
                    clock = train_ours(recipe, emoji, seed, settings.samples, settings.every, folder)
                else:
                    clock = train_peer(recipe, emoji, seed, settings.samples, settings.every, shards)
                curves[side].append(clock.curve)
    return [report(curves, settings, count)]


def report(curves: dict[str, list[list[dict[str, float]]]], settings: Any, count: int) -> Path:
    """Print the table and write the JSON."""
    final = statistics.mean(curve[-1]["accuracy"] for curve in curves["peer"])
    target = SHARE * final
    same = [
        measure.require_same(
            "drawings seen in a run, ours and the peer's",
            abs(curves["ours"][0][-1]["samples"] - curves["peer"][0][-1]["samples"]),
            0,
        )
    ]
    table = Table("", "final top-1", f"seconds to {target:.2%}", "CPU s", title="time_to_accuracy")
    content: dict[str, Any] = {"target": target, "peer_final": final, "drawings": count}
    for side, found in curves.items():
        seconds = [reached(curve, target, "seconds") for curve in found]
        cpu = [reached(curve, target, "cpu_seconds") for curve in found]
        content[side] = {"curves": found, "seconds": seconds, "cpu_seconds": cpu}
        content[side] |= {"final": [curve[-1]["accuracy"] for curve in found]}
        table.add_row(
            side,
            ", ".join(f"{curve[-1]['accuracy']:.2%}" for curve in found),
            ", ".join("never" if value is None else f"{value:.0f}" for value in seconds),
            ", ".join("never" if value is None else f"{value:.0f}" for value in cpu),
        )
    pairs = list(zip(content["ours"]["seconds"], content["peer"]["seconds"], strict=True))
    known = [peer / ours for ours, peer in pairs if ours is not None and peer is not None]
    content |= {"ratio": statistics.median(known) if len(known) == len(pairs) else None, "ratios": known}
    content |= {"ratio_means": "peer's seconds over ours: above 1 ours is faster", "same_work": same}
    content["notes"] = (
        "target: 60 % of the mean accuracy that the peer ends with after as many drawings; English top-1 of 1,353 "
        "emoji in a drawing style that training never saw; CPU seconds without loader processes"
    )
    return measure.write_result(content, settings, table, message=f"ratio {content['ratio']}")


if __name__ == "__main__":
    run(main)
