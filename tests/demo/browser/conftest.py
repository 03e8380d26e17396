"""The page in a real Chromium: a server, a browser, a visitor."""

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

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
WAIT = 120_000  # milliseconds; a queue of visitors on two cores


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
    said = []
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


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    (folder / "cats.html").write_text(
        "<h1>Results of a run</h1><script>document.title = 'taken over'</script>"
    )
    return folder


@pytest.fixture(scope="session")
def port(reports):
    with serving("--reports", str(reports)) as port:
        yield port


@pytest.fixture(scope="session")
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
