"""Write a release folder from checkpoints and their evidence: ``release build``."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from leam_mm.documents.publisher_file import read_publisher
from leam_mm.errors import UserError
from leam_mm.recorded_classes import trust_modules
from leam_mm.release.licence_text import check_licence


@dataclass(frozen=True)
class BuildOptions:
    """Write a release folder: weights for open_clip and diffusers, a model card, the configs, the digest of every file.

    An older release in the same folder is replaced; any other folder is refused. A release whose audits failed or are
    missing is refused, unless release.yaml gives the reason, which the model card then shows.

    Args:
        output: The release folder.
        name: Name of the release (owner/name if it will go to a hub).
        clip: Run folder or checkpoint of the encoder; not for a generator alone.
        generator: Run folder or checkpoint of the generator.
        codec: The generator's codec, if it was moved since training.
        results: results.jsonl files of evaluate.py.
        shards: Training shards, to count samples and licences.
        description: Output folder of data_tools/describe_dataset.py with the counts of these shards, which are then not
            read a second time.
        licence: Licence of the weights.
        publisher: File of ``init`` with what only the publisher knows, such as names and addresses.
        onnx: Write each network as an ONNX file, too (needs the extra onnx, and minutes).
        average: Which weights to release: ``trained``, the average of each run; ``none``, the last weights; or a width
            such as 0.1, an average that is put together from the snapshots of the generator's run.
        variants: Further files of weights for transformers and diffusers in 16 bits: bfloat16, float16.
        trust: Modules of your own, such as my_lab, whose classes the checkpoints may name; several between commas.
    """

    output: Path
    name: str
    clip: Path | None = None
    generator: Path | None = None
    codec: Path | None = None
    results: list[Path] = field(default_factory=list, metadata={"nargs": "*"})
    shards: list[Path] = field(default_factory=list, metadata={"nargs": "*"})
    description: Path | None = None
    licence: str = "Apache-2.0"
    publisher: Path | None = None
    onnx: bool = False
    average: str = "trained"
    variants: list[Literal["bfloat16", "float16"]] = field(default_factory=list, metadata={"nargs": "*"})
    trust: str = ""

    def __post_init__(self) -> None:
        """Check what the options are together.

        Raises:
            UserError: An option is empty, or belongs to another that is not given.
        """
        if not self.name.strip() or not self.name.isprintable():
            raise UserError(f"--name is {self.name!r}: give a name in one line, such as my-lab/my-model")
        check_licence(self.licence)
        if self.codec is not None and self.generator is None:
            raise UserError("--codec belongs to a generator: give --generator too")


def build(options: BuildOptions) -> int:
    """Write the release, print what it holds and return the exit code."""
    publisher = read_publisher(options.publisher)
    trust_modules(options.trust)
    logging.getLogger("xformers").setLevel(logging.ERROR)  # no attention is computed here
    from transformers.utils import logging as transformers_logging

    from leam_mm.documents.contradictions import missing_fields  # seconds of imports, not needed for --help
    from leam_mm.release.release_folder import EVIDENCE_FILE, write_release
    from leam_mm.release.release_gate import check_release

    transformers_logging.disable_progress_bar()
    console = Console()
    with console.status("writing the release"):
        facts = write_release(
            options.output, options.name, options.licence, options.clip,
            options.generator, options.codec, options.results, options.shards, publisher, options.description,
            options.onnx,
            variants=options.variants, average=options.average,
            check=check_release,
        )  # fmt: skip
    table = Table(title=f"wrote {options.output}")
    for column in ("part", "parameters", "samples seen"):
        table.add_column(column)
    for stage in facts.stages:
        seen = "not measured" if stage.samples_seen is None else f"{stage.samples_seen:,}"
        table.add_row(stage.kind, f"{stage.parameters:,}", seen)
    console.print(table)
    for line in missing_fields(publisher):
        console.print(f"release.yaml: {line}", soft_wrap=True)
    console.print(f"read {options.output / 'README.md'} before you publish; {EVIDENCE_FILE} holds the digests")
    return 0
