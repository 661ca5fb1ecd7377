"""The build of the compiled kernels: which compiler, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedgmr_hpc.training.kernels import build, library


def test_a_named_compiler_is_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "ccache gcc-12")
    assert build.find_compiler() == ["ccache", "gcc-12"]


def test_without_any_compiler_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    assert "no C compiler" in build.try_build()


@pytest.mark.parametrize("compiler", ["false", "/no/such/compiler"])
def test_a_compiler_that_fails_leaves_no_library(
    compiler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr(build.build, "__defaults__", (tmp_path / "kernels.so", ""))
    said = build.try_build()
    assert said.startswith("kernels not compiled") and len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_library_of_other_sources_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not build.is_built():
        pytest.skip("the kernels are not compiled (make kernels)")
    monkeypatch.setattr(library, "hash_sources", lambda: "another")
    assert library.load.__wrapped__() is None
    monkeypatch.setattr(build, "LIBRARY", tmp_path / "none.so")
    assert not build.is_built()


def test_every_unit_of_an_architecture_is_compiled_once() -> None:
    for machine in ("x86_64", "arm64", "riscv64"):
        names = [name for _, name, _ in build._units(machine)]
        assert len(names) == len(set(names)) and "linear.c.plain" in names
