"""Programs of data_tools as jobs: how many tasks, devices and processes each uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leam_mm.errors import UserError


@dataclass(frozen=True)
class Program:
    """How a program is spread.

    Args:
        processes: It has ``--processes``: one task on a node starts them, one a device or one a core.
        slices: It has ``--slice I/N``: an array of nodes shares the work, and a last job finishes it.
        devices: It has ``--device cuda``.
        internet: It fetches from the internet.
    """

    processes: bool = False
    slices: bool = False
    devices: bool = False
    internet: bool = False


PROGRAMS = {
    "download_shards": Program(slices=True, internet=True),
    "vet_shards": Program(processes=True),
    "encode_latents": Program(processes=True, devices=True),
    "embed_shards": Program(devices=True),
}


def find_program(path: str) -> tuple[str, Program]:
    """Return the name of a program and how it is spread; any other Python file runs as one task.

    Raises:
        UserError: The file does not exist.
    """
    if not Path(path).is_file() or not path.endswith(".py"):
        raise UserError(f"--program {path} is no Python file: give one such as data_tools/encode_latents.py")
    return Path(path).stem, PROGRAMS.get(Path(path).stem, Program())


def option(words: Sequence[str], name: str) -> str | None:
    """Return the last value of an option such as ``--device``, None if it is not given."""
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=False):
        key, equals, value = word.partition("=")
        if key.replace("_", "-") == name:
            found = value if equals else following
    return found


def with_processes(words: Sequence[str], program: Program, devices: int, cores: int | None) -> tuple[str, ...]:
    """Return the words of a program, with ``--processes`` if it has that option and none is given.

    Args:
        words: Arguments of the program.
        program: How it is spread.
        devices: Devices of the node that the job has, 0 for none.
        cores: Cores of the job's only task, None if not known.
    """
    count = devices or cores
    if not program.processes or option(words, "--processes") is not None or not count:
        return tuple(words)
    return (*words, "--processes", str(count))


def uses_devices(words: Sequence[str], program: Program) -> bool:
    """Return whether a program uses GPUs."""
    return program.devices and (option(words, "--device") or "cpu").startswith("cuda")
