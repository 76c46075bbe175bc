"""What a job costs at most: nodes, device hours, energy, carbon and money, from the profile of the machine."""

import time
from collections.abc import Iterable

from leam_mm.launch.job import Job, slurm_time
from leam_mm.planning.fact import NOT_KNOWN, Fact


def _product(number: float, facts: Iterable[Fact]) -> tuple[float | None, bool]:
    """Return the product, None if a fact is not known, and whether any was assumed."""
    facts = list(facts)
    if not all(fact.known for fact in facts):
        return None, False
    for fact in facts:
        number *= fact.needed()
    return number, any(fact.status != "read" for fact in facts)


def cost_values(job: Job) -> dict[str, tuple[float | None, bool]]:
    """Return what the job uses if it runs until its time limit.

    Returns:
        Name of the value -> value or None if not known, and whether it rests on assumptions.
    """
    hours, profile = job.hours * max(1, len(job.array)), job.profile
    node, site = profile.node, profile.site
    energy = (node.watts, site.pue)
    return {
        "node_hours": (job.nodes * hours, False),
        "device_hours": (job.devices * hours, False),
        "kwh": _product(job.nodes * hours / 1000, energy),
        "kg_co2e_grid": _product(job.nodes * hours / 1e6, (*energy, site.grid_grams_per_kwh)),
        "kg_co2e_market": _product(job.nodes * hours / 1e6, (*energy, site.market_grams_per_kwh)),
        "euro_electricity": _product(job.nodes * hours / 1000, (*energy, site.euro_per_kwh)),
        "euro_devices": _product(job.devices * hours, (site.euro_per_gpu_hour,)),
    }


def cost_lines(job: Job, now: float | None = None) -> list[tuple[str, str]]:
    """Return the plan as label and text, in the order of printing."""
    values = cost_values(job)

    def text(name: str, unit: str) -> str:
        value, assumed = values[name]
        if value is None:
            return NOT_KNOWN
        return f"{value:,.1f} {unit}" + (" (rests on assumed values)" if assumed else "")

    gpu = job.profile.gpu
    devices = f"{job.devices} x {gpu.model.value or 'GPU'}" if job.devices else "no GPUs"
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime((now or time.time()) + job.seconds))
    jobs = f", {len(job.array)} jobs" if job.array else f", {job.chain} jobs in a chain" if job.chain > 1 else ""
    return [
        ("cluster", f"{job.profile.title} ({job.profile.name}.yaml)"),
        ("size", f"{job.nodes} nodes, {devices}, {job.nodes * job.tasks_per_node} tasks{jobs}"),
        ("time limit", f"{slurm_time(job.seconds)}; ends by {end} if it starts now"),
        ("at most", f"{values['node_hours'][0]:,.1f} node hours, {values['device_hours'][0]:,.1f} GPU hours"),
        ("energy", text("kwh", "kWh")),
        ("carbon", f"grid {text('kg_co2e_grid', 'kg CO2e')}; bought electricity {text('kg_co2e_market', 'kg CO2e')}"),
        ("cost", f"electricity {text('euro_electricity', 'euro')}; GPU hours {text('euro_devices', 'euro')}"),
    ]
