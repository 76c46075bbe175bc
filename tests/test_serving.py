"""leam_mm/serving without a browser: marked images, labels and captions, refused input, documents, texts, addresses."""

import dataclasses
import io
import re
import socket
import string
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys.generators import write_generator_run
from toys.image_bombs import gif_bomb, palette_bomb, scan_bomb, webp_bomb

from leam_mm.checkpoint import load_module
from leam_mm.errors import UserError
from leam_mm.inference.embedder import Embedder
from leam_mm.marking.generated_image import SOURCE_TYPE
from leam_mm.serving import page_parts
from leam_mm.serving.drawing_service import MAX_PROMPT, DrawingRequest, DrawingService, ImageStore
from leam_mm.serving.encoder_service import EncoderService, typed_labels
from leam_mm.serving.page_texts import ENGLISH, GERMAN, TEXTS, Texts, preferred_language
from leam_mm.serving.refusal import Refusal
from leam_mm.serving.release_documents import ReleaseDocuments, render_markdown
from leam_mm.serving.release_numbers import Number, side_by_side
from leam_mm.serving.serve_command import ServeOptions, serve
from leam_mm.serving.uploaded_image import check_upload

HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, toy_checkpoints: dict[str, Path]) -> DrawingService:
    run = write_generator_run(tmp_path_factory.mktemp("page") / "generator", **dict(toy_checkpoints))
    return DrawingService(load_module(run), ImageStore(tmp_path_factory.mktemp("images"), kept=2))


@pytest.fixture(scope="module")
def embedder(toy_checkpoints: dict[str, Path]) -> Embedder:
    return Embedder.open(toy_checkpoints["clip"])


def refused(reason: str, call) -> Refusal:
    with pytest.raises(Refusal) as found:
        call()
    assert found.value.reason == reason
    return found.value


def test_drawn_images_are_marked_files_and_the_oldest_are_removed(service: DrawingService) -> None:
    steps: list[tuple[int, int]] = []
    wish = DrawingRequest("ein roter Kreis", 5, images=2, steps=2).checked()
    found = service.draw(wish, lambda done, of: steps.append((done, of)))
    assert steps == [(0, 2), (1, 2), (2, 2)] and [image.seed for image in found] == [5, 6]
    paths = [service.store.find(image.name) for image in found]
    for path in paths:
        assert path is not None
        with Image.open(path) as image:
            assert image.info["DigitalSourceType"] == SOURCE_TYPE and image.size == (service.side, service.side)
    again = service.draw(wish, lambda *_: None)
    path = service.store.find(again[0].name)
    with Image.open(path) as one, Image.open(paths[0]) as other:
        np.testing.assert_array_equal(np.array(one), np.array(other))
    service.draw(dataclasses.replace(wish, images=1), lambda *_: None)
    assert service.store.find(found[0].name) is None and not paths[0].exists()
    assert service.store.find(again[0].name) is not None
    for name in ("", "../secret", f"{again[0].name.split('/')[0]}/../x.png", "/etc/passwd", again[0].name + "/x"):
        assert service.store.find(name) is None


def test_edits_start_from_the_uploaded_image(service: DrawingService, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (250, 10, 10)).save(tmp_path / "red.png")
    wish = DrawingRequest("x", 1, steps=2, edit=tmp_path / "red.png", strength=0.0).checked()
    (kept,) = service.draw(wish, lambda *_: None)
    (new,) = service.draw(dataclasses.replace(wish, strength=1.0), lambda *_: None)
    one, other = (np.array(Image.open(service.store.find(image.name))).astype(int) for image in (kept, new))
    assert np.abs(one - other).max() > 5
    page = page_parts.images([kept], ENGLISH, edited=True)
    assert "AI-edited" in page and 'alt="x"' in page


