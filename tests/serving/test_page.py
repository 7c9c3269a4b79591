"""The page in Chromium: lists and audit, keyboard, phone, and refusals of the API."""

import threading
from collections.abc import Callable
from typing import Literal

import pytest

from tests.serving.page_server import NAMES, OWN_TITLE, RANKINGS, SLOW, USER, ScriptedService

pytest.importorskip("playwright", reason="playwright is not installed (pip install playwright)")
from playwright.sync_api import Locator, Page, expect

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


def names(combination: str) -> list[str]:
    return [NAMES[f"t{number:02}"] for number in RANKINGS[combination]]


def shown(page: Page, list_id: str) -> Locator:
    return page.locator(f"#{list_id} .name")


def switch(page: Page, name: str) -> Locator:
    return page.get_by_role("switch", name=name)


def reading(page: Page, attribute: str) -> Locator:
    return page.locator("#readings li").filter(has=page.get_by_role("heading", name=attribute))


def choose_user(page: Page, user: str) -> None:
    page.get_by_role("radio", name="Stored user").check()
    page.get_by_label("User id").fill(user)


def tab_to(page: Page, target: Locator) -> None:
    """With the Tab key; the focus must be visible."""
    for _ in range(40):
        if target.evaluate("one => one === document.activeElement"):
            assert target.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"the Tab key does not reach {target}")


def test_lists_show_what_moved(visit: Visit, api: ScriptedService):
    page = visit()
    expect(shown(page, "as-is")).to_have_text(names("none"))
    expect(shown(page, "ignoring")).to_have_text(names("gender"))
    expect(page.get_by_role("heading", name="Ignoring gender")).to_be_visible()
    expect(page.locator("#ignoring .badge")).to_have_text(
        ["same", "up 3", "down 1", "down 1", "new", "down 2", "same", "new", "down 1", "down 1"]
    )
    expect(page.locator("#dropped")).to_have_text(f"Dropped out: {NAMES['t06']}; {NAMES['t10']}")
    expect(page.locator("#summary")).to_have_text("2 of 10 titles changed, 6 moved, 2 stayed in place.")
    expect(page.locator("#problem")).to_be_empty()
    assert page.title()
    [batch] = api.batches
    assert [request.ignore for request in batch] == [[], ["gender"]]
    assert batch[0].model_copy(update={"ignore": ["gender"]}) == batch[1]


def test_audit_is_explained(visit: Visit):
    page = visit()
    expect(page.locator("#accuracy")).to_have_text("Recommendations stay 98% as accurate.")
    expect(reading(page, "Gender")).to_contain_text(
        "A strong attacker who sees only the hidden profile guesses gender correctly 51.6 of 100 times; "
        "random guessing 50.0 (46.0 to 54.0 is chance). That is no better than chance."
    )
    expect(reading(page, "Age")).to_contain_text("Age is not hidden: an attacker guesses age correctly 71.2 of 100")
    expect(reading(page, "Home country")).to_contain_text("not audited")
    switch(page, "Gender").uncheck()
    switch(page, "Age").check()
    expect(page.locator("#accuracy")).to_have_text("Recommendations stay 100% as accurate.")
    expect(reading(page, "Age")).to_contain_text("That is better than chance: the attribute still leaks.")
    expect(reading(page, "Gender")).to_contain_text("Gender is not hidden: an attacker guesses gender correctly 71.2")


def test_keyboard_flips_switches(visit: Visit):
    page = visit()
    expect(shown(page, "ignoring")).to_have_text(names("gender"))
    tab_to(page, switch(page, "Age"))
    page.keyboard.press("Space")
    expect(page.get_by_role("heading", name="Ignoring gender and age")).to_be_visible()
    expect(shown(page, "ignoring")).to_have_text(names("gender+age"))
    expect(shown(page, "as-is")).to_have_text(names("none"))
    expect(page.locator("#accuracy")).to_have_text("Recommendations stay 90% as accurate.")
    expect(reading(page, "Gender")).to_contain_text("Gender was not audited for this setting.")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    expect(page.get_by_role("heading", name="Ignoring nothing")).to_be_visible()
    expect(page.locator("#ignoring .badge")).to_have_text(["same"] * 10)
    expect(page.locator("#summary")).to_have_text("Nothing is ignored, so both lists are the same.")


