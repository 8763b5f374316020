import dataclasses
import inspect

import pytest
import tiny_gguf

from emojax.errors import UserError
from emojax.lm import sources
from emojax.lm.chat import chat_rows

pytestmark = pytest.mark.smoke

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ raise_exception('no tools here') }}{% endif %}"
    "<start_of_turn>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<end_of_turn>{% endif %}"
)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_gguf.write(folder / "tiny.gguf")
    return sources.load(folder / "tiny.gguf", cache=folder)


def with_template(lm):
    import copy

    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template = TEMPLATE
    return dataclasses.replace(lm, tokenizer=tokenizer)


def test_conversations_follow_the_template(lm):
    lm = with_template(lm)
    messages = [{"role": "user", "content": "happy"}, {"role": "model", "content": "sad"}]
    rows = chat_rows(lm, ["happy", messages])
    words = [lm.tokenizer.convert_ids_to_tokens(row) for row in rows]
    assert [w[0] for w in words] == ["<bos>"] * 2
    assert [w.count("<start_of_turn>") for w in words] == [1, 2]
    assert lm.tokenizer.decode(rows[0], skip_special_tokens=True).startswith("happy")


def test_models_and_messages_that_do_not_fit(lm):
    lm.tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        chat_rows(lm, ["happy"])
    with pytest.raises(UserError, match="'happy' is a single one"):
        chat_rows(lm, "happy")
    with pytest.raises(UserError, match=r"does not take conversation 1 .*no tools here"):
        chat_rows(with_template(lm), ["happy", [{"role": "tool", "content": "x"}]])


def test_what_is_no_list_of_conversations(lm):
    lm = with_template(lm)
    chat = inspect.unwrap(chat_rows)  # the tests check annotations at every call
    for single in ("happy", [{"role": "user", "content": "happy"}]):
        with pytest.raises(UserError, match="is a single one; put it in brackets"):
            chat(lm, single)
    for wrong in (5, ["sad"], {"role": "user", "content": "sad"}):
        with pytest.raises(UserError, match=r"Conversation 1 .* is neither a text nor a list"):
            chat(lm, ["happy", wrong])
