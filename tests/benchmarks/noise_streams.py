"""Noise and times of a batch: Philox 4x32-10 for all samples at once against numpy's generator, one for each sample.

The second is how runs drew before, and how they resume if they began so (leam_mm/data/random_stream.py). The cases: two
batches of latents; the quickstart's, where the number of operations counts and not their speed; and one uniform number
a sample, as times and dropped captions take.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
from scipy import stats
from torch import Tensor

from leam_mm.data.random_stream import NumpyStream, PhiloxStream, RandomStream
from leam_mm.errors import run

SEED = 0
COMPARED = 200_000  # numbers of each side whose distributions are compared
# Name of the result, samples, shape of one; no shape is one uniform number. How often in one repeat.
CASES: tuple[tuple[str, int, tuple[int, ...], int], ...] = (
    ("noise_streams", 256, (4, 32, 32), 2),
    ("noise_streams_large", 256, (16, 64, 64), 1),
    ("noise_streams_quickstart", 64, (16, 4, 4), 50),
    ("noise_streams_times", 256, (), 20),
)


def check(ours: Tensor, theirs: Tensor) -> dict[str, Any]:
    """Compare the distributions of two draws, whose seeds are fixed."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype or ours.device != theirs.device:
        return measure.require_same("shape, type and device", 1.0, 0.0)
    count = min(COMPARED, ours.numel())
    left, right = (side.flatten()[:count].cpu().numpy() for side in (ours, theirs))
    limit = 1.95 * (2 / count) ** 0.5  # exceeded once in a thousand pairs of equal distributions
    return measure.require_same(
        "Kolmogorov-Smirnov distance of both", float(stats.ks_2samp(left, right).statistic), limit
    )


def compare(name: str, samples: int, shape: tuple[int, ...], times: int, settings: Any) -> Path:
    """Check that both draw the same distribution, then time them."""
    index = torch.arange(samples, device=settings.device)

    def draws(stream: RandomStream) -> Callable[[], Tensor]:
        def draw() -> Tensor:
            for _ in range(times):
                drawn = stream.normal(SEED, index, "noise", shape) if shape else stream.uniform(SEED, index, "time")
            return drawn

        return draw

    ours, theirs = draws(PhiloxStream()), draws(NumpyStream())
    same = [check(ours(), theirs())]
    found = measure.time_pairs(ours, theirs, settings.repeats, device=settings.device)
    labels, work = ("PhiloxStream", "NumpyStream"), (times * samples, "sample")
    notes = f"{samples} samples of {' x '.join(map(str, shape))} normal numbers" if shape else "one number a sample"
    return measure.write_comparison(name, labels, found, work, same, settings, notes)


@measure.benchmark(repeats=25, devices=("cpu", "cuda"))
def main(settings: measure.Settings) -> list[Path]:
    """Measure all cases."""
    return [compare(*case, settings) for case in CASES]


if __name__ == "__main__":
    run(main)
