"""Measure a trained encoder, a generator or both, and write results.jsonl and report.html.

python evaluate.py --config configs/evaluate_quickstart.yaml
python evaluate.py --config configs/evaluate_emoji.yaml --clip runs/emoji/clip --output runs/emoji/evaluation
python evaluate.py audit --config configs/audit_quickstart.yaml
python evaluate.py encoder --model runs/quickstart/clip --images photos --output runs/photos
python evaluate.py selftest
python evaluate.py compare runs/a/evaluation runs/b/evaluation

Each command has its own --help.
"""

import logging
import sys
import time
from argparse import ArgumentError
from pathlib import Path
from typing import Literal

from leam_mm import errors

if __name__ == "__main__":
    errors.end_at_interrupt()  # the imports below take seconds

import torch
from jsonargparse import auto_cli
from rich.console import Console

from leam_mm.checkpoint import find_checkpoint
from leam_mm.config_error import moved_option
from leam_mm.errors import UserError
from leam_mm.evaluate_commands import (
    audit_command,
    benchmark_folder_command,
    compare_command,
    encoder_command,
    images_command,
    selftest_command,
    text_to_image_command,
)
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator
from leam_mm.evaluators.finished_evaluators import input_digests, is_finished, model_digests
from leam_mm.evaluators.results import RESULTS, append_results, evidence, read_lines
from leam_mm.model_address import address_kind
from leam_mm.recorded_classes import trust_modules
from leam_mm.report.report_page import write_report
from leam_mm.run_lock import output_lock

COMMANDS = {
    "audit": audit_command,
    "benchmark_folder": benchmark_folder_command,
    "compare": compare_command,
    "encoder": encoder_command,
    "images": images_command,
    "selftest": selftest_command,
    "text_to_image": text_to_image_command,
}


def evaluate(
    evaluators: list[Evaluator],
    output: Path,
    clip: Path | None = None,
    generator: Path | None = None,
    codec: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    trust: str = "",
    resume: bool = False,
) -> None:
    """Run evaluators one after the other; the results of each are written before the next one starts.

    Args:
        evaluators: Evaluators by dotted path.
        output: Folder for results.jsonl (new lines are appended), images and report.html.
        clip: Encoder: checkpoint, run, release, folder of open_clip, or its NAME:TAG.
        generator: Generator: checkpoint, run, release, or a PRXPipeline of diffusers.
        codec: Codec: checkpoint, run, release, or an autoencoder of diffusers.
        device: Device; auto uses the GPU if there is one.
        trust: Modules of your own, such as my_lab, whose classes the checkpoints may name; several between commas.
        resume: Skip evaluators whose results the output folder holds, with equal settings, inputs, models and versions.
    """
    trust_modules(trust)
    if not evaluators:
        raise UserError("no evaluator is given: list them under `evaluators:` in the file of --config")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu")
    for path in (clip, generator, codec):
        if path is not None and address_kind(path) == "run":
            find_checkpoint(path)  # fail on a wrong path before hours of measuring
    name = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    context = EvaluationContext(clip, generator, output, torch.device(name), codec)
    with output_lock(output):
        console = Console(stderr=True, highlight=False)
        models = model_digests(context)
        for number, evaluator in enumerate(evaluators, start=1):
            label, inputs = f"{number}/{len(evaluators)} {type(evaluator).__name__}", input_digests(evaluator)
            if resume and is_finished(read_lines(output / RESULTS), evaluator, inputs, models):
                console.print(
                    f"{label}: skipped, measured before with equal settings, inputs, models and versions",
                    soft_wrap=True,
                )
                continue
            console.print(f"{label} on {name}")
            start = time.monotonic()
            context.used.clear()
            metrics = evaluator.run(context)
            record = evidence(context, evaluator, time.monotonic() - start, inputs | models)
            append_results(output, metrics, record)
        write_report(output, output / "report.html", title=f"Evaluation {output.name}")
    print(f"wrote {output / RESULTS} and {output / 'report.html'}")


def commands_help() -> str:
    """Return the commands with one line each: the first line of their modules' docstrings."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {(module.__doc__ or '').splitlines()[0]}" for name, module in COMMANDS.items()]
    head = "usage: evaluate.py COMMAND ...; python evaluate.py COMMAND --help has its options\n\ncommands:"
    return "\n".join([head, *lines, "", "Without a command, evaluate.py runs the evaluators of a recipe:", ""])


def main(args: list[str] | None = None) -> None:
    """Parse the command line and run the command; an error of jsonargparse becomes one line."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    words = sys.argv[1:] if args is None else args
    try:
        if words and not words[0].startswith("-"):
            if words[0] not in COMMANDS:
                raise UserError(f"unknown command {words[0]!r}: use one of {', '.join(COMMANDS)}, or options alone")
            COMMANDS[words[0]].main(words[1:])
        else:
            if not words:
                raise UserError(f"no command is given: use one of {', '.join(COMMANDS)}, or --config FILE; see --help")
            if words[0] in ("-h", "--help"):
                print(commands_help())
            auto_cli(evaluate, args=words, as_positional=False, exit_on_error=False)
    except ArgumentError as error:
        lines = [line.strip(" -") for line in str(error).splitlines()]
        text = "; ".join(line for line in lines if line).replace(":;", ":")
        raise UserError("; ".join(filter(None, (text, moved_option(str(error)))))) from None


if __name__ == "__main__":
    errors.run(main)
