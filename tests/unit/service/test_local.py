"""Without tokens, in development: a developer's own calls are let in, and no web page's."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request

from gwi_celery.config import Settings
from gwi_celery.service.auth import Denied
from gwi_celery.service.local import check

JSON = "application/json"
#: Headers that a browser adds, whatever the page does, here or from elsewhere.
HERE = {"origin": "http://127.0.0.1:8080", "sec-fetch-site": "same-origin"}
ELSEWHERE = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}


def call(headers: dict[str, str], **settings: Any) -> None:
    named = {"host": "127.0.0.1:8080", **headers}
    scope = {
        "type": "http",
        "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in named.items()],
    }
    check(Request(scope), Settings(environment="development", **settings))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": JSON},
        {"content-type": "Application/JSON; charset=utf-8"},
        {"content-type": JSON, "host": "localhost:8080"},
        {"content-type": JSON, "host": "[::1]:8080"},
        {"content-type": JSON, "host": "host.docker.internal:8080"},
        {"content-type": JSON, **HERE},
        # As the emulator pushes what is not wrapped.
        {"content-type": "application/x-www-form-urlencoded", "x-goog-pubsub-message-id": "1"},
    ],
)
def test_a_developers_call_is_let_in(headers: dict[str, str]) -> None:
    call(headers)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"content-type": "text/plain"}, "application/json"),
        ({"content-type": "application/x-www-form-urlencoded"}, "application/json"),
        ({"content-type": "multipart/form-data; boundary=x"}, "application/json"),
        ({"content-type": f"text/plain; {JSON}"}, "application/json"),
        ({"content-type": ""}, "application/json"),
        (HERE, "application/json"),  # a Blob without a type is sent without a Content-Type
        ({"content-type": JSON, **ELSEWHERE}, "another web page"),
        ({"content-type": JSON, "origin": "null"}, "another web page"),
        ({"content-type": JSON, "origin": "http://127.0.0.1:9999"}, "another web page"),
        ({"content-type": JSON, "origin": "https://127.0.0.1:8080"}, "another web page"),
        ({"content-type": JSON, "sec-fetch-site": "same-site"}, "another web page"),
        ({"sec-fetch-site": "cross-site"}, "another web page"),
        ({"content-type": JSON, "host": "evil.example:8080"}, "name that is not this machine's"),
        ({"content-type": JSON, "host": "127.0.0.1.evil.example"}, "not this machine's"),
        ({"content-type": JSON, "host": "evil.example."}, "not this machine's"),
        ({"content-type": JSON, "host": ""}, "not this machine's"),
        ({"content-type": JSON, "host": "[::1"}, "not this machine's"),
        ({"content-type": JSON, "x-forwarded-for": "127.0.0.1"}, "through a proxy"),
        ({"content-type": JSON, "forwarded": "for=127.0.0.1"}, "through a proxy"),
        ({"content-type": JSON, "via": "1.1 x"}, "through a proxy"),
    ],
)
def test_a_web_page_or_a_proxy_is_not_but_with_the_token(
    headers: dict[str, str], reason: str
) -> None:
    with pytest.raises(Denied, match=reason) as caught:
        call(headers)
    assert caught.value.status == 403
    call({**headers, "authorization": "Bearer mine"}, service_token="mine")
    with pytest.raises(Denied):
        call({**headers, "authorization": "Bearer "})
    with pytest.raises(Denied):
        call({**headers, "authorization": "Bearer your\xfcs"}, service_token="mine")


def test_a_service_may_be_called_by_its_containers_name_and_by_the_one_it_listens_on() -> None:
    for host in ("push:8080", "10.0.0.7:8080"):
        call({"host": host, "content-type": JSON}, host="0.0.0.0")
    call({"host": "dev.example", "content-type": JSON}, host="dev.example")
