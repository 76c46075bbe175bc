"""Check HTML pages, and records that reports and model cards show."""

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "link", "img", "br", "rect", "path", "polyline", "circle"}


class HtmlChecker(HTMLParser):
    """Parser that fails on elements that do not close in order; ``seen`` collects tags with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def shown_in_browser(page: Path, profile: Path) -> str:
    """Return a page as a browser builds it; fails if it writes to the console, skips without a browser."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --dump-dom"
    )
    command = [browser, *flags.split(), f"--user-data-dir={profile}", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


ENERGY_RECORD = {
    "joules": 7.2e6, "estimated_joules": None, "seconds": 3600.0, "node_seconds": 3600.0,
    "measured_node_seconds": 3600.0, "cpu_seconds": 7200.0, "samples": 640, "source": "a counter", "coverage": "node",
    "began_at": "2026-01-02T03:04:05+00:00", "ended_at": "2026-01-02T04:04:05+00:00", "hardware": "2 x a device",
}  # fmt: skip


def metric_row(name: str, value: float | None = 0.5, **more: object) -> dict:
    """A row of results.jsonl."""
    row = {"name": name, "value": value, "low": 0.4, "high": 0.6, "unit": "fraction", "samples": 96, "note": ""}
    return row | more
