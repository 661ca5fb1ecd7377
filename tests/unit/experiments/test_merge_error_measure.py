"""The error of masked uploads by hand, and the probe's own training on the digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.sections import RUNGS
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.experiments.merge_error_measure import (
    UploadMeasurement,
    Uploads,
    bound_term,
    merge_equal,
    raise_rungs,
    relative_error,
    slowest,
)
from fedgmr_hpc.fl.submodels import MaskSet
from fedgmr_hpc.models import initial_weights


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def masks(mask_id: int, perm: list[int]) -> MaskSet:
    return MaskSet(mask_id, (0.5, 1.0), (2, 4), np.array(perm, np.int32), 4)


def constant(value: float) -> np.ndarray:
    return np.full(4, value, np.float32)


# W_0 is 1, the clients' uploads are 3 and 5: W_full is 4, and |W_full - W_0| is sqrt(4 * 9) = 6
UPLOADS = Uploads(
    base=constant(1),
    values=(constant(3), constant(5)),
    new=masks(2, [0, 1, 2, 3]),
    old=masks(1, [2, 3, 0, 1]),
)


@pytest.mark.parametrize(
    ("rule", "merged"), [("mask_aware", 3.0), ("gradient", 2.0), ("average", 1.5)]
)
def test_error_is_what_the_second_clients_mask_changes(rule, merged):
    # the second client lacks the last two entries, where the full merge is 4
    entries = UPLOADS.masked((1.0, 0.5))
    assert merge_equal(UPLOADS.base, entries, rule).tolist() == [4, 4, merged, merged]
    assert relative_error(UPLOADS, entries, rule) == pytest.approx(np.sqrt(2) * (4 - merged) / 6)


def test_full_densities_have_no_error():
    assert relative_error(UPLOADS, UPLOADS.masked((1.0, 1.0)), "mask_aware") == 0


def test_bound_is_the_mean_of_the_squares_cut_away():
    # the second client changed two entries by 4 that its mask cuts away: (0 + 2 * 16) / 2 / 36
    assert bound_term(UPLOADS, (1.0, 0.5)) == pytest.approx(16 / 36)
    assert bound_term(UPLOADS, (1.0, 1.0)) == 0


def test_client_in_flight_brings_the_entries_of_its_old_mask():
    mixed = UPLOADS.mixed((1.0, 0.5), (1.0, 0.5), frozenset({1}))
    assert merge_equal(UPLOADS.base, mixed, "mask_aware").tolist() == [3, 3, 4, 4]
    raised = UPLOADS.mixed((1.0, 1.0), (0.5, 0.5), frozenset({1}))
    assert merge_equal(UPLOADS.base, raised, "mask_aware").tolist() == [3, 3, 4, 4]
    nobody = UPLOADS.mixed((1.0, 1.0), (0.5, 0.5), frozenset())
    assert merge_equal(UPLOADS.base, nobody, "mask_aware").tolist() == [4, 4, 4, 4]


def test_uploads_that_change_nothing_are_refused():
    still = Uploads(constant(1), (constant(1),), UPLOADS.new, UPLOADS.old)
    with pytest.raises(ValueError, match="train.learning_rate"):
        relative_error(still, still.masked((0.5,)), "mask_aware")


def test_rungs_end_at_the_top_of_the_ladder():
    assert raise_rungs((1.0, 0.5, 0.05), RUNGS, 1) == (1.0, 1.0, 0.1)
    assert raise_rungs((1.0, 0.5, 0.05), RUNGS, 3) == (1.0, 1.0, 0.5)


def test_slowest_clients_are_those_of_small_shares_the_last_first():
    assert slowest((1.0, 0.1, 0.5, 0.1), 0.5) == {1, 3}
    assert slowest((1.0, 0.1, 0.5, 0.1), 0.25) == {3}


def small(*words: str):
    return load_config(
        "digits", ["clients.count=2", "run.interval_rounds=1", "train.steps=2", *words]
    )


def test_uploads_of_a_prober_do_not_depend_on_what_it_did_before():
    config = small("clients.shares=[1, 0.5]")
    prober = UploadMeasurement(config, FederatedData(config))
    first = initial_weights("digits_cnn", 0)
    of_first = prober.uploads(first, 0, (1.0, 0.5), (0.1, 1.0))
    prober.uploads(initial_weights("digits_cnn", 1), 5, (1.0, 0.5), (0.1, 1.0))
    again = prober.uploads(first, 0, (1.0, 0.5), (0.1, 1.0))
    assert again.base.tobytes() == of_first.base.tobytes()
    assert [v.tobytes() for v in again.values] == [v.tobytes() for v in of_first.values]


def test_uploads_move_everywhere_and_the_rounds_before_only_inside_the_old_masks():
    config = small("clients.shares=[0.1, 0.1]")
    first = initial_weights("digits_cnn", 0)
    uploads = UploadMeasurement(config, FederatedData(config)).uploads(
        first, 0, (0.1, 0.1), (0.1, 1.0)
    )
    natural = uploads.new.unpack(uploads.base)
    moved = np.flatnonzero(natural != first[: len(natural)])
    kept = uploads.old.perm[: uploads.old.counts[0]]
    assert len(moved) > 0.1 * len(kept) and set(moved) <= set(kept)
    outside = np.ones(len(natural), bool)
    outside[kept] = False
    upload = uploads.new.unpack(uploads.values[0])
    assert np.count_nonzero((upload != natural)[outside]) > 0.1 * outside.sum()


def test_a_score_of_squared_gradients_is_not_probed():
    config = load_config("digits", ["submodel.score=g"])
    with pytest.raises(ValueError, match=r"submodel\.score must be one that needs weights alone"):
        UploadMeasurement(config, FederatedData(config))


def test_full_models_have_no_masks_to_probe():
    config = small("method=fedavg")
    with pytest.raises(
        ValueError,
        match="'importance' or 'magnitude' when probing .got 'full'",
    ):
        UploadMeasurement(config, FederatedData(config))
