"""Training of the autoencoder whose latents the generator learns.

All computation happens inside ``training_step``, which Lightning calls through DDP's forward, so that gradients are
averaged over the ranks. In adversarial training neither optimizer touches the gradients of the other network.
"""

from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from leam_mm.checkpoint import EVIDENCE, REBUILDING, refuse_other_weights
from leam_mm.codecs.codec_losses import Adversarial, CodecLosses
from leam_mm.codecs.latent_codec import STATISTICS, LatentCodec, LatentStatistics, merge_statistics
from leam_mm.codecs.marked_codec import MARK
from leam_mm.codecs.pretrained_codec import load_codec
from leam_mm.data.batch import samples_seen
from leam_mm.data.image_range import signed
from leam_mm.data.random_stream import RECORD, PhiloxStream, recorded_stream
from leam_mm.distributed import gather
from leam_mm.errors import UserError
from leam_mm.losses.reconstruction import (
    L1Loss,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    gaussian_divergence,
    widened,
)
from leam_mm.optim.ema import Averaging, start_average
from leam_mm.optim.optimizer import build_optimizer
from leam_mm.optim.schedule import Schedule


class LatentCodecModule(LightningModule):
    """Trains a codec to reconstruct images.

    Args:
        codec: The autoencoder.
        optimizer: Built over the codec's parameters in two groups, with and without weight decay.
        losses: Reconstruction, perceptual and KL loss; None is L1 alone.
        adversarial: Adversarial training, or None.
        schedule: Learning rate of both optimizers.
        ema: Average of the codec's weights, which is then validated and released: decay per optimizer step in [0, 1),
            or another kind (optim/power_ema.py); None keeps no average.
        seed: Names the noise with which a KLCodec's posterior is sampled.
        weights: Run folder, checkpoint or folder of diffusers with a codec of the same sizes. A new run starts from its
            weights and latent statistics; they are read only then.
        trained: ``decoder`` freezes the encoder and the statistics of `weights`: latents encoded with it, and
            generators trained on these, stay valid.
    """

    def __init__(
        self,
        codec: LatentCodec,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        losses: CodecLosses | None = None,
        adversarial: Adversarial | None = None,
        schedule: Schedule = Schedule(),  # noqa: B008 (frozen)
        ema: float | Averaging | None = None,
        seed: int = 0,
        weights: str | None = None,
        trained: Literal["all", "decoder"] = "all",
    ) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.losses = losses or CodecLosses()
        if trained == "decoder" and weights is None:
            raise UserError("model.trained is decoder: name the codec that it belongs to in model.weights")
        if self.losses.kl_weight and not codec.variational:
            raise UserError(
                f"model.losses.kl_weight is {self.losses.kl_weight}, but an AutoencoderDC has no posterior: set 0 or "
                "use KLCodec"
            )
        if self.losses.mark is not None and trained != "decoder":
            raise UserError("model.losses.mark marks a trained codec: set model.trained to decoder, and model.weights")
        self.codec, self.adversarial = codec, adversarial
        self.discriminator = adversarial.discriminator if adversarial is not None else None
        self.weights, self.trained, self._origin = weights, trained, dict[str, Any]()
        if trained == "decoder":
            codec.freeze_encoder()
        self.reconstruction, self.perceptual = self.losses.reconstruction or L1Loss(), self.losses.perceptual
        self.mark = self.losses.mark
        self._unmarked: list[LatentCodec] = []  # a list keeps it out of state dicts and optimizers
        self.optimizer, self.schedule, self.seed = optimizer, schedule, seed
        rebuilding = REBUILDING.get()
        self.stream = PhiloxStream() if rebuilding is None else recorded_stream(rebuilding)
        self.ema = start_average(codec, ema)
        self.automatic_optimization = adversarial is None
        self._measured: LatentStatistics | None = None
        self._measured_step = -1
        self._last_image: Tensor | None = None

    def ema_codec(self) -> LatentCodec:
        """Return the averaged codec, or the trained one if no average is kept."""
        return self.ema.model if self.ema is not None else self.codec  # type: ignore[return-value]

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct images (B, 3, H, W) uint8 as floats in [-1, 1]."""
        return self.ema_codec().decode(self.ema_codec().encode(self._pixels(image)))

    def _pixels(self, image: Tensor) -> Tensor:
        return signed(image, torch.promote_types(cast(torch.dtype, self.dtype), torch.float32))

    def setup(self, stage: str) -> None:
        """Load the initial weights; a resumed run replaces them afterwards."""
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
        if self.mark is not None:
            self._unmarked = [source.requires_grad_(False)]
            self._origin[MARK] = f"{self.mark.extractor.bits} bits"

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume if `weights` has changed; draw random numbers as the run began."""
        self.stream = recorded_stream(checkpoint.get(EVIDENCE, {}))
        if self._origin:
            refuse_other_weights(checkpoint, self._origin)

    def configure_model(self) -> None:
        """Refuse strategies that shard: codecs are small, and their statistics need whole weights."""
        if self.device_mesh is not None:
            raise UserError("codecs are trained whole on every rank: leave overlay_fsdp2.yaml out, take strategy ddp")

    def on_fit_start(self) -> None:
        """Refuse settings under which adversarial training would go wrong silently or hang."""
        if self.adversarial is None:
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
        """Step the codec and, once the discriminator has joined, the discriminator."""
        image = self._pixels(batch["image"])
        self._last_image = batch["image"]
        loss, reconstruction = self._codec_loss(image, batch)
        if self.adversarial is None:
            self.log("train/loss", loss, prog_bar=True, sync_dist=True)
            return loss
        return self._adversarial_step(self.adversarial, image, reconstruction, loss)

    def _codec_loss(self, image: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the sum of all losses but the adversarial one, and the reconstruction with its graph."""
        divergence = None
        if self.codec.variational:
            posterior = self.codec.posterior(image)
            noise = self.stream.normal(self.seed, batch["sample_index"], "posterior", posterior.mean.shape[1:])
            raw = posterior.mean + posterior.std * noise.to(posterior.mean)
            if self.losses.kl_weight:
                nats = gaussian_divergence(widened(posterior.mean), widened(posterior.logvar))
                divergence = nats.mean() / raw[0].numel()
        else:
            raw = self.codec.encode_raw(image)
        reconstruction, original = widened(self.codec.decode_raw(raw)), image
        if self._unmarked:
            with torch.no_grad():
                image = widened(self._unmarked[0].to(image.device).decode_raw(raw))
        loss = self.reconstruction(reconstruction, image).mean()
        self.log("train/reconstruction", loss, sync_dist=True)
        if self.perceptual is not None:
            distance = self.perceptual(reconstruction, image).mean()
            self.log("train/perceptual", distance, sync_dist=True)
            loss = loss + self.losses.perceptual_weight * distance
        if divergence is not None:
            self.log("train/divergence", divergence, sync_dist=True)
            loss = loss + self.losses.kl_weight * divergence
        if self.mark is not None:
            error, agree = self.mark(reconstruction, image, original, batch["sample_index"])
            self.log("train/mark", error, sync_dist=True)
            self.log("train/mark_bits", agree, prog_bar=True, sync_dist=True)
            progress = self.global_step / max(1, int(self.trainer.estimated_stepping_batches))
            loss = loss + self.mark.weight_at(progress) * error
        return loss, reconstruction

    def _discriminator_joined(self, settings: Adversarial, batch_size: int) -> bool:
        """Whether enough samples were seen; all ranks agree, or their collectives would not match."""
        seen = samples_seen(self.trainer)
        if seen is None:  # a data loader of somebody else, with batches of one size
            seen = self.trainer.global_step * batch_size * self.trainer.world_size
        return seen >= settings.start_samples

    def _adversarial_step(self, settings: Adversarial, image: Tensor, reconstruction: Tensor, loss: Tensor) -> Tensor:
        """Step the codec against a frozen discriminator, then the discriminator on detached reconstructions."""
        discriminator = settings.discriminator
        optimizers = cast(list[LightningOptimizer], self.optimizers())
        joined = self._discriminator_joined(settings, len(image))
        discriminator.requires_grad_(False)
        if joined:
            adversarial = adversarial_loss(widened(discriminator(reconstruction))).mean()
            self.log("train/adversarial", adversarial, sync_dist=True)
            factor = self._balance(loss, adversarial) if settings.adaptive else 1.0
            loss = loss + settings.weight * factor * adversarial
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        self._step(optimizers[0], loss, self.codec)
        self._average()
        discriminator.requires_grad_(True)
        if joined:
            real, fake = widened(discriminator(image)), widened(discriminator(reconstruction.detach()))
            error = discriminator_loss(real, fake).mean()
            self.log("train/discriminator", error, sync_dist=True)
            # The bare optimizer: Lightning counts each step of a wrapped one, and only the codec's steps must count.
            self._step(optimizers[1].optimizer, error, discriminator)
        for schedule in cast(list[Any], self.lr_schedulers()):
            schedule.step()
        return loss.detach()

    def _balance(self, loss: Tensor, adversarial: Tensor) -> Tensor:
        """Return the factor of Adversarial.adaptive, from gradients averaged over the ranks."""
        layer = self.codec.last_layer
        own = torch.stack([torch.autograd.grad(part, layer, retain_graph=True)[0] for part in (loss, adversarial)])
        whole = gather(own[None]).mean(0)
        factor = adaptive_weight(whole[0], whole[1])
        self.log("train/adversarial_factor", factor)
        return factor

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then update the average; adversarial training does both by hand."""
        super().optimizer_step(*args, **kwargs)
        self._average()

    def _average(self) -> None:
        if self.ema is not None:
            self.ema.update(self.codec)

    def _step(self, optimizer: LightningOptimizer | torch.optim.Optimizer, loss: Tensor, network: nn.Module) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), cast(Adversarial, self.adversarial).clip)
        optimizer.step()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log the pixel error of held-out images, and add their latents to the statistics."""
        image, codec = self._pixels(batch["image"]), self.ema_codec()
        raw = codec.encode_raw(image)
        self._measured = merge_statistics(self._measured, LatentStatistics.of(raw))
        difference = widened(codec.decode_raw(raw)).clamp(-1, 1) - image
        noise_ratio = -10 * (difference / 2).square().mean((1, 2, 3)).clamp(min=1e-10).log10()
        self.log("val/l1", difference.abs().mean(), prog_bar=True, sync_dist=True, batch_size=len(image))
        self.log("val/psnr", noise_ratio.mean(), sync_dist=True, batch_size=len(image))

    def on_validation_epoch_start(self) -> None:
        """Drop the statistics of earlier weights."""
        self._measured = None

    def on_validation_epoch_end(self) -> None:
        """Set the codec's statistics from the validation latents of all ranks."""
        if self._measured is None or self.trainer.sanity_checking:
            return
        count = torch.tensor([float(self._measured.count)], dtype=torch.float64)
        packed = torch.cat([count, self._measured.mean, self._measured.deviation]).to(self.device)
        merged: LatentStatistics | None = None
        for row in cast(Tensor, self.all_gather(packed)).reshape(-1, len(packed)).cpu():
            merged = merge_statistics(merged, LatentStatistics(int(row[0]), *row[1:].chunk(2)))
        self._set_statistics(cast(LatentStatistics, merged))
        self._measured_step = self.trainer.global_step

    def _set_statistics(self, statistics: LatentStatistics) -> None:
        """Set the statistics of the trained codec, too: the average copies its buffers."""
        if self.trained == "decoder":
            return
        for codec in self._codecs().values():
            codec.set_statistics(statistics)

    def _codecs(self) -> dict[str, LatentCodec]:
        """Return the trained and the averaged codec by their prefixes in a state dict."""
        return {"codec": self.codec} | ({"ema.model": self.ema_codec()} if self.ema is not None else {})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save statistics that belong to the saved weights.

        Unless validation has just measured them, the last training batch of this rank does, so that the file depends
        on the step alone; encode_latents measures the whole data set.
        """
        evidence = checkpoint.setdefault(EVIDENCE, {})
        evidence[RECORD] = self.stream.name
        if self._origin:
            evidence["pretrained"] = self._origin
        if self._last_image is None or self._measured_step == self.trainer.global_step:
            return
        with torch.no_grad():
            self._set_statistics(LatentStatistics.of(self.ema_codec().encode_raw(self._pixels(self._last_image))))
        self._measured_step = self.trainer.global_step
        for prefix, codec in self._codecs().items():
            for name in STATISTICS:
                checkpoint["state_dict"][f"{prefix}.{name}"] = getattr(codec, name).detach().clone()

    @torch.no_grad()
    def measure_statistics(self, batches: Iterable[dict[str, Any]]) -> LatentStatistics:
        """Set the codec's statistics from batches of images, exactly, in one pass."""
        merged: LatentStatistics | None = None
        for batch in batches:
            raw = self.ema_codec().encode_raw(self._pixels(batch["image"].to(self.device)))
            merged = merge_statistics(merged, LatentStatistics.of(raw))
        if merged is None:
            raise UserError("no image to measure the latent statistics on: the data set is empty")
        self._set_statistics(merged)
        return merged

    def configure_optimizers(self) -> Any:
        """Build the optimizers with their schedules."""
        total = int(self.trainer.estimated_stepping_batches)
        trained = self.codec if self.mark is None else nn.ModuleList([self.codec, self.mark])
        networks: list[tuple[OptimizerCallable, nn.Module]] = [(self.optimizer, trained)]
        if self.adversarial is not None:
            networks.append((self.adversarial.optimizer or self.optimizer, self.adversarial.discriminator))
        optimizers = [build_optimizer(build, network) for build, network in networks]
        rates = [self.schedule.build(optimizer, total) for optimizer in optimizers]
        return optimizers, [{"scheduler": rate, "interval": "step"} for rate in rates]
