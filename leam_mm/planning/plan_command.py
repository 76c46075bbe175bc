"""``python -m leam_mm.planning plan``: time, energy, cost, memory and data of a run, before it starts."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

from leam_mm.command_line import NonNegativeFloat, PositiveFloat, PositiveInt, Range
from leam_mm.errors import UserError


@dataclass(frozen=True)
class PlanOptions:
    """Plan a run of a recipe on a cluster.

    Args:
        recipe: Recipe, and overlays on top of it; or the config.yaml of a run.
        cluster: Name of a profile in configs/clusters, or path of a YAML file.
        nodes: Number of nodes.
        samples: Samples seen; by default the recipe's max_samples.
        caption_tokens: Mean tokens per caption; by default the context length, an upper bound.
        mfu: Measured model FLOPs utilization; by default the profile's range.
        goodput: Share of the wall time in which training proceeds; by default an assumed range.
        quota: Granted device hours, to print the share that the run takes.
        euro_per_gpu_hour: Price of a device hour for the equivalent in a cloud; by default the profile's.
        start: Beginning of the run, such as 2026-12-01 or 2026-12-01T08:00.
        earlier_flops: Operations that went into the model before: base models, earlier runs, synthetic captions.
        trust: Modules of your own, such as my_lab, whose classes the recipe may name; several between commas.
    """

    recipe: list[Path]
    cluster: str
    nodes: PositiveInt = 1
    samples: PositiveInt | None = None
    caption_tokens: PositiveInt | None = None
    mfu: Annotated[float, Range(above=0, most=1)] | None = None
    goodput: Annotated[float, Range(above=0, most=1)] | None = None
    quota: PositiveFloat | None = None
    euro_per_gpu_hour: NonNegativeFloat | None = None
    start: str | None = None
    earlier_flops: NonNegativeFloat = 0.0
    trust: str = ""


def parse_start(text: str | None) -> datetime | None:
    """Return the time of ISO 8601 text; None stays None."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"--start {text} is no date: give one such as 2026-12-01 or 2026-12-01T08:00") from None


def show_plan(options: PlanOptions) -> int:
    """Print the plan and return the exit code."""
    start = parse_start(options.start)
    from leam_mm.planning.cluster_profile import load_profile
    from leam_mm.planning.cost_plan import plan_run  # seconds of imports, not needed for --help
    from leam_mm.planning.memory_fit import memory_model
    from leam_mm.planning.recipe_file import read_recipe
    from leam_mm.recorded_classes import trust_modules

    trust_modules(options.trust)
    profile, recipe = load_profile(options.cluster), read_recipe(options.recipe)
    plan = plan_run(
        recipe,
        profile,
        options.nodes,
        samples=options.samples,
        caption_tokens=options.caption_tokens,
        mfu=options.mfu,
        goodput=options.goodput,
        quota_gpu_hours=options.quota,
        euro_per_gpu_hour=options.euro_per_gpu_hour,
        start=start,
        earlier_flops=options.earlier_flops,
    )
    print(plan.table())
    model = memory_model(recipe, options.caption_tokens)
    if plan.devices and profile.gpu.memory_gb.value is not None:
        print("\n" + "\n".join(model.report(profile.gpu.memory_gb.value * 1e9, plan.devices)))
    else:
        print("\nmemory of a device: not known in the profile")
    for note in model.notes:
        print(f"note: {note}")
    return 0
