"""Figures that are read: legends that never clip, sizes for their use, files of every format."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from fedgmr_hpc.reporting.figures import (
    SIZES,
    file_name,
    key,
    legend_below,
    new_panels,
    save,
    style_of,
)

LONG = "fedgmr_two_stage[restoration.step=factor], bandwidth 330000, patience 5, trained on "


def draw(size: str, names: list[str]) -> Figure:
    with style_of(size):
        figure, ((axes,),) = new_panels(1)
        axes.plot([1, 2], [3, 4])
        legend_below(figure, [key("black", name) for name in names], "of 3 seeds")
    FigureCanvasAgg(figure).draw()
    return figure


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("names", [["fedavg"], [f"{LONG}{i}" for i in range(20)]])
def test_a_legend_lies_inside_the_figure_and_leaves_room(size: str, names: list[str]) -> None:
    figure = draw(size, names)
    legend = figure.legends[0].get_window_extent()
    panel = figure.axes[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.width and legend.y0 >= 0
    assert legend.y1 <= panel.y0 and panel.height > 0.3 * figure.bbox.height
    assert len(figure.legends[0].get_texts()) == len(names)


def test_a_legend_is_read_from_left_to_right() -> None:
    texts = draw("page", ["first", "second", "third", *"defgh"]).legends[0].get_texts()
    places = {text.get_text(): text.get_window_extent() for text in texts}
    assert places["first"].x0 < places["second"].x0 < places["third"].x0
    assert places["first"].y1 == pytest.approx(places["third"].y1, abs=3)


@pytest.mark.parametrize(("size", "across"), [("page", 3), ("slide", 3), ("column", 2)])
def test_figures_have_the_width_and_type_of_their_use(size: str, across: int) -> None:
    with style_of(size):
        figure, rows = new_panels(4)
    width, height = SIZES[size].inches
    assert figure.get_figwidth() == width
    assert figure.axes[0].xaxis.get_label().get_size() == SIZES[size].points
    assert [len(row) for row in rows] == [across, 4 - across]
    assert (figure.get_figheight() == height) == (size == "slide")


def test_files_have_the_format_of_their_suffix(tmp_path: Path) -> None:
    names = [f"{file_name('a', 'page')}.{form}" for form in ("png", "pdf", "svg")]
    assert names == ["a.png", "a.pdf", "a.svg"] and file_name("a", "slide") == "a-slide"
    paths = [tmp_path / "new" / name for name in names]
    assert save(draw("page", ["fedavg"]), *paths) == paths[0]
    assert imread(paths[0]).shape[1] == 7.2 * 200
    assert paths[1].read_bytes().startswith(b"%PDF")
    assert ">fedavg</text>" in paths[2].read_text()
