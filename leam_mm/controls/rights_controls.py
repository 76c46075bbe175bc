"""Controls of opt-out compliance: ignored reservations, missing evidence, withdrawn images that are still there."""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from leam_mm.audits.audit import AuditContext, Verdict
from leam_mm.audits.opt_out import OptOut
from leam_mm.controls.control import Control, Outcome
from leam_mm.controls.control_shards import Change, control_image, every, signal, write_control_shards
from leam_mm.controls.judged_results import judged
from leam_mm.data.tombstones import TOMBSTONES
from leam_mm.files import bytes_sha256, write_text

SUBJECT, TODAY = "audit/opt_out", "2026-11-29"
ASKED = signal("robots.txt", "allowed", False)
FORBIDDEN = signal("robots.txt", "Disallow: /", True)
RESERVED = signal("tdmrep.json", "/: 1", True, "/.well-known/tdmrep.json")
HEADER = signal("header:tdm-reservation", "0", False, "/1.png")


class _Digests:
    """Withdrawal lists that know files by their SHA-256 only."""

    def __init__(self, digests: set[str]) -> None:
        self.digests = digests

    def find_address(self, addresses: Iterable[str], page: str | None = None) -> object | None:
        return None

    def find_image(self, digests: Iterable[str], pixels: Callable[[], np.ndarray]) -> str | None:
        return "sha256" if self.digests & set(digests) else None


def _consent(*signals: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"consent": {"origin": list(signals)}, **more}


def _opt_out(change: Change, expected: dict[str, Verdict], folder: Path) -> Outcome:
    shards = write_control_shards(folder / "shards", change)
    return judged(OptOut(today=TODAY).run(AuditContext(None, None, folder, shards=shards)), expected)


def _withdrawn(listed: int | None, stone: str, verdict: Verdict, folder: Path) -> Outcome:
    """Audit shards beside which lists and a tombstone lie."""
    shards = write_control_shards(folder / "shards")
    digest = "0" * 64 if listed is None else bytes_sha256(control_image(listed))
    (folder / "shards.blocklists").mkdir()
    write_text(folder / "shards.blocklists" / "withdrawn.sha256", digest + "\n")
    write_text(shards / TOMBSTONES, json.dumps({"key": stone}) + "\n")
    audit = OptOut(withdrawn=lambda path: _Digests({digest}), today=TODAY)
    return judged(audit.run(AuditContext(None, None, folder, shards=shards)), {"opt_out/withdrawn": verdict})


def rights_controls() -> list[Control]:
    """Return the controls."""
    synthetic = {"legal_basis": "synthetic", "consent": {}}
    licensed = _consent(ASKED, RESERVED, legal_basis="licensed", licence="CC-BY-4.0")
    lifted = _consent(ASKED, RESERVED, HEADER)
    clean = every(3, synthetic, (licensed, lifted))
    passed: dict[str, Verdict] = {"opt_out": "pass", "opt_out/coverage": "pass", "opt_out/evidence_age": "pass"}
    return [
        Control(SUBJECT, "reservation that was ignored", True, "fail",
                partial(_opt_out, every(12, _consent(ASKED, RESERVED)), {"opt_out": "fail"})),
        Control(SUBJECT, "robots.txt that forbids access to a licensed image", True, "fail",
                partial(_opt_out, every(12, _consent(FORBIDDEN, legal_basis="licensed")), {"opt_out": "fail"})),
        Control(SUBJECT, "no evidence for a third of the samples", True, "inconclusive, and coverage fails",
                partial(_opt_out, every(3, {"consent": {}}), {"opt_out": "inconclusive", "opt_out/coverage": "fail"})),
        Control(SUBJECT, "origin that was asked two years ago", True, "age of the evidence fails",
                partial(_opt_out, every(12, {"fetched_at": "2024-11-29T00:00:00+00:00"}),
                        {"opt_out": "pass", "opt_out/evidence_age": "fail"})),
        Control(SUBJECT, "withdrawn image that is still in the shards", True, "fail",
                partial(_withdrawn, 7, "999999", "fail")),
        Control(SUBJECT, "key of a tombstone that is in the index again", True, "fail",
                partial(_withdrawn, None, "000003", "fail")),
        Control(SUBJECT, "generated, licensed, and reserved by a file that a header lifts", False, "pass",
                partial(_opt_out, clean, passed)),
        Control(SUBJECT, "withdrawn image that is gone", False, "pass", partial(_withdrawn, None, "999999", "pass")),
    ]  # fmt: skip
