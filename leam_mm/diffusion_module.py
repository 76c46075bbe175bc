"""Training of latent generators that make images from captions."""

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from leam_mm.captions.caption_encoder import CaptionEncoder
from leam_mm.captions.caption_tower import CaptionTower
from leam_mm.captions.conditioning import Conditioning
from leam_mm.captions.frozen_parts import FrozenParts
from leam_mm.checkpoint import EVIDENCE, REBUILDING, load_module, refuse_other_weights
from leam_mm.codecs.latent_codec import LatentCodec
from leam_mm.data.image_range import signed
from leam_mm.data.random_stream import RECORD, PhiloxStream, RandomStream, recorded_stream
from leam_mm.denoisers.attention import choose_attention
from leam_mm.denoisers.denoiser import Denoiser
from leam_mm.denoisers.image_sampling import ImageSampler
from leam_mm.diffusion.editing import Edit
from leam_mm.diffusion.guidance import Guidance
from leam_mm.diffusion.process import DiffusionProcess
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.diffusion.samplers import Method
from leam_mm.errors import UserError
from leam_mm.optim.ema import Averaging, start_average
from leam_mm.optim.optimizer import build_optimizer
from leam_mm.optim.schedule import Schedule
from leam_mm.optim.sharding import shard_blocks
from leam_mm.techniques.technique import Technique, TrainingStep

VALIDATION_TIMES = (0.125, 0.375, 0.625, 0.875)  # the centres of four equal bins
VALIDATION_SEED = 0  # fixed, so that the training seed does not change what is measured
DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}


