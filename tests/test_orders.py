"""The samplers converge with the orders that docs/samplers.md gives, and its table and plot are of what they do now."""

import itertools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # the suite is no part of the package

from benchmarks import docs, orders, plots


@pytest.fixture(scope="module")
def measured():
    return orders.measure()


@pytest.mark.parametrize("case", orders.CASES)
def test_order_of_convergence(measured, case):
    errors = measured[case]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert orders.order(errors) == pytest.approx(orders.CASES[case].order, abs=0.15)


def test_the_document_s_table_is_what_is_measured(measured):
    text = (docs.ROOT / "docs" / "samplers.md").read_text()
    assert orders.fill(text, measured) == text and all(f"\n| {name} | " in text for name in orders.CASES)


def test_the_plot_has_every_case_and_is_written_twice(measured, tmp_path):
    figure = orders.draw(measured)
    (legend,) = figure.legends
    lines = [text.get_text().split("  ") for text in legend.get_texts()]
    assert lines[0] == ["1.00", "ddim, euler, dpmpp_1"]
    assert sorted(name for _, names in lines for name in names.split(", ")) == sorted(orders.CASES)
    assert {path.suffix for path in plots.write(figure, tmp_path / "orders") if path.stat().st_size > 1000} == {".png", ".svg"}
