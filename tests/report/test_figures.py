import copy
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import synthetic_results
from matplotlib.figure import Figure

from emojax.emotion.concepts import CATEGORIES
from emojax.report import figures


@pytest.fixture(scope="module")
def found():
    return synthetic_results.make()


def draw(found, name):
    """One figure of each kind."""
    kinds = {
        "space": lambda: figures.emotion_space(found["spaces"][0]),
        "scatter": lambda: figures.rating_scatter(found["scatters"][0], found["ratings"][0]),
        "sets": lambda: figures.feature_sets(found["ratings"], "zh", "arousal"),
        "rdm": lambda: figures.rdm(found["spaces"][0], found["spaces"][0]["emotions"]),
        "dictionaries": lambda: figures.dictionaries(found["sae"]),
        "steering": lambda: figures.steering(found["steering"]["summary"], "en"),
    }
    return kinds[name]()


KINDS = ["space", "scatter", "sets", "rdm", "dictionaries", "steering"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_stands_alone_says_what_it_shows_and_is_the_same_again(found, kind):
    svg = draw(found, kind)
    root = ElementTree.fromstring(svg)
    name = root.attrib["id"]
    assert svg == draw(found, kind)

    title, description = list(root)[:2]
    assert (title.tag[-5:], description.tag[-4:]) == ("title", "desc")
    assert root.attrib["aria-labelledby"].split() == [title.attrib["id"], description.attrib["id"]]
    assert title.text and description.text

    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    assert all(i.startswith(name) for i in ids)
    used = re.findall(r"(?:href=\"#|url\(#)([^\")]+)", svg)
    assert used and set(used) <= set(ids)

    links = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")]
    assert all(link.startswith(("#", "data:image/png")) for link in links)
    assert "<text" not in svg and "currentColor" in svg


def test_numbers_in_words_are_those_of_the_results(found):
    rating = found["ratings"][0]
    svg = draw(found, "scatter")
    assert f"r = {rating['r']:.2f} [{rating['ci_low']:.2f}, {rating['ci_high']:.2f}]" in svg
    assert f"{rating['n_words']} words" in svg
    shown = re.search("<desc.*</desc>", draw(found, "sets")).group()
    ours = [r for r in found["ratings"] if (r["language"], r["target"]) == ("zh", "arousal")]
    for rating in ours:
        assert f"{rating['r']:.2f} [" in shown


def test_a_component_is_drawn_rising_with_its_rating(found):
    space = copy.deepcopy(found["spaces"][0])
    first = next(
        c for c in space["correlations"] if (c["component"], c["target"]) == (1, "valence")
    )

    def order(r):
        first["r"] = r
        return (
            re.search(r"high PC1: (.*)\.</desc>", figures.emotion_space(space)).group(1).split(", ")
        )

    rising = [space["emotions"][i] for i in np.argsort([xy[0] for xy in space["coords"]])]
    assert order(0.6) == rising
    assert order(-0.6) == rising[::-1]


def test_categories_without_ratings_are_drawn(found):
    space = copy.deepcopy(found["spaces"][0])
    space["valence"] = [None] * 26
    space["arousal"] = [None] * 26
    space["correlations"] = []
    assert "26 categories" in figures.emotion_space(space)


@pytest.mark.parametrize("seed", range(3))
def test_labels_of_crowded_points_do_not_overlap(seed):
    random = np.random.default_rng(seed)
    xy = random.normal(size=(26, 2))
    xy[:8] = xy[0] + 0.15 * random.normal(size=(8, 2))
    figure = Figure(figsize=(5.9, 5.3), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*xy.T)
    axes.margins(0.12, 0.08)
    figures._label_points(figure, axes, xy, CATEGORIES, [40.0] * 26)
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    clashes = [
        (axes.texts[i].get_text(), axes.texts[j].get_text())
        for i in range(26)
        for j in range(i)
        if boxes[i].overlaps(boxes[j])
    ]
    assert clashes == []
    page = axes.get_window_extent()
    assert all(page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 for b in boxes)
    centres = np.array([[(b.x0 + b.x1) / 2, (b.y0 + b.y1) / 2] for b in boxes])
    assert np.linalg.norm(centres - axes.transData.transform(xy), axis=1).max() < 100