def test_requests_outside_the_limits_are_refused() -> None:
    refused("no_prompt", DrawingRequest(" \n").checked)
    found = refused("long_prompt", DrawingRequest("x" * (MAX_PROMPT + 1)).checked)
    assert found.values == {"limit": MAX_PROMPT, "length": MAX_PROMPT + 1}
    nan = float("nan")
    for wrong in ({"seed": -1}, {"seed": 2**40}, {"images": 0}, {"images": 9}, {"steps": 1000}, {"guidance": nan},
                  {"guidance": 21}, {"strength": 1.1}):  # fmt: skip
        found = refused("number", DrawingRequest("x", **wrong).checked)  # type: ignore[arg-type]
        assert found.values["name"] in wrong
    assert "Startwert: Bitte" in GERMAN.refusal("number", {"name": "seed", "least": 0, "most": 1})
    assert DrawingRequest("x").checked().seed != DrawingRequest("x").checked().seed


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not_an_image"), (b"no image at all", "not_an_image"), (b"%!PS-Adobe", "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"), (palette_bomb, "large_image"),
        (gif_bomb, "large_image"), (webp_bomb, "large_image"), (scan_bomb, "large_image"),
    ],
)  # fmt: skip
def test_bad_uploads_are_refused_with_a_reason(content, reason: str, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(content if isinstance(content, bytes) else content())
    refused(reason, lambda: check_upload(tmp_path / "upload"))


def test_missing_and_large_uploads(tmp_path: Path) -> None:
    refused("no_image", lambda: check_upload(None))
    refused("no_image", lambda: check_upload(tmp_path / "gone.png"))
    (tmp_path / "large.png").write_bytes(bytes(2000))
    assert refused("large_file", lambda: check_upload(tmp_path / "large.png", 1000)).values == {"megabytes": 0}


def test_labels_and_captions(embedder: Embedder, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), "green").save(buffer, "JPEG")
    (tmp_path / "photo").write_bytes(buffer.getvalue())
    (tmp_path / "captions.txt").write_text("ein Kreis\n\nein Stern\nein Kreis\nzwei Sterne\n", encoding="utf-8")
    classes = '{"classes": ["c", "s"], "languages": {"de": {"names": {"c": ["Kreis"], "s": ["Stern"]}}}}'
    (tmp_path / "classes.json").write_text(classes)
    service = EncoderService(embedder, tmp_path / "classes.json", tmp_path / "captions.txt")
    assert service.languages == ["de"] and service.captions == ["ein Kreis", "ein Stern", "zwei Sterne"]
    found = service.labels(tmp_path / "photo", "de")
    assert {match.text for match in found} == {"Kreis", "Stern"}
    assert sum(match.value for match in found) == pytest.approx(1) and found[0].value >= found[1].value
    own = service.labels(tmp_path / "photo", None, "grün, rot\nblau")
    assert {match.text for match in own} == {"grün", "rot", "blau"}
    nearest = service.nearest_captions(tmp_path / "photo", top=2)
    assert len(nearest) == 2 and nearest[0].value >= nearest[1].value
    vectors = embedder.embed_texts(service.captions)
    assert nearest[0].value == pytest.approx(float((vectors @ service._embed(tmp_path / "photo")).max()), abs=1e-5)
    bare = EncoderService(embedder)
    assert bare.languages == [] and bare.nearest_captions(tmp_path / "photo") == []
    refused("few_labels", lambda: bare.labels(tmp_path / "photo", "de"))
    (tmp_path / "photo").write_bytes(b"no image")
    refused("not_an_image", lambda: service.labels(tmp_path / "photo", "de"))


def test_typed_labels_have_limits() -> None:
    assert typed_labels(" a  b ,c\n\nd").names == ["a b", "c", "d"]
    refused("few_labels", lambda: typed_labels("one,"))
    refused("many_labels", lambda: typed_labels(",".join(map(str, range(201)))))
    refused("long_label", lambda: typed_labels("a," + "x" * 201))
    assert refused("twice", lambda: typed_labels("a,b,a")).values == {"label": "a"}


def test_documents_of_a_stranger_are_harmless(tmp_path: Path) -> None:
    text = f"---\nlicense: mit\n---\n# Card {HOSTILE}\n\n<script>alert(1)</script>\n\n"
    text += f"| a | b |\n|---|---|\n| 1 | {HOSTILE} |\n\n![pixel](https://tracker.example/x.png) "
    text += "[web](https://example.org) [bad](javascript:alert(1)) [up](../../etc)\n"
    page = render_markdown(text)
    assert "<script" not in page and "<img" not in page and "javascript:" not in re.sub(r">[^<]*<", "><", page)
    assert "license" not in page and "<h2>Card" in page and "[pixel]" in page and "<table>" in page
    assert 'href="https://example.org" rel="noopener noreferrer nofollow"' in page and 'href="../../etc"' not in page
    (tmp_path / "documents/de").mkdir(parents=True)
    (tmp_path / "documents/en").mkdir()
    (tmp_path / "README.md").write_text(text)
    (tmp_path / "documents/de/policy.md").write_text("# Richtlinie")
    (tmp_path / "documents/en/policy.md").write_text("# Policy")
    (tmp_path / "documents/table.csv").write_text("a,b")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "documents/link.md").symlink_to("/etc/passwd")
    documents = ReleaseDocuments(tmp_path)
    assert [one.title for one in documents.in_language("de")] == [f"Card {HOSTILE}", "Richtlinie"]
    (tmp_path / "documents/images").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "documents/images/a.png")
    source = "![one](../images/a.png) ![two](../../secret.png) ![three](/etc/a.png)"
    (tmp_path / "documents/de/model_card.md").write_text(f"# Karte: Name\n\n{source}")
    (tmp_path / "secret.png").write_bytes(b"secret")
    german = ReleaseDocuments(tmp_path)
    assert [one.title for one in german.in_language("de")] == ["Karte", "Richtlinie"]
    assert next(one.name for one in german.in_language("en")) == "README.md"
    page = german.html("documents/de/model_card.md")
    assert page.count("<img") == 1 and 'src="../pictures/documents/images/a.png" alt="one"' in page
    assert "[two] [three]" in page and german.picture("secret.png") is None
    assert german.picture("documents/images/a.png") is not None
    assert [one.name for one in documents.in_language("en")] == ["README.md", "documents/en/policy.md"]
    assert documents.files == ["documents/table.csv"] and documents.file("documents/table.csv") is not None
    for name in ("secret.txt", "documents/../secret.txt", "/etc/passwd", "documents/link.md", ""):
        assert documents.file(name) is None
        with pytest.raises(UserError, match="no such document"):
            documents.html(name)


