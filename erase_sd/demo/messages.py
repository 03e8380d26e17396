"""What the page says to Gradio, checked and written anew: nothing else reaches it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from erase_sd.demo.visitor import Visitor, Visitors

_TAB = re.compile(r"[\w-]{1,64}")
_EVENT = re.compile(r"[0-9a-f]{32}")
_TEXT = 50_000  # characters


@dataclass(frozen=True)
class Forms:
    """What the page can ask for.

    Attributes:
        inputs: How many inputs each function has, by its number.
    """

    inputs: Mapping[int, int]


def join(body: bytes, forms: Forms, visitor: Visitor, visitors: Visitors) -> tuple[str, bytes]:
    """A page's secret name and its request for a job, with that name in place of the known one.

    Raises:
        ValueError: If it is not what the page sends, or names a file of somebody else.
    """
    message = _object(body)
    number = _whole(message.get("fn_index"), "fn_index")
    if number not in forms.inputs:
        raise ValueError("no such function")
    data = message.get("data")
    if not isinstance(data, list) or len(data) != forms.inputs[number]:
        raise ValueError(f"expected {forms.inputs[number]} inputs")
    trigger = message.get("trigger_id")
    told = message.get("event_data")
    index = told.get("index") if isinstance(told, dict) else None
    page = tab(message.get("session_hash"), visitor, visitors)
    return page, _written(
        {
            "data": [_value(v, visitor) for v in data],
            "fn_index": number,
            "trigger_id": None if trigger is None else _whole(trigger, "trigger_id"),
            "session_hash": page,
            "event_data": None if index is None else {"index": _whole(index, "index")},
        }
    )


def cancel(body: bytes, visitor: Visitor, visitors: Visitors) -> bytes:
    """A request to end a job.

    Raises:
        ValueError: If it is not what the page sends.
        PermissionError: If the job is not the visitor's.
    """
    message = _object(body)
    event = message.get("event_id")
    if not isinstance(event, str) or not _EVENT.fullmatch(event):
        raise ValueError("expected the name of an event")
    if event not in visitor.events:
        raise PermissionError("that job is not yours")
    return _written(
        {
            "session_hash": tab(message.get("session_hash"), visitor, visitors),
            "fn_index": _whole(message.get("fn_index"), "fn_index"),
            "event_id": event,
        }
    )


def event_of(answer: bytes) -> str | None:
    """The name of the event in Gradio's answer to `join`, or None if it took none."""
    event = _object(answer).get("event_id")
    return event if isinstance(event, str) else None


def tab(name: Any, visitor: Visitor, visitors: Visitors) -> str:
    """The secret name of a page of the visitor.

    Raises:
        ValueError: If the known name is none.
    """
    if not isinstance(name, str) or not _TAB.fullmatch(name):
        raise ValueError("expected the name of a session")
    return visitors.tab(visitor, name)


def _object(body: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    try:
        found = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError("expected JSON") from error
    if not isinstance(found, dict):
        raise ValueError("expected a JSON object")
    return found


def _written(message: dict[str, Any]) -> bytes:
    return json.dumps(message, allow_nan=False).encode()


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"expected a whole number for {what}")
    return value


def _value(value: Any, visitor: Visitor) -> Any:
    """An input's value: what text boxes, sliders, ticks and uploads have, and nothing deeper."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        if not math.isfinite(value) or abs(value) > 2**53:
            raise ValueError("expected a number within bounds")
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list) and len(value) <= 100 and all(isinstance(v, str) for v in value):
        return [_text(v) for v in value]
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return _file(value["path"], visitor)
    raise ValueError("expected texts, numbers, or a file")


def _text(text: str) -> str:
    if len(text) > _TEXT or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("expected a shorter text, of whole characters")
    return text


def _file(path: str, visitor: Visitor) -> dict[str, Any]:
    if "\0" in path or len(path) > 4096 or not visitor.owns(Path(path)):
        raise ValueError("that file is not yours")
    return {"path": path, "meta": {"_type": "gradio.FileData"}}
