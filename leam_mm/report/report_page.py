"""One self-contained HTML page about a run: images, numbers with intervals, curves, energy, commands.

    python -m leam_mm.report.report_page --run runs/quickstart --output runs/quickstart/report.html

All texts are escaped, since captions are strangers' words.
"""

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leam_mm import errors
from leam_mm.errors import UserError
from leam_mm.evaluators.results import read_results
from leam_mm.files import write_text
from leam_mm.json_text import parse_json
from leam_mm.report import report_images, report_run, report_section
from leam_mm.report.templates import Section, render_page

INTRODUCTION = (
    "What this run made, how good it is, and what it cost. Numbers come with a 95\u202f% interval where one can be "
    "given; what was not measured says so. The weights and the commands that lead here are named at the end."
)


def write_report(folder: Path, output: Path, title: str) -> None:
    """Write the report of a run or of an evaluation.

    Args:
        folder: A run folder (with any of evaluation/, clip/, codec/, generator/, stages/), or an evaluation folder with
            results.jsonl.
        output: The HTML file, written atomically.
        title: Heading of the page.

    Raises:
        UserError: There is nothing to report, or a file is damaged.
    """
    folder, output = Path(folder), Path(output)
    evaluation = folder / "evaluation" if (folder / "evaluation").is_dir() else folder
    found, stages = read_results(evaluation), read_stages(folder)
    results = {name: row for name, row in found.items() if not report_section.is_change(name)}
    sections = [
        Section("images", "Images", report_images.images(evaluation)),
        Section("change", "Before and after the fine-tuning", report_section.changes(found)),
        Section("classification", "Naming what is in an image", report_section.classification(results)),
        Section("retrieval", "Finding images and captions", report_section.retrieval(results)),
        Section(
            "composition", "Following a description", report_section.others(results, ("compositional", "composition"))
        ),
        Section("distance", "Generated against real images", report_section.distances(results)),
        Section("other", "Other measurements", report_section.others(results, None)),
        Section("training", "Training", report_run.curves(folder)),
        Section("cost", "Energy and time", report_run.costs(stages)),
        Section("repeat", "How to repeat this", report_run.repeat(stages, found)),
    ]
    if not found and not stages and not any(section.content for section in sections):
        raise UserError(
            f"{folder}: nothing to report; it holds no evaluation/results.jsonl, no stages and no metrics.csv"
        )
    parts = Path(__file__).with_name("report.html.jinja")
    footer = f"Written {datetime.now(UTC):%d %B %Y, %H:%M} UTC by leam_mm."
    write_text(output, render_page(
        parts, title, INTRODUCTION, report_section.key_figures(results, stages), sections, footer
    ))  # fmt: skip


def read_stages(folder: Path) -> list[dict[str, Any]]:
    """Return the cost of each stage: the objects of stages/*.json by file name, else the `stages` of summary.json."""
    paths = sorted((folder / "stages").glob("*.json"))
    if not paths and (folder / "summary.json").is_file():
        content = _read_json(folder / "summary.json")
        stages = content.get("stages") if isinstance(content, dict) else None
        return _stages(stages) if isinstance(stages, list) else []
    return _stages([_read_json(path) for path in paths])


def _stages(contents: list[Any]) -> list[dict[str, Any]]:
    """Return those that are objects; an energy that is none is left out."""
    stages = [dict(content) for content in contents if isinstance(content, dict)]
    for stage in stages:
        if not isinstance(stage.get("energy"), dict):
            stage["energy"] = {}
    return stages


def _read_json(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); remove it or run the stage again") from None


def main() -> None:
    """Command line: write the report of a run folder."""
    parser = argparse.ArgumentParser(description="Write one self-contained HTML page about a run.")
    parser.add_argument("--run", type=Path, required=True, help="run folder, for example runs/quickstart")
    parser.add_argument("--output", type=Path, help="the HTML file (default: report.html in the run folder)")
    parser.add_argument("--title", help="heading of the page (default: the name of the run folder)")
    arguments = parser.parse_args()
    if not arguments.run.is_dir():
        raise UserError(f"--run {arguments.run}: no such folder; give the folder that the recipe wrote")
    output = arguments.output or arguments.run / "report.html"
    write_report(arguments.run, output, arguments.title or f"Run {arguments.run.resolve().name}")
    print(f"wrote {output}")


if __name__ == "__main__":
    errors.run(main)