def test_keyboard_enters_a_history(visit: Visit, api: ScriptedService):
    api.has_examples = False
    page = visit()
    expect(page.locator("#summary")).to_have_text("Add watched titles to see recommendations.")
    tab_to(page, page.locator("#title"))
    for typed in ("t02", "t04", "no such title"):
        page.keyboard.type(typed)
        page.keyboard.press("Enter")
    expect(page.locator("#watched li span")).to_have_text(["t02", "t04", "no such title"])
    expect(shown(page, "ignoring")).to_have_text(names("gender"))
    expect(page.locator("#notices")).to_contain_text("Skipped: 1 title not in the catalogue.")
    expect(page.locator("#notices")).to_contain_text(
        "The gender of this user is unknown, so it may be hidden less well."
    )
    page.get_by_label("Gender").and_(page.locator("select")).select_option("female")
    page.get_by_role("button", name="Remove no such title").press("Enter")
    expect(page.locator("#title")).to_be_focused()
    expect(page.locator("#notices li")).to_have_count(0)
    asked = api.batches[-1][1]
    assert (asked.user_id, asked.history, asked.attributes) == (None, ["t02", "t04"], {"gender": "female"})


def test_page_starts_with_a_stored_user_and_offers_others(visit: Visit, api: ScriptedService):
    api.users = [USER, SLOW]
    page = visit()
    expect(page.get_by_label("User id")).to_have_value(USER)
    expect(shown(page, "as-is")).to_have_text(names("none"))
    page.get_by_role("group", name="Example users").get_by_role("button", name=SLOW).click()
    expect(shown(page, "as-is").first).to_have_text(NAMES[OWN_TITLE])
    assert [batch[0].user_id for batch in api.batches] == [USER, SLOW]


def test_watched_titles_are_found_by_name_and_left_out_unless_switched_off(visit: Visit, api: ScriptedService):
    page = visit()
    expect(page.locator("#watched li span")).to_have_text([NAMES[f"t0{number}"] for number in (1, 2, 3)])
    expect(shown(page, "as-is")).to_have_count(10)
    page.locator("#title").fill(" title 6 ")
    with page.expect_response("**/v1/recommend:batch"):
        page.get_by_role("button", name="Add").click()
    expect(page.locator("#watched li span").last).to_have_text("Title 6")
    with page.expect_response("**/v1/recommend:batch"):
        page.get_by_label("Leave out watched titles").uncheck()
    assert [batch[0].exclude_seen for batch in api.batches] == [True, True, False]


def test_missing_combination_is_named_and_never_replaced(visit: Visit, api: ScriptedService):
    page = visit()
    expect(shown(page, "ignoring")).to_have_text(names("gender"))
    switch(page, "Home country").check()
    expect(page.locator("#summary")).to_have_text(
        "There is no setting that ignores gender and home country. Available: gender; age; gender and age."
    )
    expect(page.locator("#ignoring li")).to_have_count(0)
    expect(shown(page, "as-is")).to_have_text(names("none"))
    expect(page.locator("#audit")).to_be_hidden()
    assert [request.ignore for request in api.batches[-1]] == [[]]


def test_refusal_names_its_field_until_it_is_resolved(visit: Visit, api: ScriptedService):
    page = visit()
    territory = page.get_by_label("Territory")
    territory.select_option("closed")
    expect(page.get_by_role("alert")).to_contain_text("territory: no territory 'closed'; choose from T001, T002")
    expect(page.locator("#lists")).to_be_hidden()
    territory.select_option("T002")
    expect(shown(page, "as-is")).to_have_text(names("none"))
    expect(page.locator("#problem")).to_be_empty()
    num_requests = len(api.batches)
    for k in ("0", "2.5", ""):  # not sent
        page.locator("#k").fill(k)
        expect(page.locator("#summary")).to_have_text("Give a whole number of titles from 1 to 100.")
        expect(page.locator("#lists")).to_be_hidden()
    assert len(api.batches) == num_requests


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "unreachable"])
def test_failed_request_can_be_repeated(visit: Visit, api: ScriptedService, busy: bool):
    page = visit()
    expect(shown(page, "as-is")).to_have_count(10)
    api.busy = busy
    if not busy:
        page.route("**/v1/recommend:batch", lambda route: route.abort())
    switch(page, "Age").check()
    problem = "too many requests at once" if busy else "The service cannot be reached."
    expect(page.locator("#problem")).to_contain_text(problem)
    expect(page.locator("#lists")).to_be_hidden()
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    expect(shown(page, "ignoring")).to_have_text(names("gender+age"))


