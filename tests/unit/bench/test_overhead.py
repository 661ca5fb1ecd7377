"""The parts of `bench overhead`."""

from __future__ import annotations

import numpy as np

from fedgmr_hpc.bench.case import initial_sub_models
from fedgmr_hpc.bench.overhead import _Case, _Marks, steps_alone
from fedgmr_hpc.config.files import load_config


def test_a_round_is_what_lies_between_two_marks() -> None:
    marks = _Marks()
    marks.marks = [(0.0, 0.0, 9000), (10.0, 5.0, 9100), (12.0, 6.0, 9110), (14.0, 8.0, 9120)]
    case = _Case("small", "digits", (), first=1, last=3)
    assert marks.per_round(case) == (2.0, 1.5, 10.0)


def test_clients_begin_with_what_their_links_carry() -> None:
    config = load_config("digits")
    parts = initial_sub_models(config)
    total = max(len(values) for values, _, _ in parts)
    shares = config.clients.bandwidth_shares()
    sizes = [len(values) / total for values, _, _ in parts]
    np.testing.assert_allclose(sizes, shares, atol=1e-3)
    assert all(len(values) == len(positions) for values, _, positions in parts)
    full = initial_sub_models(load_config("digits", ["method=fedavg"]))
    assert all(positions is None and len(values) == total for values, _, positions in full)


def test_steps_alone_take_time() -> None:
    wall_s, core_s = steps_alone(load_config("digits", ["clients.count=2"]), rounds=1)()
    assert wall_s > 0 and core_s > 0
