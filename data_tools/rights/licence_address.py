"""Map the address of a licence to its SPDX name and to the legal basis that it supports by itself.

Known are the deeds of Creative Commons (creativecommons.org/licenses, /publicdomain) and the open licences of European
governments. Any other address keeps the address as its name and supports no basis. Licences with NonCommercial or
NoDerivatives support none either, because later uses of the data are unknown. Names are those of spdx.org/licenses.
"""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from leam_mm.data.legal_basis import LegalBasis

MAX_LENGTH = 500
_DEED = re.compile(
    r"/licenses/(by(?:-nc)?(?:-nd|-sa)?)/([1-4]\.[015])"
    r"(?:/(?!deed|legalcode)([a-z]{2,8}))?(?:/(?:deed|legalcode)[\w.-]*)?/?"
)
_PUBLIC = re.compile(r"/publicdomain/(zero|mark)/1\.0(?:/(?:deed|legalcode)[\w.-]*)?/?")
# Ported Creative Commons licences of version 3.0 that have SPDX names; for others the address is the name.
_PORTS = {"by": ("at", "au", "de", "igo", "nl", "us"), "by-sa": ("at", "de", "igo")}
# Host, path, name.
_GOVERNMENTS = (
    ("www.govdata.de", "/dl-de/by-2-0", "DL-DE-BY-2.0"),
    ("www.govdata.de", "/dl-de/zero-2-0", "DL-DE-ZERO-2.0"),
    ("www.nationalarchives.gov.uk", "/doc/open-government-licence/version/3", "OGL-UK-3.0"),
    ("www.etalab.gouv.fr", "/wp-content/uploads/2017/04/ETALAB-Licence-Ouverte-v2.0.pdf", "etalab-2.0"),
    ("data.norge.no", "/nlod/en/2.0", "NLOD-2.0"),
    ("data.norge.no", "/nlod/no/2.0", "NLOD-2.0"),
)


@dataclass(frozen=True)
class Licence:
    """A licence that a page names.

    Args:
        name: SPDX name ("CC-BY-4.0"), or the address if there is none.
        address: Address as the page gives it.
        basis: Basis that it supports by itself: ``public_domain``, ``licensed``, or None.
    """

    name: str
    address: str
    basis: LegalBasis | None


def read_licence(address: str) -> Licence | None:
    """Return the licence of an address, or None if it is not an http(s) address."""
    address = "".join(address.split())[:MAX_LENGTH]
    try:
        parts = urlsplit(address)
        host, standard = (parts.hostname or ""), parts.port in (None, 80, 443) and not parts.username
    except ValueError:
        return None
    if parts.scheme.lower() not in ("http", "https") or not host:
        return None
    if host in ("creativecommons.org", "www.creativecommons.org") and standard:
        path = parts.path.lower()
        if deed := _DEED.fullmatch(path):
            return _creative_commons(address, *deed.groups())
        if public := _PUBLIC.fullmatch(path):
            name = "CC0-1.0" if public[1] == "zero" else "CC-PDM-1.0"
            return Licence(name, address, LegalBasis.public_domain)
    for known_host, path, name in _GOVERNMENTS:
        if host == known_host and standard and parts.path.rstrip("/") == path:
            return Licence(name, address, LegalBasis.licensed)
    return Licence(address, address, None)


def _creative_commons(address: str, kind: str, version: str, port: str | None) -> Licence:
    name = f"CC-{kind}-{version}".upper()
    name = f"{name}-{port.upper()}" if port else name
    known = not port or (version == "3.0" and port in _PORTS.get(kind, ()))
    open_to_all = "nc" not in kind.split("-") and "nd" not in kind.split("-")
    return Licence(name if known else address, address, LegalBasis.licensed if open_to_all else None)


def strictest(licences: list[Licence]) -> Licence | None:
    """Return the licence that allows least, or None for an empty list."""
    order = {None: 0, LegalBasis.licensed: 1, LegalBasis.public_domain: 2}
    return min(licences, key=lambda licence: (order[licence.basis], licence.name), default=None)
