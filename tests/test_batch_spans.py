import pytest

from leam_mm.data.batch_spans import BatchSpans
from leam_mm.errors import UserError


def test_spans_without_a_change_are_multiples() -> None:
    spans = BatchSpans(first=3, seen=24, end=48, batch_size=8)
    assert [spans[number] for number in range(3, len(spans))] == [range(24, 32), range(32, 40), range(40, 48)]
    assert spans[2] == range(0) and spans.rest == 0 and spans[3:5] == [range(24, 32), range(32, 40)]
    with pytest.raises(IndexError):
        spans[6]


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 1), (6, 2), (16, 4), (100, 2)])
def test_every_sample_is_in_one_span_and_the_sizes_follow(batch: int, accumulate: int) -> None:
    spans = BatchSpans(7, 12, 48, batch, accumulate)
    found = [spans[number] for number in range(7, len(spans))]
    assert [index for span in found for index in span] == list(range(12, 48))
    assert (len(spans) - 7) % accumulate == 0
    for span in found:
        assert spans.size_after(span.start) == len(span)
    for step in range(7, len(spans), accumulate):  # the micro-batches of a step have one size
        assert len({len(spans[number]) for number in range(step, step + accumulate)}) == 1


def test_a_last_step_that_ranks_cannot_share_is_refused() -> None:
    spans = BatchSpans(0, 0, 46, 8, 2)
    with pytest.raises(UserError, match=r"hold 6 samples .* 2 ranks x 2 .* set max_samples to 40 or 48"):
        spans.check(2)
    spans.check(3)
    assert BatchSpans(5, 48, 48, 8).rest == 0 and len(BatchSpans(5, 56, 48, 8)) == 5
