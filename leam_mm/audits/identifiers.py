"""Validated identifiers of persons in texts, in a form that reveals none of them."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from leam_mm.audits.audit import NotRun
from leam_mm.audits.stored_samples import rate_slice
from leam_mm.errors import UserError

SHOWN = 20  # examples
PER = 10_000  # texts that a rate refers to


@dataclass
class IdentifierCounts:
    """Counts of validated identifiers over texts.

    Args:
        kinds: Kinds that count, such as email; None counts all of leam_mm/data/personal_data.py.
        texts: Number of texts.
        hits: Number of texts with an identifier.
        found: Identifiers by kind.
        examples: The first ones: kind, what validated it, masked form, and digest of the key of the sample.
    """

    kinds: Collection[str] | None = None
    texts: int = 0
    hits: int = 0
    found: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, text: str, key: str, find: Callable[[str], Any]) -> None:
        """Search a text.

        Args:
            text: A caption, or what was read in an image.
            key: Key of its sample.
            find: The finder, see `load_finder`.
        """
        self.texts += 1
        own = [one for one in find(text) if one.validated and (self.kinds is None or one.kind in self.kinds)]
        self.hits += bool(own)
        for one in own:
            self.found[one.kind] += 1
            if len(self.examples) < SHOWN:
                self.examples.append({
                    "kind": one.kind, "validated by": one.detail, "form": masked(text[one.start : one.end]),
                    "sample": hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:12],
                })  # fmt: skip

    def slices(self) -> dict[str, Any]:
        """Return rates by kind, and the examples."""
        rates = {f"kind={kind}": rate_slice(count, self.texts, PER) for kind, count in sorted(self.found.items())}
        return {f"texts with one per {PER:,}": rate_slice(self.hits, self.texts, PER), **rates} | (
            {"examples": self.examples} if self.examples else {}
        )

    def summary(self, what: str) -> str:
        """Return the counts in words.

        Args:
            what: What the texts are, such as captions.
        """
        said = f"{self.hits:,} of {self.texts:,} {what} hold a validated identifier"
        if self.texts and not self.hits:
            said += f"; 95 % upper bound {min(PER, 3 * PER / self.texts):.2g} per {PER:,} (rule of three)"
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.found.most_common())
        return f"{said}: {kinds}" if kinds else said


def load_finder(kinds: Collection[str] | None) -> Callable[[str], Any]:
    """Return the finder of personal data; its validators are libraries of the extra ``data``.

    Args:
        kinds: Kinds that count, which are checked.

    Raises:
        NotRun: The libraries are not installed.
        UserError: A kind is not known.
    """
    try:
        from leam_mm.data.personal_data import KINDS, find_personal_data
    except ImportError as error:
        raise NotRun(f"{error.name} is not installed: pip install 'leam_mm[data]'") from None
    if wrong := sorted(set(kinds or ()) - set(KINDS)):
        raise UserError(f"kinds names {wrong[0]!r}: give some of {', '.join(KINDS)}")
    return find_personal_data


def masked(text: str) -> str:
    """Return the form of an identifier: every letter as x, every digit as 9."""
    return re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "9", text))