def test_api_key_is_requested_and_stays_in_memory(visit: Visit, api: ScriptedService):
    api.require("open sesame")
    page = visit()
    key = page.get_by_label("API key")
    expect(key).to_be_focused()
    expect(page.locator("#problem")).to_have_text("This service requires an API key.")
    for typed in ("wrong", "open sesame"):
        key.fill(typed)
        key.press("Enter")
        if typed == "wrong":
            expect(page.locator("#problem")).to_have_text("This key was not accepted.")
    expect(shown(page, "ignoring")).to_have_text(names("gender"))
    expect(key).to_be_hidden()
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    assert "sesame" not in page.url
    api.require("another")
    switch(page, "Age").check()
    expect(page.locator("#problem")).to_have_text("This key was not accepted.")


def test_popular_titles_are_named(visit: Visit):
    page = visit()
    page.get_by_role("radio", name="Stored user").check()
    expect(page.locator("#summary")).to_have_text("Give a user id to see recommendations.")
    page.get_by_label("User id").fill("a stranger")
    expect(page.locator("#notices li")).to_have_text(
        "The same popular titles of T001 for all users, whatever is ignored: unknown user."
    )
    page.get_by_label("User id").fill(USER)
    expect(page.locator("#notices li")).to_have_count(0)
    expect(shown(page, "ignoring")).to_have_text(names("gender"))


def test_promoted_bundle_replaces_the_catalogue(visit: Visit, api: ScriptedService):
    page = visit()
    expect(page.locator("#version")).to_have_text("Model version bundle-1")
    api.version = "bundle-2"
    page.get_by_label("Territory").select_option("T002")
    expect(page.locator("#version")).to_have_text("Model version bundle-2")
    expect(page.get_by_label("Territory")).to_have_value("T002")
    expect(switch(page, "Gender")).to_be_checked()
    expect(shown(page, "ignoring")).to_have_text(names("gender"))


def test_outdated_answer_is_dropped(visit: Visit, api: ScriptedService):
    release = api.waits[SLOW] = threading.Event()
    page = visit()
    expect(shown(page, "as-is")).to_have_text(names("none"))
    with page.expect_request(lambda request: SLOW in (request.post_data or "")):
        choose_user(page, SLOW)
    page.get_by_label("User id").fill(USER)
    page.locator("#k").fill("3")
    expect(shown(page, "as-is")).to_have_text(names("none")[:3])
    release.set()
    page.wait_for_timeout(300)
    expect(shown(page, "as-is")).to_have_text(names("none")[:3])
    page.get_by_label("User id").fill(SLOW)
    expect(shown(page, "as-is").first).to_have_text(NAMES[OWN_TITLE])
    assert page.locator("img").count() == 0  # names are text, not markup


@pytest.mark.parametrize("width", [360, 1280])
def test_phone_and_large_text_need_no_horizontal_scrolling(visit: Visit, width: int):
    page = visit(width=width)
    expect(shown(page, "ignoring")).to_have_text(names("gender"))
    first, second = (page.locator(f"#{one}").bounding_box() for one in ("as-is", "ignoring"))
    assert first
    assert second
    side_by_side = first["y"] == second["y"]
    assert side_by_side == (width == 1280)
    page.locator("details").evaluate("one => (one.open = true)")
    for size in ("100%", "200%"):
        page.evaluate("size => (document.documentElement.style.fontSize = size)", size)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_suffices_in_both_schemes(visit: Visit, scheme: Literal["light", "dark"]):
    page = visit(scheme=scheme)
    choose_user(page, "a stranger")
    expect(page.locator("#notices li")).to_have_count(1)
    contrasts = page.evaluate(TEXT_CONTRASTS)
    page.get_by_label("User id").fill(USER)
    expect(shown(page, "ignoring")).to_have_text(names("gender"))
    contrasts += page.evaluate(TEXT_CONTRASTS)
    page.get_by_label("Territory").select_option("closed")
    expect(page.locator("#problem")).not_to_be_empty()
    contrasts += page.evaluate(TEXT_CONTRASTS)
    assert len(contrasts) > 100
    assert [one for one in contrasts if one[0] < 4.5] == []
