"""Training of the autoencoder whose latents the generator learns.

All of the training's computation happens inside ``training_step``, which Lightning calls through DDP's forward, so that
the gradients of every rank are averaged; the two optimizers of adversarial training never touch each other's gradients.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from leam_mm.checkpoint import EVIDENCE, find_checkpoint, load_module, refuse_other_weights
from leam_mm.codecs.latent_codec import STATISTICS, LatentCodec, LatentStatistics, PretrainedCodec
from leam_mm.data.sample_order import sample_noise
from leam_mm.distributed import gather
from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.losses.reconstruction import (
    L1Loss,
    PatchDiscriminator,
    ReconstructionLoss,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    gaussian_divergence,
    widened,
)
from leam_mm.optim.ema import Ema
from leam_mm.optim.optimizer import build_optimizer, warmup_cosine


class LatentCodecModule(LightningModule):
    """Teaches a codec to give back its images.

    Args:
        codec: The autoencoder.
        optimizer: Built over the codec's parameters in two groups, with and without weight decay.
        reconstruction: Distance in pixels; by default L1.
        perceptual: Distance in features, or None.
        perceptual_weight: Its weight beside the pixels.
        kl_weight: Weight of the divergence from the standard normal, per latent value; needs a KLCodec.
        discriminator: The critic of adversarial training, or None.
        discriminator_optimizer: Built over the critic; by default like the codec's, at its base rate.
        adversarial_weight: Weight of the critic's opinion beside the pixels.
        adversarial_adaptive: Multiply that weight at each step so that, at the decoder's last layer, the critic's
            gradient is as long as that of all else (2012.09841); all ranks take the factor of the whole batch.
        adversarial_start_samples: Samples seen before the critic joins.
        adversarial_clip: Largest gradient norm of either network beside a critic, where the trainer cannot clip.
        warmup_steps: Optimizer steps of the linear rise.
        final_rate: Share of the learning rate left at the end of the cosine; 1 keeps it constant.
        ema_decay: Decay of the averaged codec, which is then validated, encodes and is released; None keeps none.
        seed: Of the noise with which a KLCodec's posterior is sampled.
        weights: Run folder, checkpoint or folder of diffusers of a codec of the same sizes, whose weights and latent
            statistics a new training starts from; read when a training starts, never afterwards.
        trained: decoder leaves the encoder and the statistics as they were in `weights`: latents that were encoded
            with it, and generators that were trained on these, go with the new decoder as they are.
    """

    def __init__(
        self,
        codec: LatentCodec,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        reconstruction: ReconstructionLoss | None = None,
        perceptual: ReconstructionLoss | None = None,
        perceptual_weight: float = 1.0,
        kl_weight: float = 0.0,
        discriminator: PatchDiscriminator | None = None,
        discriminator_optimizer: OptimizerCallable | None = None,
        adversarial_weight: float = 0.1,
        adversarial_adaptive: bool = False,
        adversarial_start_samples: int = 0,
        adversarial_clip: float = 1.0,
        warmup_steps: int = 100,
        final_rate: float = 0.0,
        ema_decay: float | None = None,
        seed: int = 0,
        weights: str | None = None,
        trained: Literal["all", "decoder"] = "all",
    ) -> None:
        """See the class for the arguments."""
        super().__init__()
        if trained == "decoder" and weights is None:
            raise UserError("model.trained is decoder: name the codec that it belongs to in model.weights")
        if kl_weight and not codec.variational:
            raise UserError(
                f"model.kl_weight is {kl_weight}, but an AutoencoderDC has no posterior: set 0 or use KLCodec"
            )
        self.codec, self.discriminator = codec, discriminator
        self.weights, self.trained, self._origin = weights, trained, dict[str, Any]()
        if trained == "decoder":
            codec.freeze_encoder()
        self.reconstruction, self.perceptual = reconstruction or L1Loss(), perceptual
        self.perceptual_weight, self.kl_weight = perceptual_weight, kl_weight
        self.adversarial_weight, self.adversarial_start_samples = adversarial_weight, adversarial_start_samples
        self.adversarial_adaptive, self.adversarial_clip = adversarial_adaptive, adversarial_clip
        self.optimizer, self.discriminator_optimizer = optimizer, discriminator_optimizer or optimizer
        self.warmup_steps, self.final_rate, self.seed = warmup_steps, final_rate, seed
        self.ema = Ema(codec, ema_decay) if ema_decay is not None else None
        self.automatic_optimization = discriminator is None
        self._measured: LatentStatistics | None = None
        self._measured_step = -1
        self._last_image: Tensor | None = None

    def ema_codec(self) -> LatentCodec:
        """The averaged codec where one is kept, else the trained one: the codec for everybody but the training."""
        return self.ema.model if self.ema is not None else self.codec  # type: ignore[return-value]

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct images (B, 3, H, W) uint8: float in [-1, 1]."""
        return self.ema_codec().decode(self.ema_codec().encode(self._pixels(image)))

    def _pixels(self, image: Tensor) -> Tensor:
        return signed(image, torch.promote_types(cast(torch.dtype, self.dtype), torch.float32))

    def setup(self, stage: str) -> None:
        """Start from the named weights; where a run is resumed, its own take their place afterwards."""
        if stage != "fit" or self.weights is None:
            return
        source = load_codec(self.weights)
        for codec in self._codecs().values():
            try:
                codec.load_state_dict(source.state_dict())
            except RuntimeError as error:
                first = str(error).splitlines()[1].strip()
                raise UserError(
                    f"the weights of {self.weights} do not fit model.codec ({first}): give it the class and sizes that "
                    "they were trained with"
                ) from None
        self._origin = {"weights": self.weights, "sha256": source.checkpoint_evidence["sha256"]}  # type: ignore[union-attr, index]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on from other weights than before."""
        if self._origin:
            refuse_other_weights(checkpoint, self._origin)

    def configure_model(self) -> None:
        """Refuse a strategy that shards: codecs are small, and their statistics want whole weights."""
        if self.device_mesh is not None:
            raise UserError("codecs are trained whole on every rank: leave overlay_fsdp2.yaml out, take strategy ddp")

    def on_fit_start(self) -> None:
        """Refuse the set-ups in which adversarial training would go wrong silently or hang."""
        if self.discriminator is None:
            return
        if str(self.trainer.precision).startswith("16-mixed"):
            raise UserError("adversarial training does not scale fp16 losses: set trainer.precision to bf16-mixed")
        strategy = self.trainer.strategy
        if self.trainer.world_size > 1 and not (
            isinstance(strategy, DDPStrategy) and strategy._ddp_kwargs.get("find_unused_parameters")
        ):
            raise UserError(
                "adversarial training uses one network at a time: "
                "set trainer.strategy to ddp_find_unused_parameters_true"
            )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step of the codec and, once the critic has joined, one of the critic."""
        image = self._pixels(batch["image"])
        self._last_image = batch["image"]
        loss, reconstruction = self._codec_loss(image, batch)
        if self.discriminator is None:
            self.log("train/loss", loss, prog_bar=True, sync_dist=True)
            return loss
        return self._adversarial_step(image, reconstruction, loss)

    def _codec_loss(self, image: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Everything but the critic: the loss and the reconstruction, with its graph."""
        divergence = None
        if self.codec.variational:
            posterior = self.codec.posterior(image)
            noise = sample_noise(self.seed, batch["sample_index"], "posterior", posterior.mean.shape[1:])
            raw = posterior.mean + posterior.std * noise.to(posterior.mean)
            if self.kl_weight:
                nats = gaussian_divergence(widened(posterior.mean), widened(posterior.logvar))
                divergence = nats.mean() / raw[0].numel()
        else:
            raw = self.codec.encode_raw(image)
        reconstruction = widened(self.codec.decode_raw(raw))
        loss = self.reconstruction(reconstruction, image).mean()
        self.log("train/reconstruction", loss, sync_dist=True)
        if self.perceptual is not None:
            distance = self.perceptual(reconstruction, image).mean()
            self.log("train/perceptual", distance, sync_dist=True)
            loss = loss + self.perceptual_weight * distance
        if divergence is not None:
            self.log("train/divergence", divergence, sync_dist=True)
            loss = loss + self.kl_weight * divergence
        return loss, reconstruction

    def _adversarial_step(self, image: Tensor, reconstruction: Tensor, loss: Tensor) -> Tensor:
        """Step the codec against a frozen critic, then the critic on detached reconstructions; the codec's loss."""
        critic = cast(PatchDiscriminator, self.discriminator)
        both = cast(list[LightningOptimizer], self.optimizers())
        # All ranks must join at the same step, or their collectives would not match.
        active = self.trainer.global_step * len(image) * self.trainer.world_size >= self.adversarial_start_samples
        critic.requires_grad_(False)
        if active:
            opinion = adversarial_loss(widened(critic(reconstruction))).mean()
            self.log("train/adversarial", opinion, sync_dist=True)
            factor = self._balance(loss, opinion) if self.adversarial_adaptive else 1.0
            loss = loss + self.adversarial_weight * factor * opinion
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        self._step(both[0], loss, self.codec)
        self._average()
        critic.requires_grad_(True)
        if active:
            real, fake = widened(critic(image)), widened(critic(reconstruction.detach()))
            verdict = discriminator_loss(real, fake).mean()
            self.log("train/discriminator", verdict, sync_dist=True)
            # The bare optimizer, since Lightning counts each wrapped step and the codec's alone are the training's.
            self._step(both[1].optimizer, verdict, critic)
        for schedule in cast(list[Any], self.lr_schedulers()):
            schedule.step()
        return loss.detach()

    def _balance(self, loss: Tensor, opinion: Tensor) -> Tensor:
        """The factor of adversarial_adaptive, from the gradients that all ranks' batches have together."""
        layer = self.codec.last_layer
        own = torch.stack([torch.autograd.grad(part, layer, retain_graph=True)[0] for part in (loss, opinion)])
        whole = gather(own[None]).mean(0)
        factor = adaptive_weight(whole[0], whole[1])
        self.log("train/adversarial_factor", factor)
        return factor

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then average the weights; adversarial training, which steps by hand, does so itself."""
        super().optimizer_step(*args, **kwargs)
        self._average()

    def _average(self) -> None:
        if self.ema is not None:
            self.ema.update(self.codec)

    def _step(self, optimizer: LightningOptimizer | torch.optim.Optimizer, loss: Tensor, network: nn.Module) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), self.adversarial_clip)
        optimizer.step()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Error in pixels of held-out images, and their part of the latent statistics."""
        image, codec = self._pixels(batch["image"]), self.ema_codec()
        raw = codec.encode_raw(image)
        measured = LatentStatistics.of(raw)
        self._measured = measured if self._measured is None else self._measured.merge(measured)
        difference = widened(codec.decode_raw(raw)).clamp(-1, 1) - image
        noise_ratio = -10 * (difference / 2).square().mean((1, 2, 3)).clamp(min=1e-10).log10()
        self.log("val/l1", difference.abs().mean(), prog_bar=True, sync_dist=True, batch_size=len(image))
        self.log("val/psnr", noise_ratio.mean(), sync_dist=True, batch_size=len(image))

    def on_validation_epoch_start(self) -> None:
        """Forget the latents of earlier weights."""
        self._measured = None

    def on_validation_epoch_end(self) -> None:
        """Set the codec's statistics from all ranks' validation latents."""
        if self._measured is None or self.trainer.sanity_checking:
            return
        count = torch.tensor([float(self._measured.count)], dtype=torch.float64)
        packed = torch.cat([count, self._measured.mean, self._measured.deviation]).to(self.device)
        rows = cast(Tensor, self.all_gather(packed)).reshape(-1, len(packed)).cpu()
        merged: LatentStatistics | None = None
        for row in rows:
            part = LatentStatistics(int(row[0]), *row[1:].chunk(2))
            merged = part if merged is None else merged.merge(part)
        self._set_statistics(cast(LatentStatistics, merged))
        self._measured_step = self.trainer.global_step

    def _set_statistics(self, statistics: LatentStatistics) -> None:
        """Give the statistics of the codec that others use to both: an average copies the trained one's buffers."""
        if self.trained == "decoder":
            return
        for codec in self._codecs().values():
            codec.set_statistics(statistics)

    def _codecs(self) -> dict[str, LatentCodec]:
        """The trained codec and the averaged one by their places in a checkpoint."""
        return {"codec": self.codec} | ({"ema.model": self.ema_codec()} if self.ema is not None else {})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the statistics in the file be those of the weights in it.

        Where validation has not just measured them, the last training batch of this rank does, so that the file depends
        on nothing but the step; encode_latents measures the whole data set.
        """
        if self._origin:
            checkpoint.setdefault(EVIDENCE, {})["pretrained"] = self._origin
        if self._last_image is None or self._measured_step == self.trainer.global_step:
            return
        with torch.no_grad():
            self._set_statistics(LatentStatistics.of(self.ema_codec().encode_raw(self._pixels(self._last_image))))
        self._measured_step = self.trainer.global_step
        for place, codec in self._codecs().items():
            for name in STATISTICS:
                checkpoint["state_dict"][f"{place}.{name}"] = getattr(codec, name).detach().clone()

    @torch.no_grad()
    def measure_statistics(self, batches: Iterable[dict[str, Any]]) -> LatentStatistics:
        """Set the codec's statistics from batches of images, exactly, in one pass."""
        merged: LatentStatistics | None = None
        for batch in batches:
            part = LatentStatistics.of(self.ema_codec().encode_raw(self._pixels(batch["image"].to(self.device))))
            merged = part if merged is None else merged.merge(part)
        if merged is None:
            raise UserError("no image to measure the latent statistics on: the data set is empty")
        self._set_statistics(merged)
        return merged

    def configure_optimizers(self) -> Any:
        """The recipe's optimizers with warm-up and cosine."""
        total = int(self.trainer.estimated_stepping_batches)
        networks = [(self.optimizer, cast(nn.Module, self.codec))]
        if self.discriminator is not None:
            networks.append((self.discriminator_optimizer, self.discriminator))
        optimizers = [build_optimizer(callable_, network) for callable_, network in networks]
        schedules = [warmup_cosine(optimizer, self.warmup_steps, total, self.final_rate) for optimizer in optimizers]
        return optimizers, [{"scheduler": schedule, "interval": "step"} for schedule in schedules]


