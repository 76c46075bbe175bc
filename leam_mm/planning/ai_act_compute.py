"""Training compute against the thresholds of the European AI Act, and what follows from each.

Not legal advice: a number of operations is one criterion among several, and the provider has to assess the rest.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["contrastive", "generator", "codec"]


@dataclass(frozen=True)
class Threshold:
    """A threshold of cumulative training compute.

    Args:
        flops: Floating-point operations.
        name: What a model above it is taken for.
        source: Where it stands.
        duties: What follows, one sentence each.
    """

    flops: float
    name: str
    source: str
    duties: tuple[str, ...]


GENERAL_PURPOSE = Threshold(
    1e23,
    "general-purpose AI model (indicative)",
    "Commission guidelines C(2025) 5045, 18 July 2025, for models that generate language, or images or video from text",
    (
        "technical documentation and information for downstream providers (Art. 53(1)(a), (b)), of which open models "
        "without systemic risk are freed",
        "a copyright policy and a public summary of the training content (Art. 53(1)(c), (d)), open models included",
    ),
)
SYSTEMIC_RISK = Threshold(
    1e25,
    "general-purpose AI model with systemic risk (presumed)",
    "Regulation (EU) 2024/1689, Art. 51(2)",
    (
        "notify the Commission within two weeks after the threshold is met or known to be met (Art. 52(1))",
        "model evaluation, mitigation of systemic risks, reports of serious incidents, cybersecurity (Art. 55)",
        "the exemption of open models ends",
    ),
)
THRESHOLDS = (GENERAL_PURPOSE, SYSTEMIC_RISK)


def compute_report(flops: float, kind: Kind, earlier: float = 0.0) -> list[str]:
    """Return lines that compare the compute of a model with the thresholds.

    Args:
        flops: Operations of the run, recomputed activations included.
        kind: What is trained.
        earlier: Operations that went into the model before: of a base model, earlier runs, or synthetic data.
    """
    total = flops + earlier
    counted = f" ({flops:.2e} of this run, {earlier:.2e} before)" if earlier else ""
    lines = [f"training compute {total:.2e} FLOP{counted}"]
    for threshold in THRESHOLDS:
        share = total / threshold.flops
        lines.append(f"{share:.2%} of {threshold.flops:.0e}, {threshold.name}: {threshold.source}")
        if share > 1:
            lines += [f"  follows: {duty}" for duty in threshold.duties]
    if kind == "contrastive" and total > GENERAL_PURPOSE.flops:
        lines.append("an encoder generates neither language nor images: the indicative criterion does not name it")
    if not earlier:
        lines.append("compute of base models, earlier runs and synthetic captions counts, too: give --earlier-flops")
    return lines
