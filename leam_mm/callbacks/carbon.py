"""Greenhouse gas of measured energy: location-based and market-based, which are never added or mixed.

Location-based: the mean of the grid that the machine draws from. Market-based: what the site buys by contract, such as
hydro power at 0 g/kWh (GHG Protocol, Scope 2 Guidance, 2015).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leam_mm.errors import UserError

JOULES_PER_KWH = 3.6e6
KINDS = ("location", "market")


@dataclass(frozen=True)
class CarbonFactors:
    """Emission factors of a site; emissions are "not given" where a factor is None.

    Args:
        grams_per_kwh: CO2 equivalents of the grid in g/kWh, location-based.
        market_grams_per_kwh: CO2 equivalents of the site's contract in g/kWh, market-based.
        pue: Power usage effectiveness: energy of the site over energy of its computers, at least 1. Without it, cooling
            and losses are left out.
        source: Where the numbers come from, with a date.

    Raises:
        UserError: A number is out of range.
    """

    grams_per_kwh: float | None = None
    market_grams_per_kwh: float | None = None
    pue: float | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, low, high in (("grams_per_kwh", 0, 5000), ("market_grams_per_kwh", 0, 5000), ("pue", 1, 5)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and low <= value <= high):
                raise UserError(f"energy.{name}: {value} is not a number between {low} and {high}; correct the recipe")

    def emitted(self, joules: float | None) -> dict[str, Any]:
        """Return the record of the emissions of an energy.

        Args:
            joules: Energy of the computers; None where it was not measured.

        Returns:
            ``location_grams`` and ``market_grams`` (None without energy or factor), the joules that each stands for as
            ``location_joules`` and ``market_joules``, and the factors.
        """
        record: dict[str, Any] = {
            "grams_per_kwh": self.grams_per_kwh, "market_grams_per_kwh": self.market_grams_per_kwh,
            "pue": self.pue, "carbon_source": self.source,
        }  # fmt: skip
        for kind, factor in zip(KINDS, (self.grams_per_kwh, self.market_grams_per_kwh), strict=True):
            known = factor is not None and joules is not None
            grams = joules / JOULES_PER_KWH * (self.pue or 1.0) * factor if known else None  # type: ignore[operator]
            record |= {f"{kind}_grams": grams, f"{kind}_joules": joules if known else None}
        return record


def add(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the emissions of two parts of a run, each with its own factors; the factors shown are the later ones."""
    total = dict(now)
    for key in (f"{kind}_{unit}" for kind in KINDS for unit in ("grams", "joules")):
        parts = [part[key] for part in (earlier, now) if part.get(key) is not None]
        total[key] = sum(parts) if parts else None
    for key in ("grams_per_kwh", "market_grams_per_kwh", "pue", "carbon_source"):
        total[key] = earlier.get(key) if now.get(key) is None else now[key]
    return total
