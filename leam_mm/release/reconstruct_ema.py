"""Compute the weight average of a finished generator for another width than those that were kept in training.

python -m leam_mm.release.reconstruct_ema --run runs/quickstart/generator --widths 0.03 0.075 0.15
python evaluate.py --config configs/evaluate_quickstart.yaml --generator \
    runs/quickstart/generator/reconstructed/width-0.075.ckpt

It is computed from the snapshots of callbacks/ema_snapshots.py. The result is a checkpoint without an optimizer, which
evaluate.py and the release accept like any other.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from torch import Tensor

from leam_mm.callbacks.ema_snapshots import Snapshot, read_snapshots
from leam_mm.checkpoint import EVIDENCE, AtomicCheckpointIO, checkpoint_config, load_module, read_checkpoint
from leam_mm.command_line import parse_settings
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.errors import UserError, run
from leam_mm.files import file_sha256
from leam_mm.optim.power_ema import combination, gamma_of
from leam_mm.recorded_classes import trust_modules

MAX_ERROR = 0.05  # relative distance to the wanted profile above which there is a warning
NETWORK, AVERAGE = "denoiser.", "ema."  # in the names of a generator's checkpoint
KEPT = ("epoch", "global_step", "pytorch-lightning_version")
log = logging.getLogger(__name__)


def combine(
    snapshots: list[tuple[Path, Snapshot]], coefficients: np.ndarray, like: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the weighted sum of all averages, one parameter at a time, in float64.

    Args:
        snapshots: Files with their contents.
        coefficients: One for each width of each snapshot, in this order.
        like: Names, shapes and types of the parameters.
    """
    files = [safe_open(path, framework="pt") for path, _ in snapshots]
    parts = [
        (file, number) for file, (_, held) in zip(files, snapshots, strict=True) for number in range(len(held.widths))
    ]
    combined = {}
    for name, weight in like.items():
        total = torch.zeros(weight.shape, dtype=torch.float64)
        for (file, number), share in zip(parts, coefficients, strict=True):
            total.add_(file.get_tensor(f"{number}.{name}").double(), alpha=float(share))
        combined[name] = total.to(weight.dtype)
    return combined


def check_names(snapshots: list[tuple[Path, Snapshot]], like: dict[str, Tensor]) -> None:
    """Check that each file holds these parameters in these shapes for each of its widths.

    Raises:
        UserError: The snapshots are those of another network.
    """
    for path, snapshot in snapshots:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        wanted = {f"{n}.{name}": tuple(w.shape) for n in range(len(snapshot.widths)) for name, w in like.items()}
        if found != wanted:
            other = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
            raise UserError(
                f"{path} does not fit the network of the checkpoint ({other[0]} is missing or has another shape): "
                "remove the snapshots of other runs"
            )


def reconstruct(
    checkpoint: dict[str, Any], like: dict[str, Tensor], snapshots: list[tuple[Path, Snapshot]], width: float
) -> tuple[dict[str, Any], float]:
    """Return a checkpoint with the average of this width at the last snapshot.

    Args:
        checkpoint: Checkpoint of the same run, for the config and the rest of the state.
        like: The denoiser's parameters; its buffers keep their last values.
        snapshots: All snapshots, the oldest first.
        width: sigma_rel.

    Returns:
        The checkpoint, and the distance between the combined and the wanted profile over the norm of the latter.
    """
    state = checkpoint["state_dict"]
    last = snapshots[-1][1]
    averages = [(held.updates, gamma_of(kept)) for _, held in snapshots for kept in held.widths]
    times, gammas = zip(*averages, strict=True)
    shares, error = combination(times, gammas, last.updates, gamma_of(width))
    combined = {f"{NETWORK}{name}": value for name, value in combine(snapshots, shares, like).items()}
    config = checkpoint_config(checkpoint)
    config["model"]["init_args"]["ema"] = None
    header = (
        f"# The denoiser's weights are an average with the power-function profile of width {width:g} over\n"
        f"# {last.updates} updates, put together from {len(snapshots)} snapshots; no other average is kept.\n"
    )
    evidence = {
        **checkpoint[EVIDENCE],
        "config": header + yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        "samples_seen": last.samples,
        "reconstructed": {
            "width": width,
            "updates": last.updates,
            "profile_error": error,
            "snapshots": {path.name: file_sha256(path) for path, _ in snapshots},
        },
    }
    weights = {name: combined.get(name, value) for name, value in state.items() if not name.startswith(AVERAGE)}
    energy = {key: value for key, value in checkpoint.get("callbacks", {}).items() if key == "EnergyRecord"}
    kept = {key: checkpoint[key] for key in KEPT if key in checkpoint}
    return {"state_dict": weights, EVIDENCE: evidence, "callbacks": energy, **kept}, error


@dataclass(frozen=True)
class AverageSettings:
    """Settings of the program.

    Args:
        run: Run folder with checkpoint and ema_snapshots.
        widths: sigma_rel of the averages, each in (0, 0.2886].
        output: Folder of the checkpoints; by default RUN/reconstructed.
        samples: End of the average in samples; by default the last snapshot.
        trust: Modules of your own that the checkpoint may name, between commas.
    """

    run: Path
    widths: list[float]
    output: Path | None = None
    samples: int | None = None
    trust: str = ""


def main(arguments: list[str] | None = None) -> list[Path]:
    """Run the program."""
    settings = parse_settings(AverageSettings, __doc__, arguments, program="python -m leam_mm.release.reconstruct_ema")
    trust_modules(settings.trust)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return reconstruct_widths(settings)


def reconstruct_widths(settings: AverageSettings) -> list[Path]:
    """Write a checkpoint for each width, print a table, and return the files."""
    checkpoint, module = read_checkpoint(settings.run), load_module(settings.run, LatentDiffusionModule)
    like = {name: value.detach() for name, value in module.denoiser.named_parameters()}
    seen = checkpoint[EVIDENCE].get("samples_seen")
    end = settings.samples if settings.samples is not None else seen
    # A killed run may have written a snapshot after its last checkpoint.
    snapshots = [(path, held) for path, held in read_snapshots(settings.run) if end is None or held.samples <= end]
    if not snapshots or (settings.samples is not None and snapshots[-1][1].samples != settings.samples):
        found = [held.samples for _, held in read_snapshots(settings.run)]
        raise UserError(f"{settings.run} has no snapshot at sample {end}: give one of {found} as --samples")
    check_names(snapshots, like)
    output = settings.output or settings.run / "reconstructed"
    table, console, written = Table("width", "snapshots", "error of the profile", "checkpoint"), Console(), []
    for width in settings.widths:
        made, error = reconstruct(checkpoint, like, snapshots, width)
        path = output / f"width-{width:g}.ckpt"
        AtomicCheckpointIO().save_checkpoint(made, path)
        written.append(path)
        table.add_row(f"{width:g}", str(len(snapshots)), f"{error:.2%}", str(path))
        if error > MAX_ERROR:
            log.warning(
                "width %g: the profile has an error of %.1f %%; keep more snapshots, or give a width closer to "
                "those kept in training", width, 100 * error,
            )  # fmt: skip
    console.print(table)
    return written


if __name__ == "__main__":
    run(main)
