"""`make test-browser`: visitors apart, other sites, keyboards, phones, the dark."""

import pytest

from tests.demo.browser.conftest import erase, opened, picture, seen

pytestmark = pytest.mark.browser


def test_two_visitors_see_their_own_work_alone(browser, port):
    contexts = [browser.new_context() for _ in range(2)]
    pages = [opened(c, port) for c in contexts]
    for page, concept in zip(pages, ("cat", "pizza"), strict=True):
        page.get_by_label("Forget", exact=False).first.fill(concept)
    for page in pages:
        page.get_by_role("button", name="Erase", exact=True).click()
    for page, own, other in zip(pages, ("cat", "pizza"), ("pizza", "cat"), strict=True):
        page.locator("#erased").get_by_text(own, exact=True).wait_for()
        page.locator("#scores", has_text=own).wait_for()
        assert seen(page, "to go")[1] == 0
        assert page.locator("#erased").get_by_text(other, exact=True).count() == 0
        assert other not in page.locator("#about").inner_text()
    for context in contexts:
        context.close()


def test_a_reload_starts_anew(visit, port):
    erase(visit, "cat")
    visit.reload()
    visit.get_by_role("button", name="Erase", exact=True).wait_for()
    assert visit.locator("#erased").get_by_text("cat", exact=True).count() == 0


def test_everything_has_a_name_for_screen_readers(visit):
    unnamed = visit.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, select')]
        .filter(e => e.offsetParent !== null && e.type !== 'file')
        .filter(e => !(e.getAttribute('aria-label') || e.title || e.innerText.trim()
                       || e.labels?.length || e.closest('label')
                       || e.getAttribute('aria-labelledby') || e.placeholder))
        .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []


def test_the_keyboard_is_enough(visit):
    visit.get_by_label("Forget", exact=False).first.focus()
    visit.keyboard.type("pizza")
    visit.keyboard.press("Enter")
    visit.locator("#erased").get_by_text("pizza", exact=True).wait_for()


def test_a_phone_shows_it_without_scrolling_sideways(browser, port):
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True
    )
    page = opened(context, port)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    erase(page, "cat")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    picture(page, "phone")
    context.close()


def test_dark_mode(browser, port):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = opened(context, port)
    was = page.evaluate("document.body.classList.contains('dark')")
    page.get_by_role("button", name="Dark or light").click()
    assert page.evaluate("document.body.classList.contains('dark')") is not was
    picture(page, "dark")
    context.close()


def test_another_site_does_nothing_as_the_visitor(browser, port):
    """A page of another origin tries what a page can: to fetch, to show, to follow a link."""
    context = browser.new_context()
    page = opened(context, port)
    erase(page, "cat")
    path = page.locator("#gallery img").first.get_attribute("src")
    evil = context.new_page()
    evil.route("http://evil.example/*", lambda route: route.fulfill(body="<p>evil", status=200))
    evil.goto("http://evil.example/")
    home = f"http://127.0.0.1:{port}"
    answers = evil.evaluate(
        """async ([home, path]) => {
        const post = (mode) => fetch(home + '/gradio_api/queue/join', {method: 'POST', mode,
            credentials: 'include', headers: {'content-type': 'text/plain'}, body: '{}'})
            .then(r => r.type + r.status, () => 'refused');
        const picture = () => new Promise(done => { const i = new Image();
            i.onload = () => done('seen'); i.onerror = () => done('refused'); i.src = path });
        return [await post('cors'), await post('no-cors'), await picture()] }""",
        [home, path],
    )
    assert answers[0] == "refused"
    assert answers[1] in ("opaque0", "refused")
    assert answers[2] == "refused"
    # By a link from there the visitor is still the same one.
    before = [c for c in context.cookies() if c["name"] == f"erase-sd-{port}"]
    evil.evaluate("home => { location.href = home + '/' }", home)
    evil.get_by_role("button", name="Erase", exact=True).wait_for()
    assert before == [c for c in context.cookies() if c["name"] == f"erase-sd-{port}"]
    assert len(before) == 1
    context.close()
