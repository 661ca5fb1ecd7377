"""The figures of a study: a panel a condition, a curve a method, all in the order of accuracy.

More methods than a reader tells apart are parted by what they are to the reference, which is in
every part: other methods, variants of the reference itself, and rows under a wrapper, such as
heterofl+aux, with the row that they wrap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fedgmr_hpc.config.methods import WRAPPER_SIGN, load_method
from fedgmr_hpc.reporting.figures import file_name, save, style_of
from fedgmr_hpc.reporting.pages import Picture
from fedgmr_hpc.results.client_plots import draw_submodels, with_submodels
from fedgmr_hpc.results.labels import Rows
from fedgmr_hpc.results.plots import COURSES, draw_course
from fedgmr_hpc.results.series import Run

MAX_LINES = 10
OTHERS, VARIANTS, WRAPPED = "other methods", "variants", "wrapped methods"
SUBMODELS = "Accuracy of the clients' own sub-models beside that of the whole model"


@dataclass(frozen=True)
class Drawing:
    """A figure, and what it is called on a page and on disk."""

    stem: str
    title: str
    figure: Figure


def write_figures(
    runs: Sequence[Run],
    rows: Rows,
    reference: str | None,
    folder: Path,
    formats: Sequence[str] = ("png", "pdf"),
    sizes: Sequence[str] = ("page",),
) -> list[Picture]:
    """Write all figures; return those of the page, which are there in any case as PNG.

    Raises:
        OSError: `folder` cannot be written.
    """
    pictures = []
    for size in dict.fromkeys(("page", *sizes)):
        with style_of(size):
            for drawing in draw(runs, rows, reference):
                stem = folder / file_name(drawing.stem, size)
                paths = [stem.with_suffix(f".{form}") for form in dict.fromkeys(("png", *formats))]
                path = save(drawing.figure, *paths)
                pictures += [Picture(drawing.title, path)] if size == "page" else []
    return pictures


def draw(runs: Sequence[Run], rows: Rows, reference: str | None) -> Iterator[Drawing]:
    """Yield every figure that has something to show, in the style that is set."""
    parts = parts_of(runs, rows.order, reference)
    for course in COURSES:
        for name, part in parts.items():
            known = [
                run for run in runs if run.row in part and np.isfinite(getattr(run, course.y)).any()
            ]
            if known:
                figure = draw_course(known, course, replace(rows, order=part))
                yield Drawing(course.name + _ending(name), _titled(course.title, name), figure)
    if shown := with_submodels(runs, rows):
        yield Drawing("submodels", SUBMODELS, draw_submodels(shown, rows))


def _ending(name: str) -> str:
    return f"_{name.replace(' ', '_')}" if name else ""


def _titled(title: str, name: str) -> str:
    return f"{title}: {name}" if name else title


def parts_of(
    runs: Sequence[Run], order: Sequence[str], reference: str | None
) -> dict[str, list[str]]:
    """Return the rows of each figure by what they are, in their order; all where they are few."""
    if len(order) <= MAX_LINES:
        return {"": list(order)}
    methods = {run.row: str(run.labels.get("method", run.row)) for run in runs}
    basis = methods.get(reference or "")
    kinds: dict[str, set[str]] = {OTHERS: set(), VARIANTS: set(), WRAPPED: set()}
    for row in order:
        kinds[_kind(methods[row], basis)].add(row)
    bare = {methods[row].partition(WRAPPER_SIGN)[0] for row in kinds[WRAPPED]}
    kinds[WRAPPED] |= {row for row in kinds[OTHERS] if methods[row] in bare} if bare else set()
    parts = {}
    for name, kind in kinds.items():
        rows = [row for row in order if row in kind and row != reference]
        chunks = [rows[i : i + MAX_LINES - 1] for i in range(0, len(rows), MAX_LINES - 1)]
        for number, chunk in enumerate(chunks, 1):
            part = [row for row in order if row in chunk or row == reference]
            parts[name if len(chunks) == 1 else f"{name} {number}"] = part
    return parts


def _kind(method: str, basis: str | None) -> str:
    """Return what a method is to the one that all are compared with."""
    if WRAPPER_SIGN in method:
        return WRAPPED
    try:
        made_of = load_method(method).made_of
    except ValueError:  # a row of the study's own, or of another checkout
        return OTHERS
    return VARIANTS if basis in made_of else OTHERS
