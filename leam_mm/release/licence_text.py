"""LICENSE of a release: the whole text where it is at hand, else the name of the licence and its address."""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import leam_mm
from leam_mm.errors import UserError
from leam_mm.files import write_text

LICENCE_FILE = "LICENSE"
OWN = "Apache-2.0"  # of this project, so its text is in every installation
SPDX = re.compile(r"[A-Za-z0-9.+-]+")


def write_licence(folder: Path, licence: str, link: str | None = None) -> None:
    """Write the LICENSE of the weights.

    Args:
        folder: The release folder.
        licence: SPDX identifier, or LicenseRef- and the name of another licence.
        link: Address of the licence's text, if the publisher gave one.
    """
    text = own_licence() if licence == OWN else None
    write_text(folder / LICENCE_FILE, text if text is not None else licence_notice(licence, link))


def check_licence(licence: str) -> None:
    """Raise UserError for an empty licence, or one that is no single printable line."""
    if not licence.strip() or not licence.isprintable() or len(licence) > 200:
        raise UserError(
            f"--licence {licence[:80]!r} is no licence: give an SPDX identifier such as {OWN}, or LicenseRef- and "
            "a name"
        )


def own_licence() -> str | None:
    """Return the text of this project's licence, or None where the installation has no file of it."""
    beside = Path(leam_mm.__file__).parents[1] / LICENCE_FILE
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    try:
        return distribution("leam_mm").read_text(f"licenses/{LICENCE_FILE}")
    except PackageNotFoundError:
        return None


def licence_notice(licence: str, link: str | None = None) -> str:
    """Return the content of LICENSE for a licence whose text is not at hand."""
    if link is None and SPDX.fullmatch(licence) and not licence.startswith("LicenseRef-"):
        link = f"https://spdx.org/licenses/{licence}.html"
    address = f" It is at {link}." if link else ""
    return (
        f"The weights in this folder are released under the licence {licence}.\n\n"
        f"The text of this licence is not part of this folder.{address}\n"
    )
