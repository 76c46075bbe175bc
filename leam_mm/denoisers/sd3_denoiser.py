"""Stable Diffusion 3's transformer from diffusers: blocks over image and caption tokens together."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from einops import rearrange
from torch import Tensor, nn

from leam_mm.denoisers.attention_processors import JointProcessor
from leam_mm.denoisers.block_step import BlockStep, Tokens, run_blocks
from leam_mm.denoisers.caption_packing import TrimmedCaptions
from leam_mm.denoisers.denoiser import SCHEDULER_STEPS, Denoiser, check_latent
from leam_mm.errors import UserError


class SD3Denoiser(Denoiser):
    """MMDiT (Esser et al., 2403.03206): image and caption tokens have separate weights and attend to each other.

    Unlike diffusers' attention of this model, ours masks the padding of captions. The pooled caption, which the paper
    takes from CLIP, is the state of the last real token (CLIP's end token, before its projection). The gates of the
    blocks and the output layer start at zero, as in DiT (section 3.2 of 2212.09748); diffusers leaves them random.

    A StableDiffusion3Pipeline, which encodes captions with two CLIPs and a T5, cannot sample from it; a released one is
    sampled by a PRXPipeline (release/diffusers_folder.py).

    Args:
        in_channels: C of the latents.
        context_dim: D of the caption states.
        hidden_size: E, a multiple of num_heads.
        depth: Number of blocks.
        num_heads: K.
        patch_size: Latent positions per side of a token.
        latent_size: h = w of latents whose neighbouring tokens are one step of the sine positions apart.
        largest_size: Largest h or w of latents; positions are cut from the middle of a square of this size.
        qk_norm: Normalise queries and keys (section 5.3.2 of the paper), which keeps half precision finite.
        gradient_checkpointing: Recompute the blocks in the backward pass: less memory, a third more time.
    """

    def __init__(
        self,
        in_channels: int,
        context_dim: int,
        hidden_size: int = 256,
        depth: int = 6,
        num_heads: int = 4,
        patch_size: int = 2,
        latent_size: int = 32,
        largest_size: int = 128,
        qk_norm: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        """See the class for the arguments."""
        if hidden_size % num_heads or hidden_size % 4:
            raise UserError(
                f"SD3Denoiser: hidden_size {hidden_size} must be a multiple of num_heads {num_heads} and of 4"
            )
        model: Any = SD3Transformer2DModel(
            sample_size=latent_size,
            patch_size=patch_size,
            in_channels=in_channels,
            out_channels=in_channels,
            num_layers=depth,
            attention_head_dim=hidden_size // num_heads,
            num_attention_heads=num_heads,
            joint_attention_dim=context_dim,
            caption_projection_dim=hidden_size,
            pooled_projection_dim=context_dim,
            pos_embed_max_size=largest_size // patch_size,
            qk_norm="rms_norm" if qk_norm else None,
        )
        modulations = [norm.linear for block in model.transformer_blocks for norm in (block.norm1, block.norm1_context)]
        for layer in (*modulations, model.norm_out.linear, model.proj_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        model.set_attn_processor(JointProcessor())
        if gradient_checkpointing:
            model.enable_gradient_checkpointing()
        super().__init__(model, in_channels, context_dim, patch_size)
        self.largest_size = largest_size

    @classmethod
    def from_model(cls, model: Any) -> "SD3Denoiser":
        """Return a denoiser around a trained SD3Transformer2DModel, whose attention is replaced by a masked one."""
        size = model.config
        if size.pooled_projection_dim != size.joint_attention_dim:
            raise UserError(
                f"this SD3Transformer2DModel takes pooled captions of {size.pooled_projection_dim} channels and states "
                f"of {size.joint_attention_dim}: give one that an SD3Denoiser trained, where both are equal"
            )
        denoiser = cls.__new__(cls)
        Denoiser.__init__(denoiser, model, size.in_channels, size.joint_attention_dim, size.patch_size)
        model.set_attn_processor(JointProcessor())
        denoiser.largest_size = size.pos_embed_max_size * size.patch_size
        return denoiser

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.model.transformer_blocks)

    @property
    def width(self) -> int:
        """E of the image tokens."""
        return self.model.inner_dim

    def forward(
        self,
        latent: Tensor,
        time: Tensor,
        caption_state: Tensor,
        caption_mask: Tensor,
        block_steps: Sequence[BlockStep] = (),
        size: Tensor | None = None,
    ) -> Tensor:
        """Predict as SD3Transformer2DModel.forward does, from its layers; see Denoiser for the arguments.

        Block steps see the image tokens alone.
        """
        check_latent(latent, self.patch_size)
        model, patch = self.model, self.patch_size
        if max(latent.shape[2:]) > self.largest_size:
            raise UserError(
                f"latents of {latent.shape[2]} x {latent.shape[3]} are larger than the denoiser's largest_size "
                f"{self.largest_size}: raise it before training"
            )
        grid = latent.shape[2] // patch, latent.shape[3] // patch
        captions = TrimmedCaptions(caption_state, caption_mask)
        tokens = Tokens(model.pos_embed(latent).contiguous(), None, grid)
        time_embedding = model.time_text_embed(time * SCHEDULER_STEPS, pool(caption_state, caption_mask))
        text = model.context_embedder(captions.state)

        def run(block: nn.Module, current: Tokens) -> Tensor:
            nonlocal text  # the stream of caption tokens
            text, values = self._run(block, current.values, text, time_embedding, captions.mask)
            return values

        tokens = run_blocks(model.transformer_blocks, tokens, block_steps, run)
        patches = model.proj_out(model.norm_out(tokens.values, time_embedding))
        return rearrange(patches, "B (h w) (p q C) -> B C (h p) (w q)", h=grid[0], p=patch, q=patch)

    def _run(
        self, block: nn.Module, values: Tensor, text: Tensor, time_embedding: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        masking = {"attention_mask": mask}
        if torch.is_grad_enabled() and self.model.gradient_checkpointing:
            return self.model._gradient_checkpointing_func(block.__call__, values, text, time_embedding, masking)
        return block(
            hidden_states=values, encoder_hidden_states=text, temb=time_embedding, joint_attention_kwargs=masking
        )


def pool(state: Tensor, mask: Tensor) -> Tensor:
    """Return the state (B, D) of the last real token of each caption; zeros if a caption has none.

    Args:
        state: (B, L, D).
        mask: (B, L) bool.
    """
    mask = mask.to(state.device)
    last = torch.arange(1, mask.shape[1] + 1, device=mask.device) * mask
    chosen = state[torch.arange(state.shape[0], device=state.device), last.argmax(1)]
    return torch.where(mask.any(1)[:, None], chosen, 0.0)
