"""What a message may ask a worker for, by who published it: the table of docs/security.md.

Checked where a message enters the worker, pulled or pushed, before its task is looked for. Replays and
redrives are not here: they carry a seal (``reliability/marks.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from gwi_celery.backends.base import ReliableBackend
from gwi_celery.headers import PREFIX, REDRIVE_HEADER, REPLAY_HEADER
from gwi_celery.integration import known
from gwi_celery.reliability.task import ReliableTask
from gwi_celery.rights import BUILT_IN, CELERY, PLAIN, Rights
from gwi_celery.transport.source import Source

_CALLBACKS: Final = ("callbacks", "errbacks", "chain", "chord")
_CHORD_UNLOCK: Final = "celery.chord_unlock"
#: Celery's tasks that call a task as a plain function.
_MAPS: Final = ("celery.map", "celery.starmap", "celery.chunks")
#: Celery's tasks that publish what they are given; it keeps them for messages of its early releases.
_PUBLISHERS: Final = ("celery.group", "celery.chord", "celery.chain")
#: Shortest interval, seconds, of a chord_unlock, unless the app's own setting is shorter.
_SHORTEST_INTERVAL: Final = 1.0


class Policy:
    """Decides what messages may ask the workers of one app for."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def refusal(self, message: Any, payload: Any) -> str | None:
        """Why a well-formed task message is not run; None if it may be.

        Removes what the message may not decide: where its copies go, and a foreign publisher's time
        limits and ``reply_to``.
        """
        source: Source | None = getattr(message, "source", None)
        made = known(self._app)
        if source is None or made is None:
            return self._built_in(*_call(message, payload))
        rights = made.authority.rights_of(source.queue)
        name, args, kwargs, embed = _call(message, payload)
        self._keep_here(message, source)
        foreign = not source.signed and (
            source.plain or not source.marked or bool(made.authority.keys)
        )
        return (
            _format(source, rights)
            or self._asked(name, rights, foreign)
            or (self._foreign(message, payload, rights) if foreign else None)
            or self._callbacks(embed, rights, foreign)
            or self._built_in(name, args, kwargs, embed)
        )

    @staticmethod
    def _asked(name: str, rights: Rights, foreign: bool) -> str | None:
        if foreign and name.startswith(BUILT_IN):
            return f"{name} is Celery's own, which only this app's own messages may ask for"
        if not rights.may_ask_for(name):
            return f"its queue has no right to the task {name!r}: see gwi_queue_rights"
        return None

    @staticmethod
    def _foreign(message: Any, payload: Any, rights: Rights) -> str | None:
        # Protocol 1 has its headers in the body.
        places = [message.headers] if "task" in message.headers else [message.headers, payload]
        for name in {name for place in places for name in place if name.startswith(PREFIX)}:
            # An operator's marks carry a seal, which is checked when the job is claimed.
            if name in rights.headers or name in (REDRIVE_HEADER, REPLAY_HEADER):
                continue
            if any(place.get(name) is not None for place in places):
                return (
                    f"its header {name!r} is not one that a foreign publisher may set: publish it by "
                    "this app, or allow it by gwi_queue_rights"
                )
        for place in places:
            if place.get("timelimit") is not None:
                place["timelimit"] = [None, None]
        message.properties.pop("reply_to", None)
        return None

    def _callbacks(self, embed: Mapping[str, Any], rights: Rights, foreign: bool) -> str | None:
        if rights.exchanges is None and not foreign:
            return None
        for field in _CALLBACKS:
            for call in _signatures(embed.get(field)):
                if rights.exchanges is None:
                    return (
                        f"its {field} are not for a foreign publisher to set: publish it by this app, "
                        "or name where they may go in gwi_queue_rights"
                    )
                task, place = str(call["task"]), self._destination(call)
                if place not in rights.exchanges:
                    return f"its {field} go to {place!r}, to which its queue has no right"
                if foreign and not call.get("subtask_type"):
                    refused = self._asked(task, rights, foreign)
                    if refused is not None:
                        return f"of its {field}, {refused}"
        return None

    def _built_in(
        self, name: str, args: Any, kwargs: Mapping[str, Any], embed: Mapping[str, Any]
    ) -> str | None:
        """Why one of Celery's own tasks is not run, if it would do what no app asks of it."""
        if name == _CHORD_UNLOCK:
            return self._unlock(args, kwargs)
        if name in _MAPS:
            mapped = kwargs.get("task", args[0] if args else None)
            task = mapped.get("task") if isinstance(mapped, dict) else None
            if isinstance(self._app.tasks.get(task), ReliableTask):
                return f"{name} would call the reliable task {task} as a plain function: send each call"
        if name in _PUBLISHERS:
            queues = self._app.amqp.queues
            for call in _signatures([*args, *kwargs.values()]):
                task, place = call["task"], self._destination(call)
                if not call.get("subtask_type") and task not in self._app.tasks:
                    return f"{name} would publish the task {task!r}, which is not registered here"
                if place not in queues:
                    return f"{name} would publish to {place!r}, which is not a queue of this app"
        return None

    def _unlock(self, args: Any, kwargs: Mapping[str, Any]) -> str | None:
        if isinstance(self._app.backend, ReliableBackend):
            return f"{_CHORD_UNLOCK} is of no use here: the result backend counts a chord's parts"
        interval = kwargs.get("interval", args[2] if len(args) > 2 else None)
        shortest = min(_SHORTEST_INTERVAL, self._app.conf.result_chord_retry_interval)
        good = isinstance(interval, (int, float)) and interval >= shortest
        if interval is not None and not good:
            return f"its interval is below {shortest:g} s: it would keep workers busy"
        return None

    def _destination(self, call: Mapping[str, Any]) -> str:
        """The queue or exchange that a signature is sent to."""
        options = call.get("options") or {}
        queue, exchange = options.get("queue"), options.get("exchange")
        for named in (queue, exchange):
            name = named.get("name") if isinstance(named, dict) else named
            if name:
                return str(name)
        if exchange is not None and options.get("routing_key"):
            return str(options["routing_key"])
        route = self._app.amqp.router.route({}, call["task"], [], {})
        queue = route.get("queue")
        return str(getattr(queue, "name", queue) or route.get("exchange") or "")

    def _keep_here(self, message: Any, source: Source) -> None:
        """Send the message's copies only where this app publishes: anybody may have set the address."""
        info = message.delivery_info
        exchange, key = info.get("exchange") or "", info.get("routing_key")
        if not exchange and key == source.queue:
            return
        queues = self._app.amqp.queues
        if exchange and any(q.exchange and q.exchange.name == exchange for q in queues.values()):
            return
        if not exchange and key in queues:
            return
        info["exchange"], info["routing_key"] = "", source.queue


def _format(source: Source, rights: Rights) -> str | None:
    if source.plain and PLAIN not in rights.formats:
        return "its queue takes no plain jobs: see gwi_queue_rights"
    if not source.plain and CELERY not in rights.formats and not source.signed:
        return (
            "its queue takes plain jobs only, and the copies that this app's workers make of them"
        )
    return None


def _call(message: Any, payload: Any) -> tuple[str, Any, Mapping[str, Any], Mapping[str, Any]]:
    """Task, arguments and callbacks of a message of either protocol."""
    if isinstance(payload, (list, tuple)):
        args, kwargs, embed = payload
        return str(message.headers["task"]), args or (), kwargs or {}, embed or {}
    name = message.headers.get("task", payload.get("task"))
    return str(name), payload.get("args") or (), payload.get("kwargs") or {}, payload


def _signatures(value: Any) -> Iterator[Mapping[str, Any]]:
    """All calls in a message's field, also those within other calls' options and arguments."""
    if isinstance(value, dict):
        if isinstance(value.get("task"), str):
            yield value
        for part in value.values():
            yield from _signatures(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _signatures(part)
