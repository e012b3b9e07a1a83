"""Looks at MLflow's chart and compare pages as a person would, in Debian's Chromium without a window.

    python tests/system/browser.py CHART_URL COMPARE_URL FOLDER [PARAM ...]

opens the two addresses that a sweep prints, says what the pages show, and leaves screenshots in FOLDER.
"""

import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Locator, Page, sync_playwright

PARAMS = ("alpha", "beta", "m", "head")
METRIC = "val/AP"
WAIT_MS = 60_000  # a busy machine with two cores draws slowly


def chromium() -> str | None:
    """The system's Chromium, if there is one (Debian: apt-get install chromium)."""
    return next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)


@contextmanager
def browser_page() -> Iterator[Page]:
    """A page of a browser that has never been here, but for MLflow's assistant, which would cover a third of it."""
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]  # root, no graphics, small containers
        browser = playwright.chromium.launch(executable_path=chromium(), args=options)
        try:
            page = browser.new_page(viewport={"width": 1700, "height": 1250})
            page.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
            page.set_default_timeout(WAIT_MS)
            yield page
        finally:
            browser.close()


def curves(page: Page, url: str, metrics: Sequence[str], picture: Path) -> dict[str, dict[str, list[float]]]:
    """Open the chart page: for each metric, the values that its chart draws as a line for each run id."""
    _visit(page, url)
    shown = {}
    for metric in metrics:
        plot = _plot_titled(page, metric)
        plot.locator(".scatterlayer .trace path.js-line[d*='L']").first.wait_for(state="attached")  # two points or more
        shown[metric] = plot.evaluate("plot => Object.fromEntries(plot.data.map(line => [line.uuid, line.y]))")
    _plot_titled(page, metrics[0])
    page.wait_for_timeout(1000)  # other charts in sight come to their end
    page.screenshot(path=picture)
    return shown


def compare(page: Page, url: str, params: Sequence[str], metric: str, picture: Path) -> tuple[list[str], dict[str, list]]:
    """Open the compare page: the axes that it shows by itself, and the drawn values by axis once these are selected."""
    _visit(page, url)
    preselected = list(_parallel_coordinates(page))
    page.get_by_text("Clear All").click()
    params_box, metrics_box = page.get_by_role("combobox").all()[:2]
    for param in params:
        _select(page, params_box, param)
    _select(page, metrics_box, metric)
    page.locator(".parcoords .axis-title", has_text=metric).wait_for(state="attached")
    page.wait_for_timeout(1000)  # the lines are painted on a canvas, which tells nobody
    page.screenshot(path=picture)
    return preselected, _parallel_coordinates(page)


def view_axes(page: Page) -> list[str]:
    """The axes of the parallel coordinates on the chart page that is open, from left to right."""
    labels = page.locator(".parcoords .dimension text.label")
    labels.first.wait_for(state="attached")
    return labels.all_text_contents()


def listed(page: Page, ui: str, experiment: str, search: str, picture: Path) -> set[str]:
    """Search an experiment's list of runs: the ids of those that it shows."""
    query = f"workflowType=machine_learning&compareRunsMode=TABLE&searchFilter={quote(search)}"
    _go(page, f"{ui}/#/experiments/{experiment}/runs?{query}")
    page.get_by_text(re.compile(r"^\d+ matching runs?$")).wait_for()
    links = page.locator(f"a[href*='/experiments/{experiment}/runs/']")
    links.first.wait_for()
    page.screenshot(path=picture)
    return {link.get_attribute("href").rpartition("/")[2].partition("?")[0] for link in links.all()}


