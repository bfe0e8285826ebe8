"""Where a delivered message is from, as far as that is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

#: Attribute that marks a foreign publisher's message in the dead letter. There the message also gets the
#: attributes that :func:`is_marked` looks for, and once redriven it must still count as foreign.
FOREIGN: Final = "gwi-foreign"


@dataclass(frozen=True)
class Source:
    queue: str
    #: A plain job, not a Celery message.
    plain: bool
    #: Signed with one of the app's keys, or the store's.
    signed: bool
    #: It has the attributes that our transport gives a task's message. That proves nothing: any publisher
    #: can set them.
    marked: bool


def is_marked(headers: Mapping[str, Any], attributes: Mapping[str, str]) -> bool:
    """Whether our transport published it: it repeats a task's name and id as attributes."""
    pairs = ((headers.get("task"), "task"), (headers.get("id"), "task_id"))
    equal = [attributes.get(name) == value for value, name in pairs if name in attributes]
    return bool(equal) and all(equal) and FOREIGN not in attributes
