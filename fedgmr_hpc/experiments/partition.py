"""Who holds what: a partition as a table and as a picture, before any training.

Labelled samples are counted by class; sentences, which have no class, by their target words. Counts
are of training samples, after each client's validation samples were cut off.
Shapes: C clients, L classes, R rows of a table or picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.data.partition import class_counts
from fedgmr_hpc.reporting.figures import SMALL, new_figure, save, styled
from fedgmr_hpc.reporting.pages import Page, Picture, write_page
from fedgmr_hpc.reporting.palette import COLOURS
from fedgmr_hpc.reporting.tables import Table, as_text

Longs = NDArray[np.int64]
Doubles = NDArray[np.float64]

MAX_ROWS = 30  # of a table
MAX_GROUPS = 10  # columns of classes in a table
MAX_LINES = 500  # rows of a picture
MAX_WRITTEN = 15  # rows and classes of a picture that has its numbers in it
RANDOM_STEP = 1003  # keeps the stream apart from the attempts of make_partition


@dataclass(frozen=True, eq=False)
class Holdings:
    """What each client holds. `counts` [C,L] are samples of each class, for sentences [C,1] their
    target words; `groups` [C] are the writers or users whose samples a client trains on."""

    name: str
    is_text: bool
    shares: Doubles  # [C] bandwidth shares
    num_train: Longs  # [C]
    num_validation: Longs  # [C]
    groups: Longs  # [C]
    counts: Longs  # [C,L]

    @property
    def num_clients(self) -> int:
        """C."""
        return len(self.num_train)


def make_holdings(config: Config, data: FederatedData) -> Holdings:
    """Return the holdings of a configuration's clients."""
    train, parts = data.dataset.train, data.train_parts
    if data.dataset.is_text:
        counts = np.array([[train.y[part].sum()] for part in parts])
    else:
        counts = class_counts(parts, train.y, data.dataset.num_classes)
    return Holdings(
        name=_name(config),
        is_text=data.dataset.is_text,
        shares=np.array(config.clients.bandwidth_shares()),
        num_train=_sizes(parts),
        num_validation=_sizes(data.validation_parts),
        groups=np.array([len(np.unique(train.group[part])) for part in parts]),
        counts=counts,
    )


def _sizes(parts: Sequence[Longs]) -> Longs:
    return np.array([len(part) for part in parts], np.int64)


def _name(config: Config) -> str:
    data = config.data
    details = {
        "dirichlet": f"({data.alpha:g})",
        "quantity": f"({data.alpha:g})",
        "shards": f"({data.shards_per_client} a client)",
        "pathological": f"({data.classes_per_client} classes a client)",
    }
    kind = data.partition + details.get(data.partition, "")
    return f"{data.name}, {kind}, {config.clients.count:,} clients, seed {config.seed}"


# skew


