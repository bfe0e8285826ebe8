"""``firestore://project/prefix?option=value``: which database, and which root collection in it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from gwi_celery.errors import ConfigurationError, InvalidCall
from gwi_celery.gcp.emulators import FIRESTORE_HOST
from gwi_celery.gcp.endpoints import endpoint as google_endpoint
from gwi_celery.ids import digest
from gwi_celery.options import BOOLEAN, SECONDS, query

#: Database id of a project's first database.
DEFAULT_DATABASE: Final = "(default)"
DEFAULT_PREFIX: Final = "gwi"
GOOGLE: Final = "firestore.googleapis.com:443"

#: Option -> what it does.
OPTIONS: Final[Mapping[str, str]] = {
    "database": "database id; with {tenant} or {tenant_hash} in it, a database for each tenant",
    "endpoint": "host:port instead of Google's; an emulator if it is FIRESTORE_EMULATOR_HOST's",
    "emulator": "true: the endpoint is an emulator, so no TLS and no credentials",
    "timeout": "seconds that one call may take; 10 by default",
    "gcs_bucket": "Cloud Storage bucket for values over 2.7 MB, instead of documents",
    "gcs_endpoint": "URL of a Cloud Storage emulator",
}

_TIMEOUT: Final = "seconds above 0 and below 3600"
#: The end of an address, where pubsub:// has one and firestore:// has the project.
_ADDRESS = re.compile(r":\d+$")
#: Firestore's rule for database ids.
_DATABASE_ID = re.compile(r"[a-z][a-z0-9-]{2,61}[a-z0-9]")
#: One part of a document's path: no slash, and no name that Firestore reserves.
_PREFIX = re.compile(r"(?!\.{1,2}$)(?!__.*__$)[^/]{1,200}")


@dataclass(frozen=True)
class FirestoreURL:
    """Where the documents are. See :data:`OPTIONS`."""

    project: str
    #: Root collection.
    prefix: str = DEFAULT_PREFIX
    #: A database id, or a template of one.
    database: str = DEFAULT_DATABASE
    endpoint: str = GOOGLE
    #: No TLS and no credentials.
    emulator: bool = False
    #: Seconds.
    timeout: float = 10.0
    #: "": none.
    gcs_bucket: str = ""
    gcs_endpoint: str = ""

    @property
    def database_per_tenant(self) -> bool:
        return "{" in self.database

    def database_of(self, tenant: str) -> str:
        """The id of the tenant's database.

        Raises InvalidCall when the template has ``{tenant}``, and this tenant's id makes no legal
        database id. Ids are never altered, because two tenants could then share a database.
        """
        if not self.database_per_tenant:
            return self.database
        name = self.database.replace("{tenant_hash}", digest("database", tenant)[:32])
        name = name.replace("{tenant}", tenant)
        if not _DATABASE_ID.fullmatch(name):
            raise InvalidCall(
                f"tenant {tenant!r} has no database: {name!r} is no legal database id (4 to 63 of "
                "a-z, 0-9 and '-', a letter first). Use {tenant_hash} in the database option, "
                "which fits every tenant"
            )
        return name


def parse(url: str, environ: Mapping[str, str] | None = None) -> FirestoreURL:
    """Parse a ``firestore://`` URL. Raises ConfigurationError, naming what is wrong."""
    try:
        parts = urlsplit(url)
    except ValueError as exc:  # such as a "[" in the project
        raise _no_url(url) from exc
    if parts.scheme != "firestore" or not parts.netloc or parts.fragment:
        raise _no_url(url)
    if _ADDRESS.search(parts.netloc):
        raise ConfigurationError(
            f"{url!r} begins with an address, and not with the project: write firestore://project?endpoint="
            f"{parts.netloc}, and &emulator=true if that is an emulator"
        )
    options = query(url, parts.query, OPTIONS)
    prefix = unquote(parts.path.strip("/")) or DEFAULT_PREFIX
    if not _PREFIX.fullmatch(prefix):
        raise ConfigurationError(
            f"{url!r}: {prefix!r} can't name a collection: use one word without '/'"
        )
    database = options.get("database") or DEFAULT_DATABASE
    _check_database(url, database)
    emulator = (os.environ if environ is None else environ).get(FIRESTORE_HOST, "")
    endpoint = options.get("endpoint") or emulator or google_endpoint("firestore", environ)
    is_emulator = bool(emulator) and endpoint == emulator
    if "emulator" in options:
        is_emulator = BOOLEAN.convert(options["emulator"], f"{url!r}: emulator")
    given = options.get("timeout", FirestoreURL.timeout)
    timeout = SECONDS.called(_TIMEOUT).convert(given, f"{url!r}: timeout")
    if not 0 < timeout < 3600:
        raise ConfigurationError(f"{url!r}: timeout is {given!r}, not {_TIMEOUT}")
    return FirestoreURL(
        project=parts.netloc,
        prefix=prefix,
        database=database,
        endpoint=endpoint,
        emulator=is_emulator,
        timeout=timeout,
        gcs_bucket=options.get("gcs_bucket", ""),
        gcs_endpoint=options.get("gcs_endpoint", ""),
    )


def _no_url(url: str) -> ConfigurationError:
    return ConfigurationError(
        f"{url!r} is no Firestore URL: write firestore://project or "
        "firestore://project/prefix?database=..."
    )


def _check_database(url: str, database: str) -> None:
    trial = database.replace("{tenant_hash}", "0" * 32).replace("{tenant}", "tenant")
    if database != DEFAULT_DATABASE and not _DATABASE_ID.fullmatch(trial):
        raise ConfigurationError(
            f"{url!r}: {database!r} is no database id: 4 to 63 of a-z, 0-9 and '-', a letter "
            "first; {tenant} or {tenant_hash} in it makes one for each tenant"
        )
