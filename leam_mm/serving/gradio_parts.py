"""Inputs and outputs of the page: the only file that imports gradio.

Images are shown and saved from the marked files themselves, not through gradio's image components, which encode them
again and leave their alternative text empty (gradio issue 13731).
"""

import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: it reports nothing to anybody
os.environ["GRADIO_RUN_HISTORY"] = "False"

import gradio as gr
from fastapi import FastAPI

from leam_mm.serving.drawing_service import MAX_GUIDANCE, MAX_IMAGES, MAX_PROMPT, MAX_SEED, MAX_STEPS
from leam_mm.serving.page_texts import Texts
from leam_mm.serving.uploaded_image import MAX_UPLOAD

UPLOADS = "GRADIO_TEMP_DIR"  # variable of gradio: folder of uploads; the command sets it
CSS = Path(__file__).parent / "page.css"
LIVE = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"
FONTS = ("system-ui", "sans-serif")
CONNECTIONS = 256  # requests that gradio hands on to our queue, which has the limits
KEEP_UPLOADS = (300, 1800)  # seconds between two looks, and after which an upload is deleted
UNCHANGED = gr.skip()
Handler = Callable[..., AsyncGenerator[tuple[Any, Any], None]]


def blocks(title: str) -> Any:
    """Return an empty page, to be filled in a ``with`` block."""
    page = gr.Blocks(title=title, analytics_enabled=False, delete_cache=KEEP_UPLOADS)
    page.max_threads = CONNECTIONS
    return page


def tabs() -> AbstractContextManager[Any]:
    """Return the row of tabs."""
    return gr.Tabs(overflow_behavior="wrap")


def tab(label: str, name: str) -> AbstractContextManager[Any]:
    """Return a tab."""
    return gr.Tab(label, id=name)


def row() -> AbstractContextManager[Any]:
    """Return a row, whose parts stand below each other on a phone."""
    return gr.Row()


def html(content: str = "") -> Any:
    """Return a place for HTML."""
    return gr.HTML(content)


def status(content: str) -> Any:
    """Return a region whose changes a screen reader tells."""
    return gr.HTML(content, js_on_load=LIVE, elem_classes="status")


def prompt(label: str, texts: Texts) -> Any:
    """Return the input for a prompt."""
    info = texts.prompt_info.format(limit=MAX_PROMPT)
    return gr.Textbox(label=label, info=info, lines=1, max_lines=4, max_length=MAX_PROMPT)


def text(label: str, info: str, lines: int, most: int, visible: bool) -> Any:
    """Return an input for a longer text of at most ``most`` characters."""
    return gr.Textbox(label=label, info=info, lines=lines, max_length=most, visible=visible)


def strength(texts: Texts) -> Any:
    """Return the slider for the strength of an edit."""
    return gr.Slider(0, 1, 0.6, step=0.05, label=texts.strength, info=texts.strength_info, buttons=[])


def advanced(texts: Texts) -> list[Any]:
    """Return the folded inputs for seed, number of images, steps and guidance."""
    with gr.Accordion(texts.advanced, open=False):
        seed = gr.Textbox("", label=texts.seed, info=texts.seed_info, max_lines=1, max_length=len(str(MAX_SEED)))
        images = gr.Slider(1, MAX_IMAGES, 4, step=1, label=texts.images, buttons=[])
        steps = gr.Slider(1, MAX_STEPS, 28, step=1, label=texts.steps, info=texts.steps_info, buttons=[])
        guidance = gr.Slider(0, MAX_GUIDANCE, 4.0, step=0.5, label=texts.guidance, info=texts.guidance_info, buttons=[])
    return [seed, images, steps, guidance]


def upload(label: str, name: str) -> Any:
    """Return an input for an image that gives the path of the uploaded file; nothing is decoded or fetched."""
    image = gr.Image(
        label=label, sources=["upload"], image_mode=None, type="filepath", height=240, buttons=[], elem_id=name
    )
    # Methods of this object, since gradio writes a .pyi file beside the source of a subclass.
    image.preprocess = lambda payload: None if payload is None else payload.path
    image.async_move_resource_to_block_cache = _uploaded_path
    return image


