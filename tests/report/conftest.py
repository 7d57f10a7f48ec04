"""A real browser that looks at reports. It is Debian's Chromium; tests/run.sh installs it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By

from apfs.report.page import page
from tests.tools.conftest import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from selenium.webdriver.remote.webelement import WebElement

SCREENSHOTS = os.environ.get("APFS_SCREENSHOTS")
"""Directory for the pictures in the documentation; without one none are made."""
_OPTIONS = (
    *("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--disable-breakpad", "--no-proxy-server"),
    *("--window-size=1280,900", "--force-device-scale-factor=1", "--hide-scrollbars", "--lang=en"),
)


class Browser:
    """A browser, and what a user does with a report in it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, file: Path) -> None:
        """Look at a page from a file."""
        self.driver.get("about:blank")
        self.driver.get(file.as_uri())

    def find(self, selector: str) -> WebElement:
        """Return the first element of a CSS selector."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """Return the texts of all elements of a CSS selector as a user sees them, each on one line."""
        script = "return [...document.querySelectorAll(arguments[0])].map((element) => element.innerText)"
        return [" ".join(text.split()) for text in self.driver.execute_script(script, selector)]

    def text(self, selector: str) -> str:
        """Return the text of the first of them."""
        return self.texts(selector)[0]

    def press(self, *keys: str, on: str = "body") -> None:
        """Press keys, one after the other, while an element has the focus."""
        self.driver.execute_script("arguments[0].focus()", self.find(on))
        self.driver.switch_to.active_element.send_keys(*keys)

    def point(self, selector: str, x: int, y: int, *, click: bool = False) -> None:
        """Move the pointer into an element, to a place from its top left corner, and perhaps click there."""
        place = self.find(selector).rect  # the page is not scrolled in any test, so this is where it is in the window
        actions = ActionBuilder(self.driver)
        actions.pointer_action.move_to_location(int(place["x"]) + x, int(place["y"]) + y)  # type: ignore[no-untyped-call]
        if click:
            actions.pointer_action.click()
        actions.perform()

    def run(self, script: str) -> Any:  # noqa: ANN401 -- as JavaScript has it
        """Return the value of a script, which the page's policy does not hold back."""
        return self.driver.execute_script(script)

    def complaints(self) -> list[str]:
        """Return errors and warnings since the last call: of the script, of the policy, of requests."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def emulate(self, media: str = "", **features: str) -> None:
        """Look at the page as on paper (`print`), or with features such as a dark colour scheme."""
        wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": wanted})

    def screenshot(self, name: str) -> None:
        """Take a picture for the documentation, if pictures are wanted."""
        if SCREENSHOTS:
            self.driver.save_screenshot(str(Path(SCREENSHOTS) / f"{name}.png"))


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start the browser once: that takes a second or two."""
    if platform.freedesktop_os_release()["ID"] != "debian":
        pytest.skip("Chromium is Debian's; Ubuntu has it as a snap only, which cannot read files of tests")
    need("chromium", "chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for option in (*_OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(option)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # it refuses to be root with it
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture
def show(chromium: Browser, tmp_path: Path) -> Iterator[Callable[..., Browser]]:
    """Return a function that shows stories to the browser; at the end nothing may have gone wrong there."""

    def shown(*stories: dict[str, Any], title: str = "report") -> Browser:
        file = tmp_path / "report.html"
        file.write_text(page(stories, title), "utf-8")
        chromium.open(file)
        return chromium

    yield shown
    chromium.emulate()
    assert chromium.complaints() == []
