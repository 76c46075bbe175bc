"""Denoisers of diffusers behind one call: PRX and the U-Net; Stable Diffusion 3's is in denoisers/sd3_denoiser.py.

Their weights keep diffusers' names.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import PRXTransformer2DModel, UNet2DConditionModel
from diffusers.models.transformers.transformer_prx import PRXAttnProcessor2_0
from einops import rearrange
from torch import Tensor, nn

from leam_mm.captions.caption_tower import CaptionTower
from leam_mm.denoisers.attention_processors import MaskedProcessor, PackedProcessor
from leam_mm.denoisers.block_step import BlockStep, Tokens, run_blocks
from leam_mm.denoisers.caption_cache import CaptionKeysValues, SamplingCache
from leam_mm.denoisers.caption_packing import TrimmedCaptions
from leam_mm.denoisers.sampling_block import Modulations, TimeTable, run_plain, runs_plain
from leam_mm.denoisers.size_conditioning import SizeConditioning
from leam_mm.errors import UserError

SCHEDULER_STEPS = 1000  # t = 1 in training steps, which all but PRX and every scheduler of a pipeline count in
KEY_ALIGNMENT = 8  # memory-efficient attention kernels need masks with rows of a multiple of this length


class Denoiser(nn.Module, ABC):
    """A network that predicts the target of a diffusion process from noisy latents and captions.

    Args:
        model: diffusers' model, whose weights and config are released.
        in_channels: C of the latents.
        context_dim: D of the caption states.
        patch_size: Height and width of the latents must be multiples of it.
    """

    model: Any  # PRXTransformer2DModel | UNet2DConditionModel, whose methods diffusers hides from type checkers

    def __init__(self, model: nn.Module, in_channels: int, context_dim: int, patch_size: int) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.model = model
        self.in_channels = in_channels
        self.context_dim = context_dim
        self.patch_size = patch_size
        self.size_conditioning: SizeConditioning | None = None
        self.caption_tower: CaptionTower | None = None  # here, so that it is averaged with the denoiser

    def plain_model(self) -> nn.Module:
        """Return a copy of diffusers' model for release: plain layers, without additions of ours."""
        return copy.deepcopy(self.model)

    def origin(self) -> dict[str, Any]:
        """Return which trained weights the network started from, with their digest; empty if there were none."""
        return {}

    @contextmanager
    def sampling(self, times: Tensor | None = None) -> Iterator[None]:
        """Context of the steps of a sampler, in which neither weights nor caption tensors change.

        A network may cache there what it computes from captions and times, as PRX does; this base class caches nothing.

        Args:
            times: (S,) on the CPU, times at which the sampler will call the network, if they are known.
        """
        yield

    @property
    def depth(self) -> int:
        """Number of equal blocks in a row, around which block steps run; 0 if there is no such row."""
        return 0

    @property
    def width(self) -> int:
        """E of the tokens between the blocks; 0 if there are none."""
        return 0

    @abstractmethod
    def forward(
        self,
        latent: Tensor,
        time: Tensor,
        caption_state: Tensor,
        caption_mask: Tensor,
        block_steps: Sequence[BlockStep] = (),
        size: Tensor | None = None,
    ) -> Tensor:
        """Predict the target of the diffusion process.

        Args:
            latent: (B, C, h, w), noisy.
            time: (B,) in [0, 1], 0 data, 1 noise.
            caption_state: (B, L, D).
            caption_mask: (B, L) bool, True at real tokens; the states of the others have no influence.
            block_steps: Called before and after each block, in this order; transformers only.
            size: (B, 6) or (6,), original size, crop and target size of the images, for networks with size
                conditioning (denoisers/size_conditioning.py), which take None as whole images; others ignore it.

        Returns:
            (B, C, h, w).
        """


