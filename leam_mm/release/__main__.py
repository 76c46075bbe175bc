"""Turn checkpoints into a folder that open_clip and diffusers load, with a model card and digests.

python -m leam_mm.release --clip runs/quickstart/clip --generator runs/quickstart/generator --name quickstart \
    --output runs/quickstart/release --results runs/quickstart/evaluation/results.jsonl \
    --shards runs/quickstart/shards/train
"""

import argparse
import logging
from pathlib import Path

from rich.console import Console
from rich.table import Table

from leam_mm.errors import run
from leam_mm.recorded_classes import trust_modules


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m leam_mm.release",
        description="Write a release folder that open_clip and diffusers load, with a model card, licence, configs, "
        "and the digest of every file. An older release in the same folder is replaced; any other folder is refused.",
    )
    parser.add_argument(
        "--clip",
        type=Path,
        metavar="RUN",
        help="run folder or checkpoint of the encoder; not for a generator alone",
    )
    parser.add_argument("--generator", type=Path, metavar="RUN", help="run folder or checkpoint of the generator")
    parser.add_argument(
        "--codec", type=Path, metavar="RUN", help="the generator's codec, if it was moved since training"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the release folder")
    parser.add_argument("--name", required=True, help="name of the release (owner/name if it will go to a hub)")
    parser.add_argument(
        "--results", type=Path, nargs="*", default=[], metavar="FILE", help="results.jsonl files of evaluate.py"
    )
    parser.add_argument(
        "--shards",
        type=Path,
        nargs="*",
        default=[],
        metavar="DIR",
        help="training shards, to count samples and licences",
    )
    parser.add_argument("--licence", default="Apache-2.0", help="licence of the weights (default: %(default)s)")
    parser.add_argument(
        "--trust",
        default="",
        metavar="MODULES",
        help="modules of your own, such as my_lab, whose classes the checkpoints may name; several between commas",
    )
    return parser


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    parser = build_parser()
    options = parser.parse_args(args)
    if options.codec is not None and options.generator is None:
        parser.error("--codec belongs to a generator: give --generator too")
    trust_modules(options.trust)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("xformers").setLevel(logging.ERROR)  # no attention is computed here
    from transformers.utils import logging as transformers_logging

    from leam_mm.release.release_folder import EVIDENCE_FILE, write_release  # seconds of imports, not needed for --help

    transformers_logging.disable_progress_bar()
    console = Console()
    with console.status("writing the release"):
        facts = write_release(
            options.output, options.name, options.licence, options.clip,
            options.generator, options.codec, options.results, options.shards,
        )  # fmt: skip
    table = Table(title=f"wrote {options.output}")
    for column in ("part", "parameters", "samples seen"):
        table.add_column(column)
    for stage in facts.stages:
        seen = "not measured" if stage.samples_seen is None else f"{stage.samples_seen:,}"
        table.add_row(stage.kind, f"{stage.parameters:,}", seen)
    console.print(table)
    console.print(f"read {options.output / 'README.md'} before you publish; {EVIDENCE_FILE} holds the digests")


if __name__ == "__main__":
    run(main)
