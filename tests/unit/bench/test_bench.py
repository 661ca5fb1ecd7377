"""Benchmarks notice a wrong answer: the checks that they make before they time anything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedgmr_hpc.bench import benchmarks as bench
from fedgmr_hpc.bench import masks as masks_module
from fedgmr_hpc.bench import merging, samples
from fedgmr_hpc.bench.benchmarks import Request
from fedgmr_hpc.bench.case import Benchmark
from fedgmr_hpc.bench.links import describe
from fedgmr_hpc.storage.rows import TransferRow


def test_a_merge_that_leaves_the_model_alone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "merge", lambda rule, what, threads: what)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        bench.run_bench(Request("merge", quick=True, ranks=2))


def test_masks_in_another_order_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = masks_module.cut_masks

    def turned(*words: Any, **more: Any) -> Any:
        masks = cut(*words, **more)
        return replace(masks, perm=masks.perm[::-1].copy())

    weights, layers = (
        np.arange(1000, dtype=np.float32),
        [masks_module.PrunableLayer("all", 0, 1000, 1.0)],
    )
    monkeypatch.setattr(masks_module, "conv2", lambda: (weights, layers))
    monkeypatch.setattr(masks_module, "cut_masks", turned)
    with pytest.raises(AssertionError):
        bench.run_bench(Request("mask", quick=True, ranks=2))


def test_a_link_outside_of_what_is_allowed_ends_in_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def on_ranks(*words: Any) -> Any:
        return Benchmark(rows)

    def row(achieved: float) -> dict[str, Any]:
        names = {name: 0 for name in TransferRow.__dataclass_fields__}
        sent = names | {"bytes": 1_000_000, "achieved_bytes_per_s": achieved, "is_upload": True}
        return describe(TransferRow(**sent), 2.0)

    monkeypatch.setattr(bench, "_on_ranks", on_ranks)
    rows = [row(2.0e6), row(1.97e6)]
    assert bench.run_bench(Request("links", quick=True, ranks=3)) == 0
    rows = [row(2.0e6), row(1.95e6)]  # 2.6 % slower, 2 % are allowed
    assert bench.run_bench(Request("links", quick=True, ranks=3)) == 1


@pytest.mark.parametrize("what", ["links", "fanout", "server"])
def test_benchmarks_over_ranks_run_and_give_records(what: str) -> None:
    request = Request(what, quick=True, ranks=2)
    found = bench.measure(request)
    record, shape = bench.as_record(request, found), bench.SHAPES[what]
    assert (record["rows"], record["ranks"]) == (found.rows, 2)
    assert all({*shape.keys, *shape.ratios} <= row.keys() for row in found.rows)


def test_every_row_of_a_table_has_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "NUM_SAMPLES", 40)
    rows = samples.measure_samples(1).rows
    assert all(list(row) == list(rows[0]) for row in rows)
    assert [row["samples"] for row in rows if row["of an H100's needs"]][:1] == ["imagenet100"]
