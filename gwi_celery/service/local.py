"""In development calls carry no token: they must come from this developer, not from a web page.

Any page in a browser may post to this machine what needs no preflight request (a form, ``text/plain``),
and a page whose host name is pointed at 127.0.0.1 counts as the same origin. So a body must be
``application/json``, the origin that a browser names must be this service itself, and the name by which
the service was called must be this machine's. Programs other than browsers name no origin.
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.requests import Request

from gwi_celery.config import Settings
from gwi_celery.gcp.emulators import loopback
from gwi_celery.service.auth import Denied

#: Headers by which a proxy says that it connects for another caller.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
#: Ends of host names that nobody can point elsewhere: reserved for this machine and private networks.
_PRIVATE = (".localhost", ".internal")

_OR_ELSE = "or send the service token"


def check(request: Request, settings: Settings) -> None:
    """Raises Denied unless the call is a developer's, or carries the service token."""
    headers = request.headers
    sent = headers.get("authorization", "")
    if settings.service_token and hmac.compare_digest(
        sent.encode(), f"Bearer {settings.service_token}".encode()
    ):
        return
    found = next((name for name in _FORWARDED if name in headers), None)
    if found is not None:
        raise Denied(403, f"it came through a proxy ({found}): call directly, {_OR_ELSE}")
    check_name(request, settings)
    host = headers.get("host", "")
    origin = headers.get("origin")
    site = headers.get("sec-fetch-site", "none")
    if site not in ("none", "same-origin") or (
        origin is not None and origin.lower() != f"http://{host}".lower()
    ):
        raise Denied(403, f"it comes from another web page: call without a browser, {_OR_ELSE}")
    if not _needs_preflight(request, browser=origin is not None or "sec-fetch-site" in headers):
        raise Denied(403, f"send it with Content-Type: application/json, {_OR_ELSE}")


def _needs_preflight(request: Request, *, browser: bool) -> bool:
    """Whether a browser would have asked this service before it sent such a request (CORS)."""
    kind = request.headers.get("content-type")
    if kind is None:
        return not browser
    if kind.partition(";")[0].strip().lower() == "application/json":
        return True
    # The emulator's unwrapped push calls itself a form. No page can add this header without preflight.
    return any(name.startswith("x-goog-pubsub-") for name in request.headers)


def check_name(request: Request, settings: Settings) -> None:
    """Raises Denied if the name by which this service was called may be a web page's."""
    if not _is_ours(request.headers.get("host", ""), settings):
        raise Denied(
            403, f"it was called by a name that is not this machine's: use 127.0.0.1, {_OR_ELSE}"
        )


def _is_ours(host: str, settings: Settings) -> bool:
    """Whether nobody on the Internet can point this name here (DNS rebinding)."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    # An address can't be pointed elsewhere. A container's name has no dot; an Internet name has one.
    without_dot = bool(name) and "." not in name
    return (
        without_dot
        or _is_address(name)
        or name.endswith(_PRIVATE)
        or name == settings.effective_host.lower()
    )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(request: Request) -> bool:
    """Whether the connection comes from this machine."""
    host = request.client.host if request.client is not None else ""
    return loopback(host)
