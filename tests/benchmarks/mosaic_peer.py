"""MosaicML Streaming as its documentation has it: MDSWriter, then StreamingDataset and StreamingDataLoader."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import streaming
from streaming_peers import Item, Row


class Dataset(streaming.StreamingDataset):
    """Decodes each item, as the documented datasets for images do."""

    def __init__(self, folder: Path, batch: int, decode: Callable[[Item], Item]) -> None:
        """Shuffled, from a local folder."""
        super().__init__(local=str(folder), shuffle=True, batch_size=batch)
        self.decode = decode

    def __getitem__(self, at: Any) -> Any:
        """One item."""
        return self.decode(super().__getitem__(at))


def write(rows: Iterable[Row], folder: Path, per_file: int | None, encoded: bool) -> Path:
    """See StreamingPeer; a shard is limited by its bytes."""
    rows = list(rows)
    limit = 1 << 26
    if per_file is not None:
        limit = per_file * (sum(len(image) + len(text.encode()) for _, image, text in rows) // len(rows) + 32)
    columns = {"number": "int", "image": "jpeg" if encoded else "bytes", "caption": "str"}
    with streaming.MDSWriter(columns=columns, out=str(folder), size_limit=limit) as writer:
        for number, image, caption in rows:
            writer.write({"number": number, "image": image, "caption": caption})
    return folder


def open_loader(
    folder: Path, batch: int, workers: int, decode: Callable[[Item], Item], collate: Callable[[list[Item]], Any]
) -> Any:
    """See StreamingPeer."""
    dataset = Dataset(folder, batch, decode)
    return streaming.StreamingDataLoader(dataset, batch_size=batch, num_workers=workers, collate_fn=collate)
