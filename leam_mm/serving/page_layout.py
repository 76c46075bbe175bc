"""The page in each language: header and tabs."""

from fastapi import FastAPI

from leam_mm.serving import gradio_parts, page_parts
from leam_mm.serving.compare_tab import add_compare_tab
from leam_mm.serving.documents_tab import add_documents_tab
from leam_mm.serving.drawing_tabs import add_draw_tab, add_edit_tab
from leam_mm.serving.label_tab import add_label_tab
from leam_mm.serving.page_texts import TEXTS
from leam_mm.serving.request_queue import RequestQueue
from leam_mm.serving.served_release import ServedRelease
from leam_mm.serving.tab_context import TabContext


def mount_pages(app: FastAPI, release: ServedRelease, other: ServedRelease | None, queue: RequestQueue) -> None:
    """Add the page to an application, in each language under its code.

    Args:
        app: The application.
        release: The release.
        other: A release to compare with, or None.
        queue: Queue of all requests of all languages.
    """
    for language, texts in TEXTS.items():
        context = TabContext(release, queue, texts)
        with gradio_parts.blocks(release.name) as page:
            gradio_parts.html(page_parts.header(release.name, texts))
            with gradio_parts.tabs():
                add_draw_tab(context)
                add_edit_tab(context)
                add_label_tab(context)
                add_compare_tab(context, other)
                add_documents_tab(context)
        gradio_parts.mount(app, page, f"/{language}")
