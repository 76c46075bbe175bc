"""Git commit of the running code, for the evidence of checkpoints and releases."""

import os
import subprocess
from pathlib import Path

import leam_mm

GIT_SECONDS = 20


def code_commit(folder: Path | None = None) -> tuple[str | None, bool | None]:
    """Return the git commit of the running code and whether its files were changed since; None where not known.

    Args:
        folder: Root of the working tree; None takes the one that leam_mm lies in.
    """
    root = folder or Path(leam_mm.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None, None
    commit, state = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit, None if state is None else bool(state)


def _git(root: Path, *words: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
