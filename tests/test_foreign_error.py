"""Messages of libraries in ledgers are the same in each run."""

import ast
import io
import json
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError
from toys.shards import small_sample, write_samples

from data_tools.check_shards import main as check
from data_tools.work.foreign_error import first_line
from leam_mm.errors import UserError, one_line

TREE = Path(__file__).parent.parent
# What takes reasons of ledgers, and exceptions of our own, whose messages hold no object of a library.
RECORDS = {"SampleFault", "PageRefused", "LinkRefused", "ImageFault", "refuse", "refused", "Signal", "_fault"}
OWN = {
    "UserError",
    "ImageLimit",
    "TookTooLong",
    "LinkRefused",
    "TooManyBytesError",
    "PageRefused",
    "UnreadableError",
    "SvgFault",
}


def test_no_address_of_an_object_stays_in_a_message() -> None:
    with pytest.raises(UnidentifiedImageError) as caught:
        Image.open(io.BytesIO(b"no image"))
    assert " object at 0x" in str(caught.value) and first_line(caught.value) == "cannot identify image file"
    for text, kept in (
        ("<function f at 0x7f12ab34cd56> failed", " failed"),
        ("a <built-in method x of y object at 0x7f12ab34cd56> b", "a b"),
        ("page at 0x7f12ab34cd56 is gone", "page is gone"),
        ("bad offset 0x7f12", "bad offset 0x7f12"),
        ("1 < 2 and 3 > 2 at 0x7", "1 < 2 and 3 > 2 at 0x7"),
        ("", "ValueError"),
        ("<Lock object at 0x7f12ab34cd56>", "ValueError"),
    ):
        assert first_line(ValueError(text)) == kept
    assert one_line(UserError("x: <_io.BytesIO object at 0x7f12ab34cd56>: write it again")) == "x:: write it again"


def test_no_ledger_takes_the_message_of_a_library_as_it_is() -> None:
    found = []
    for path in (TREE / "data_tools").rglob("*.py"):
        for handler in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(handler, ast.ExceptHandler) or not handler.name or handler.type is None:
                continue
            kinds = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
            for call in ast.walk(handler):
                if not isinstance(call, ast.Call) or ast.unparse(call.func).rpartition(".")[2] not in RECORDS:
                    continue
                text = ast.unparse(call)
                raw = any(
                    form in text for form in (f"str({handler.name})", f"{{{handler.name}}}", f"{{{handler.name}!r}}")
                )
                if raw and not kinds <= OWN:
                    found.append(f"{path.name}: {text}")
    assert not found, "\n".join(found)


def test_check_shards_says_the_same_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = small_sample(1)
    broken["jpg"] = broken["jpg"][:40]
    write_samples(tmp_path / "shards", [small_sample(0), broken])
    said = []
    for _ in range(2):
        with pytest.raises(SystemExit):
            check([str(tmp_path / "shards")])
        said.append(capsys.readouterr())
    assert said[0] == said[1] and "cannot be decoded" in json.dumps(said[0])
