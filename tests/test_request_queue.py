"""leam_mm/serving/request_queue.py and answers.py: order, limits, dropped requests, and messages to people."""

import asyncio
import gc
import logging
import threading
from concurrent.futures import CancelledError

import pytest

from leam_mm.errors import UserError
from leam_mm.serving.answers import Answer, answers
from leam_mm.serving.page_texts import ENGLISH, GERMAN
from leam_mm.serving.refusal import Refusal
from leam_mm.serving.request_queue import Dropped, RequestQueue, Ticket


def held(queue: RequestQueue, client: str = "first") -> tuple[threading.Event, Ticket]:
    """Occupy the queue with a request that runs until the event is set."""
    release, running = threading.Event(), threading.Event()

    def work(ticket: Ticket) -> str:
        running.set()
        while not release.wait(0.01):
            ticket.check()
        return "held"

    ticket = queue.submit(client, work)
    assert running.wait(10)
    return release, ticket


def test_requests_are_answered_in_the_order_in_which_they_came() -> None:
    queue, order = RequestQueue(), []
    release, _ = held(queue)
    tickets = [queue.submit(f"client{n % 10}", lambda _, n=n: order.append(n) or n) for n in range(50)]  # type: ignore
    assert [queue.position(ticket) for ticket in tickets] == list(range(1, 51))
    release.set()
    assert [ticket.done.result(10) for ticket in tickets] == order == list(range(50))
    assert queue.position(tickets[-1]) == 0
    queue.close()


def test_limits_of_all_and_of_one_client() -> None:
    queue = RequestQueue(waiting=3, per_client=2)
    release, _ = held(queue, "a")
    queue.submit("a", lambda _: None)
    with pytest.raises(Refusal) as refused:
        queue.submit("a", lambda _: None)
    assert refused.value.reason == "too_many_of_yours" and refused.value.values == {"limit": 2}
    queue.submit("b", lambda _: None)
    last = queue.submit("c", lambda _: None)
    with pytest.raises(Refusal) as refused:
        queue.submit("d", lambda _: None)
    assert refused.value.reason == "queue_full"
    last.cancel()
    queue.submit("d", lambda _: None)  # a dropped request makes room at once
    release.set()
    queue.close()


def test_a_dropped_request_never_starts_and_a_running_one_stops() -> None:
    queue, started = RequestQueue(), []
    _, running = held(queue)
    gone = queue.submit("b", lambda _: started.append("gone"))
    after = queue.submit("c", lambda _: started.append("after"))
    gone.cancel()
    assert queue.position(after) == 1
    running.cancel()
    with pytest.raises(Dropped):
        running.done.result(10)
    after.done.result(10)
    with pytest.raises(CancelledError):
        gone.done.result(10)
    assert started == ["after"]
    queue.close()


def test_a_failed_request_does_not_stop_the_next() -> None:
    queue = RequestQueue()
    failed = queue.submit("a", lambda _: 1 // 0)
    assert queue.submit("a", lambda _: "fine").done.result(10) == "fine"
    with pytest.raises(ZeroDivisionError):
        failed.done.result(10)
    queue.close()
    with pytest.raises(Refusal, match="closing"):
        queue.submit("a", lambda _: None)


def collect(queue: RequestQueue, work, texts=ENGLISH, client: str = "me") -> list[Answer]:
    async def run() -> list[Answer]:
        return [answer async for answer in answers(queue, client, texts, work)]

    return asyncio.run(run())


def test_a_person_is_told_the_position_and_the_end() -> None:
    queue = RequestQueue()
    release, _ = held(queue)
    queue.submit("b", lambda _: None)
    threading.Timer(0.05, release.set).start()
    found = collect(queue, lambda _: "result", GERMAN)
    assert found[0] == Answer("Wartet: Platz 2 in der Warteschlange.")
    assert found[-1] == Answer("Fertig.", "result")
    queue.close()


def test_a_closed_answer_drops_its_running_request(caplog: pytest.LogCaptureFixture) -> None:
    queue, running, stopped = RequestQueue(), threading.Event(), threading.Event()

    def work(ticket: Ticket) -> None:
        running.set()
        try:
            while True:
                ticket.check()
        finally:
            stopped.set()

    async def leave() -> None:
        found = answers(queue, "gone", ENGLISH, work)
        await anext(found)
        assert await asyncio.to_thread(running.wait, 10)
        await found.aclose()
        assert await asyncio.to_thread(stopped.wait, 10)
        await asyncio.sleep(0.05)

    with caplog.at_level(logging.DEBUG):
        asyncio.run(leave())
        gc.collect()
    assert "never retrieved" not in caplog.text and len(queue) == 0
    queue.close()


def test_a_closed_answer_drops_its_waiting_request() -> None:
    """gradio closes the iterator when the browser is gone."""
    queue = RequestQueue()
    release, _ = held(queue)

    async def leave() -> None:
        found = answers(queue, "gone", ENGLISH, lambda _: pytest.fail("a dropped request ran"))
        await anext(found)
        assert len(queue) == 2
        await found.aclose()

    asyncio.run(leave())
    assert len(queue) == 1
    release.set()
    queue.close()


def test_faults_are_told_in_the_language_of_the_page_and_logs_hold_no_input(caplog: pytest.LogCaptureFixture) -> None:
    queue = RequestQueue()
    secret = "my secret prompt"

    def broken(_: Ticket) -> str:
        raise ValueError(f"no idea what {secret} is")

    def refused(_: Ticket) -> str:
        raise Refusal("large_file", megabytes=20)

    def damaged(_: Ticket) -> str:
        raise UserError("the weights are damaged")

    with caplog.at_level(logging.DEBUG):
        assert collect(queue, broken)[-1] == Answer(ENGLISH.refusals["fault"], is_fault=True)
        assert collect(queue, damaged)[-1].is_fault
        large = collect(queue, refused, GERMAN)[-1]
    assert large == Answer("Die Datei ist größer als 20 MB. Bitte wählen Sie eine kleinere.", is_fault=True)
    assert "ValueError at test_request_queue.py:" in caplog.text and "weights are damaged" in caplog.text
    assert secret not in caplog.text
    queue.close()
