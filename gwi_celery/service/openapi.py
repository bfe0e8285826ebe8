"""What the service answers, as an OpenAPI description: for gateways, and for tests that probe it.

``python -m gwi_celery.service.openapi`` prints it.
"""

from __future__ import annotations

import json
from typing import Any

_PUSH = {
    "message": {
        "data": "eyJpZCI6ICIxIiwgInR5cGUiOiAic2hvcC5pbnZvaWNlIn0=",
        "attributes": {},
        "messageId": "1",
        "publishTime": "2026-11-24T12:00:00Z",
    },
    "subscription": "projects/p/subscriptions/s",
    "deliveryAttempt": 1,
}

_ANY_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_REASON = {"$ref": "#/components/schemas/Reason"}


def describe(*, development: bool = False) -> dict[str, Any]:
    """The description; ``development``: with /process, and without a token JSON only."""
    paths: dict[str, Any] = {
        "/health": {
            "get": {
                "summary": "Whether the process and its pool live",
                "responses": {
                    "200": _json("Alive", _status("ok")),
                    "503": _json("The pool has no process left: restart", _status("dead")),
                },
            }
        },
        "/ready": {
            "get": {
                "summary": "Whether jobs can be run: broker and store answer",
                "responses": {
                    "200": _json("Ready", {"$ref": "#/components/schemas/Ready"}),
                    "503": _json("Not ready, and why", {"$ref": "#/components/schemas/Ready"}),
                },
            }
        },
        "/stats": {
            "get": {
                "summary": "Counts since the start, and what runs now",
                "security": [{}, {"token": []}] if development else [{"token": []}],
                "responses": {
                    "200": _json("The counts", {"$ref": "#/components/schemas/Stats"}),
                    "401": _json("A token is needed", _REASON),
                    "403": _json("A token is needed, and none is set", _REASON),
                },
            }
        },
        "/metrics": {
            "get": {
                "summary": "The same for Prometheus",
                "security": [{}, {"token": []}],
                "responses": {
                    "200": {
                        "description": "The counts",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    },
                    "401": _json("A token is needed", _REASON),
                },
            }
        },
        "/push": {
            "post": {
                "summary": "Run the message that Pub/Sub pushes",
                "security": [{"pubsub": []}, {}],
                "requestBody": {
                    "description": "A Pub/Sub message, wrapped as here or not. Whatever else comes is "
                    "kept in the dead letter and answered with 204, so that it can't come for ever",
                    "content": {
                        "application/json": {"schema": {}, "example": _PUSH},
                        **({} if development else _ANY_BYTES),
                    },
                },
                "responses": {
                    "204": {"description": "Done with: run, kept in the dead letter, or copied"},
                    **_refusals(),
                },
            }
        },
    }
    if development:
        paths["/process"] = {
            "post": {
                "summary": "Run a job by hand",
                "security": [{}, {"token": []}],
                "requestBody": _body("#/components/schemas/Job"),
                "responses": {
                    **_refusals(),
                    "200": _json("Done, or a copy of it waits", _processed("acked")),
                    "422": _json(
                        "It is no job; or it is in the dead letter now, because no task of its type is "
                        "registered or the job failed; and why",
                        _processed("dead-lettered", reason=True),
                    ),
                    "503": _json("It can't be run now", _processed("nacked", reason=True)),
                },
            }
        }
    return {
        "openapi": "3.0.3",
        "info": {"title": "gwi_celery push service", "version": "1"},
        "paths": paths,
        "components": {"schemas": _SCHEMAS, "securitySchemes": _SECURITY},
    }


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _status(value: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["status"],
        "properties": {"status": {"enum": [value]}, "reason": {"type": "string"}},
    }


def _body(schema: str) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": {"$ref": schema}}}}


def _processed(message: str, *, reason: bool = False) -> dict[str, Any]:
    """``message``: what became of it, unless it was refused before it became one."""
    properties: dict[str, Any] = {"message": {"enum": [message]}}
    if reason:
        properties["reason"] = {"type": "string"}
    return {
        "type": "object",
        "required": ["reason"] if reason else ["message"],
        "properties": properties,
        "additionalProperties": False,
    }


def _optional(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "nullable": True}


def _refusals() -> dict[str, Any]:
    return {
        "401": _json("No valid token", _REASON),
        "403": _json("The token of somebody else; in development, a web page's call", _REASON),
        "408": _json("The body took too long", _REASON),
        "413": _json("The body is too large", _REASON),
        "431": _json("The head is too large", _REASON),
        "429": _json("Busy: send it again", _REASON),
        "503": _json("It can't be run now: send it again", _REASON),
    }


_SECURITY = {
    "pubsub": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT (OIDC of Google)"},
    "token": {"type": "http", "scheme": "bearer"},
}

_TEXT = {"type": "string", "pattern": "\\S"}
_RETRIES = {"type": "integer", "minimum": 0, "maximum": 1000}
_COUNT = {"type": "integer", "minimum": 0}
_DEPENDENCY = {
    "type": "object",
    "required": ["ok", "latency_ms"],
    "properties": {
        "ok": {"type": "boolean"},
        "latency_ms": {"type": "number", "nullable": True},
        "reason": {"type": "string"},
    },
}

_SCHEMAS: dict[str, Any] = {
    "Reason": {
        "type": "object",
        "required": ["reason"],
        "properties": {"reason": {"type": "string"}},
        "additionalProperties": False,
    },
    "Ready": {
        "type": "object",
        "required": ["status"],
        "properties": {
            "status": {"enum": ["ready", "unready"]},
            "reason": {"type": "string"},
            "broker": _DEPENDENCY,
            "store": _DEPENDENCY,
        },
        "additionalProperties": False,
    },
    "Stats": {
        "type": "object",
        "required": ["mode", "processed", "in_flight", "current", "uptime_seconds", "versions"],
        "properties": {
            "mode": {"enum": ["push", "pull"]},
            "processed": _COUNT,
            "succeeded": _COUNT,
            "failed": _COUNT,
            "duplicates": _COUNT,
            "contended": _COUNT,
            "limited": _COUNT,
            "dead_lettered": _COUNT,
            "in_flight": _COUNT,
            "current": {"type": "array", "items": {"type": "object"}},
            "uptime_seconds": {"type": "number"},
            "versions": {"type": "object"},
        },
    },
    "Job": {
        "type": "object",
        "required": ["id", "type"],
        "properties": {
            "id": _TEXT,
            "type": _TEXT,
            "tenantId": _optional(_TEXT),
            "runId": _optional(_TEXT),
            "payload": _optional({"type": "object"}),
            "metadata": _optional(
                {
                    "type": "object",
                    "properties": {
                        "maxRetries": _optional(_RETRIES),
                        "retryCount": _optional(_RETRIES),
                        "priority": _optional({"type": "integer"}),
                        # Or a text, in ISO 8601.
                        "deadline": _optional({"type": "number"}),
                    },
                }
            ),
        },
    },
}


if __name__ == "__main__":
    print(json.dumps(describe(), indent=2))
