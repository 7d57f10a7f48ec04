"""Reports in a real browser: what is clicked, pressed and read there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from selenium.webdriver.common.keys import Keys

from tests.report.stories import FIRST, MARKUP, MDEVS, SECOND, THIRD, a_day, told
from tests.report.test_picture import patched
from tests.report.test_story import migrated, stories_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs import Shell
    from tests.report.conftest import Browser

    Show = Callable[..., Browser]

NOW, LEGEND, READOUT, MATRIX = ".now", ".legend li", ".readout", ".box canvas"


def test_time_moves_the_matrix(show: Show) -> None:
    browser = show(told("kernel-doc", a_day), title="kernel-doc")
    assert browser.text("#counter") == "moment 11 of 11"
    browser.find("[title^='the beginning']").click()
    assert browser.text("#counter") == "moment 0 of 11"
    assert "it was when its journal began" in browser.text(NOW)
    assert "vfio_ap, free 1" in browser.texts(LEGEND)
    assert "assigned, no guest runs (device 1) 4" in browser.texts(LEGEND)
    browser.press(Keys.ARROW_RIGHT * 3)
    assert browser.text("#counter") == "moment 3 of 11"
    assert "guest ← 1" in browser.text(NOW)
    assert "4 queues: assigned, no guest runs (device 1) → in a guest (device 1)" in browser.texts(".moves li")
    assert "in a guest (device 1) 4" in browser.texts(LEGEND)
    browser.press("r")
    assert f"EADDRINUSE: queue 06.0047 is assigned to {THIRD}" in browser.text(".now .refused")
    assert browser.texts(".row[aria-selected=true]") == ["7 EADDRINUSE assign_adapter ← 6"]
    browser.screenshot("report")
    browser.press(Keys.END)
    assert "vfio_ap, free 4" in browser.texts(LEGEND)
    browser.press(Keys.ARROW_LEFT, on="input[type=range]")
    assert browser.text("#counter") == "moment 10 of 11"
    assert browser.run("return location.hash") == "#10"


def test_a_queue_is_read_by_keys_and_by_pointer(show: Show) -> None:
    browser = show(told("kernel-doc", a_day))
    browser.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.END, on=MATRIX)
    assert browser.text(READOUT) == (
        f"06.00ff assigned, but filtered out: device 3, {THIRD}; not passed to the guest: 06.00ff without a driver; "
        "check-stopped; not reserved by apmask and aqmask; card CEX5A accel, offline, check-stopped"
    )
    browser.press(Keys.HOME, Keys.ARROW_UP, on=MATRIX)
    assert browser.text(READOUT).startswith("05.0004 assigned, no guest runs: device 1, ")
    browser.press("1", Keys.ESCAPE, on=MATRIX)
    assert browser.text(READOUT).startswith("Point at a queue")
    browser.point(MATRIX, 34 + 38 + 19, 24 + 19)
    assert browser.text(READOUT).startswith(f"05.0047 assigned, no guest runs: device 2, {SECOND}")
    browser.find(".device:nth-of-type(2) button").click()
    assert browser.find(".device:nth-of-type(2) button").get_attribute("aria-pressed") == "true"


def test_steps_are_searched_and_chosen(show: Show) -> None:
    browser = show(told("kernel-doc", a_day))
    browser.press("/")
    browser.driver.switch_to.active_element.send_keys("apmask")
    assert browser.texts(".row .text") == ["apmask ← -5"]
    browser.point(".list", 100, 15, click=True)
    assert browser.text("#counter") == "moment 5 of 11"
    assert "reserved" not in browser.text(NOW)
    assert "moved" in browser.run("return document.querySelector('tr.moved').className")
    browser.press(Keys.BACKSPACE * 6, on="input[type=search]")
    browser.find("option[value=refusal]").click()
    assert [text.split()[1] for text in browser.texts(".row")] == ["EADDRINUSE", "EINVAL"]
    browser.press(Keys.ARROW_DOWN, on=".list")
    assert "EINVAL" in browser.text(".now .refused")


def test_texts_of_hosts_are_inert(show: Show) -> None:
    browser = show(told("kernel-doc", a_day), title=MARKUP)
    assert browser.text("h1") == MARKUP
    browser.press("R")
    assert MARKUP in browser.text(".now .what")
    assert browser.run("return document.scripts.length") == 2
    # What is not in the page itself does not run, nor is anything loaded.
    browser.run("const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.head.append(s)")
    assert browser.run("return window.ran === undefined")
    browser.run("document.body.append(Object.assign(new Image(), { src: 'http://127.0.0.1:9/x.png' }))")
    refused = browser.complaints()
    assert len(refused) == 2
    assert all("Content Security Policy" in text for text in refused)


def half(shell: Shell) -> None:
    """Take half of the queues from zcrypt."""
    shell.echo("-0x80-0xff", "/sys/bus/ap/aqmask")


def test_65536_queues(show: Show) -> None:
    browser = show(told("largest", half))
    assert browser.texts(LEGEND) == ["zcrypt 32,768", "vfio_ap, free 32,768"]
    assert browser.texts(".moves li") == ["32,768 queues: zcrypt → vfio_ap, free"]
    assert "and 65,4" in browser.text(NOW)
    browser.screenshot("report-largest")
    small = browser.find(".size").size["width"]
    browser.press("+", "+", Keys.PAGE_DOWN, Keys.END, Keys.PAGE_DOWN, on=MATRIX)
    assert browser.find(".size").size["width"] > 2 * small
    assert browser.text(READOUT).startswith("10.00ff vfio_ap, free; not reserved by apmask and aqmask")
    assert browser.find(MATRIX).size["width"] <= browser.find(".box").size["width"]


def test_all_domains_fit_into_the_window(show: Show) -> None:
    browser = show(told("largest", half))
    right = browser.find(MATRIX).size["width"] - 2
    browser.point(MATRIX, right, 60)
    assert browser.text(READOUT).split()[0].endswith(".00ff")
    assert browser.run("return document.querySelector('.box').scrollLeft") == 0


PRINTED = """
addEventListener("beforeprint", () => {
  const canvas = document.querySelector(".box canvas"), { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const at = (right, down) => (Math.round(height * down) * width + Math.round(width * right)) * 4;
  window.drawn = {
    cells: [at(0.4, 0.4), at(0.4, 0.6), at(0.6, 0.4), at(0.99, 0.99)].map((start) => [...data.slice(start, start + 4)]),
    steps: document.querySelectorAll(".print-only tr").length,
  };
});
"""


def quarter(shell: Shell) -> None:
    """Leave a quarter of the queues to zcrypt."""
    shell.echo("-0x80-0xff", "/sys/bus/ap/apmask")
    half(shell)


def test_a_large_matrix_is_printed_as_a_whole(show: Show) -> None:
    browser = show(told("largest", quarter))
    browser.press("+", on=MATRIX)
    width = "return document.querySelector('.box canvas').width"
    before = browser.run(width)
    browser.run(PRINTED)
    browser.driver.execute_cdp_cmd("Page.printToPDF", {})
    drawn = browser.run("return window.drawn")
    zcrypt, free = [0x6B, 0x7A, 0x8D, 255], [0xD3, 0xEF, 0xDC, 255]
    assert drawn["cells"] == [zcrypt, free, free, free]
    assert drawn["steps"] == 2
    assert browser.run(width) == before


def many(shell: Shell) -> None:
    """Make 300 mediated devices, of which two have queues."""
    for number in range(300):
        shell.echo(f"{number:08x}{FIRST[8:]}", f"{MDEVS}/mdev_supported_types/vfio_ap-passthrough/create")
    shell.echo("-5", "/sys/bus/ap/apmask")
    for number, domain in ((0, 4), (299, 0x47)):
        shell.echo(5, f"{MDEVS}/{number:08x}{FIRST[8:]}/assign_adapter")
        shell.echo(domain, f"{MDEVS}/{number:08x}{FIRST[8:]}/assign_domain")


def test_many_devices(show: Show) -> None:
    browser = show(told("default", many))
    assert "assigned, no guest runs (device 300) 1" in browser.texts(LEGEND)
    browser.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, on=MATRIX)
    assert browser.text(READOUT).startswith(f"05.0047 assigned, no guest runs: device 300, 0000012b{FIRST[8:]}")
    assert len(browser.texts(".device")) == 300
    # What a step does not change is not made again: with thousands of devices that would take seconds.
    browser.run("document.querySelectorAll('.device').forEach((element) => { element.kept = true; })")
    browser.find("[title^='one step back']").click()
    kept = "return [...document.querySelectorAll('.device')].filter((element) => element.kept).length"
    assert browser.run(kept) == 299
    # Out of sight, and so without a text that is seen.
    cells = "return [...document.querySelectorAll('.device:last-of-type td')].map((cell) => cell.textContent)"
    assert browser.run(cells)[:3] == ["05", "none", "none"]
    browser.find("[title^='the beginning']").click()
    assert browser.texts(".device") == []


def coming_and_going(shell: Shell) -> None:
    """Let devices, guests, exceptions and faults come and go."""
    a_day(shell)
    for number in range(20):
        shell.echo(f"{number:08x}{FIRST[8:]}", f"{MDEVS}/mdev_supported_types/vfio_ap-passthrough/create")
    shell.echo(1, f"{MDEVS}/{SECOND}/remove")
    shell.console("fault /sys/bus/ap/apmask EIO 2", "fail-reset 06.0047 7", "clear-faults")
    shell.echo(SECOND, f"{MDEVS}/mdev_supported_types/vfio_ap-passthrough/create")


def test_states_cost_what_their_steps_change(show: Show) -> None:
    """Whichever way one comes to a moment, and in as many objects as are looked at, not in one for each moment."""
    story = told("kernel-doc", coming_and_going)
    states = [story["first"]]
    for step in story["steps"]:
        states.append(patched(states[-1], step.get("patch", {})))
    browser = show(story)
    last = len(states) - 1
    order = [*range(last + 1), *range(last, -1, -1), last, 0, last // 2, last, last // 3]
    found = browser.run(f"const host = hosts[0]; return {order}.map((index) => JSON.stringify(host.state(index)))")
    assert [json.loads(text) for text in found] == [states[index] for index in order]
    assert browser.run(f"return new Set({order}.map((index) => hosts[0].state(index).mdevs)).size") == 2
    device = f"00000000{FIRST[8:]}"  # which does not change in between
    pair = f"const [one, other] = {[last - 3, last]}.map((index) => hosts[0].state(index).mdevs['{device}'])"
    assert browser.run(f"{pair}; return one !== undefined && one === other")


def share_out(shell: Shell) -> None:
    """Give each of 18 devices a queue."""
    shell.echo("0x0", "/sys/bus/ap/apmask")
    for number in range(18):
        shell.echo(f"{number:08x}{FIRST[8:]}", f"{MDEVS}/mdev_supported_types/vfio_ap-passthrough/create")
        shell.echo(number, f"{MDEVS}/{number:08x}{FIRST[8:]}/assign_adapter")
        shell.echo(number, f"{MDEVS}/{number:08x}{FIRST[8:]}/assign_domain")


def test_the_legend_stays_short(show: Show) -> None:
    browser = show(told("largest", share_out))
    *_, last = browser.texts(LEGEND)
    assert last == "assigned, no guest runs (2 more devices) 2"
    assert len(browser.texts(LEGEND)) == 1 + 16 + 1


def test_long_names_are_wrapped(show: Show) -> None:
    browser = show({**told("kernel-doc", a_day), "title": "n" * 250}, title="t" * 250)
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


def test_dark_and_on_paper(show: Show) -> None:
    browser = show(told("kernel-doc", a_day))
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = browser.run(colour)
    browser.emulate(prefers_color_scheme="dark")
    assert browser.run(colour) != light
    browser.emulate("print", prefers_color_scheme="dark")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run(colour) == "rgb(255, 255, 255)"
    assert not browser.find(".time").is_displayed()
    printed = browser.texts(".print-only tr")
    assert len(printed) == 11
    assert f"7 refused assign_adapter ← 6 /sys/devices/vfio_ap/matrix/{SECOND} EADDRINUSE" in printed[3]


def test_two_hosts_and_the_verdicts_of_a_migration(show: Show) -> None:
    browser = show(*stories_of(migrated("target-older-type")), title="migration")
    assert browser.texts("h2") == ["A: migration-source", "B: target-older-type", "Steps"]
    browser.press(Keys.HOME, "r")
    assert "EFAULT" in browser.text(".now .refused")
    assert browser.texts(".verdicts td") == [
        *("05.0004", "✕ AP type", "0e", "0d"),
        *("05.0047", "✕ AP type", "0e", "0d"),
        *("06.0004", "✓ fits", "", ""),
        *("06.0047", "✓ fits", "", ""),
    ]
    cut = "return [...document.querySelectorAll('.device')].filter((one) => one.scrollWidth > one.clientWidth).length"
    assert browser.run(cut) == 0
    browser.screenshot("report-migration")
    where = browser.text("#counter")
    sent = "A store migration_state ← STOP_COPY"
    assert sent in [text.split(maxsplit=1)[1].removesuffix(" ●") for text in browser.texts(".row")]
    browser.press(Keys.ARROW_RIGHT)
    assert browser.text("#counter") != where
    assert "only the order of steps of a migration is certain" in browser.text("footer")
