"""The arithmetic mode is set, recorded and compared; the user's own choice wins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from leam_mm.arithmetic import MODE, arithmetic_record, caution, changes, processor, set_mode


def test_processor_is_read_or_empty(tmp_path: Path) -> None:
    text = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 7B13\n\nprocessor\t: 1\nmodel name\t: x\n"
    (tmp_path / "cpuinfo").write_text(text)
    assert processor(tmp_path / "cpuinfo") == {"vendor": "AuthenticAMD", "model": "AMD EPYC 7B13"}
    assert processor(tmp_path / "missing") == {"vendor": "", "model": ""}


@pytest.mark.parametrize(
    ("vendor", "before", "after"),
    [("GenuineIntel", None, "AUTO"), ("GenuineIntel", "AVX2", "AVX2"), ("AuthenticAMD", None, None), ("", None, None)],
)
def test_mode_is_set_where_it_is_free(vendor: str, before: str | None, after: str | None) -> None:
    environment = {} if before is None else {MODE: before}
    set_mode(environment, vendor)
    assert environment.get(MODE) == after


def test_importing_the_package_sets_the_mode_before_torch_loads() -> None:
    environment = {name: value for name, value in os.environ.items() if name != MODE}
    code = f"import leam_mm, os, sys; print(os.environ.get({MODE!r}), 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    expected = "AUTO" if processor()["vendor"] == "GenuineIntel" else None
    assert said.stdout.split() == [str(expected), "False"]


def test_record_and_changes() -> None:
    record = arithmetic_record(2)
    assert set(record) == {"processor", "mkl_mode", "threads"}
    assert changes(record, record) == "" and changes({}, record) == ""
    assert changes(record | {"threads": 1}, record) == "threads 1 -> 2"


def test_caution_names_the_mode_only_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    plain = {"processor": "AMD EPYC", "mkl_mode": None, "threads": 1}
    assert f"{MODE}=COMPATIBLE" in (caution(plain, "AuthenticAMD") or "")
    assert caution(plain | {"mkl_mode": "COMPATIBLE"}, "AuthenticAMD") is None
    assert caution(plain, "GenuineIntel") is None
