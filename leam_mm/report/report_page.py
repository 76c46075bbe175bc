"""One self-contained HTML page about a run: images, numbers with intervals, curves, energy, commands.

    python -m leam_mm.report.report_page --run runs/quickstart --output runs/quickstart/report.html

All texts are escaped, since captions are strangers' words.
"""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leam_mm import errors
from leam_mm.errors import UserError
from leam_mm.evaluators.results import read_results
from leam_mm.files import remove_leftovers, write_text
from leam_mm.json_text import parse_json
from leam_mm.report import (
    audit_section,
    language_section,
    recognition_section,
    report_images,
    report_run,
    report_section,
)
from leam_mm.report.key_figures import key_figures
from leam_mm.report.report_number import Row
from leam_mm.report.report_words import PAGE_LANGUAGES, word
from leam_mm.report.templates import Section, render_page
from leam_mm.run_lock import beside, run_lock

INTRODUCTION = (
    "What this run made, how good it is, and what it cost. Numbers come with a 95\u202f% interval where one can be "
    "given; what was not measured says so. The commands that lead here are at the end."
)
REMARKS = "Remarks of the measuring programs are in English."


def write_report(folder: Path, output: Path, title: str) -> None:
    """Write the report of a run or of an evaluation in English, and beside it in German.

    Args:
        folder: A run folder (with any of evaluation/, audits/, clip/, codec/, generator/, stages/), or an evaluation
            folder with results.jsonl.
        output: The English HTML file, written atomically; the German one is named like report.de.html.
        title: Heading of the page.

    Raises:
        UserError: There is nothing to report, or a file is damaged.
    """
    folder, output = Path(folder), Path(output)
    paths = {code: output if code == "en" else output.with_suffix(f".{code}.html") for code in PAGE_LANGUAGES}
    pages = {}
    for language in PAGE_LANGUAGES:
        others = [(code, path.name) for code, path in paths.items() if code != language]
        pages[language] = report_page(folder, title, language, others)
    for language, page in pages.items():
        write_text(paths[language], page)


def report_page(folder: Path, title: str, language: str, others: Sequence[tuple[str, str]] = ()) -> str:
    """Return the page in a language.

    Args:
        folder: As for ``write_report``.
        title: Heading of the page.
        language: en or de.
        others: The same page in other languages: code and file name of each.
    """
    sources = [folder / "evaluation" if (folder / "evaluation").is_dir() else folder, folder / "audits"]
    found = {name: row for source in sources for name, row in read_results(source).items()}
    pipeline = read_pipeline(folder)
    stages, controls = read_stages(folder, pipeline), audit_section.read_selftest(sources)
    results = {name: row for name, row in found.items() if not report_section.is_change(name)}
    content: dict[str, tuple[str, Any]] = {
        "recognition": ("Does it draw what it was taught?", recognition_section.sentences(found, language)),
        "images": ("Images", report_images.images(sources, language)),
        "audits": ("Audits", audit_section.audits(results, language)),
        "selftest": ("Self-test", audit_section.selftest(controls, language)),
        "change": ("Before and after the fine-tuning", report_section.changes(found, language)),
        "languages": ("Languages side by side", language_section.side_by_side(results, language)),
        "classification": ("Naming what is in an image", language_section.classification(results, language)),
        "retrieval": ("Finding images and captions", language_section.retrieval(results, language)),
        "scores": ("Scores by language", language_section.scores(results, language)),
        "composition": ("Following a description", report_section.composition(results, language)),
        "distance": ("Generated against real images", report_section.distances(results, language)),
        "other": ("Other measurements", report_section.others(results, language)),
        "training": ("Training", report_run.curves(folder, language)),
        "cost": ("Energy and time", report_run.costs(stages, language)),
        "repeat": ("How to repeat this", report_run.repeat(stages, found, pipeline)),
    }
    if not found and not stages and not any(shown for _, shown in content.values()):
        raise UserError(
            f"{folder}: nothing to report; it holds no evaluation/results.jsonl, no stages and no metrics.csv"
        )
    sections = [Section(name, word(heading, language), shown) for name, (heading, shown) in content.items()]
    now = datetime.now(UTC)
    written = f"{now:%d %B %Y, %H:%M} UTC" if language == "en" else f"{now:%d.%m.%Y, %H:%M} UTC"
    footer = word("Written {} by leam_mm.", language).format(written)
    introduction = word(INTRODUCTION, language) + ("" if language == "en" else f" {word(REMARKS, language)}")
    parts = Path(__file__).with_name("report.html.jinja")
    figures = recognition_section.key_figures(found, language) + key_figures(results, stages, controls, language)
    return render_page(parts, title, introduction, figures, sections, footer, language, others)


def read_pipeline(folder: Path) -> Row:
    """Return ``pipeline`` of summary.json: the commands of a pipeline in their order; empty without one."""
    path = folder / "summary.json"
    content = _read_json(path) if path.is_file() else None
    pipeline = content.get("pipeline") if isinstance(content, dict) else None
    return pipeline if isinstance(pipeline, dict) else {}


def read_stages(folder: Path, pipeline: Row) -> list[Row]:
    """Return the cost of each stage in the pipeline's order.

    Args:
        folder: The run. Its stages/*.json are read; without them, the ``stages`` of summary.json.
        pipeline: What ``read_pipeline`` returns; stages that it does not name come last, by name.
    """
    paths = sorted((folder / "stages").glob("*.json"))
    if not paths and (folder / "summary.json").is_file():
        content = _read_json(folder / "summary.json")
        stages = content.get("stages") if isinstance(content, dict) else None
        return _stages(stages) if isinstance(stages, list) else []
    order = pipeline.get("stages")
    names = [str(stage.get("name")) for stage in order if isinstance(stage, dict)] if isinstance(order, list) else []
    found = _stages([_read_json(path) for path in paths])
    return sorted(
        found, key=lambda stage: names.index(str(stage.get("name"))) if str(stage.get("name")) in names else len(names)
    )


def _stages(contents: list[Any]) -> list[Row]:
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
    parser.add_argument("--output", type=Path, help="the English HTML file (default: report.html in the run folder)")
    parser.add_argument("--title", help="heading of the page (default: the name of the run folder)")
    arguments = parser.parse_args()
    if not arguments.run.is_dir():
        raise UserError(f"--run {arguments.run}: no such folder; give the folder that the recipe wrote")
    output = arguments.output or arguments.run / "report.html"
    with run_lock(beside(output), output):
        remove_leftovers(output.parent, output.with_suffix(".*.html").name)
        write_report(arguments.run, output, arguments.title or f"Run {arguments.run.resolve().name}")
    print(f"wrote {output} and, in German, {output.with_suffix('.de.html')}")


if __name__ == "__main__":
    errors.run(main)
