"""What a configuration stands for, in a few lines: its model, its data and its ranks."""

from __future__ import annotations

from collections import Counter

from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.models import run_layout
from fedgmr_hpc.runtime.preparation import check_inputs, describe_idle_ranks


def preview_run(config: Config, num_ranks: int | None = None) -> list[str]:
    """Read the files that a run would read, and describe it without starting any rank.

    Args:
        config: of the run.
        num_ranks: ranks that the run would have, the server included; None says nothing of them.

    Returns:
        Lines of text: weights and samples, bandwidth shares, ranks.

    Raises:
        ValueError: a file is missing or damaged, or does not fit the clients.
    """
    lines = [_describe_sizes(config), _describe_shares(config)]
    return lines if num_ranks is None else [*lines, _describe_ranks(config, num_ranks)]


def _describe_sizes(config: Config) -> str:
    data = check_inputs(config)
    layout = run_layout(config, data.num_classes)
    sizes = [len(part) for part in data.train_parts]
    return (
        f"{layout.num_weights:,} weights, {layout.num_prunable:,} prunable; "
        f"{sum(sizes):,} training samples, {min(sizes)} to {max(sizes)} a client; "
        f"{data.pool_size('validation'):,} validation, {data.pool_size('test'):,} test"
    )


def _describe_shares(config: Config) -> str:
    counts = Counter(config.clients.bandwidth_shares())
    return "bandwidth shares: " + ", ".join(f"{n} x {share:g}" for share, n in counts.items())


def _describe_ranks(config: Config, num_ranks: int) -> str:
    if num_ranks == 1:
        return "1 rank: server and clients in one process"
    count = config.clients.count
    idle = describe_idle_ranks(count, num_ranks)
    return f"{num_ranks} ranks: " + (idle or f"1 server, {num_ranks - 1} for {count} clients")
