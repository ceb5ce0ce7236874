"""A conversation as the model was trained to read one: the checkpoint's chat template, in a sandbox.

A template is a program that came with someone's weights; it may compute, and neither reach into Python nor change what it is given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from edgeexport.errors import DataError
from edgeexport.session.text import require_text

if TYPE_CHECKING:
    from jinja2 import Template

# Templates may write today's date. Evidence is gathered as if it were this day, so that what is stored is true tomorrow, too.
DAY_OF_PROOF = datetime(2024, 7, 26)
ROLES = ("system", "user", "assistant", "tool")
Message = Mapping[str, Any]


class ChatTemplate:
    """A chat template.

    Attributes:
        source: the template's text, in Jinja as Transformers reads it.
        tokens: special tokens by the names templates use, such as ``bos_token``.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        """Nothing is compiled before it is used: a bundle's other answers need no Jinja."""
        self.source, self.tokens = source, dict(tokens)

    def render(self, messages: Sequence[Message], *, answer: bool = True, today: datetime | None = None) -> str:
        """The conversation as one text, special tokens written out.

        Args:
            messages: each with ``role`` and ``content``, in order.
            answer: end with what begins an answer of the model.
            today: what a template takes for the present; None for the time that it is.

        Raises:
            DataError: the template is no template, or refuses the conversation.
        """
        from jinja2 import TemplateError

        for message in messages:
            if not isinstance(message, Mapping) or message.get("role") not in ROLES or not isinstance(message.get("content"), str):
                raise DataError(f"This is no message: {repr(message)[:80]}",
                                hint=f'a message has "role" ({", ".join(ROLES)}) and "content", a string')
            require_text(message["content"])
        template = self._template
        try:
            return template.render(messages=list(messages), tools=None, documents=None, add_generation_prompt=answer,
                                   strftime_now=lambda form: (today or datetime.now()).strftime(form), **self.tokens)
        except TemplateError as exc:
            raise DataError("The chat template refuses this conversation.", why=str(exc)) from exc
        except Exception as exc:  # what a template computes can fail in any way
            raise DataError("The chat template fails.", why=f"{type(exc).__name__}: {exc}") from exc

    @cached_property
    def _template(self) -> Template:
        from jinja2 import TemplateSyntaxError

        try:
            found: Template = _environment().from_string(self.source)
            return found
        except TemplateSyntaxError as exc:
            raise DataError("The chat template has an error.", why=f"line {exc.lineno}: {exc.message}",
                            hint="mend chat_template in the checkpoint's tokenizer_config.json (or chat_template.jinja)") from exc


def _environment() -> Any:
    """Jinja as Transformers sets it up for templates, so that they come to the same text.

    Source: the settings are named in Transformers' documentation, "Writing a chat template".
    """
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """``{% generation %}`` marks what an assistant said, for training; here it is its content."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None,
             sort_keys: bool = False) -> str:
    """JSON without HTML's escapes, which Jinja's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)
