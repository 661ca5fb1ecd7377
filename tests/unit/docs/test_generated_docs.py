"""Pages of docs/ agree with the code that they describe."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from fedgmr_hpc.wire.frames import HEADER

DOCS = Path(__file__).resolve().parents[3] / "docs"


def _load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generator = _load_generator()


@pytest.mark.parametrize("name", generator.PARTS)
def test_a_generated_page_is_up_to_date(name: str) -> None:
    assert generator.render(name) == (DOCS / name).read_text(), "run `python docs/generate.py`"


def test_every_table_of_a_result_is_described() -> None:
    assert set(generator.TABLE_NOTES) == {*generator.TABLES, "ranks"}


def test_the_header_on_the_page_is_that_of_frames() -> None:
    codes = {"4s": "4s", "u8": "B", "i32": "i", "u32": "I", "i64": "q", "u64": "Q", "f64": "d"}
    rows = re.findall(
        r"^\| (\d+) \| (\d+) \| `?(\w+)`? \|", (DOCS / "wire-format.md").read_text(), re.M
    )
    assert "<" + "".join(codes[kind] for *_, kind in rows) == re.sub(
        r"(\d+)([BQ]|i|d)", lambda found: int(found[1]) * found[2], HEADER.format
    )
    ends = [int(offset) + int(size) for offset, size, _ in rows]
    assert [0, *ends] == [*(int(offset) for offset, *_ in rows), HEADER.size]
