import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_tools.corpora import emoji_images
from data_tools.corpora.emoji_corpus import COLUMNS, select
from data_tools.corpora.emoji_images import NAMES, STYLES, draw, fetch_package, read_package
from data_tools.corpora.emoji_names import (
    PROMPT_EMOJI,
    base_of,
    code_of,
    code_of_file,
    emoji_of,
    group_of,
    make_classes,
    read_names,
)
from data_tools.corpora.emoji_prompt_set import KINDS, emoji_prompt_set
from data_tools.gather_emoji import main
from leam_mm.errors import UserError
from leam_mm.languages import LANGUAGES as EU_LANGUAGES

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
# enough groups that a share of 5 % is one
SIGNS = [chr(0x1F5FB + number) for number in range(4)] + [chr(0x1F680 + number) for number in range(20)]
EMOJI = ["🍎", "🧑‍🍳", "👨‍🍳", "🐶", "👋", "👋🏽", *SIGNS]
LANGUAGES = ["de", "en", "mt", "is"]


def svg(colour: tuple[int, int, int], extra: str = "") -> bytes:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">'
        f'<rect x="18" y="18" width="36" height="36" fill="rgb{colour}"/>{extra}</svg>'
    ).encode()


def picture(colour: tuple[int, int, int], kind: str) -> bytes:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((*colour, 255), (16, 16, 48, 48))
    buffer = io.BytesIO()
    image.save(buffer, kind, lossless=True)
    return buffer.getvalue()


def annotations(kind: str, language: str, words: dict[str, tuple[str, list[str]]]) -> bytes:
    entries = {emoji: {"default": keywords, "tts": [name]} for emoji, (name, keywords) in words.items()}
    return json.dumps({kind: {"identity": {"language": language}, "annotations": entries}}).encode()


