"""Claims about the cost of large models in the papers of LEAM and in the press, weighed line by line.

The claims are quoted by their sense. Each verdict rests on the printed arithmetic.
"""

from dataclasses import dataclass
from typing import Literal

GPT3_FLOPS = 3.14e23  # 2005.14165, table D.1
V100_FLOPS = 28e12  # sustained, assumed by Lambda (2020); 22 % of the peak of 125 TFLOP/s
YEAR_HOURS = 8760


@dataclass(frozen=True)
class Claim:
    """A claim and its arithmetic.

    Args:
        text: The claim.
        verdict: ``right``, ``plausible``, ``wrong``, or ``right in part``.
        lines: Arithmetic.
    """

    text: str
    verdict: Literal["right", "plausible", "wrong", "right in part"]
    lines: tuple[str, ...]


def electricity(gpus: int, kilowatts: float, pue: float, euro_per_kwh: float) -> tuple[float, float]:
    """Return energy and cost of a year of GPUs at full time.

    Args:
        gpus: Number of GPUs.
        kilowatts: Power of one, its share of the node included.
        pue: Power usage effectiveness, at least 1.
        euro_per_kwh: Price.

    Returns:
        GWh and millions of euro.
    """
    kwh = gpus * kilowatts * YEAR_HOURS * pue
    return kwh / 1e6, kwh * euro_per_kwh / 1e6


def claims() -> list[Claim]:
    """Return the claims with their arithmetic."""
    petaflop_hours = GPT3_FLOPS / 1e15 / 3600
    years = GPT3_FLOPS / V100_FLOPS / 3600 / YEAR_HOURS
    hours = years * YEAR_HOURS
    prices = (1.5, 3.0, 6.0)
    cases = (
        ("2,000 A100 at 0.4 kW, PUE 1.1, Nordic price", *electricity(2000, 0.4, 1.1, 0.09), 0.09),
        ("2,000 A100 at 0.4 kW, PUE 1.1, mean of the EU", *electricity(2000, 0.4, 1.1, 0.19), 0.19),
        ("4,000 GH200 at 0.68 kW, PUE 1.1, Nordic price", *electricity(4000, 0.68, 1.1, 0.09), 0.09),
        ("4,000 GH200 at 0.68 kW, PUE 1.1, mean of the EU", *electricity(4000, 0.68, 1.1, 0.19), 0.19),
    )
    return [
        Claim(
            "GPT-3 took about 1,000 PFLOP/s-hours",
            "wrong",
            (
                f"{GPT3_FLOPS:.2e} FLOP / 1e15 / 3600 = {petaflop_hours:,.0f} PFLOP/s-hours",
                f"that is {petaflop_hours / 24:,.0f} PFLOP/s-days (2005.14165: 3,640)",
                f"the claim is too small by a factor of {petaflop_hours / 1000:.0f}",
            ),
        ),
        Claim(
            "GPT-3 took about 355 GPU years",
            "right",
            (
                f"{GPT3_FLOPS:.2e} FLOP / 28e12 FLOP/s / 3600 / 8760 = {years:.1f} years of a V100",
                "28 TFLOP/s is 22 % of a V100's peak of 125; newer GPUs need far fewer years",
            ),
        ),
        Claim(
            "training GPT-3 cost 5 to 20 million dollars",
            "plausible",
            (
                *(f"{hours:,.0f} V100 hours x ${price} = ${hours * price / 1e6:.1f} million" for price in prices),
                "$1.5 is a reserved price of 2020, $3 to $6 were list prices; no invoice is public",
            ),
        ),
        Claim(
            "several thousand GPUs for a year: electricity in high six digits of euro",
            "right in part",
            (
                *(
                    f"{label} {price} euro/kWh: {gwh:.1f} GWh, {million:.2f} million euro"
                    for label, gwh, million, price in cases
                ),
                "six digits hold for about 2,000 GPUs of A100's power at Nordic prices; otherwise seven",
                "prices: Eurostat, non-household, Finland 2023 and EU mean 2025; sites publish no contracts",
            ),
        ),
    ]
