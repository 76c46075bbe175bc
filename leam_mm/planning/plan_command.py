"""``python -m leam_mm.planning plan``: time, energy, cost, memory and data of a run, before it starts."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from leam_mm.command_line import NonNegativeFloat, PositiveFloat, PositiveInt, Range
from leam_mm.errors import UserError
from leam_mm.planning.data_needs import (
    DECODE_RATE,
    IMAGE_BYTES,
    checkpoint_bytes,
    data_needs,
    recipe_sample_bytes,
)

if TYPE_CHECKING:
    from leam_mm.planning.cluster_profile import ClusterProfile
    from leam_mm.planning.cost_plan import Plan
    from leam_mm.planning.memory_fit import MemoryModel

STORED_CAPTION = 64  # tokens of stored caption states, where no option says it


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
        calibration: File of ``calibrate`` for this recipe on one of these devices, in place of --mfu.
        goodput: Share of the wall time in which training proceeds; by default an assumed range.
        quota: Granted device hours, to print the share that the run takes.
        euro_per_gpu_hour: Price of a device hour for the equivalent in a cloud; by default the profile's.
        start: Beginning of the run, such as 2026-12-01 or 2026-12-01T08:00.
        earlier_flops: Operations that went into the model before: base models, earlier runs, synthetic captions.
        image_bytes: Mean size of a stored image, in bytes.
        decode_rate: Images that a core decodes, crops and resizes in a second.
        dataset_samples: Samples of the data set; by default no sample is seen twice, an upper bound.
        trust: Modules of your own, such as my_lab, whose classes the recipe may name; several between commas.
    """

    recipe: list[Path]
    cluster: str
    nodes: PositiveInt = 1
    samples: PositiveInt | None = None
    caption_tokens: PositiveInt | None = None
    mfu: Annotated[float, Range(above=0, most=1)] | None = None
    calibration: Path | None = None
    goodput: Annotated[float, Range(above=0, most=1)] | None = None
    quota: PositiveFloat | None = None
    euro_per_gpu_hour: NonNegativeFloat | None = None
    start: str | None = None
    earlier_flops: NonNegativeFloat = 0.0
    image_bytes: PositiveFloat = IMAGE_BYTES
    decode_rate: PositiveFloat = DECODE_RATE
    dataset_samples: PositiveInt | None = None
    trust: str = ""


def parse_start(text: str | None) -> datetime | None:
    """Return the time of ISO 8601 text; None stays None."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"--start {text} is no date: give one such as 2026-12-01 or 2026-12-01T08:00") from None


def measured_mfu(file: Path, profile: "ClusterProfile") -> float:
    """Return the utilization that a calibration measured, relative to the peak of a profile.

    Raises:
        UserError: The file does not hold it, the profile has no peak, or the file is of a faster device.
    """
    from leam_mm.planning.calibration import load_calibration

    speed, peak = load_calibration(file).sustained_tflops, profile.gpu.peak_tflops.value
    if speed is None or peak is None:
        lacking = f"{profile.name}: gpu.peak_tflops is" if peak is None else f"{file}: model_flops_per_sample is"
        raise UserError(f"{lacking} not known: give --mfu in place of --calibration")
    if not 0 < speed <= peak:
        raise UserError(
            f"{file}: {speed:g} TFLOP/s were measured, more than the peak of {peak:g} in {profile.name}: calibrate on "
            "that cluster"
        )
    return speed / peak


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
    mfu = options.mfu if options.calibration is None else measured_mfu(options.calibration, profile)
    plan = plan_run(
        recipe,
        profile,
        options.nodes,
        samples=options.samples,
        caption_tokens=options.caption_tokens,
        mfu=mfu,
        goodput=options.goodput,
        quota_gpu_hours=options.quota,
        euro_per_gpu_hour=options.euro_per_gpu_hour,
        start=start,
        earlier_flops=options.earlier_flops,
    )
    model = memory_model(recipe, options.caption_tokens)
    lines = [plan.table(), ""]
    if plan.devices and profile.gpu.memory_gb.value is not None:
        lines += model.report(profile.gpu.memory_gb.value * 1e9, plan.devices)
    else:
        lines.append("memory of a device: not known in the profile")
    lines += [f"note: {note}" for note in model.notes]
    print("\n".join([*lines, "", *data_lines(options, recipe, plan, model)]))
    return 0


def data_lines(options: PlanOptions, recipe: Mapping[str, Any], plan: "Plan", model: "MemoryModel") -> list[str]:
    """Return lines about loading and storage, for the fastest estimate."""
    fastest = plan.estimates[-1]
    if fastest.hours is None or fastest.goodput is None:
        return ["data: not known, because the time is not known"]
    tokens = options.caption_tokens or STORED_CAPTION
    each, latents = recipe_sample_bytes(recipe, tokens, options.image_bytes)
    work, profile = plan.work, plan.profile
    needs = data_needs(
        work.samples,
        fastest.hours * fastest.goodput,
        plan.nodes,
        each,
        options.dataset_samples or work.samples,
        checkpoint_bytes(work.weights, work.trained, work.averages, model.state_bytes),
        None if latents else options.decode_rate,
    )
    lines = needs.report()
    cores, files, reading = (
        profile.node.usable_cores.value or profile.node.cores.value,
        profile.storage.inode_limit.value,
        profile.storage.read_gbytes_per_s.value,
    )
    if cores is not None and needs.cores_per_node > cores:
        lines.append(f"  a node has {cores} cores, fewer than decoding needs: smaller images, or more nodes")
    if files is not None and needs.dataset_files > files:
        lines.append(f"  scratch takes {files:,} files, fewer than the data set has: larger shards")
    if reading is not None and needs.read_bytes_per_second > reading * 1e9:
        lines.append(f"  scratch reads {reading:,.1f} GB/s, less than the run needs")
    if options.dataset_samples is None:
        lines.append("note: the data set is counted as if no sample were seen twice: give --dataset-samples")
    if not latents:
        lines.append(
            f"note: {options.image_bytes:,.0f} bytes an image and {options.decode_rate:,.0f} images a second and core "
            "are assumptions unless given: see --image-bytes, --decode-rate"
        )
    return lines
