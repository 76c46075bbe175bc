"""Training of CLIP-style encoders."""

import logging
import math
from typing import Any, Literal

import torch
from einops import rearrange
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from leam_mm.checkpoint import EVIDENCE, REBUILDING
from leam_mm.data.kept_tokenizer import read_tokenizer, tokenizer_folder
from leam_mm.data.tokenizer import Tokenizer
from leam_mm.distributed import gather, ring, ring_softmax
from leam_mm.encoders.dual_encoder import DualEncoder
from leam_mm.encoders.gradient_cache import embed_in_parts
from leam_mm.errors import UserError
from leam_mm.losses.contrastive import ContrastiveLoss, InfoNCE, PairwiseLoss
from leam_mm.losses.global_contrastive import GlobalContrastive
from leam_mm.optim.ema import Ema
from leam_mm.optim.layer_decay import LayerDecay
from leam_mm.optim.optimizer import build_optimizer
from leam_mm.optim.schedule import Schedule
from leam_mm.optim.sharding import shard_blocks

log = logging.getLogger(__name__)
COSINE = Schedule()


class ContrastiveModule(LightningModule):
    """Train two towers so that the embeddings of an image and its captions are close.

    Args:
        encoder: Image and text tower.
        loss: Contrastive loss of the gathered embeddings.
        tokenizer: Folder of the tokenizer that encodes the captions.
        optimizer: Called with the groups of `decay_groups`: hidden matrices, other matrices, parameters without decay.
        schedule: Learning rate during the run.
        max_scale: Upper bound of the inverse temperature (100 in 2103.00020).
        ema_decay: Decay of the averaged encoder per optimizer step, in [0, 1); None keeps no average.
        exchange: ``gather`` gives each rank the features of all ranks. ``ring`` passes texts from rank to rank, for
            InfoNCE and losses that are sums over pairs: same value and gradients, and no logit is computed twice.
        micro_batch: Images that each rank embeds at a time, with their captions; the loss still sees all pairs of the
            batch (GradCache), unlike with trainer.accumulate_grad_batches, which stays 1. None embeds all at once.
        layer_decay: Smaller learning rates for lower layers, for fine-tuning; None has one rate for all.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        loss: ContrastiveLoss,
        tokenizer: str,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule = COSINE,
        max_scale: float = 100.0,
        ema_decay: float | None = None,
        exchange: Literal["gather", "ring"] = "gather",
        micro_batch: int | None = None,
        layer_decay: LayerDecay | None = None,
    ) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.encoder, self.loss, self.optimizer, self.schedule = encoder, loss, optimizer, schedule
        self.ema = Ema(encoder, ema_decay) if ema_decay is not None else None
        self.tokenizer_path = tokenizer
        self._tokenizer: Tokenizer | None = None
        self._kept_tokenizer: dict[str, str] = (REBUILDING.get() or {}).get("tokenizer", {})
        self.max_scale, self.exchange, self.micro_batch, self.layer_decay = (
            max_scale,
            exchange,
            micro_batch,
            layer_decay,
        )
        # A subclass of InfoNCE with its own formula is not InfoNCE.
        if exchange == "ring" and not isinstance(loss, PairwiseLoss) and type(loss).forward is not InfoNCE.forward:
            raise UserError(
                f"model.init_args.exchange is ring, but {type(loss).__name__} is neither InfoNCE nor a sum over pairs "
                "(as SigmoidLoss): set it to gather"
            )
        if micro_batch is not None and micro_batch < 1:
            raise UserError(f"model.init_args.micro_batch is {micro_batch}: give at least 1, or null")
        # All ranks update the loss's buffers alike, so DDP need not broadcast them before each step.
        state = [f"loss.{name}" for name, _ in loss.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, state)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, opened at the first access."""
        if self._tokenizer is None:
            path = tokenizer_folder(self._kept_tokenizer) if self._kept_tokenizer else self.tokenizer_path
            self._tokenizer = Tokenizer(path, self.encoder.context_length)
        return self._tokenizer

    def with_tokenizer(self, path: str) -> "ContrastiveModule":
        """Read captions with the tokenizer of another folder, and return the module."""
        self.tokenizer_path, self._kept_tokenizer, self._tokenizer = path, {}, None
        self.encoder.check_tokenizer(self.tokenizer)
        return self

    def ema_encoder(self) -> DualEncoder:
        """Return the averaged encoder if one is kept, else the trained one."""
        return self.ema.model if self.ema is not None else self.encoder  # type: ignore[return-value]

    def setup(self, stage: str) -> None:
        """Fail before the first step if values that the recipe states twice disagree."""
        self.encoder.check_tokenizer(self.tokenizer)
        stages = getattr(getattr(self.trainer, "datamodule", None), "stages", None)
        if stages is not None:
            self.encoder.allow_sizes(stages.sizes)
        if stage == "fit":
            self._check_negatives()
        plan = getattr(getattr(self.trainer, "datamodule", None), "train_plan", None)
        if isinstance(self.loss, GlobalContrastive) and plan is not None and self.loss.samples != plan.samples:
            raise UserError(
                f"model.init_args.loss.init_args.samples is {self.loss.samples}, but data.train holds "
                f"{plan.samples} samples: write that number into the recipe"
            )

    def _check_negatives(self) -> None:
        """Refuse batches with images that are their own negatives; warn if negatives or norms see only a part."""
        data = getattr(self.trainer, "datamodule", None)
        plan, accumulated = getattr(data, "train_plan", None), self.trainer.accumulate_grad_batches
        whole = getattr(data, "batch_size", None)
        if plan is None or whole is None:
            return
        part = whole // accumulated
        if plan.samples < part:
            raise UserError(
                f"data.train holds {plan.samples} samples, fewer than the {part} of a batch: images would be their own "
                f"negatives; set data.init_args.batch_size to {plan.samples} or less"
            )
        if accumulated > 1 and self.trainer.is_global_zero:
            log.warning(
                "trainer.accumulate_grad_batches is %d: the loss compares the %d images of a micro-batch, not the "
                "%d of the batch; model.init_args.micro_batch takes as little memory and compares all of them",
                *(accumulated, part, whole),
            )
        norms = any(isinstance(layer, _BatchNorm) for layer in self.encoder.modules())
        if norms and self.trainer.world_size > 1 and self.trainer.is_global_zero:
            log.warning(
                "the towers have batch norm: each of %d ranks normalises its own %d images, so losses differ from "
                "those of one rank",
                *(self.trainer.world_size, part // self.trainer.world_size),
            )

    def configure_model(self) -> None:
        """Shard the towers and their average if the strategy has a device mesh."""
        if self.device_mesh is not None:
            for encoder in (self.encoder, self.ema_encoder()):
                shard_blocks(encoder, self.device_mesh, methods=("encode_image", "encode_text"))

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Embed the images and texts of a batch: (B, D) and (B K, D) of unit length, K captions for each image."""
        randomness = (batch.get("sample_index"), batch.get("patch_dropout"))
        image = self.encoder.encode_image(self.encoder.normalise(batch["image"]), *randomness)
        return image, self.encoder.encode_text(batch["text"], batch["text_length"])

    def transfer_batch_to_device(self, batch: dict[str, Any], device: torch.device, dataloader_idx: int) -> Any:
        """Keep the captions' lengths on the host, where packing is planned without synchronising with a GPU."""
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return {**moved, "text_length": batch["text_length"]} if "text_length" in batch else moved

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of the embeddings of all ranks, averaged over the K captions of each image."""
        if self.micro_batch is None or self.micro_batch >= len(batch["image"]):
            image, text = self(batch)
        else:
            image, text = embed_in_parts(self, batch, self.micro_batch, self.encoder)
        loss = self._loss(image.float(), text.float(), batch)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/scale", self.encoder.scale)
        return loss

    def _loss(self, image: Tensor, text: Tensor, batch: dict[str, Any]) -> Tensor:
        """Return the mean over the K captions of each image, from this rank's image (b, D) and text (b K, D)."""
        shared = (self.encoder.scale, self.encoder.bias)
        if self.exchange == "ring":
            return torch.stack([self._ring(image, part) for part in _by_caption(text, len(image))]).mean()
        missing = [name for name in self.loss.needs if name not in batch]
        if missing:
            raise UserError(f"{type(self.loss).__name__} needs {', '.join(missing)}, which the batches do not contain")
        image, text = gather(image), gather(text)
        entries = {name: _by_caption(gather(batch[name]), len(image)) for name in self.loss.needs}
        losses = [
            self.loss(image, part, *shared, **{name: entry[k % len(entry)] for name, entry in entries.items()})
            for k, part in enumerate(_by_caption(text, len(image)))
        ]
        return torch.stack(losses).mean()

    def _ring(self, image: Tensor, text: Tensor) -> Tensor:
        """Return the loss of all ranks from this rank's image (b, D) and text (b, D)."""
        if isinstance(self.loss, InfoNCE):
            return ring_softmax(image, text, self.encoder.scale, self.loss.label_smoothing, self.loss.tile)
        assert isinstance(self.loss, PairwiseLoss)
        weights = [weight for weight in self.loss.parameters() if weight.requires_grad]
        return ring(self.loss.pairs, image, text, self.encoder.scale, self.encoder.bias, weights)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log loss and in-batch accuracy on held-out pairs."""
        encoder = self.ema_encoder()
        image = encoder.encode_image(encoder.normalise(batch["image"]))
        text = encoder.encode_text(batch["text"], batch["text_length"])
        loss = self.loss(image, text, encoder.scale, encoder.bias)
        correct = ((image @ text.T).argmax(dim=1) == torch.arange(len(image), device=image.device)).float().mean()
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(image))
        self.log("val/in_batch_top1", correct, sync_dist=True, batch_size=len(image))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the tokenizer's files, and which weights the run started from."""
        evidence = checkpoint.setdefault(EVIDENCE, {})
        evidence["tokenizer"] = read_tokenizer(self.tokenizer.path)
        if self.encoder.origin():
            evidence["pretrained"] = self.encoder.origin()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume with another tokenizer: the same ids would stand for other words."""
        before, now = checkpoint.get(EVIDENCE, {}).get("tokenizer"), read_tokenizer(self.tokenizer.path)
        if before is not None and before != now:
            raise UserError(
                f"model.init_args.tokenizer: the files in {self.tokenizer.path} are not those that the checkpoint was "
                "trained with: put the old ones back, or start a new run folder"
            )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, clamp the temperature, then update the average."""
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            self.encoder.clip.logit_scale.clamp_(0, math.log(self.max_scale))
        if self.ema is not None:
            self.ema.update(self.encoder)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the recipe's optimizer and its schedule."""
        optimizer = build_optimizer(self.optimizer, self.encoder, self.layer_decay)
        own = [weight for weight in self.loss.parameters() if weight.requires_grad]
        if own:
            optimizer.add_param_group({"params": own, "weight_decay": 0.0})
        schedule = self.schedule.build(optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _by_caption(rows: Tensor, images: int) -> Tensor:
    """Group rows by the number of the caption: (B K, ...) -> (K, B, ...)."""
    return rearrange(rows, "(b k) ... -> k b ...", b=images)
