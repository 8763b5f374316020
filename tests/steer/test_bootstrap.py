import math

import numpy as np
import pytest

from emojax.errors import UserError
from emojax.steer import bootstrap

pytestmark = pytest.mark.smoke


def ends(estimate):
    return (estimate.value, estimate.ci_low, estimate.ci_high)


def test_prompts_are_resampled_whole_and_not_single_texts():
    values = np.stack([np.zeros((1, 50)), np.ones((1, 50))])
    # Two prompts, all alike within: as uncertain as two numbers are, however many emotions.
    found = bootstrap.mean(values, seed=0)
    assert ends(found) == (0.5, 0.0, 1.0)
    assert found.covers == "prompts and emotions"


def test_emotions_are_resampled_whole_and_not_single_texts():
    values = np.broadcast_to(np.array([0.0, 1.0]), (50, 1, 2))
    assert ends(bootstrap.mean(values, seed=0)) == (0.5, 0.0, 1.0)


def test_what_has_no_second_is_held_fixed():
    assert ends(bootstrap.mean(np.full((1, 1, 1), 3.0), seed=0)) == (3.0, None, None)
    plain = np.array([0.0, 1.0]).reshape(1, 2, 1)
    found = bootstrap.mean(np.full((1, 1, 1), 3.0), 0, plain)
    assert ends(found) == (2.5, 2.0, 3.0)
    assert found.covers == "unsteered texts of a prompt"


def test_the_variance_of_a_mean_is_unbiased():
    values = np.random.default_rng(0).normal(size=(5, 1, 1))
    found = bootstrap.mean(values, seed=0)
    # Normal enough for its percentiles to give its standard deviation away.
    width = (found.ci_high - found.ci_low) / (2 * 1.96)
    assert width == pytest.approx(values.std(ddof=1) / math.sqrt(5), rel=0.1)


def test_the_unsteered_texts_count_prompt_by_prompt():
    values = np.array([[[1.0, 2.0]], [[11.0, 12.0]]])
    plain = np.array([[[0.0], [2.0]], [[10.0], [12.0]]])
    found = bootstrap.mean(values, 0, plain)
    # Prompts differ by 10 for both, so that does not widen their difference.
    assert found.value == 0.5
    assert found.ci_high - found.ci_low < 4
    assert found.covers == "prompts, emotions and unsteered texts of a prompt"


def test_a_few_unsteered_texts_widen_the_interval():
    values = np.linspace(-0.1, 0.1, 26).reshape(1, 1, 26)
    few = np.array([-1.0, 0.0, 1.0]).reshape(1, 3, 1)
    wide, narrow = (bootstrap.mean(values, 0, np.tile(few, (1, n, 1))) for n in (1, 100))
    assert wide.ci_high - wide.ci_low > 3 * (narrow.ci_high - narrow.ci_low)


def test_one_degenerate_text_of_eight_moves_a_ratio_by_its_eighth():
    steered = np.log(np.full((1, 1, 26), 20.0))
    plain = np.log(np.full((1, 8, 1), 20.0))
    plain[0, 0] = math.log(20.0 / 256)
    assert bootstrap.mean(steered, 0, plain, math.exp).value == pytest.approx(2)


def test_missing_texts_are_left_out():
    values = np.array([[[1.0, np.nan, 3.0]], [[np.nan, np.nan, 2.0]]])
    assert bootstrap.mean(values, seed=0).value == 2
    plain = np.array([[[1.0], [np.nan]], [[2.0], [2.0]]])
    assert bootstrap.mean(values, 0, plain).value == pytest.approx(2 / 3)


def test_nothing_measured_is_refused():
    with pytest.raises(UserError, match="No text was measured"):
        bootstrap.mean(np.full((2, 1, 3), np.nan), seed=0)


def coverage(draw, experiments=100):
    """How often the interval holds 0, and its width over that of the means' own distribution."""
    found = [
        bootstrap.mean(values, seed, plain)
        for seed, (values, plain) in enumerate(draw() for _ in range(experiments))
    ]
    width = np.mean([x.ci_high - x.ci_low for x in found])
    held = np.mean([x.ci_low <= 0 <= x.ci_high for x in found])
    return held, width / (2 * 1.96 * np.std([x.value for x in found]))


@pytest.mark.parametrize(
    ("spread_of_prompts", "least", "widest"),
    [(0.0, 0.90, 1.6), (1.0, 0.80, 1.2)],
    ids=["alike", "unlike"],
)
def test_the_interval_covers_no_difference_about_as_often_as_it_says(
    spread_of_prompts, least, widest
):
    """Steered and unsteered texts are of one distribution: the interval should hold 0."""
    random = np.random.default_rng(0)

    def draw():
        prompts, steering = random.normal(size=(2, 4, 1, 1))
        plain = prompts + 0.5 * random.normal(size=(4, 8, 1))
        values = prompts + spread_of_prompts * steering + 0.2 * random.normal(size=(1, 1, 26))
        return values + 0.5 * random.normal(size=(4, 1, 26)), plain

    held, width = coverage(draw)
    assert held >= least
    assert width <= widest


def test_shares_of_one_distribution_differ_by_nothing():
    random = np.random.default_rng(1)

    def draw():
        rate = random.beta(2, 8, size=(4, 1, 26))
        shares = random.random((4, 1, 26)) < rate, random.random((4, 8, 26)) < rate
        return [x.astype(float) for x in shares]

    held, width = coverage(draw)
    assert held >= 0.9
    assert width <= 1.8
