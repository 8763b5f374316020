import pytest
from absl import flags
from absl.testing import flagsaver

from emojax.errors import UserError
from emojax.lm import generate, intervene, intervention_files, sources
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
