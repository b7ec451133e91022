"""Chat templates: a conversation → the text that the model was trained to continue, by the model's own template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, NoReturn

from ..errors import InfercError

try:
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment
except ImportError as error:
    raise InfercError("the model's chat template needs a package: `pip install jinja2`") from error

# Templates index, add and call what messages hold, so a message they do not expect fails as in any program.
_FAILURES = TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; here it only renders them."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:  # fmt: skip
    """Unlike jinja2's own, without HTML escapes: models were trained on plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@cache
def environment() -> jinja2.Environment:
    """Where templates run: sandboxed, with the functions that models' templates expect."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment


@lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    return environment().from_string(template)


def render(template: str, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True,
           **variables: Any) -> str:  # fmt: skip
    """The text of `messages`, each {"role": …, "content": …}, ending where the assistant is to answer.

    `variables` are the template's others: bos_token, eos_token, tools, … The template is untrusted: it runs in jinja2's
    sandbox and changes nothing. Raises InfercError for a template that cannot be read or that refuses the messages.
    """
    try:
        return _compile(template).render(
            messages=list(messages), add_generation_prompt=add_generation_prompt, **variables
        )
    except jinja2.TemplateSyntaxError as error:
        raise InfercError(f"the model's chat template is broken at line {error.lineno}: {error.message}") from error
    except (jinja2.TemplateError, *_FAILURES) as error:
        reason = " ".join(str(error).split())
        raise InfercError(f"the model's chat template refuses these messages: {reason}") from error
