"""Charts of the report as inline SVG: an interval on a bar, curves over samples seen. Colours come from report.css."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from leam_mm.report.report_number import LARGEST

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 26


def interval_bar(
    value: float, low: float | None, high: float | None, upper: float = 1.0, mark: float | None = None
) -> Markup:
    """Return a thin bar from 0 to `value`, its interval as a line over it, and a tick at `mark`, for example chance.

    Args:
        value: The measured value, in the unit of `upper`.
        low: Lower end of the interval, or None.
        high: Upper end, or None.
        upper: Value of a full bar.
        mark: A reference to compare with, or None.
    """

    def percent(number: float) -> float:
        return round(100 * min(max(number / upper, 0.0), 1.0), 2) if upper > 0 else 0.0

    parts = [f'<rect class="bar" x="0" y="3" width="{percent(value)}" height="6" rx="1"/>']
    if low is not None and high is not None:
        a, b = percent(low), percent(high)
        parts.append(f'<path class="interval" d="M{a} 6H{b}M{a} 3.5V8.5M{b} 3.5V8.5"/>')
    if mark is not None:
        parts.append(f'<path class="mark" d="M{percent(mark)} 0V12"/>')
    return Markup(
        '<svg class="interval-bar" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" x="0" y="3" width="100" height="6" rx="1"/>{"".join(parts)}</svg>'
    )


def line_chart(series: Mapping[str, Points], x_label: str, title: str) -> Markup:
    """Return curves in one frame; long ones are averaged into at most 200 points each.

    Args:
        series: Name to (x, y) points; points beyond ``LARGEST`` and those that are not finite are ignored.
        x_label: Label of the x axis.
        title: Text for readers who do not see the chart.

    Returns:
        SVG and its legend, or an empty string without any finite point.
    """
    clean = {name: thin(points) for name, points in series.items()}
    clean = {name: points for name, points in clean.items() if points}
    if not clean:
        return Markup()
    x_all = [x for points in clean.values() for x, _ in points]
    y_all = [y for points in clean.values() for _, y in points]
    x_ticks, y_ticks = ticks(min(0.0, *x_all), max(x_all)), ticks(min(y_all), max(y_all))
    x_low, x_high = min(0.0, *x_all), max(max(x_all), 1e-9)
    y_low, y_high = min(y_ticks[0], *y_all), max(y_ticks[-1], *y_all)

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    parts = []
    for tick in y_ticks:
        height = at(x_low, tick)[1]
        parts.append(f'<path class="grid" d="M{LEFT} {height}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{height + 3.5}" text-anchor="end">{short(tick)}</text>')
    for tick in x_ticks:
        if tick <= x_high:
            anchor = "middle" if x_low < tick < x_high * 0.97 else "end" if tick > x_low else "start"
            parts.append(
                f'<text x="{at(tick, y_low)[0]}" y="{HEIGHT - 10}" text-anchor="{anchor}">{short(tick)}</text>'
            )
    for number, points in enumerate(clean.values()):
        path = " ".join(f"{x},{y}" for x, y in (at(*point) for point in points))
        parts.append(f'<polyline class="curve curve-{number % 4}" points="{path}"/>')
        if len(points) == 1:
            x, y = at(*points[0])
            parts.append(f'<circle class="dot dot-{number % 4}" cx="{x}" cy="{y}" r="2.5"/>')
    legend = "".join(
        f'<li><span class="key key-{number % 4}"></span>{escape(name)} <b>{short(points[-1][1])}</b></li>'
        for number, (name, points) in enumerate(clean.items())
    )
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)} over {escape(x_label)}">'
        f'{"".join(parts)}</svg><ul class="legend">{legend}<li class="axis">{escape(x_label)} &rarr;</li></ul>'
    )


def thin(points: Points, most: int = 200) -> list[tuple[float, float]]:
    """Return the finite points ordered by x, neighbours averaged until at most `most` are left."""
    clean = sorted((x, y) for x, y in points if abs(x) < LARGEST and abs(y) < LARGEST)
    size = math.ceil(len(clean) / most) if clean else 1
    groups = [clean[start : start + size] for start in range(0, len(clean), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return about `about` round numbers that cover low to high."""
    if not high > low:
        low, high = low - abs(low) * 0.5 - 1e-9, high + abs(high) * 0.5 + 1e-9
    power = 10 ** math.floor(math.log10((high - low) / about))
    step = next((power * m for m in (1, 2, 2.5, 5) if (high - low) / (power * m) <= about), power * 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def short(number: float) -> str:
    """Return a number with three digits: 1.2k, 35, 0.42, 3.1e-05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
