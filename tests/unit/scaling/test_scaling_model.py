"""Scaling laws, capacity bounds and the simulation against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from fedgmr_hpc.scaling.model import (
    Demand,
    Rates,
    System,
    amdahl,
    cycle_s,
    fit_amdahl,
    fit_gustafson,
    gustafson,
    karp_flatt,
    saturation,
    stations,
    throughput_bound,
    variants,
    with_aggregators,
    with_more_steps,
    with_one_copy,
    with_smaller_frames,
    with_threads,
)
from fedgmr_hpc.scaling.simulation import simulate

# 3 s of a client's core, 1 s of the server's: one client a rank comes round every 4 s.
CYCLIC = System(Demand(core_s=3.0, service_s=1.0, train_s=2.0), is_synchronous=False)


def test_karp_flatt_of_a_speedup_of_two_on_four() -> None:
    assert karp_flatt(2.0, 4.0) == pytest.approx(1 / 3)  # (0.5 - 0.25) / 0.75
    assert karp_flatt(4.0, 4.0) == 0.0
    assert karp_flatt(5.0, 4.0) == pytest.approx(-1 / 15)  # (0.2 - 0.25) / 0.75
    assert math.isnan(karp_flatt(1.0, 1.0))


def test_amdahl_and_gustafson_by_hand() -> None:
    assert amdahl(0.25, 4.0) == pytest.approx(16 / 7)  # 1 / (1/4 + 3/16)
    assert gustafson(0.25, 4.0) == pytest.approx(3.25)


@pytest.mark.parametrize("serial_frac", [0.0, 0.1, 0.5, 1.0])
def test_fits_recover_the_fraction_that_made_the_speedups(serial_frac: float) -> None:
    qs = [1.0, 2.0, 4.0, 8.0]
    assert fit_amdahl(qs, [amdahl(serial_frac, q) for q in qs]) == pytest.approx(serial_frac)
    assert fit_gustafson(qs, [gustafson(serial_frac, q) for q in qs]) == pytest.approx(serial_frac)


def test_a_fit_weighs_points_by_their_leverage() -> None:
    # a = (1/2, 3/4), b = (0, 1/4): f = (3/16) / (1/4 + 9/16)
    assert fit_amdahl([2.0, 4.0], [2.0, 2.0]) == pytest.approx(3 / 13)
    # a = (1, 3), b = (0, 2): s = 6 / 10
    assert fit_gustafson([2.0, 4.0], [2.0, 2.0]) == pytest.approx(0.6)
    assert math.isnan(fit_amdahl([1.0], [1.0])) and math.isnan(fit_gustafson([1.0], [1.0]))


def test_links_of_a_transfer_work_side_by_side_and_stages_one_after_the_other() -> None:
    demand = Demand(
        core_s=1.0, service_s=0.25, delay_s=2.0, own_down_s=0.5, own_up_s=4.0,
        down_bytes=30.0, up_bytes=10.0, server_up_bytes=6.0, server_down_bytes=10.0, round_s=0.5,
    )  # fmt: skip
    system = System(demand, Rates(rank_down=10.0, rank_up=5.0, server_up=2.0, server_down=20.0))
    # down max(0.5, 3, 3), training max(1, 2), up max(4, 2, 0.5), service, round
    assert cycle_s(system) == pytest.approx(3.0 + 2.0 + 4.0 + 0.25 + 0.5)
    assert stations(system, 4) == pytest.approx(
        {"client cores": 0.25, "rank download": 0.75, "rank upload": 0.5, "server upload": 3.0,
         "server download": 0.5, "server core": 0.25}
    )  # fmt: skip
    assert throughput_bound(system, 4, 8).by == "server upload"
    few = throughput_bound(system, 4, 1)
    assert (few.by, few.rounds_per_s) == ("cycle", pytest.approx(1 / 9.75))


def test_shared_cores_bound_the_ranks_of_a_machine() -> None:
    system = System(Demand(core_s=4.0, service_s=0.5), num_cores=2)
    assert stations(system, 1)["client cores"] == 4.0
    assert stations(system, 8)["client cores"] == 2.0


def test_saturation_is_where_service_time_times_updates_per_second_is_one() -> None:
    full = saturation(CYCLIC, 1)
    assert (full.num_workers, full.rounds_per_s, full.station) == (4.0, 1.0, "server core")
    # Ten clients keep a rank's core busy: one client-round in 3 s, so three ranks are enough.
    assert saturation(CYCLIC, 10).num_workers == 3.0
    assert saturation(System(Demand(core_s=1.0, service_s=0.0)), 1).num_workers == math.inf


def test_a_link_saturates_by_its_bytes_per_second() -> None:
    demand = Demand(core_s=3.0, service_s=0.0, server_down_bytes=10.0)
    full = saturation(System(demand, Rates(server_down=10.0)), 1)  # 1 s each, cycle 4 s
    assert (full.num_workers, full.station) == (4.0, "server download")


def test_what_lifts_the_limit() -> None:
    assert saturation(with_aggregators(CYCLIC, 8), 1).rounds_per_s == 8.0
    # 8 client-rounds a second, of ranks that come round every 3.125 s
    assert saturation(with_aggregators(CYCLIC, 8), 1).num_workers == pytest.approx(25.0)
    longer = with_more_steps(CYCLIC, 4.0)  # core 3 + 3 x 2 of training
    assert longer.demand.core_s == 9.0 and saturation(longer, 1).num_workers == 10.0
    small = with_smaller_frames(
        System(Demand(1.0, 0.0, server_down_bytes=8.0, up_bytes=4.0, own_up_s=2.0)), 0.5
    )
    assert (small.demand.server_down_bytes, small.demand.up_bytes) == (4.0, 2.0)
    assert (small.demand.own_up_s, small.demand.core_s) == (1.0, 1.0)
    assert next(iter(variants(CYCLIC).values())) == CYCLIC


def test_threads_of_the_server_share_its_merging() -> None:
    system = System(Demand(core_s=0.0, service_s=1.0, merge_s=0.8), is_synchronous=False)
    four = with_threads(system, 4)
    assert stations(four, 1)["server core"] == pytest.approx(0.4)
    assert simulate(four, 8, 8).rounds_per_s == pytest.approx(2.5)
    assert simulate(with_threads(system, 1), 8, 8) == simulate(system, 8, 8)


def test_one_copy_a_node_takes_the_network_as_often_as_there_are_nodes() -> None:
    demand = Demand(core_s=0.5, service_s=0.0, down_bytes=8.0, up_bytes=1.0)
    system = System(demand, Rates(network=8.0))
    assert stations(system, 4)["server upload"] == 1.0
    shared = with_one_copy(system, 4)
    assert stations(shared, 4)["server upload"] == 0.25
    # Four frames one after the other, then one; training; four updates at once.
    assert simulate(system, 4, 4).rounds_per_s == pytest.approx(4 / (4 + 0.5 + 0.5))
    assert simulate(shared, 4, 4).rounds_per_s == pytest.approx(4 / (1 + 0.5 + 0.5))


@pytest.mark.parametrize(("num_workers", "rate"), [(1, 0.25), (2, 0.5), (4, 1.0), (16, 1.0)])
def test_a_cyclic_server_does_what_the_closed_form_says(num_workers: int, rate: float) -> None:
    simulated = simulate(CYCLIC, num_workers, num_workers, num_rounds=12)
    assert simulated.rounds_per_s == pytest.approx(rate)
    assert simulated.server_busy_frac == pytest.approx(rate)
    assert throughput_bound(CYCLIC, num_workers, num_workers).rounds_per_s == pytest.approx(rate)


def test_a_synchronous_round_trains_and_then_serves_one_by_one() -> None:
    system = System(Demand(core_s=3.0, service_s=1.0, round_s=0.5))
    # 4 at once: 3 + 4 x 1 + 0.5. 8 clients on 4 ranks: the first 4 are served while the other 4
    # train until 6 s, from 3 to 7 s; the others from 7 to 11 s.
    assert simulate(system, 4, 4).rounds_per_s == pytest.approx(4 / 7.5)
    assert simulate(system, 4, 8).rounds_per_s == pytest.approx(8 / 11.5)


def test_a_placed_client_waits_for_its_rank_and_another_takes_any() -> None:
    demand = Demand(core_s=2.0, service_s=0.0)
    placed = System(demand, is_placed=True)
    assert simulate(placed, 2, 3).rounds_per_s == pytest.approx(3 / 4)  # clients 0 and 2 share one
    assert simulate(System(demand), 2, 3).rounds_per_s == pytest.approx(3 / 4)
    assert simulate(System(demand, num_cores=1), 2, 3).rounds_per_s == pytest.approx(1 / 2)


def test_transfers_share_a_link_evenly() -> None:
    demand = Demand(core_s=1.0, service_s=0.0, down_bytes=4.0)
    system = System(demand, Rates(rank_down=2.0), is_placed=True)
    # Both have the model after 4 s, not one of them after 2, and train one after the other.
    assert simulate(system, 1, 2).rounds_per_s == pytest.approx(2 / 6)


def test_transfers_that_begin_later_slow_down_those_under_way() -> None:
    demand = Demand(core_s=1.0, service_s=0.0, up_bytes=4.0, server_down_bytes=4.0, own_up_s=3.8)
    system = System(demand, Rates(rank_up=2.0, server_down=4.0), is_placed=True)
    # one rank: uploads of 2 s each begin at 1, 2, 3 s; two share from 2, three from 3 s on; they
    # are through at 4.5, 6.5 and 7 s, and the last one's own link at 6.8 s.
    assert simulate(system, 1, 3).rounds_per_s == pytest.approx(3 / 7)
    # three ranks: all begin at 1 s, ranks' links end at 3, the server's at 4, the own at 4.8 s.
    assert simulate(system, 3, 3).rounds_per_s == pytest.approx(3 / 4.8)


def test_thousands_of_ranks_stay_at_the_server_s_limit() -> None:
    simulated = simulate(CYCLIC, 2048, 2048)
    assert simulated.rounds_per_s == pytest.approx(1.0)
