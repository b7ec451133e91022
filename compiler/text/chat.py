"""Chat templates as tables: what stands before, between and after the messages, found by rendering the template.

A template is a program, in Jinja; most only write a text between two messages that depends on who speaks before and
after, and on whether it is the first message or the last. `chat_table` renders many conversations, whose contents it
recognises in what comes out, reads off those texts, and checks that the table then gives every one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import jinja2
import numpy as np

from ...errors import InfercError
from ...runtime import chat
from .patterns import Unsupported

ROLES = ("system", "user", "assistant")
START, END, GENERATE = 0xFFFF, 0xFFFE, 0xFFFD  # in place of a role: before the first message, after the last
FIRST, LAST = 1, 2  # the message before the gap is the first; the one after it is the last
NO_TRIM, TRIM_SPACE, TRIM_NEWLINE, NO_SPACE = range(4)  # what is taken off an end of a content, or refused there
STRIP = {NO_TRIM: "", TRIM_SPACE: None, TRIM_NEWLINE: "\n"}
DATE = "\x02the date of the day\x02"

Messages = Sequence[tuple[str, str]]  # (role, content)
Key = tuple[int, int, int]  # what is left and right of a gap, and FIRST and LAST


@dataclass(frozen=True)
class ChatTable:
    """`gaps` by key; `trim` is (left, right) of each role's contents; a content with one of its role's `guards` in it
    is refused ("" stands for an empty content)."""

    roles: tuple[str, ...]
    gaps: dict[Key, str]
    trim: tuple[tuple[int, int], ...]
    guards: tuple[tuple[int, str], ...]

    def render(self, messages: Messages, generate: bool) -> str | None:
        """What the C renders; None for what it refuses."""
        text = ""
        try:
            roles = [self.roles.index(role) for role, _ in messages]
            for (left, right, where), content in zip(_keys(roles, generate), ["", *(c for _, c in messages)]):
                if left != START:
                    trim = self.trim[left]
                    if NO_SPACE in trim and content != content.strip():
                        return None
                    content = content.lstrip(STRIP.get(trim[0], "")).rstrip(STRIP.get(trim[1], ""))
                    if any(r == left and (g in content if g else not content) for r, g in self.guards):
                        return None
                text += content + self.gaps[left, right, where]
        except (KeyError, ValueError):
            return None
        return text


def _keys(roles: Sequence[int], generate: bool) -> Iterator[Key]:
    """The gaps of a conversation, in order."""
    row = [START, *roles, GENERATE if generate else END]
    for i, (left, right) in enumerate(zip(row, row[1:])):
        yield left, right, FIRST * (i == 1) + LAST * (i == len(roles) - 1)


class _Template:
    """Renders conversations; None for those that the template refuses."""

    def __init__(self, template: str, bos: str, eos: str) -> None:
        self._template, self._tokens = template, {"bos_token": bos, "eos_token": eos}

    def __call__(self, messages: Messages, generate: bool) -> str | None:
        described = [{"role": role, "content": content} for role, content in messages]
        variables: dict[str, Any] = {**self._tokens, "strftime_now": lambda format: DATE}
        try:
            text = chat.render(self._template, described, add_generation_prompt=generate, **variables)
        except InfercError:
            return None
        if DATE in text:
            raise Unsupported("it writes the date of the day")
        return text

    def constants(self) -> list[str]:
        """The texts that the template looks for or writes."""
        try:
            nodes = chat.environment().parse(self._template).find_all(jinja2.nodes.Const)
        except jinja2.TemplateError as error:
            raise Unsupported(f"it cannot be read ({error})") from error
        return sorted({n.value for n in nodes if isinstance(n.value, str) and n.value.strip()})


def chat_table(template: str, bos: str, eos: str) -> ChatTable:
    """The table of a template. Raises Unsupported, with the reason, where none gives what the template does."""
    render = _Template(template, bos, eos)
    constants = render.constants()
    reason: Unsupported | None = None
    for roles in (ROLES, ROLES[1:]):  # some put what the system says where no table does
        try:
            table = _table(render, roles, constants)
            if table.gaps:
                return table
        except Unsupported as error:
            reason = reason or error
    raise reason or Unsupported("it renders no conversation")


def _conversations(roles: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for length in range(5):
        yield from product(roles, repeat=length)
    for length in (5, 6, 7):
        turns = tuple(("user", "assistant")[i % 2] for i in range(length))
        yield turns
        if "system" in roles:
            yield ("system", *turns)


def _table(render: _Template, roles: tuple[str, ...], constants: Sequence[str]) -> ChatTable:
    gaps: dict[Key, str] = {}
    undecided = set()  # what depends on messages farther away, such as an answer's place after the last question
    rendered: list[tuple[Messages, bool, str | None]] = []
    for conversation in _conversations(roles):
        messages: Messages = [(role, f"Qz{i}Zq") for i, role in enumerate(conversation)]
        for generate in (True, False):
            text = render(messages, generate)
            rendered.append((messages, generate, text))
            found = None if text is None else _gaps(text, [c for _, c in messages])
            keys = list(_keys([roles.index(r) for r in conversation], generate))
            for key, gap in zip(keys, found or ()):
                if gaps.setdefault(key, gap) != gap:
                    undecided.add(key)
    gaps = {key: gap for key, gap in gaps.items() if key not in undecided}
    bare = ChatTable(roles, gaps, ((NO_TRIM, NO_TRIM),) * len(roles), ())
    trim = tuple(_trim(render, bare, role) for role in roles)
    table = ChatTable(roles, gaps, trim, ())
    for usual in (("user",), ("user", "assistant", "user")):
        if table.render([(role, "x") for role in usual], True) is None:
            raise Unsupported("what it writes between two messages depends on messages farther away")
    for messages, generate, text in rendered:
        if (predicted := table.render(messages, generate)) is not None and predicted != text:
            raise Unsupported("it leaves out, repeats or moves contents of messages, or refuses some orders of roles")
    return replace(table, guards=tuple(dict.fromkeys(_guards(render, table, constants))))


def _gaps(text: str, contents: Sequence[str]) -> list[str] | None:
    """What stands around the contents; None unless each occurs once and in order."""
    found = []
    for content in contents:
        before, mark, text = text.partition(content)
        if not mark:
            return None
        found.append(before)
    return None if any(c in text or any(c in gap for gap in found) for c in contents) else [*found, text]


def _samples(table: ChatTable, role: str, content: str) -> Iterator[tuple[Messages, bool]]:
    """Conversations that the table renders in which a message of that role has that content."""
    for conversation in _conversations(table.roles):
        if role not in conversation or len(conversation) in (3, 4, 6) and conversation[:2] != ("user", "assistant"):
            continue
        generate = len(conversation) % 2 == 1 or conversation[-1] == "user"
        messages = [(r, f"Qz{i}Zq") for i, r in enumerate(conversation)]
        if table.render(messages, generate) is None:
            continue
        for i in {conversation.index(role), len(conversation) - 1 - conversation[::-1].index(role)}:
            yield [(r, content if j == i else c) for j, (r, c) in enumerate(messages)], generate


HARMLESS = (
    "x", "\n x\n", "  two  words  ", "a\r\n\tb", "<b>&amp;</b>'\"{{ x }}{% y %}", "é漢😀", "\u2003\u00a0x\x1c", "\n\n",
)  # fmt: skip


def _trim(render: _Template, table: ChatTable, role: str) -> tuple[int, int]:
    """What the template takes off the ends of a role's contents, as one conversation shows it and others confirm."""
    content, index = "\n \u2003x\u2003 \n", table.roles.index(role)
    messages, generate = next(_samples(table, role, content), (None, False))
    if messages is None:
        return NO_TRIM, NO_TRIM  # the template refuses the role
    text = render(messages, generate)
    shown = [t for t in product(STRIP, STRIP) if _with_trim(table, index, t).render(messages, generate) == text]
    for trim in (*shown, (NO_SPACE, NO_SPACE)):
        if all(_agrees(render, _with_trim(table, index, trim), role, c) for c in HARMLESS):
            return trim
    raise Unsupported(f"it changes the contents of messages of the role {role}")


