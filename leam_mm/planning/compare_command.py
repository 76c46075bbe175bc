"""Prediction beside measurement of a run folder, on the terminal and as JSON: ``planning compare``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from leam_mm.errors import UserError
from leam_mm.files import write_json
from leam_mm.json_text import parse_object
from leam_mm.planning.calibration import load_calibration
from leam_mm.planning.cluster_profile import ClusterProfile, load_profile
from leam_mm.planning.plan_comparison import (
    NOT_KNOWN,
    NOT_MEASURED,
    Measured,
    Predicted,
    compare,
    comparison_json,
    node_watts,
    predict,
    read_measured,
)

LAUNCH, RESULT = "launch.json", "comparison.json"


@dataclass(frozen=True)
class CompareOptions:
    """Compare a finished run with its prediction.

    Args:
        run: Run folder or checkpoint.
        calibration: File of ``calibrate`` for this recipe and machine; by default the prediction is the plan stored at
            the submission, else one from the profile.
        cluster: Name or path of the cluster's profile; by default that of the submitted job. With it, the plan is made
            anew.
        output: JSON file; by default comparison.json in the run folder.
    """

    run: Path
    calibration: Path | None = None
    cluster: str | None = None
    output: Path | None = None


def show_comparison(options: CompareOptions) -> int:
    """Print the comparison, write the JSON file and return the exit code."""
    from leam_mm.checkpoint import checkpoint_config, read_checkpoint  # seconds of imports, not needed for --help

    checkpoint = read_checkpoint(options.run)
    config = checkpoint_config(checkpoint)
    measured = read_measured(checkpoint, config)
    record = _launch_record(options.run)
    name = options.cluster or record.get("cluster")
    profile = load_profile(str(name)) if name else None
    stored = _stored_plan(record)
    if options.calibration is not None:
        calibration = load_calibration(options.calibration)
        predicted = predict(calibration, config, measured.samples, profile, measured.coverage)
    elif stored is not None and options.cluster is None:
        share = measured.samples / (config.get("max_samples") or measured.samples)
        source = "plan stored when the job was submitted, middle estimate" + (
            "" if share == 1 else f", {share:.0%} of it"
        )
        predicted = Predicted(stored * 3600 * share, None, node_watts(profile, measured.coverage), source)
    else:
        predicted = predict_from_profile(config, measured, profile)
    values = compare(predicted, measured, profile)
    table = Table(title=f"{options.run}: predicted and measured", box=SIMPLE, pad_edge=False, title_justify="left")
    for name in ("", "predicted", "measured", "ratio", "note"):
        table.add_column(name, justify="left" if name in ("", "note") else "right", no_wrap=name != "note")
    for value in values:
        row = (_text(value.predicted, NOT_KNOWN), _text(value.measured, NOT_MEASURED))
        table.add_row(f"{value.name}, {value.unit}", *row, _text(value.ratio, ""), value.note)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"prediction: {predicted.source}; energy: {measured.source}", soft_wrap=True)
    if predicted.missing:
        console.print(f"not in the prediction: {', '.join(predicted.missing)}", soft_wrap=True)
    folder = options.run if options.run.is_dir() else options.run.parent
    output = options.output or folder / RESULT
    write_json(output, comparison_json(values, predicted, measured))
    console.print(f"wrote {output}", soft_wrap=True)
    return 0


def predict_from_profile(config: dict[str, Any], measured: Measured, profile: ClusterProfile | None) -> Predicted:
    """Predict a run from the operations of its recipe and the profile's MFU; without a profile nothing is predicted."""
    if profile is None:
        return Predicted(None, None, None, "no calibration and no profile: give --calibration or --cluster")
    from leam_mm.planning.cost_plan import plan_run

    plan = plan_run(config, profile, measured.nodes, samples=measured.samples)
    watts = node_watts(profile, measured.coverage)
    hours, mfu, goodput = plan.mid.hours, plan.mid.mfu, plan.mid.goodput
    if hours is None or mfu is None or goodput is None:
        return Predicted(None, None, watts, f"{profile.name}.yaml knows no peak or MFU: give --calibration")
    source = (
        f"plan, middle estimate: MFU {mfu:.1%}, goodput {goodput:.0%}, {plan.devices} devices of {profile.name}.yaml"
    )
    return Predicted(hours * 3600, None, watts, source)


def _launch_record(run: Path) -> dict[str, Any]:
    """Return the record of the job that was submitted for a run folder; empty if there is none."""
    record = run / LAUNCH
    if not record.is_file():
        return {}
    try:
        return parse_object(record.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{record} cannot be read ({error}): restore it, or remove it") from None


def _stored_plan(record: dict[str, Any]) -> float | None:
    """Return the hours of the middle estimate in the record of a submission; None if it holds none."""
    estimates = record.get("plan_of_the_run")
    found = [one for one in estimates if isinstance(one, dict)] if isinstance(estimates, list) else []
    hours = next((one.get("hours") for one in found if one.get("name") == "mid"), None)
    return float(hours) if isinstance(hours, int | float) and hours > 0 else None


def _text(value: float | None, missing: str) -> str:
    return missing if value is None else f"{value:,.4g}"