async def _uploaded_path(path: object) -> str:
    """Return the path of an uploaded file; gradio would take other files of this machine, and fetch addresses."""
    found = Path(str(path)).resolve()
    if not found.is_relative_to(Path(os.environ[UPLOADS]).resolve()):
        raise gr.Error("only uploaded files are read", print_exception=False)
    return str(found)


def choice(label: str, choices: Sequence[tuple[str, str]], chosen: str, visible: bool = True) -> Any:
    """Return a choice of one among pairs of label and value."""
    return gr.Radio(list(choices), value=chosen, label=label, visible=visible)


def buttons(start: str, stop: str) -> tuple[Any, Any]:
    """Return a button that starts a request, and one that stops it."""
    with gr.Row():
        return gr.Button(start, variant="primary"), gr.Button(stop, variant="secondary")


def show(is_visible: bool) -> Any:
    """Return the change that shows or hides an input."""
    return gr.update(visible=is_visible)


def on_change(source: Any, handle: Callable[[Any], Any], output: Any) -> None:
    """Call a function with the new value of an input, and show what it returns."""
    source.change(handle, source, output, show_progress="hidden", api_visibility="private", queue=False)


def on_start(
    triggers: Sequence[Any], handle: Handler, inputs: list[Any], outputs: list[Any], stop: Any, stopped: str
) -> None:
    """Start requests and stop them.

    Args:
        triggers: Events that start one.
        handle: Called with the name of the client and the values of the inputs; yields status and result.
        inputs: The inputs.
        outputs: Status region and place of the result.
        stop: Button that stops the request.
        stopped: Status after that.
    """

    async def with_client(request: gr.Request, *values: Any) -> AsyncGenerator[tuple[Any, Any], None]:
        found = handle(str(request.session_hash), *values)
        try:
            async for pair in found:
                yield pair
        finally:
            await found.aclose()

    started = gr.on(
        triggers, with_client, inputs, outputs, show_progress="hidden", api_visibility="private",
        concurrency_limit=CONNECTIONS, trigger_mode="multiple",
    )  # fmt: skip
    stop.click(
        lambda: stopped, None, outputs[0], cancels=[started], show_progress="hidden", api_visibility="private",
        queue=False,
    )  # fmt: skip


def _theme() -> Any:
    """Return colours with a contrast of at least 4.5 : 1, and fonts of the machine."""
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=("ui-monospace", "monospace"))
    return theme.set(
        color_accent="*primary_700", link_text_color="*primary_700", link_text_color_dark="*primary_300",
        input_border_width="1px", input_border_width_dark="1px",
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700", block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_800", block_title_text_color_dark="*neutral_100",
        input_placeholder_color="*neutral_600", input_placeholder_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700", button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800", button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white", button_primary_text_color_dark="white",
        checkbox_background_color_selected="*primary_700", checkbox_background_color_selected_dark="*primary_700",
        slider_color="*primary_700", slider_color_dark="*primary_400",
        input_border_color="*neutral_500", input_border_color_dark="*neutral_400",
        block_border_color="*neutral_300", block_border_color_dark="*neutral_600",
    )  # fmt: skip


def mount(app: FastAPI, page: Any, path: str) -> None:
    """Add a finished page to an application."""
    with page:
        page.queue(api_open=False, default_concurrency_limit=CONNECTIONS)
    gr.mount_gradio_app(
        app, page, path, theme=_theme(), css=CSS.read_text(encoding="utf-8"), footer_links=[], run_history=False,
        max_file_size=MAX_UPLOAD, show_error=False, ssr_mode=False, pwa=False, mcp_server=False,
        enable_monitoring=False,
    )  # fmt: skip
