"""What a licence's address on a page means: its SPDX name, and which legal basis it supports on its own.

Known are Creative Commons' deeds (creativecommons.org/licenses, /publicdomain), the open licences of European
governments, and nothing else: an unknown address stays an address and supports no basis. One with NonCommercial or
NoDerivatives supports none either: nobody knows here who will use the data and how. Names from spdx.org/licenses.
"""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from data_tools.rights.legal_basis import LegalBasis

MAX_LENGTH = 500
_DEED = re.compile(
    r"/licenses/(by(?:-nc)?(?:-nd|-sa)?)/([1-4]\.[015])"
    r"(?:/(?!deed|legalcode)([a-z]{2,8}))?(?:/(?:deed|legalcode)[\w.-]*)?/?"
)
_PUBLIC = re.compile(r"/publicdomain/(zero|mark)/1\.0(?:/(?:deed|legalcode)[\w.-]*)?/?")
# Ported Creative Commons licences that SPDX has names for, of version 3.0; of others the address is the name.
_PORTS = {"by": ("at", "au", "de", "igo", "nl", "us"), "by-sa": ("at", "de", "igo")}
# Host, beginning of the path, name.
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
    """A licence as it stands on a page.

    Args:
        name: SPDX name ("CC-BY-4.0"); the address itself where there is none.
        address: As the page gives it.
        basis: What it supports by itself: ``public_domain``, ``licensed``, or None for nothing.
    """

    name: str
    address: str
    basis: LegalBasis | None


def read_licence(address: str) -> Licence | None:
    """Read the address of a licence, or nothing where it is no http(s) address."""
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
    """Of what a page says of one image, that which allows least; nothing where it says nothing."""
    order = {None: 0, LegalBasis.licensed: 1, LegalBasis.public_domain: 2}
    return min(licences, key=lambda licence: (order[licence.basis], licence.name), default=None)
