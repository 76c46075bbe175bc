"""What the page answers to a click: states of the queue, and at the end the result or a sentence that says why not."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from leam_mm.errors import UserError, one_line
from leam_mm.serving.page_texts import Texts
from leam_mm.serving.refusal import Refusal
from leam_mm.serving.request_queue import Dropped, RequestQueue, Ticket

log = logging.getLogger(__name__)
INTERVAL = 0.5  # seconds between two looks at the queue


@dataclass(frozen=True)
class Answer:
    """One state of a request.

    Args:
        status: Sentence of the status region.
        result: What the request returned; None until it is finished.
        is_fault: Whether the request failed or was refused.
    """

    status: str
    result: Any = None
    is_fault: bool = False


async def answers(
    queue: RequestQueue, client: str, texts: Texts, work: Callable[[Ticket], Any]
) -> AsyncGenerator[Answer, None]:
    """Queue a request, and yield its states until it is finished; a closed iterator drops it.

    Args:
        queue: The queue.
        client: Who asks.
        texts: Words of the page.
        work: The request. Its input is not logged, whatever happens.
    """
    try:
        ticket = queue.submit(client, work)
    except Refusal as refusal:
        yield _fault(refusal, texts)
        return
    finished = asyncio.wrap_future(ticket.done)
    finished.add_done_callback(lambda end: end.cancelled() or end.exception())  # nobody reads that of a gone client
    try:
        while not finished.done():
            yield Answer(_state(queue, ticket, texts))
            await asyncio.wait({finished}, timeout=INTERVAL)
        yield _end(finished, texts)
    finally:
        ticket.cancel()


def _state(queue: RequestQueue, ticket: Ticket, texts: Texts) -> str:
    if position := queue.position(ticket):
        return texts.waiting.format(position=position)
    if ticket.steps > 1:
        return texts.progress.format(finished=ticket.finished_steps, steps=ticket.steps)
    return texts.starting


def _end(finished: "asyncio.Future[Any]", texts: Texts) -> Answer:
    try:
        return Answer(texts.finished, finished.result())
    except (Dropped, CancelledError, asyncio.CancelledError):
        return Answer(texts.stopped)
    except Refusal as refusal:
        return _fault(refusal, texts)
    except UserError as error:
        log.error("a request failed: %s", one_line(error))
    except Exception as error:
        # Neither the message nor the values of a traceback are logged: they may quote what a person wrote.
        log.error("a request failed with %s at %s", type(error).__name__, _place(error))
    return Answer(texts.refusals["fault"], is_fault=True)


def _fault(refusal: Refusal, texts: Texts) -> Answer:
    return Answer(texts.refusal(refusal.reason, refusal.values), is_fault=True)


def _place(error: BaseException) -> str:
    """Return file and line where an exception was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}" if trace else "?"
