"""Line charts on logarithmic axes as inline SVG: small, without fonts of their own, in the page's colours (ours).

A curve is told from another by its marker and its dashes as well as by its colour. Classes carry the colours and the
dashes: ``curve-0`` to ``curve-5`` of the page's style.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 288
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 34, 44
STYLES = 6


@dataclass(frozen=True)
class Curve:
    """A named series of points, x ascending, all positive."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis from `low` to `high`, drawn from pixel `start` to pixel `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


def draw(curves: Sequence[Curve], x: str, y: str, *, title: str, guide: tuple[float, str] | None = None) -> str:
    """Return a chart as an ``<svg>`` element; `title` is for who does not see it, `guide` names a horizontal line."""
    xs = sorted({px for curve in curves for px, _ in curve.points})
    ys = [py for curve in curves for _, py in curve.points] + ([guide[0]] if guide else [])
    across = _Axis(*widened(xs[0], xs[-1], 1.15), LEFT, WIDTH - RIGHT)
    up = _Axis(*widened(min(ys), max(ys), 1.5), HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        *_grid(across, up, xs),
        _label("label", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle", x),
        _label("label", 0, 16, "start", y),
    ]
    if guide:
        height = up.at(guide[0])
        parts.append(f'<line class="guide" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(_label("tick", WIDTH - RIGHT - 4, height - 5, "end", guide[1]))
    for place, curve in enumerate(curves):
        parts += _curve(place, [(across.at(px), up.at(py)) for px, py in curve.points])
    return "\n".join([*parts, "</svg>"])


def swatch(place: int) -> str:
    """Return the legend's sample of the curve with this number."""
    inside = "".join(_curve(place, [(2.0, 7.0), (15.0, 7.0), (28.0, 7.0)], marked=[1]))
    return f'<svg class="swatch" viewBox="0 0 30 14" aria-hidden="true">{inside}</svg>'


def widened(low: float, high: float, margin: float) -> tuple[float, float]:
    """Widen a range, to at least a factor of two."""
    if high < 2 * low:
        low, high = low / math.sqrt(2), high * math.sqrt(2)
    return low / margin, high * margin


def _grid(across: _Axis, up: _Axis, xs: Sequence[float]) -> list[str]:
    """Lines and numbers of both axes: at the measured x, as far as there is room, and at round y."""
    parts, last = [], -math.inf
    bottom = HEIGHT - BOTTOM
    for value in xs:
        place = across.at(value)
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{bottom}"/>')
        text = axis_text(value)
        if place - last > 3.4 * len(text) + 6:
            parts.append(_label("tick", place, bottom + 16, "middle", text))
            last = place + 3.4 * len(text)
    for value in round_values(up.low, up.high):
        height = up.at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(_label("tick", LEFT - 8, height + 4, "end", axis_text(value)))
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    return parts


def round_values(low: float, high: float) -> list[float]:
    """Powers of ten in a range, at most eight of them; with 2 and 5 between them where there are fewer than three."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    step = max(1, math.ceil((last - first + 1) / 8))
    powers = [10.0**e for e in range(first, last + 1, step)]
    if len(powers) >= 3:
        return powers
    values = [m * 10.0**e for e in range(first - 1, last + 1) for m in (1, 2, 5)]
    return [value for value in values if low <= value <= high]


def axis_text(value: float) -> str:
    """Return a number as an axis shows it.

    Examples
    --------
    >>> axis_text(4096.0), axis_text(0.05), axis_text(1e-12)
    ('4,096', '0.05', '1e-12')
    """
    if 1000 <= value < 1e7 and value == int(value) and value != 1e5 and value != 1e6:
        return f"{int(value):,}"
    if 0.01 <= value < 1e5:
        return f"{value:.3g}"
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def _label(css: str, x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _curve(place: int, pixels: Sequence[tuple[float, float]], marked: Sequence[int] | None = None) -> list[str]:
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in pixels)
    chosen = pixels if marked is None else [pixels[i] for i in marked]
    return [
        f'<polyline class="curve curve-{place % STYLES}" points="{path}"/>',
        *(_marker(place % STYLES, px, py) for px, py in chosen),
    ]


def _marker(place: int, px: float, py: float) -> str:
    css = f'class="marker curve-{place}"'
    if place == 0:
        return f'<circle {css} cx="{px:.1f}" cy="{py:.1f}" r="4"/>'
    if place == 1:
        return f'<rect {css} x="{px - 3.5:.1f}" y="{py - 3.5:.1f}" width="7" height="7"/>'
    if place == 2:
        return f'<path {css} d="M{px:.1f} {py - 4.5:.1f}l4.5 8h-9z"/>'
    if place == 3:
        return f'<path {css} d="M{px:.1f} {py - 5:.1f}l5 5l-5 5l-5-5z"/>'
    if place == 4:
        return f'<path {css} d="M{px:.1f} {py + 4.5:.1f}l4.5-8h-9z"/>'
    return f'<path {css} d="M{px - 5:.1f} {py - 1.5:.1f}h10v3h-10z"/>'
