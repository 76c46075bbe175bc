"""Forward of open_clip's vision transformer with images of any size and patch dropout per sample.

Embeddings without dropout at the stored size equal those of open_clip. Position embeddings for other sizes are
interpolated from the stored grid, as open_clip does when it loads weights at another size. The dropped tokens depend
only on the sample index, so they are the same for any rank, part of a batch or restart.
"""

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from leam_mm.encoders.token_layout import ImageTokens, PooledBlock, enable_layouts
from leam_mm.errors import UserError

# SplitMix64 constants (Steele et al. 2014) as signed integers, because torch has no unsigned arithmetic.
GOLDEN, FIRST, SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def image_tokens(tower: VisionTransformer, image: Tensor, sample_index: Tensor | None, dropout: float) -> Tensor:
    """Return the input tokens of the transformer: (B, 3, H, W) -> (B, 1 + tokens, E).

    Args:
        tower: Vision transformer of open_clip.
        image: Normalised images (B, 3, H, W); H and W are multiples of the patch size.
        sample_index: (B,) index of each sample in the run, which selects the dropped tokens; None draws it from the
            global random number generator, as open_clip does.
        dropout: Share of tokens dropped, in [0, 1).
    """
    kernels = tower.conv1(image)  # (B, E, h, w)
    tokens = kernels.flatten(2).transpose(1, 2)
    positions = resize_positions(tower.positional_embedding, tower.grid_size, (kernels.shape[2], kernels.shape[3]))
    positions = positions.to(tokens.dtype)
    first = (tower.class_embedding.to(tokens.dtype) + positions[0]).expand(len(tokens), 1, -1)
    tokens = tokens + positions[1:]
    if dropout:
        index = torch.randint(1 << 62, (len(tokens),)).to(tokens.device) if sample_index is None else sample_index
        kept = kept_tokens(index, tokens.shape[1], dropout)
        tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
    return tower.ln_pre(torch.cat([first, tokens], dim=1))


def image_features(tower: VisionTransformer, image: Tensor, sample_index: Tensor | None, dropout: float) -> Tensor:
    """Return features of images of any size: (B, 3, H, W) -> (B, D). For the arguments see ``image_tokens``."""
    pooled = isinstance(tower.transformer.resblocks[-1], PooledBlock)
    tokens = image_tokens(tower, image, sample_index, dropout)
    states = tower.transformer(tokens, attn_mask=ImageTokens() if pooled else None)
    return tower._pool(states)[0] @ tower.proj


def skip_unread_tokens(tower: nn.Module) -> None:
    """Let the last block of a vision transformer that pools its class token compute that token only."""
    if isinstance(tower, VisionTransformer) and tower.pool_type == "tok" and tower.attn_pool is None:
        enable_layouts(tower.transformer, pooled=True)


@torch.no_grad()
def check_size(tower: nn.Module, size: int) -> None:
    """Raise UserError if a tower cannot take images of ``size`` x ``size`` pixels, before training starts."""
    if isinstance(tower, VisionTransformer):
        if size % tower.patch_size[0]:
            raise UserError(
                f"images of {size} x {size} pixels are not a multiple of the patch size {tower.patch_size[0]}: "
                "choose other sizes in data.init_args.stages"
            )
        return
    modes = [layer for layer in tower.modules() if layer.training]
    weight = next(tower.parameters())
    try:
        tower.eval()(torch.zeros(1, 3, size, size, device=weight.device, dtype=weight.dtype))
    except Exception as error:  # timm towers raise many types
        raise UserError(
            f"{type(tower).__name__} cannot take images of {size} x {size} pixels ({str(error).splitlines()[:1]}): "
            "choose other sizes in data.init_args.stages"
        ) from None
    finally:
        for layer in modes:
            layer.training = True


def resize_positions(table: Tensor, stored: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Return position embeddings interpolated (bicubic) to another grid; that of the class token does not change.

    Args:
        table: Position embeddings (1 + h w, E).
        stored: Grid (h, w) of the table, in patches.
        wanted: Grid of the image, in patches.
    """
    if stored == wanted:
        return table
    grid = table[1:].float().unflatten(0, stored).permute(2, 0, 1)[None]  # (1, E, h, w)
    grid = F.interpolate(grid, wanted, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:1], grid[0].flatten(1).T.to(table.dtype)])


def kept_tokens(sample_index: Tensor, tokens: int, dropout: float) -> Tensor:
    """Return the indices of the kept tokens of each sample in ascending order: (B,) int64 -> (B, kept) int64.

    Their number is that of PatchDropout in open_clip (FLIP, arXiv 2212.00794). A hash of sample and token selects them.
    """
    number = torch.arange(tokens, device=sample_index.device)
    # Hash the sample index first: with a plain sum, neighbouring samples would share hash values.
    rank = _hash(_hash(sample_index)[:, None] + number)
    return rank.argsort(dim=1)[:, : max(1, int(tokens * (1 - dropout)))].sort(dim=1).values


def _hash(value: Tensor) -> Tensor:
    """Return the SplitMix64 hash of int64 values."""
    mixed = value * GOLDEN
    mixed = (mixed ^ _shift(mixed, 30)) * FIRST
    mixed = (mixed ^ _shift(mixed, 27)) * SECOND
    return mixed ^ _shift(mixed, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Return a logical right shift (zero fill); the shift of torch is arithmetic."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
