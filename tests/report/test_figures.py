"""Who reads a figure off its axes finds the numbers that the rows hold."""

import base64
import csv
import io
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from refattn.report.figures import PLANS, figures
from refattn.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, axis_text, draw

PRODUCT = {
    "id": "conv.product-time",
    "detail": {
        "seconds by FFT at n = 4096": 0.5,
        "seconds by FFT at n = 256": 0.002,
        "seconds by FFT at n = 512": math.nan,
        "seconds by FFT at n = 1024": 0.0,
        "seconds by FFT at n = 2048": "0.3",
        "seconds by FFT at n = 8192": math.inf,
        "seconds by FFT at n = about 100": 1.0,
        "exponent": 1.05,
        "seconds directly at n": {"": 3.0},
    },
}
SHAPES = ("circle", "rect", "path")


def position(shape):
    """Where the marker stands."""
    number = {name: float(value) for name, value in shape.attrib.items() if re.fullmatch(r"[\d.]+", value)}
    if shape.tag.endswith("circle"):
        return number["cx"], number["cy"]
    if shape.tag.endswith("rect"):
        return number["x"] + number["width"] / 2, number["y"] + number["height"] / 2
    x, y, path = re.match(r"M([\d.]+) ([\d.]+)(.+)", shape.attrib["d"]).groups()
    across, down = {"l4.5 8h-9z": (0, 4.5), "l4.5-8h-9z": (0, -4.5), "h10v3h-10z": (5, 1.5)}.get(path, (0, 5))
    return float(x) + across, float(y) + down


def value_of(text):
    return float(text.replace(",", ""))


class Chart:
    """A drawn chart, and what its axes say of a place on it."""

    def __init__(self, svg):
        self.elements = list(ElementTree.fromstring(svg).iter())
        ticks = [x for x in self.elements if x.get("class") == "tick"]
        self.across = [(float(x.get("x")), value_of(x.text)) for x in ticks if x.get("text-anchor") == "middle"]
        grid = sorted(
            {float(x.get("y1")) for x in self.elements if x.get("class") == "grid" and x.get("y1") == x.get("y2")}
        )
        beside = [x for x in ticks if x.get("text-anchor") == "end" and float(x.get("x")) < LEFT]
        self.up = [(min(grid, key=lambda y: abs(y + 4 - float(t.get("y")))), value_of(t.text)) for t in beside]

    def read(self, x, y):
        """Return the numbers at a place, between those of the axes."""
        return tuple(
            math.exp(np.polyval(np.polyfit(*np.array([(p, math.log(v)) for p, v in axis]).T, 1), place))
            for axis, place in ((self.across, x), (self.up, y))
        )

    def curve(self, number):
        """Return the numbers at the corners of a curve, and at its markers."""
        own = [x for x in self.elements if f"curve-{number}" in x.get("class", "")]
        (line,) = (x for x in own if x.tag.endswith("polyline"))
        corners = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        return [self.read(*c) for c in corners], [self.read(*position(x)) for x in own if x is not line]


CURVES = [
    Curve("a", ((10.0, 1e-3), (100.0, 0.2), (1000.0, 50.0))),
    Curve("b", ((10.0, 2e-3), (1000.0, 3.0))),
    Curve("c", ((100.0, 7.0),)),
    Curve("d", ((10.0, 0.5), (100.0, 0.6))),
    Curve("e", ((10.0, 20.0), (1000.0, 0.1))),
    Curve("f", ((100.0, 1.0), (1000.0, 4.0))),
]


@pytest.mark.parametrize("number", range(len(CURVES)))
def test_the_numbers_read_off_a_chart_are_those_drawn(number):
    corners, markers = Chart(draw(CURVES, "n", "seconds", title="time")).curve(number)
    for found in (corners, markers):
        np.testing.assert_allclose(found, CURVES[number].points, rtol=0.02)


@pytest.mark.parametrize("size", [1e-12, 0.3, 1e6], ids=str)
@pytest.mark.parametrize("spread", [1.0, 1.5, 30.0, 1e9], ids=str)
def test_axes_hold_numbers_of_any_size_and_spread(size, spread):
    curve = Curve("a", ((4.0, size), (64.0, size * spread)))
    chart = Chart(draw([curve], "n", "error", title="error"))
    np.testing.assert_allclose(chart.curve(0)[1], curve.points, rtol=0.1 if spread > 1e6 else 0.03)
    assert 2 <= len(chart.up) <= 10
    for x, y in (position(x) for x in chart.elements if "marker" in x.get("class", "")):
        assert LEFT < x < WIDTH - RIGHT
        assert TOP < y < HEIGHT - BOTTOM


