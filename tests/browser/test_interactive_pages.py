"""Interactive pages in a real browser, opened from their files."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedgmr_hpc.reporting.interactive import Chart, Curve, LivePage, write_interactive
from fedgmr_hpc.results.interactive.curves import columns

DEADLINE_S = 60.0
# The place of a point in the window, in pixels.
PLACE = """
const [x, y] = arguments, plot = document.getElementById("plot");
const box = plot.getBoundingClientRect();
const axes = plot._fullLayout, at = (axis, value) => axis._offset + axis.d2p(value);
return [box.left + at(axes.xaxis, x), box.top + at(axes.yaxis, y)];
"""


def run(method: str, seed: int, test: list[float]) -> Curve:
    values = {
        "time_s": [0.0, 10.0, 20.0],
        "traffic_mb": [0.0, 3.0, 6.0],
        "test": test,
        "test_error": [100 - each for each in test],
        "density": [0.25, 0.5, 1.0],
    }
    return Curve(f"{method}-{seed}.h5", method, "high", str(seed), "finished", values)


RUNS = [
    *(run("fedgmr", 1, [10, 50, 80]), run("fedgmr", 2, [10, 60, 90])),
    *(run("<b>mine", 1, [10, 30, 40]), run("fedavg", 1, [10, 20, 30])),
]


def chart(**changes: Any) -> Chart:
    given = {"columns": columns([{}]), "curves": RUNS, "titles": {"fedavg": "FedAvg"}, **changes}
    return Chart("Four runs", **given)


@pytest.fixture
def open_page(driver: Any) -> Any:
    """Opens a page; no page may have said anything on the console when the test ends."""

    def open_file(path: Path) -> Any:
        driver.get("about:blank")
        driver.get(path.as_uri())
        return driver

    driver.get_log("browser")  # forgets what was there before
    yield open_file
    assert driver.get_log("browser") == []


def until(condition: Callable[[], Any]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, "nothing has changed"
        time.sleep(0.05)


def traces(driver: Any) -> dict[str, list[float]]:
    """Return the values along y of each trace but bands, by the names."""
    script = """return document.getElementById("plot").data
        .filter((t) => !t.fill).map((t) => [t.name + "/" + t.text[0], t.x, t.y])"""
    return {name.partition("/")[0]: [x, y] for name, x, y in driver.execute_script(script)}


def choose(driver: Any, control: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(driver.find_element("id", control)).select_by_value(value)


def titles(driver: Any) -> list[str]:
    script = (
        """return [...document.querySelectorAll(".xtitle, .ytitle")].map((t) => t.textContent)"""
    )
    return driver.execute_script(script)


def point_at(driver: Any, x: float, y: float) -> str:
    """Return what is read at a point."""
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    left, top = driver.execute_script(PLACE, x, y)
    actions = ActionBuilder(driver)
    for beside in (20, 0):
        actions.pointer_action.move_to_location(round(left) + beside, round(top))
    actions.perform()
    until(lambda: driver.find_elements("css selector", ".hoverlayer .hovertext"))
    return driver.execute_script(
        "return [...document.querySelectorAll('.hovertext tspan.line')]"
        ".map((t) => t.textContent).join('; ')"
    )


def test_points_axes_and_methods(open_page: Any, tmp_path: Path) -> None:
    driver = open_page(write_interactive(chart(), tmp_path / "interactive.html"))
    assert titles(driver) == ["virtual time (s)", "test accuracy (%, log scale of the error)"]
    assert traces(driver)["fedgmr"] == [[0, 10, 20], [90, 45, 15]]
    said = "fedgmr, mean of 2 runs, seeds 1, 2; virtual time 10 s; test accuracy 55 % (50 to 60)"
    assert point_at(driver, 10, 45) == said
    driver.find_element("id", "logy").click()
    assert titles(driver)[1] == "test accuracy (%)"
    assert traces(driver)["fedgmr"] == [[0, 10, 20], [10, 55, 85]]
    choose(driver, "seeds", "each")
    assert point_at(driver, 20, 40) == (
        "<b>mine, seed 1, finished; <b>mine-1.h5; virtual time 20 s; traffic 6 MB; "
        "test accuracy 40 %; mean density 1"
    )
    choose(driver, "x", "traffic_mb")
    choose(driver, "y", "test_error")
    assert titles(driver) == ["traffic (MB)", "test error (%)"]
    assert traces(driver)["fedavg"] == [[0, 3, 6], [90, 80, 70]]
    assert (
        driver.execute_script("return document.getElementById('plot').layout.yaxis.type") == "log"
    )
    (label,) = (x for x in driver.find_elements("css selector", "#keys label") if "Avg" in x.text)
    label.click()
    assert set(traces(driver)) == {"fedgmr", "<b>mine"}
    driver.find_element("id", "none").click()
    assert traces(driver) == {}
    driver.find_element("id", "all").click()
    assert len(traces(driver)) == 3


def test_nothing_is_loaded_or_sent(open_page: Any, tmp_path: Path) -> None:
    driver = open_page(write_interactive(chart(), tmp_path / "interactive.html"))
    loaded = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert driver.execute_script(loaded) == []
    buttons = "return [...document.querySelectorAll('.modebar-btn')].map((b) => b.dataset.title)"
    assert "Share chart..." not in driver.execute_script(buttons)
    refused = "return fetch('https://example.org/').then(() => 'sent', () => 'refused')"
    assert driver.execute_script(refused) == "refused"
    assert "Content Security Policy" in driver.get_log("browser")[0]["message"]


def test_a_narrow_window_shows_all_of_the_page(open_page: Any, tmp_path: Path) -> None:
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    driver = open_page(write_interactive(chart(), tmp_path / "interactive.html"))
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        fits = "const d = document.documentElement; return d.scrollWidth <= d.clientWidth"
        until(lambda: driver.execute_script(f"{fits} && innerWidth === 400"))
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_live_page_takes_in_what_is_new_and_keeps_what_was_chosen(
    open_page: Any, tmp_path: Path
) -> None:
    live = LivePage(tmp_path, "Runs", every_s=1)
    live.update(chart(curves=[], columns=[]), goes_on=True)
    driver = open_page(live.path)
    assert traces(driver) == {}
    live.update(chart(heads=["run"], rows=[["a"]]), goes_on=True)
    until(lambda: len(traces(driver)) == 3)
    choose(driver, "x", "traffic_mb")
    driver.find_element("css selector", "#keys input[value=fedavg]").click()
    driver.refresh()
    until(lambda: set(traces(driver)) == {"fedgmr", "<b>mine"})
    live.update(chart(curves=[*RUNS, run("fjord", 1, [1, 2, 3])]), goes_on=False)
    until(lambda: len(traces(driver)) == 3)
    assert "fedavg" not in traces(driver) and titles(driver)[0] == "traffic (MB)"
    assert driver.find_element("id", "written").text.endswith("; nothing more will come.")
    assert driver.execute_script("return timer") is None
