"""withdrawal/sample_selector.py: selection by address, domain, digest, image and caption."""

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image
from toys.images import encoded_image, soft_image
from toys.published import record_of, write_published

from data_tools.withdrawal.sample_selector import Selection, Selector, normal_url
from leam_mm.data.shard_index import ShardWriter, read_samples

SELECTORS = {
    "url": (["--url", "HTTPS://IMG.site2.example:443/%37.png#top"], [7]),
    "domain": (["--domain", "site3.example"], [3, 8, 13, 18]),
    "domain of the page": (["--domain", "pages0.example"], list(range(0, 23, 3))),
    "sha256": (["--sha256", hashlib.sha256(encoded_image(soft_image(4))).hexdigest()], [4]),
    "uid": (["--uid", record_of(5, b"")["uid"]], [5]),
    "caption": (["--caption", "  picture NUMBER 6 of a lake"], [6]),
    "caption, exact": (["--caption", "picture number 6 of a lake", "--match", "exact"], []),
    "caption, contains": (["--caption", "NUMBER 1", "--match", "contains"], [1, *range(10, 20)]),
    "two": (["--sha256", "0" * 64, "--url", "https://img.site4.example/9.png"], [9]),
    "similar name": (["--domain", "ite3.example"], []),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("shards") / "shards")


@pytest.mark.parametrize("name", SELECTORS)
def test_selectors(name: str, shards: Path) -> None:
    args, expected = SELECTORS[name]
    match = args[args.index("--match") + 1] if "--match" in args else "normalised"
    pairs = [(args[at][2:], args[at + 1]) for at in range(0, len(args), 2) if args[at] != "--match"]
    selection = Selection(Selector(kind, value, match=match) for kind, value in pairs)
    found = [int(key) for key, members in read_samples(shards) if selection.match(members)]
    assert found == expected


@pytest.mark.parametrize("change", ["jpeg", "smaller", "mirrored", "turned", "the file"])
def test_an_image_finds_its_copies_only(change: str, shards: Path, tmp_path: Path) -> None:
    image = soft_image(11)
    content = {
        "jpeg": lambda: encoded_image(image, "JPEG", quality=85),
        "smaller": lambda: encoded_image(image.resize((60, 60), Image.Resampling.LANCZOS)),
        "mirrored": lambda: encoded_image(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        "turned": lambda: encoded_image(image.transpose(Image.Transpose.ROTATE_90)),
        "the file": lambda: encoded_image(image),
    }[change]()
    (tmp_path / "copy.img").write_bytes(content)
    selection = Selection([Selector("image", str(tmp_path / "copy.img"))])
    assert [int(key) for key, members in read_samples(shards) if selection.match(members)] == [11]


def test_a_flat_image_is_found_by_its_digest_only(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "flat", 5) as writer:
        for number, colour in enumerate(("white", "snow", "ivory")):
            content = encoded_image(Image.new("RGB", (48, 48), colour))
            writer.write(str(number), {"png": content, "json": json.dumps(record_of(number, content)).encode()})
    (tmp_path / "flat.png").write_bytes(encoded_image(Image.new("RGB", (48, 48), "snow")))
    selection = Selection([Selector("image", str(tmp_path / "flat.png"))])
    assert [key for key, members in read_samples(tmp_path / "flat") if selection.match(members)] == ["1"]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("http://a.example", "HTTP://A.example:80/", True),
        ("http://a.example/%7Ex", "http://a.example/~x", True),
        ("http://bücher.example/ü", "http://xn--bcher-kva.example/%c3%bc", True),
        ("http://a.example/a%2Fb", "http://a.example/a/b", False),
        ("http://a.example/?q=1", "http://a.example/?q=2", False),
        ("http://a.example/A", "http://a.example/a", False),
        ("https://a.example/", "http://a.example/", False),
        ("http://a.example/100%", "http://a.example/100%25", True),
    ],
)
def test_equivalent_addresses(first: str, second: str, same: bool) -> None:
    assert (normal_url(first) == normal_url(second)) is same
    assert normal_url(normal_url(first)) == normal_url(first)
