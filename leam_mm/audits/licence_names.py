"""Whether the licence of a sample is an SPDX expression, or the address of a licence.

Known are the licences that the documents of a release know as open (leam_mm/documents/openness.py), all licences of
Creative Commons, and those of European governments that data_tools reads from pages. Names: spdx.org/licenses; form of
expressions: SPDX specification 3.0.1, annex B.
"""

import re
from urllib.parse import urlsplit

from leam_mm.documents.openness import CODE, CONTENT

# By version: parts of the name, and jurisdictions that have a name of their own (SPDX licence list 3.27).
_CREATIVE_COMMONS = re.compile(
    r"CC-BY(-NC)?(-ND|-SA)?-(1\.0|2\.0|2\.5|3\.0|4\.0)"
    r"|CC-SA-1\.0|CC-BY-(2\.5-AU|3\.0-(AT|AU|DE|IGO|NL|US))|CC-BY-SA-(2\.0-UK|2\.1-JP|3\.0-(AT|DE|IGO))|CC-BY-NC-3\.0-DE"
    r"|CC-BY-ND-3\.0-DE|CC-BY-NC-ND-3\.0-(DE|IGO)|CC-BY-NC-SA-(2\.0-(DE|FR|UK)|3\.0-(DE|IGO))"
)
GOVERNMENTS = frozenset(
    ("DL-DE-BY-2.0", "DL-DE-ZERO-2.0", "OGL-UK-1.0", "OGL-UK-2.0", "OGL-UK-3.0", "etalab-2.0", "NLOD-1.0", "NLOD-2.0")
)
KNOWN = CODE | CONTENT | GOVERNMENTS | {"CC-PDDC", "CC-PDM-1.0", "Unlicense", "GFDL-1.2-only", "GFDL-1.3-or-later"}
_REFERENCE = re.compile(r"(DocumentRef-[A-Za-z0-9.-]+:)?LicenseRef-[A-Za-z0-9.-]+")
MAX_LENGTH = 500


def is_spdx(licence: str) -> bool:
    """Return whether a text is an SPDX expression of known names, such as ``MIT OR CC-BY-4.0``.

    Args:
        licence: The licence of a sample.
    """
    words = licence.replace("(", " ").replace(")", " ").split() if len(licence) <= MAX_LENGTH else []
    return bool(words) and len(words) % 2 == 1 and all(
        _is_name(word) if number % 2 == 0 else word in ("AND", "OR") for number, word in enumerate(words)
    )  # fmt: skip


def is_licence_address(licence: str) -> bool:
    """Return whether a text is the address of a licence, which stands for one without an SPDX name."""
    try:
        parts = urlsplit(licence)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and len(parts.path) > 1


def _is_name(word: str) -> bool:
    name = word.removesuffix("+")
    return name in KNOWN or bool(_CREATIVE_COMMONS.fullmatch(name) or _REFERENCE.fullmatch(word))
