"""From tar files to updated weights: our PairsModule and ContrastiveModule against open_clip's train_one_epoch.

Both sides read the same JPEG of 512 px with one worker, crop them at random to 224 px, tokenize the same captions and
train the same towers from the same weights with AdamW at the same constant rate. A pass covers every sample once. Ours
starts its worker anew in each pass, the peer's persists.
"""

import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import contrastive_step
import loader
import measure
import torch
from open_clip.factory import create_loss
from open_clip.model import CLIP
from open_clip_peer import decay_groups
from open_clip_train.distributed import init_distributed_device
from open_clip_train.params import parse_args
from open_clip_train.scheduler import const_lr
from open_clip_train.train import train_one_epoch
from torch import Tensor
from torch.nn.functional import pad
from toy_input import captions, write_tokenizer

from leam_mm.data.batch import PlannedBatches, batch_loader
from leam_mm.data.loader_workers import FromPosition
from leam_mm.data.tokenizer import Tokenizer
from leam_mm.encoders.dual_encoder import ImageTower, TextTower
from leam_mm.errors import run
from leam_mm.losses.contrastive import InfoNCE

NEAR = 0.25  # of the losses after training, which saw the samples in another order and other crops


def make_size(vocabulary: int, device: str) -> contrastive_step.Size:
    """Towers that a CPU can train, or ViT-B/32; the picture is 224 px in both."""
    if device == "cuda":
        return contrastive_step.Size(512, ImageTower(), TextTower(loader.CONTEXT, vocabulary), loader.BATCH)
    vision, text = ImageTower(loader.SIZE, 32, 128, 4, 32), TextTower(loader.CONTEXT, vocabulary, 128, 4, 3)
    return contrastive_step.Size(128, vision, text, loader.BATCH)


class Peer:
    """open_clip's model, optimizer and loop, with the weights of ours."""

    def __init__(self, encoder: Any, data: Any, device: str) -> None:
        """See the class."""
        precision = "amp_bf16" if device == "cuda" else "fp32"
        words = ["--train-data", "x", "--device", device, "--precision", precision, "--batch-size", str(loader.BATCH)]
        self.args = parse_args(words)
        init_distributed_device(self.args)
        self.args.distill, self.args.wandb, self.args.tensorboard = False, False, False
        config = encoder.config()
        self.model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"], output_dict=True)
        self.model.load_state_dict(encoder.clip.state_dict())
        self.model.to(device).train()
        self.loss, self.data, self.epoch = create_loss(self.args), {"train": data}, 0
        self.optimizer = torch.optim.AdamW(
            decay_groups(self.model, contrastive_step.DECAY),
            lr=contrastive_step.RATE,
            betas=contrastive_step.BETAS,
            eps=contrastive_step.EPSILON,
        )
        self.schedule = const_lr(self.optimizer, contrastive_step.RATE, 0, 1)

    def train(self) -> None:
        """One pass."""
        train_one_epoch(
            self.model, self.data, self.loss, self.epoch, self.optimizer, None, self.schedule, None, self.args
        )
        self.epoch += 1

    def score(self, image: Tensor, text: Tensor) -> float:
        """Loss of a batch of normalised floats."""
        with torch.no_grad():
            return float(sum(self.loss(**self.model(image, text), output_dict=True).values()))


@measure.benchmark(
    repeats=5,
    devices=("cpu", "cuda"),
    workers=(1, "loader processes of each side"),
    samples=(400, "pictures of a pass"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Check that both start from the same loss, then time passes, then compare both trained models."""
    warnings.filterwarnings(
        "ignore", message=".*self.log.*"
    )  # Lightning warns that nothing is logged without a trainer
    whole = loader.BATCH * loader.SHARDS
    samples = max(settings.samples // whole, 1) * whole
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        shards = loader.write_pairs(Path(scratch) / "shards", samples)
        tokenizer = write_tokenizer(Path(scratch) / "tokenizer", loader.CONTEXT, captions(500))
        data = loader.open_ours(shards, tokenizer, settings.workers)
        assert data.train_plan is not None
        batches = PlannedBatches(data.train_plan, data.decode, loader.BATCH, 0, 1)
        size = make_size(Tokenizer(tokenizer, loader.CONTEXT).vocabulary, settings.device)
        module, step = contrastive_step.our_steps(size, settings.device)
        info = loader.open_peer(shards, tokenizer, samples, settings.workers)
        peer = Peer(module.encoder, info, settings.device)
        steps, seen = samples // loader.BATCH, [0]

        def pass_ours() -> None:
            first = seen[0]
            seen[0] += steps
            for batch in batch_loader(batches, FromPosition(first, seen[0]), settings.workers):
                step(batch)

        sample = batches[0]
        image, text = sample["image"].to(settings.device), sample["text"].to(settings.device)

        def score_ours() -> float:
            with torch.no_grad():
                features = module.encoder.encode_image(module.encoder.normalise(image))
                words = module.encoder.encode_text(text, sample["text_length"].to(settings.device))
                return float(InfoNCE()(features, words, module.encoder.scale, module.encoder.bias))

        def score_peer() -> float:
            return peer.score(module.encoder.normalise(image), pad(text, (0, loader.CONTEXT - text.shape[1])))

        start = abs(score_ours() - score_peer()) / score_peer()
        found = measure.time_pairs(pass_ours, peer.train, settings.repeats, device=settings.device)
        end = abs(score_ours() - score_peer()) / score_peer()
        trained, limit = settings.repeats + 1, 1e-5 if settings.device == "cpu" else 2e-3
        same = [
            measure.require_same("loss of one batch before training, relative", start, limit),
            measure.require_same("samples of a pass", abs(steps * loader.BATCH - info.dataloader.num_samples), 0),
            measure.require_same(f"loss of that batch after {trained} passes, relative", end, NEAR),
            measure.require_same("scale after training, relative", _apart(module.encoder.scale, peer.model), 0.05),
        ]
        notes = (
            f"{settings.workers} worker, {settings.threads} thread each; batch {loader.BATCH}; "
            f"{'ViT-B/32' if settings.device == 'cuda' else 'towers of width 128, 4 and 3 blocks, patches of 32'}; "
            f"{steps} steps a pass; ours in a plain loop, the peer in open_clip_train's own; CPU time lacks the peer's "
            "worker, which lives on"
        )
        labels = ("PairsModule and ContrastiveModule", "open_clip_train train_one_epoch")
        return [measure.write_comparison("end_to_end", labels, found, (samples, "sample"), same, settings, notes)]


def _apart(scale: Tensor, model: CLIP) -> float:
    return abs(math.log(float(scale.detach())) / float(model.logit_scale.detach()) - 1)


if __name__ == "__main__":
    run(main)