def test_a_guide_stands_at_its_height_and_is_named():
    chart = Chart(draw(CURVES, "n", "error", title="error", guide=(1e4, "asked for")))
    (line,) = (x for x in chart.elements if x.get("class") == "guide")
    assert line.get("y1") == line.get("y2")
    assert chart.read(LEFT, float(line.get("y1")))[1] == pytest.approx(1e4, rel=0.03)
    (name,) = (x for x in chart.elements if x.text == "asked for")
    assert 0 < float(line.get("y1")) - float(name.get("y")) < 12


def test_the_axis_of_x_is_drawn_below_the_numbers():
    (line,) = (x for x in Chart(draw(CURVES, "n", "y", title="time")).elements if x.get("class") == "axis")
    assert [float(line.get(x)) for x in ("x1", "x2", "y1", "y2")] == [
        LEFT,
        WIDTH - RIGHT,
        HEIGHT - BOTTOM,
        HEIGHT - BOTTOM,
    ]


def test_axes_and_chart_say_what_they_are_and_markup_is_text():
    texts = [x.text for x in Chart(draw(CURVES, "n < 5", "σ & τ", title='"x"')).elements if x.get("class") == "label"]
    assert texts == ["n < 5", "σ & τ"]
    assert ElementTree.fromstring(draw(CURVES, "n", "y", title='"x"')).get("aria-label") == '"x"'


@pytest.mark.parametrize(
    ("value", "text"),
    [(4096, "4,096"), (1000, "1,000"), (999, "999"), (1e5, "1e5"), (1e6, "1e6"), (2e6, "2,000,000"), (1e7, "1e7"),
     (0.01, "0.01"), (0.009, "9e-3"), (0.05, "0.05"), (1e-12, "1e-12"), (1.25e-9, "1.25e-9")],
)  # fmt: skip
def test_numbers_on_an_axis(value, text):
    assert axis_text(value) == text


def test_points_come_from_the_names_of_details_in_order_of_x_and_others_are_left_out():
    (figure,) = figures([PRODUCT])
    assert (figure.id, figure.x, figure.y, figure.rows) == ("product-time", "n", "seconds", ("conv.product-time",))
    assert [(c.name, c.points) for c in figure.curves] == [("by FFT", ((256.0, 0.002), (4096.0, 0.5)))]
    np.testing.assert_allclose(Chart(figure.svg).curve(0)[1], figure.curves[0].points, rtol=0.02)


def test_a_single_point_is_no_curve_and_no_curve_is_no_figure():
    assert figures([{"id": "conv.product-time", "detail": {"seconds by FFT at n = 4096": 0.5}}]) == []
    assert figures([]) == []


def test_details_of_details_count_and_the_table_has_every_x():
    fast = {"deviation 1": 0, "float64: error of one long FFT at deviation 1": 1e-16, "float64": {}}
    nested = {
        "float64": {"error of one long FFT at deviation 4": 1e-9, "error of the guarded path at deviation 4": 2e-16}
    }
    more = {"float64: error of the guarded path at deviation 16": 3e-16}
    (figure,) = figures([{"id": "fast.numerical-domain", "detail": fast | nested | more}])
    assert figure.table == [(1.0, [1e-16, None]), (4.0, [1e-9, 2e-16]), (16.0, [None, 3e-16])]
    text = base64.b64decode(figure.data_uri.partition("base64,")[2]).decode()
    head, *lines = csv.reader(io.StringIO(text))
    assert head == ["deviation of the logits σ", "one long FFT, float64", "guarded, float64"]
    assert lines == [["1.0", "1e-16", ""], ["4.0", "1e-09", "2e-16"], ["16.0", "", "3e-16"]]


def test_every_source_of_a_figure_is_a_row_of_the_ledger():
    from refattn.report.claims import ALL

    assert {source.row for plan in PLANS for source in plan.sources} <= {claim.id for claim in ALL}
