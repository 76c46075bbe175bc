"""Measure a recipe on this machine and write the file: ``planning calibrate``."""

from dataclasses import dataclass
from pathlib import Path

from leam_mm.command_line import PositiveFloat
from leam_mm.errors import UserError
from leam_mm.planning.calibration import Calibration, estimate_run
from leam_mm.planning.recipe_file import read_recipe


@dataclass(frozen=True)
class CalibrateOptions:
    """Measure a recipe on this machine in three minutes at most.

    Start it with srun or torchrun, one process a device, to measure the all-reduce, too. The recipe's shards and frozen
    parts must be there.

    Args:
        recipe: Recipe, then overlays.
        output: JSON file to write.
        seconds: Time of the recipe's steps; reading, a matrix product and the start of the programs come on top.
    """

    recipe: list[Path]
    output: Path
    seconds: PositiveFloat = 75.0


def show_calibration(options: CalibrateOptions) -> int:
    """Measure, write the file, print what was found, and return the exit code."""
    from leam_mm.planning.calibration_run import Budget, calibrate  # seconds of imports, not needed for --help

    found = calibrate(options.recipe, Budget(training=options.seconds))
    if found is None:
        return 0
    found.write(options.output)
    if found.load_average > 0.5 * found.cores:
        print(
            f"warning: the load was {found.load_average:g} on {found.cores} cores before the measurement: other "
            "programs make wall times longer, and CPU times a little"
        )
    rate, flops, peak = found.samples_per_second, found.sustained_tflops, found.gemm_tflops
    lines = [
        f"device          {found.device}, {found.precision}, {found.threads} threads",
        f"batch           {found.batch_size} samples in {found.batch.seconds:.4g} s ({found.batch.cpu_seconds:.4g} CPU "
        f"s), mean of {found.batches}: {rate:,.4g} samples/s",
        f"sustained       {'not counted' if flops is None else f'{flops:.3g} TFLOP/s'}",
        f"matrix product  {'not measured' if peak is None else f'{peak:.3g} TFLOP/s'}",
        f"start           {found.first.seconds:.3g} s once",
        f"validation      {'none' if found.validation is None else f'{found.validation.seconds:.3g} s'}",
        *(f"{name:<15} {cost.seconds:.3g} s" for name, cost in found.callbacks.items()),
        f"checkpoint      {found.checkpoint_bytes / 1e6:,.1f} MB in {found.save.seconds:.3g} s",
        f"loader          {_rate(found.load_samples_per_core_second, 'samples/s of a core')}",
        f"all-reduce      {_rate(found.allreduce_bytes_per_second, f'B/s over {found.ranks} ranks, {found.backend}')}",
        f"whole run       {_whole_run(options, found)}",
        f"wrote {options.output}",
    ]
    print("\n".join(lines))
    return 0


def _rate(value: float | None, unit: str) -> str:
    return "not measured" if value is None else f"{value:,.4g} {unit}"


def _whole_run(options: CalibrateOptions, found: Calibration) -> str:
    try:
        estimate = estimate_run(found, read_recipe(options.recipe))
    except UserError as error:
        return f"not estimated: {error}"
    return f"{estimate.seconds:,.0f} s and {estimate.cpu_seconds:,.0f} CPU s expected for {estimate.samples:,} samples"