def write_tarball(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    folder.mkdir()
    codes = {emoji: code_of(emoji) for emoji in EMOJI}
    members: dict[str, dict[str, bytes]] = {style: {} for style in STYLES}
    for emoji, code in codes.items():
        members["openmoji"][f"package/color/svg/{code.upper()}.svg"] = svg(RED)
        members["twemoji"][f"package/{code}.svg"] = svg(GREEN)
        members["google"][f"package/img/google/64/{code}-fe0f.png"] = picture(BLUE, "PNG")
        if emoji != "🐶":
            members["fluent"][f"package/assets/{code}.webp"] = picture(YELLOW, "WEBP")
    authors = [{"hexcode": "1F34E", "openmoji_author": "Ada Example"}]
    members["openmoji"]["package/data/openmoji.json"] = json.dumps(authors).encode()
    for style, source in STYLES.items():
        write_tarball(folder / f"{source.package.stem}.tgz", members[style])
    for package, kind in zip(NAMES, ("annotations", "annotationsDerived"), strict=True):
        files = {}
        for language in LANGUAGES:
            words = {
                emoji: (f"{language} {code}", [f"{language} {code}", *(f"{language}{n}" for n in range(9)), "↑↑↑"])
                for emoji, code in codes.items()
                if (language, emoji) != ("mt", "🍎")
            }
            words["🐺"] = ("no picture", [])
            files[f"package/{kind}/{language}/annotations.json"] = annotations(kind, language, words)
        write_tarball(folder / f"{package.stem}.tgz", files)
    return folder


def gather(packages: Path, output: Path, *options: str) -> Path:
    fixed = ["--output", str(output), "--packages", str(packages), "--workers", "1", "--languages", *LANGUAGES]
    main([*fixed, *options])
    return output


def rows_of(output: Path, split: str) -> list[dict]:
    rows = pq.read_table(output / f"{split}.parquet").to_pylist()
    for row in rows:
        row["metadata"], row["captions"] = json.loads(row["metadata"]), json.loads(row["captions"])
    return rows


@pytest.mark.parametrize(
    ("emoji", "base", "group"),
    [
        ("🍎", "🍎", "🍎"),
        ("👋🏽", "👋", "👋"),
        ("🏃🏿‍♀️‍➡️", "🏃", "🏃"),
        ("👨🏻‍🍳", "🧑‍🍳", "🧑‍🍳"),
        ("👩‍🦰", "👩", "🧑"),
        ("👨", "👨", "🧑"),
        ("👨‍👩‍👧", "👪", "👪"),
        ("👩🏽‍❤️‍💋‍👨🏿", "💏", "💏"),
        ("👩‍❤️‍👩", "💑", "💑"),
        ("🫱🏻‍🫲🏿", "🤝", "🤝"),
        ("🐻‍❄️", "🐻‍❄", "🐻‍❄"),
        ("❤️‍🔥", "❤‍🔥", "❤‍🔥"),
        ("♀️", "♀", "♀"),
        ("🏽", "🏽", "🏽"),
        ("👸🏾", "👸", "🫅"),
    ],
)
def test_variants_lead_to_their_base_and_group(emoji: str, base: str, group: str) -> None:
    assert base_of(code_of(emoji)) == code_of(base)
    assert group_of(code_of(emoji)) == code_of(group)
    assert base_of(base_of(code_of(emoji))) == base_of(code_of(emoji))


def test_codes_agree_between_characters_and_file_names() -> None:
    assert code_of("#️⃣") == code_of_file("0023-FE0F-20E3") == code_of_file("23-20e3") == "23-20e3"
    assert [code_of_file(stem) for stem in ("", "-", "readme", "1f34e-", "ffffff1", "ffffff", "../1f34e")] == [None] * 7


def test_the_program_writes_what_the_pipeline_expects(packages: Path, tmp_path: Path) -> None:
    output = gather(packages, tmp_path / "out", "--size", "32", "--base-url", "http://example.org/emoji")
    classes = json.loads((output / "classes.json").read_text())
    summary = json.loads((output / "summary.json").read_text())
    train, test, unseen = (rows_of(output, split) for split in ("train", "test", "unseen"))
    assert all(set(row) == set(COLUMNS) for row in train + test + unseen)
    assert {row["metadata"]["style"] for row in train} == {"openmoji", "google", "fluent"}
    assert {row["metadata"]["style"] for row in test} == {"twemoji"}
    assert {row["metadata"]["class_id"] for row in test} == set(classes["classes"])
    assert "1f468-200d-1f373" not in classes["classes"] and "1f44b-1f3fd" not in classes["classes"]
    assert "1f34e" in classes["classes"] and "1f34e" not in classes["languages"]["mt"]["names"]
    assert classes["languages"]["de"]["names"]["1f34e"] == ["de 1f34e"]
    assert len(unseen) == 4 and len({row["metadata"]["variant_group"] for row in unseen}) == 1
    assert summary["splits"]["train"]["images"] == len(train)
    assert sum(summary["splits"]["test"]["images_by_licence"].values()) == len(test)
    assert {entry["is_version"] for entry in summary["packages"]} == {None}

    apple = next(row for row in train if row["metadata"]["class_id"] == "1f34e" and row["licence"] == "CC-BY-SA-4.0")
    assert "Ada Example" in apple["attribution"] and apple["legal_basis"] == "licensed"
    assert apple["url"] == "http://example.org/emoji/images/openmoji/1f34e.png" and apple["caption"] == "en 1f34e"
    keywords = [entry["text"].split(", ") for entry in apple["captions"] if entry["source"] == "cldr-keywords"]
    assert {entry["language"] for entry in apple["captions"]} == {"de", "en", "is"}
    assert all(len(set(words)) == 5 and not any("↑" in w or "1f34e" in w for w in words) for words in keywords)

    prompts = json.loads((output / "prompts.json").read_text())
    assert prompts["size"] == 32
    assert {"language": "de", "text": "de 1f34e", "class_id": "1f34e", "kind": "single"} in prompts["prompts"]
    for row in train + test + unseen:
        with Image.open(output / row["url"].removeprefix("http://example.org/emoji/")) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))
            assert image.getpixel((1, 1)) == (255, 255, 255) and image.getpixel((16, 16)) != (255, 255, 255)
    assert not list(output.glob("*.tmp-*"))


def test_a_group_lies_in_one_split_with_variants_too(packages: Path, tmp_path: Path) -> None:
    for seed in ("0", "1", "2"):
        output = gather(packages, tmp_path / seed, "--variants", "--seed", seed, "--held-out-style", "openmoji")
        tables = {split: rows_of(output, split) for split in ("train", "test", "unseen")}
        groups = {split: {row["metadata"]["variant_group"] for row in rows} for split, rows in tables.items()}
        assert groups["unseen"] and not groups["unseen"] & (groups["train"] | groups["test"])
        assert "1f34e" not in groups["unseen"]  # a prompt
        assert "openmoji" not in {row["metadata"]["style"] for row in tables["train"]}
        urls = [row["url"] for rows in tables.values() for row in rows]
        assert len(urls) == len(set(urls))
        variants = {row["metadata"]["class_id"] for row in tables["train"] + tables["unseen"]}
        assert {"1f468-200d-1f373", "1f44b-1f3fd"} <= variants


