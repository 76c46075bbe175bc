"""The folder of a gathered corpus: the address at which it is served, and the replacement of an earlier one."""

from pathlib import Path
from urllib.parse import urlsplit

from leam_mm.errors import UserError


def served_address(base_url: str) -> str:
    """Return the address of --base-url with a slash at its end.

    Raises:
        UserError: Neither http nor https, or no host.
    """
    address = urlsplit(base_url)
    if address.scheme not in ("http", "https") or not address.netloc:
        raise UserError(f"--base-url {base_url}: give an http or https address, such as http://127.0.0.1:8000/")
    return base_url.rstrip("/") + "/"


def replace_output(staging: Path, output: Path) -> None:
    """Replace the results of an earlier run; images first, since the tables refer to them."""
    for path in sorted(staging.iterdir(), key=lambda path: (path.is_file(), path.name)):
        target = output / path.name
        if target.is_dir():
            target.rename(staging / f"{path.name}.before")
        path.rename(target)
