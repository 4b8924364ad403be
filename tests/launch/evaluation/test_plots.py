"""Charts."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from launch.evaluation.plots import HEIGHT, WIDTH, Series, chart


def test_a_chart_is_well_formed_and_stays_inside() -> None:
    """Whatever names hold; what can't be drawn is left out."""
    dots = Series(
        name="<a> & b",
        points=[(0.0, 1.0), (5.0, 1_000.0), (3.0, math.inf), (4.0, 0.0)],
        colour=0,
        titles=["x < y", "", "", ""],
    )
    line = Series(name="line", points=[(1.0, 20.0), (2.0, 30.0)], colour=1, is_line=True)
    root = ElementTree.fromstring(f"<figure>{chart([dots, line], 's', 'ms & more', log_y=True)}</figure>")
    circles = list(root.iter("circle"))
    assert len(circles) == 2
    assert [c.findtext("title") for c in circles] == ["x < y", ""]
    for circle in circles:
        assert 0 <= float(circle.get("cx", "nan")) <= WIDTH and 0 <= float(circle.get("cy", "nan")) <= HEIGHT
    assert float(circles[0].get("cy", "nan")) > float(circles[1].get("cy", "nan"))  # larger is higher
    assert [span.text for span in root.iter("span")] == [None, None]
    assert "".join(root.itertext()).count("line") == 1


def test_nothing_to_draw() -> None:
    """Is no chart."""
    assert chart([Series(name="a", points=[], colour=0)], "x", "y") == ""