class LatentDiffusionModule(LightningModule):
    """Trains a denoiser to turn noise into latents that fit a caption.

    Noise, time and caption dropout of the n-th sample are functions of (seed, n): its loss does not depend on its
    batch, rank or run. Text encoder and codec are frozen, stay in their own files and are opened when needed; a
    checkpoint records their paths and digests and refuses others. It names the stream of random numbers, too, with
    which the run resumes and its images are sampled.

    Args:
        denoiser: The network that is trained.
        process: How data becomes noise, and what the network predicts.
        latent_size: h = w of the latents to sample.
        frozen: Text encoder, codec and latent statistics; see captions/frozen_parts.py.
        optimizer: Built over the parameters in two groups, with and without weight decay.
        schedule: Learning rate.
        ema: Average of the weights: decay per optimizer step in [0, 1), or another kind (optim/power_ema.py); None
            keeps no average.
        seed: Names noise, times and caption dropout.
        caption_dropout: Share of samples that see the empty caption, for classifier-free guidance (0.1 in 2207.12598).
        caption_tower: Text tower trained with the denoiser, initialised from the frozen one; see
            captions/caption_tower.py. None takes the states of the frozen text encoder.
        attention: auto takes packed rows or xformers if a probe shows that they work; see denoisers/attention.py.
        techniques: Additions to training; see techniques/technique.py.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        process: DiffusionProcess,
        latent_size: int,
        frozen: FrozenParts | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule = Schedule(kind="constant"),  # noqa: B008 (frozen)
        ema: float | Averaging | None = 0.999,
        seed: int = 0,
        caption_dropout: float = 0.1,
        caption_tower: CaptionTower | None = None,
        attention: Literal["auto", "packed", "xformers", "sdpa"] = "auto",
        techniques: list[Technique] | None = None,
    ) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.denoiser, self.process, self.latent_size = denoiser, process, latent_size
        denoiser.caption_tower = caption_tower
        self.ema = start_average(denoiser, ema)
        self.optimizer, self.schedule, self.seed, self.attention = optimizer, schedule, seed, attention
        self.frozen = frozen or FrozenParts()
        self.conditioning = Conditioning(self.frozen, denoiser, self._averages(), seed, caption_dropout)
        rebuilding = REBUILDING.get()
        self._use_stream(PhiloxStream() if rebuilding is None else recorded_stream(rebuilding))
        self.techniques = nn.ModuleList(techniques or [])
        for technique in techniques or []:
            technique.attach(denoiser, seed)
            self.frozen.further.append(technique.frozen_record)

    def _use_stream(self, stream: RandomStream) -> None:
        self.stream = self.conditioning.stream = stream

    def ema_denoiser(self) -> Denoiser:
        """Return the averaged network, or the trained one if no average is kept."""
        return self.ema.model if self.ema is not None else self.denoiser  # type: ignore[return-value]

    def _averages(self) -> list[Denoiser]:
        return self.ema.copies() if self.ema is not None else []  # type: ignore[return-value]

    @property
    def caption_encoder(self) -> CaptionEncoder:
        """The text encoder for sampling, on this module's device: the frozen one, or the averaged caption tower."""
        return self.conditioning.encoder()

    @property
    def codec(self) -> LatentCodec:
        """The frozen codec with the normalisation of the training latents, on this module's device."""
        return self.frozen.latent_codec(self.denoiser.in_channels).to(self.device)

    def setup(self, stage: str) -> None:
        """Fail before the first step if a frozen part is missing; initialise the caption tower."""
        self.frozen.record()
        if stage == "fit":
            # Lightning loads the weights of a resumed run after this; a module of load_module has its own.
            self.conditioning.start(new_run=not hasattr(self, "checkpoint_evidence"))
            if self.denoiser.caption_tower is not None:
                self.conditioning.tokenize_in_workers(self.trainer.datamodule)  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Shard the denoiser and its averages if the strategy asks for it."""
        if self.device_mesh is None:
            return
        if self.denoiser.caption_tower is not None:
            raise UserError("a caption_tower is not sharded: train it with trainer.strategy ddp, or drop it")
        for denoiser in (self.denoiser, *self._averages()):
            shard_blocks(denoiser, self.device_mesh)
        for technique in self.techniques:
            technique.shard(self.device_mesh)  # type: ignore[operator]

    def on_fit_start(self) -> None:
        """Choose the attention kernel, now that the device is known."""
        dtype = DTYPES.get(str(self.trainer.precision).split("-")[0], torch.float32)
        copies = [average.model for average in self._averages()]
        choose_attention(self.denoiser.model, self.device, dtype, self.attention, copies)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the mean loss of the batch."""
        loss = self.sample_losses(batch).mean()
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch["sample_index"]))
        return loss

    def sample_losses(self, batch: dict[str, Any]) -> Tensor:
        """Return the training loss (B,) of each sample, a function of the sample, its number and the weights."""
        index, size = batch["sample_index"], self._image_size(batch)
        latent = self._latent(batch)
        state, mask = self.conditioning.read(batch, learning=True)
        noise = self.stream.normal(self.seed, index, "noise", latent.shape[1:]).to(latent)
        time = self.process.time(self.stream.uniform(self.seed, index, "time").to(latent), latent[0, 0].numel())
        target = self.process.target(latent, noise, time)
        step = TrainingStep(batch, index, latent, noise, time, target, self.process, stream=self.stream)
        techniques: list[Any] = list(self.techniques)
        for technique in techniques:
            technique.begin(step)
        block_steps = [block_step for technique in techniques for block_step in technique.block_steps()]

        def denoise(x_t: Tensor, time: Tensor) -> Tensor:
            step.prediction = self.denoiser(x_t, time, state, mask, block_steps, size)
            return step.prediction

        errors = self.process.errors_at(denoise, latent, noise, time)
        for technique in techniques:
            errors = technique.weigh(errors, step)
        losses = errors.flatten(1).mean(1)
        for technique in techniques:
            further = technique.loss(step)
            losses = losses if further is None else losses + further
        return losses

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log the loss of the averaged network at four fixed times, with noise that is fixed for each sample."""
        latent, size, network = self._latent(batch), self._image_size(batch), self.ema_denoiser()
        state, mask = self.conditioning.read(batch)
        noise = self.stream.normal(VALIDATION_SEED, batch["sample_index"], "validation", latent.shape[1:]).to(latent)

        def denoise(x_t: Tensor, time: Tensor) -> Tensor:
            return network(x_t, time, state, mask, size=size)

        losses = []
        for number, t in enumerate(VALIDATION_TIMES):
            losses.append(self.process.loss_at(denoise, latent, noise, latent.new_full((len(latent),), t)).mean())
            self.log(f"val/loss_t{number}", losses[-1], sync_dist=True, batch_size=len(latent))
        self.log("val/loss", torch.stack(losses).mean(), prog_bar=True, sync_dist=True, batch_size=len(latent))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then update the average; Lightning calls this once per optimizer step, whatever is accumulated."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.denoiser)

    def configure_optimizers(self) -> Any:
        """Build the optimizer with its schedule."""
        trained = nn.ModuleList([self.denoiser, *self.techniques]) if len(self.techniques) else self.denoiser
        tower = self.denoiser.caption_tower
        optimizer = build_optimizer(self.optimizer, trained, tower.rate_shares() if tower is not None else None)
        rate = self.schedule.build(optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    @torch.no_grad()
    def sample(
        self,
        prompts: list[str],
        seed: int,
        steps: int = 20,
        guidance: float | Guidance = 3.0,
        method: Method | None = None,
        first_index: int = 0,
        batch_size: int = 64,
        edit: Edit | None = None,
        size: tuple[int, int] | None = None,
        tile: int | None = None,
        numbers: list[int] | None = None,
    ) -> Tensor:
        """Sample one image for each prompt with the averaged weights.

        Args:
            prompts: B texts in any language.
            seed: With the prompt's number it names the noise, so that neither batch nor neighbours matter.
            steps: Number of steps of the sampler.
            guidance: Scale of classifier-free guidance, 1 or less is off; or a Guidance.
            method: Sampler of diffusion/samplers.py; None takes the process's own, as the released pipeline does.
            first_index: Number of the first prompt.
            batch_size: Prompts at a time; it changes the memory, not the images.
            edit: Images to start from (image-to-image), with a mask of what is replaced (inpainting).
            size: Height and width of the latents; None takes latent_size for both, as an edit must.
            tile: Side in pixels of the tiles in which the codec decodes larger images, one at a time, to bound its
                memory (LatentCodec.set_tile says what differs); None decodes them whole.
            numbers: Number of each prompt, which names its noise; None counts from first_index.

        Returns:
            (B, 3, H, W) float in [0, 1].
        """
        if edit is not None and size is not None:
            raise UserError("an edit has the size of the generator's own images: leave size out")
        codec, side = self.codec, self.latent_size
        weaker = self._weaker(guidance.weaker) if isinstance(guidance, Guidance) and guidance.weaker else None
        network, size = self.ema_denoiser(), size or (side, side)
        sampling = SamplerSettings(steps, guidance, method)
        sampler = ImageSampler(network, self.process, codec, size, seed, sampling, weaker, self.stream)
        encoder, empty, images = self.caption_encoder, self.conditioning.empty(), []
        try:
            if tile is not None:
                codec.set_tile(tile)
            for start in range(0, len(prompts), batch_size):
                part = prompts[start : start + batch_size]
                rows = edit.rows(start, len(part), side * codec.downscale) if edit is not None else None
                own = list(range(first_index + start, first_index + start + len(part)))
                own = own if numbers is None else numbers[start : start + len(part)]
                images.append(sampler(encoder.encode(part), empty, torch.tensor(own), rows))
        finally:
            if tile is not None:
                codec.set_tile(None)
        return torch.cat(images)

    def _weaker(self, path: str) -> Denoiser:
        """Return the averaged network of another generator, for autoguidance, if it predicts the same target."""
        if path not in self.frozen.opened:
            other = load_module(path, LatentDiffusionModule)
            parts = other.frozen.record()
            self.frozen.compare({name: parts[name] for name in ("clip", "codec", "latents") if name in parts})
            times = torch.linspace(0.1, 0.9, 5)
            ours, theirs = (
                (type(one.process), one.denoiser.in_channels, torch.stack(one.process.path(times)).tolist())
                for one in (self, other)
            )
            if ours != theirs or any(one.denoiser.caption_tower is not None for one in (self, other)):
                raise UserError(
                    f"{path} predicts another target than this generator: the weaker generator of autoguidance needs "
                    f"the same process as here ({ours[0].__name__}), as many channels ({ours[1]}) and no caption_tower"
                )
            self.frozen.opened[path] = other.ema_denoiser().requires_grad_(False).eval()
        return self.frozen.opened[path].to(self.device)

    def _image_size(self, batch: dict[str, Any]) -> Tensor | None:
        """Return original size and crop (B, 6) of the images of a batch, if the denoiser is conditioned on them."""
        if self.denoiser.size_conditioning is None:
            return None
        if "picture_size" not in batch:
            raise UserError(
                "the denoiser is conditioned on image sizes, but the batch has no picture_size: encode the latents "
                "again, or drop model.init_args.denoiser.init_args.size_conditioning"
            )
        return batch["picture_size"]

    @torch.no_grad()
    def _latent(self, batch: dict[str, Any]) -> Tensor:
        """Return the latents (B, C, h, w) of a batch, encoded here if it holds images."""
        if "latent" in batch:
            latent = batch["latent"]
        else:
            if len(batch["caption"]) != len(batch["image"]):
                raise UserError(
                    "a generator takes one caption for each image: set data.init_args.captions.per_image to 1"
                )
            # Under autocast the codec returns half precision, to which noise must not be rounded.
            latent = self.codec.encode(signed(batch["image"].to(self.device))).float()
        if latent.shape[1] != self.denoiser.in_channels:
            raise UserError(
                f"latents have {latent.shape[1]} channels, the denoiser expects {self.denoiser.in_channels}: set "
                "model.init_args.denoiser.init_args.in_channels"
            )
        return latent

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the frozen parts, the pretrained weights and the stream of random numbers in the evidence."""
        evidence = checkpoint.setdefault(EVIDENCE, {})
        evidence[RECORD] = self.stream.name
        evidence["frozen"] = self.frozen.record()
        if self.denoiser.origin():
            evidence["pretrained"] = self.denoiser.origin()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume with other frozen parts or pretrained weights; draw random numbers as the run began."""
        evidence = checkpoint.get(EVIDENCE, {})
        self.frozen.compare(evidence.get("frozen", {}))
        self._use_stream(recorded_stream(evidence))
        refuse_other_weights(checkpoint, self.denoiser.origin())
