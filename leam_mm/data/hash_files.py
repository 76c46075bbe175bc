"""Read files of hashes of images: SHA-256, MD5, and the perceptual hash PDQ.

A list is a UTF-8 text file whose extension is its kind: ``NAME.sha256``, ``NAME.md5`` or ``NAME.pdq``. Each line starts
with a hash in hex digits (64, 32 and 64); what follows white space or a comma is ignored, so that the output of
sha256sum and md5sum and the lists that PDQ's authors exchange (``hash,id``) can be used as they are. Empty lines and
lines that start with ``#`` are skipped. A csv file with columns ``sha256``, ``md5`` or ``pdq`` holds several lists.
"""

import csv
import re
from pathlib import Path

from leam_mm.errors import UserError

DIGITS = {"sha256": 64, "md5": 32, "pdq": 64}
MAX_BYTES = 1 << 28  # four million PDQ hashes
BREAK = re.compile(r"[\s,;]")


def read_hashes(path: Path) -> dict[str, set[bytes]]:
    """Return the hashes of a list by their kind.

    Raises:
        UserError: The file is missing, has another extension or no hash, or a line does not start with one.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"hash list {path} cannot be read ({error}): give a text file in UTF-8") from None
    kind = path.suffix.lower().lstrip(".")
    if kind == "csv":
        rows = csv.DictReader(text.splitlines())
        try:
            kinds = [name for name in DIGITS if name in (rows.fieldnames or [])]
            cells = [(rows.line_num, name, row[name]) for row in rows for name in kinds if row[name]]
        except csv.Error as error:
            raise UserError(f"hash list {path} cannot be read ({error}): write it again") from None
    elif kind in DIGITS:
        lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1))
        cells = [(number, kind, BREAK.split(line)[0]) for number, line in lines if line and not line.startswith("#")]
        kinds = [kind]
    else:
        raise UserError(f"hash list {path}: unknown kind: name it .sha256, .md5, .pdq, or .csv with such columns")
    found: dict[str, set[bytes]] = {name: set() for name in kinds}
    for number, name, cell in cells:
        try:
            value = bytes.fromhex(cell.strip())
        except ValueError:
            value = b""
        if 2 * len(value) != DIGITS[name]:
            raise UserError(f"hash list {path}, line {number}: not a {name} of {DIGITS[name]} hex digits: correct it")
        found[name].add(value)
    if not any(found.values()):
        raise UserError(f"hash list {path} holds no hash: an empty list lets every image pass; remove it from `lists`")
    return found
