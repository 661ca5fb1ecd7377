"""What `doctor` makes of facts, and the conversation of its ranks, here threads of one process."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.config.errors import TransportTimeout
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.doctor import budget, estimate, findings
from fedgmr_hpc.doctor.checkup import as_spans, render, render_sum
from fedgmr_hpc.doctor.estimate import RankSpeed
from fedgmr_hpc.doctor.findings import Finding
from fedgmr_hpc.doctor.host_facts import file_system, free_memory_bytes, slurm_left_s
from fedgmr_hpc.models import MODELS, make_layout, register_model
from fedgmr_hpc.runtime import rank_state
from fedgmr_hpc.training.objectives.scaffold import Scaffold
from fedgmr_hpc.transport.contract import make_inproc
from fedgmr_hpc.transport.ping import Peer, tournament

GB = 10**9


def place(host: str = "n1", cores: tuple[int, ...] = (0, 1, 2, 3), **more: Any) -> dict[str, Any]:
    return {"host": host, "pid": 7, "cores": list(cores), "device": "cpu", **more}


PLACES = {rank: place(f"n{rank}") for rank in range(4)}


# --- the conversation


@pytest.mark.parametrize("ranks", [[0], [0, 3], [0, 1, 2], [1, 4, 5, 9], list(range(9))])
def test_a_tournament_has_every_pair_once_and_nobody_twice_in_a_round(ranks: list[int]) -> None:
    rounds = tournament(ranks)
    pairs = [pair for each in rounds for pair in each]
    assert sorted(pairs) == [(a, b) for a in ranks for b in ranks if a < b]
    for each in rounds:
        met = [rank for pair in each for rank in pair]
        assert len(met) == len(set(met))


def start_peers(num: int, limit_s: float) -> list[Peer]:
    return [Peer(transport, limit_s) for transport in make_inproc(num)]


def in_threads(peers: list[Peer], part: Any) -> dict[int, Any]:
    """What `part` returns for each peer."""
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda p=peer: found.update({p.rank: part(p)}), daemon=True)
        for peer in peers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
        assert not thread.is_alive()
    return found


def test_every_pair_is_pinged_and_rank_0_measures_rates() -> None:
    def part(peer: Peer) -> Any:
        trips = peer.ping_all([0, 1, 2])
        if peer.rank:
            peer.wait(lambda: bool(over), 20.0)
            return trips
        rates = peer.measure_rates()
        over.append(True)
        return trips, rates

    over: list[bool] = []
    found = in_threads(start_peers(3, 20.0), part)
    trips, rates = found[0]
    assert trips.keys() == {1, 2} and found[1].keys() == {2} and found[2] == {}
    assert all(0 < trip < 5 for trip in [*trips.values(), *found[1].values()])
    assert rates.keys() == {1, 2}
    assert all(rate > 1e6 for pair in rates.values() for rate in pair)


def test_a_silent_rank_is_found_by_all_and_blocks_nobody() -> None:
    def part(peer: Peer) -> Any:
        trips = peer.ping_all(range(4))
        done.add(peer.rank)
        peer.wait(lambda: done == {0, 1, 2}, 60.0)
        return trips

    peers, done = start_peers(4, 4.0), set[int]()
    began_s = time.monotonic()
    found = in_threads(peers[:3], part)
    assert time.monotonic() - began_s < 60
    missing = {rank: [r for r, trip in found[rank].items() if trip is None] for rank in found}
    assert missing == {0: [3], 1: [3], 2: [3]}
    assert peers[0].transport.gone == {3}


def test_ranks_that_only_wait_are_not_silent() -> None:
    def part(peer: Peer) -> None:
        until_s = time.monotonic() + 6.0 + peer.rank
        peer.wait(lambda: time.monotonic() > until_s or bool(over))
        over.append(True)

    peers, over = start_peers(2, 3.0), list[bool]()
    in_threads(peers, part)
    assert peers[0].transport.gone == set()


def test_a_silent_rank_0_ends_the_others() -> None:
    peer = start_peers(2, 0.2)[1]
    peer.server = "rank 0 on n1"
    with pytest.raises(TransportTimeout, match=r"rank 0 on n1 has said nothing for 0\.2 s"):
        peer.wait(bool)


# --- where ranks are


def test_ranks_without_the_precision_are_named() -> None:
    lacking = place("n2", (4,)) | {"lacks": "Tesla T4 has compute capability 7.5"}
    places = {0: lacking, 1: place() | {"lacks": ""}, 2: lacking}  # rank 0 trains nothing
    found = findings.judge_precision(places, "bf16", True)
    assert found is not None and found.state == "FAIL"
    assert found.text == "no bf16 on rank 2 on n2: Tesla T4 has compute capability 7.5"
    assert findings.judge_precision({0: lacking}, "bf16", True) is not None  # but alone it does
    assert findings.judge_precision({0: lacking, 1: place()}, "bf16", True) is None


def test_ranks_with_other_kernels_are_named() -> None:
    compiled, torchs = place() | {"kernels": "c1"}, place("n2", (4,)) | {"kernels": "torch1"}
    found = findings.judge_kernels({0: compiled, 1: compiled, 2: torchs})
    assert found is not None and found.state == "FAIL"
    assert found.text == "different kernels: c1 on ranks 0 on n1, 1 on n1; torch1 on rank 2 on n2"
    found = findings.judge_kernels({0: torchs, 1: place() | {"kernels": ""}})
    assert (
        found is not None and found.state == "warn" and "(torch1), which are slower" in found.text
    )
    assert findings.judge_kernels({0: compiled, 1: place()}) is None
    assert findings.judge_places({0: compiled}).text.endswith(", kernels c1")


def test_a_choice_that_cpus_do_not_have_is_a_warning() -> None:
    gpu = {"device": "cuda:0", "uuid": "GPU-1"}
    found = findings.judge_precision({0: place(), 1: place()}, "fp32", False)
    assert found is not None and found.state == "warn" and "no effect on CPUs" in found.text
    assert findings.judge_precision({0: place(), 1: place(**gpu)}, "fp32", False) is None
    assert findings.judge_precision({0: place()}, "fp32", True) is None


def test_ranks_that_share_cores_or_devices_are_named() -> None:
    gpu = {"device": "cuda:0", "uuid": "GPU-1"}
    state, text, advice = check(findings.judge_places({0: place(), 1: place(cores=(4,), **gpu)}))
    assert (state, text) == ("ok", "2 ranks on 1 host, 1 CUDA device")
    both = {0: place(), 1: place(cores=(4,), **gpu), 2: place(cores=(4,), **gpu)}
    state, text, advice = check(findings.judge_places(both))
    assert state == "warn" and "n1: 2 ranks share 1 core" in text
    assert "ranks 1, 2 share GPU-1 of n1" in text and "one client rank for each GPU" in advice
    away = {0: place(), 1: place("n2", (4,), **gpu), 2: place("n3", (4,), **gpu)}
    assert check(findings.judge_places(away))[0] == "ok"


def test_gpus_that_a_rank_does_not_see_are_a_warning() -> None:
    hidden = {0: place(), 1: place("n2", hidden_gpus="GPUs are here and none is visible")}
    state, text, advice = check(findings.judge_places(hidden))
    assert (state, advice) == ("warn", "GPUs are here and none is visible")
    assert text.endswith("; n2: its GPUs are hidden")


def test_a_large_cache_in_the_home_folder_is_counted_and_warned_of() -> None:
    facts = {**data_facts("aa"), "cache_bytes": 11 * 10**9, "is_default_cache": True}
    state, text, advice = check(findings.judge_data({0: facts}, PLACES, "imagenet100"))
    assert state == "warn" and "; 11.0 GB in " in text and advice.startswith("data.cache ")
    assert findings.judge_data({0: facts | {"is_default_cache": False}}, PLACES, "d").state == "ok"


def check(finding: Finding) -> tuple[str, str, str]:
    return finding.state, finding.text, finding.advice


def test_more_ranks_than_cores_are_counted_by_host() -> None:
    crowded = {rank: place("n1" if rank < 3 else "n2", (0, 1)) for rank in range(5)}
    state, text, _ = check(findings.judge_places(crowded))
    assert state == "warn" and text.endswith("n1: 3 ranks share 2 cores")


def test_cores_are_shown_as_spans() -> None:
    assert [as_spans([0, 1, 2, 5, 7, 8]), as_spans([3]), as_spans([])] == ["0-2,5,7-8", "3", "any"]


# --- pings and rates


@pytest.mark.parametrize(("trip_s", "state"), [(0.03, "ok"), (0.06, "warn")])
def test_two_ranks_are_slow_by_more_than_each_other(trip_s: float, state: str) -> None:
    found = findings.judge_pings({(0, 1): trip_s}, PLACES)
    assert found.state == state
    assert ("slow to answer: ranks 0 on n0, 1 on n1" in found.text) == (state == "warn")


def test_a_slow_rank_is_named_though_it_spoils_most_pairs() -> None:
    trips = {(0, 1): 1e-5, (0, 2): 5e-2, (1, 2): 6e-2}
    state, text, advice = check(findings.judge_pings(trips, PLACES))
    assert (state, text.split(";")[0]) == ("warn", "slow to answer: rank 2 on n2") and advice
    assert "slowest 60,000 us (ranks 1 on n1, 2 on n2)" in text
    assert findings.judge_pings({(0, 1): 1e-5, (0, 2): 1e-3, (1, 2): 1e-3}, PLACES).state == "ok"


def test_pairs_without_an_answer_and_silent_ranks_fail() -> None:
    state, text, _ = check(findings.judge_pings({(0, 1): 1e-5, (1, 2): None}, PLACES))
    assert (state, text) == ("FAIL", "no answer between ranks 1 and 2")
    state, text, advice = check(findings.judge_silence("ping", {2, 9}, PLACES, 5.0))
    assert (state, text) == ("FAIL", "silent for 5 s: ranks 2 on n2, 9 on an unknown host")
    assert "process 7 on n2" in advice


def test_one_rank_has_nothing_to_ping() -> None:
    assert findings.judge_pings({}, {0: place()}).text == "one rank: nothing to ping"
    assert findings.judge_rates({}, None, None, {0: place()}).text == "one rank: no links"


def test_needed_rates_are_those_of_the_tiers_a_rank_hosts() -> None:
    words = ["clock=wall", "time_scale=0.5", "clients.count=3", "clients.shares=[1.0,0.5,0.2]"]
    config = load_config("digits", words)  # 20 MB/s down, at most the server's 10; 5 MB/s up
    needed = estimate.needed_rates(config, 3)  # rank 1 hosts clients 0 and 2, rank 2 client 1
    assert needed == {1: (2 * 14e6, 2 * 6e6), 2: (2 * 10e6, 2 * 2.5e6)}
    capped = load_config("digits", [*words, "links.rank_up_bytes_per_s=1e6"])
    assert estimate.needed_rates(capped, 3)[1] == (28e6, 2e6)


def test_links_below_their_tiers_fail_by_rank_and_in_sum() -> None:
    rates, needed = {1: (50e6, 50e6), 2: (9e6, 50e6)}, {1: (20e6, 5e6), 2: (10e6, 5e6)}
    state, text, advice = check(findings.judge_rates(rates, (25e6, 60e6), needed, PLACES))
    assert state == "FAIL" and "time_scale" in advice
    assert text == (
        "rank 2 on n2: 9 MB/s to it, its clients ask for 10 MB/s; "
        "rank 0: 25 MB/s out with all ranks at once, all clients ask for 30 MB/s"
    )
    state, text, _ = check(findings.judge_rates(rates, (25e6, 60e6), None, PLACES))
    assert state == "ok" and text.endswith("the virtual clock asks for none")


# --- data and results


def data_facts(digest: str) -> dict[str, Any]:
    return {"digest": digest, "num_train": 1438, "num_test": 359, "folder": "/cache/d"}


def test_a_rank_that_reads_other_bytes_is_named() -> None:
    answers = {0: data_facts("aa"), 1: data_facts("bb"), 2: data_facts("aa")}
    state, text, advice = check(findings.judge_data(answers, PLACES, "digits"))
    assert state == "FAIL" and "rank 1 on n1 (bb)" in text and "/cache/d" in advice
    state, text, _ = check(findings.judge_data({0: data_facts("aa")}, PLACES, "digits"))
    assert (state, text[:52]) == ("ok", "digits: 1,438 training and 359 test samples, xxh3 aa")


def test_an_error_of_all_ranks_is_said_once_and_one_of_some_with_their_names() -> None:
    wrong = {"error": "no such file"}
    assert check(findings.judge_data({0: wrong, 1: wrong}, PLACES, "d"))[1] == "no such file"
    some = findings.judge_data({0: data_facts("aa"), 1: wrong}, PLACES, "d")
    assert check(some)[:2] == ("FAIL", "rank 1 on n1: no such file")


def test_locking_is_advised_where_locks_fail_or_hang() -> None:
    for error in ("cannot create the file (unable to lock file)", "not done after 60 s"):
        assert "results.locking" in findings.judge_results({"error": error}, "auto", None).advice
    assert "results.path" in findings.judge_results({"error": "Read-only"}, "auto", None).advice
    facts = {"folder": "/r", "file_system": "nfs4", "has_locks": False, "took_s": 0.02}
    facts |= {"exists": False}
    state, text, _ = check(findings.judge_results(facts, "auto", "FALSE"))
    assert state == "ok" and "/r (nfs4): no locks" in text and "HDF5_USE_FILE_LOCKING=FALSE" in text
    assert findings.judge_results({**facts, "exists": True}, "auto", None).state == "warn"


# --- time, memory, disk


def steps(train_s: float) -> dict[str, Any]:
    ends, times = (0.05, 1.0), (train_s / 2, train_s)
    counts = {"num_samples": 1000, "num_scored": 100, "num_tested": 600}
    return {"densities": ends, "train_s": times, "sample_s": 1e-4, **counts}


WORDS = ["clients.count=4", "clients.shares=[1,1,1,1]", "run.max_rounds=100"]
LAYOUT = make_layout("digits_cnn")


def test_time_of_a_run_is_rounds_times_training_and_evaluation() -> None:
    config = load_config("digits", [*WORDS, "run.interval_rounds=50"])
    pace = RankSpeed((0.05, 1.0), (0.1, 0.2), 1e-3)
    # 100 rounds x 4 clients x 0.2 s, 3 refreshes x (1000 + 4 x 100) samples x 1 ms, on two ranks
    assert estimate.compute_s(config, [pace, pace], 100, 1000, 100, 600) == pytest.approx(
        (80 + 4.2) / 2 / 0.75
    )
    assert pace.at(0.525) == pytest.approx(0.15)
    # looks every 10 s, 100 rounds of at least 3 s: 31 evaluations of 1000 samples more
    config = load_config("digits", [*WORDS, "run.interval_rounds=50", "eval.every_s=10"])
    looks = estimate.num_looks(config, 100, 3.0)
    assert looks == 31 and estimate.compute_s(
        config, [pace, pace], 100, 1000, 100, 600, looks
    ) == pytest.approx((80 + 4.2 + 31) / 2 / 0.75)
    # each of the 31 looks, not the 3 refreshes, tested once more for both densities below 1
    cut = ["eval.every_s=10", "clients.count=4", "clients.shares=[1,0.5,0.5,0.2]"]
    config = load_config("digits", ["run.interval_rounds=50", *cut, "eval.submodels=true"])
    plain = load_config("digits", ["run.interval_rounds=50", *cut])
    assert estimate.num_levels(config) == 2
    sizes = (1000, 100, 600, looks)
    both = [estimate.compute_s(c, [pace, pace], 100, *sizes) for c in (config, plain)]
    assert both[0] - both[1] == pytest.approx(31 * 2 * 0.6 / 2 / 0.75)


def test_rounds_of_a_time_limit_follow_from_the_fastest_cycle() -> None:
    words = ["links.size=nominal", "links.nominal_mb=10", *WORDS]
    config = load_config("digits", [*words, "run.max_time_s=90"])
    least_s = estimate.round_s(config, 1000, 10)
    assert least_s == pytest.approx(10 / 10 + 0.5 + 10 / 5 + 0.5)  # down, training, up, merge
    assert estimate.num_rounds(config, least_s) == 23
    wall = load_config("digits", [*words, "clock=wall", "time_scale=0.5"])
    assert estimate.whole_run_s(wall, 1.0, 100, least_s) == pytest.approx(200)


def judge(config: Any, answers: dict[int, Any], left_s: float | None = None) -> Finding:
    return budget.judge_time(config, LAYOUT, answers, PLACES, len(answers) + 1, left_s)


def test_a_rank_that_computes_slowly_is_named() -> None:
    config = load_config("digits", WORDS)
    state, text, _ = check(judge(config, {1: steps(0.01), 2: steps(0.03), 3: steps(0.011)}))
    assert state == "warn" and text.startswith("slow to compute: rank 2 on n2 (2.7 times")
    assert judge(config, {1: steps(0.01), 2: steps(0.012)}).state == "ok"


def test_a_job_that_ends_before_the_run_is_warned_of() -> None:
    config = load_config("digits", WORDS)
    state, text, advice = check(judge(config, {1: steps(0.3)}, left_s=60))
    assert state == "warn" and text.startswith("the job ends in 1 min 00 s") and "requeue" in advice
    assert judge(config, {1: steps(0.3)}, left_s=6000).state == "ok"


def test_a_time_scale_below_the_training_of_a_rank_is_warned_of() -> None:
    config = load_config("digits", [*WORDS, "clock=wall", "time_scale=0.5"])
    state, text, advice = check(judge(config, {1: steps(0.2), 2: steps(0.1)}))
    assert state == "warn" and "time_scale 0.5 is below 0.8" in text  # 2 x 0.2 s in 0.5 s
    assert "time_scale=0.8" in advice
    assert judge(config, {1: steps(0.1), 2: steps(0.1)}).state == "ok"


def test_without_data_time_is_not_measured() -> None:
    assert check(judge(load_config("digits"), {1: {"error": "no data"}}))[0] == "warn"


def memory(free: int) -> dict[str, int]:
    return {"rss_bytes": GB, "peak_bytes": GB + 10**6, "free_bytes": free}


def test_memory_is_summed_by_host() -> None:
    config = load_config("digits", ["clients.count=4", "method=fedavg"])
    places = {0: place("n1"), 1: place("n1"), 2: place("n2")}
    num_weights = 10**7  # the server 10 dense models of 40 MB, a worker 20 bytes a weight and 1 MB
    answers = {0: memory(GB), 1: memory(GB), 2: memory(GB)}
    finding = budget.judge_memory(config, num_weights, answers, places, False)
    assert check(finding)[:2] == ("ok", "n1 needs about 601 MB more, 1,000 MB are free")
    answers[1] = memory(GB // 2)
    assert budget.judge_memory(config, num_weights, answers, places, False).state == "FAIL"


@pytest.mark.parametrize(
    ("words", "vectors"),
    [((), 0), (("wire.dtype=int8",), 1), (("train.objective=scaffold",), 2)],
)  # fmt: skip
def test_what_clients_keep_is_on_their_ranks_and_in_checkpoints(words, vectors) -> None:
    rule = ("method=fedavg", "aggregation.rule=mask_aware", "clients.count=4")
    config, num = load_config("digits", [*rule, *words]), 1000
    kept = 4 * num * 4 * (vectors + 1) * bool(vectors)  # four whole models, and positions
    assert estimate.memory_bytes(config, num) == kept
    assert estimate.worker_bytes(config, num, 2) == 20 * num + kept // 2
    assert estimate.checkpoint_bytes(config, num) == 4 * num * 6 + kept
    wall = load_config("digits", [*rule, *words, "clock=wall"])
    assert estimate.checkpoint_bytes(wall, num) == 4 * num * 6


def test_error_feedback_comes_on_top_of_what_an_objective_keeps(monkeypatch) -> None:
    monkeypatch.setattr(rank_state, "make_objective", lambda train: Scaffold())
    assert rank_state.num_kept_vectors(load_config("digits", ["wire.dtype=int8"])) == 3


@pytest.mark.parametrize(("row", "vectors"), [("fedavg", 0), ("fedavgm", 1), ("fedadam", 2)])
def test_what_a_rule_keeps_is_at_the_server_and_in_checkpoints(row, vectors) -> None:
    num = 1000
    plain, config = (load_config("digits", [f"method={name}"]) for name in ("fedavg", row))
    for count in (estimate.server_bytes, estimate.checkpoint_bytes):
        assert count(config, num) == count(plain, num) + 4 * num * vectors


def test_disk_holds_rows_weights_and_three_checkpoints() -> None:
    config = load_config("digits", ["clients.count=4", "method=fedavg", "run.max_rounds=1000"])
    num = LAYOUT.num_weights
    assert estimate.checkpoint_bytes(config, num) == 4 * num * 6  # 4 whole models, version, order
    rows = estimate.result_bytes(config, num, 1000) - 4 * num
    assert 1.5e6 < rows < 3e6
    free = {"free_bytes": estimate.disk_bytes(config, num, 1000)}
    assert budget.judge_disk(config, LAYOUT, free).state == "warn"
    assert budget.judge_disk(config, LAYOUT, {"free_bytes": 10**6}).state == "FAIL"


# --- the host


def test_free_memory_is_the_least_of_host_and_cgroups(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    write("proc/self/cgroup", "0::/job/step\n")
    assert free_memory_bytes(str(tmp_path)) == 8000 << 10
    write("sys/fs/cgroup/job/memory.max", "5000\n")
    write("sys/fs/cgroup/job/memory.current", "3000\n")
    write("sys/fs/cgroup/job/memory.stat", "anon 2500\ninactive_file 400\n")
    write("sys/fs/cgroup/job/step/memory.max", "max\n")
    write("sys/fs/cgroup/job/step/memory.current", "3000\n")
    write("sys/fs/cgroup/job/step/memory.stat", "inactive_file 400\n")
    assert free_memory_bytes(str(tmp_path)) == 2400
    write("proc/self/cgroup", "4:memory:/job\n")
    write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "4000\n")
    write("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "3000\n")
    write("sys/fs/cgroup/memory/job/memory.stat", "total_inactive_file 100\n")
    assert free_memory_bytes(str(tmp_path)) == 1100


def test_the_innermost_mount_says_the_file_system(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nfs:/x {tmp_path} lustre rw 0 0\n")
    assert file_system(tmp_path / "runs", str(mounts)) == "lustre"
    assert file_system(Path("/etc"), str(mounts)) == "ext4"


def test_the_time_left_is_that_of_the_job() -> None:
    assert slurm_left_s({}) is None
    env = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(time.time()) + 500)}
    assert 490 < (slurm_left_s(env) or 0) <= 500


# --- what a person sees


def test_states_are_coloured_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = Finding("ping", "ok", "fine", "unused"), Finding("links", "FAIL", "bad", "do this")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert render(good) == "ping     ok    fine"
    assert render(bad) == "links    FAIL  bad\n               -> do this"
    assert render_sum([good, bad, replace(good, state="warn")]) == (
        "3 checks: 1 ok, 1 with a warning, 1 failed"
    )
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert render(good) == "ping     \x1b[32mok\x1b[0m    fine"
    assert render_sum([good, bad]).startswith("\x1b[31m2 checks")
    monkeypatch.setenv("NO_COLOR", "1")
    assert render(good) == "ping     ok    fine"


def test_one_process_checks_everything_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "a" / "b"
    words = [f"data.cache={tmp_path / 'cache'}", f"results.path={folder}/run.h5"]
    code = main(["doctor", "digits", *words])
    out = capsys.readouterr().out
    states = {line.split()[0]: line.split()[1] for line in out.splitlines()[5:-1]}
    assert code == 0, out
    assert [*states] == "ranks ping links mpi data results time memory disk".split()
    assert set(states.values()) == {"ok"} and out.endswith("9 checks: 9 ok\n")
    assert not (tmp_path / "a").exists()


def test_missing_data_and_a_place_without_folders_fail(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    words = [f"data.root={tmp_path}/none", f"results.path={tmp_path}/file/run.h5"]
    code = main(["doctor", "--config", "femnist", *words])
    out = capsys.readouterr().out
    assert code == 1, out
    assert "data     FAIL  data.root must " in out and "prepare femnist" in out
    assert f"results  FAIL  cannot write in {tmp_path}/file: " in out
    assert "time     warn  not measured" in out and "2 failed" in out


def test_a_module_that_does_not_fit_is_told_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    @register_model("narrow", input_shape=(1, 8, 8))
    def narrow(num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    try:
        words = ["model.name=narrow", "method=heterofl", f"results.path={tmp_path}/run.h5"]
        code = main(["doctor", "digits", *words])
    finally:
        MODELS.forget(__name__)
    out = capsys.readouterr().out
    assert code == 1 and out.count("a module does not say along which axes") == 1, out
    assert out.count("warn  not known, see data") == 3 and "1 failed" in out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["clients.count=0"], "clients.count must be at least 1 (got 0)"),
        (["--limit", "0"], "--limit must be a number above 0 (got 0)"),
    ],
)
def test_bad_input_is_refused(
    words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *words]) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"fedgmr_hpc: error: {error}"
