"""Tabs that draw images for a prompt, and edit an uploaded image."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from leam_mm.serving import gradio_parts, page_parts
from leam_mm.serving.refusal import Refusal
from leam_mm.serving.tab_context import TabContext, Work, drawing_request


def add_draw_tab(context: TabContext) -> None:
    """Add the tab that draws, if the release has a generator."""
    texts, service = context.texts, context.release.drawing
    if service is None:
        return
    with gradio_parts.tab(texts.draw_tab, "draw"):
        prompt = gradio_parts.prompt(texts.prompt, texts)
        settings = gradio_parts.advanced(texts)
        start, stop = gradio_parts.buttons(texts.draw, texts.stop)
        outputs = [gradio_parts.status(page_parts.status(texts.ready)), gradio_parts.html()]

    def handle(client: str, prompt: str, *numbers: Any) -> AsyncGenerator[tuple[Any, Any], None]:
        def prepare() -> Work:
            wish = drawing_request(prompt, *numbers)
            return lambda ticket: page_parts.images(service.draw(wish, ticket.check), texts)

        return context.answer(client, prepare)

    triggers = [start.click, prompt.submit]
    stopped = page_parts.status(texts.stopped)
    gradio_parts.on_start(triggers, handle, [prompt, *settings], outputs, stop, stopped)


def add_edit_tab(context: TabContext) -> None:
    """Add the tab that edits an image, if the release has a generator."""
    texts, service = context.texts, context.release.drawing
    if service is None:
        return
    with gradio_parts.tab(texts.edit_tab, "edit"):
        with gradio_parts.row():
            image = gradio_parts.upload(texts.upload_edit, "edit-image")
            mask = gradio_parts.upload(texts.mask, "edit-mask")
        prompt = gradio_parts.prompt(texts.edit_prompt, texts)
        strength = gradio_parts.strength(texts)
        settings = gradio_parts.advanced(texts)
        start, stop = gradio_parts.buttons(texts.edit, texts.stop)
        outputs = [gradio_parts.status(page_parts.status(texts.ready)), gradio_parts.html()]

    def handle(
        client: str, image: str | None, mask: str | None, strength: Any, prompt: str, *numbers: Any
    ) -> AsyncGenerator[tuple[Any, Any], None]:
        def prepare() -> Work:
            if image is None:
                raise Refusal("no_image")
            paths = {"edit": Path(image), "mask": Path(mask) if mask else None}
            wish = drawing_request(prompt, *numbers, **paths, strength=strength)
            return lambda ticket: page_parts.images(service.draw(wish, ticket.check), texts, edited=True)

        return context.answer(client, prepare)

    triggers, inputs = [start.click, prompt.submit], [image, mask, strength, prompt, *settings]
    gradio_parts.on_start(triggers, handle, inputs, outputs, stop, page_parts.status(texts.stopped))
