"""Exact intervals of rates of rare events."""

from typing import Any

from scipy.stats import binomtest


def rate_interval(hits: int, samples: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate by Clopper and Pearson (1934), which never covers less.

    Args:
        hits: Number of events, 0 <= hits <= samples.
        samples: Number of independent trials; with 0 nothing is known.
    """
    if samples == 0:
        return 0.0, 1.0
    interval = binomtest(hits, samples).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)


def rate_slice(hits: int, samples: int) -> dict[str, Any]:
    """Return a rate with its interval as a slice of a result."""
    low, high = rate_interval(hits, samples)
    return {"value": hits / samples if samples else None, "low": low, "high": high, "samples": samples}
