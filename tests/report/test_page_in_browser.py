"""The page of a report in a real browser: it opens from a file, asks nobody for anything, and does what is clicked.

Needs chromium and chromedriver; where they are missing these tests are skipped, unless R2M_BROWSER=required.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_folders import add_samples, make_run
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from r2m_cli.reporting import page
from r2m_cli.reporting.runs import load_runs

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
HOSTILE = "</script><script>window.gamed = 1</script><img src=x onerror='window.gamed = 1'><b id=bold>bold</b>"
LINES = ("gold", "reward_frozen", "gold_kl", "reward", "kl", "length")  # charts with a line per label


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    """A browser with an empty profile that keeps a log of its console and its requests."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        missing = "no chromium and chromedriver here: apt-get install chromium chromium-driver"
        if os.environ.get("R2M_BROWSER") == "required":
            pytest.fail(missing)
        pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a label with two seeds and one without, whose labels, samples and warnings hold HTML."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / f"vanilla_s{seed}", seed, shift=seed / 4, ppo={"beta": 0.05}) for seed in (0, 1)]
    runs.append(
        make_run(folder / "r2m<img src=x onerror=window.gamed=1>", golds=[1, 2, 3, 4, 5], ppo={"beta": HOSTILE})
    )
    for run in runs:
        add_samples(run, [(step, f"prompt {HOSTILE}", f"response {HOSTILE}", step) for step in (1, 2, 4)])
        (run / "warnings.log").write_text(f"warning {HOSTILE}\n" + "long" * 200)
    out = folder / "report.html"
    return page.write(page.render(load_runs(runs)), out)


@pytest.fixture
def opened(chromium: WebDriver, file: Path) -> WebDriver:
    """The browser with the page in it, as wide as a desk allows, in daylight."""
    look(chromium, 1280)
    chromium.get(file.as_uri())
    frames(chromium)
    return chromium


def look(browser: WebDriver, width: int, scheme: str = "light") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )


def frames(browser: WebDriver) -> None:
    """Let it draw."""
    browser.execute_async_script(
        "setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(arguments[0])), 200)"
    )


def strokes(browser: WebDriver, chart: str) -> list[str]:
    """Colours of the lines that are drawn in a chart."""
    paths = browser.find_elements(By.CSS_SELECTOR, f"#chart-{chart} .scatterlayer .js-line")
    return [
        path.value_of_css_property("stroke") for path in paths if path.value_of_css_property("stroke-width") != "0px"
    ]


def bars(browser: WebDriver) -> int:
    return len(browser.find_elements(By.CSS_SELECTOR, "#chart-time .barlayer .point"))


def test_it_opens_from_a_file_without_errors_and_without_the_network(opened: WebDriver, file: Path) -> None:
    problems = [entry for entry in opened.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert problems == []
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert file.as_uri() in asked
    assert {url for url in asked if not url.startswith(("data:", "blob:", "chrome:"))} == {file.as_uri()}


def test_every_chart_is_drawn_and_the_verdicts_stand_above(opened: WebDriver) -> None:
    assert all(len(strokes(opened, chart)) == 2 for chart in LINES)
    assert bars(opened) == 8  # four stages of two labels
    headlines = [element.text for element in opened.find_elements(By.CSS_SELECTOR, ".conclusion em")]
    assert headlines == ["Over-optimised, -1.50", "Gold held"]
    assert opened.find_elements(By.CSS_SELECTOR, "#chart-gold .fills path, #chart-gold .js-fill")


def test_a_click_in_the_legend_hides_a_label_in_every_chart(opened: WebDriver) -> None:
    colours = {chart: strokes(opened, chart) for chart in LINES}
    first, second = opened.find_elements(By.CSS_SELECTOR, ".legend button")
    first.click()
    assert first.get_attribute("aria-pressed") == "false"
    assert {chart: strokes(opened, chart) for chart in LINES} == {chart: [two] for chart, (_, two) in colours.items()}
    assert bars(opened) == 4
    second.send_keys(Keys.SPACE)  # the keyboard does it too
    assert second.get_attribute("aria-pressed") == "false"
    assert all(strokes(opened, chart) == [] for chart in LINES)
    first.send_keys(Keys.ENTER)
    second.click()
    assert {chart: strokes(opened, chart) for chart in LINES} == colours
    assert bars(opened) == 8


def test_nothing_has_to_be_scrolled_sideways(opened: WebDriver) -> None:
    opened.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true })")
    for width in (320, 390, 800):
        look(opened, width)
        frames(opened)
        wide, window = opened.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert wide <= window == width
        assert opened.execute_script("return document.querySelector('#chart-gold svg').clientWidth") <= width


def test_the_dark_page_is_dark_charts_and_all_but_not_on_paper(opened: WebDriver) -> None:
    def colours() -> list[str]:
        body = opened.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
        tick = opened.find_element(By.CSS_SELECTOR, "#chart-gold .xtick text").value_of_css_property("fill")
        return [body, tick, *strokes(opened, "gold")]

    light = colours()
    look(opened, 1280, "dark")
    frames(opened)
    dark = colours()
    assert dark[0] == "rgba(22, 22, 20, 1)"
    assert light[1] != dark[1]
    assert (light[2], dark[2]) == ("rgb(0, 114, 178)", "rgb(76, 159, 216)")
    opened.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert colours()[1:] == light[1:]
    opened.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert colours() == dark


def test_what_a_run_says_is_only_text(opened: WebDriver) -> None:
    assert opened.execute_script("return window.gamed") is None
    assert opened.find_elements(By.CSS_SELECTOR, "img, #bold") == []
    said = opened.find_element(By.CSS_SELECTOR, ".samples .cells .text")
    assert said.text == f"response {HOSTILE}"
