"""Draw the wings of the package and what imports what: `python docs/architecture.py`.

Wings lie in the layers of the import contract (setup.cfg). Every import between two wings is read
from the sources and has to point down; what follows from other arrows is not drawn. Writes
docs/img/architecture.svg.
"""

from __future__ import annotations

import configparser
from collections.abc import Iterator
from html import escape
from pathlib import Path

import grimp
import networkx

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "img" / "architecture.svg"
PACKAGE = "fedgmr_hpc"
WIDTH, ROW, BOX_WIDTH, BOX_HEIGHT = 960, 84, 138, 40
STYLE = (
    "text{font:14px sans-serif;fill:#1a1a1a;text-anchor:middle}"
    "rect{fill:#eef3f8;stroke:#3b6a96;rx:5}"
    "path{fill:none;stroke:#5b7f9e;stroke-width:1.2;marker-end:url(#head)}"
)
HEAD = (
    '<marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
    '<path d="M1,1 L7,4 L1,7" style="fill:none;stroke:#5b7f9e;marker-end:none"/></marker>'
)


def read_layers() -> list[list[str]]:
    """Read the layers of the import contract, the highest first, as lists of wings."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    lines = settings["importlinter:contract:layers"]["layers"].split("\n")
    return [[wing.strip() for wing in line.split("|")] for line in lines if line.strip()]


def read_imports() -> networkx.DiGraph:
    """Read which wing imports which: an edge from the importing one to the imported one."""
    graph, wings = grimp.build_graph(PACKAGE), {wing for layer in read_layers() for wing in layer}
    between = networkx.DiGraph()
    between.add_nodes_from(wings)
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            ends = [name.split(".")[1] if "." in name else "" for name in (module, imported)]
            if ends[0] != ends[1] and wings.issuperset(ends):
                between.add_edge(*ends)
    return between


def upward(layers: list[list[str]], imports: networkx.DiGraph) -> list[tuple[str, str]]:
    """Find imports that do not point to a lower layer."""
    depth = {wing: row for row, layer in enumerate(layers) for wing in layer}
    return sorted((above, below) for above, below in imports.edges if depth[above] >= depth[below])


def draw(layers: list[list[str]], imports: networkx.DiGraph) -> str:
    """Draw the picture as SVG: a row of boxes a layer, an arrow an import."""
    centres = dict(place for row, layer in enumerate(layers) for place in _row(row, layer))
    height = ROW * len(layers)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Wings of the package; arrows point from a wing to what it imports</title>",
        f"<style>{STYLE}</style><defs>{HEAD}</defs>",
        f'<rect width="{WIDTH}" height="{height}" style="fill:#fff;stroke:none"/>',
    ]
    drawn = networkx.transitive_reduction(imports).edges
    parts += [_arrow(centres[above], centres[below]) for above, below in sorted(drawn)]
    parts += [_box(wing, *centre) for wing, centre in centres.items()]
    return "\n".join([*parts, "</svg>", ""])


def _row(row: int, layer: list[str]) -> Iterator[tuple[str, tuple[float, float]]]:
    for place, wing in enumerate(layer, 1):
        yield wing, (WIDTH * place / (len(layer) + 1), ROW * (row + 0.5))


def _box(wing: str, x: float, y: float) -> str:
    corner = f'x="{x - BOX_WIDTH / 2:g}" y="{y - BOX_HEIGHT / 2:g}"'
    return (
        f'<rect {corner} width="{BOX_WIDTH}" height="{BOX_HEIGHT}"/>'
        f'<text x="{x:g}" y="{y + 5:g}">{escape(wing)}</text>'
    )


def _arrow(above: tuple[float, float], below: tuple[float, float]) -> str:
    (x0, y0), (x1, y1) = above, below
    y0, y1 = y0 + BOX_HEIGHT / 2, y1 - BOX_HEIGHT / 2
    bend = (y1 - y0) / 2
    return f'<path d="M{x0:g},{y0:g} C{x0:g},{y0 + bend:g} {x1:g},{y1 - bend:g} {x1:g},{y1:g}"/>'


if __name__ == "__main__":
    found = read_imports()
    PICTURE.write_text(draw(read_layers(), found))
    print(f"{PICTURE}: {found.number_of_edges()} imports between wings, all downward")
