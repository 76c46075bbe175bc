"""What all comparisons with open_clip_train 3.3.0 set up alike."""

import io
import json
import random
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import open_clip_train.data
import torch
from accuracy_clock import AccuracyClock
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.factory import create_loss
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import AugmentationCfg, image_transform
from open_clip_train.params import parse_args
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from torch import nn

from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.shard_index import read_samples
from leam_mm.encoders.dual_encoder import DualEncoder, ImageTower, TextTower
from leam_mm.losses.contrastive import InfoNCE

WEIGHT_DECAY = 0.2


def skip_nameless_entries() -> None:
    """Let open_clip_train read tars with webdataset >= 0.2.96, which ends each with an entry that has no name."""
    expand = open_clip_train.data.tar_file_expander
    if not hasattr(expand, "skips_nameless_entries"):

        def expander(*args: Any, **named: Any) -> Any:
            return (entry for entry in expand(*args, **named) if "fname" in entry)

        expander.skips_nameless_entries = True  # type: ignore[attr-defined]
        open_clip_train.data.tar_file_expander = expander


def decay_groups(model: nn.Module, decay: float) -> Any:
    """Parameter groups of open_clip_train's main: gains, biases and the scale are not decayed."""
    plain = [weight for weight in model.parameters() if weight.ndim < 2]
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    return [{"params": plain, "weight_decay": 0.0}, {"params": matrices, "weight_decay": decay}]


def write_peer_shards(shards: Path, languages: set[str], folder: Path) -> tuple[str, int]:
    """The same images as open_clip wants them: .png and .txt, which here holds the captions by language.

    Returns:
        Pattern of the tar files, and the number of images.
    """
    folder.mkdir()
    count = 0
    with ExitStack() as stack:
        parts = [stack.enter_context(tarfile.open(folder / f"{number:05d}.tar", "w")) for number in range(4)]
        for key, members in read_samples(shards):
            texts: dict[str, list[str]] = {}
            for entry in json.loads(members["json"])["captions"]:
                if entry["language"] in languages:
                    texts.setdefault(entry["language"], []).append(entry["text"])
            for extension, content in (("png", members["png"]), ("txt", json.dumps(texts).encode())):
                entry = tarfile.TarInfo(f"{key}.{extension}")
                entry.size = len(content)
                parts[count % 4].addfile(entry, io.BytesIO(content))
            count += 1
    return f"{folder}/{{00000..00003}}.tar", count


class OneCaption:
    """A tokenizer that draws a language, then one of its captions, as our recipe does."""

    def __init__(self, folder: Path, context_length: int) -> None:
        """See the class."""
        self.read = HFTokenizer(str(folder), context_length=context_length)

    def __call__(self, text: str) -> torch.Tensor:
        """(1, L)."""
        return self.read(random.choice(random.choice(list(json.loads(text).values()))))


def train_peer(
    recipe: dict[str, Any], tokenizer: Path, shards: str, rate: float, seed: int, steps: int, clock: AccuracyClock
) -> AccuracyClock:
    """Train the recipe's towers by open_clip_train's loop; an epoch of it is the interval between two measurements.

    Args:
        recipe: Ours, of which towers, batch size, context length, augmentation and warm-up are taken.
        tokenizer: Folder of the tokenizer.
        shards: Of `write_peer_shards`.
        rate: Learning rate.
        seed: Of weights and order.
        steps: Optimizer steps, a multiple of the clock's interval.
        clock: Measures.
    """
    towers, data = recipe["model"]["init_args"]["encoder"], recipe["data"]["init_args"]
    batch, size, context = data["batch_size"], towers["vision"]["image_size"], data["captions"]["context_length"]
    every, warmup = clock.every_n_steps, recipe["model"]["init_args"]["schedule"]["warmup_steps"]
    torch.manual_seed(seed)
    random.seed(seed)
    encoder = DualEncoder(towers["embed_dim"], ImageTower(**towers["vision"]), TextTower(**towers["text"]))
    module, model = ContrastiveModule(encoder, InfoNCE(), str(tokenizer)), encoder.clip
    model.output_dict = True
    words = ["--train-data", shards, "--train-num-samples", str(every * batch), "--dataset-type", "webdataset"]
    words += ["--dataset-resampled", "--batch-size", str(batch), "--workers", "1", "--precision", "fp32"]
    words += ["--lr", str(rate), "--warmup", str(warmup), "--wd", str(WEIGHT_DECAY), "--seed", str(seed)]
    args = parse_args([*words, "--local-loss", "--gather-with-grad", "--log-every-n-steps", "1000000"])
    args.device, args.rank, args.local_rank, args.world_size, args.distributed = "cpu", 0, 0, 1, False
    args.distill, args.wandb, args.tensorboard, args.save_logs = False, False, False, False
    jitter = data["image"]["colour_jitter"]
    augmentation = AugmentationCfg(
        scale=tuple(data["image"]["crop_scale"]),
        color_jitter=(jitter, jitter, jitter, 0.0),
        color_jitter_prob=1.0,
        gray_scale_prob=data["image"]["greyscale"],
    )
    transform = image_transform(
        size, is_train=True, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD, aug_cfg=augmentation
    )
    skip_nameless_entries()
    reader = OneCaption(tokenizer, context)
    loaded = {"train": open_clip_train.data.get_wds_dataset(args, transform, is_train=True, epoch=0, tokenizer=reader)}
    optimizer = torch.optim.AdamW(decay_groups(model, WEIGHT_DECAY), lr=rate, betas=(0.9, 0.98), eps=1e-6)
    epochs = steps // every
    schedule, loss = cosine_lr(optimizer, rate, warmup, epochs * every), create_loss(args)
    for epoch in range(epochs):
        clock.start()
        train_one_epoch(model, loaded, loss, epoch, optimizer, None, schedule, None, args)
        clock.stop()
        clock.note(module, (epoch + 1) * every, last=epoch + 1 == epochs)
    return clock
