"""Few-shot classification: a linear probe on a few training images of each class, for several draws of them."""

from collections.abc import Sequence

import numpy
import torch

from leam_mm.evaluators.evaluator import Metric
from leam_mm.evaluators.linear_probe import UNCHOSEN, fit_probe, ranks
from leam_mm.evaluators.probe_data import ProbeData
from leam_mm.intervals.effective_interval import mean_of_draws


def draw_shots(data: ProbeData, shots: int, seed: int) -> numpy.ndarray | None:
    """Return the rows of `shots` different training images of each class; None if a class has fewer.

    Args:
        data: Training and test images; only the training ones are used.
        shots: Images of each class.
        seed: Seed of the draw.
    """
    generator = numpy.random.default_rng([seed, shots])
    digests, rows = numpy.array(data.train_digests), []
    for own in range(len(data.classes)):
        members = numpy.flatnonzero(data.train_label == own)
        _, first = numpy.unique(digests[members], return_index=True)
        if len(first) < shots:
            return None
        rows.append(generator.choice(members[first], shots, replace=False))
    return numpy.concatenate(rows)


def few_shot(
    name: str, data: ProbeData, shots: Sequence[int], seeds: int, device: torch.device | None = None
) -> list[Metric]:
    """Measure top-1 for each number of shots: the mean over draws, with an interval over draws and test images.

    The strength of the regularisation is fixed: a few images cannot choose it, and more images would be more shots.

    Args:
        name: Prefix of the metrics' names.
        data: Training and test images.
        shots: Numbers of training images of each class.
        seeds: Number of draws.
        device: Device of the products.
    """
    metrics = []
    for count in shots:
        hits = []
        for seed in range(seeds):
            rows = draw_shots(data, count, seed)
            if rows is None:
                break
            probe = fit_probe(data.train[rows], data.train_label[rows], len(data.classes), UNCHOSEN, device)
            hits.append((ranks(probe, data.test, data.test_label)[0] == 0).numpy())
        title, unit = f"{name}/{count}_shots/top1", "fraction"
        if len(hits) < seeds:
            note = f"a class has fewer than {count} different training images; {data.note}"
            metrics.append(Metric(title, None, None, None, unit, 0, note=note))
            continue
        value, low, high = mean_of_draws(numpy.stack(hits, axis=1).astype(float))
        note = (
            f"chance {1 / len(data.classes):.2%} with {len(data.classes)} classes; mean of {seeds} draws, interval "
            f"over draws and test images; regularisation {UNCHOSEN:g}, fixed; {data.note}"
        )
        slices = {"by_draw": [round(float(draw.mean()), 6) for draw in hits]}
        metrics.append(Metric(title, value, low, high, unit, len(data.test), slices, note))
    return metrics