def signed(image: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels (B, 3, H, W) uint8 to float in [-1, 1]."""
    return image.to(dtype) / 127.5 - 1


def load_codec(path: Path | str) -> LatentCodec:
    """A codec to work with: the averaged one of a training (run folder or checkpoint), or a folder of diffusers.

    Returns:
        The codec in eval mode on the CPU, with a ``checkpoint_evidence`` dict (path, sha256, what the run recorded).
    """
    if (Path(path) / "config.json").is_file():
        codec: LatentCodec = PretrainedCodec(str(path))
        evidence: Any = {"path": str(path), "sha256": file_sha256(codec_file(path))}
    else:
        module = load_module(path, LatentCodecModule)
        codec, evidence = module.ema_codec(), module.checkpoint_evidence
    setattr(codec, "checkpoint_evidence", evidence)  # noqa: B010 (an attribute torch's Module does not declare)
    return codec.eval()


def codec_file(path: Path | str) -> Path:
    """The file whose digest names a codec: the checkpoint of a training, or the weights in a folder of diffusers."""
    folder = Path(path)
    if not (folder / "config.json").is_file():
        return find_checkpoint(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if len(weights) != 1:
        raise UserError(f"{folder} holds {len(weights)} files of safetensors: give a folder with one autoencoder")
    return weights[0]
