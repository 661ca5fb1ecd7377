"""The drawn architecture is the one of the sources."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import networkx
import pytest

SCRIPT = Path(__file__).parents[3] / "docs" / "architecture.py"


@pytest.fixture(scope="module")
def architecture():
    spec = importlib.util.spec_from_file_location("architecture", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_import_between_wings_points_down(architecture) -> None:
    imports = architecture.read_imports()
    assert imports.number_of_edges() > 60
    assert architecture.upward(architecture.read_layers(), imports) == []


def test_an_import_upward_is_found(architecture) -> None:
    imports = networkx.DiGraph([("fl", "runtime"), ("runtime", "fl"), ("fl", "network")])
    found = architecture.upward(architecture.read_layers(), imports)
    assert found == [("fl", "network"), ("fl", "runtime")]


def test_the_picture_is_drawn_from_these_sources(architecture) -> None:
    drawn = architecture.draw(architecture.read_layers(), architecture.read_imports())
    assert architecture.PICTURE.read_text() == drawn, "run python docs/architecture.py"
