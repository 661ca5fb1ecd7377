"""The code of the page on extending runs as it is pasted: it registers what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgmr_hpc.config.choices import plugins
from fedgmr_hpc.config.choices.registry import REGISTRIES

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "extending.md").read_text()
IMPORTS, *SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NAMES = re.findall(r"register_(\w+)\(\"(\w+)\"", "".join(SNIPPETS))


@pytest.fixture(autouse=True)
def _no_plugins() -> Iterator[None]:
    """Forget what a test has loaded."""
    yield
    for registry in REGISTRIES:
        registry.forget("pasted")
    plugins._loaded.clear()


@pytest.mark.parametrize(("snippet", "named"), [*zip(SNIPPETS, NAMES, strict=True)])
def test_a_snippet_registers_its_choice(
    snippet: str, named: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "pasted.py").write_text(IMPORTS + "\n\n" + snippet)
    plugins.load_plugins([str(tmp_path / "pasted.py")])
    names = [name for registry in REGISTRIES for name in registry.origins]
    assert names == [named[1]]


def test_every_kind_of_choice_has_a_snippet() -> None:
    assert len({kind for kind, _ in NAMES}) == len(REGISTRIES)
