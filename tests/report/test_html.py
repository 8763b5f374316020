import copy
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import synthetic_results

from emojax.emotion.concepts import CATEGORIES
from emojax.errors import UserError
from emojax.report import html
from emojax.report.table import markdown

SECTIONS = [
    "summary",
    "dictionary",
    "space",
    "ratings",
    "features",
    "steering",
    "method",
    "provenance",
]
EVIL = "<script>alert('x')</script>&\"'"


class Page(HTMLParser):
    """The ids, links, tags and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.tags, self.words, self.attributes = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.attributes += attributes
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "a":
            self.links.append(attributes["href"])

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def found():
    return synthetic_results.make()


@pytest.fixture(scope="module")
def text(found):
    return html.build(found)


def without_figures(found):
    """Results whose page is quick to make: one space, no scatters."""
    small = copy.deepcopy(found)
    small["spaces"], small["scatters"], small["ratings"] = [], [], []
    return small


def test_the_page_holds_every_section_and_the_numbers(found, text):
    page = Page(text)
    for section in SECTIONS:
        assert section in page.ids
    for bar in found["bars"]:
        assert bar["statement"] in page.text
    assert "1 was met, 1 missed" in page.text
    for source in found["run"]["sources"]:
        assert source["licence"] in page.text
    for row in found["steering"]["rows"][:1]:
        assert row["text"].strip() in page.text
    for emotion in CATEGORIES:
        assert emotion in page.text
    assert "No numeric replication is claimed" in page.text


def test_every_emotion_stands_beside_the_unsteered_text(found, text):
    tables = re.findall(r'<table class="texts">.*?</table>', text, re.DOTALL)
    assert len(tables) == 2  # two pairs of an English and a Chinese prompt
    for table in tables:
        rows = re.findall(r'<th scope="row">([^<]*)</th>', table)
        assert rows == ["unsteered", *CATEGORIES, "unsteered"]
        assert len(re.findall("<td>", table)) == 2 * 28


def test_the_page_says_what_each_steering_interval_covers(found):
    other = without_figures(found)
    for row in other["steering"]["summary"]:
        row["perplexity_ratio"]["covers"] = "prompts only"
    said = Page(html.build(other)).text
    assert "synthetic prompts and emotions (steered texts: word, more than unsteered," in said
    assert "prompts only (steered texts: perplexity ratio; unsteered texts: perplexity" in said


def test_ids_are_unique_and_links_lead_somewhere(text):
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    inner = {link[1:] for link in page.links if link.startswith("#")}
    assert inner and inner <= set(page.ids)


def test_the_page_needs_nothing_from_outside_and_runs_nothing(text):
    page = Page(text)
    assert not {"script", "iframe", "object", "embed", "img", "base"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert not {"src", "srcset"} & set(page.attributes)
    outside = re.findall(r"""(?:url\(|@import|href=["'])\s*["']?(https?:[^"')]+)""", text)
    assert outside == ["https://example.org/norms"]  # a link to click on
    assert "default-src 'none'" in text


def test_the_same_results_make_the_same_page(found, text):
    assert html.build(copy.deepcopy(found)) == text


def test_what_a_model_or_a_file_says_is_shown_not_run(found):
    evil = without_figures(found)
    evil["model"]["name"] = evil["run"]["command"] = evil["notes"][0] = EVIL
    evil["bars"][0]["statement"] = evil["run"]["config"][EVIL] = EVIL
    evil["run"]["sources"][0].update(name=EVIL, licence=EVIL, url="javascript:alert(1)")
    evil["features"]["categories"][0].update(name_zh=EVIL)
    evil["features"]["categories"][0]["en"][0]["top_words"] = [EVIL]
    evil["steering"]["prompts"][0]["text"] = EVIL
    evil["steering"]["vectors"][0]["promoted_tokens"] = [EVIL]
    for row in evil["steering"]["rows"]:
        row.update(text=EVIL, judged=EVIL)
        if row["emotion"]:
            row["emotion_words"] = ["alert", "<"]
    page = Page(html.build(evil))
    assert "script" not in page.tags
    assert "alert('x')" in page.text
    assert not [link for link in page.links if link.startswith("javascript")]


def test_words_of_the_emotion_are_marked_as_whole_words():
    assert html.marked("Enjoy joy & JOY", ["joy"]) == (
        "Enjoy <mark>joy</mark> &amp; <mark>JOY</mark>"
    )
    assert html.marked("很快乐<", ["快乐"]) == "很<mark>快乐</mark>&lt;"
    assert html.marked("<b>", None) == "&lt;b&gt;"


def test_numbers_are_written_as_in_print():
    assert html.number(-0.126) == "−0.13"
    assert html.number(None) == "–"
    assert html.percent(0.256) == "26%"
    assert html.p_value(0.0004) == "< 0.001"
    assert html.p_is(0.04) == "= 0.040"
    assert html.visible_token(" a\n") == "␣a⏎"


def test_the_strongest_latents_take_turns():
    latents = [{"top_words": ["a", "b"]}, {"top_words": ["a", "c", "d"]}]
    assert html.strongest_words({"en": latents}, "en", 3) == ["a", "b", "c"]


def test_what_was_left_out_is_said(found):
    plain = without_figures(found)
    plain["steering"]["judges"] = []
    for row in plain["steering"]["rows"]:
        row.update(judged=None, judged_intended=None)
    plain["cross_language"] = None
    text = Page(html.build(plain)).text
    assert "No judge read these texts" in text
    assert "Judged as the emotion" not in text
    assert "this run has one language" in text
    plain["steering"] = None
    assert "This run steered nothing." in Page(html.build(plain)).text


def test_a_run_of_one_language_shows_that_one_alone(found):
    alone = copy.deepcopy(found)
    alone["cross_language"] = None
    del alone["features"]["words_per_category"]["zh"]
    for category in alone["features"]["categories"]:
        category.update(zh=[], shared=[])
    alone["spaces"], alone["scatters"] = [], []  # quicker to make
    for part in ("ratings", "differences"):
        alone[part] = [x for x in alone[part] if x["language"] == "en"]
    steering = alone["steering"]
    english = [i for i, p in enumerate(steering["prompts"]) if p["language"] == "en"]
    steering["prompts"] = [steering["prompts"][i] for i in english]
    steering["rows"] = [
        row | {"prompt": english.index(row["prompt"])}
        for row in steering["rows"]
        if row["prompt"] in english
    ]
    steering["summary"] = [x for x in steering["summary"] if x["language"] == "en"]
    text = Page(html.build(alone)).text
    assert "emotions, in English: what space they span" in text
    for said in ("Word, English", "Strongest words, English"):
        assert said in text
        assert said.replace("English", "Chinese") not in text
    assert "∩" not in text
    ratings = next(line for line in markdown(alone).splitlines() if "Pearson r" in line)
    assert "English valence" in ratings
    assert "Chinese" not in ratings


def test_bad_results_leave_the_earlier_report(tmp_path, found):
    path = tmp_path / "report.html"
    html.write(without_figures(found), path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"results\.bars is missing"):
        html.write({k: v for k, v in found.items() if k != "bars"}, path)
    assert path.read_bytes() == before


def complaints(path, profile):
    """What headless Chromium, cut off from the network, says on its console about a page."""
    command = [
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome"),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
        "--dump-dom",
        path.as_uri(),
    ]
    if command[0] is None:
        pytest.skip("Chromium is not installed")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_the_page_opens_from_disk_without_a_request_or_a_complaint(tmp_path, text):
    page, spoilt = tmp_path / "report.html", tmp_path / "spoilt.html"
    page.write_text(text, encoding="utf-8")
    dom, console = complaints(page, tmp_path / "profile")
    assert console == []
    assert Page(dom).ids == Page(text).ids

    # The page's policy turns any request into a complaint: this one is seen.
    request = '<img src="https://example.org/x.png"></footer>'
    spoilt.write_text(text.replace("</footer>", request), encoding="utf-8")
    _, console = complaints(spoilt, tmp_path / "profile")
    assert any("example.org" in line for line in console)
