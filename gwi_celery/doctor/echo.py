"""``python -m gwi_celery.doctor.echo``: a service that shows the doctor what Cloud Run lets through.

Deploy it with any image of yours, for the time of a trial, with the pusher as its only invoker::

    gcloud run deploy gwi-echo --image IMAGE --command python --args=-m,gwi_celery.doctor.echo
        --no-allow-unauthenticated
    python -m gwi_celery.doctor pubsub://P --echo https://gwi-echo-....run.app --echo-account PUSHER

It answers 204, an ack, if the caller's token is as the path says (``/removed``: without its signature;
``/signed``: with it), else 409. It stores nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from gwi_celery.doctor.findings import Finding
from gwi_celery.doctor.sandbox import Sandbox

#: What Cloud Run puts in a signature's place.
_REMOVED = "SIGNATURE_REMOVED_BY_GOOGLE"
#: Seconds that a push may take to be acked: a cold start, and some refusals.
_PATIENCE = 60.0


def behind_iam(sandbox: Sandbox, url: str, account: str, seconds: float) -> list[Finding]:
    """Push to the echo service as ``account``: which path acks shows how the service was called."""
    acked = {kind: _acked(sandbox, f"{url}/{kind}", account, kind, seconds) for kind in _KINDS}
    return [Finding(_WHAT, *_told(acked, account), twin="let in, signature removed")]


_WHAT, _EXPECTED = "a push through Cloud Run's IAM", "the invoker's are let in"
_KINDS = ("removed", "signed")


def _told(acked: Mapping[str, bool | None], account: str) -> tuple[bool, str, str, str]:
    """Whether it holds, what is expected, what was measured, and what to change."""
    match acked["removed"], acked["signed"]:
        case (True, False | None):
            return True, _EXPECTED, "let in, signature removed", "push_auth=iam"
        case (False | None, True):
            return True, _EXPECTED, "let in, with its signature", "push_auth=oidc"
        case (True, True):
            measured = "acked with and without its signature, so it is not the echo service"
            change = "deploy `python -m gwi_celery.doctor.echo` there, or name its URL"
        case (False, False):
            measured = "not acked"
            change = (
                f"grant roles/run.invoker on the service to {account}, and your own account "
                "roles/iam.serviceAccountUser on it"
            )
        case _:
            measured = "nothing arrived: a message that was published for this was not delivered"
            change = "run it again"
    return False, _EXPECTED, measured, change


def _acked(sandbox: Sandbox, endpoint: str, account: str, kind: str, seconds: float) -> bool | None:
    """Whether a message that is pushed there is acked; None: there was none to push.

    It is pulled once before, which shows that the subscription has it: then only an ack removes it.
    """
    topic, subscription = sandbox.pair(f"echo-{kind}")
    sandbox.await_(topic, subscription)
    sandbox.publish(topic, b"x")
    received = sandbox.first(subscription)
    if not received:
        return None
    ids = [item.ack_id for item in received]
    sandbox.patiently(
        "ModifyAckDeadline", subscription=subscription, ack_ids=ids, ack_deadline_seconds=0
    )
    token = {"service_account_email": account, "audience": endpoint.rpartition("/")[0]}
    push = {"push_endpoint": endpoint, "oidc_token": token}
    sandbox.patiently("ModifyPushConfig", subscription=subscription, push_config=push)
    sandbox.pause(min(seconds, _PATIENCE))
    sandbox.patiently("ModifyPushConfig", subscription=subscription, push_config={})
    # A refused message is leased for a while, or waits for the next push.
    until = time.monotonic() + min(2 * seconds, _PATIENCE)
    while not sandbox.look(subscription, 1):
        if time.monotonic() > until:
            return True
        sandbox.pause(0.5)
    return False


class _Echo(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = self.headers.get("Authorization", "").partition(" ")[2]
        signature = token.rpartition(".")[2]
        kind = "" if not signature else ("removed" if signature == _REMOVED else "signed")
        self.send_response(204 if self.path == f"/{kind}" else 409)
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


def main() -> None:
    host = os.environ.get("HOST", "0.0.0.0")  # noqa: S104 a container's
    ThreadingHTTPServer((host, int(os.environ.get("PORT", "8080"))), _Echo).serve_forever()


if __name__ == "__main__":
    main()
