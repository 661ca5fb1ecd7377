"""The layers of the package, read from the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import fedgmr_hpc

ROOT = Path(fedgmr_hpc.__file__).parent
PACKAGE = ROOT.name
RUNTIME = ("server", "worker", "rankpool", "ledger", "comm", "fl")  # what study never reaches into
OWNERS = {  # module: the only files or folders that import it
    "mpi4py": ("comm/mpi.py",),
    "torch.distributed": ("comm/torchdist.py", "comm/nccl.py"),
    "h5py": (
        *("store.py", "schema.py", "result.py", "hdf5file.py", "resultfiles.py"),
        *("blankfile.py", "tablefile.py", "salvage.py", "tffclients.py", "data/"),
    ),
    "PIL": ("data/",),
    "submitit": ("study/",),
    "matplotlib": ("study/",),
    "pickle": ("data/formats.py",),
}
ALLOWED_INSIDE = {
    "fl/": ("records", "axes", "config", "fl"),
    "comm/": ("records", "config", "comm"),
}


def absolute(node: ast.ImportFrom, path: Path) -> str:
    if not node.level:
        return node.module or ""
    parents = [PACKAGE, *path.relative_to(ROOT).parent.parts]
    kept = parents[: len(parents) - node.level + 1]
    return ".".join([*kept, *([node.module] if node.module else [])])


def imported(path: Path) -> Iterator[str]:
    """Every module a file imports, at its top or anywhere inside, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, path)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func):
            yield from (str(arg.value) for arg in node.args if isinstance(arg, ast.Constant))


def is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def offences() -> Iterator[str]:
    for path in sorted(ROOT.rglob("*.py")):
        place, names = path.relative_to(ROOT).as_posix(), set(imported(path))
        for module, owners in OWNERS.items():
            if any(is_within(n, module) for n in names) and not place.startswith(owners):
                yield f"{place} imports {module}"
        own = {n.split(".")[1] for n in names if n.startswith(PACKAGE + ".")}
        for folder, allowed in ALLOWED_INSIDE.items():
            if place.startswith(folder):
                yield from (f"{place} imports {inner}" for inner in own - set(allowed))
        if place.startswith("study/"):
            yield from (f"{place} imports {inner}" for inner in own & set(RUNTIME))


def test_layer_rules():
    assert {p.parent.name for p in ROOT.rglob("*.py")} >= {PACKAGE, "fl", "comm", "data", "study"}
    assert list(offences()) == []
