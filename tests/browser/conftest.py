"""A headless Chromium for the tests of this folder, with a window of 1280 by 800 pixels."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

INSTALL = "FEDGMR_INSTALL_CHROMIUM"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium", "chromium-driver")
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    """The browser; skips, naming the reason, where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    pytest.importorskip("plotly", reason="needs the extra `interactive`")
    if reason := why_not():
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = _found(BROWSERS)
    for option in (*OPTIONS, "--window-size=1280,800"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(_found(["chromedriver"]))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def why_not() -> str:
    """Why no page can be opened here; "" where one can.

    With FEDGMR_INSTALL_CHROMIUM=1 in the environment, root has apt install what is missing.
    """
    missing, said = _missing(), f"{INSTALL}=1 lets apt install them"
    if missing and os.environ.get(INSTALL) == "1" and shutil.which("apt-get"):
        said = _install()
        missing = _missing()
    return f"no browser here: {', '.join(missing)} not found; {said}" if missing else ""


def _found(names: Any) -> str:
    return next(filter(None, map(shutil.which, names)), "")


def _missing() -> list[str]:
    wanted = {"chromium": BROWSERS, "chromedriver": ("chromedriver",)}
    return [name for name, programs in wanted.items() if not _found(programs)]


def _install() -> str:
    """What apt said last."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    wait = ["-o", "Acquire::http::Timeout=20", "-o", "DPkg::Lock::Timeout=120"]
    install = ["apt-get", *wait, "install", "-y", "--no-install-recommends", *PACKAGES]
    last = ""
    for command in (install, ["apt-get", *wait, "update"], install):
        if _missing():
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            last = f"{done.stdout}{done.stderr}".strip().rpartition("\n")[2]
    return last
