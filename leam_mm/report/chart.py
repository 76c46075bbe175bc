"""Charts of the report as inline SVG: an interval on a bar, curves, points with intervals; report.css colours them."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from leam_mm.report.report_number import LARGEST, figures, share
from leam_mm.report.report_words import word

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 26
FEW = 12  # points of a curve that are marked one by one
STEP = 13  # between two points of an interval chart


class Point(NamedTuple):
    """A point of an interval chart.

    Args:
        label: Short name below the axis.
        value: Its value.
        low: Lower end of the interval, or None.
        high: Upper end, or None.
    """

    label: str
    value: float
    low: float | None
    high: float | None


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


def line_chart(series: Mapping[str, Points], x_label: str, title: str, language: str = "en") -> Markup:
    """Return curves in one frame; long ones are averaged into at most 200 points each.

    Fewer than three points are no curve: they are not joined by a line.

    Args:
        series: Name to (x, y) points; points beyond ``LARGEST`` and those that are not finite are ignored.
        x_label: Label of the x axis.
        title: Text for readers who do not see the chart.
        language: Of the page.

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

    parts = _levels([(at(x_low, tick)[1], short(tick, language)) for tick in y_ticks], WIDTH)
    for tick in x_ticks:
        if tick <= x_high:
            anchor = "middle" if x_low < tick < x_high * 0.97 else "end" if tick > x_low else "start"
            place = at(tick, y_low)[0]
            parts.append(_text(place, HEIGHT - 10, short(tick, language), anchor))
    for number, points in enumerate(clean.values()):
        drawn = [at(*point) for point in points]
        if len(points) > 2:
            path = " ".join(f"{x},{y}" for x, y in drawn)
            parts.append(f'<polyline class="curve curve-{number % 4}" points="{path}"/>')
        if len(points) <= FEW:
            parts += [f'<circle class="dot dot-{number % 4}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in drawn]
    legend = "".join(
        f'<li><span class="key key-{number % 4}"></span>{escape(name)} <b>{short(points[-1][1], language)}</b></li>'
        for number, (name, points) in enumerate(clean.items())
    )
    over = word("{} over {}", language).format(title, x_label)
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(over)}">'
        f"{''.join(parts)}</svg>"
        f'<ul class="legend">{legend}<li class="axis">{escape(x_label)} &rarr;</li></ul>'
    )


def interval_chart(points: Sequence[Point], title: str, language: str = "en", mark: float | None = None) -> Markup:
    """Return points with interval bars side by side, shares from 0 upwards; narrow enough for a phone.

    Args:
        points: In their order; those that are not finite are ignored.
        title: Text for readers who do not see the chart; the values of all points are added.
        language: Of the page.
        mark: A level to compare with, or None.
    """
    points = [point for point in points if abs(point.value) < LARGEST]
    if not points:
        return Markup()
    y_ticks = ticks(0.0, max(max(point.value, point.high or 0.0) for point in points) or 1.0)
    top = y_ticks[-1]
    step = max(STEP, min(60, (WIDTH - LEFT - RIGHT) / len(points)))
    width = max(WIDTH, round(LEFT + RIGHT + step * len(points)))

    def height(value: float) -> float:
        return round(HEIGHT - BOTTOM - min(max(value / top, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM), 1)

    digits = 0 if top >= 0.05 else 2
    parts = _levels([(height(tick), share(tick, language, digits)) for tick in y_ticks], width)
    if mark is not None:
        parts.append(f'<path class="mark" d="M{LEFT} {height(mark)}H{width - RIGHT}"/>')
    for number, point in enumerate(points):
        x, y = round(LEFT + (number + 0.5) * step, 1), height(point.value)
        if point.low is not None and point.high is not None:
            a, b = height(point.low), height(point.high)
            parts.append(f'<path class="whisker" d="M{x} {a}V{b}M{x - 2.5} {a}H{x + 2.5}M{x - 2.5} {b}H{x + 2.5}"/>')
        parts.append(f'<circle class="dot dot-0" cx="{x}" cy="{y}" r="2.8"/>')
        below = 10 if len(points) <= FEW else 13 - number % 2 * 10  # neighbours at two heights do not touch
        parts.append(_text(x, HEIGHT - below, point.label, "middle"))
    values = ", ".join(f"{point.label} {share(point.value, language, 1)}" for point in points)
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{escape(f"{title}: {values}")}">'
        f"{''.join(parts)}</svg>"
    )


def _levels(levels: Sequence[tuple[float, str]], width: int) -> list[str]:
    """Return horizontal lines with their labels."""
    return [
        part
        for height, label in levels
        for part in (
            f'<path class="grid" d="M{LEFT} {height}H{width - RIGHT}"/>',
            _text(LEFT - 6, height + 3.5, label, "end"),
        )
    ]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


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


def short(number: float, language: str = "en") -> str:
    """Return a number with three digits: 1.2k, 35, 0.42, 3.1e-05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return figures(f"{number / size:.3g}{letter}", language)
    return figures(f"{number:.3g}", language)
