"""Audits of models, data and releases: results.jsonl with verdicts, and report.html.

python evaluate.py audit --config configs/audit_quickstart.yaml
"""

from pathlib import Path
from typing import Literal

import torch
from jsonargparse import auto_cli
from rich.console import Console

from leam_mm.audits.audit import Audit, AuditContext
from leam_mm.audits.run_audits import run_audits
from leam_mm.errors import UserError, printable
from leam_mm.evaluators.results import RESULTS
from leam_mm.recorded_classes import trust_modules
from leam_mm.report.report_page import write_report
from leam_mm.run_lock import output_lock


def audit(
    audits: list[Audit],
    output: Path,
    clip: Path | None = None,
    generator: Path | None = None,
    codec: Path | None = None,
    shards: Path | None = None,
    held_out: Path | None = None,
    release: Path | None = None,
    results: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    trust: str = "",
) -> None:
    """Run audits; one that lacks an input is `not_run` and says why. A failed audit leaves the exit code at 0.

    Args:
        audits: Audits by dotted path; --audits+ CLASS gives one on the command line.
        output: Folder for results.jsonl (new lines are appended) and report.html.
        clip: Encoder: checkpoint, run, release, folder of open_clip, or its NAME:TAG.
        generator: Generator: checkpoint, run, release, or a PRXPipeline of diffusers.
        codec: Codec: checkpoint, run, release, or an autoencoder of diffusers.
        shards: Shard folder of the training data.
        held_out: Shard folder of the same source that no model was trained on.
        release: Release folder.
        results: results.jsonl of earlier evaluations, or its folder.
        device: Device; auto uses the GPU if there is one.
        trust: Modules of your own, such as my_lab, whose classes the checkpoints may name; several between commas.
    """
    trust_modules(trust)
    if not audits:
        raise UserError("no audit is given: list them under `audits:` in the file of --config")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu")
    name = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    context = AuditContext(clip, generator, output, torch.device(name), codec, shards, held_out, release, results)
    console = Console(stderr=True, highlight=False)
    with output_lock(output):
        found = run_audits(audits, context, console.print)
        write_report(output, output / "report.html", title=f"Audits {output.name}")
    width = max(len(result.audit) for result in found)
    for result in found:
        print(printable(f"{result.audit:{width}}  {result.verdict:12}  {result.as_dict()['note']}".rstrip()))
    print(f"wrote {output / RESULTS} and {output / 'report.html'}")


def main(args: list[str]) -> None:
    """Parse the command line and audit."""
    auto_cli(audit, args=args, as_positional=False, exit_on_error=False, prog="evaluate.py audit")
