"""Shared by all tests: recorded numbers of the published implementations, one thread, a browser."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny models run faster without threads that wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory) -> Iterator[None]:
    """No test reads or writes what is kept in the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], dict[str, torch.Tensor]]:
    """`recorded("knn")`: the arrays of tests/reference/knn.npz as tensors."""

    def load(name: str) -> dict[str, torch.Tensor]:
        with np.load(ROOT / "tests" / "reference" / f"{name}.npz") as file:
            return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}

    return load


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A headless Chromium with a profile of its own, for all tests of a file."""
    browser, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (browser and driver):
        if os.environ.get("REGARD_REQUIRE_BROWSER"):  # CI: a page that nobody looked at has not been tested
            pytest.fail("chromium and chromedriver are required here, and are not on the PATH")
        pytest.skip("needs chromium (or google-chrome) and chromedriver on the PATH")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (regard[dev])")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    quiet = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
    profile = tmp_path_factory.mktemp("chromium")
    for flag in ("headless=new", *quiet.split(), "disable-sync", f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    page = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    page.set_window_size(1280, 1000)
    try:
        yield page
    finally:
        page.quit()
