"""Vetting rule for samples that were withdrawn from shards beside the output (data_tools/links/withdrawn_lists.py).

vet_shards applies it before all other rules wherever such lists exist, because a sample that was withdrawn from one
folder may still be in the folder it was vetted from.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_tools.links.withdrawn_lists import RULE, WithdrawnLists, lists_beside, read_lists
from data_tools.vetting.vetting_rule import Finding, Sample, VettingRule
from leam_mm.files import bytes_sha256


class WithdrawnSamples(VettingRule):
    """Drops samples whose address, domain, file or image was withdrawn.

    Args:
        lists: Folders of lists, as withdraw_samples writes them.
    """

    name = RULE

    def __init__(self, lists: list[Path]) -> None:
        """See the class for the arguments."""
        self.lists = lists

    def setting(self) -> dict[str, Any]:
        """Return the settings with the digest of the lists in place of their paths."""
        return super().setting() | {"lists": self._opened().sha256}

    def _opened(self) -> WithdrawnLists:
        return read_lists(tuple(self.lists))

    def judge(self, samples: list[Sample]) -> list[Finding]:
        """Look up each sample."""
        return [self._judge(sample) for sample in samples]

    def _judge(self, sample: Sample) -> Finding:
        lists, record = self._opened(), sample.record
        page = record.get("page_url")
        if hit := lists.find_address([str(record.get("url") or "")], page if isinstance(page, str) else None):
            return Finding(hit.rule, False, f"on the list {hit.list_name} of withdrawals", {"list": hit.list_name})
        digests = (str(record.get("sha256")), bytes_sha256(sample.content))
        if how := lists.find_image(digests, lambda: sample.pixels):
            return Finding(how, False, "an image that was withdrawn")
        return Finding("on none")


def withdrawn_rules(folders: Iterable[Path]) -> list[VettingRule]:
    """Return the rule for the lists beside some folders, or an empty list if there are none."""
    lists = sorted({path for folder in folders for path in lists_beside(folder)})
    return [WithdrawnSamples(lists)] if read_lists(tuple(lists)) else []
