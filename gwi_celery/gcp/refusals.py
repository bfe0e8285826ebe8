"""Why Google refuses a call for a reason that no role of the caller's would change.

The status doesn't tell: a disabled API, missing billing and a service perimeter are PERMISSION_DENIED, as
a missing role is, and organization policies are FAILED_PRECONDITION. So this reads the texts:
https://cloud.google.com/apis/design/errors#error_info (reasons),
https://cloud.google.com/docs/authentication/adc-troubleshooting/user-creds (quota project),
https://cloud.google.com/vpc-service-controls/docs/troubleshooting,
https://github.com/google/knative-gcp/issues/1701 (regions), and
https://cloud.google.com/kms/docs/cmek-org-policy.
"""

from __future__ import annotations

import re
from typing import Final

_CAUSES: Final = (
    (
        r"has not been used in project|SERVICE_DISABLED|it is disabled",
        "the {name} API of project {project} is switched off ({details}): "
        "`gcloud services enable {api} --project={project}`",
    ),
    (
        r"requires billing|BILLING_DISABLED|billing account",
        "project {project} has no billing account that is open ({details}): `gcloud billing projects "
        "link {project} --billing-account=ACCOUNT`, and wait some minutes",
    ),
    (
        r"requires a quota project",
        "the credentials name no project that their calls count for ({details}): `gcloud auth "
        "application-default set-quota-project {project}`",
    ),
    (
        r"required permission to use project",
        "this account may not have its calls count for the quota project of its credentials "
        "({details}): grant roles/serviceusage.serviceUsageConsumer there, or `gcloud auth "
        "application-default set-quota-project {project}`",
    ),
    (
        r"vpcServiceControlsUniqueIdentifier|prohibited by organization's policy",
        "a service perimeter around project {project} keeps this machine or account out ({details}): run "
        "it inside, or have an ingress rule made; the audit log has the reason under that id",
    ),
    (
        r"message storage policy",
        "the organization policy constraints/gcp.resourceLocations of project {project} forbids a region "
        "in which messages would be kept ({details}): change the option storage_regions, or leave it out",
    ),
    (
        r"restrictNonCmekServices",
        "the organization of project {project} wants a key of its own for what is stored ({details}): "
        "give topics one by the option kms_key, and make the database with --kms-key-name",
    ),
)


def why(details: str, *, name: str, api: str, project: str) -> str | None:
    """What to do about it; None if the text has none of these causes.

    Args:
        details: gRPC's text.
        name: Of the service, for people: ``Pub/Sub``.
        api: Its name for gcloud: ``pubsub.googleapis.com``.
        project: The project's id.
    """
    for pattern, text in _CAUSES:
        if re.search(pattern, details, re.IGNORECASE):
            return text.format(details=details, name=name, api=api, project=project)
    return None
