import ast
import inspect

import pytest
from absl import flags
from absl.testing import flagsaver

from emojax.errors import UserError
from emojax.lm import generate, intervene, intervention_files, sources
from emojax.lm.run_with_cache import run_with_cache
from emojax.lm.text import tokenize
from experiments import look_inside, write

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("family", look_inside.RANDOM)
def test_the_same_lines_for_every_family(family):
    found = look_inside.look_inside(look_inside.random_model(family))
    assert len(found["answers"]) == 2
    plain, steered = found["texts"]
    assert plain != steered


def test_a_family_that_is_not_there():
    with pytest.raises(UserError, match=r"no random 'bert'; use one of llama"):
        look_inside.random_model("bert")


def test_writing_in_the_terminal(tmp_path, monkeypatch, capsys):
    lm = look_inside.random_model("llama")
    monkeypatch.setattr(sources, "load", lambda name: lm)
    edit = intervene.ablate(layer=1)
    intervention_files.save(tmp_path, [edit])
    settings = generate.GenerateSettings(max_new_tokens=8, temperature=0.8, seed=3)
    expected = generate.generate(lm, ["Once"], settings, [edit]).texts[0]
    with flagsaver.flagsaver(
        (write.PROMPT, "Once"),
        (write.INTERVENTIONS, str(tmp_path)),
        (write.MAX_NEW_TOKENS, 8),
        (write.SEED, 3),
    ):
        flags.FLAGS.mark_as_parsed()
        write.main([])
    assert capsys.readouterr().out == expected + "\n"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_patched_answer_is_the_other_questions(family, monkeypatch):
    lm = look_inside.random_model(family)
    # As long as the first question, with an end that makes the likeliest next token another.
    first, second = look_inside.QUESTIONS
    questions = [first, *(second[:-1] + end for end in "abcdeghijk")]
    rows = tokenize(lm, questions)
    assert len(set(map(len, rows))) == 1
    likeliest = run_with_cache(lm, rows, [])[0][:, -1].argmax(axis=-1)
    answers = [lm.tokenizer.decode([int(token)]) for token in likeliest]
    other = next(i for i, answer in enumerate(answers) if answer != answers[0])
    monkeypatch.setattr(look_inside, "QUESTIONS", [first, questions[other]])
    assert look_inside.look_inside(lm)["answers"] == [answers[0], answers[other]]


def test_they_are_ten_lines():
    (function,) = ast.parse(inspect.getsource(look_inside.look_inside)).body
    lines = function.body[1:]  # without the docstring
    assert len(lines) == 10
    assert all(line.lineno == line.end_lineno for line in lines)
