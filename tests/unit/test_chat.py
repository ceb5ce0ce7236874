"""A conversation by the checkpoint's template, in a sandbox."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from edgeexport.errors import DataError
from edgeexport.session.chat import DAY_OF_PROOF, ChatTemplate
from edgeexport.session.text import require_text

CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_a_conversation_is_written() -> None:
    template = ChatTemplate(CHATML, {})
    assert template.render(TALK, answer=False) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    assert template.render(TALK[:1]).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_templates_get_the_special_tokens_and_what_they_are_used_to() -> None:
    source = ("{{ bos_token }}{% for message in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ message | tojson }}{% endfor %}"
              "{% generation %}{{ strftime_now('%Y') | length }}{% endgeneration %}")
    assert ChatTemplate(source, {"bos_token": "<s>"}).render([{"role": "user", "content": "<é>"}]) == '<s>{"role": "user", "content": "<é>"}4'


def test_a_template_is_told_the_present_or_another_time() -> None:
    template = ChatTemplate("{% macro day() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}{{ day() }}", {})
    assert template.render(TALK, today=DAY_OF_PROOF) == "26 Jul 2024"
    before = datetime.now().strftime("%d %b %Y")
    assert template.render(TALK) in {before, datetime.now().strftime("%d %b %Y")}


def test_what_a_template_refuses_is_told_in_its_words() -> None:
    with pytest.raises(DataError, match="must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}", {}).render(TALK)


@pytest.mark.parametrize("source", ["{% for message in messages %}", "{{ messages | nonsense }}"])
def test_an_error_in_a_template_is_told_by_its_line(source: str) -> None:
    with pytest.raises(DataError, match="has an error") as caught:
        ChatTemplate(source, {}).render(TALK)
    assert caught.value.what == "The chat template has an error." and "line 1" in str(caught.value.why)


def test_a_template_reaches_nothing_and_changes_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for source in ("{{ ''.__class__.__mro__[1].__subclasses__() }}", f"{{{{ cycler.__init__.__globals__.os.system('touch {canary}') }}}}",
                   "{{ messages.append(1) }}", "{% include 'x' %}"):
        with pytest.raises(DataError):
            ChatTemplate(source, {}).render(TALK)
    assert not canary.exists() and len(TALK) == 2


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "robot", "content": "x"}, {"role": "user", "content": 3}, {}, "Hi", None])
def test_what_is_no_message_is_told(message: Any) -> None:
    with pytest.raises(DataError, match="no message"):
        ChatTemplate(CHATML, {}).render([message])


@pytest.mark.parametrize(("value", "told"), [(3, "no text"), (None, "no text"), ("a\udcff", "not valid Unicode"), ({"role": "user"}, "no text")])
def test_what_is_no_text_is_told(value: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        require_text(value)
