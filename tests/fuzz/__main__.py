"""Hunt for faults in every reader of foreign bytes, for a time or a number of inputs; writes each one it finds.

    PYTHONPATH=tests python -m fuzz --seconds 600

A fault ends with exit code 1. Its minimised input is written to tests/fuzz/corpus/READER/, which the tests replay: fix
the reader, and commit the file.
"""

import argparse
import shutil
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fuzz.hunt import CORPUS, Found, Mutated, Reader, hunt, minimised
from fuzz.readers import READERS
from leam_mm import errors
from leam_mm.errors import UserError
from leam_mm.files import bytes_sha256, write_bytes, write_json

MEMORY = Path("/dev/shm")  # inputs are written many thousand times


def scratch_folder() -> Path:
    """Return a new folder, in memory if possible."""
    return Path(tempfile.mkdtemp(prefix="fuzz-", dir=MEMORY if MEMORY.is_dir() else None))


def hunt_for(reader: Reader, seed: int, count: int, seconds: float, scratch: Path) -> tuple[Found, float]:
    """Hunt until a number of inputs or a time is reached; return what was found, and the wall time."""
    begin = time.monotonic()
    inputs = Mutated(reader, reader.seeds(scratch / "seeds"), seed, count)
    if not seconds:
        return hunt(reader, inputs, scratch), time.monotonic() - begin
    whole, batch, done = Found(), 500, 0
    while done < count and time.monotonic() - begin < seconds:
        part = hunt(reader, list(islice(Mutated(reader, inputs.seeds, seed, done + batch), done, None)), scratch)
        whole.inputs, whole.refused = whole.inputs + part.inputs, whole.refused + part.refused
        whole.seconds, whole.growth = whole.seconds + part.seconds, max(whole.growth, part.growth)
        whole.slowest = max(whole.slowest, part.slowest)
        whole.faults, whole.shown = part.faults | whole.faults, part.shown | whole.shown
        done += batch
        batch = min(20_000, 2 * batch)
    return whole, time.monotonic() - begin


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seconds", type=float, default=0, help="wall time of all readers together; 0 sets no limit")
    add("--count", type=int, default=100_000, help="most inputs of each reader (default: 100000)")
    add("--seed", type=int, default=0, help="the same seed gives the same inputs")
    add("--readers", nargs="+", default=[], metavar="NAME", help="only these readers")
    add("--output", type=Path, default=Path("runs/fuzz.json"), help="JSON file of the numbers")
    add("--corpus", type=Path, default=CORPUS, help="folder of the inputs that show faults")
    given = parser.parse_args()
    if unknown := set(given.readers) - {reader.name for reader in READERS}:
        raise UserError(f"--readers {sorted(unknown)[0]}: choose from {', '.join(reader.name for reader in READERS)}")
    readers = [reader for reader in READERS if not given.readers or reader.name in given.readers]
    table = Table("reader", "inputs", "refused", "CPU s", "slowest ms", "growth MB", "faults")
    rows: list[dict[str, Any]] = []
    for reader in readers:
        scratch = scratch_folder()
        try:
            found, wall = hunt_for(reader, given.seed, given.count, given.seconds / len(readers), scratch)
            for kind, data in found.faults.items():
                small = minimised(reader, kind, data, scratch)
                write_bytes(given.corpus / reader.name / bytes_sha256(small)[:12], small)
                print(f"{reader.name}: {kind}\n  {small[:200]!r}\n  {found.shown[kind]}", flush=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        row = {"reader": reader.name, "inputs": found.inputs, "refused": found.refused, "cpu_seconds": found.seconds}
        rows.append(row | {"wall_seconds": wall, "slowest_seconds": found.slowest, "growth_mb": found.growth})
        rows[-1]["faults"] = sorted(found.faults)
        numbers = (f"{found.seconds:.1f}", f"{1e3 * found.slowest:.0f}", f"{found.growth:.1f}", str(len(found.faults)))
        table.add_row(reader.name, str(found.inputs), str(found.refused), *numbers)
        write_json(given.output, {"seed": given.seed, "readers": rows})
        print(f"{reader.name}: {found.inputs} inputs in {wall:.0f} s, {len(found.faults)} kinds of fault", flush=True)
    Console().print(table)
    if any(row["faults"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    errors.run(main)
