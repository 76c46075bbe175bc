"""What the tabs of the page share: the release, the queue, the words, and how a request is answered."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from leam_mm.serving import gradio_parts, page_parts
from leam_mm.serving.answers import answers
from leam_mm.serving.drawing_service import DrawingRequest
from leam_mm.serving.page_texts import Texts
from leam_mm.serving.refusal import Refusal
from leam_mm.serving.request_queue import RequestQueue, Ticket
from leam_mm.serving.served_release import ServedRelease

Work = Callable[[Ticket], str]


@dataclass(frozen=True)
class TabContext:
    """What tabs need.

    Args:
        release: The release.
        queue: Queue of all requests.
        texts: Words of the page.
    """

    release: ServedRelease
    queue: RequestQueue
    texts: Texts

    async def answer(self, client: str, prepare: Callable[[], Work]) -> AsyncGenerator[tuple[Any, Any], None]:
        """Yield status and result of a request; an older result stays until the new one is there.

        Args:
            client: Who asks.
            prepare: Checks the values of the inputs, and returns what makes the result: HTML.
        """
        try:
            work = prepare()
        except Refusal as refusal:
            sentence = self.texts.refusal(refusal.reason, refusal.values)
            yield page_parts.status(sentence, True), gradio_parts.UNCHANGED
            return
        found = answers(self.queue, client, self.texts, work)
        try:
            async for answer in found:
                result = gradio_parts.UNCHANGED if answer.result is None else answer.result
                yield page_parts.status(answer.status, answer.is_fault), result
        finally:
            await found.aclose()


def drawing_request(prompt: str, seed: Any, images: Any, steps: Any, guidance: Any, **edited: Any) -> DrawingRequest:
    """Return a checked request of values that come from a browser.

    Raises:
        Refusal: A value is outside its limits, or is not a number.
    """
    written = str(seed or "").strip()
    if written and not (written.isascii() and written.isdecimal() and len(written) <= 20):
        raise Refusal("seed")
    try:
        numbers = (int(written) if written else None, int(images), int(steps), float(guidance))
        wish = DrawingRequest(str(prompt or ""), *numbers, **edited)
    except (TypeError, ValueError, OverflowError):
        raise Refusal("fault") from None
    return wish.checked()
