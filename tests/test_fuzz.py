"""Every reader of foreign bytes survives damaged inputs; the inputs that once broke one are replayed."""

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fuzz.hunt import CORPUS, Mutated, Reader, hunt, minimised
from fuzz.readers import READERS

from leam_mm.errors import UserError

INPUTS = 40  # of each reader in the default tests; `make fuzz` reads as many as its time allows


def fragile(folder: Path) -> Callable[[bytes], object]:
    """A reader with one fault of each kind, by the first letter of its input."""
    kept: list[mmap.mmap] = []

    def read(data: bytes) -> None:
        kind = data[:1]
        if kind == b"u":
            raise UserError("refused")
        if kind == b"v":
            raise ValueError("not refused")
        if kind == b"c":
            raise UserError("\x1b[2J" + "x" * 100_000)  # errors.run prints this in one printable line
        if kind == b"s":
            while True:
                sum(range(1000))
        if kind == b"d":
            os.abort()
        if kind == b"m":
            bytes(1 << 40)
        if kind == b"g":
            kept.append(mmap.mmap(-1, 1_000_000))  # not from a heap that has free parts
            kept[-1].write(bytes(1_000_000))

    return read


FRAGILE = Reader("fragile", lambda folder: [b"xyz"], fragile, seconds=0.3, megabytes=256, growth=20)


def fuzzed(reader: Reader, inputs: list[bytes], folder: Path) -> dict[str, str]:
    """Kinds of the faults that a hunt finds, with the end of each traceback."""
    folder.mkdir(exist_ok=True)
    return hunt(reader, inputs, folder).shown


def test_each_kind_of_fault_is_found(tmp_path: Path) -> None:
    inputs = [b"x", b"u", b"v1", b"c", b"s", b"x", b"d", b"m", b"v2"]
    found = hunt(FRAGILE, inputs, tmp_path)
    assert {kind.partition(" ")[0]: data for kind, data in found.faults.items()} == {
        "ValueError": b"v1",
        "slow": b"s",
        "died": b"d",
        "MemoryError": b"m",
    }
    assert found.inputs == len(inputs)


def test_growth_of_memory_is_found(tmp_path: Path) -> None:
    class Many:
        def __iter__(self) -> Iterator[bytes]:
            yield from (b"x" for _ in range(5000))
            yield from (b"g" for _ in range(60))

    found = hunt(FRAGILE, Many(), tmp_path)
    assert set(found.faults) == {"growth"} and found.growth > 50


def test_inputs_depend_on_the_seed_alone_and_are_minimised(tmp_path: Path) -> None:
    inputs = [list(Mutated(FRAGILE, [b"a valid input"], seed, 50)) for seed in (1, 1, 2)]
    assert inputs[0] == inputs[1] != inputs[2] and len(set(inputs[0])) > 40
    kind = next(iter(hunt(FRAGILE, [b"v" + bytes(1000)], tmp_path).faults))
    assert minimised(FRAGILE, kind, b"v" + bytes(1000), tmp_path) == b"v"


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_readers_survive(reader: Reader, tmp_path: Path) -> None:
    known = [path.read_bytes() for path in sorted((CORPUS / reader.name).glob("*"))]
    seeds = reader.seeds(tmp_path / "seeds")
    inputs = [*seeds, *known, *Mutated(reader, seeds, 0, INPUTS)]
    shown = fuzzed(reader, inputs, tmp_path / "hunt")
    assert not shown, "\n".join(f"{kind}: {text}" for kind, text in shown.items())


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_valid_input_is_read_to_its_end(reader: Reader, tmp_path: Path) -> None:
    if reader.name == "lists":
        pytest.skip("no text is valid for all kinds of list; each is read, whatever the others refuse")
    seeds = reader.seeds(tmp_path / "seeds")
    (tmp_path / "hunt").mkdir()
    found = hunt(reader, seeds, tmp_path / "hunt")
    assert found.refused < len(seeds), "its mutations would only test the check that refuses all of them"


def test_every_folder_of_the_corpus_has_a_reader() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= {reader.name for reader in READERS}
    assert len({reader.name for reader in READERS}) == len(READERS)
