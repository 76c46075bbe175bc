"""pyarrow loads pandas at its first list, 0.4 CPU seconds and 40 MB in each process, unless it is kept from it."""

import subprocess
import sys

import pytest

LISTS = """
import sys
import leam_mm.data.parquet_file
import pyarrow as pa
assert pa.Table.from_pylist([{"a": 1, "b": "x"}]).num_rows == 1 and pa.scalar(1).as_py() == 1
assert "pandas" not in sys.modules, "pandas is loaded"
"""
FRAMES = """
import pandas
frame = pandas.DataFrame({"a": [1, 2], "b": ["x", None]})
assert pa.Table.from_pandas(frame).to_pandas().equals(pa.table(frame.to_dict("list")).to_pandas())
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_lists_are_converted_without_pandas() -> None:
    run(LISTS)


def test_frames_are_still_converted() -> None:
    pytest.importorskip("pandas")
    run(LISTS + FRAMES)
