"""One update of the averaged weights: our Ema against diffusers' EMAModel, as published and with foreach=True."""

from pathlib import Path

import measure
import torch
from diffusers.training_utils import EMAModel

from leam_mm.errors import run
from leam_mm.models.denoiser import PRXDenoiser
from leam_mm.training.ema import Ema

DECAY = 0.9999
UPDATES = 5  # in one repeat


def compare(name: str, foreach: bool, settings: measure.argparse.Namespace) -> Path:
    """Check the averages after a few updates, then time both."""
    torch.manual_seed(0)
    model = PRXDenoiser(16, 512, hidden_size=384, depth=11, num_heads=6).to(settings.device)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ours, theirs = Ema(model, DECAY), EMAModel(model.parameters(), decay=DECAY, foreach=foreach)
    for number in range(4):
        ours.update(model)
        theirs.step(model.parameters())
        if number == 0:  # theirs copies at the first update, ours mixes: the weights have not moved yet, so both agree
            continue
        with torch.no_grad():
            for weight in weights:
                weight.add_(torch.randn_like(weight), alpha=0.01)
    pairs = zip(ours.model.parameters(), theirs.shadow_params, strict=True)
    difference = max(float((mine - shadow).abs().max()) for mine, shadow in pairs)
    moved = max(
        float((mine - weight).abs().max()) for mine, weight in zip(ours.model.parameters(), weights, strict=True)
    )
    same = [measure.require_same("averaged weights after four updates, absolute", difference, 1e-6)]
    same[0]["distance_from_weights"] = moved

    def update_ours() -> None:
        for _ in range(UPDATES):
            ours.update(model)

    def update_theirs() -> None:
        for _ in range(UPDATES):
            theirs.step(model.parameters())

    found = measure.time_pairs(update_ours, update_theirs, settings.repeats, device=settings.device)
    count = sum(weight.numel() for weight in weights)
    labels = ("Ema", f"EMAModel(foreach={foreach})")
    notes = f"{count / 1e6:.1f} M weights in {len(weights)} tensors, float32"
    return measure.write_comparison(name, labels, found, (UPDATES, "update"), same, settings, notes)


def main(args: list[str] | None = None) -> list[Path]:
    """Measure against both of diffusers' ways."""
    settings = measure.parse_arguments("ema_update", __doc__ or "", args, 15)
    return [compare("ema_update", False, settings), compare("ema_update_foreach", True, settings)]


if __name__ == "__main__":
    run(main)
