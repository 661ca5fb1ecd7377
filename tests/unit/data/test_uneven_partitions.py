"""Partitions by classes a client, by size and from a file: literals by hand, laws by hypothesis."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.data.partition import cut_validation, make_partition, skew

SEEDS = st.integers(0, 2**31)


def deal(kind, y, *, num_clients, alpha=0.6, seed=0, speeds=None, **keys):
    return make_partition(
        kind,
        np.array(y, np.int64),
        np.zeros(len(y), np.int32),
        num_clients=num_clients,
        alpha=alpha,
        shards_per_client=2,
        speeds=speeds,
        seed=seed,
        **keys,
    )


def as_lists(parts):
    return [part.tolist() for part in parts]


# pathological


class Permutations:
    """A stream whose permutations are given."""

    def __init__(self, *given):
        self.given = [np.array(each) for each in given]

    def permutation(self, what):
        first, items = self.given.pop(0), np.arange(what) if np.ndim(what) == 0 else what
        assert len(first) == len(items)
        return items[first]


def test_classes_are_dealt_from_one_permutation_after_another():
    # client 1 takes class 0 from the first one; of the second it must not get 0 again
    stream = Permutations([2, 1, 0], [0, 2, 1])
    held = skew._draw_classes(3, 3, 2, stream)
    assert held.tolist() == [[2, 1], [0, 2], [1, 0]]


def test_clients_of_a_class_share_it_in_equal_random_parts(monkeypatch):
    stream = Permutations([0, 1], [1, 0], [1, 0], [0, 1], [7, 6, 5, 4, 3, 2, 1, 0])
    monkeypatch.setattr(skew, "make_rng", lambda *key, **named: stream)
    y = [4, 4, 4, 4, 9, 9, 9, 9]  # client 0 has class 4, 1 class 9, 2 class 9, 3 class 4
    parts = deal("pathological", y, num_clients=4, classes_per_client=1)
    assert as_lists(parts) == [[1, 0], [7, 6], [5, 4], [3, 2]]


@settings(deadline=None, max_examples=60)
@given(
    num_classes=st.integers(1, 8),
    num_clients=st.integers(1, 9),
    classes_per_client=st.integers(1, 8),
    seed=SEEDS,
    extra=st.lists(st.integers(0, 7), max_size=40),
)
def test_every_client_has_its_classes_and_every_sample_one_client(
    num_classes, num_clients, classes_per_client, seed, extra
):
    labels = [*range(num_classes)] * 18 + [label % num_classes for label in extra]
    y = np.random.default_rng(seed).permutation(labels) * 3
    dealt = {"num_clients": num_clients, "classes_per_client": classes_per_client, "seed": seed}
    if not -(-num_classes // num_clients) <= classes_per_client <= num_classes:
        with pytest.raises(ValueError, match=r"^data\.classes_per_client must be between \d+ and"):
            deal("pathological", y, **dealt)
        return
    parts = deal("pathological", y, **dealt)
    assert [len(set(y[part].tolist())) for part in parts] == [classes_per_client] * num_clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(y)))
    shares = np.array([[(y[part] == 3 * c).sum() for c in range(num_classes)] for part in parts])
    for share in shares.T:
        assert np.ptp(share[share > 0]) <= 1
    assert np.ptp((shares > 0).sum(axis=0)) <= 1
    assert all(len(train) for train in cut_validation(parts, frac=0.9, seed=seed)[0])


def test_too_few_classes_a_client_and_too_small_a_class_are_refused():
    with pytest.raises(ValueError) as error:
        deal("pathological", [0, 1, 2, 3, 4] * 4, num_clients=2, classes_per_client=2)
    assert str(error.value) == (
        "data.classes_per_client must be between 3 and 5 when clients.count is 2 and there are "
        "5 classes (got 2): each class needs a client, and no client has a class twice"
    )
    with pytest.raises(ValueError) as error:
        deal("pathological", [0] * 9 + [7], num_clients=4, classes_per_client=1)
    assert str(error.value) == (
        "data.classes_per_client must be lower (or clients.count) when class 7 has 1 sample: "
        "2 clients would share them"
    )
    with pytest.raises(ValueError, match="leaves client . with 1 of 9 samples"):
        deal("pathological", [0, 0, 0, 0, 0, 0, 0, 1, 1], num_clients=4, classes_per_client=1)


# quantity


def test_sizes_follow_one_draw_and_samples_come_in_a_random_order(monkeypatch):
    class Fixed:
        def __init__(self, step):
            self.step = step

        def dirichlet(self, alpha):
            assert self.step == 0 and alpha.tolist() == [0.6, 0.6]
            return np.array([0.7, 0.3])  # of 5: a cut at floor 3.5 = 3

        def permutation(self, num):
            assert self.step == skew.ORDER_STEP and num == 5
            return np.array([4, 0, 3, 1, 2])

    monkeypatch.setattr(skew, "make_rng", lambda *key, step=0: Fixed(step))
    y = [0, 0, 0, 0, 1]
    assert as_lists(deal("quantity", y, num_clients=2)) == [[4, 0, 3], [1, 2]]
    fast, slow = [1, 2], [4, 0, 3]
    assert as_lists(deal("quantity", y, num_clients=2, speeds=[1.0, 1.0])) == [fast, slow]
    assert as_lists(deal("quantity", y, num_clients=2, speeds=[0.1, 0.5])) == [slow, fast]


def test_the_fastest_client_has_the_smallest_part_wherever_it_stands():
    words = ["data.sort_by_size=true", "clients.count=3", "clients.shares=[0.1, 1.0, 0.5]"]
    data = FederatedData(load_config("digits", words))
    assert sorted(range(3), key=lambda c: len(data.train_parts[c])) == [1, 2, 0]


def test_a_smaller_alpha_makes_sizes_more_uneven():
    y = np.zeros(10_000)
    even, uneven = (
        np.std([len(part) for part in deal("quantity", y, num_clients=10, alpha=alpha)])
        for alpha in (100, 0.3)
    )
    assert even < 200 < 700 < uneven


def test_sizes_that_cannot_be_drawn_are_refused_with_the_keys():
    with pytest.raises(ValueError, match=r"data\.partition=quantity, data\.alpha=0\.001 \(100 dr"):
        deal("quantity", [0] * 8, num_clients=4, alpha=1e-3)


# file


@pytest.fixture
def listed(tmp_path):
    def deal_from(text, num_clients=2, num_samples=6):
        path = tmp_path / "who.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        y = np.zeros(num_samples)
        return deal("file", y, num_clients=num_clients, file=str(path))

    return deal_from


def test_a_file_says_who_has_what_in_any_order(listed):
    text = "\ufeffclient, sample\n1,5\n0,3\n\n1,0\n0,1\n"
    assert as_lists(listed(text)) == [[1, 3], [0, 5]]
    assert as_lists(listed('client,sample\r\n"0",1\r\n0,3\r\n1,0\r\n1,5\r\n')) == [[1, 3], [0, 5]]


GOOD = "client,sample\n0,1\n0,2\n"


@pytest.mark.parametrize(
    "text, said",
    [
        ("", ": {path} line 1: the header must be client,sample (got '')"),
        ("0,1\n", ": {path} line 1: the header must be client,sample (got '0,1')"),
        (GOOD + "1\n", ": {path} line 4: a row must have 2 fields (got 1)"),
        (GOOD + "1,2,3\n", ": {path} line 4: a row must have 2 fields (got 3)"),
        (GOOD + "2,3\n", ": {path} line 4: client must be between 0 and 1 (got '2')"),
        (GOOD + "-1,3\n", ": {path} line 4: client must be between 0 and 1 (got '-1')"),
        (GOOD + "1,6\n", ": {path} line 4: sample must be between 0 and 5 (got '6')"),
        (GOOD + "1,3.0\n", ": {path} line 4: sample must be between 0 and 5 (got '3.0')"),
        (GOOD + "1,\n", ": {path} line 4: sample must be between 0 and 5 (got '')"),
        (GOOD + "1,٣\n", ": {path} line 4: sample must be between 0 and 5 (got '٣')"),
        (GOOD + "1," + "9" * 30, ": {path} line 4: sample must be between 0 and 5 (got '999"),
        (GOOD + "1,2\n", ": {path} line 4: sample 2 must be named once (got line 3 names it, too)"),
        (GOOD + '1,"3', ": {path} line 4: unexpected end of data"),
        (GOOD + "1,3\n", ": {path} must name 2 or more samples of client 1 (got 1): clients.count"),
        (b"client,sample\n0,\xff", " must be a readable CSV file (got '{path}'): 'utf-8' codec"),
    ],
)
def test_every_mistake_of_a_file_is_one_line(tmp_path, listed, text, said):
    with pytest.raises(ValueError) as error:
        listed(text)
    message = str(error.value)
    assert message.startswith("data.partition_file" + said.format(path=tmp_path / "who.csv"))
    assert "\n" not in message


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^data\.partition_file must be a readable .*No such fil"):
        deal("file", [0] * 6, num_clients=2, file=str(tmp_path / "nowhere.csv"))


@settings(deadline=None, max_examples=50)
@given(data=st.data(), num_clients=st.integers(1, 5))
def test_what_is_written_is_read_whatever_the_order_of_lines(tmp_path_factory, data, num_clients):
    owners = data.draw(st.lists(st.integers(-1, num_clients - 1), min_size=2, max_size=40))
    pairs = [(owner, sample) for sample, owner in enumerate(owners) if owner >= 0]
    lines = [f"{client},{sample}" for client, sample in data.draw(st.permutations(pairs))]
    path = tmp_path_factory.mktemp("listed") / "who.csv"
    path.write_text("\n".join(["client,sample", *lines]))
    expected = [[s for s, o in enumerate(owners) if o == c] for c in range(num_clients)]
    poor = min(map(len, expected)) < 2 or len(owners) < 2 * num_clients
    if poor:
        with pytest.raises(ValueError, match=r"samples of client|clients\.count must be"):
            deal("file", owners, num_clients=num_clients, file=str(path))
    else:
        assert as_lists(deal("file", owners, num_clients=num_clients, file=str(path))) == expected


def test_the_keys_of_a_file_belong_together():
    for words, said in (
        (["data.partition=file"], "data.partition_file must be a CSV file when"),
        (["data.partition_file=a.csv"], "data.partition_file must be null when data.partition is"),
        (
            ["data.partition=file", "data.partition_file=a.csv", "data.max_train=9"],
            "data.max_train must be null when data.partition is 'file' (got 9): the file counts",
        ),
    ):
        with pytest.raises(ValueError) as error:
            load_config("digits", words)
        assert said in str(error.value)


def test_another_file_is_another_fingerprint(tmp_path):
    def fingerprint(*clients):
        path = tmp_path / "who.csv"
        lines = [f"{client},{sample}" for sample, client in enumerate(clients)]
        path.write_text("\n".join(["client,sample", *lines]))
        words = ["data.partition=file", f"data.partition_file={path}", "clients.count=2"]
        return FederatedData(load_config("digits", words)).fingerprint

    assert fingerprint(0, 0, 1, 1) == fingerprint(0, 0, 1, 1) != fingerprint(0, 1, 0, 1)


def test_a_file_that_was_edited_is_refused_where_a_run_goes_on(tmp_path):
    path = tmp_path / "who.csv"
    path.write_text("client,sample\n0,0\n0,1\n1,2\n1,3\n")
    words = ["data.partition=file", f"data.partition_file={path}", "clients.count=2"]
    config = load_config("digits", words)
    path.write_text("client,sample\n0,0\n0,2\n1,1\n1,3\n")
    with pytest.raises(ValueError) as error:
        FederatedData(config)
    assert str(error.value) == (
        f"data.partition_file must be a file of xxh3 {config.data.partition_xxh3} "
        f"(got '{path}'): data.partition_xxh3 is what the run began with; "
        "data.partition_xxh3=null begins another run"
    )
    assert [len(part) for part in FederatedData(load_config("digits", words)).train_parts] == [1, 1]


@pytest.mark.parametrize("kind", ["pathological", "quantity"])
def test_the_seed_decides_and_nothing_else(kind):
    y = np.arange(100) % 10
    first, again = (deal(kind, y, num_clients=5, seed=1) for _ in range(2))
    assert as_lists(first) == as_lists(again) != as_lists(deal(kind, y, num_clients=5, seed=2))