def _with_trim(table: ChatTable, role: int, trim: tuple[int, int]) -> ChatTable:
    return replace(table, trim=(*table.trim[:role], trim, *table.trim[role + 1 :]))


def _guards(render: _Template, table: ChatTable, constants: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Contents that the template treats in ways of its own: those with one of its own constants in them, or none."""
    for index, role in enumerate(table.roles):
        if not all(_agrees(render, table, role, content) for content in ("", " ")):
            yield index, ""
        for constant in constants:
            around = (constant, f"a{constant}b", f"{constant}b", f"a{constant}", f"a\n{constant}\n\nb{constant}")
            if not all(_agrees(render, table, role, content) for content in around):
                yield index, constant.strip()


def _agrees(render: _Template, table: ChatTable, role: str, content: str) -> bool:
    """Whether the table, where it does not refuse, renders a content as the template does."""
    for messages, generate in _samples(table, role, content):
        text = table.render(messages, generate)
        if text is not None and text != render(messages, generate):
            return False
    return True


def sections(table: ChatTable | None) -> dict[str, np.ndarray | bytes]:
    """The table as sections of the file."""
    strings = bytearray()

    def placed(text: str) -> tuple[int, int]:
        data = text.encode()
        at = strings.find(data)
        if at < 0:
            at = len(strings)
            strings.extend(data)
        return at, len(data)

    if table is None:
        return {}
    roles = [[*placed(role), *trim] for role, trim in zip(table.roles, table.trim)]
    gaps = [[*key, *placed(gap)] for key, gap in sorted(table.gaps.items())]
    guards = [[role, *placed(text)] for role, text in table.guards]
    return {
        "chat_roles": np.array(roles, np.uint32), "chat_gaps": np.array(gaps, np.uint32),
        "chat_guards": np.array(guards, np.uint32), "chat_strings": bytes(strings),
    }  # fmt: skip
