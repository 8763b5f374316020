import copy

import synthetic_results

from emojax.report import results, table


def test_the_verdict_names_what_was_missed():
    printed = table.markdown(synthetic_results.make())
    assert printed.startswith("**1 of 3 bars met**; missed: B zh.")


def test_every_number_of_the_tables_is_one_of_the_results():
    found = synthetic_results.make()
    printed = table.markdown(found)
    for rating in found["ratings"]:
        assert f"{rating['r']:.3f} [{rating['ci_low']:.2f}, {rating['ci_high']:.2f}]" in printed
    assert "| English | 140 | 60 | 2 |" in printed
    assert "| 10 | 0.50 / 0.50 |" in printed
    for control in found["cross_language"]["controls"]:
        assert f"{control['rdm_spearman']['value']:.3f}" in printed
    # A number that was not measured is a dash.
    assert "| loss recovered (0: the site set to its mean) | 0.930 | – |" in printed


def test_tables_are_well_formed():
    for block in table.markdown(synthetic_results.make()).split("\n\n"):
        lines = block.splitlines()
        if lines[0].startswith("|"):
            assert len({line.count("|") for line in lines}) == 1, block


def test_without_steering_and_with_one_language_the_rest_is_printed():
    found = copy.deepcopy(synthetic_results.make())
    found["steering"], found["cross_language"] = None, None
    printed = table.markdown(results.check(found))
    assert "| dictionary, held-out text |" in printed
    assert "Spearman" not in printed