class PRXDenoiser(Denoiser):
    """Photoroom's PRX transformer: image tokens attend to image and caption; rotary positions, any resolution.

    The output layer starts at zero, as in DiT (section 3.2 of 2212.09748); diffusers leaves it random.

    Args:
        in_channels: C of the latents.
        context_dim: D of the caption states.
        hidden_size: E, a multiple of num_heads.
        depth: Number of blocks.
        num_heads: K.
        patch_size: Latent positions per side of a token.
        mlp_ratio: Hidden width of the feed-forward part over E.
        axes_dim: Channels of a head that carry the row and the column; even, their sum is E / K. None halves.
        gradient_checkpointing: Recompute the blocks in the backward pass: less memory, a third more time.
        size_conditioning: Condition on original size and crop of each image; see denoisers/size_conditioning.py. The
            number is H = W in pixels of the whole image that is meant if no size is given, as in a released network.
            None has no such conditioning.
    """

    _cache: SamplingCache | None = None
    _times: TimeTable | None = None

    def __init__(
        self,
        in_channels: int,
        context_dim: int,
        hidden_size: int = 256,
        depth: int = 6,
        num_heads: int = 4,
        patch_size: int = 2,
        mlp_ratio: float = 3.5,
        axes_dim: list[int] | None = None,
        gradient_checkpointing: bool = False,
        size_conditioning: int | None = None,
    ) -> None:
        """See the class for the arguments."""
        head_size = hidden_size // num_heads
        axes = axes_dim if axes_dim is not None else [head_size // 2, head_size - head_size // 2]
        if hidden_size % num_heads or sum(axes) != head_size or any(size % 2 for size in axes):
            raise UserError(
                f"PRXDenoiser: hidden_size {hidden_size} over num_heads {num_heads} gives heads of {head_size} "
                f"channels and axes_dim {axes}: choose a multiple, with two even axes_dim that sum up to it"
            )
        model: Any = PRXTransformer2DModel(
            in_channels=in_channels,
            patch_size=patch_size,
            context_in_dim=context_dim,
            hidden_size=hidden_size,
            mlp_ratio=mlp_ratio,
            num_heads=num_heads,
            depth=depth,
            axes_dim=axes,
        )
        modulation = model.final_layer.adaLN_modulation[-1]
        for layer in (model.final_layer.linear, modulation):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if gradient_checkpointing:
            model.enable_gradient_checkpointing()
        super().__init__(model, in_channels, context_dim, patch_size)
        if size_conditioning is not None:
            self.size_conditioning = SizeConditioning(hidden_size, size_conditioning)

    @contextmanager
    def sampling(self, times: Tensor | None = None) -> Iterator[None]:
        """Context in which captions are trimmed, embedded and turned into keys and values once per caption tensor."""
        if any(block._compiled_call_impl is not None for block in self.model.blocks):
            yield  # cached keys would trigger a recompilation
            return
        layers = [block.attention for block in self.model.blocks]
        processors = [layer.processor for layer in layers]
        for layer in layers:
            if isinstance(layer.processor, PRXAttnProcessor2_0):
                layer.processor = MaskedProcessor()  # the same computation, but it takes cached keys
        self._cache, self._times = SamplingCache(), TimeTable(times)
        try:
            yield
        finally:
            self._cache = self._times = None
            for layer, processor in zip(layers, processors, strict=True):
                layer.processor = processor

    def plain_model(self) -> nn.Module:
        """Return a copy of diffusers' model, with the size conditioning of a whole image folded into a bias."""
        model: Any = copy.deepcopy(self.model)
        if self.size_conditioning is not None:
            self.size_conditioning.fold_into(model.time_in.out_layer)
        return model

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.model.blocks)

    @property
    def width(self) -> int:
        """E of the tokens."""
        return self.model.hidden_size

    def forward(
        self,
        latent: Tensor,
        time: Tensor,
        caption_state: Tensor,
        caption_mask: Tensor,
        block_steps: Sequence[BlockStep] = (),
        size: Tensor | None = None,
    ) -> Tensor:
        """Predict as PRXTransformer2DModel.forward does, from its layers; see Denoiser for the arguments.

        The differences: block steps run between the blocks, the rotation is computed once instead of per sample, and
        captions are trimmed to the longest one, without a mask if none is needed.
        """
        check_latent(latent, self.patch_size)
        model, patch = self.model, self.patch_size
        grid = latent.shape[2] // patch, latent.shape[3] // patch
        captions, text = self._embed_captions(caption_state, caption_mask)
        values = model.img_in(rearrange(latent, "B C (h p) (w q) -> B (h w) (C p q)", p=patch, q=patch))
        tokens = Tokens(values, self._rotary(grid, latent.device), grid)
        if isinstance(text, CaptionKeysValues) and not block_steps and runs_plain(model.blocks, values):
            modulations = self._modulations(time, size)
            return self._image(run_plain(model, tokens, text, modulations, captions.mask), grid)
        time_embedding = self._embed_time(time, size, values.dtype)

        def run(block: nn.Module, current: Tokens) -> Tensor:
            return self._run(block, current, text, time_embedding, captions)

        tokens = run_blocks(model.blocks, tokens, block_steps, run)
        return self._image(model.final_layer(tokens.values, time_embedding), grid)

    def _embed_time(self, time: Tensor, size: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the embedding (B, E) of times (B,) and sizes."""
        embedding = self.model._compute_timestep_embedding(time, dtype=dtype)
        if self.size_conditioning is not None:
            embedding = embedding + self.size_conditioning(size).to(embedding.dtype)
        return embedding

    def _modulations(self, time: Tensor, size: Tensor | None) -> Modulations:
        """Return what the blocks take from times (B,), for all times of the sampler at once where they are known."""
        found = None
        if self._times is not None and self.size_conditioning is None:
            found = self._times.find(self.model, time)
        return found or Modulations.of(self.model, self._embed_time(time, size, torch.float32))

    def _image(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return patches (B, N, C p q) of a grid of tokens as latents (B, C, h, w)."""
        return rearrange(patches, "B (h w) (C p q) -> B C (h p) (w q)", h=grid[0], p=self.patch_size, q=self.patch_size)

    def _embed_captions(self, state: Tensor, mask: Tensor) -> tuple[TrimmedCaptions, Tensor | CaptionKeysValues]:
        """Return the trimmed captions, and their embedding as the blocks take it."""
        cached = self._cache.find(state, mask) if self._cache is not None else None
        if cached is not None:
            return cached
        captions = TrimmedCaptions(state, mask)
        text = self.model.txt_in(captions.state)
        return captions, text if self._cache is None else self._cache.add(state, mask, captions, text)

    def _run(self, block: Any, tokens: Tokens, text: Any, time_embedding: Tensor, captions: TrimmedCaptions) -> Tensor:
        packs = isinstance(block.attention.processor, PackedProcessor)
        mask = captions.packed(tokens.values.shape[1]) if packs else captions.mask
        if torch.is_grad_enabled() and self.model.gradient_checkpointing:
            inputs = (tokens.values, text, time_embedding, tokens.rotary, mask)
            return self.model._gradient_checkpointing_func(block.__call__, *inputs)
        return block(
            hidden_states=tokens.values,
            encoder_hidden_states=text,
            temb=time_embedding,
            image_rotary_emb=tokens.rotary,
            attention_mask=mask,
        )

    def _rotary(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Return the rotation (1, 1, N, ...) of each token by its row and column."""
        if self._cache is not None and grid in self._cache.rotary:
            return self._cache.rotary[grid]
        positions = torch.cartesian_prod(*(torch.arange(size, dtype=torch.float32, device=device) for size in grid))
        rotary = self.model.pe_embedder(positions[None])
        if self._cache is not None:
            self._cache.rotary[grid] = rotary
        return rotary


class UNetDenoiser(Denoiser):
    """Convolutional baseline of latent diffusion (2112.10752) with attention to the caption.

    The output layer starts at zero, as in DDPM's code; diffusers leaves it random.

    Args:
        in_channels: C of the latents.
        context_dim: D of the caption states.
        block_channels: Channels at each resolution, from fine to coarse; the latents halve between them.
        layers_per_block: Residual blocks at each resolution.
        num_heads: K, the same everywhere (diffusers' config calls it attention_head_dim).
        attention: Whether the network attends to the caption, for each resolution; None attends at all.
        norm_groups: Groups of the group norms; each entry of block_channels is a multiple.
        gradient_checkpointing: Recompute the blocks in the backward pass: less memory, a third more time.
    """

    def __init__(
        self,
        in_channels: int,
        context_dim: int,
        block_channels: list[int],
        layers_per_block: int = 1,
        num_heads: int = 4,
        attention: list[bool] | None = None,
        norm_groups: int = 32,
        gradient_checkpointing: bool = False,
    ) -> None:
        """See the class for the arguments."""
        attends = attention if attention is not None else [True] * len(block_channels)
        if len(attends) != len(block_channels):
            raise UserError(
                f"UNetDenoiser: attention has {len(attends)} entries, block_channels {len(block_channels)}: "
                "give as many"
            )
        if any(channels % norm_groups or channels % num_heads for channels in block_channels):
            raise UserError(
                f"UNetDenoiser: each of block_channels {block_channels} must be a multiple of norm_groups "
                f"{norm_groups} and of num_heads {num_heads}"
            )
        model: Any = UNet2DConditionModel(
            in_channels=in_channels,
            out_channels=in_channels,
            down_block_types=tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
            up_block_types=tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
            block_out_channels=tuple(block_channels),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_groups,
            cross_attention_dim=context_dim,
            attention_head_dim=num_heads,
        )
        nn.init.zeros_(model.conv_out.weight)
        nn.init.zeros_(model.conv_out.bias)
        if gradient_checkpointing:
            model.enable_gradient_checkpointing()
        super().__init__(model, in_channels, context_dim, patch_size=1)

    @classmethod
    def from_model(cls, model: Any) -> "UNetDenoiser":
        """Return a denoiser around a trained UNet2DConditionModel that takes latents, time and captions alone."""
        denoiser = cls.__new__(cls)
        Denoiser.__init__(denoiser, model, model.config.in_channels, model.config.cross_attention_dim, patch_size=1)
        return denoiser

    def forward(
        self,
        latent: Tensor,
        time: Tensor,
        caption_state: Tensor,
        caption_mask: Tensor,
        block_steps: Sequence[BlockStep] = (),
        size: Tensor | None = None,
    ) -> Tensor:
        """Predict; see Denoiser for the arguments."""
        if block_steps:
            raise UserError("a U-Net has no row of equal blocks: use a PRXDenoiser, or no technique with block steps")
        missing = -caption_state.shape[1] % KEY_ALIGNMENT
        if torch.is_autocast_enabled(latent.device.type):
            # The model gives the mask the latent's type; kernels need that of the autocast keys.
            latent = latent.to(torch.get_autocast_dtype(latent.device.type))
        return self.model(
            latent,
            time * SCHEDULER_STEPS,
            encoder_hidden_states=F.pad(caption_state, (0, 0, 0, missing)),
            encoder_attention_mask=F.pad(caption_mask, (0, missing)),
            return_dict=False,
        )[0]


def check_latent(latent: Tensor, patch_size: int) -> None:
    """Refuse latents (B, C, h, w) that do not divide into patches."""
    height, width = latent.shape[-2:]
    if height % patch_size or width % patch_size:
        raise UserError(
            f"latents of {height} x {width} do not divide into patches of {patch_size}: "
            "set the denoiser's patch_size to a divisor"
        )
