"""Charts: round ticks, points inside the frame, names escaped, nothing drawn from nothing."""

import itertools
import math
import re

import pytest

from leam_mm.report.chart import HEIGHT, WIDTH, interval_bar, line_chart, short, thin, ticks


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.02, 0.4), (-3, 7), (1e5, 3e6), (5, 5), (0, 0), (-1e-9, 1e-9)])
def test_ticks_cover_and_are_few(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low + 1e-12 and found[-1] >= high - 1e-12
    assert 2 <= len(found) <= 7
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert max(steps) == pytest.approx(min(steps))


def test_thin_keeps_means_and_drops_what_is_not_finite() -> None:
    points = [(float(x), 3.0 * x) for x in range(1000)]
    thinned = thin(points, most=100)
    assert len(thinned) == 100
    assert all(y == pytest.approx(3 * x) for x, y in thinned)
    assert thin([(1.0, math.nan), (2.0, math.inf), (0.0, 1.0)]) == [(0.0, 1.0)]
    assert thin([]) == []


def test_curve_stays_inside_the_frame_and_escapes_names() -> None:
    svg = line_chart({"<b>": [(x, math.sin(x)) for x in range(50)], "one": [(3, 0.2)]}, "x", "t & t")
    assert "<b>" not in svg.replace("<b>0", "").replace("<b>-0", "") and "&lt;b&gt;" in svg
    assert "t &amp; t" in svg
    for points in re.findall(r'points="([^"]+)"', svg):
        for pair in points.split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT
    assert "<circle" in svg


def test_nothing_to_draw_is_empty() -> None:
    assert line_chart({"a": [(1, math.nan)]}, "x", "t") == ""
    assert line_chart({}, "x", "t") == ""


def test_interval_bar_is_clipped_and_proportional() -> None:
    svg = interval_bar(0.25, 0.2, 0.9, upper=0.5, mark=0.1)
    assert 'width="50.0"' in svg
    assert "M40.0 6H100.0" in svg
    assert "M20.0 0V12" in svg
    assert "interval" not in interval_bar(0.5, None, None).replace("interval-bar", "")


def test_short_numbers() -> None:
    assert [short(n) for n in (0, 0.1234, 12, 1234, 2.5e6, 3e9)] == ["0", "0.123", "12", "1.23k", "2.5M", "3G"]
