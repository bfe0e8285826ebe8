"""Who asks, and what that account and Pub/Sub's own service agent may do in the project."""

from __future__ import annotations

import google.auth
import grpc
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request

from gwi_celery import deployment
from gwi_celery.brokers.pubsub.client import SCOPES
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.doctor.findings import Finding
from gwi_celery.doctor.grants import AGENT, Grants, unasked
from gwi_celery.doctor.sandbox import Sandbox
from gwi_celery.gcp.credentials import may_pass

#: Verbs that managed mode needs on resources, beyond the roles of provisioned mode.
_MANAGED = {
    "topics": ("get", "update", "delete", "attachSubscription"),
    "subscriptions": ("get", "update", "delete"),
}


def who(options: PubSubOptions) -> Finding:
    what, twin = "who asks", "nobody: it has no accounts"
    where = f"project {options.project} at {options.endpoint}"
    if options.emulator:
        told = f"nobody: an emulator, {where}"
        return Finding(what, None, "the account of the environment", told, twin=twin)
    try:
        credentials, _ = google.auth.default(scopes=SCOPES)
        credentials.refresh(Request())  # a machine's own know their account only then
    except (GoogleAuthError, OSError) as exc:
        change = (
            "check this machine's network, and the proxy that HTTPS_PROXY names: no token was got"
            if may_pass(exc)
            else "gcloud auth application-default login, attach a service account, or replace what "
            "GOOGLE_APPLICATION_CREDENTIALS names"
        )
        return Finding(what, False, "an account", str(exc), change, twin)
    account = getattr(credentials, "service_account_email", "") or getattr(
        credentials, "account", ""
    )
    quota = getattr(credentials, "quota_project_id", None)
    return Finding(
        what,
        None,
        "a quota project other than this one counts the calls",
        f"{account or 'who last ran gcloud auth application-default login'}, quota of "
        f"{quota or 'its own project'}, {where}",
        "gcloud auth application-default set-quota-project"
        if quota not in (None, options.project)
        else "",
        twin,
    )


def permissions(sandbox: Sandbox, topic: str, subscription: str) -> list[Finding]:
    """What managed mode, the roles and dead lettering need, on resources that this account made."""
    found = []
    project = sandbox.options.project
    with Grants(sandbox.options) as grants:
        for path in (topic, subscription):
            kind = path.split("/")[2]
            wanted = [p for p in deployment.PERMISSIONS.values() if f".{kind}." in p]
            wanted += [f"pubsub.{kind}.{verb}" for verb in _MANAGED[kind]]
            what = f"permissions on {kind}"
            try:
                has = grants.held(path, wanted)
            except grpc.RpcError as exc:
                found.append(unasked(what, exc))
                continue
            lacks = sorted(set(wanted) - set(has))
            change = "roles/pubsub.editor, or mode=provisioned and the roles of docs/deploy.md"
            found.append(
                Finding(
                    what,
                    not lacks or None,
                    "each call needs its own",
                    f"none of {', '.join(lacks)}" if lacks else "all",
                    change if lacks else "",
                    twin="all, until one is denied",
                )
            )
        for path, role in (
            (topic, "roles/pubsub.publisher"),
            (subscription, "roles/pubsub.subscriber"),
        ):
            what = f"{role} of Pub/Sub's service agent on {path.split('/')[2]}"
            mend = (
                f"gcloud projects add-iam-policy-binding {project} --role={role} "
                f"--member=serviceAccount:{AGENT}"
            )
            found.append(grants.agents(path, project, what, role, mend))
    return found
