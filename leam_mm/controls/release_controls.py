"""Controls of openness and of documents: a release without its licence, a card with a changed number."""

import json
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import yaml

from leam_mm.audits.audit import Audit, AuditContext, Verdict
from leam_mm.audits.openness import Openness
from leam_mm.audits.release_documents import ReleaseDocuments
from leam_mm.controls.control import Control, Outcome
from leam_mm.controls.control_shards import write_control_shards
from leam_mm.controls.judged_results import judged
from leam_mm.data.shard_index import ShardFolder
from leam_mm.documents.facts_file import EVIDENCE_FILE, facts_record
from leam_mm.documents.openness import LICENCE_FILE
from leam_mm.documents.publisher import PublisherFields, Text
from leam_mm.documents.release_facts import DataFacts, ReleaseFacts, StageFacts
from leam_mm.documents.training_content import count_training_content
from leam_mm.documents.write_documents import write_documents
from leam_mm.files import bytes_sha256, write_text

WEIGHTS, SETTINGS, CARD = "model.safetensors", "configs/clip.yaml", "README.md"
SEEN = 123457  # samples; a number that stands in the card
RECIPE = {"max_samples": SEEN}


def _publisher() -> PublisherFields:
    """Return the fields of a publisher who states what the class III asks for."""
    answer = Text({"en": ["Control"], "de": ["Kontrolle"]})
    return PublisherFields(
        provider_name="Lake office", contact_email="lakes@example.org", version="1.0", release_date=date(2026, 12, 1),
        complaint_address="rights@example.org", intended_uses=answer, licence="Apache-2.0",
        code_repository="https://lakes.example/code", technical_report="https://lakes.example/report",
    )  # fmt: skip


def write_control_release(folder: Path, publisher: PublisherFields) -> Path:
    """Write a release of an encoder and the shards of its training: facts, documents, a file in place of the weights.

    Args:
        folder: The release; the shards lie beside it.
        publisher: What the publisher states.
    """
    row = {"name": "lakes/top1/en", "value": 0.5, "low": 0.4, "high": 0.6, "unit": "fraction", "samples": 96}
    row |= {"slices": {}, "note": "", "checkpoints": {"clip": {"sha256": "ab" * 32}}, "versions": {}, "settings": {}}
    contents = {WEIGHTS: "weights\n", SETTINGS: yaml.safe_dump(RECIPE), "results.jsonl": json.dumps(row) + "\n"}
    contents[LICENCE_FILE] = "Apache License\n"
    digests = {name: bytes_sha256(text.encode()) for name, text in contents.items()}
    shards = ShardFolder(write_control_shards(folder.parent / "lakes"))
    data = DataFacts("lakes", shards.merkle_root, shards.samples, None, {"art4_general": shards.samples})
    stage = StageFacts(
        "clip", 4321, SEEN, "ab" * 32, {shards.merkle_root: "lakes"}, None, {"torch": "2"}, recipe=RECIPE, inference=()
    )
    content = count_training_content([shards.path])
    facts = ReleaseFacts("lakes", "Apache-2.0", 32, 12, [stage], [data], [row], files=digests, content=content)
    for name, text in contents.items():
        write_text(folder / name, text)
    write_documents(facts, publisher, folder)
    files = {name: {"sha256": digest, "bytes": 1} for name, digest in digests.items()}
    write_text(folder / EVIDENCE_FILE, json.dumps(facts_record(facts) | {"files": files}))
    return folder


def _release(
    audit: Callable[[], Audit],
    expected: dict[str, Verdict],
    folder: Path,
    change: Callable[[Path], object] = Path.exists,
    publisher: Callable[[], PublisherFields] = _publisher,
) -> Outcome:
    release = write_control_release(folder / "release", publisher())
    change(release)
    return judged(audit().run(AuditContext(None, None, folder, release=release)), expected)


def _remove(name: str, release: Path) -> None:
    (release / name).unlink()


def _change_card(release: Path) -> None:
    """Change the samples seen in the card."""
    text = (release / CARD).read_text(encoding="utf-8")
    assert f"{SEEN:,}" in text
    write_text(release / CARD, text.replace(f"{SEEN:,}", f"{SEEN + 1:,}"))


def _change_facts(release: Path) -> None:
    """Change the samples seen in the facts; the documents keep the old number."""
    record = json.loads((release / EVIDENCE_FILE).read_text(encoding="utf-8"))
    record["stages"]["clip"]["samples_seen"] = SEEN + 1
    write_text(release / EVIDENCE_FILE, json.dumps(record))


def release_controls() -> list[Control]:
    """Return the controls."""
    openness, documents = "audit/openness", "audit/documents"
    half = partial(ReleaseDocuments, 0.55)
    return [
        Control(openness, "release whose licence was removed", True, "fail",
                partial(_release, Openness, {"openness": "fail"}, change=partial(_remove, LICENCE_FILE))),
        Control(openness, "release whose weights were removed", True, "fail",
                partial(_release, Openness, {"openness": "fail"}, change=partial(_remove, WEIGHTS))),
        Control(openness, "release without code and report", True, "fail",
                partial(_release, Openness, {"openness": "fail"}, publisher=PublisherFields)),
        Control(openness, "release of class III", False, "pass", partial(_release, Openness, {"openness": "pass"})),
        Control(documents, "card with a changed number", True, "fail",
                partial(_release, ReleaseDocuments, {"documents": "fail"}, change=_change_card)),
        Control(documents, "facts that were changed after the documents", True, "fail",
                partial(_release, ReleaseDocuments, {"documents": "fail"}, change=_change_facts)),
        Control(documents, "public summary that was removed", True, "fail",
                partial(_release, ReleaseDocuments, {"documents": "fail"},
                        change=partial(_remove, "documents/en/public_summary.md"))),
        Control(documents, "publisher who states nothing", True, "completeness fails",
                partial(_release, half, {"documents": "pass", "documents/completeness": "fail"},
                        publisher=PublisherFields)),
        Control(documents, "release as it was built", False, "pass",
                partial(_release, half, {"documents": "pass", "documents/completeness": "pass"})),
    ]  # fmt: skip