def pictures_of(page: Page, ui: str, experiment: str, run: str, steps: Sequence[int], picture: Path) -> list[str]:
    """Open a run's pictures in full and move their slider to rising steps: the address of each drawn picture."""
    _go(page, f"{ui}/#/experiments/{experiment}/runs/{run}/model-metrics")
    title = page.get_by_text("detections", exact=True).first
    _scroll_to(page, title)
    title.locator("xpath=ancestor::*[.//button][1]").get_by_role("button").first.click()
    full = page.get_by_role("dialog")
    drawn, slider = full.locator("img.rc-image-img").first, full.get_by_role("slider").first
    sources = []
    for step in steps:
        if sources:
            slider.press("ArrowRight")
        drawn.and_(page.locator(f"[src*='step%2B{step}%2B']")).wait_for()
        sources.append(drawn.get_attribute("src"))
    page.wait_for_function("picture => picture.complete && picture.naturalWidth", arg=drawn.element_handle())
    page.screenshot(path=picture)
    return sources


def card(page: Page, ui: str, model: str, version: int | str, alias: str, picture: Path) -> str:
    """Open the page of a model's version that has an alias: all it says."""
    _go(page, f"{ui}/#/models/{model}/versions/{version}")
    for words in ("tood pull", f"@ {alias}"):  # each comes by a request of its own
        page.get_by_text(words).first.wait_for()
    page.screenshot(path=picture, full_page=True)
    return page.locator("body").inner_text()


def _visit(page: Page, url: str) -> None:
    _go(page, url)
    page.locator(".js-plotly-plot").first.wait_for()


def _go(page: Page, url: str) -> None:
    page.goto("about:blank")  # a change behind the # alone would not load the page anew
    page.goto(url)


def _scroll_to(page: Page, what: Locator) -> None:
    """Down a page whose parts are made as they come into sight, until one of them is `what`."""
    page.get_by_text("Search metric charts").or_(page.get_by_placeholder("Search metric charts")).first.wait_for()
    page.mouse.move(800, 600)
    for _ in range(60):
        if what.is_visible():
            break
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(250)
    what.scroll_into_view_if_needed()


def _plot_titled(page: Page, metric: str) -> Locator:
    """The plot in the card with this title, scrolled into sight: charts out of sight are not drawn."""
    title = page.get_by_text(metric, exact=True).first
    title.scroll_into_view_if_needed()
    plot = title.locator("xpath=ancestor::*[.//*[contains(@class, 'js-plotly-plot')]][1]").locator(".js-plotly-plot").first
    plot.scroll_into_view_if_needed()
    return plot


def _parallel_coordinates(page: Page) -> dict[str, list]:
    """The values that the compare page draws, by axis from left to right; words as words."""
    plot = page.locator(".js-plotly-plot").filter(has=page.locator(".parcoords"))
    titles = plot.locator(".parcoords .axis-title")
    titles.first.wait_for(state="attached")
    dimensions = {axis["label"]: axis for axis in plot.evaluate("plot => plot.data[0].dimensions")}
    shown = {}
    for title in titles.all_text_contents():
        axis = dimensions[title]
        words = dict(zip(axis.get("tickvals") or [], axis.get("ticktext") or [], strict=True))
        shown[title] = [words.get(value, value) for value in axis["values"]]
    return shown


def _select(page: Page, box: Locator, option: str) -> None:
    """Pick an option from a list that draws only what is in sight: walk down it by keyboard."""
    box.click(force=True)
    active = page.locator(".du-bois-light-select-item-option-active:visible")
    seen = set()
    while (title := active.get_attribute("title")) != option:
        if title in seen:
            raise AssertionError(f"the list offers {sorted(seen)}, not {option}")
        seen.add(title)
        box.press("ArrowDown")
    box.press("Enter")
    box.press("Escape")
    active.wait_for(state="hidden")


def main() -> None:
    chart_url, compare_url, folder, *params = sys.argv[1:]
    pictures = Path(folder)
    pictures.mkdir(parents=True, exist_ok=True)
    with browser_page() as page:
        print("curves of", METRIC)
        for run_id, values in curves(page, chart_url, [METRIC], pictures / "charts.png")[METRIC].items():
            print(f"  {run_id}:", *(f"{value:.3f}" for value in values))
        preselected, axes = compare(page, compare_url, params or PARAMS, METRIC, pictures / "compare.png")
        print("the compare page opens with", ", ".join(preselected), "and shows, once they are selected:")
        for label, values in axes.items():
            print(f"  {label}:", *values)


if __name__ == "__main__":
    main()
