"""Write a page that compares two releases: ``release compare``."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from leam_mm.files import write_text
from leam_mm.release.digest_cache import DigestCache, cache_file
from leam_mm.release.verify_command import show
from leam_mm.release.verify_release import verify_release


@dataclass(frozen=True)
class CompareOptions:
    """Compare two releases on one HTML page: metrics, audits, models, data, energy. Releases with faults are refused.

    Args:
        a: Release folder A.
        b: Release folder B; differences are B minus A.
        output: The HTML file.
        no_cache: Read large files again, even if they did not change since the last check.
    """

    a: Path
    b: Path
    output: Path
    no_cache: bool = False


def compare(options: CompareOptions) -> int:
    """Check both releases, write the page and return the exit code."""
    from leam_mm.release.release_comparison import comparison_page  # a second of imports

    console = Console(markup=False, highlight=False, soft_wrap=True)
    cache = DigestCache(None if options.no_cache else cache_file())
    for folder in (options.a, options.b):
        found = verify_release(folder, cache=cache)
        if found.faults:
            show(found, folder, console)
            return 1
    write_text(options.output, comparison_page(options.a, options.b))
    console.print(f"wrote {options.output}")
    return 0
