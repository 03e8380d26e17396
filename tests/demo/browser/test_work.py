"""`make test-browser`: concepts go and come back, files are taken home."""

import re

import pytest

from tests.demo.browser.conftest import downloaded, erase, picture, scaled, seen

pytestmark = pytest.mark.browser


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
    far = visit.locator("#far-0")
    assert far.is_visible() and "How far: cat" in far.inner_text()
    assert visit.locator("#far-1").is_visible() and not visit.locator("#far-2").is_visible()
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
    assert downloaded(visit, "hosts", tmp_path).stat().st_size > 1000
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