def test_drawings_held_out_are_a_random_part_of_the_training(packages: Path, tmp_path: Path) -> None:
    whole = gather(packages, tmp_path / "whole")
    parted = gather(packages, tmp_path / "parted", "--held-out", "4")
    held_out, train = rows_of(parted, "held_out"), rows_of(parted, "train")
    assert len(held_out) == 4 and held_out + train == rows_of(whole, "train")
    assert rows_of(parted, "test") == rows_of(whole, "test") and rows_of(parted, "unseen") == rows_of(whole, "unseen")
    assert not (whole / "held_out.parquet").exists()
    with pytest.raises(UserError, match="--held-out 10000: no drawing is left"):
        gather(packages, tmp_path / "none", "--held-out", "10000")


def test_every_prompt_emoji_has_a_kind_and_foils_of_that_kind() -> None:
    assert sum(KINDS.values()) == len(PROMPT_EMOJI)
    signs = {emoji_of(code): (f"sign {code}", []) for code in PROMPT_EMOJI[-7:]}
    names = read_names(
        {f"annotations/{code}/annotations.json": annotations("annotations", code, signs) for code in ("de", "en")},
        ["de", "en"],
    )
    found = emoji_prompt_set([*PROMPT_EMOJI, "1f99d"], names)
    assert [concept["kind"] for concept in found["concepts"]] == ["signs"] * 7 and found["languages"] == ["de", "en"]
    for concept in found["concepts"]:
        (atom,) = concept["atoms"]
        assert atom["statement"] == concept["texts"]["en"] == f"sign {concept['id']}"
        assert len(atom["foils"]) == 3 and atom["statement"] not in atom["foils"]


def test_the_same_packages_and_seed_give_the_same_bytes(packages: Path, tmp_path: Path) -> None:
    def digests(output: Path) -> dict[str, str]:
        files = sorted(path for path in output.rglob("*") if path.is_file())
        return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    first = digests(gather(packages, tmp_path / "first"))
    again = digests(gather(packages, tmp_path / "again"))
    assert first == again and len(first) > 50
    other = digests(gather(packages, tmp_path / "again", "--seed", "1"))  # over what is there
    assert other["train.parquet"] != first["train.parquet"] and set(other) == set(first)


def test_unpacked_folders_serve_as_well(packages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unpacked"
    for path in packages.iterdir():
        with tarfile.open(path) as archive:
            archive.extractall(folder / path.stem, filter="data")
    gather(packages, tmp_path / "first")
    gather(folder, tmp_path / "second")
    for name in ("train.parquet", "classes.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_unsafe_svg_is_left_out_and_its_emoji_chosen_anew(
    packages: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = STYLES["twemoji"].package
    members = {f"package/{code_of(emoji)}.svg": svg(GREEN) for emoji in EMOJI}
    members["package/1f436.svg"] = svg(GREEN, '<image href="/etc/passwd"/>')  # the dog now has two styles
    members["package/1f34e.svg"] = b"<svg not closed"
    write_tarball(packages / f"{package.stem}.tgz", members)
    output = gather(packages, tmp_path / "out")
    assert "2 images could not be drawn" in caplog.text
    classes = json.loads((output / "classes.json").read_text())["classes"]
    assert "1f436" not in classes and "1f34e" in classes
    assert not list((output / "images").rglob("1f436.png"))
    assert json.loads((output / "summary.json").read_text())["pictures_not_drawn"] == ["twemoji/1f34e", "twemoji/1f436"]


@pytest.mark.parametrize("name", ["../x", "package/../../../x", "package/link"])
def test_a_hostile_member_stops_the_program(packages: Path, tmp_path: Path, name: str) -> None:
    path = packages / f"{STYLES['twemoji'].package.stem}.tgz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        if name.endswith("link"):
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member, io.BytesIO(b""))
    with pytest.raises(UserError, match="not safe to unpack"):
        gather(packages, tmp_path / "out")
    assert not (tmp_path / "x").exists() and not (tmp_path / "out").exists()


def test_broken_and_oversized_tarballs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = STYLES["twemoji"].package
    path = tmp_path / "twemoji.tgz"
    write_tarball(path, {"package/1f34e.svg": os.urandom(5000)})
    whole = path.read_bytes()
    path.write_bytes(whole[:2000])
    with pytest.raises(UserError, match="not a whole tarball"):
        read_package(package, path)
    path.write_bytes(whole)
    monkeypatch.setattr(emoji_images, "MEMBER_BYTES", 4999)
    with pytest.raises(UserError, match="too large"):
        read_package(package, path)


def test_without_npm_the_error_names_the_cure(tmp_path: Path) -> None:
    program = Path(__file__).parents[1] / "data_tools" / "gather_emoji.py"
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, program, "--output", tmp_path / "out"],
        env={**os.environ, "PATH": str(empty)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "error: openmoji: no npm client on PATH to fetch it; install npm, or give a folder with openmoji-17.0.0.tgz by "
        "--packages"
    ]
    with pytest.raises(UserError, match=r"neither openmoji-17\.0\.0\.tgz nor a folder"):
        main(["--output", str(tmp_path / "out"), "--packages", str(empty)])


