"""The page builder, and the figures on its pages."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from fedgmr_hpc.reporting.figures import (
    key,
    label,
    legend_below,
    new_figure,
    save,
    styled,
)
from fedgmr_hpc.reporting.pages import Page, Picture, write_page
from fedgmr_hpc.reporting.palette import COLOURS
from fedgmr_hpc.reporting.tables import Table

TABLE = Table("rates", "Rates <1>", ["ranks"], [["2"]], notes=["a & b"], command="make it")


@styled
def draw() -> object:
    figure, (axes,) = new_figure(1)
    axes.plot([1, 2], [3, 4], label="measured")
    label(axes, "ranks", "rate (1/s)", "Rate")
    legend_below(figure, [key(COLOURS[1], "measured")])
    return figure


def test_a_page_is_one_file_with_its_pictures_and_markdown_links_to_them(tmp_path: Path) -> None:
    paths = [tmp_path / "figures" / name for name in ("rate.png", "rate.pdf")]
    picture = Picture("A figure", save(draw(), *paths), "Solid.")
    page = Page("T <title>", ["lead & more"], ["take care"], [TABLE, picture])
    html = write_page(page, tmp_path, "report").read_text()
    assert "<h1>T &lt;title&gt;</h1>" in html and "<p>lead &amp; more</p>" in html
    assert "<p class=warn>take care</p>" in html and "<h2>Rates &lt;1&gt;</h2>" in html
    assert 'src="data:image/png;base64,iVBOR' in html and "<figcaption>Solid." in html
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# T <title>\n\nlead & more\n\ntake care\n")
    assert "![A figure](figures/rate.png)\n\nSolid.\n" in text
    assert (tmp_path / "figures" / "rate.pdf").read_bytes().startswith(b"%PDF")


def test_figures_have_one_style_and_leave_that_of_others_alone() -> None:
    before = dict(matplotlib.rcParams)
    figure = draw()
    assert dict(matplotlib.rcParams) == before
    axes = figure.axes[0]
    assert not axes.spines["top"].get_visible() and axes.xaxis.get_gridlines()[0].get_visible()
    assert axes.lines[0].get_color() == COLOURS[0]
