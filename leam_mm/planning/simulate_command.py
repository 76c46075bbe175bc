"""Table of a recipe over numbers of nodes of a cluster, or over all cluster profiles: ``planning simulate``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from leam_mm.command_line import PositiveFloat, PositiveInt
from leam_mm.errors import UserError
from leam_mm.files import write_json
from leam_mm.planning.calibration import Calibration, load_calibration
from leam_mm.planning.cluster_profile import ClusterProfile, load_profile, profile_names
from leam_mm.planning.recipe_file import read_recipe
from leam_mm.planning.scaling_simulator import Machine, ScalingPoint, Workload, scaling_table

# 466 interruptions of a job in 54 days on 16,384 H100, 8 a node: arXiv:2407.21783 (Llama 3), as summarised at
# huggingface.co/posts/singhsidhukuldeep/833816740809851, read on 2026-11-29. Other machines: assumed.
NODE_MTBF_HOURS = 5700.0
WRITE_GBYTES_PER_S = 2.0  # assumed: one rank writes the checkpoint
RESTART_SECONDS = 600.0  # assumed: a requeued job starts, loads and warms up
GIGA = 1e9
WIDTH = 120  # characters of the table's lines, at least
if TYPE_CHECKING:
    from leam_mm.planning.recipe_work import RecipeWork
NODES = tuple(2**n for n in range(11))


@dataclass(frozen=True)
class SimulateOptions:
    """Estimate step time, rate and checkpoint interval of a recipe on 1 to 1,024 nodes of a cluster.

    Args:
        recipe: Recipe, then overlays.
        cluster: Name of a profile in configs/clusters, or the path of one.
        all_clusters: One line for each profile at the same number of nodes, instead of one cluster's table.
        at_nodes: Nodes of --all-clusters.
        nodes: Numbers of nodes of the table; default 1, 2, 4 ... 1,024.
        weak: Grow the batch with the nodes; by default the recipe's batch is split over all devices.
        calibration: File of ``calibrate``, whose measured rate, loader and save replace the profile's values.
        mtbf_hours: Mean time between failures of one node, where the profile knows none.
        write_gbytes: Bandwidth in GB/s with which a checkpoint is written, where profile and calibration have none.
        restart_seconds: Time from a failure to the first repeated step.
        seed: Seed of the step times.
        output: JSON file of the table; by default none.
    """

    recipe: list[Path]
    cluster: str = "jupiter"
    all_clusters: bool = False
    at_nodes: PositiveInt = 64
    nodes: list[PositiveInt] = field(default_factory=list)
    weak: bool = False
    calibration: Path | None = None
    mtbf_hours: PositiveFloat = NODE_MTBF_HOURS
    write_gbytes: PositiveFloat = WRITE_GBYTES_PER_S
    restart_seconds: PositiveFloat = RESTART_SECONDS
    seed: int = 0
    output: Path | None = None


def workload(work: "RecipeWork", recipe: Mapping[str, Any]) -> Workload:
    """Return the step of a recipe.

    Gradients have the precision of the weights: 4 bytes, or 2 with ``bf16-true``. The checkpoint holds weights, two
    states of the optimizer for each trained weight, and the averages, in 4 bytes each.
    """
    trainer = recipe.get("trainer") or {}
    width = 2 if str(trainer.get("precision")).endswith("16-true") else 4
    strategy = trainer.get("strategy")
    name = strategy.get("class_path", "") if isinstance(strategy, dict) else str(strategy)
    return Workload(
        flops_per_sample=work.hardware_flops / work.samples,
        gradient_bytes=width * work.trained,
        gathered_bytes_per_sample=2 * 4 * work.embed_dim,
        checkpoint_bytes=4 * (work.weights * (1 + work.averages) + 2 * work.trained),
        sharded="ModelParallel" in name or "fsdp" in name.lower(),
    )


def machine(
    profile: ClusterProfile, kind: str, options: SimulateOptions, calibration: Calibration | None = None
) -> tuple[Machine, list[str]]:
    """Return the nodes of a profile, and what was assumed, one sentence each.

    Args:
        profile: The cluster.
        kind: contrastive, generator or codec: which MFU counts.
        options: Values where the profile has none.
        calibration: Measured values, which replace the profile's.

    Raises:
        UserError: The speed of a device is not known.
    """
    notes = []
    node, storage = profile.node, profile.storage
    devices = profile.gpu.per_node.value or profile.slurm.tasks_per_node.value or 1
    band = (profile.mfu.contrastive if kind == "contrastive" else profile.mfu.generator).value
    peak = profile.gpu.peak_tflops.value
    if calibration is not None and calibration.sustained_tflops:
        flops = calibration.sustained_tflops * 1e12
        notes.append(f"speed of a device: measured, {calibration.sustained_tflops:.3g} TFLOP/s on {calibration.device}")
    elif peak is not None and band is not None:
        flops = peak * 1e12 * band.mid
        notes.append(f"MFU {band.mid:.0%} (profile, middle of {band.low:.0%} to {band.high:.0%}) of {peak:g} TFLOP/s")
    else:
        raise UserError(
            f"{profile.name}: gpu.peak_tflops or mfu is not known: calibrate on the machine and give --calibration FILE"
        )
    mtbf, write = node.mtbf_hours.value, storage.write_gbytes_per_s.value
    if mtbf is None:
        mtbf = options.mtbf_hours
        notes.append(f"a node fails every {mtbf:g} hours (assumed)")
    if calibration is not None and calibration.save_bytes_per_second:
        write = calibration.save_bytes_per_second / GIGA
        notes.append(f"a checkpoint is written with {write:.3g} GB/s (measured)")
    elif write is None:
        write = options.write_gbytes
        notes.append(f"a checkpoint is written with {write:g} GB/s (assumed)")
    notes.append(f"a restart takes {options.restart_seconds:g} s (assumed)")
    for name, fact in (("within", node.intra_gbytes_per_s), ("between", node.inter_gbytes_per_s)):
        if fact.value is None:
            notes.append(f"bandwidth {name} nodes is not known: traffic there costs nothing in this estimate")
    loading = None
    cores = node.usable_cores.value
    if calibration is not None and calibration.load_samples_per_core_second and cores:
        loading = calibration.load_samples_per_core_second * cores
        notes.append(f"all {cores} usable cores of a node decode, at the measured rate of a core")
    return Machine(
        devices_per_node=devices,
        flops_per_device=flops,
        intra_bytes_per_second=_bytes(node.intra_gbytes_per_s.value),
        inter_bytes_per_second=_bytes(node.inter_gbytes_per_s.value),
        write_bytes_per_second=write * GIGA,
        load_samples_per_second=loading,
        node_mtbf_hours=mtbf,
        restart_seconds=options.restart_seconds,
    ), notes


def _bytes(gigabytes: float | None) -> float | None:
    return None if gigabytes is None else gigabytes * GIGA


def show_scaling(options: SimulateOptions) -> int:
    """Print the table, write the JSON file if one is wanted, and return the exit code."""
    from leam_mm.planning.recipe_work import recipe_work  # seconds of imports, not needed for --help

    # A narrow terminal, or none, would cut digits off the cells.
    console = Console(highlight=False, width=max(WIDTH, Console().width))
    recipe = read_recipe(options.recipe)
    work = recipe_work(recipe)
    calibration = load_calibration(options.calibration) if options.calibration is not None else None
    if options.all_clusters:
        points, notes = _all_clusters(options, recipe, work, calibration, console)
    else:
        points, notes = _one_cluster(options, recipe, work, calibration, console)
    for note in notes:
        console.print(f"- {note}", style="dim", soft_wrap=True)
    if options.output is not None:
        rows = [{key: _finite(value) for key, value in point.items()} for point in points]
        write_json(
            options.output,
            {"recipe": list(map(str, options.recipe)), "estimate": True, "notes": notes, "points": rows},
        )
        console.print(f"wrote {options.output}", soft_wrap=True)
    return 0


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _one_cluster(
    options: SimulateOptions, recipe: Mapping[str, Any], work: "RecipeWork", calibration: Calibration | None,
    console: Console,
) -> tuple[list[dict[str, Any]], list[str]]:  # fmt: skip
    profile = load_profile(options.cluster)
    nodes, notes = machine(profile, work.kind, options, calibration)
    counts = sorted(options.nodes or NODES)
    if not options.nodes and profile.node.count.value:
        counts = [count for count in counts if count <= profile.node.count.value] or [1]
    points = scaling_table(workload(work, recipe), nodes, work.batch_size, counts, options.weak, options.seed)
    if not points:
        raise UserError(
            f"a batch of {work.batch_size} has fewer samples than {counts[0]} nodes have devices: give --weak or fewer "
            "--nodes"
        )
    growth = "batch grows with the nodes" if options.weak else "recipe's batch, split over all devices"
    table = _table(f"{profile.title}, estimate; {growth}", ("nodes", "devices", "batch"))
    for point in points:
        table.add_row(f"{point.nodes:,}", f"{point.devices:,}", f"{point.batch:,}", *_cells(point))
    console.print(table)
    if len(points) < len(counts):
        notes.append(
            f"on more than {points[-1].nodes} nodes some devices would have no sample of a batch of {work.batch_size:,}"
        )
    return [asdict(point) for point in points], [*_assumed(), *notes]


def _all_clusters(
    options: SimulateOptions, recipe: Mapping[str, Any], work: "RecipeWork", calibration: Calibration | None,
    console: Console,
) -> tuple[list[dict[str, Any]], list[str]]:  # fmt: skip
    table = _table(
        f"all profiles on {options.at_nodes} nodes, estimate; batch grows with the nodes", ("cluster", "devices")
    )
    found, notes = [], [*_assumed()]
    for name in profile_names():
        profile = load_profile(name)
        try:
            nodes, said = machine(profile, work.kind, options, calibration)
        except UserError:
            notes.append(f"{name}: the speed of a device is not known")
            continue
        count = (
            options.at_nodes if (profile.node.count.value or math.inf) >= options.at_nodes else profile.node.count.value
        )
        assert count is not None
        batch = max(work.batch_size, count * nodes.devices_per_node)
        point = scaling_table(workload(work, recipe), nodes, batch, [count], seed=options.seed)[0]
        table.add_row(f"{name} ({count})", f"{point.devices:,}", *_cells(point, relative=False))
        found.append({"cluster": name, **asdict(point), "notes": said})
    console.print(table)
    notes.append(
        f"where a profile knows no better: a node fails every {options.mtbf_hours:g} hours, a checkpoint is written "
        f"with {options.write_gbytes:g} GB/s, a restart takes {options.restart_seconds:g} s (all assumed)"
    )
    return found, notes


def _assumed() -> list[str]:
    return ["all values are estimates; step times were within 10 % of published runs, see docs/planning.md"]


def _table(title: str, first: Sequence[str]) -> Table:
    columns = ("step, s", "samples/s", "efficiency", "goodput", "save every")
    table = Table(title=title, box=SIMPLE, pad_edge=False, title_justify="left")
    for name in (*first, *columns):
        table.add_column(name, justify="right" if name != "cluster" else "left", no_wrap=True)
    return table


def _cells(point: ScalingPoint, relative: bool = True) -> list[str]:
    interval = point.checkpoint_seconds
    known = math.isfinite(interval)
    return [
        f"{point.seconds:.3g}",
        f"{point.samples_per_second:,.0f}",
        f"{point.efficiency:.1%}" if relative else "",
        f"{point.goodput:.2%}" if point.goodput_known else "not known",
        f"{interval / 60:,.0f} min = {interval / point.seconds:,.0f} st." if known else "not known",
    ]
