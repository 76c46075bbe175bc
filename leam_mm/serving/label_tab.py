"""Tab that finds labels and captions for an uploaded image."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from leam_mm.serving import gradio_parts, page_parts
from leam_mm.serving.encoder_service import MAX_LABEL, MAX_LABELS
from leam_mm.serving.refusal import Refusal
from leam_mm.serving.tab_context import TabContext, Work

OWN = "own"  # in place of the code of a language: labels that a person types


def add_label_tab(context: TabContext) -> None:
    """Add the tab, if the release has an encoder."""
    texts, service = context.texts, context.release.encoder
    if service is None:
        return
    choices = [*((texts.language_names.get(code, code), code) for code in service.languages), (texts.typed, OWN)]
    first = texts.language if texts.language in service.languages else choices[0][1]
    with gradio_parts.tab(texts.describe_tab, "label"):
        image = gradio_parts.upload(texts.upload, "label-image")
        chosen = gradio_parts.choice(texts.labels_from, choices, first, visible=len(choices) > 1)
        most = MAX_LABELS * (MAX_LABEL + 2)
        typed = gradio_parts.text(texts.labels_own, texts.labels_own_info, 3, most, visible=first == OWN)
        gradio_parts.on_change(chosen, lambda value: gradio_parts.show(value == OWN), typed)
        start, stop = gradio_parts.buttons(texts.describe, texts.stop)
        outputs = [gradio_parts.status(page_parts.status(texts.ready)), gradio_parts.html()]

    def handle(client: str, image: str | None, chosen: str, typed: str) -> AsyncGenerator[tuple[Any, Any], None]:
        def prepare() -> Work:
            if image is None:
                raise Refusal("no_image")
            path, language = Path(image), None if chosen == OWN else chosen
            return lambda _: (
                page_parts.labels(service.labels(path, language, str(typed or "")), texts)
                + page_parts.captions(service.nearest_captions(path), texts)
            )

        return context.answer(client, prepare)

    stopped = page_parts.status(texts.stopped)
    gradio_parts.on_start([start.click], handle, [image, chosen, typed], outputs, stop, stopped)
