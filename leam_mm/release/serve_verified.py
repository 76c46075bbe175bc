"""Serve a release after its check: ``release serve``."""

from pathlib import Path

from leam_mm.errors import UserError
from leam_mm.release.digest_cache import DigestCache, cache_file
from leam_mm.release.verify_release import verify_release
from leam_mm.serving.serve_command import ServeOptions, serve


def serve_verified(options: ServeOptions) -> int:
    """Serve the page of a release, and return the exit code; the release is checked before anything in it is opened."""
    return serve(options, check_verified)


def check_verified(folder: Path) -> None:
    """Check a release without a key.

    Raises:
        UserError: It has a fault; the first one is named.
    """
    faults = verify_release(folder, cache=DigestCache(cache_file())).faults
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UserError(
            f"{folder} is not served: {faults[0].line}{more}; python -m leam_mm.release verify {folder} lists them"
        )
