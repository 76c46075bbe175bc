"""The comparisons with litData and MosaicML Streaming: their files are written and read, and their state is resumed."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import streaming_peers
from resume import Attempts
from toy_input import jpeg

SAMPLES, BATCH = 32, 4


@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("name", list(streaming_peers.PACKAGES))
def test_peer_reads_all_samples_and_resumes(name: str, encoded: bool, tmp_path: Path) -> None:
    if why := streaming_peers.missing(name):
        pytest.skip(why)
    peer, picture = streaming_peers.load(name), jpeg(0, 48)
    rows = [(number, picture, f"caption {number}") for number in range(SAMPLES)]
    folder = peer.write(rows, tmp_path / "data", SAMPLES // 4, encoded)
    crop = streaming_peers.random_crop(16, (0.9, 1.0), (3 / 4, 4 / 3))

    def decode(item: streaming_peers.Item) -> streaming_peers.Item:
        if encoded:
            return {**item, "image": crop(item["image"])}
        assert bytes(item["image"]) == picture
        return {**item, "image": torch.zeros(3, 16, 16, dtype=torch.uint8)}

    def collate(items: list[streaming_peers.Item]) -> tuple[torch.Tensor, list[int]]:
        assert all(item["caption"] == f"caption {int(item['number'])}" for item in items)
        return torch.stack([item["image"] for item in items]), [int(item["number"]) for item in items]

    loader, seen = peer.open_loader(folder, BATCH, 0, decode, collate), []
    for images, numbers in loader:
        assert images.shape == (BATCH, 3, 16, 16) and images.dtype == torch.uint8
        seen += numbers
        if len(seen) == SAMPLES // 2:
            state = loader.state_dict()
    assert sorted(seen) == list(range(SAMPLES)) and seen != sorted(seen)
    resumed = peer.open_loader(folder, BATCH, 0, decode, collate)
    resumed.load_state_dict(state)
    assert [number for _, numbers in resumed for number in numbers] == seen[SAMPLES // 2 :]


def test_a_peer_that_is_not_installed_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(streaming_peers.MODULES, "mosaic", ("no_module_of_this_name",))
    assert "pip install --no-deps -r tests/benchmarks/streaming_peers.txt" in streaming_peers.missing("mosaic")


def test_batches_after_the_start_of_the_next_attempt_are_not_kept() -> None:
    def line(step: int, sample: int) -> dict:
        return {"position": [0, step], "samples": [sample], "loss": "0x0p+0"}

    found = Attempts([[line(0, 5), line(1, 6), line(2, 7)], [line(1, 8)]])
    assert [line["samples"] for line in found.kept.values()] == [[5], [8]] and found.computed == 4
