"""data_tools/rights/file_rights.py: the rule follows the sample's legal basis and says what it read."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toys.signed_images import sign, training_mining

from data_tools.download.download_worker import FETCHED, part_file
from data_tools.download.image_repair_pool import repaired_rows
from data_tools.rights.file_rights import rights_in_file
from data_tools.samples.image_repair import ImageRule
from data_tools.vetting.file_rights_rule import FileRights
from data_tools.vetting.vetting_rule import Sample


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 32, 3), (200, 40, 90), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def sample(content: bytes, basis: str | None) -> Sample:
    return Sample("0", {"legal_basis": basis, "sha256": hashlib.sha256(content).hexdigest()}, "jpg", content)


def test_the_legal_basis_decides():
    refused = sign(picture(), assertions=[training_mining(ai_training="notAllowed")])
    free = sign(picture(), assertions=[training_mining(ai_training="allowed")])
    bases = [None, "art4_general", "art3_research", "licensed", "public_domain", "consent", "synthetic"]
    kept = [finding.kept for finding in FileRights().judge([sample(refused, basis) for basis in bases])]
    assert kept == [False, False, True, True, True, True, True]
    assert [
        finding.kept for finding in FileRights().judge([sample(free, "art4_general"), sample(picture(), None)])
    ] == [True, True]


def test_the_finding_says_what_was_read():
    refused = sign(picture(), assertions=[training_mining(ai_training="constrained")])
    (finding,) = FileRights().judge([sample(refused, None)])
    assert finding.value == "c2pa" and "cawg.ai_training=constrained" in finding.reason
    assert finding.evidence["signals"] == [["c2pa", "cawg.training-mining: cawg.ai_training=constrained", True]]
    (finding,) = FileRights().judge([sample(picture(), None)])
    assert finding.kept and finding.value == "0" and finding.evidence == {}


def test_bytes_that_are_not_the_original_are_named():
    stored = Sample("0", {"legal_basis": None, "sha256": "0" * 64}, "jpg", picture())
    assert "encoded again" in FileRights().judge([stored])[0].evidence["bytes"]


@pytest.mark.parametrize("raw", [b"", b"\xff\xd8\xff", b"RIFF", b"\x89PNG\r\n\x1a\n", bytes(1000)])
def test_no_picture_says_nothing(raw: bytes):
    assert rights_in_file(raw) == []


def test_a_download_is_asked_before_its_bytes_are_mended(tmp_path: Path):
    """A picture to be resized would lose its manifest: the second pass of the download reads the original."""
    refused = sign(picture(), assertions=[training_mining(data_mining="notAllowed")])
    cells = [
        {
            "row": row,
            "rule": "",
            "fetched_at": "2026-11-01T12:00:00+00:00",
            "response": "{}",
            "visit": "{}",
            "legal_basis": basis,
            "sha256": hashlib.sha256(refused).hexdigest(),
            "content": refused,
        }
        for row, basis in enumerate([None, "art4_general", "art3_research"])
    ]
    pq.write_table(pa.Table.from_pylist(cells, FETCHED), part_file(tmp_path, 0))
    rule = ImageRule(size=16, resize="center_crop")
    found = [fetched for _, fetched in repaired_rows(tmp_path, iter(range(3)), 3, 3, rule, 0)]
    assert [fetched.image is None for fetched in found] == [True, True, False]
    assert found[0].rule == "reservation" and "cawg.data_mining=notAllowed" in found[0].value
    assert found[2].image is not None and rights_in_file(found[2].image.content) == []
    for fetched in found:
        (signal,) = fetched.response["signals"]
        assert (signal["kind"], signal["reserved"], signal["source"]) == ("c2pa", True, "file")
