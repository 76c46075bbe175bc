"""A small release with random weights, as a page serves it."""

import json
from pathlib import Path

from leam_mm.files import file_sha256, write_text
from leam_mm.release.release_folder import write_release
from leam_mm.release_record import OWN, read_record, write_record
from toys.generators import write_generator_run
from toys.pages import metric_row


def write_toy_release(folder: Path, checkpoints: dict[str, Path], name: str = "toy") -> Path:
    """A release of an untrained encoder and generator, with one result."""
    generator = write_generator_run(folder.with_name(folder.name + "_run"), **checkpoints)
    results = folder.with_name(folder.name + "_evaluation") / "results.jsonl"
    row = metric_row("toy/top1/de", 0.5) | {"checkpoints": {"clip": None, "generator": None}}
    write_text(results, json.dumps(row) + "\n")
    write_release(folder, name, "Apache-2.0", checkpoints["clip"], generator, results=[results])
    return folder


def add_files(release: Path, files: dict[str, str]) -> None:
    """Add or replace files of a release, and record their digests."""
    record = read_record(release)
    (release / "provenance.json").unlink(missing_ok=True)  # it states the files, too
    for name, text in files.items():
        write_text(release / name, text)
    names = [*(name for name in record.files if (release / name).is_file()), *files]
    facts = {key: value for key, value in record.content.items() if key not in ("format", "files", OWN)}
    write_record(release, {name: file_sha256(release / name) for name in names}, facts)
