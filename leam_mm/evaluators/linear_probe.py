"""Linear probe: L2-regularised logistic regression on frozen embeddings (Radford et al. 2103.00020, appendix A.3).

The strength of the regularisation is chosen on a part of the training images, then all of them are used. Test images
are read after that, and only to count hits.
"""

import logging
from dataclasses import dataclass

import numpy
import torch
from scipy.optimize import minimize
from torch import Tensor

from leam_mm.evaluators.evaluator import Metric
from leam_mm.evaluators.probe_data import ProbeData, validation_rows
from leam_mm.evaluators.zero_shot import confusion_table, confusions
from leam_mm.intervals.effective_interval import mean_of_classes
from leam_mm.intervals.intervals import wilson_interval
from leam_mm.intervals.outcomes import write_outcomes

log = logging.getLogger(__name__)

STRENGTHS = tuple(10.0**power for power in range(0, -8, -1))  # strongest first
UNCHOSEN = 1e-4  # where training images are too few to choose; embeddings have length 1
ROWS = 65536  # of logits at a time
STEPS = 1000


@dataclass(frozen=True)
class Probe:
    """A fitted linear classifier.

    Args:
        weight: (D + 1, C) float64; the last row is the bias.
        strength: Factor of half the squared norm of the weights beside the mean cross-entropy.
        converged: Whether the optimiser reached its tolerance.
    """

    weight: Tensor
    strength: float
    converged: bool

    def logits(self, embedding: numpy.ndarray) -> Tensor:
        """Return (B, C) float64 for (B, D) embeddings."""
        return torch.from_numpy(embedding).to(self.weight) @ self.weight[:-1] + self.weight[-1]


def fit_probe(
    embedding: numpy.ndarray,
    label: numpy.ndarray,
    classes: int,
    strength: float,
    device: torch.device | None = None,
    start: Probe | None = None,
) -> Probe:
    """Minimise mean cross-entropy + strength / 2 * |W|^2 by L-BFGS in float64; the bias is not regularised.

    Args:
        embedding: (N, D) float64.
        label: (N,) classes from 0.
        classes: C.
        strength: Regularisation, more than 0.
        device: Where products are computed; None is the CPU.
        start: Where to start; the minimum does not depend on it.
    """
    device = device or torch.device("cpu")
    features = torch.from_numpy(numpy.ascontiguousarray(embedding)).to(device)
    target = torch.from_numpy(numpy.ascontiguousarray(label)).to(device)
    shape = (features.shape[1] + 1, classes)

    def loss(flat: numpy.ndarray) -> tuple[float, numpy.ndarray]:
        weight = torch.from_numpy(flat).view(shape).to(device)
        gradient = torch.zeros_like(weight)
        gradient[:-1] = strength * weight[:-1]
        value = strength / 2 * float(weight[:-1].square().sum())
        for part in range(0, len(features), ROWS):
            own, rows = target[part : part + ROWS], features[part : part + ROWS]
            log_share = torch.log_softmax(rows @ weight[:-1] + weight[-1], dim=1)
            value -= float(log_share.gather(1, own[:, None]).sum()) / len(features)
            error = log_share.exp_()
            error[torch.arange(len(own), device=device), own] -= 1
            gradient[:-1] += rows.T @ error / len(features)
            gradient[-1] += error.sum(dim=0) / len(features)
        return value, gradient.flatten().cpu().numpy()

    first = numpy.zeros(shape[0] * shape[1]) if start is None else start.weight.flatten().cpu().numpy()
    found = minimize(loss, first, jac=True, method="L-BFGS-B", options={"maxiter": STEPS, "gtol": 1e-7, "ftol": 1e-13})
    return Probe(torch.from_numpy(found.x.copy()).view(shape).to(device), strength, bool(found.success))


def choose_strength(data: ProbeData, device: torch.device | None = None) -> tuple[float, str]:
    """Return the strength with the most hits on the validation part of the training images, and how it was chosen.

    Among equal ones the strongest is taken.
    """
    held = validation_rows(data.train_digests, data.train_label)
    if not held.any():
        return UNCHOSEN, f"regularisation {UNCHOSEN:g}, not chosen: no class has two training images"
    best, most, probe = UNCHOSEN, -1, None
    for strength in STRENGTHS:
        probe = fit_probe(data.train[~held], data.train_label[~held], len(data.classes), strength, device, probe)
        hits = int((ranks(probe, data.train[held], data.train_label[held])[0] == 0).sum())
        if hits > most:
            best, most = strength, hits
    edge = ", the end of the range" if best in (STRENGTHS[0], STRENGTHS[-1]) else ""
    return best, f"regularisation {best:g}{edge}, chosen on {int(held.sum())} of {len(held)} training images"


def ranks(probe: Probe, embedding: numpy.ndarray, label: numpy.ndarray) -> tuple[Tensor, Tensor]:
    """Return (B,) number of wrong classes that score at least as high as the right one, and (B,) the class chosen."""
    rank, chosen = [], []
    for part in range(0, len(embedding), ROWS):
        logits = probe.logits(embedding[part : part + ROWS])
        own = torch.from_numpy(label[part : part + ROWS]).to(logits.device)[:, None]
        best = logits.gather(1, own)
        rank.append((logits >= best).sum(dim=1).cpu() - 1)
        wrong = logits.scatter(1, own, -torch.inf).argmax(dim=1)
        chosen.append(torch.where(rank[-1].to(wrong.device) > 0, wrong, own[:, 0]).cpu())
    return torch.cat(rank), torch.cat(chosen)


def linear_probe(name: str, data: ProbeData, device: torch.device | None = None) -> list[Metric]:
    """Measure top-1, top-5 and the mean over classes.

    Args:
        name: Prefix of the metrics' names.
        data: Training and test images.
        device: Device of the products.
    """
    strength, how = choose_strength(data, device)
    probe = fit_probe(data.train, data.train_label, len(data.classes), strength, device)
    if not probe.converged:
        how += f"; the optimiser stopped after {STEPS} steps"
        log.warning("linear probe: the optimiser stopped before its tolerance")
    rank, chosen = ranks(probe, data.test, data.test_label)
    note = f"{how}; {data.note}; the interval is over test images"
    return probe_metrics(name, rank, chosen, data, note)


def probe_metrics(name: str, rank: Tensor, chosen: Tensor, data: ProbeData, note: str) -> list[Metric]:
    """Return `name/top1`, `name/top5` (of more than five classes) and `name/mean_per_class`."""
    target, ids, metrics = torch.from_numpy(data.test_label), list(data.classes), []
    for top in (1, 5):
        if len(ids) <= top:
            continue
        hits = (rank < top).numpy()
        low, high = wilson_interval(int(hits.sum()), len(hits))
        slices = {"confusions": confusions(target, chosen, rank, ids), **confusion_table(target, chosen, rank, ids)}
        text = f"chance {top / len(ids):.2%} with {len(ids)} classes; {note}"
        outcomes = write_outcomes(hits, data.test_keys)
        metrics.append(
            Metric(f"{name}/top{top}", float(hits.mean()), low, high, "fraction", len(hits), slices if top == 1 else {},
                   text, outcomes)
        )  # fmt: skip
    value, low, high = mean_of_classes((rank < 1).double().numpy(), data.test_label)
    text = f"mean over classes of top-1; chance {1 / len(ids):.2%} with {len(ids)} classes; {note}"
    return [*metrics, Metric(f"{name}/mean_per_class", value, low, high, "fraction", len(rank), note=text)]
