"""Build the compiled kernels in place: `python -m fedgmr_hpc.training.kernels.build`.

The compiler is $CC, else cc, gcc or clang, else the one in the package `ziglang`. Every source with
lanes or long loops is compiled once for each instruction set of the machine's architecture; the
library picks one where it runs, so it may be built on one node and used on another. Installing the
package runs this (hatch_build.py), so nothing but the standard library is imported here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "kernels.so"
WITH_LANES = ("conv.c", "linear.c")
VECTORISED = ("pool.c",)  # by the compiler, for each instruction set, too
PLAIN = ("cpu.c", "embedding.c")
# No flag may let a compiler change the arithmetic: contraction is on by default in gcc and clang.
FLAGS = ("-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off")
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx512": ("-DUSE_AVX512", "-mavx512f", "-mfma"),
        "avx2": ("-DUSE_AVX2", "-mavx2", "-mfma"),
        "plain": (),
    },
    "aarch64": {"neon": ("-DUSE_NEON",), "plain": ()},
}


def hash_sources() -> str:
    """Return what tells whether a library was built from the sources that lie here, as here."""
    digest = hashlib.sha256(repr((FLAGS, VARIANTS)).encode())
    for path in sorted([*FOLDER.glob("*.c"), *FOLDER.glob("*.h")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def find_compiler() -> list[str] | None:
    """Return the command of a C compiler; None if there is none.

    $CC is the last word where it is set, even if it does not run.
    """
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    return [sys.executable, "-m", "ziglang", "cc"] if importlib.util.find_spec("ziglang") else None


def build(compiler: Sequence[str], library: Path = LIBRARY, machine: str = "") -> None:
    """Compile all sources into the library, which appears whole or not at all.

    Args:
        compiler: its command.
        library: what to write.
        machine: architecture to build for; by default this one.

    Raises:
        subprocess.CalledProcessError: the compiler gave up; its words are in `stderr`.
        OSError: it cannot be run.
    """
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as folder:
        objects = [
            _compile(compiler, source, Path(folder), name, flags)
            for source, name, flags in _units(machine or platform.machine())
        ]
        made = Path(folder, library.name)
        _run([*compiler, "-shared", "-o", str(made), *map(str, objects), "-lm"])
        made.replace(library)


def _units(machine: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """List every compilation: source, name of its object, flags."""
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    units = [
        (source, f"{source}.{variant}", (f"-DVARIANT={variant}", *flags))
        for variant, flags in VARIANTS.get(machine, {"plain": ()}).items()
        for source in (*WITH_LANES, *VECTORISED)
    ]
    return units + [(source, source, (f'-DSOURCES="{hash_sources()}"',)) for source in PLAIN]


def _compile(
    compiler: Sequence[str], source: str, folder: Path, name: str, flags: tuple[str, ...]
) -> Path:
    out = folder / f"{name}.o"
    optimised = ("-O3",) if source in VECTORISED else ()
    _run([*compiler, *FLAGS, *optimised, *flags, "-c", str(FOLDER / source), "-o", str(out)])
    return out


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def is_built() -> bool:
    """Tell whether the library in place was built from these sources."""
    return LIBRARY.exists() and hash_sources().encode() in LIBRARY.read_bytes()


def try_build() -> str:
    """Build in place; return one line that says what came of it."""
    without = "kernels not compiled, compact training will use torch: "
    compiler = find_compiler()
    if compiler is None:
        return without + "no C compiler (set CC, or install ziglang)"
    try:
        build(compiler)
    except (OSError, subprocess.CalledProcessError) as error:
        words = getattr(error, "stderr", str(error)).strip().splitlines()
        return f"{without}{shlex.join(compiler)}: {words[0] if words else 'it failed'}"
    return f"kernels compiled by {shlex.join(compiler)}: {LIBRARY}"


if __name__ == "__main__":
    print(try_build())
    raise SystemExit(0 if is_built() else 1)