def mean_distance(counts: Longs) -> float:
    """Return the total variation distance, 0 to 1, of a client's classes to all's; the mean."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    whole = counts.sum(axis=0) / counts.sum()
    return float(np.abs(shares - whole).sum(axis=1).mean() / 2)


def random_distance(counts: Longs) -> float:
    """Return the same distance after all samples are dealt at random to clients of the same sizes.

    It is what small clients have without any skew.
    """
    labels = np.repeat(np.arange(counts.shape[1]), counts.sum(axis=0))
    owner = np.repeat(np.arange(len(counts)), counts.sum(axis=1))
    dealt = np.zeros_like(counts)
    np.add.at(dealt, (owner, make_rng(0, "partition", step=RANDOM_STEP).permutation(labels)), 1)
    return mean_distance(dealt)


# table


def describe_holdings(held: Holdings) -> str:
    """Return the table, at most 30 rows, and lines on sizes and skew."""
    table = as_text(_header(held), _rows(held), _total(held))
    return "\n".join([held.name, "", table, "", *_lines(held)])


def _rows(held: Holdings) -> list[list[str]]:
    """Return a row for each client, or the means over equally many clients."""
    size = -(-held.num_clients // MAX_ROWS)
    everybody, is_mean = np.arange(held.num_clients), size > 1
    blocks = [everybody[start : start + size] for start in range(0, held.num_clients, size)]
    return [_row(held, block, is_mean) for block in blocks]


def _lines(held: Holdings) -> list[str]:
    """Say what the rows are, how sizes vary and how skewed the classes are."""
    is_mean = held.num_clients > MAX_ROWS
    note = ["rows are means over the clients they name"] if is_mean else []
    return [*note, _sizes_line(held), _skew_line(held)]


def _header(held: Holdings) -> list[str]:
    head = ["client", "share"]
    if held.is_text:
        return [*head, "users", "sentences", "validation", "target words", "words a sentence"]
    names = [_span(group) for group in _class_groups(held)]
    return [*head, "train", "validation", "classes", *("class " + names[0], *names[1:])]


def _class_groups(held: Holdings) -> list[Longs]:
    num_classes = held.counts.shape[1]
    return list(np.array_split(np.arange(num_classes), min(MAX_GROUPS, num_classes)))


def _span(numbers: Longs) -> str:
    first, last = numbers[0], numbers[-1]
    return f"{first}" if first == last else f"{first}-{last}"


def _row(held: Holdings, block: Longs, is_mean: bool) -> list[str]:
    low, high = held.shares[block].min(), held.shares[block].max()
    share = f"{low:g}" if low == high else f"{low:g}-{high:g}"
    numbers = [values[block].mean() for values in _columns(held)]
    return [_span(block), share, *(f"{number:,.{int(is_mean)}f}" for number in numbers)] + (
        [_words_a_sentence(held, block)] if held.is_text else []
    )


def _columns(held: Holdings) -> list[Longs]:
    """Return [C] each, in the order of the header."""
    if held.is_text:
        return [held.groups, held.num_train, held.num_validation, held.counts[:, 0]]
    groups = [held.counts[:, group].sum(axis=1) for group in _class_groups(held)]
    return [held.num_train, held.num_validation, (held.counts > 0).sum(axis=1), *groups]


def _words_a_sentence(held: Holdings, block: Longs) -> str:
    return f"{held.counts[block].sum() / held.num_train[block].sum():.1f}"


def _total(held: Holdings) -> list[str]:
    everybody = np.arange(held.num_clients)
    sums = [f"{values.sum():,}" for values in _columns(held)]
    if held.is_text:
        return ["total", "", "", *sums[1:], _words_a_sentence(held, everybody)]
    sums[2] = f"{(held.counts.sum(axis=0) > 0).sum()}"  # classes that anybody holds
    return ["total", "", *sums]


def _sizes_line(held: Holdings) -> str:
    sizes = held.num_train
    return (
        f"training samples a client: {sizes.min():,} / {np.median(sizes):,.0f} / {sizes.max():,} "
        "(min / median / max)"
    )


def _skew_line(held: Holdings) -> str:
    if held.is_text:
        words = held.counts[:, 0]
        return f"skew: the clients' target words deviate by {words.std() / words.mean():.0%}"
    return (
        "skew: mean total variation distance of a client's classes to everybody's "
        f"{mean_distance(held.counts):.3f} (0 equal, 1 disjoint; "
        f"{random_distance(held.counts):.3f} if the same sizes are dealt at random)"
    )


# picture


@styled
def plot_holdings(held: Holdings) -> Figure:
    """Draw clients by classes as a heat map beside sizes and shares; for sentences, bars."""
    return _plot_sentences(held) if held.is_text else _plot_classes(held)


def _plot_classes(held: Holdings) -> Figure:
    panels: dict[str, Any] = {"sharey": True, "width_ratios": (6, 1.6, 1.1)}
    figure, (heat, size, share) = new_figure(3, size=(11, 7), **panels)
    heat.grid(False)
    counts, num_merged = _merge_rows(held.counts)
    extent = (-0.5, counts.shape[1] - 0.5, held.num_clients - 0.5, -0.5)
    image = heat.imshow(
        np.ma.masked_equal(counts, 0),
        aspect="auto",
        interpolation="nearest",
        cmap=_colours(),
        norm=PowerNorm(0.5, vmin=0),  # small counts can be told apart beside a great one
        extent=extent,
    )
    label = "training samples of a class (count; white: none)"
    if num_merged > 1:
        label = f"training samples of a class (mean over {num_merged} clients; white: none)"
    bar = figure.colorbar(image, ax=heat, location="left", pad=0.02, aspect=40)
    bar.set_label(label)
    if max(counts.shape) <= MAX_WRITTEN:
        _write_numbers(heat, counts)
    heat.set_xlabel("class")
    heat.set_ylabel("client")
    _plot_by_client(size, held.num_train, "training\nsamples (count)", COLOURS[2])
    _plot_by_client(share, held.shares, "bandwidth\nshare (fraction)", COLOURS[1])
    _mark_whole(heat)
    figure.suptitle(f"{held.name}: {held.num_train.sum():,} training samples", fontsize=13)
    return figure


def _merge_rows(counts: Longs) -> tuple[Doubles, int]:
    """Return [R,L] means of equally many neighbours: no row is thinner than a line of pixels."""
    num_merged = -(-len(counts) // MAX_LINES)
    starts = np.arange(0, len(counts), num_merged)
    sizes = np.diff(starts, append=len(counts))
    return np.add.reduceat(counts, starts, axis=0) / sizes[:, None], num_merged


def _colours() -> Colormap:
    """Return light to dark colours; the lightest differs from white, which stands for none."""
    return ListedColormap(matplotlib.colormaps["YlGnBu"](np.linspace(0.12, 1, 256)))


def _write_numbers(axes: Axes, counts: Doubles) -> None:
    for row, column in np.argwhere(counts > 0):
        dark = counts[row, column] > 0.3 * counts.max()
        colour, text = "white" if dark else "black", f"{counts[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=SMALL)


def _plot_by_client(axes: Axes, values: NDArray[Any], label: str, colour: str) -> None:
    """Draw horizontal bars without gaps, which stay readable for a thousand clients."""
    edges = np.arange(len(values) + 1) - 0.5
    axes.stairs(values, edges, orientation="horizontal", fill=True, color=colour)
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    axes.grid(False, axis="y")


def _mark_whole(axes: Axes) -> None:
    """Put ticks at whole numbers only: clients and classes are numbered."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(10, integer=True))


