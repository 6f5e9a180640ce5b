"""The page in a browser: no errors, no requests, sorting, filtering, themes, narrow screens."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from job_writer import write_job, write_sweep

from peftsweep.records.results import Status
from peftsweep.report.analysis.frontier import find_frontier
from peftsweep.report.analysis.groups import compare
from peftsweep.report.page.write import write_page
from peftsweep.report.sources import load_jobs
from tests.unit.report.page.test_gallery import sheet_of, write_image_job

playwright = pytest.importorskip("playwright.sync_api", reason="the optional package playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]

SIZES = {"wide": (1280, 900), "phone": (390, 844)}
ITEMS = {"lora": [1] * 30 + [0] * 10, "oft": [1] * 20 + [0] * 20, "ia3": [1] * 4 + [0] * 36}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuned sweep with a method that failed, published rows, and costs that one method lacks."""
    source = tmp_path_factory.mktemp("jobs") / "sweep"
    write_sweep(source, {name: {1: items, 2: items[::-1]} for name, items in ITEMS.items()})
    for name, memory in (("lora", 20e9), ("oft", 9e9)):
        for seed in (1, 2):
            costs = {"memory/train_peak_reserved_bytes": memory, "train/tokens_per_second": memory / 1e6}
            place = source / name / f"best-seed-{seed}"
            write_job(
                place, name, ITEMS[name], seed=seed, lr=1e-3, stage="confirm", study=f"sweep/{name}", metrics=costs
            )
    write_job(source / "bad" / "0", "vera", None, status=Status.FAILED, cause="it's broken: " + "x" * 300)
    write_job(source / "published", "bone", None, metrics={"test/accuracy": 0.9}, config={"origin": "reference"})
    loaded = load_jobs(source)
    comparison = compare(loaded)
    frontiers = [find_frontier(group, loaded, ("memory", "score")) for group in comparison.groups]
    return write_page(loaded, comparison, frontiers, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of ten methods."""
    source = tmp_path_factory.mktemp("pictures")
    for number in range(10):
        write_image_job(source / str(number), f"method-{number}", sheet_of("lora"))
    loaded = load_jobs(source)
    return write_page(loaded, compare(loaded), [None], tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    opened.goto(report.as_uri())
    yield opened
    opened.close()


def names(page: Any) -> list[str]:
    """Of the rows that are shown, top down."""
    rows = page.locator("#group-1 table.main tbody tr:not([hidden]) th")
    return [text.split()[0] for text in rows.all_inner_texts()]


def header(page: Any, title: str) -> Any:
    return page.locator("#group-1 table.main thead th", has_text=title)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_opens_from_disk_without_errors_and_asks_nobody_for_anything(
    browser: Any, report: Path, size: str, scheme: str
) -> None:
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    told: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    page.screenshot(**screenshot(f"report-{size}-{scheme}"))
    assert told == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def screenshot(name: str) -> dict[str, Any]:
    """Kept where PEFTSWEEP_SCREENSHOTS says, for people to look at."""
    folder = os.environ.get("PEFTSWEEP_SCREENSHOTS")
    return {"full_page": True} | ({"path": str(Path(folder) / f"{name}.png")} if folder else {})


def test_a_click_sorts_by_the_better_side_first_and_another_turns_it_round(page: Any) -> None:
    memory = header(page, "peak memory")
    memory.get_by_role("button").click()
    assert memory.get_attribute("aria-sort") == "ascending"
    ascending = names(page)
    assert ascending.index("oft") < ascending.index("lora")
    memory.get_by_role("button").click()
    assert memory.get_attribute("aria-sort") == "descending"
    assert names(page).index("lora") < names(page).index("oft")


def test_only_one_column_is_marked_as_sorted(page: Any) -> None:
    header(page, "peak memory").get_by_role("button").click()
    header(page, "accuracy").get_by_role("button").click()
    marks = [cell.get_attribute("aria-sort") for cell in page.locator("#group-1 table.main thead th").all()]
    assert sorted(marks)[0] == "descending"
    assert marks.count("none") == len(marks) - 1


@pytest.mark.parametrize("clicks", [1, 2])
def test_what_has_no_value_stays_last_whichever_way_one_sorts(page: Any, clicks: int) -> None:
    for _ in range(clicks):
        header(page, "throughput").get_by_role("button").click()
    assert {"oft", "lora"} == {*names(page)[:2]}


def test_the_keyboard_sorts(page: Any) -> None:
    button = header(page, "method").get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    assert names(page) == sorted(names(page))
    page.keyboard.press("Space")
    assert names(page) == sorted(names(page), reverse=True)


def test_every_header_and_the_table_itself_can_be_reached_with_the_tab_key(page: Any) -> None:
    page.locator("#group-1 [data-filter]").focus()
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.className || document.activeElement.innerText"))
    assert "scroll" in reached
    assert any(text.startswith("accuracy") for text in reached)


def test_typing_narrows_the_rows_and_says_how_many_are_left(page: Any) -> None:
    whole = len(names(page))
    page.locator("#group-1 [data-filter]").fill("oft")
    assert names(page) == ["oft"]
    assert page.locator("#group-1 [data-count]").inner_text() == f"1 of {whole}"
    page.locator("#group-1 [data-filter]").fill("")
    assert len(names(page)) == whole


def test_rows_of_one_kind_can_be_shown_alone(page: Any) -> None:
    page.locator("#group-1 [data-state]").select_option("published reference")
    assert names(page) == ["bone"]
    page.locator("#group-1 [data-state]").select_option("ranked")
    assert {*names(page)} == {*ITEMS}


def test_a_filter_that_fits_nothing_says_so(page: Any) -> None:
    page.locator("#group-1 [data-filter]").fill("no such method")
    assert names(page) == []
    assert page.locator("#group-1 [data-none]").is_visible()


def test_the_theme_can_be_chosen_and_changes_the_figures_too(page: Any) -> None:
    def colours() -> tuple[str, str]:
        of = "getComputedStyle(document.querySelector('{}')).{}".format
        return page.evaluate(of("body", "backgroundColor")), page.evaluate(of("svg text", "fill"))

    light = colours()
    page.locator("#theme").click()
    dark = colours()
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    page.locator("#theme").click()
    assert colours() == light


def test_no_column_is_cut_off_at_1280_pixels(browser: Any, tmp_path: Path) -> None:
    """With as many columns as a text sweep on a GPU has."""
    bytes_keys = ("memory/train_peak_reserved_bytes", "plan/train_peak_bytes", "adapter/file_bytes")
    costs = dict.fromkeys(bytes_keys, 12.345e9)
    costs |= {"time/train_seconds": 1234.5, "train/tokens_per_second": 12345.0, "energy/train_joules": 1e6}
    seeds = {seed: [1] * (80 - seed) + [0] * (20 + seed) for seed in range(1, 8)}
    write_sweep(tmp_path / "s", dict.fromkeys(("lora", "prefix-tuning-text"), seeds), default=[1] * 50 + [0] * 50)
    for name in ("lora", "prefix-tuning-text"):
        for seed, items in seeds.items():
            known = {"stage": "confirm", "study": f"s/{name}", "metrics": {k: v * seed for k, v in costs.items()}}
            write_job(tmp_path / "s" / name / f"best-seed-{seed}", name, items, seed=seed, lr=1e-3, **known)
    loaded = load_jobs(tmp_path / "s")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(write_page(loaded, compare(loaded), [None], tmp_path / "report").as_uri())
    assert page.locator("table.main thead th").count() > 12
    assert page.locator(".scroll").first.evaluate("box => box.scrollWidth <= box.clientWidth")
    page.close()


def test_on_a_phone_the_table_scrolls_in_its_own_place_and_keeps_the_names_in_sight(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    region = page.locator(".scroll").first
    assert region.evaluate("box => box.scrollWidth > box.clientWidth")
    name = page.locator("table.main tbody th").first
    before = name.bounding_box()["x"]
    region.evaluate("box => { box.scrollLeft = 300; }")
    assert name.bounding_box()["x"] == pytest.approx(before, abs=1)


def test_the_figure_that_fits_the_screen_is_shown(page: Any) -> None:
    assert page.locator("svg.wide").first.is_visible()
    assert not page.locator("svg.narrow").first.is_visible()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.locator("svg.narrow").first.is_visible()
    assert not page.locator("svg.wide").first.is_visible()


def test_text_in_figures_stays_large_enough_to_be_read_on_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    script = """[...document.querySelectorAll('svg')].filter(svg => svg.clientWidth).map(svg => {
        const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
        const sizes = [...svg.querySelectorAll('text')].map(text => parseFloat(text.getAttribute('font-size')));
        return scale * Math.min(...sizes); })"""
    assert min(page.evaluate(script)) >= 9.5  # pixels


def test_what_is_folded_away_is_opened_for_print(page: Any) -> None:
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('details')].every(each => each.open)")


@pytest.mark.parametrize(("size", "lines"), [("wide", 1), ("phone", 4)])
def test_pictures_of_ten_methods_stand_beside_each_other_and_within_the_page(
    browser: Any, gallery: Path, size: str, lines: int
) -> None:
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(gallery.as_uri())
    boxes = [each.bounding_box() for each in page.locator(".drawn:not(.names)").first.locator("figure").all()]
    assert len(boxes) == 12
    assert len({round(box["y"]) for box in boxes}) == lines
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    page.close()
