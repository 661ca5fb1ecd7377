"""The table and the picture of a partition: literals by hand, and the verb on the digits."""

import numpy as np
import pytest

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.experiments.partition import (
    Holdings,
    describe_holdings,
    mean_distance,
    plot_holdings,
    random_distance,
)


def hold(counts, *, shares=None, is_text=False):
    counts = np.array(counts)
    num_clients = len(counts)
    return Holdings(
        name="named",
        is_text=is_text,
        shares=np.ones(num_clients) if shares is None else np.array(shares),
        num_train=counts.sum(axis=1) // (10 if is_text else 1),
        num_validation=np.ones(num_clients, np.int64),
        groups=np.full(num_clients, 3),
        counts=counts,
    )


def cells(line):
    return line.split()


def test_distance_is_half_the_sum_of_differences_averaged_over_clients():
    assert mean_distance(np.array([[4, 0], [0, 4]])) == 0.5
    assert mean_distance(np.array([[3, 1], [1, 3]])) == 0.25
    assert mean_distance(np.array([[2, 2], [50, 50]])) == 0
    # all hold (1/4, 3/4): the clients differ by 1/4 and 3/4 - 2/3
    assert mean_distance(np.array([[1, 1], [1, 5]])) == pytest.approx((1 / 4 + 1 / 12) / 2)


def test_random_distance_keeps_sizes_and_classes_and_forgets_who_held_what():
    apart = np.array([[500, 0], [0, 500]])
    assert mean_distance(apart) == 0.5
    assert random_distance(apart) < 0.05
    assert random_distance(np.array([[7, 0], [9, 0]])) == 0


def test_table_has_a_row_a_client_and_totals():
    lines = describe_holdings(hold([[4, 0, 1], [0, 1000, 2]], shares=[1, 0.05])).splitlines()
    assert lines[0] == "named"
    assert cells(lines[2]) == "client share train validation classes class 0 1 2".split()
    assert cells(lines[4]) == ["0", "1", "5", "1", "2", "4", "0", "1"]
    assert cells(lines[5]) == ["1", "0.05", "1,002", "1", "2", "0", "1,000", "2"]
    assert cells(lines[7]) == ["total", "1,007", "2", "3", "4", "1,000", "3"]
    assert "training samples a client: 5 / 504 / 1,002 (min / median / max)" in lines


def test_many_clients_and_classes_are_grouped():
    counts = np.zeros((100, 40), np.int64)
    counts[:, 0], counts[:4, 39] = 2, 10
    lines = describe_holdings(hold(counts, shares=[1] * 2 + [0.5] * 98)).splitlines()
    assert cells(lines[2])[-10:] == [f"{4 * n}-{4 * n + 3}" for n in range(10)]
    assert len(lines) - 2 - lines.index("rows are means over the clients they name") == 1
    rows = [cells(line) for line in lines[4:29]]
    assert rows[0] == ["0-3", "0.5-1", "12.0", "1.0", "2.0", "2.0", *["0.0"] * 8, "10.0"]
    assert rows[24] == ["96-99", "0.5", "2.0", "1.0", "1.0", "2.0", *["0.0"] * 9]


def test_sentences_are_counted_by_words_and_users():
    text = describe_holdings(hold([[100], [300]], is_text=True))
    lines = text.splitlines()
    assert cells(lines[4]) == ["0", "1", "3", "10", "1", "100", "10.0"]
    assert cells(lines[7]) == ["total", "40", "2", "400", "10.0"]
    assert "class" not in text
    assert lines[-1] == "skew: the clients' target words deviate by 50%"


def test_picture_names_its_axes_and_writes_small_numbers():
    heat, size, share, bar = plot_holdings(hold([[4, 0], [0, 1000]])).axes
    assert (heat.get_xlabel(), heat.get_ylabel()) == ("class", "client")
    assert bar.get_ylabel() == "training samples of a class (count; white: none)"
    assert "(count)" in size.get_xlabel() and "(fraction)" in share.get_xlabel()
    assert sorted(text.get_text() for text in heat.texts) == ["1000", "4"]
    assert heat.images[0].get_array().mask.tolist() == [[False, True], [True, False]]


def test_picture_of_many_clients_shows_means_of_neighbours():
    counts = np.arange(1, 1002)[:, None] * np.ones((1, 20), np.int64)
    heat, *_, bar = plot_holdings(hold(counts)).axes
    shown = heat.images[0].get_array()
    assert shown.shape == (334, 20)  # 1001 clients, three a row
    assert (shown[0, 0], shown[333, 0]) == (2, 1000.5)
    assert "mean over 3 clients" in bar.get_ylabel()
    assert not heat.texts


def test_picture_of_sentences_has_four_panels():
    panels = plot_holdings(hold([[100], [300]], is_text=True)).axes
    assert [axes.get_xlabel().split("\n")[0] for axes in panels] == [
        "training",
        "scored target",
        "users (count)",
        "bandwidth",
    ]


def test_the_verb_prints_the_table_and_writes_the_picture(tmp_path, capsys):
    words = ["partition", "digits", "clients.count=4", "data.partition=shards"]
    code = main([*words, f"data.cache={tmp_path / 'c'}", "--out", str(tmp_path / "o")])
    out = capsys.readouterr().out
    assert code == 0
    assert out.startswith("digits, shards(2 a client), 4 clients, seed 0\n")
    stem = tmp_path / "o" / "partition-digits-shards-c4-s0"
    picture, page = stem.with_suffix(".png"), stem.with_suffix(".html")
    assert set((tmp_path / "o").iterdir()) == {picture, page, stem.with_suffix(".md")}
    assert "<td>total</td>" in page.read_text()
    assert picture.read_bytes()[:4] == b"\x89PNG" and str(picture) in out
