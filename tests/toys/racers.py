"""Processes that read one cache of remote shards; without torch, so that a new process starts fast."""

from pathlib import Path
from typing import Any

from leam_mm.data.remote_shards import RemoteFolder, ShardCache


def read_everything(url: str, cache: Path, queue: Any) -> None:
    """Put the keys of all shards and the bytes of each into a queue, or an error."""
    try:
        folder = RemoteFolder(url, ShardCache(cache))
        numbers = range(len(folder.shards))
        queue.put([(folder.index(number).keys, folder.tar(number).stat().st_size) for number in numbers])
    except BaseException as error:
        queue.put(repr(error))


def fetch_first(url: str, cache: Path) -> None:
    """Fetch the first shard."""
    RemoteFolder(url, ShardCache(cache)).tar(0)
