"""Tab that draws with two releases side by side, and shows the measured numbers of both."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

from leam_mm.serving import gradio_parts, page_parts
from leam_mm.serving.drawing_service import DrawingRequest, DrawingService, DrawnImage
from leam_mm.serving.release_numbers import side_by_side
from leam_mm.serving.request_queue import Ticket
from leam_mm.serving.served_release import ServedRelease
from leam_mm.serving.tab_context import TabContext, Work, drawing_request


def add_compare_tab(context: TabContext, other: ServedRelease | None) -> None:
    """Add the tab, if there is another release."""
    if other is None:
        return
    texts, release = context.texts, context.release
    names = [release.name, other.name if other.name != release.name else f"{other.name} (2)"]
    with gradio_parts.tab(texts.compare_tab, "compare"):
        if release.drawing is not None and other.drawing is not None:
            _add_drawing(context, names, [release.drawing, other.drawing])
        rows = side_by_side(release.folder, other.folder)
        gradio_parts.html(page_parts.numbers(names, rows, texts))


def _add_drawing(context: TabContext, names: list[str], services: list[DrawingService]) -> None:
    texts = context.texts
    gradio_parts.html(page_parts.status(texts.compare_note))
    prompt = gradio_parts.prompt(texts.prompt, texts)
    settings = gradio_parts.advanced(texts)
    start, stop = gradio_parts.buttons(texts.compare, texts.stop)
    outputs = [gradio_parts.status(page_parts.status(texts.ready)), gradio_parts.html()]

    def handle(client: str, prompt: str, *numbers: Any) -> AsyncGenerator[tuple[Any, Any], None]:
        def prepare() -> Work:
            wish = drawing_request(prompt, *numbers)
            return lambda ticket: page_parts.pairs(
                list(zip(names, draw_with_all(services, wish, ticket), strict=True)), texts
            )

        return context.answer(client, prepare)

    triggers, stopped = [start.click, prompt.submit], page_parts.status(texts.stopped)
    gradio_parts.on_start(triggers, handle, [prompt, *settings], outputs, stop, stopped)


def draw_with_all(services: list[DrawingService], wish: DrawingRequest, ticket: Ticket) -> list[list[DrawnImage]]:
    """Return the images of several generators for the same request, whose seed is set."""
    steps = len(services) * wish.images

    def advance(place: int) -> Callable[[int, int], None]:
        return lambda done, _: ticket.check(place * wish.images + done, steps)

    return [service.draw(wish, advance(place)) for place, service in enumerate(services)]
