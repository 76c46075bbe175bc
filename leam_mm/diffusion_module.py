"""Training of latent generators that draw what a caption says."""

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from leam_mm.captions.caption_encoder import CaptionEncoder
from leam_mm.captions.caption_tower import CaptionTower, begin_tower, read_in_workers
from leam_mm.captions.frozen_parts import FrozenParts
from leam_mm.checkpoint import EVIDENCE, load_module, refuse_other_weights
from leam_mm.codecs.latent_codec import LatentCodec
from leam_mm.data.caption_states import fit_length, trim
from leam_mm.data.sample_order import sample_noise, sample_uniform
from leam_mm.denoisers.attention import choose_attention
from leam_mm.denoisers.denoiser import Denoiser
from leam_mm.denoisers.size_conditioning import whole_picture
from leam_mm.diffusion.editing import Edit, draw_from
from leam_mm.diffusion.guidance import Guidance, guide
from leam_mm.diffusion.process import DiffusionProcess
from leam_mm.diffusion.samplers import Method
from leam_mm.errors import UserError
from leam_mm.optim.ema import Averaging, Ema
from leam_mm.optim.optimizer import build_optimizer, warmup_constant, warmup_cosine
from leam_mm.optim.sharding import shard_blocks
from leam_mm.techniques.technique import Technique, TrainingStep

VALIDATION_TIMES = (0.125, 0.375, 0.625, 0.875)  # the middles of four equal bins
VALIDATION_SEED = 0  # another training seed must not change what is measured
DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
Caption = tuple[Tensor, Tensor]


