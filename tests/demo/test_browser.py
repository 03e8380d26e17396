"""The page in a real browser: `make test-browser`."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
WAIT = 120_000  # milliseconds; a queue of visitors on two cores


SAID = {}  # what the server of a port has written


@contextlib.contextmanager
def serving(*options, **environment):
    """A demo in a process of its own; gives its port."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "erase_sd.cli.main", "demo", "--port", str(port), *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    said = SAID[port] = []
    for line in process.stderr:
        said.append(line)
        if "the demo is at" in line:
            break
    else:
        raise RuntimeError("".join(said))

    def read():
        for line in process.stderr:
            said.append(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield port
    finally:
        process.terminate()
        process.wait(30)
        reader.join(30)
        process.stderr.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    (folder / "cats.html").write_text(
        "<h1>Results of a run</h1><script>document.title = 'taken over'</script>"
    )
    return folder


@pytest.fixture(scope="module")
def port(reports):
    with serving("--reports", str(reports)) as port:
        yield port


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, port):
    """A visitor's page; what it asked of other hosts and its errors are kept on it."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
    page = opened(context, port)
    yield page
    assert not page.elsewhere, f"asked others: {page.elsewhere}"
    context.close()


def opened(context, port):
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.elsewhere = []
    home = f"http://127.0.0.1:{port}/"

    def asked(request):
        if not request.url.startswith((home, "data:", "blob:")):
            page.elsewhere.append(request.url)

    page.on("request", asked)
    page.goto(home)
    page.get_by_role("button", name="Erase", exact=True).wait_for()
    return page


def picture(page, name):
    """Keep a screenshot where one is asked for."""
    folder = os.environ.get("ERASE_SD_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(500)
        page.screenshot(path=str(Path(folder) / f"demo-{name}.png"), full_page=name != "phone")


def erase(page, concept):
    """Erase a concept and wait for the pictures; seconds from the click."""
    page.get_by_label("Forget", exact=False).first.fill(concept)
    start = time.perf_counter()
    page.get_by_role("button", name="Erase", exact=True).click()
    page.locator("#erased").get_by_text(concept.split(",")[0], exact=True).wait_for()
    page.locator("#scores", has_text=f"{concept.split(',')[0]}").wait_for()
    return time.perf_counter() - start


def seen(page, kind):
    """Counts of the judge, (before, after, of)."""
    text = page.locator("#scores").inner_text()
    found = re.search(rf"recognised of what was {kind}: (\d+)/(\d+) before, (\d+)/\d+ after", text)
    assert found, text
    before, of, after = map(int, found.groups())
    return before, after, of


def scaled(page, value, after):
    """Set the scale, and wait until so many of what was to go are recognised."""
    page.locator("#scale input[type=range]").fill(str(value))
    page.locator(
        "#scores", has_text=re.compile(rf"of what was to go: \d+/\d+ before, {after}/")
    ).wait_for()


def downloaded(page, kind, folder):
    with page.expect_download() as waiting:
        page.locator(f"#download-{kind}").click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_a_cat_goes_and_comes_back_and_a_second_concept_joins(visit, tmp_path):
    from erase_sd.artifact.erasure import Erasure

    seconds = erase(visit, "cat, kitten")
    print(f"\nfrom click to before/after: {seconds:.1f} s")
    assert "solved in" in visit.locator("#about").inner_text()
    before, after, of = seen(visit, "to go")
    assert (before, after) == (of, 0)
    of_cat = of
    before, after, of = seen(visit, "to stay")
    assert after >= of - 1
    picture(visit, "erased")

    scaled(visit, 0, after=of_cat)
    scaled(visit, 1, after=0)

    erase(visit, "pizza")
    before, after, of = seen(visit, "to go")
    assert after == 0
    assert of >= 3
    picture(visit, "stacked")
    both = downloaded(visit, "erasure", tmp_path)
    assert Erasure.load(both).names == ("cat", "pizza")

    visit.locator("#erased").get_by_label("cat", exact=True).check()
    visit.get_by_role("button", name="Remove ticked").click()
    visit.locator("#erased").get_by_text("cat", exact=True).wait_for(state="detached")
    visit.wait_for_function("() => !document.querySelector('#scores').innerText.includes('kitten')")
    assert Erasure.load(downloaded(visit, "erasure", tmp_path)).names == ("pizza",)


def test_the_lora_from_the_page_works_in_diffusers(visit, tmp_path, pipe):
    from erase_sd.emoji.judge import judge
    from erase_sd.pipelines.sampling import generate

    erase(visit, "cat")
    prompts, seeds = ["a picture of a cat"] * 4, range(4)
    assert judge(generate(pipe, prompts, seeds)).top.count("cat") == 4
    path = downloaded(visit, "peft", tmp_path)
    assert downloaded(visit, "kohya", tmp_path).stat().st_size > 1000
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    assert judge(generate(pipe, prompts, seeds)).top.count("cat") == 0


def test_an_erasure_file_can_be_brought_along(visit, tmp_path, cat):
    path = cat.save(tmp_path / "mine.safetensors")
    visit.locator("#upload input[type=file], input#upload, input[type=file]").first.set_input_files(
        str(path)
    )
    visit.locator("#erased").get_by_text("cat", exact=True).wait_for()
    visit.locator("#scores", has_text="cat").wait_for()
    assert seen(visit, "to go")[1] == 0
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\xff" * 1000)
    visit.locator("#upload input[type=file], input#upload, input[type=file]").first.set_input_files(
        str(bad)
    )
    visit.get_by_text("is damaged").wait_for()


@pytest.mark.parametrize(
    ("forget", "retain", "told"),
    [
        ("", "", "type what to forget"),
        ("cat", "cat", "both to forget and to retain"),
        (", ".join(f"word{i}" for i in range(40)), "", "at most 32 prompts"),
        ("x" * 500, "", "300 characters"),
        ("file:/etc/passwd", "", "here are prompts and the sets"),
    ],
)
def test_wrong_input_is_told_in_one_line(visit, forget, retain, told):
    visit.get_by_label("Forget", exact=False).first.fill(forget)
    visit.locator("#retain textarea, #retain input").first.fill(retain)
    visit.get_by_role("button", name="Erase", exact=True).click()
    visit.get_by_text(told).first.wait_for()
    assert "Traceback" not in visit.content()


def test_preflight_draws_nothing(visit):
    visit.get_by_label("Forget", exact=False).first.fill("cat")
    visit.get_by_role("button", name="Pre-flight").click()
    visit.locator("#about", has_text="Words that move most").wait_for()
    assert visit.locator("#scores").inner_text().strip() == ""
    picture(visit, "preflight")


def test_cancel_ends_the_drawing(visit):
    visit.get_by_label("Forget", exact=False).first.fill("dog")
    visit.get_by_role("button", name="Erase", exact=True).click()
    visit.locator("#about", has_text="solved in").wait_for()
    visit.get_by_role("button", name="Cancel").click()
    visit.wait_for_timeout(1500)
    assert visit.locator("#erased").get_by_text("dog", exact=True).count() == 0
    erase(visit, "guitar")  # and the page goes on working
    assert visit.locator("#erased").get_by_text("dog", exact=True).count() == 0


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


def test_the_classifier_forgets(visit):
    visit.get_by_role("tab", name="Classifier").click()
    visit.get_by_role("button", name="Forget", exact=True).click()
    visit.locator("#outcome", has_text="forgotten samples no longer recognised").wait_for()
    assert re.search(
        r"no longer recognised\s+[\d.]+ %\s+(9\d|100)", visit.locator("#outcome").inner_text()
    )
    picture(visit, "classifier")


def test_a_report_opens_without_running_its_scripts(visit):
    visit.get_by_role("tab", name="Report").click()
    visit.locator("#report input").click()
    visit.get_by_role("option", name="cats.html").click()
    visit.frame_locator("#report-page iframe").get_by_text("Results of a run").wait_for()
    assert "taken over" not in visit.title()


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
