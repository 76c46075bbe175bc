"""Which weights of a run are released: the average of its training, one of another width, or the last weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from leam_mm.checkpoint import find_checkpoint, read_evidence
from leam_mm.errors import UserError
from leam_mm.files import TEMPORARY
from leam_mm.optim.ema import Ema
from leam_mm.optim.power_ema import PowerEma, gamma_of
from leam_mm.release.reconstruct_ema import AverageSettings, reconstruct_widths

TRAINED, NONE = "trained", "none"
WITHOUT_AVERAGE = "last weights; the average of the run is not released"


def read_average(text: str) -> float | None:
    """Return the width that ``--average`` names, or None for ``trained`` and ``none``.

    Raises:
        UserError: It is neither, or no width of an average.
    """
    if text in (TRAINED, NONE):
        return None
    try:
        width = float(text)
    except ValueError:
        raise UserError(f"--average {text[:80]!r}: give {TRAINED}, {NONE}, or a width such as 0.1") from None
    gamma_of(width)  # checks the range
    return width


@contextmanager
def averaged_generator(generator: Path | None, average: str, output: Path) -> Iterator[Path | None]:
    """Give the checkpoint of the generator to release.

    Args:
        generator: Run folder or checkpoint of the generator; None for a release without one.
        average: See ``BuildOptions``.
        output: The release folder, beside which a checkpoint of another width lies until the release is written.

    Raises:
        UserError: There is no run of a generator with snapshots.
    """
    width = read_average(average)
    if width is None:
        yield generator
        return
    if generator is None or not generator.is_dir():
        raise UserError(
            f"--average {average} is put together from the snapshots of a generator's run: give its folder as "
            "--generator, trained with configs/overlay_power_ema.yaml"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{output.name}{TEMPORARY}", dir=output.parent) as folder:
        yield reconstruct_widths(AverageSettings(generator, [width], Path(folder)))[0]


def release_average(module: Any, checkpoint: Path, average: str) -> str:
    """Make a module release the weights that ``--average`` names, and return which they are.

    Args:
        module: ContrastiveModule or LatentDiffusionModule.
        checkpoint: Where it was loaded from.
        average: See ``BuildOptions``.
    """
    reconstructed = read_evidence(find_checkpoint(checkpoint)).get("reconstructed")
    if isinstance(reconstructed, dict):
        count = len(reconstructed.get("snapshots") or ())
        return f"average with the power-function profile of width {reconstructed['width']:g}, from {count} snapshots"
    kept: Ema | None = module.ema
    if kept is None:
        return "last weights; the run kept no average"
    if average == NONE:
        module.ema = None
        return WITHOUT_AVERAGE
    if isinstance(kept, PowerEma):
        return f"average with the power-function profile of width {kept.widths[0]:g}"
    return f"exponential average with decay {kept.decay:g} per step"


def check_measured(weights: Mapping[str, str], metrics: Sequence[Mapping[str, Any]]) -> None:
    """Refuse metrics that were measured on the average of a run whose last weights are released.

    Args:
        weights: What is released, by kind of stage; see ``release_average``.
        metrics: Lines of results.jsonl.
    """
    for metric in metrics:
        for kind, tested in (metric.get("checkpoints") or {}).items():
            if tested and weights.get(kind) == WITHOUT_AVERAGE:
                raise UserError(
                    f"--average {NONE}: {metric['name']!r} was measured on the average of {kind}, which is not "
                    "released: leave out --results, or release the average"
                )
