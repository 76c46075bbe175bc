"""One HTML file that tells what a run made and how well: pictures, numbers with intervals, curves, energy, commands.

    python -m leam_mm.report.report_page --run runs/quickstart --output runs/quickstart/report.html

The file needs nothing from outside, and its content policy forbids it to ask. All texts are escaped: captions are
strangers' words.
"""

import argparse
import json
import os
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from leam_mm import errors
from leam_mm.errors import UserError
from leam_mm.evaluators.results import read_results
from leam_mm.report import report_change, report_run, report_section

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
INTRODUCTION = (
    "What this run made, how good it is, and what it cost. Numbers come with a 95&#8239;% interval where one can be "
    "given; what was not measured says so. The weights and the commands that lead here are named at the end."
)


def write_report(folder: Path, output: Path, title: str) -> None:
    """Write the report of a run or of an evaluation.

    Args:
        folder: A run folder (evaluation/, clip/, codec/, generator/, stages/, each of them if it is there), or an
            evaluation folder with results.jsonl.
        output: The HTML file; written beside and renamed.
        title: Heading of the page.

    Raises:
        UserError: There is nothing to report, or a file is damaged.
    """
    folder, output = Path(folder), Path(output)
    evaluation = folder / "evaluation" if (folder / "evaluation").is_dir() else folder
    found, stages = read_results(evaluation), read_stages(folder)
    results = {name: row for name, row in found.items() if not report_change.is_change(name)}
    sections = [
        ("pictures", "Pictures", report_run.pictures(evaluation)),
        ("change", "Before and after the fine-tuning", report_change.changes(found)),
        ("classification", "Naming what is in a picture", report_section.zero_shot(results)),
        ("retrieval", "Finding pictures and captions", report_section.retrieval(results)),
        ("composition", "Following a description", report_section.others(results, ("compositional", "composition"))),
        ("distance", "Generated against real pictures", report_section.distances(results)),
        ("other", "Other measurements", report_section.others(results, None)),
        ("training", "Training", report_run.curves(folder)),
        ("cost", "Energy and time", report_run.costs(stages)),
        ("repeat", "How to repeat this", report_run.repeat(stages, found)),
    ]
    sections = [entry for entry in sections if entry[2]]
    if not found and not stages and not sections:
        raise UserError(
            f"{folder}: nothing to report; it holds no evaluation/results.jsonl, no stages and no metrics.csv"
        )
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>{text}</section>' for name, heading, text in sections
    )
    style = files("leam_mm.report").joinpath("report.css").read_text(encoding="utf-8")
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n'
        f"<header><h1>{escape(title)}</h1><p>{INTRODUCTION}</p>{report_section.key_figures(results, stages)}"
        f'<nav aria-label="Sections">{links}</nav></header>\n<main>{body}</main>\n'
        f"<footer>Written {datetime.now(UTC):%d %B %Y, %H:%M} UTC by leam_mm.</footer>\n</body>\n</html>\n"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f"{output.name}.tmp-{os.getpid()}")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, output)


def read_stages(folder: Path) -> list[dict[str, Any]]:
    """What each stage of a run cost: the objects of stages/*.json by file name, else the `stages` of summary.json."""
    paths = sorted((folder / "stages").glob("*.json"))
    if not paths and (folder / "summary.json").is_file():
        content = _read_json(folder / "summary.json")
        stages = content.get("stages") if isinstance(content, dict) else None
        return [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
    return [stage for stage in (_read_json(path) for path in paths) if isinstance(stage, dict)]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
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
