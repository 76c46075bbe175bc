"""How exact the gradients of the contrastive loss over several ranks are, ours and open_clip's. Errors, not times.

Towers are one matrix each, so that their gradients can be compared weight by weight. The reference is one process with
the whole batch in float64. Each rank computes the loss of its rows, and gradients are averaged over ranks as
DistributedDataParallel does.
"""

import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from rich.console import Console
from rich.table import Table
from torch import Tensor

from leam_mm.distributed import gather
from leam_mm.errors import UserError, run
from leam_mm.losses.contrastive import InfoNCE

BATCH, CHANNELS, EMBED = 24, 32, 16  # B divides by every number of ranks
RANKS = (1, 2, 3)
PARTS = ("image", "text", "scale")
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LIMIT = 1e-12  # of ours, in float64


def inputs(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs of the towers (B, CHANNELS) and the weights (CHANNELS, EMBED) with the logarithm of the scale."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(BATCH, CHANNELS, generator=generator, dtype=torch.float64)
    second = first + torch.randn(BATCH, CHANNELS, generator=generator, dtype=torch.float64)
    weights = [torch.randn(CHANNELS, EMBED, generator=generator, dtype=torch.float64) for _ in range(2)]
    weights.append(torch.tensor(math.log(1 / 0.07), dtype=torch.float64))
    return [x.to(dtype) for x in (first, second)], [w.to(dtype).requires_grad_() for w in weights]


def gradients(loss: Loss, rank: int, ranks: int, dtype: torch.dtype) -> list[Tensor]:
    """Gradients of this rank's rows."""
    data, weights = inputs(dtype)
    rows = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    image, text = (F.normalize(x[rows] @ weight, dim=-1) for x, weight in zip(data, weights[:2], strict=True))
    loss(image, text, weights[2].exp()).backward()
    return [weight.grad for weight in weights if weight.grad is not None]


def losses(rank: int, ranks: int) -> dict[str, Loss]:
    """What is compared."""
    default = ClipLoss(rank=rank, world_size=ranks)
    local = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=ranks)
    return {
        "gather + InfoNCE": lambda image, text, scale: InfoNCE()(gather(image), gather(text), scale, None),
        "ClipLoss()": default,
        "ClipLoss(local_loss=True, gather_with_grad=True)": local,
    }


def work(rank: int, ranks: int, folder: str) -> None:
    """One rank: every loss in both precisions; rank 0 writes the averaged gradients."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # open_clip calls what torch has deprecated
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{ranks}", rank=rank, world_size=ranks)
    found = {}
    for dtype in (torch.float64, torch.float32):
        for name, loss in losses(rank, ranks).items():
            averaged = gradients(loss, rank, ranks, dtype)
            for gradient in averaged:
                dist.all_reduce(gradient)
                gradient /= ranks
            found[f"{dtype}".removeprefix("torch."), name] = averaged
    if rank == 0:
        torch.save([(*key, value) for key, value in found.items()], f"{folder}/gradients{ranks}.pt")
    dist.destroy_process_group()


def main(args: list[str] | None = None) -> list[Path]:
    """Run every number of ranks, compare, write."""
    settings = measure.parse_arguments("contrastive_exactness", __doc__ or "", args, 1)
    data, weights = inputs(torch.float64)
    image, text = (F.normalize(x @ weight, dim=-1) for x, weight in zip(data, weights[:2], strict=True))
    logits = weights[2].exp() * image @ text.T
    target = torch.arange(BATCH)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    reference = torch.autograd.grad(loss, weights)
    errors: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for ranks in RANKS:
            multiprocessing.spawn(work, (ranks, folder), nprocs=ranks)
            for precision, name, found in torch.load(f"{folder}/gradients{ranks}.pt", weights_only=True):
                relative = [
                    float((gradient.double() - true).norm() / true.norm())
                    for gradient, true in zip(found, reference, strict=True)
                ]
                errors.setdefault(name, {}).setdefault(precision, {})[str(ranks)] = dict(
                    zip(PARTS, relative, strict=True)
                )
    ours_name, *peers = losses(0, 1)
    worst = max(value for per_rank in errors[ours_name]["float64"].values() for value in per_rank.values())
    if not worst <= LIMIT:
        raise UserError(f"our gradients are off by {worst:.3g} relative in float64, more than {LIMIT:g}")
    table = Table("", "precision", "ranks", *PARTS, title="relative error of the gradient")
    for name, by_precision in errors.items():
        for precision, by_ranks in by_precision.items():
            for ranks_told, parts in by_ranks.items():
                table.add_row(name, precision, ranks_told, *(f"{parts[part]:.1e}" for part in PARTS))
    content: dict[str, Any] = {
        "ours": {"label": ours_name, "relative_error": errors[ours_name]},
        "peer": {name: {"relative_error": errors[name]} for name in peers},
        "ratio": None,
        "ratio_means": "not measured: these are errors, not times",
        "same_work": [
            {"compared": "ours against one process in float64, relative", "difference": worst, "limit": LIMIT}
        ],
        "notes": (
            f"batch {BATCH} over 1, 2 and 3 gloo ranks, gradients averaged over ranks; an error of 1 - 1/ranks "
            "is the right direction, too short by the number of ranks: Adam hides that, clipping and SGD do not"
        ),
    }
    path = measure.write_json("contrastive_exactness", content, settings)
    Console().print(table)
    print(f"wrote {path}\n")
    return [path]


if __name__ == "__main__":
    run(main)
