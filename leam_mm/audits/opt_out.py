"""Opt-out compliance of training data: violations, coverage, withdrawn items, and the age of the evidence."""

import statistics
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

from leam_mm.audits.audit import Audit, AuditContext, AuditResult, Threshold
from leam_mm.audits.collection_dates import collection_date, ledger_dates
from leam_mm.audits.opt_out_status import MEANINGS, RecordedSignal, opt_out_status
from leam_mm.audits.stored_samples import FEWEST, StoredSample, rate_slice, read_stored
from leam_mm.audits.withdrawn_items import has_lists, keys_of, listed
from leam_mm.data.shard_index import ShardFolder
from leam_mm.data.tombstones import withdrawn_keys
from leam_mm.errors import UserError
from leam_mm.intervals.intervals import wilson_interval

MAPS_TO = ("AI Act Art. 53(1)(c)", "Directive (EU) 2019/790 Art. 4(3)", "public summary 3.1")
DAY = 24 * 3600


class OptOut(Audit):
    """Compares each sample's legal basis with the reservations that its record holds.

    A sample without evidence is unknown: it lowers the coverage and is no violation. One that a program generated has
    no other right holder.

    - class_path: leam_mm.audits.opt_out.OptOut
      init_args:
        file_rights: data_tools.rights.file_rights.rights_in_file
        withdrawn: data_tools.links.withdrawn_lists.lists_of_shards

    Args:
        samples: Samples that are read, drawn at random; None reads all.
        least_coverage: Smallest share of samples whose status is known, for a pass.
        oldest_days: Largest age in days of the check of an origin, for a pass; origins change their mind.
        file_rights: Function of the bytes of an image file that returns the rights signals in it (attributes kind,
            value, source and reserved); None reads the recorded signals only.
        withdrawn: Function of the path of the shards that returns the withdrawal lists beside them (WithdrawnLists).
        today: Day from which ages are counted, as YYYY-MM-DD; None takes the current one.
        seed: Seed of the draw.
    """

    name = "opt_out"

    def __init__(
        self,
        samples: int | None = None,
        least_coverage: float = 0.95,
        oldest_days: float = 365,
        file_rights: Callable[[bytes], Any] | None = None,
        withdrawn: Callable[[Path], Any] | None = None,
        today: str | None = None,
        seed: int = 0,
    ) -> None:
        """See the class for the arguments."""
        if samples is not None and samples < 1:
            raise UserError(f"OptOut: samples is {samples}: give at least 1, or null for all")
        try:
            date.fromisoformat(today or "2026-01-01")
        except ValueError:
            raise UserError(f"OptOut: today is {today!r}: write it as YYYY-MM-DD") from None
        self.samples, self.least_coverage, self.oldest_days = samples, least_coverage, oldest_days
        self.file_rights, self.withdrawn, self.today, self.seed = file_rights, withdrawn, today, seed

    def run(self, context: AuditContext) -> list[AuditResult]:
        """Read the records."""
        folder = ShardFolder(context.require("shards"))
        lists = self.withdrawn(folder.path) if self.withdrawn else None
        status: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        asked: dict[str, datetime | None] = {}
        hits = 0
        for sample in read_stored(folder, self.samples, self.seed):
            found, kind = ("unknown", "") if sample.fault else self._status(sample)
            status[found] += 1
            if found == "violated":
                reasons[kind] += 1
            elif found == "asked":
                asked[sample.key] = collection_date(sample.record, None)
            hits += lists is not None and listed(sample, lists)
        read = status.total()
        results = [self._violations(folder, status, reasons), self._coverage(folder, status)]
        results += self._withdrawn(folder, hits, read, lists is not None)
        return results + self._age(folder, asked)

    def _status(self, sample: StoredSample) -> tuple[str, str]:
        signals = self.file_rights(sample.image) if self.file_rights and sample.image is not None else ()
        stated = [RecordedSignal(one.kind, one.value, one.source, one.reserved) for one in signals]
        return opt_out_status(sample.record, stated)

    def _violations(self, folder: ShardFolder, status: Counter[str], reasons: Counter[str]) -> AuditResult:
        known, violations = status.total() - status["unknown"], status["violated"]
        slices: dict[str, Any] = {f"status={name}": status[name] for name in MEANINGS}
        slices |= {f"violated by {kind}": count for kind, count in sorted(reasons.items())}
        slices["violations per sample"] = rate_slice(violations, known)
        coverage = known / status.total()
        few = "" if violations or coverage >= self.least_coverage else f"the status of {1 - coverage:.1%} is unknown"
        said = f"{violations} of {known:,} samples with evidence{_part(folder, status.total())} violate a reservation"
        if not violations and known:
            said += f"; 95 % upper bound of the rate {min(1.0, 3 / known):.2g} (rule of three)"
        if status["synthetic"]:
            said += f"; {status['synthetic']:,} were generated by a program: nobody else can reserve rights"
        value = float(violations) if known else None
        return AuditResult(
            self.name, value, value, value, "count", known, Threshold(most=0), slices, said,
            fewest=0 if violations or status.total() == folder.samples else FEWEST, undecided=few, maps_to=MAPS_TO,
        )  # fmt: skip

    def _coverage(self, folder: ShardFolder, status: Counter[str]) -> AuditResult:
        read = status.total()
        known = read - status["unknown"]
        value = known / read
        low, high = (value, value) if read == folder.samples else wilson_interval(known, read)
        return AuditResult(
            f"{self.name}/coverage", value, low, high, "fraction", read, Threshold(least=self.least_coverage),
            reason=f"share of samples{_part(folder, read)} whose record shows a status", maps_to=MAPS_TO,
        )  # fmt: skip

    def _withdrawn(self, folder: ShardFolder, hits: int, read: int, compared: bool) -> list[AuditResult]:
        """Return how many withdrawn samples are still there; nothing where none was ever withdrawn."""
        name, beside = f"{self.name}/withdrawn", has_lists(folder.path)
        if beside and not compared:
            reason = "lists of withdrawals lie beside the shards: set `withdrawn` of OptOut, see docs/audits.md"
            return [AuditResult(name, None, None, None, "count", 0, None, reason=reason, not_run=True)]
        gone = withdrawn_keys(folder.path)
        if not (gone or beside):
            return []
        back = len(gone & keys_of(folder)) if gone else 0
        value = float(hits + back)
        reason = f"{back} of {len(gone):,} keys of tombstones are in the index"
        reason += f"; {hits} of {read:,} samples are on the lists beside the shards" if compared else ""
        return [
            AuditResult(
                name, value, value, value, "count", read, Threshold(most=0), reason=reason,
                fewest=0 if value or not compared or read == folder.samples else FEWEST,
                maps_to=("GDPR Art. 17", *MAPS_TO),
            )
        ]  # fmt: skip

    def _age(self, folder: ShardFolder, asked: dict[str, datetime | None]) -> list[AuditResult]:
        """Return the age of the oldest check; nothing where no sample rests on one."""
        if not asked:
            return []
        missing = {key for key, time in asked.items() if time is None}
        ledger = ledger_dates(folder, missing) if missing else {}
        now = datetime.combine(date.fromisoformat(self.today), time(), UTC) if self.today else datetime.now(UTC)
        dates = [time or collection_date({}, ledger.get(key)) for key, time in asked.items()]
        ages = [max(0.0, (now - one).total_seconds() / DAY) for one in dates if one is not None]
        undated = len(dates) - len(ages)
        oldest = max(ages) if ages else None
        slices = {"median": statistics.median(ages) if ages else None, "without a date": undated}
        return [
            AuditResult(
                f"{self.name}/evidence_age", oldest, oldest, oldest, "days", len(ages),
                Threshold(most=self.oldest_days), slices, "age of the oldest check of an origin",
                undecided=f"{undated:,} checks have no date" if undated else "", maps_to=MAPS_TO,
            )
        ]  # fmt: skip


def _part(folder: ShardFolder, read: int) -> str:
    return "" if read == folder.samples else f" (of {read:,} drawn from {folder.samples:,})"
