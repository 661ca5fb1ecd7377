"""What a configuration stands for, in a few lines: its model, its data and its ranks."""

from __future__ import annotations

from collections import Counter

from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.models import run_layout
from fedgmr_hpc.runtime.preparation import cautions, check_inputs


def preview_run(config: Config, num_ranks: int | None = None) -> list[str]:
    """Read the files that a run would read, and describe it without starting any rank.

    Args:
        config: of the run.
        num_ranks: ranks that the run would have, the server included; None says nothing of them.

    Returns:
        Lines of text: weights and samples, bandwidth shares, ranks, and what to be cautious of.

    Raises:
        ValueError: a file is missing or damaged, or does not fit the clients.
    """
    lines = [_describe_sizes(config), _describe_shares(config)]
    if num_ranks is not None:
        lines.append(_describe_ranks(config, num_ranks))
    return [*lines, *(f"note: {line}" for line in cautions(config, num_ranks or 1))]


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
    return f"{num_ranks} ranks: 1 server, {num_ranks - 1} for {config.clients.count} clients"