def _plot_sentences(held: Holdings) -> Figure:
    widths = (3, 3, 2, 1.5)
    figure, panels = new_figure(4, size=(11, 6), sharey=True, width_ratios=widths)
    labels = (
        ("training\nsentences (count)", held.num_train, COLOURS[2]),
        ("scored target\nwords (count)", held.counts[:, 0], COLOURS[3]),
        ("users (count)", held.groups, COLOURS[5]),
        ("bandwidth\nshare (fraction)", held.shares, COLOURS[1]),
    )
    for axes, (name, values, colour) in zip(panels, labels, strict=True):
        _plot_by_client(axes, values, name, colour)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    panels[0].set_ylabel("client")
    panels[0].set_ylim(held.num_clients - 0.5, -0.5)
    panels[0].yaxis.set_major_locator(MaxNLocator(10, integer=True))
    figure.suptitle(f"{held.name}: {held.num_train.sum():,} training sentences", fontsize=13)
    return figure


def report_partition(config: Config, out: str | Path) -> str:
    """Describe the partition of a configuration; write its picture and page to `out`."""
    held = make_holdings(config, FederatedData(config))
    data = config.data
    stem = f"partition-{data.name}-{data.partition}-c{held.num_clients}-s{config.seed}"
    path = save(plot_holdings(held), Path(out) / f"{stem}.png")
    rows = [*_rows(held), _total(held)]
    table = Table("partition", "What each client holds", _header(held), rows, _lines(held))
    picture = Picture("Who holds how much of what", path)
    page = write_page(Page(held.name, parts=[table, picture]), Path(out), stem)
    return f"{describe_holdings(held)}\npicture: {path}\nreport: {page}"
