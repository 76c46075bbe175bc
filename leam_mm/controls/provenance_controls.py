"""Controls of provenance: a tampered shard, an exchanged image, a forged Merkle root, licences without a name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from leam_mm.audits.audit import AuditContext, Verdict
from leam_mm.audits.provenance import Provenance
from leam_mm.controls.control import Control, Outcome
from leam_mm.controls.control_shards import (
    SAMPLES,
    Change,
    control_image,
    every,
    write_control_run,
    write_control_shards,
)
from leam_mm.controls.judged_results import judged
from leam_mm.data.shard_index import MANIFEST, ShardFolder
from leam_mm.data.shard_manifest import merkle_root, parse_manifest
from leam_mm.files import write_bytes

SUBJECT = "audit/provenance"
PASSED: dict[str, Verdict] = {"provenance": "pass", "provenance/integrity": "pass", "provenance/lineage": "pass"}


def _tampered(shards: Path) -> None:
    """Flip a bit in an image of the second shard."""
    tar = shards / ShardFolder(shards).shards[1].shard
    content = bytearray(tar.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    write_bytes(tar, bytes(content))


def _unchanged(shards: Path) -> None:
    """Leave the shards as they are."""


def _provenance(
    expected: dict[str, Verdict],
    folder: Path,
    change: Change = lambda number: {},
    damage: Callable[[Path], None] = _unchanged,
    exchanged: int | None = None,
    root: str | None = None,
) -> Outcome:
    """Audit shards, an encoder that was trained on them, and a generator that was built on the encoder."""
    stored = None if exchanged is None else lambda number: control_image(number + SAMPLES * (number == exchanged))
    shards = write_control_shards(folder / "shards", change, stored=stored)
    clip = write_control_run(folder / "clip", shards, root)
    generator = write_control_run(folder / "generator", shards, parents={"clip": clip})
    damage(shards)
    return judged(Provenance().run(AuditContext(clip, generator, folder, shards=shards)), expected)


def _other_parent(folder: Path) -> Outcome:
    """Audit a generator together with an encoder that it was not built on."""
    shards = write_control_shards(folder / "shards")
    grown = write_control_shards(folder / "grown", samples=SAMPLES + 1)
    clip, other = write_control_run(folder / "clip", shards), write_control_run(folder / "other", grown)
    generator = write_control_run(folder / "generator", shards, parents={"clip": clip})
    context = AuditContext(other, generator, folder, shards=shards)
    return judged(Provenance(further=[grown]).run(context), {"provenance/lineage": "fail"})


def _exchanged_manifest(folder: Path) -> Outcome:
    """Audit shards of which one was replaced together with its digest: only the checkpoints still know the old root."""
    shards, other = (write_control_shards(folder / name, samples=n) for name, n in (("shards", 24), ("other", 16)))
    clip = write_control_run(folder / "clip", shards)
    for path in other.iterdir():
        write_bytes(shards / path.name, path.read_bytes())
    assert merkle_root(parse_manifest((shards / MANIFEST).read_bytes(), "manifest")) == ShardFolder(other).merkle_root
    expected: dict[str, Verdict] = {"provenance/integrity": "pass", "provenance/lineage": "fail"}
    return judged(Provenance().run(AuditContext(clip, None, folder, shards=shards)), expected)


def provenance_controls() -> list[Control]:
    """Return the controls."""
    return [
        Control(SUBJECT, "shard with one changed bit", True, "integrity fails",
                partial(_provenance, {"provenance/integrity": "fail"}, damage=_tampered)),
        Control(SUBJECT, "image that was exchanged after its record was written", True, "integrity fails",
                partial(_provenance, {"provenance/integrity": "fail", "provenance/lineage": "pass"}, exchanged=5)),
        Control(SUBJECT, "checkpoint with a forged Merkle root", True, "lineage fails",
                partial(_provenance, {**PASSED, "provenance/lineage": "fail"}, root="ab" * 32)),
        Control(SUBJECT, "shards that were replaced together with their manifest", True, "lineage fails",
                _exchanged_manifest),
        Control(SUBJECT, "generator that was built on another encoder", True, "lineage fails", _other_parent),
        Control(SUBJECT, "one licence in twelve that is no licence", True, "fail",
                partial(_provenance, {**PASSED, "provenance": "fail"}, change=every(12, {"licence": "free to use"}))),
        Control(SUBJECT, "one sample in twelve without a date", True, "fail",
                partial(_provenance, {**PASSED, "provenance": "fail"}, change=every(12, {"fetched_at": None}))),
        Control(SUBJECT, "complete records, whole shards, checkpoints with their root", False, "pass",
                partial(_provenance, PASSED)),
    ]  # fmt: skip