def test_npm_is_asked_for_the_exact_version_and_its_answer_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = STYLES["twemoji"].package
    fake = tmp_path / "bin" / "npm"
    fake.parent.mkdir()
    log = tmp_path / "asked"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {log}\nprintf wrong > twemoji-svg-15.0.0.tgz\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    for _ in range(2):
        with pytest.raises(UserError, match="sha512 differs"):
            fetch_package(package, tmp_path / "cache")
    asked = log.read_text().splitlines()
    assert len(asked) == 1 and asked[0].startswith("pack @twemoji/svg@15.0.0 ")  # the second time it was in the cache
    fake.write_text("#!/bin/sh\necho 'npm error code ECONNREFUSED' >&2\nexit 1\n")
    with pytest.raises(UserError, match="ECONNREFUSED"):
        fetch_package(STYLES["openmoji"].package, tmp_path / "cache")
    assert [path.name for path in tmp_path.glob("cache*")] == ["cache"]


def test_names_shared_by_two_classes_are_recorded_without_case() -> None:
    content = annotations("annotations", "de", {"🍎": ("Apfel", []), "🍏": ("apfel", ["Apfel"]), "🐶": ("Hund", [])})
    names = read_names({"annotations/de/annotations.json": content}, ["de"])
    table = make_classes(["1f34e", "1f34f", "1f436"], names)
    assert table["languages"]["de"]["ambiguous"] == [["1f34e", "1f34f"]]  # type: ignore[index]
    with pytest.raises(UserError, match="'tlh'; choose among: de"):
        read_names({"annotations/de/annotations.json": content}, ["tlh"])
    with pytest.raises(UserError, match="not a CLDR annotation file"):
        read_names({"annotations/de/annotations.json": b'{"annotations": []}'}, ["de"])


def test_three_styles_and_all_required_names_make_a_class() -> None:
    content = annotations("annotations", "en", {"🍎": ("apple", []), "🐶": ("dog", []), "🚀": ("rocket", [])})
    names = read_names({"annotations/en/annotations.json": content}, ["en"])
    three = dict.fromkeys(("openmoji", "twemoji", "google"))
    pictures = {"1f34e": three, "1f436": {"openmoji": None, "google": None}, "1f680": three, "1f99d": three}
    chosen = select(pictures, names, ["en"], "twemoji", False, 0)
    assert chosen.classes == ["1f34e", "1f680"] and chosen.splits["unseen"] == []


@pytest.mark.parametrize(
    "options",
    [["--size", "8"], ["--base-url", "file:///tmp"], ["--languages", "de"], ["--workers", "0"]],
)
def test_impossible_options_are_refused(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(UserError, match=options[0]):
        main(["--output", str(tmp_path / "out"), *options])


def test_drawing_puts_transparency_on_white_and_pads_to_a_square() -> None:
    tall = Image.new("RGBA", (32, 64), (255, 0, 0, 128))
    buffer = io.BytesIO()
    tall.save(buffer, "PNG")
    drawn = Image.open(io.BytesIO(draw(buffer.getvalue(), "png", 64) or b""))
    assert drawn.size == (64, 64) and drawn.getpixel((2, 32)) == (255, 255, 255)
    assert drawn.getpixel((32, 32)) == pytest.approx((255, 127, 127), abs=1)
    assert draw(b"GIF89a", "png", 64) is None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs the npm client and the network")
def test_the_real_packages(tmp_path: Path) -> None:
    main(["--output", str(tmp_path), "--size", "32"])
    classes = json.loads((tmp_path / "classes.json").read_text())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(classes["classes"]) > 1300
    names = {language: len(classes["languages"][language]["names"]) for language in EU_LANGUAGES}
    assert all(count == len(classes["classes"]) for language, count in names.items() if language != "mt")
    assert names["mt"] > 1000
    assert all(entry["is_version"] for entry in summary["packages"])
    assert summary["pictures_not_drawn"] == []
    assert len(json.loads((tmp_path / "prompts.json").read_text())["prompts"]) == 240
