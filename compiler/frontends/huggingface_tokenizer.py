"""The tokenizer of a Hugging Face folder → the artifact's `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InfercError
from .gguf_tokenizer import END_OF_TURN

Json = dict[str, Any]


def convert(folder: Path) -> Json | None:
    """What `gguf_tokenizer.convert` gives, of tokenizer.json and the files beside it; None without tokenizer.json.

    Raises InfercError for files that cannot be read.
    """
    tokenizer = _read(folder / "tokenizer.json")
    if tokenizer is None:
        return None
    settings, generation = _read(folder / "tokenizer_config.json") or {}, _read(folder / "generation_config.json") or {}
    config = _read(folder / "config.json") or {}
    added = [t for t in tokenizer.get("added_tokens", ()) if isinstance(t, Mapping)]
    ids = {t.get("content"): t.get("id") for t in added}
    special = sorted(t["id"] for t in added if t.get("special"))
    bos = _id(ids, settings.get("bos_token"), config.get("bos_token_id"))
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    named = [_id(ids, settings.get("eos_token"), None), *(ends if isinstance(ends, list) else [ends])]
    turns = [ids[text] for text in END_OF_TURN if ids.get(text) in special]
    begins = settings.get("add_bos_token", _begins(tokenizer.get("post_processor"), bos, ids))
    body = {**tokenizer, "truncation": None, "padding": None, "post_processor": None}
    return {
        "tokenizer": json.dumps(body, ensure_ascii=False),
        "bos_id": bos,
        "eos_ids": [i for i in dict.fromkeys([*named, *turns]) if isinstance(i, int)],
        "add_bos": bos is not None and bool(begins),
        "add_eos": bool(settings.get("add_eos_token", False)),
        "chat_template": _template(folder, settings),
        "special_ids": special,
    }


def _read(path: Path) -> Json | None:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InfercError(f"{path}: cannot be read ({error}); download the model again") from error
    if not isinstance(value, dict):
        raise InfercError(f"{path}: is no JSON object; download the model again")
    return value


def _id(ids: Mapping[Any, Any], token: Any, given: Any) -> int | None:
    """The id of a token written as text or as an object with its text, else the id given."""
    text = token.get("content") if isinstance(token, Mapping) else token
    found = ids.get(text, given) if text is not None else given
    return found if isinstance(found, int) else None


def _begins(processor: Any, bos: int | None, ids: Mapping[Any, Any]) -> bool:
    """Whether a post-processor puts the token of beginning before a text."""
    if not isinstance(processor, Mapping):
        return False
    if processor.get("type") == "Sequence":
        return any(_begins(p, bos, ids) for p in processor.get("processors", ()))
    first = (processor.get("single") or [{}])[0]
    return bos is not None and ids.get(first.get("SpecialToken", {}).get("id")) == bos


def _template(folder: Path, settings: Json) -> str | None:
    """The chat template: the one named "default" where there are several."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text("utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) else None
