"""Time, energy, emissions and cost of a training run on a cluster, before it starts.

hours = FLOP / (devices x peak x MFU) / goodput; kWh = nodes x watts x hours x PUE; kg = kWh x g/kWh. All three
estimates (low, mid, high) are of the same run: low MFU and goodput give the longest time. What a profile does not know
stays unknown. The MFU of a profile is that of a run that recomputes nothing; recomputed activations take time in
proportion.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from leam_mm.errors import UserError
from leam_mm.planning.ai_act_compute import compute_report
from leam_mm.planning.cluster_profile import ClusterProfile
from leam_mm.planning.cluster_sections import Band
from leam_mm.planning.recipe_work import RecipeWork, recipe_work

NOT_KNOWN = "not known"
GOODPUT = Band(0.80, 0.90, 0.97)  # assumed: share of the wall time in which training proceeds
GPU_LOAD, NODE_BASE_WATTS = 0.75, 500.0  # assumed: busy devices at this share of their limit, and the rest of a node
NAMES = ("low", "mid", "high")


@dataclass(frozen=True)
class Estimate:
    """One estimate of a run; None where the profile lacks a value.

    Args:
        name: low, mid or high: which MFU and goodput it takes.
        mfu: Model FLOPs utilization, recomputed activations taken off.
        goodput: Share of the wall time in which training proceeds.
        hours: Wall time, without waiting in queues.
        gpu_hours: Device hours of all nodes.
        kwh: Energy of the nodes.
        site_kwh: Energy of the site: nodes times PUE.
        kg_location: Emissions by the country's grid, in kg CO2e.
        kg_market: Emissions by the electricity that the site buys, in kg CO2e.
        euro_electricity: Cost of the electricity, in euro.
        euro_cloud: Cost of as many device hours at a price per hour, in euro.
    """

    name: str
    mfu: float | None = None
    goodput: float | None = None
    hours: float | None = None
    gpu_hours: float | None = None
    kwh: float | None = None
    site_kwh: float | None = None
    kg_location: float | None = None
    kg_market: float | None = None
    euro_electricity: float | None = None
    euro_cloud: float | None = None


@dataclass(frozen=True)
class Plan:
    """Plan of a run.

    Args:
        work: What the run computes.
        profile: The machine.
        nodes: Number of nodes.
        devices: Number of devices.
        estimates: low, mid, high.
        start: Beginning of the run; None leaves the end open.
        quota_gpu_hours: Device hours that are granted; None leaves the share out.
        earlier_flops: Operations that went into the model before this run.
        notes: Assumptions and missing values, one sentence each.
    """

    work: RecipeWork
    profile: ClusterProfile
    nodes: int
    devices: int
    estimates: tuple[Estimate, ...]
    start: datetime | None = None
    quota_gpu_hours: float | None = None
    earlier_flops: float = 0.0
    notes: tuple[str, ...] = field(default=())

    @property
    def mid(self) -> Estimate:
        """The middle estimate."""
        return self.estimates[1]

    def end(self, estimate: Estimate) -> datetime | None:
        """Return when the run ends if it starts at once and never waits; None if start or time is not known."""
        if self.start is None or estimate.hours is None:
            return None
        try:
            return self.start + timedelta(hours=estimate.hours)
        except OverflowError:
            return None

    def quota_share(self, estimate: Estimate) -> float | None:
        """Return the share of the quota that the run takes; above 1 it does not fit."""
        if not self.quota_gpu_hours or estimate.gpu_hours is None:
            return None
        return estimate.gpu_hours / self.quota_gpu_hours

    def jobs(self, estimate: Estimate) -> int | None:
        """Return how many jobs of the longest allowed time the run takes."""
        longest = self.profile.slurm.max_hours.value
        return None if longest is None or estimate.hours is None else max(1, -int(-estimate.hours // longest))

    def rows(self) -> list[tuple[str, list[str]]]:
        """Return the rows of the table: a label with low, mid and high."""
        values: list[tuple[str, Any, str]] = [
            ("MFU", lambda one: one.mfu, "{:.1%}"),
            ("goodput", lambda one: one.goodput, "{:.0%}"),
            ("wall time, hours", lambda one: one.hours, ""),
            ("jobs of the longest time", self.jobs, "{:,}"),
            ("GPU hours", lambda one: one.gpu_hours, ""),
            ("share of the quota", self.quota_share, "{:.1%}"),
            ("ends", lambda one: (end := self.end(one)) and end.strftime("%Y-%m-%d %H:%M"), "{}"),
            ("energy of the nodes, kWh", lambda one: one.kwh, ""),
            ("energy with cooling (PUE), kWh", lambda one: one.site_kwh, ""),
            ("CO2e, location-based, kg", lambda one: one.kg_location, ""),
            ("CO2e, market-based, kg", lambda one: one.kg_market, ""),
            ("electricity, euro", lambda one: one.euro_electricity, ""),
            ("equivalent cloud, euro", lambda one: one.euro_cloud, ""),
        ]
        hidden = {"share of the quota": self.quota_gpu_hours is None, "ends": self.start is None}
        return [
            (label, [_text(value(one), pattern) for one in self.estimates])
            for label, value, pattern in values
            if not hidden.get(label)
        ]

    def table(self) -> str:
        """Return the plan as text: the run, the estimates, the thresholds of the AI Act, and notes."""
        work, profile = self.work, self.profile
        head = [
            f"plan (an estimate): nodes {self.nodes}, devices {self.devices}, {profile.title}",
            f"{work.samples:,} samples in {work.steps:,} steps of {work.batch_size:,}; {work.weights:,} weights, "
            f"{work.trained:,} trained",
            f"{work.model_flops:.3e} model FLOP, {work.hardware_flops:.3e} with recomputed activations",
        ]
        for phase in work.phases:
            parts = ", ".join(
                f"{part.name} {part.forward / 1e9:,.4g} GFLOP x {part.passes + part.recomputed:.3g}"
                for part in phase.parts
            )
            head.append(f"  {phase.samples:,} samples at {phase.images}: {parts}")
        rows = [("", list(NAMES)), *self.rows()]
        widths = [max(len(label) for label, _ in rows), *(max(len(row[i]) for _, row in rows) for i in range(3))]
        body = [
            "  ".join([label.ljust(widths[0]), *(cell.rjust(widths[i + 1]) for i, cell in enumerate(row))]).rstrip()
            for label, row in rows
        ]
        law = compute_report(work.hardware_flops, work.kind, self.earlier_flops)  # type: ignore[arg-type]
        notes = [f"note: {note}" for note in (*work.assumptions, *self.notes)]
        return "\n".join([*head, "", *body, "", *law, "", *notes]).rstrip()


def plan_run(
    recipe_config: Mapping[str, Any],
    profile: ClusterProfile,
    nodes: int,
    *,
    samples: int | None = None,
    caption_tokens: int | None = None,
    mfu: float | None = None,
    goodput: float | None = None,
    quota_gpu_hours: float | None = None,
    euro_per_gpu_hour: float | None = None,
    start: datetime | None = None,
    earlier_flops: float = 0.0,
) -> Plan:
    """Plan a run of a recipe on a cluster.

    Args:
        recipe_config: Recipe as read by ``read_recipe``, or the config.yaml of a run.
        profile: The machine.
        nodes: Number of nodes, at least 1.
        samples: Samples seen; None takes the recipe's.
        caption_tokens: Mean tokens per caption; None takes the context length.
        mfu: Measured utilization, in (0, 1]; None takes the profile's band.
        goodput: Share of the wall time in which training proceeds, in (0, 1]; None takes an assumed band.
        quota_gpu_hours: Granted device hours.
        euro_per_gpu_hour: Price of a device hour; None takes the profile's.
        start: Beginning of the run.
        earlier_flops: Operations that went into the model before this run.

    Raises:
        UserError: The recipe cannot be read, or a number is out of its range.
    """
    work = recipe_work(recipe_config, samples, caption_tokens)
    return plan_work(
        work, profile, nodes, mfu=mfu, goodput=goodput, quota_gpu_hours=quota_gpu_hours,
        euro_per_gpu_hour=euro_per_gpu_hour, start=start, earlier_flops=earlier_flops,
    )  # fmt: skip


def plan_work(
    work: RecipeWork,
    profile: ClusterProfile,
    nodes: int,
    *,
    mfu: float | None = None,
    goodput: float | None = None,
    quota_gpu_hours: float | None = None,
    euro_per_gpu_hour: float | None = None,
    start: datetime | None = None,
    earlier_flops: float = 0.0,
) -> Plan:
    """Plan a run whose operations are counted already; see ``plan_run`` for the arguments."""
    if nodes < 1:
        raise UserError(f"nodes is {nodes}: give at least 1")
    for name, value in (("mfu", mfu), ("goodput", goodput)):
        if value is not None and not 0 < value <= 1:
            raise UserError(f"{name} is {value}: give a share above 0 and up to 1")
    notes: list[str] = []
    devices = nodes * (profile.gpu.per_node.value or 0)
    largest, count = profile.slurm.max_nodes.value, profile.node.count.value
    if count is not None and nodes > count:
        notes.append(f"{profile.title} has {count:,} such nodes, fewer than {nodes:,}: give fewer --nodes")
    elif largest is not None and nodes > largest:
        notes.append(f"{nodes} nodes are more than the {largest} of a job in {profile.slurm.partition.value}")
    if devices and work.batch_size % devices:
        notes.append(
            f"a batch of {work.batch_size:,} does not divide by {devices} devices: choose another number of nodes"
        )
    watts = _node_watts(profile, notes)
    rates = _utilization(work, profile, mfu, notes)
    shares = Band(goodput, goodput, goodput) if goodput is not None else GOODPUT
    if goodput is None:
        notes.append("goodput is assumed; checkpoints and failures of this run are not modelled here")
    price = euro_per_gpu_hour if euro_per_gpu_hour is not None else profile.site.euro_per_gpu_hour.value
    if price is None:
        notes.append("no price of a GPU hour is known for this site: give --euro-per-gpu-hour")
    _note_facts(profile, "mfu.contrastive" if work.kind == "contrastive" else "mfu.generator", notes)
    peak = profile.gpu.peak_tflops.value
    if not devices or peak is None:
        notes.append("the profile has no devices with a known peak: time is not known")
    estimates = []
    for name in NAMES:
        rate, share = (getattr(rates, name) if rates is not None else None), getattr(shares, name)
        estimate = Estimate(name, rate, share)
        if rate and peak and devices:
            hours = work.model_flops / (devices * peak * 1e12 * rate) / share / 3600
            estimate = _costs(replace(estimate, hours=hours, gpu_hours=hours * devices), profile, nodes, watts, price)
        estimates.append(estimate)
    return Plan(*(work, profile, nodes, devices, tuple(estimates), start, quota_gpu_hours, earlier_flops, tuple(notes)))


def _costs(
    estimate: Estimate, profile: ClusterProfile, nodes: int, watts: float | None, price: float | None
) -> Estimate:
    assert estimate.hours is not None and estimate.gpu_hours is not None
    site = profile.site
    kwh = None if watts is None else nodes * watts * estimate.hours / 1000
    site_kwh = _product(kwh, site.pue.value)
    return replace(
        estimate,
        kwh=kwh,
        site_kwh=site_kwh,
        kg_location=_product(site_kwh, site.grid_grams_per_kwh.value, 1e-3),
        kg_market=_product(site_kwh, site.market_grams_per_kwh.value, 1e-3),
        euro_electricity=_product(site_kwh, site.euro_per_kwh.value),
        euro_cloud=_product(estimate.gpu_hours, price),
    )


def _utilization(work: RecipeWork, profile: ClusterProfile, mfu: float | None, notes: list[str]) -> Band | None:
    """Return the MFU of the run: a measured one as it is, that of the profile without the recomputed share."""
    if mfu is not None:
        return Band(mfu, mfu, mfu)
    fact = profile.mfu.contrastive if work.kind == "contrastive" else profile.mfu.generator
    if fact.value is None:
        notes.append("the profile has no MFU for this kind of run: give --mfu, or measure one")
        return None
    if work.kind == "codec":
        notes.append("the MFU of generators is taken for the codec")
    kept = work.model_flops / work.hardware_flops
    band = fact.value
    return Band(band.low * kept, band.mid * kept, band.high * kept)


def _node_watts(profile: ClusterProfile, notes: list[str]) -> float | None:
    """Return the power of a busy node: the profile's, or an estimate from the limit of its devices."""
    node, limit, count = profile.node.watts.value, profile.gpu.watts.value, profile.gpu.per_node.value
    estimate = None if limit is None or not count else GPU_LOAD * limit * count + NODE_BASE_WATTS
    if node is None and estimate is not None:
        notes.append(f"power of a node is estimated: {GPU_LOAD:.0%} of the devices' limit and {NODE_BASE_WATTS:.0f} W")
        return estimate
    if node is not None and estimate is not None and estimate > 1.25 * node:
        notes.append(
            f"energy is counted at {node:,.0f} W a node ({profile.node.watts.source}); a busy one may draw about "
            f"{estimate:,.0f} W, and then energy, emissions and electricity are {estimate / node:.1f} times as high"
        )
    return node


def _note_facts(profile: ClusterProfile, rate: str, notes: list[str]) -> None:
    used = ("gpu.peak_tflops", "node.watts", "site.pue", "site.grid_grams_per_kwh", "site.market_grams_per_kwh",
            "site.euro_per_kwh", rate)  # fmt: skip
    facts = {name: fact for name, fact in profile.facts() if name in used}
    assumed = [name for name, fact in facts.items() if fact.value is not None and fact.status == "assumed"]
    unknown = [name for name, fact in facts.items() if fact.value is None]
    if assumed:
        notes.append(f"assumed in the profile {profile.name}: {', '.join(assumed)}")
    if unknown:
        notes.append(f"not known in the profile {profile.name}: {', '.join(unknown)}")


def _product(*factors: float | None) -> float | None:
    total = 1.0
    for factor in factors:
        if factor is None:
            return None
        total *= factor
    return total


def _rounded(value: float) -> str:
    """Return a number with three significant digits."""
    digits = 0 if value == 0 else 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}"


def _text(value: Any, pattern: str) -> str:
    if value is None:
        return NOT_KNOWN
    return pattern.format(value) if pattern else _rounded(value)
