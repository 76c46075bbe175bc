"""The page in a browser: accessibility (axe), languages, phone width, dark mode, and no address but this machine's."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from toys.served_pages import Served, served
from toys.served_releases import add_files, write_toy_release

from leam_mm.serving.page_texts import TEXTS

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
    pytest.mark.slow,
]
TABS = {"en": ["Draw", "Edit", "Label", "Compare", "Documents"],
        "de": ["Zeichnen", "Bearbeiten", "Benennen", "Vergleichen", "Dokumente"]}  # fmt: skip
DONE = {"en": "Finished.", "de": "Fertig."}
DARK = {"light": False, "dark": True}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, toy_checkpoints: dict[str, Path]) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("browser")
    for name in ("one", "two"):
        write_toy_release(root / name, toy_checkpoints, name)
        text = "# Policy\n\n## Uses\n\n| use | allowed |\n|---|---|\n| art | yes |\n\n`code`\n\n```\nlong line\n```\n"
        texts = {f"documents/{code}/policy.md": text for code in ("en", "de")}
        captions = {"documents/captions.txt": "ein Kreis\na circle\n", "documents/facts.json": "{}"}
        add_files(root / name, {**texts, **captions})
    with served(root / "one", "--compare", root / "two") as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def open_page(browser: Any, page: Served, language: str, theme: str = "light", width: int = 1280) -> Any:
    context = browser.new_context(
        locale=language, color_scheme=theme, viewport={"width": width, "height": 844}, reduced_motion="reduce"
    )
    tab = context.new_page()
    tab.requested, tab.faults = [], []
    tab.on("request", lambda request: tab.requested.append(request.url))
    tab.on("pageerror", lambda error: tab.faults.append(str(error)))
    tab.goto(page.url, wait_until="networkidle")
    tab.get_by_role("tab", name=TABS[language][0]).wait_for()
    return tab


def draw(tab: Any, language: str, prompt: str) -> None:
    tab.get_by_role("textbox").first.fill(prompt)
    tab.get_by_role("textbox").first.press("Enter")
    tab.get_by_role("status").filter(has_text=DONE[language]).wait_for(timeout=60_000)


def width_of(image: Any) -> int:
    """The width of an image in pixels, once the browser has loaded it: the status changes before the image arrives."""
    image.wait_for()
    return int(image.evaluate("image => image.decode().then(() => image.naturalWidth)"))


def upload(tab: Any, name: str, place: str, folder: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(folder / "photo.png")
    tab.get_by_role("tab", name=name).click()
    tab.locator(f"#{place} input[type=file]").set_input_files(folder / "photo.png")
    tab.locator(f"#{place} img").wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en", "de"])
def test_no_serious_violation_on_any_tab(browser: Any, page: Served, language: str, theme: str, tmp_path: Path) -> None:
    tab = open_page(browser, page, language, theme)
    assert tab.evaluate("document.documentElement.lang") == language
    assert tab.evaluate("document.body.classList.contains('dark')") == DARK[theme]
    draw(tab, language, "ein Kreis")
    upload(tab, TABS[language][1], "edit-image", tmp_path)
    upload(tab, TABS[language][2], "label-image", tmp_path)
    found = []
    for name in TABS[language]:
        tab.get_by_role("tab", name=name).click()
        for folded in tab.get_by_role("button", name="Advanced" if language == "en" else "Weitere").all():
            if folded.is_visible() and folded.get_attribute("aria-expanded") != "true":
                folded.click()
        tab.wait_for_timeout(300)
        for violation in axe.Axe().run(tab).response["violations"]:
            if violation["impact"] in ("serious", "critical"):
                nodes = [(node["html"][:200], node["failureSummary"][:300]) for node in violation["nodes"]]
                found.append((name, violation["id"], nodes))
    assert not found, "\n".join(map(str, found))
    assert not tab.faults


@pytest.mark.parametrize("language", ["en", "de"])
def test_a_phone_needs_no_horizontal_scrolling(browser: Any, page: Served, language: str) -> None:
    tab = open_page(browser, page, language, width=390)
    draw(tab, language, "ein Kreis")
    names = list(TABS[language])
    for number, name in enumerate(names):
        found = tab.get_by_role("tab", name=name)
        if not found.is_visible():
            pytest.fail(f"the tab {name} of {number} cannot be reached")
        found.click()
        tab.wait_for_timeout(200)
        widths = tab.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert widths[0] <= widths[1] == 390, name


def test_the_keyboard_alone_draws_and_the_result_is_told(browser: Any, page: Served) -> None:
    tab = open_page(browser, page, "en")
    for _ in range(20):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.tagName") == "TEXTAREA":
            break
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    tab.keyboard.type('a "circle" <b>')
    tab.keyboard.press("Enter")
    region = tab.get_by_role("status").filter(has_text="Finished.")
    region.wait_for(timeout=60_000)
    assert region.get_attribute("aria-live") == "polite"
    image = tab.get_by_role("img", name='a "circle" <b>').first
    assert width_of(image) > 0
    tab.get_by_text("AI-generated").first.wait_for()


def test_a_saved_image_is_still_marked(browser: Any, page: Served, tmp_path: Path) -> None:
    tab = open_page(browser, page, "de")
    draw(tab, "de", "ein Kreis")
    with tab.expect_download() as saving:
        tab.get_by_role("link", name="Bild speichern").first.click()
    saving.value.save_as(tmp_path / "saved.png")
    with Image.open(tmp_path / "saved.png") as image:
        assert image.info["DigitalSourceType"].endswith("trainedAlgorithmicMedia")


def test_images_are_uploaded_edited_and_labelled(browser: Any, page: Served, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    tab = open_page(browser, page, "en")
    upload(tab, "Edit", "edit-image", tmp_path)
    panel = tab.get_by_role("tabpanel").filter(has_text="Image to edit")
    panel.get_by_role("textbox").first.fill("a star")
    panel.get_by_role("button", name="Edit", exact=True).click()
    panel.get_by_text("AI-edited").first.wait_for(timeout=60_000)
    image = panel.get_by_role("img", name="a star").first
    assert width_of(image) > 0
    with tab.expect_download() as saving:
        panel.get_by_role("link", name="Save image").first.click()
    saving.value.save_as(tmp_path / "edited.png")
    with Image.open(tmp_path / "edited.png") as saved:
        assert saved.info["DigitalSourceType"].endswith("compositeWithTrainedAlgorithmicMedia")
    tab.get_by_role("tab", name="Label").click()
    panel = tab.get_by_role("tabpanel").filter(has_text="Find labels")
    tab.locator("#label-image input[type=file]").set_input_files(tmp_path / "bad.png")
    tab.wait_for_timeout(500)
    panel.get_by_role("textbox").first.fill("rot, blau")
    panel.get_by_role("button", name="Find labels").click()
    panel.get_by_text("not an image that can be read").wait_for(timeout=60_000)


@pytest.mark.parametrize("language", ["en", "de"])
def test_the_edit_button_says_why_an_upload_is_not_edited(
    browser: Any, page: Served, language: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    tab = open_page(browser, page, language)
    tab.get_by_role("tab", name=TABS[language][1]).click()
    panel = tab.get_by_role("tabpanel").filter(has_text=TEXTS[language].upload_edit)
    panel.get_by_role("textbox").first.fill("ein Stern")
    press = panel.get_by_role("button", name=TEXTS[language].edit, exact=True)
    press.click()
    panel.get_by_text(TEXTS[language].refusals["no_image"]).wait_for(timeout=60_000)
    tab.locator("#edit-image input[type=file]").set_input_files(tmp_path / "bad.png")
    tab.wait_for_timeout(500)
    press.click()
    panel.get_by_text(TEXTS[language].refusals["not_an_image"]).wait_for(timeout=60_000)
    assert panel.get_by_role("img", name="ein Stern").count() == 0


def test_the_browser_asks_this_machine_only(browser: Any, page: Served) -> None:
    tab = open_page(browser, page, "de", "dark")
    draw(tab, "de", "ein Kreis")
    for name in TABS["de"]:
        tab.get_by_role("tab", name=name).click()
    tab.get_by_role("link", name="English").click()
    tab.get_by_role("tab", name="Draw").wait_for()
    assert tab.evaluate("document.documentElement.lang") == "en"
    others = [url for url in tab.requested if not url.startswith((page.url, "data:", "blob:"))]
    assert len(tab.requested) > 10 and not others