def test_names_prompts_and_labels_are_escaped(service: DrawingService) -> None:
    (image,) = service.draw(DrawingRequest(HOSTILE, 1, steps=1).checked(), lambda *_: None)
    for page in (
        page_parts.header(HOSTILE, ENGLISH), page_parts.images([image], ENGLISH), page_parts.status(HOSTILE),
        page_parts.pairs([(HOSTILE, [image])], GERMAN), page_parts.numbers([HOSTILE], [(HOSTILE, None, None)], ENGLISH),
    ):  # fmt: skip
        assert HOSTILE not in page and "&lt;img" in page


def test_every_image_has_a_visible_label_and_its_prompt_as_alternative_text(service: DrawingService) -> None:
    wish = DrawingRequest("ein “roter” Kreis", 1, images=2, steps=1).checked()
    found = service.draw(wish, lambda *_: None)
    for texts, label in ((ENGLISH, "AI-generated"), (GERMAN, "KI-generiert")):
        page = page_parts.pairs([("a", found)], texts)
        figures = page.split("<figure>")[1:]
        assert len(figures) == 2
        assert all('alt="ein “roter” Kreis"' in figure and f">{label}</span>" in figure for figure in figures)
        assert texts.notice in page_parts.header("name", texts)


def test_numbers_of_two_releases(tmp_path: Path) -> None:
    for name, row in (("a", '{"name": "top1", "value": 0.5, "low": 0.4, "high": 0.6, "unit": "fraction", '
                            '"note": "indicative only: why"}'), ("b", '{"name": "fid", "value": null}')):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.jsonl").write_text(row + "\n")
    rows = side_by_side(tmp_path / "a", tmp_path / "b")
    assert rows == [
        ("top1", Number(0.5, 0.4, 0.6, "fraction", True), None),
        ("fid", None, Number(None, None, None, "")),
    ]
    page = page_parts.numbers(["A", "B"], rows, GERMAN)
    assert "0,500 (0,400 – 0,600); nur ein Anhaltswert" in page and page.count("nicht gemessen") == 3
    assert side_by_side(tmp_path, tmp_path) == [] and GERMAN.no_numbers in page_parts.numbers(["A", "B"], [], GERMAN)


def test_both_languages_say_the_same_with_the_same_places() -> None:
    def places(text: str) -> list[str]:
        return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)

    assert ENGLISH.refusals.keys() == GERMAN.refusals.keys()
    assert ENGLISH.language_names.keys() == GERMAN.language_names.keys()
    for field in dataclasses.fields(Texts):
        one, other = getattr(ENGLISH, field.name), getattr(GERMAN, field.name)
        for key in one if isinstance(one, dict) else [None]:
            pair = (one[key], other[key]) if key else (one, other)
            assert places(pair[0]) == places(pair[1]), (field.name, key)
    assert all(texts.language == code for code, texts in TEXTS.items())


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("de-AT,de;q=0.9,en;q=0.8", "de"), ("en-GB", "en"), ("fr,de;q=0.7,en;q=0.3", "de"), ("", "en"), ("fr", "en"),
        ("en;q=0.5,de", "de"), ("de;q=x", "en"), ("*", "en"), (";;,,=" * 99, "en"),
    ],
)  # fmt: skip
def test_the_language_that_a_browser_prefers(header: str, language: str) -> None:
    assert preferred_language(header) == language


def test_wrong_commands_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    for address in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(UserError, match="--open-to-network"):
            serve(ServeOptions(tmp_path, host=address))
    with pytest.raises(UserError, match="--port is 70000"):
        serve(ServeOptions(tmp_path, port=70_000))
    with pytest.raises(UserError, match="cannot be used"):
        serve(ServeOptions(tmp_path, port=0))
    with pytest.raises(UserError, match="absent is not there"):
        serve(ServeOptions(tmp_path, compare=tmp_path / "absent"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 cannot be used .* --port {port + 1}"):
            serve(ServeOptions(tmp_path, port=port))