class LatentDiffusionModule(LightningModule):
    """Teaches a denoiser to turn noise into latents that fit a caption.

    The n-th sample's noise, time and caption drop follow from (seed, n) alone: its loss does not depend on the batch,
    rank or run that it comes in. The text encoder and the codec are frozen, stay in their own files and are opened when
    they are needed; a checkpoint records their paths and digests and refuses others.

    Args:
        denoiser: The network that is trained.
        process: How data becomes noise, and what the network predicts.
        latent_size: h = w of the latents to sample.
        clip: Checkpoint or run folder of the ContrastiveModule whose text tower reads the captions, or a folder of
            transformers, or several of these in the order in which the latents were encoded. Needed for caption
            dropout, for sampling, and for batches of images.
        codec: Checkpoint or run folder of the LatentCodecModule, or a folder of diffusers. Needed for sampling and for
            batches of images.
        latents: Folder whose codec_statistics.json the latents were normalised with; None takes the codec's own.
        optimizer: Built over the parameters in two groups, with and without weight decay.
        seed: Of noise, times and caption drops.
        caption_dropout: Share of samples that see the empty caption, for classifier-free guidance (0.1 in 2207.12598).
        ema_decay: Per optimizer step, in [0, 1); None keeps no average.
        ema: An average of another kind in its place; see optim/power_ema.py.
        warmup_steps: Optimizer steps of the linear rise.
        schedule: What follows it.
        attention: auto takes packed rows or xformers where a probe says that they work; see denoisers/attention.py.
        techniques: What is added to the training; see techniques/technique.py.
        caption_tower: Trained along with the denoiser, from clip's text tower on; see captions/caption_tower.py. None
            takes what the frozen one says.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        process: DiffusionProcess,
        latent_size: int,
        clip: str | list[str] | None = None,
        codec: str | None = None,
        latents: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        seed: int = 0,
        caption_dropout: float = 0.1,
        ema_decay: float | None = 0.999,
        ema: Averaging | None = None,
        warmup_steps: int = 100,
        schedule: Literal["constant", "cosine"] = "constant",
        attention: Literal["auto", "packed", "xformers", "sdpa"] = "auto",
        techniques: list[Technique] | None = None,
        caption_tower: CaptionTower | None = None,
    ) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.denoiser, self.process, self.optimizer = denoiser, process, optimizer
        denoiser.caption_tower = caption_tower
        plain = Ema(denoiser, ema_decay) if ema is None and ema_decay is not None else None
        self.ema = plain if ema is None else ema.follow(denoiser)
        self.latent_size, self.seed, self.caption_dropout = latent_size, seed, caption_dropout
        self.warmup_steps, self.schedule, self.attention = warmup_steps, schedule, attention
        self.frozen = FrozenParts(clip, codec, latents)
        self._empty: Caption | None = None
        self.techniques = nn.ModuleList(techniques or [])
        for technique in techniques or []:
            technique.attach(denoiser, seed)
            self.frozen.further.append(technique.frozen_record)

    def ema_denoiser(self) -> Denoiser:
        """The averaged network where an average is kept, else the trained one."""
        return self.ema.model if self.ema is not None else self.denoiser  # type: ignore[return-value]

    def _averages(self) -> list[Denoiser]:
        return self.ema.copies() if self.ema is not None else []  # type: ignore[return-value]

    @property
    def caption_encoder(self) -> CaptionEncoder:
        """The text side on this module's device: the frozen tower, or the average of the one trained here."""
        self.frozen_record()
        frozen, tower = self.frozen.caption_encoder(self.denoiser.context_dim), self.ema_denoiser().caption_tower
        return (frozen if tower is None else tower.as_encoder(frozen)).to(self.device)

    @property
    def codec(self) -> LatentCodec:
        """The frozen codec, normalising as the latents were, on this module's device."""
        self.frozen_record()
        return self.frozen.codec(self.denoiser.in_channels).to(self.device)

    def setup(self, stage: str) -> None:
        """Miss what is missing before the first step."""
        self.frozen_record()
        if stage == "fit" and not hasattr(self, "checkpoint_evidence"):
            # Where a training goes on, Lightning loads its weights after this.
            begin_tower(self.denoiser, self._averages(), self.frozen)
        if stage == "fit" and self.denoiser.caption_tower is not None:
            read_in_workers(self.trainer, self.frozen.caption_encoder(self.denoiser.context_dim))
        if stage == "fit" and self.caption_dropout > 0:
            self.empty_caption()

    def configure_model(self) -> None:
        """Shard the denoiser and its average where the strategy asks for it."""
        if self.device_mesh is not None and self.denoiser.caption_tower is not None:
            raise UserError("a caption_tower is not sharded: train it with trainer.strategy ddp, or drop it")
        if self.device_mesh is not None:
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
        """Mean loss of the batch."""
        loss = self.sample_losses(batch).mean()
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch["sample_index"]))
        return loss

    def sample_losses(self, batch: dict[str, Any]) -> Tensor:
        """Training loss (B,) of each sample, a function of the sample, its number and the weights."""
        index = batch["sample_index"]
        latent, (state, mask) = self._inputs(batch, learning=True)
        noise = sample_noise(self.seed, index, "noise", latent.shape[1:]).to(latent)
        time = self.process.time(sample_uniform(self.seed, index, "time").to(latent), latent[0, 0].numel())
        step = TrainingStep(batch, index, latent, noise, time, self.process.target(latent, noise, time), self.process)
        techniques: list[Any] = list(self.techniques)
        for technique in techniques:
            technique.begin(step)
        told = self._told(batch)
        between = [block_step for technique in techniques for block_step in technique.block_steps()]

        def denoise(x_t: Tensor, moment: Tensor) -> Tensor:
            step.prediction = self.denoiser(x_t, moment, state, mask, between, **told)
            return step.prediction

        errors = self.process.errors_at(denoise, latent, noise, time)
        for technique in techniques:
            errors = technique.weigh(errors, step)
        losses = errors.flatten(1).mean(1)
        for technique in techniques:
            more = technique.loss(step)
            losses = losses if more is None else losses + more
        return losses

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss of the averaged network at four fixed times, with each sample's own fixed noise."""
        latent, (state, mask) = self._inputs(batch)
        noise = sample_noise(VALIDATION_SEED, batch["sample_index"], "validation", latent.shape[1:]).to(latent)
        network, losses = partial(self.ema_denoiser(), **self._told(batch)), []
        for place, moment in enumerate(VALIDATION_TIMES):
            time = latent.new_full((len(latent),), moment)
            losses.append(
                self.process.loss_at(lambda x_t, time: network(x_t, time, state, mask), latent, noise, time).mean()
            )
            self.log(f"val/loss_t{place}", losses[-1], sync_dist=True, batch_size=len(latent))
        self.log("val/loss", torch.stack(losses).mean(), prog_bar=True, sync_dist=True, batch_size=len(latent))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then average the weights: Lightning calls this once per optimizer step, however much is accumulated."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.denoiser)

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer with its schedule."""
        trained = nn.ModuleList([self.denoiser, *self.techniques]) if len(self.techniques) else self.denoiser
        tower = self.denoiser.caption_tower
        optimizer = build_optimizer(self.optimizer, trained, tower.rate_shares() if tower is not None else None)
        if self.schedule == "cosine":
            rate = warmup_cosine(optimizer, self.warmup_steps, int(self.trainer.estimated_stepping_batches))
        else:
            rate = warmup_constant(optimizer, self.warmup_steps)
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
    ) -> Tensor:
        """Draw one picture for each prompt with the averaged weights.

        Args:
            prompts: B texts, any language.
            seed: With the prompt's number it names the noise, so that neither batch nor neighbours matter.
            steps: Of the sampler.
            guidance: Strength of classifier-free guidance, 1 or less is off; or a Guidance.
            method: Of diffusion/samplers.py; None takes the process's own, which the released pipeline runs.
            first_index: Number of the first prompt.
            batch_size: Prompts at a time; changes the memory, not the pictures.
            edit: Pictures to start from (image-to-image), with a mask where they are kept (inpainting).
            size: Height and width of the latents; None takes latent_size for both, as an edit must.
            tile: Side in pixels of the tiles in which the codec decodes pictures larger than that, one at a time: its
                memory stays that of a tile (LatentCodec.set_tile says what differs); None decodes them whole.

        Returns:
            (B, 3, H, W) float in [0, 1].
        """
        if edit is not None and size is not None:
            raise UserError("an edit has the size of the generator's own pictures: leave size out")
        pictures, codec = [], self.codec
        try:
            if tile is not None:
                codec.set_tile(tile)
            for start in range(0, len(prompts), batch_size):
                part = prompts[start : start + batch_size]
                rows = edit.rows(start, len(part), self.latent_size * codec.downscale) if edit is not None else None
                number = first_index + start
                pictures.append(self._sample_batch(part, seed, steps, guidance, method, number, rows, size))
        finally:
            if tile is not None:
                codec.set_tile(None)
        return torch.cat(pictures)

    def _sample_batch(
        self,
        prompts: list[str],
        seed: int,
        steps: int,
        guidance: float | Guidance,
        method: Method | None,
        first_index: int,
        edit: Edit | None,
        size: tuple[int, int] | None,
    ) -> Tensor:
        numbers = torch.arange(first_index, first_index + len(prompts))
        height, width = size or (self.latent_size, self.latent_size)
        shape = (self.denoiser.in_channels, height, width)
        noise = sample_noise(seed, numbers, "sample", shape).to(self.device)
        network = self.ema_denoiser()
        weaker = self._weaker(guidance.weaker) if isinstance(guidance, Guidance) and guidance.weaker else None

        def told(model: Denoiser) -> Callable[..., Tensor]:
            if model.size_conditioning is None:
                return model
            return partial(model, size=whole_picture(height, width, self.codec.downscale))

        captions, empty = trim(self.caption_encoder.encode(prompts), self.empty_caption())
        denoise = guide(told(network), captions, empty, guidance, told(weaker) if weaker is not None else None)
        training = network.training
        network.eval()
        calls = itertools.count()

        def fresh(step: int) -> Tensor:
            return sample_noise(seed, numbers, f"sample {next(calls)}", shape).to(self.device)

        def draw(x: Tensor, times: Tensor) -> Tensor:
            return self.process.sample(denoise, x, times, method, fresh)

        times = self.process.times(steps, height * width)
        with network.sampling(), weaker.sampling() if weaker is not None else nullcontext():
            if edit is None:
                picture = self.codec.decode(draw(noise, times))
            else:
                picture = draw_from(edit, self.codec, self.process, draw, noise, times)
        network.train(training)
        return (picture.float() / 2 + 0.5).clamp(0, 1)

    def _weaker(self, path: str) -> Denoiser:
        """The averaged network of another generator, for autoguidance; it must predict the same from the same."""
        if path not in self.frozen.opened:
            other = load_module(path, LatentDiffusionModule)
            parts = other.frozen_record()
            self.frozen.compare({name: parts[name] for name in ("clip", "codec", "latents") if name in parts})
            times = torch.linspace(0.1, 0.9, 5)
            ours, theirs = (
                (type(one.process), one.denoiser.in_channels, torch.stack(one.process.path(times)).tolist())
                for one in (self, other)
            )
            if ours != theirs or any(one.denoiser.caption_tower is not None for one in (self, other)):
                raise UserError(
                    f"{path} predicts something else than this generator: the weaker generator of autoguidance needs "
                    f"the same process as here ({ours[0].__name__}), as many channels ({ours[1]}) and no caption_tower"
                )
            self.frozen.opened[path] = other.ema_denoiser().requires_grad_(False).eval()
        return self.frozen.opened[path].to(self.device)

    def empty_caption(self) -> Caption:
        """State (1, L, D) and mask (1, L) of "", the released pipeline's negative prompt."""
        if self._empty is None or self.denoiser.caption_tower is not None:  # a tower that learns says something new
            self._empty = self.caption_encoder.encode([""])
        state, mask = self._empty
        self._empty = state.to(self.device), mask.to(self.device)
        return self._empty

    def _told(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What the pictures of a batch were, where the denoiser is told so."""
        if self.denoiser.size_conditioning is None:
            return {}
        if "picture_size" not in batch:
            raise UserError(
                "the denoiser is told what pictures were, and this batch does not say it: encode the latents again, or "
                "drop model.init_args.denoiser.init_args.size_conditioning"
            )
        return {"size": batch["picture_size"]}

    def _inputs(self, batch: dict[str, Any], learning: bool = False) -> tuple[Tensor, Caption]:
        """Latents and captions of a batch, encoded here if it holds pictures and texts; some dropped in learning."""
        latent = batch["latent"] if "latent" in batch else self._encode(batch)
        tower, state = self.denoiser.caption_tower, batch.get("caption_state")
        if tower is not None and learning:
            dropped = sample_uniform(self.seed, batch["sample_index"], "caption_dropout") < self.caption_dropout
            return latent, tower.read(batch, dropped, self.frozen.caption_encoder(self.denoiser.context_dim).tokenizer)
        if tower is not None or state is None:
            caption = self.caption_encoder.encode(batch["caption"])
        else:
            caption = state, torch.arange(state.shape[1], device=state.device) < batch["caption_length"][:, None]
        found = latent.shape[1], caption[0].shape[-1]
        if found != (self.denoiser.in_channels, self.denoiser.context_dim):
            raise UserError(
                f"latents have {found[0]} channels and caption states {found[1]}, the denoiser expects "
                f"{self.denoiser.in_channels} and {self.denoiser.context_dim}: set its in_channels, context_dim"
            )
        return latent, self._drop_captions(caption, batch["sample_index"]) if learning else caption

    @torch.no_grad()
    def _encode(self, batch: dict[str, Any]) -> Tensor:
        """Latents of a batch of pictures."""
        if len(batch["caption"]) != len(batch["image"]):
            raise UserError("a generator takes one caption for each image: set data.init_args.captions.per_image to 1")
        latent = self.codec.encode(batch["image"].to(self.device, torch.float32) / 127.5 - 1)
        return latent.float()  # under autocast the codec answers in half precision; noise must not be rounded to it

    def _drop_captions(self, caption: Caption, index: Tensor) -> Caption:
        """Replace the captions of a share of the samples by the empty one."""
        if self.caption_dropout <= 0:
            return caption
        state, mask = caption
        dropped = sample_uniform(self.seed, index, "caption_dropout").to(state.device) < self.caption_dropout
        empty = self.empty_caption()
        # The captions of a batch may all be shorter than the empty one, which several text encoders begin and end.
        length = max(state.shape[1], int(empty[1].sum()))
        state, mask, empty_state, empty_mask = (fit_length(part, length) for part in (*caption, *empty))
        state = torch.where(dropped[:, None, None], empty_state.to(state.dtype), state)
        return state, torch.where(dropped[:, None], empty_mask, mask)

    def frozen_record(self) -> dict[str, Any]:
        """What the training depends on: as the checkpoint says, where this came from one, else as the files are."""
        evidence = getattr(self, "checkpoint_evidence", {})
        if "frozen" in evidence:
            self.frozen.recorded = evidence["frozen"]
        return self.frozen.record()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the frozen parts, and what the training started from, beside the rest of the evidence."""
        evidence = checkpoint.setdefault(EVIDENCE, {})
        evidence["frozen"] = self.frozen_record()
        if self.denoiser.origin():
            evidence["pretrained"] = self.denoiser.origin()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with other frozen parts than before."""
        self.frozen.compare(checkpoint.get(EVIDENCE, {}).get("frozen", {}))
        refuse_other_weights(checkpoint, self.denoiser.origin())
