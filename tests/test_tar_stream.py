"""Readers of foreign bytes in data_tools/indexing: headers as tarfile reads them, sizes of images as Pillow does."""

import io
import tarfile
import time

import numpy as np
import pytest
from PIL import Image
from toys.images import encoded_image, soft_image, soft_jpeg

from data_tools.indexing.member_captions import CaptionRule, Sighting, recognise
from data_tools.indexing.tar_index import _is_further, split_name
from data_tools.indexing.tar_patterns import expand_braces
from data_tools.indexing.tar_stream import TarStream, parse_header, parse_pax
from data_tools.samples.image_header import image_header, other_format
from leam_mm.errors import UserError


def test_headers_are_read_as_tarfile_reads_them() -> None:
    whole = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for name, size in (("grün.png", 9), ("a/" * 60 + "x.jpg", 70_000), ("x", 0), ("s", 1 << 34)):
            if form == tarfile.USTAR_FORMAT and size >= 1 << 33:
                continue
            entry = tarfile.TarInfo(name)
            entry.size, entry.uname, entry.mtime = size, "bigdata", 1_700_000_000
            whole.append(entry.tobuf(form, "utf-8")[-512:])
    generator = np.random.default_rng(0)
    read = 0
    for block in whole:
        for trial in range(200):
            changed = bytearray(block)
            if trial:
                changed[generator.integers(512)] = generator.integers(256)
            try:
                found = tarfile.TarInfo.frombuf(bytes(changed), "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                with pytest.raises(ValueError, match=r"checksum|size"):
                    parse_header(bytes(changed))
                continue
            name, size, kind = parse_header(bytes(changed))
            read += 1
            assert (name.rstrip("/"), size, kind) == (found.name.rstrip("/"), found.size, found.type)
    assert read >= len(whole)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("block", [600, 4096, 1 << 20])
def test_members_in_blocks_of_any_size(form: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_tools.indexing.tar_stream.READ", block)
    buffer, contents = io.BytesIO(), {f"{'d' * 40}/{n:03d}.bin": bytes([n]) * (n * 997) for n in range(12)}
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    raw = buffer.getvalue()
    stream = TarStream(io.BytesIO(raw), "x")
    found = list(stream.members(lambda name, size: not name.endswith("7.bin")))
    assert stream.fault is None and stream.size == len(raw)
    assert {each.name: raw[each.offset : each.offset + each.size] for each in found} == contents
    read = {each.name: bytes(each.content) for each in found if each.content is not None}
    assert read == {name: content for name, content in contents.items() if not name.endswith("7.bin")}
    for cut in range(1, found[-1].offset + found[-1].size, 1777):
        stream = TarStream(io.BytesIO(raw[:cut]), "x")
        assert [each.name for each in stream.members(lambda *_: True)] == list(contents)[: len(list(contents))][
            : sum(each.offset + each.size <= cut for each in found)
        ]
        assert stream.fault and stream.size == cut


def test_damaged_pax_headers() -> None:
    assert parse_pax(b"16 path=a/b.jpg\n10 size=4\n") == {"path": "a/b.jpg", "size": "4"}
    for text in (b"99 path=a\n", b"x path=a\n", b"0 \n", b"7 path\n\n", b"-5 a=b\n"):
        with pytest.raises(ValueError, match=r"."):
            parse_pax(text)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_sizes_of_images_without_decoding(kind: str) -> None:
    for size in ((72, 64), (1, 300), (301, 3)):
        image = soft_image(1).resize(size)
        variants = [{}, *({"JPEG": [{"progressive": True}, {"exif": Image.Exif().tobytes() + bytes(70_000)[:60_000]}],
                    "WEBP": [{"lossless": True}], "PNG": [{"optimize": True}]}[kind])]  # fmt: skip
        for options in variants:
            content = encoded_image(image, kind, **options)
            suffix = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind]
            assert image_header(content) == image_header(memoryview(content)) == (suffix, *size)  # type: ignore[arg-type]
            assert image_header(content[:12]) is None
    alpha = encoded_image(soft_image(1).convert("RGBA"), "WEBP")
    assert image_header(alpha) == ("webp", 80, 80)
    assert image_header(b"") is None and other_format(b"GIF89a") == "gif" and other_format(soft_jpeg(0)) is None


def test_braces() -> None:
    assert list(expand_braces("a/{08..11}.tar")) == [f"a/{n:02d}.tar" for n in range(8, 12)]
    assert list(expand_braces("{b,a}{2..1}")) == ["b2", "b1", "a2", "a1"]
    assert list(expand_braces("plain{}x{y}")) == ["plain{}x{y}"]
    with pytest.raises(UserError, match="more than 1000000"):
        list(expand_braces("{0..1000000}"))


def test_names_of_samples() -> None:
    assert split_name("train.v1/0001.jpg") == ("train.v1/0001", "jpg")
    assert split_name("235342 Track 2.0 (Clean).PNG") == ("235342 Track 2.0 (Clean)", "png")
    assert split_name("a.caption.txt", ("caption.txt",)) == ("a", "caption.txt")
    assert split_name("./x/._a.jpg") is split_name("noending") is split_name("dir/") is None


def test_captions_are_recognised_only_if_most_samples_have_them() -> None:
    seen = Sighting()
    for number in range(10):
        seen.add(["jpg", "json", *(["txt"] if number < 2 else [])], {"caption": "x", "n": 1})
    assert recognise(seen, CaptionRule(), "x") == CaptionRule(fields=("caption",))
    assert recognise(seen, CaptionRule(members=("txt",)), "x").members == ("txt",)


def test_a_name_of_many_dots_is_no_work() -> None:
    """Each of its beginnings was looked up: 0.8 s of CPU time for a member of 64 KB."""
    begin = time.process_time()
    assert not any(_is_further(f"{number}" + "." * 64_000, {"x"}) for number in range(3))
    assert _is_further("0001.seg.more", {"0001"})
    assert time.process_time() - begin < 0.5
