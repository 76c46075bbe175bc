"""The one door to diffusers' denoisers; that of Stable Diffusion 3 is beside it, in denoisers/sd3_denoiser.py.

All take (latent, time, caption_state, caption_mask); their weights keep diffusers' names.
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
from leam_mm.denoisers.block_step import BlockStep, Tokens, walk_blocks
from leam_mm.denoisers.caption_cache import CaptionHeads, StepMemory
from leam_mm.denoisers.caption_packing import TrimmedCaptions
from leam_mm.denoisers.size_conditioning import SizeConditioning
from leam_mm.errors import UserError

SCHEDULER_STEPS = 1000  # all but PRX embed training steps, not times; so does every scheduler in a released pipeline
KEY_ALIGNMENT = 8  # memory-efficient attention kernels want masks whose rows are a multiple of this long


class Denoiser(nn.Module, ABC):
    """A network that looks at noisy latents and captions and predicts what its diffusion process asks for.

    Args:
        model: diffusers' own object, whose weights and config are what gets released.
        in_channels: C of the latents.
        context_dim: D of the caption states.
        patch_size: The latents' height and width must be multiples of it.
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
        self.caption_tower: CaptionTower | None = None  # what is trained with the weights is averaged with them

    def plain_model(self) -> nn.Module:
        """A copy of diffusers' model as it is released: plain layers, without additions of ours."""
        return copy.deepcopy(self.model)

    def origin(self) -> dict[str, Any]:
        """The trained weights that this network started from, and their digest; empty where there were none."""
        return {}

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Within, the steps of a sampler: the weights stay, and a caption tensor that comes again holds what it held.

        A network may keep what it makes of captions, as PRX does; this one makes it anew.
        """
        yield

    @property
    def depth(self) -> int:
        """Number of equal blocks in a row, between which steps work; 0 where there is no such row."""
        return 0

    @property
    def width(self) -> int:
        """E of the tokens between the blocks; 0 where there are none."""
        return 0

    @abstractmethod
    def forward(
        self,
        latent: Tensor,
        time: Tensor,
        caption_state: Tensor,
        caption_mask: Tensor,
        steps: Sequence[BlockStep] = (),
    ) -> Tensor:
        """Predict.

        Args:
            latent: (B, C, h, w), noisy.
            time: (B,) in [0, 1], 0 data, 1 noise.
            caption_state: (B, L, D).
            caption_mask: (B, L) bool, True at real tokens; what stands at the others has no influence.
            steps: Called before and after each block, in this order; transformers only.

        Returns:
            (B, C, h, w).
        """


class PRXDenoiser(Denoiser):
    """Photoroom's PRX transformer: image tokens attend to themselves and the caption; rotary positions, any resolution.

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
        size_conditioning: Tell the network the size of each image before cropping; see denoisers/size_conditioning.py.
            The number is H = W in pixels of the whole pictures that are drawn where nobody says more, and that a
            released network always draws. None tells it nothing.
    """

    _memory: StepMemory | None = None

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
    def sampling(self) -> Iterator[None]:
        """Within, captions are cut, embedded and made keys and values once for each tensor that they come in."""
        if any(block._compiled_call_impl is not None for block in self.model.blocks):
            yield  # compiled code would be made anew for the kept keys
            return
        layers = [block.attention for block in self.model.blocks]
        before = [layer.processor for layer in layers]
        for layer in layers:
            if isinstance(layer.processor, PRXAttnProcessor2_0):
                layer.processor = MaskedProcessor()  # the same computation; diffusers' knows no kept keys
        self._memory = StepMemory()
        try:
            yield
        finally:
            self._memory = None
            for layer, processor in zip(layers, before, strict=True):
                layer.processor = processor

    def plain_model(self) -> nn.Module:
        """A copy of diffusers' model; what it would be told of each picture is in the bias of its time's embedding."""
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
        steps: Sequence[BlockStep] = (),
        size: Tensor | None = None,
    ) -> Tensor:
        """Predict as PRXTransformer2DModel.forward does, from its own layers; see Denoiser for the shapes.

        Its loop over the blocks is ours, for the steps between them; the rotation is made once, not per sample; and
        captions come without the padding that all of them have, and without a mask where none is left.
        What pictures were, ``size``, is (B, 6) or (6,), the numbers of a PictureSize.
        """
        check_latent(latent, self.patch_size)
        model, patch = self.model, self.patch_size
        grid = latent.shape[2] // patch, latent.shape[3] // patch
        captions, text = self._read(caption_state, caption_mask)
        values = model.img_in(rearrange(latent, "B C (h p) (w q) -> B (h w) (C p q)", p=patch, q=patch))
        moment = model._compute_timestep_embedding(time, dtype=values.dtype)
        if self.size_conditioning is not None:
            moment = moment + self.size_conditioning(size).to(moment.dtype)
        tokens = Tokens(values, self._rotary(grid, latent.device), grid)

        def run(block: nn.Module, now: Tokens) -> Tensor:
            return self._run(block, now, text, moment, captions)

        tokens = walk_blocks(model.blocks, tokens, steps, run)
        patches = model.final_layer(tokens.values, moment)
        return rearrange(patches, "B (h w) (C p q) -> B C (h p) (w q)", h=grid[0], p=patch, q=patch)

    def _read(self, state: Tensor, mask: Tensor) -> tuple[TrimmedCaptions, Tensor | CaptionHeads]:
        """The captions without their padding, and what the blocks get of them."""
        known = self._memory.find(state, mask) if self._memory is not None else None
        if known is not None:
            return known
        captions = TrimmedCaptions(state, mask)
        text = self.model.txt_in(captions.state)
        return captions, text if self._memory is None else self._memory.keep(state, mask, captions, text)

    def _run(self, block: Any, tokens: Tokens, text: Any, moment: Tensor, captions: TrimmedCaptions) -> Tensor:
        packs = isinstance(block.attention.processor, PackedProcessor)
        mask = captions.packed(tokens.values.shape[1]) if packs else captions.mask
        if torch.is_grad_enabled() and self.model.gradient_checkpointing:
            inputs = (tokens.values, text, moment, tokens.rotary, mask)
            return self.model._gradient_checkpointing_func(block.__call__, *inputs)
        return block(
            hidden_states=tokens.values,
            encoder_hidden_states=text,
            temb=moment,
            image_rotary_emb=tokens.rotary,
            attention_mask=mask,
        )

    def _rotary(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Rotation (1, 1, N, ...) of each token by its row and column."""
        if self._memory is not None and grid in self._memory.rotary:
            return self._memory.rotary[grid]
        places = torch.cartesian_prod(*(torch.arange(size, dtype=torch.float32, device=device) for size in grid))
        rotary = self.model.pe_embedder(places[None])
        if self._memory is not None:
            self._memory.rotary[grid] = rotary
        return rotary


class UNetDenoiser(Denoiser):
    """The convolutional network of latent diffusion (2112.10752) with attention to the caption, the baseline.

    The output layer starts at zero, as in DDPM's code; diffusers leaves it random.

    Args:
        in_channels: C of the latents.
        context_dim: D of the caption states.
        block_channels: Channels at each resolution, from fine to coarse; the latents halve between them.
        layers_per_block: Residual blocks at each resolution.
        num_heads: K, the same everywhere (diffusers' config calls it attention_head_dim).
        attention: At which resolutions the network attends; None attends at all.
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

    def forward(
        self,
        latent: Tensor,
        time: Tensor,
        caption_state: Tensor,
        caption_mask: Tensor,
        steps: Sequence[BlockStep] = (),
    ) -> Tensor:
        """Predict; see Denoiser for the shapes."""
        if steps:
            raise UserError("a U-Net has no row of equal blocks to work between: use a PRXDenoiser, or no technique")
        missing = -caption_state.shape[1] % KEY_ALIGNMENT
        if torch.is_autocast_enabled(latent.device.type):
            # The model derives the mask's type from the latent's; kernels want it to be that of the autocast keys.
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
