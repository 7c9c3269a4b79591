"""The page in Chromium: lists and audit, keyboard, phone, and refusals of the API."""

import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest

from tests.serving.page_server import NAMES, OWN_TITLE, RANKINGS, SLOW, ScriptedApi, serve

pytest.importorskip("playwright", reason="playwright is not installed (pip install playwright)")
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
WAIT_MS = 20_000
expect.set_options(timeout=WAIT_MS)

Visit = Callable[..., Page]

TEXT_CONTRASTS = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = (of) => {
    for (let at = of; at; at = at.parentElement) {
      const [r, g, b, a = 1] = numbers(getComputedStyle(at).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const shown = [...document.body.querySelectorAll("*")].filter(
    (one) => one.checkVisibility() && [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
  return shown.map((one) => {
    const pair = [luminance(numbers(getComputedStyle(one).color)), luminance(ground(one))];
    return [(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), one.textContent.trim()];
  });
}"""
"""Contrast (WCAG 2.2, 1.4.3) of each visible text with the nearest opaque background."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def api() -> ScriptedApi:
    return ScriptedApi()


@pytest.fixture
def page_url(api: ScriptedApi) -> Iterator[str]:
    with serve(api) as url:
        yield url


@pytest.fixture
def visit(browser: Browser, page_url: str) -> Iterator[Visit]:
    """Opens the page; afterwards no visit may have called another host or left an error in the console."""
    contexts, hosts, errors = [], set(), []

    def open_page(
        *, width: int = 1280, height: int = 900, scheme: Literal["light", "dark"] = "light", script: str = ""
    ) -> Page:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.add_init_script(script)
        page.goto(page_url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert hosts == {urlsplit(page_url).netloc}
    assert [error for error in errors if not error.startswith("Failed to load resource")] == []


def names(combination: str) -> list[str]:
    return [NAMES[f"t{number:02}"] for number in RANKINGS[combination]]


def shown(page: Page, list_id: str) -> Locator:
    return page.locator(f"#{list_id} .name")


def switch(page: Page, name: str) -> Locator:
    return page.get_by_role("switch", name=name)


def reading(page: Page, attribute: str) -> Locator:
    return page.locator("#readings li").filter(has=page.get_by_role("heading", name=attribute))


def tab_to(page: Page, target: Locator) -> None:
    """With the Tab key; the focus must be visible."""
    for _ in range(40):
        if target.evaluate("one => one === document.activeElement"):
            assert target.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"the Tab key does not reach {target}")


def boxes(page: Page) -> list[Any]:
    return [page.locator(f"#{one}").bounding_box() for one in ("as-is", "ignoring")]


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_lists_show_what_moved(visit: Visit, api: ScriptedApi):
    page = visit()
    expect(shown(page, "as-is")).to_have_text(names("none"))
    expect(shown(page, "ignoring")).to_have_text(names("gender"))
    expect(page.get_by_role("heading", name="Ignoring gender")).to_be_visible()
    expect(page.locator("#ignoring .move")).to_have_text(
        ["same", "up 3", "down 1", "down 1", "new", "down 2", "same", "new", "down 1", "down 1"]
    )
    expect(page.locator("#dropped li")).to_have_text([NAMES["t06"], NAMES["t10"]])
    expect(page.locator("#summary")).to_have_text("2 of 10 titles changed, 6 moved, 2 stayed in place.")
    expect(page.locator(".problem:not(:empty)")).to_have_count(0)
    assert page.title()
    [batch] = api.batches
    assert [request.ignore for request in batch.requests] == [[], ["gender"]]
    assert batch.requests[0].model_copy(update={"ignore": ["gender"]}) == batch.requests[1]


def test_audit_is_explained(visit: Visit):
    page = visit()
    expect(page.locator("#accuracy")).to_have_text("Recommendations stay 98% as accurate.")
    expect(reading(page, "Gender")).to_contain_text(
        "A strong attacker who sees only the hidden profile guesses gender correctly 52 of 100 times; "
        "random guessing 50 (47 to 53 is chance). That is no better than chance."
    )
    expect(reading(page, "Age")).to_contain_text(
        "Age is not hidden: an attacker guesses age correctly 55 of 100 times;"
    )
    expect(reading(page, "Age")).to_contain_text("random guessing 33 (29 to 38 is chance)")
    expect(reading(page, "Home country")).to_contain_text("not audited")
    switch(page, "Gender").uncheck()
    switch(page, "Age").check()
    expect(page.locator("#accuracy")).to_have_text("Recommendations stay as accurate as before (100%).")
    expect(reading(page, "Age")).to_contain_text("That is better than chance")
    expect(reading(page, "Gender")).to_contain_text(
        "Gender is not hidden: an attacker guesses gender correctly 71 of 100"
    )


def test_keyboard_flips_switches(visit: Visit):
    page = visit()
    expect(shown(page, "ignoring")).to_have_text(names("gender"))
    tab_to(page, switch(page, "Age"))
    page.keyboard.press("Space")
    expect(page.get_by_role("heading", name="Ignoring gender and age")).to_be_visible()
    expect(shown(page, "ignoring")).to_have_text(names("gender+age"))
    expect(shown(page, "as-is")).to_have_text(names("none"))
    expect(page.locator("#summary")).to_have_text("3 of 10 titles changed, 7 moved, 0 stayed in place.")
    expect(page.locator("#accuracy")).to_have_text("Recommendations are only 90% as accurate.")
    expect(reading(page, "Gender")).to_contain_text("Gender was not audited for this setting.")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    expect(page.get_by_role("heading", name="Ignoring nothing")).to_be_visible()
    expect(page.locator("#ignoring .move")).to_have_text(["same"] * 10)
    expect(page.locator("#summary")).to_have_text("Nothing is ignored, so both lists are the same.")


def test_keyboard_enters_a_history(visit: Visit, api: ScriptedApi):
    page = visit()
    page.get_by_role("radio", name="Stored user").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#summary")).to_have_text("Add watched titles to see recommendations.")
    tab_to(page, page.locator("#title"))
    for typed in ("paper lanterns", "t04", "no such title"):
        page.keyboard.type(typed)
        page.keyboard.press("Enter")
    expect(page.locator("#watched li span")).to_have_text(["Paper Lanterns", "Salt Road", "no such title"])
    expect(shown(page, "ignoring")).to_have_text(names("gender"))
    expect(page.locator("#notices")).to_contain_text("Skipped: 1 title not in the catalogue.")
    expect(page.locator("#notices")).to_contain_text(
        "The gender of this user is unknown, so it may be hidden less well."
    )
    page.get_by_label("Gender").and_(page.locator("select")).select_option("female")
    page.get_by_role("button", name="Remove no such title").press("Enter")
    expect(page.get_by_role("button", name="Remove Salt Road")).to_be_focused()
    expect(page.locator("#notices li")).to_have_count(0)
    asked = api.batches[-1].requests[1]
    assert (asked.user_id, asked.history, asked.attributes) == (None, ["t02", "t04"], {"gender": "female"})


def test_pasted_lines_are_titles(visit: Visit):
    page = visit()
    page.get_by_role("radio", name="New user").check()
    page.locator("#title").evaluate("""one => {
      const clipboardData = new DataTransfer();
      clipboardData.setData("text/plain", "t01\\nSalt Road\\n\\n");
      one.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
    }""")
    expect(page.locator("#watched li span")).to_have_text([NAMES["t01"], NAMES["t04"]])


def test_missing_combination_is_named_and_never_replaced(visit: Visit, api: ScriptedApi):
    page = visit()
    expect(shown(page, "ignoring")).to_have_text(names("gender"))
    switch(page, "Home country").check()
    sentence = "There is no setting that ignores gender and home country together."
    expect(page.locator("#summary")).to_have_text(sentence)
    expect(page.locator("#ignoring li")).to_have_count(0)
    expect(shown(page, "as-is")).to_have_text(names("none"))
    expect(page.locator("#missing")).to_contain_text(sentence)
    expect(page.locator("#missing button")).to_have_text(["Gender", "Age", "Gender and age"])
    expect(page.locator("#audit")).to_be_hidden()
    assert [request.ignore for request in api.batches[-1].requests] == [[]]
    page.get_by_role("button", name="Gender and age").press("Enter")
    expect(shown(page, "ignoring")).to_have_text(names("gender+age"))
    expect(switch(page, "Home country")).not_to_be_checked()


def test_refusal_is_shown_at_its_field(visit: Visit):
    page = visit()
    territory = page.get_by_label("Territory")
    territory.select_option("closed")
    expect(page.locator("#problem-territory")).to_contain_text("no territory 'closed'; choose from T001, T002")
    expect(page.locator("#problem-territory")).to_have_attribute("aria-live", "polite")
    expect(territory).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#lists")).to_be_hidden()
    territory.select_option("T002")
    expect(shown(page, "as-is")).to_have_text(names("none"))
    expect(page.locator(".problem:not(:empty)")).to_have_count(0)
    expect(page.locator("[aria-invalid]")).to_have_count(0)


def test_refused_combination_is_shown_at_the_switches(visit: Visit, api: ScriptedApi):
    api.withdrawn = "age"
    page = visit()
    switch(page, "Gender").uncheck()
    switch(page, "Age").check()
    expect(page.locator("#problem-ignore")).to_contain_text("no eliminator was trained for age")
    expect(page.locator("#lists")).to_be_hidden()


def test_answer_for_another_combination_is_not_shown(visit: Visit, api: ScriptedApi):
    api.served_as = "none"
    page = visit()
    expect(page.locator("#problem-ignore")).to_contain_text("The service answered for another setting (none)")
    expect(page.locator("#lists")).to_be_hidden()


@pytest.mark.parametrize("k", ["0", "101", "2.5", ""])
def test_number_of_titles_out_of_range_is_not_sent(visit: Visit, api: ScriptedApi, k: str):
    page = visit()
    expect(shown(page, "as-is")).to_have_count(10)
    page.locator("#k").fill(k)
    expect(page.locator("#problem-k")).to_have_text("Give a whole number of titles from 1 to 100.")
    expect(page.locator("#lists")).to_be_hidden()
    assert len(api.batches) == 1


def test_busy_service_is_tried_once_more(visit: Visit, api: ScriptedApi):
    page = visit()
    expect(shown(page, "ignoring")).to_have_text(names("gender"))
    api.busy = 1
    switch(page, "Age").check()
    expect(page.locator("#summary")).to_have_text("The service is busy; trying again in 1 s.")
    expect(shown(page, "ignoring")).to_have_text(names("gender+age"))
    api.busy = 2
    switch(page, "Age").uncheck()
    expect(page.locator("#problem-general")).to_contain_text("too many requests wait")
    expect(page.locator("#lists")).to_be_hidden()
    assert api.busy == 0
    page.get_by_role("button", name="Try again").click()
    expect(shown(page, "ignoring")).to_have_text(names("gender"))


def test_long_retry_after_is_not_awaited(visit: Visit, api: ScriptedApi):
    page = visit()
    expect(shown(page, "as-is")).to_have_count(10)
    api.busy, api.retry_after = 1, "3600"
    switch(page, "Age").check()
    expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_unreachable_service_is_reported(visit: Visit):
    page = visit()
    expect(shown(page, "as-is")).to_have_count(10)
    page.route("**/v1/recommend:batch", lambda route: route.abort())
    switch(page, "Age").check()
    expect(page.locator("#problem-general")).to_contain_text("The service cannot be reached.")
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    expect(shown(page, "ignoring")).to_have_text(names("gender+age"))


def test_api_key_is_requested_and_stays_in_memory(visit: Visit, api: ScriptedApi):
    api.api_key = "open sesame"
    page = visit()
    key = page.get_by_label("API key")
    expect(key).to_be_focused()
    expect(page.locator("#problem-key")).to_have_text("This service requires an API key.")
    key.fill("wrong")
    key.press("Enter")
    expect(page.locator("#problem-key")).to_have_text("This key was not accepted.")
    key.fill("open sesame")
    key.press("Enter")
    expect(shown(page, "ignoring")).to_have_text(names("gender"))
    expect(key).to_be_hidden()
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    assert "sesame" not in page.url
    api.api_key = "another"
    switch(page, "Age").check()
    expect(page.locator("#problem-key")).to_have_text("This key was not accepted.")


def test_popular_titles_are_named(visit: Visit):
    page = visit()
    page.get_by_label("User id").fill("a stranger")
    expect(page.locator("#notices li")).to_have_text(
        "These are the most popular titles of T001, the same for all users: this user id is unknown. "
        "The switches do not change them."
    )
    expect(shown(page, "ignoring")).to_have_text(names("none"))
    page.get_by_role("button", name="grace").click()
    expect(page.locator("#notices li")).to_have_count(0)
    expect(shown(page, "ignoring")).to_have_text(names("gender"))


def test_without_examples_the_page_asks_for_a_user_id(visit: Visit, api: ScriptedApi):
    api.examples = False
    page = visit()
    expect(page.locator("#summary")).to_have_text("Give a user id to see recommendations.")
    expect(page.locator("#examples")).to_be_hidden()
    page.get_by_label("User id").fill("ada")
    expect(shown(page, "as-is")).to_have_text(names("none"))


def test_promoted_bundle_replaces_the_catalogue(visit: Visit, api: ScriptedApi):
    page = visit()
    expect(page.locator("#version")).to_have_text("Model version bundle-1")
    api.version = "bundle-2"
    page.get_by_label("Territory").select_option("T002")
    expect(page.locator("#version")).to_have_text("Model version bundle-2")
    expect(page.get_by_label("Territory")).to_have_value("T002")
    expect(switch(page, "Gender")).to_be_checked()
    expect(shown(page, "ignoring")).to_have_text(names("gender"))


@pytest.mark.parametrize("script", ["", "AbortController.prototype.abort = () => undefined"], ids=["aborts", "cannot"])
def test_outdated_answer_is_dropped(visit: Visit, api: ScriptedApi, script: str):
    release = api.waits[SLOW] = threading.Event()
    page = visit(script=script)
    expect(shown(page, "as-is")).to_have_text(names("none"))
    with page.expect_request(lambda request: SLOW in (request.post_data or "")):
        page.get_by_label("User id").fill(SLOW)
    page.get_by_label("User id").fill("ada")
    page.locator("#k").fill("3")
    expect(shown(page, "as-is")).to_have_text(names("none")[:3])
    if script:
        with page.expect_response(lambda response: SLOW in (response.request.post_data or "")) as late:
            release.set()
        late.value.finished()
    release.set()
    page.wait_for_timeout(300)
    expect(shown(page, "as-is")).to_have_text(names("none")[:3])


def test_names_are_text_not_markup(visit: Visit):
    page = visit()
    page.get_by_label("User id").fill(SLOW)
    expect(shown(page, "as-is").first).to_have_text(NAMES[OWN_TITLE])
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("text", ["100%", "200%"])
def test_phone_needs_no_horizontal_scrolling(visit: Visit, text: str):
    page = visit(width=360, height=800)
    page.evaluate("size => (document.documentElement.style.fontSize = size)", text)
    expect(shown(page, "ignoring")).to_have_text(names("gender"))
    assert fits(page)
    first, second = boxes(page)
    assert second["y"] >= first["y"] + first["height"]
    page.locator("details").evaluate("one => (one.open = true)")
    switch(page, "Home country").check()
    page.get_by_role("radio", name="New user").check()
    page.get_by_role("button", name="Fill in an example").click()
    expect(page.locator("#missing")).to_be_visible()
    assert fits(page)


def test_desktop_shows_the_lists_side_by_side(visit: Visit):
    page = visit()
    expect(shown(page, "ignoring")).to_have_text(names("gender"))
    first, second = boxes(page)
    assert first["y"] == second["y"]
    page.evaluate("document.documentElement.style.fontSize = '200%'")
    assert fits(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_suffices_in_both_schemes(visit: Visit, scheme: Literal["light", "dark"]):
    page = visit(scheme=scheme)
    page.get_by_label("User id").fill("a stranger")
    expect(page.locator("#notices li")).to_have_count(1)
    page.get_by_label("User id").fill("ada")
    expect(shown(page, "ignoring")).to_have_text(names("gender"))
    switch(page, "Age").hover()
    contrasts = page.evaluate(TEXT_CONTRASTS)
    assert len(contrasts) > 50
    assert [one for one in contrasts if one[0] < 4.5] == []
    page.get_by_label("Territory").select_option("closed")
    expect(page.locator("#problem-territory")).not_to_be_empty()
    assert [one for one in page.evaluate(TEXT_CONTRASTS) if one[0] < 4.5] == []


def test_reduced_motion_has_no_transitions(visit: Visit):
    page = visit()
    page.emulate_media(reduced_motion="reduce")
    assert switch(page, "Gender").evaluate("one => getComputedStyle(one).transitionDuration") in ("0s", "")
