"""Every method has a look of its own, the same one in all figures."""

import pytest

from fedgmr_hpc.config.methods import method_names
from fedgmr_hpc.reporting.palette import COLOURS, LINES, PLACES, WRAPPED, Style, styles_of

COMPARED = "fedgmr fedgmr_two_stage fedavg fedasync fedasync_seq fedbuff heterofl fedrolex fjord"
CLAIMS = (
    *COMPARED.split(),
    *("fiarse", "wo_gmr", "wo_ims", "wo_asyn", "fedgmr_timed", "gmr_ga", "gmr_fa"),
    *("heterofl+aux", "heterofl+aux+gmr", "a row of one's own"),
)


def test_a_method_looks_the_same_beside_others():
    alone = styles_of(["heterofl"])["heterofl"]
    assert alone == styles_of(["my_row", "fedgmr", "heterofl"])["heterofl"]
    assert alone == Style("#009E73", "D", ())


def test_fedgmr_is_the_strongest():
    styles = styles_of(CLAIMS)
    assert styles["fedgmr"].colour == "#000000"
    assert [name for name, style in styles.items() if style.width > 1] == ["fedgmr"]


@pytest.mark.parametrize("names", [CLAIMS, PLACES, [f"run {i}" for i in range(60)]])
def test_no_two_methods_look_alike(names):
    styles = styles_of(names)
    assert len(styles) == len(names) == len(set(styles.values()))


def test_known_rows_differ_without_markers_and_in_grey():
    styles = styles_of(PLACES).values()
    assert len({(style.colour, style.line) for style in styles}) == len(PLACES)
    assert len({(style.marker, style.line) for style in styles}) == len(PLACES)


def test_a_wrapped_row_has_the_colour_and_marker_of_its_row():
    for row in ("fedrolex", "my_row"):
        names = [f"{row}+aux+gmr", f"{row}+aux", f"{row}+gmr", row]
        styles = [styles_of(names)[name] for name in names]
        assert len({(style.colour, style.marker) for style in styles}) == 1
        assert len({style.line for style in styles}) == 4
        assert [style.is_hollow for style in styles] == [True, True, True, False]


def test_wrapped_rows_of_one_colour_differ_without_markers():
    rows = [row for row in PLACES if row not in ("fedgmr", "fedgmr_wg")]
    for wrappers in WRAPPED:
        styles = styles_of([f"{row}+{wrappers}" for row in rows]).values()
        assert len({(style.colour, style.line) for style in styles}) == len(rows)


def test_other_names_get_what_is_free_in_order():
    styles = styles_of(["b", "fedavg", "a"])
    wo_gmr, heterofl = styles_of(["wo_gmr", "heterofl"]).values()
    assert (styles["b"], styles["a"]) == (wo_gmr, heterofl)


def test_places_are_rows_of_the_method_table():
    assert len(PLACES) == len(COLOURS) * len(LINES)
    assert not [name for name in PLACES if name not in method_names()]
