"""One frozen :class:`Settings` object.

Each setting is taken from the first of: the argument to ``setup()``, ``app.conf.gwi_<name>``, its
environment variable, its default. What Google's own libraries read from the environment (emulators'
addresses, credentials, the universe's domain) is read where it is used.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gwi_celery import options
from gwi_celery.embedded_url import quote_folder
from gwi_celery.errors import ConfigurationError
from gwi_celery.rights import Rights, read_rights
from gwi_celery.signing import read_file, read_keys
from gwi_celery.text import nearest

DAY = 86400.0
MEGABYTE = 1024 * 1024
#: Seconds: Pub/Sub redelivers a push that takes longer.
_LONGEST_ACK_DEADLINE = 600


def _setting(env: str, help: str, default: Any) -> Any:
    return field(default=default, metadata={"env": env, "help": help})


def _secret(env: str, help: str, default: Any) -> Any:
    return field(default=default, repr=False, metadata={"env": env, "help": help})


def _mapping(env: str, help: str, read: Callable[[Any, str], Any], *, secret: bool = False) -> Any:
    """A setting that is empty by default. ``read`` takes the value and where it was found."""
    return field(
        default_factory=dict, repr=not secret, metadata={"env": env, "help": help, "read": read}
    )


class _FromFile(dict[str, str]):
    """Signing keys that were read from a file; a copy of the settings keeps them."""


#: Settings with a fixed set of values.
_CHOICES = {
    "store_backend": ("", "memory", "sqlite", "firestore"),
    "environment": ("production", "development"),
    "push_auth": ("", "oidc", "iam", "none"),
    "push_pool": ("prefork", "threads", "solo"),
    "log_format": ("", "json", "text"),
    "limits_unavailable": ("wait", "pass"),
}


@dataclass(frozen=True)
class Settings:
    """The settings of one app."""

    project: str = _setting(
        "GCP_PROJECT_ID", "Google Cloud project: Pub/Sub and Firestore instead of a folder", ""
    )
    folder: str = _setting(
        "GWI_FOLDER",
        "where the embedded broker and store keep their files; .gwi is at the project's root",
        ".gwi",
    )
    broker_url: str = _setting(
        "GWI_BROKER_URL", "broker; empty: Pub/Sub with a project, else embedded", ""
    )
    store_backend: str = _setting(
        "GWI_STORE_BACKEND",
        "memory, sqlite or firestore; empty: firestore if there is a project",
        "",
    )
    store_url: str = _setting(
        "GWI_STORE_URL", "store; empty: by store_backend, project and folder", ""
    )
    lease_seconds: float = _setting(
        "GWI_LEASE_SECONDS",
        "seconds a delivered message is leased for (extended while its task runs); "
        "how long a killed worker's message waits",
        30.0,
    )
    lock_ttl: float = _setting(
        "GWI_LOCK_TTL",
        "seconds until a job's lock may be taken over from a holder that fell silent (renewed at "
        "a third of it); longer means fewer writes and a slower takeover",
        30.0,
    )
    result_ttl: float = _setting(
        "GWI_RESULT_TTL", "seconds a job's outcome answers its duplicates", DAY
    )
    max_deliveries: int = _setting(
        "GWI_MAX_DELIVERIES", "attempts at one message before it goes to the dead letter", 20
    )
    max_crashes: int = _setting(
        "GWI_MAX_CRASHES", "times a job may take its worker down before it fails for good", 10
    )
    max_result_bytes: int = _setting(
        "GWI_MAX_RESULT_BYTES", "largest result, as JSON bytes", 10 * MEGABYTE
    )
    max_checkpoint_bytes: int = _setting(
        "GWI_MAX_CHECKPOINT_BYTES", "largest step, cursor or value, as JSON bytes", 10 * MEGABYTE
    )
    contention_delay: float = _setting(
        "GWI_CONTENTION_DELAY", "first wait, seconds, of a job whose lock another one holds", 1.0
    )
    max_contention_delay: float = _setting(
        "GWI_MAX_CONTENTION_DELAY",
        "longest wait for a lock, seconds: it doubles from contention_delay up to this",
        30.0,
    )
    limits_url: str = _secret(
        "GWI_LIMITS_URL",
        "Redis (redis://...) that counts the rates of limits; empty: the store does",
        "",
    )
    limits_unavailable: str = _setting(
        "GWI_LIMITS_UNAVAILABLE",
        "while limits_url can't be reached: jobs that need it wait, or pass uncounted",
        "wait",
    )
    interrupt_on_shutdown: bool = _setting(
        "GWI_INTERRUPT_ON_SHUTDOWN",
        "hand a job back at its next step when the worker stops, rather than wait for its end",
        True,
    )

    keep_calls: bool = _setting(
        "GWI_KEEP_CALLS",
        "whether a job's record keeps its call's arguments, so that an operator can replay it; "
        "without them only its caller can",
        True,
    )
    code_version: str = _setting(
        "GWI_CODE_VERSION",
        "version of the worker's code, for its jobs' records; empty: Cloud Run's revision, if it is one",
        "",
    )
    dead_letter_archive: str = _setting(
        "GWI_DEAD_LETTER_ARCHIVE",
        "folder, or gs://bucket/prefix, to which dead letters go as JSON lines a day before their "
        "broker drops them; empty: they are dropped, which is announced two days before",
        "",
    )
    cleanup_interval: float = _setting(
        "GWI_CLEANUP_INTERVAL",
        "seconds between two times that expired records are deleted from the embedded files; 0: never. "
        "On Firestore a TTL policy does it",
        60.0,
    )

    # --- who may do what (docs/security.md) ---------------------------------------------------

    signing_keys: Mapping[str, str] = _mapping(
        "GWI_SIGNING_KEYS",
        "secrets that messages are signed with, by id (id:secret,...): the last signs, all verify; "
        "empty: no message is signed, and none has to be",
        read_keys,
        secret=True,
    )
    signing_keys_file: str = _setting(
        "GWI_SIGNING_KEYS_FILE",
        "file that holds the signing keys instead, such as a mounted secret",
        "",
    )
    queue_rights: Mapping[str, Rights] = _mapping(
        "GWI_QUEUE_RIGHTS",
        "what messages of a queue may ask for, by queue (* for the others), as JSON",
        read_rights,
    )

    max_decoded_bytes: int = _setting(
        "GWI_MAX_DECODED_BYTES",
        "memory, bytes, that a message may take once it is decompressed and parsed, estimated before "
        "either; a larger one goes to the dead letter; 0: a 24th of the container's memory",
        0,
    )

    # --- the service (docs/service.md) --------------------------------------------------------

    environment: str = _setting(
        "GWI_ENVIRONMENT",
        "production, or development: /push needs no token, and /process exists",
        "production",
    )
    port: int = _setting(
        "PORT", "port of the health endpoints of a pull worker (0: none) and of the service", 0
    )
    host: str = _setting(
        "GWI_HOST", "address to listen on; empty: all, in development this machine only", ""
    )
    push_auth: str = _setting(
        "GWI_PUSH_AUTH",
        "oidc; iam behind Cloud Run's own check of tokens, which removes their signature; or none, where "
        "something else checks who calls; empty: oidc, in development none",
        "",
    )
    push_audience: str = _setting(
        "GWI_PUSH_AUDIENCE", "audience that the push subscription's tokens are for", ""
    )
    push_service_account: str = _setting(
        "GWI_PUSH_SERVICE_ACCOUNT", "e-mail of the service account that pushes", ""
    )
    push_certs_url: str = _setting(
        "GWI_PUSH_CERTS_URL", "where the tokens' certificates are; empty: Google's", ""
    )
    push_pool: str = _setting(
        "GWI_PUSH_POOL", "pool of the push service; time limits need prefork", "prefork"
    )
    push_concurrency: int = _setting(
        "GWI_PUSH_CONCURRENCY", "jobs that the push service runs at a time", 1
    )
    push_wait: float = _setting(
        "GWI_PUSH_WAIT",
        "seconds a push waits for a free place before it is answered with 429; 0: it doesn't wait",
        30.0,
    )
    push_deadline: float = _setting(
        "GWI_PUSH_DEADLINE",
        "the push subscription's ack deadline, seconds; a job is handed back at nine tenths of it",
        600.0,
    )
    push_queue: str = _setting(
        "GWI_PUSH_QUEUE",
        "queue that pushed messages belong to; empty: the app's default queue",
        "",
    )
    max_body_bytes: int = _setting(
        "GWI_MAX_BODY_BYTES",
        "largest request body; a Pub/Sub message takes up to 14 MB",
        16_000_000,
    )
    max_json_depth: int = _setting("GWI_MAX_JSON_DEPTH", "deepest nesting of pushed JSON", 200)
    body_timeout: float = _setting(
        "GWI_BODY_TIMEOUT", "seconds that a request's body may take to arrive", 30.0
    )
    service_token: str = _secret(
        "GWI_SERVICE_TOKEN",
        "bearer token for /process, /stats and /metrics; empty: /metrics is open, and in development "
        "/stats",
        "",
    )
    shutdown_grace: float = _setting(
        "GWI_SHUTDOWN_GRACE", "seconds that jobs have to end when the push service stops", 8.0
    )
    worker_grace: float = _setting(
        "GWI_WORKER_GRACE",
        "seconds that jobs have to end when a pull worker stops, before they are killed; 0: no limit",
        0.0,
    )
    log_format: str = _setting(
        "GWI_LOG_FORMAT",
        "json (Cloud Logging) or text; empty: json with a project and without a terminal",
        "",
    )
    tracing: bool = _setting("GWI_TRACING", "OpenTelemetry spans of attempts and steps", False)
    log_arguments: bool = _setting(
        "GWI_LOG_ARGUMENTS", "whether logs show tasks' arguments and results", False
    )

    def __post_init__(self) -> None:
        for name in (
            "lease_seconds",
            "lock_ttl",
            "result_ttl",
            "contention_delay",
            "max_contention_delay",
            "push_deadline",
            "body_timeout",
            "shutdown_grace",
        ):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"{name} must be above 0, not {getattr(self, name)!r}")
        for name, f in SETTINGS.items():
            # Every number with a fraction is of seconds.
            if isinstance(f.default, float) and getattr(self, name) > options.LONGEST:
                raise ConfigurationError(
                    f"{name} must be at most {options.LONGEST:.0f} seconds (31 years), not "
                    f"{getattr(self, name)!r}"
                )
        if self.push_deadline > _LONGEST_ACK_DEADLINE:
            raise ConfigurationError(
                f"push_deadline must be at most {_LONGEST_ACK_DEADLINE} seconds, Pub/Sub's longest ack "
                f"deadline, not {self.push_deadline!r}"
            )
        for name in (
            "max_deliveries",
            "max_crashes",
            "max_result_bytes",
            "max_checkpoint_bytes",
            "push_concurrency",
            "max_body_bytes",
            "max_json_depth",
        ):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {getattr(self, name)!r}")
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                known = [choice for choice in allowed if choice]
                raise ConfigurationError(f"{name} is {value!r}; {nearest(value, known)}")
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"port must be 0 to 65535, not {self.port!r}")
        for name in ("push_wait", "worker_grace", "cleanup_interval"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} must be 0 or more, not {getattr(self, name)!r}")
        scheme, slashes, place = self.dead_letter_archive.partition("://")
        if slashes and (scheme != "gs" or not place.partition("/")[0]):
            raise ConfigurationError(
                f"dead_letter_archive is {self.dead_letter_archive!r}, which names no bucket: write "
                "gs://bucket/prefix, or the path of a folder"
            )
        if self.signing_keys_file and not isinstance(self.signing_keys, _FromFile):
            if self.signing_keys:
                raise ConfigurationError(
                    "both signing_keys and signing_keys_file are set: keep one of them"
                )
            keys = read_file(self.signing_keys_file, "signing_keys_file")
            object.__setattr__(self, "signing_keys", _FromFile(keys))

    @property
    def development(self) -> bool:
        return self.environment == "development"

    @property
    def effective_code_version(self) -> str:
        return self.code_version or os.environ.get("K_REVISION", "")

    @property
    def effective_host(self) -> str:
        return self.host or ("127.0.0.1" if self.development else "0.0.0.0")  # noqa: S104 a container

    @property
    def effective_push_auth(self) -> str:
        return self.push_auth or ("none" if self.development else "oidc")

    @property
    def effective_broker_url(self) -> str:
        if self.broker_url:
            return self.broker_url
        if self.project:
            return f"pubsub://{self.project}"
        return f"embedded://{quote_folder(self.folder)}"

    @property
    def effective_store_url(self) -> str:
        if self.store_url:
            return self.store_url
        if self.store_backend == "memory":
            return "embedded://:memory:"
        if self.store_backend == "firestore" or (self.project and not self.store_backend):
            if not self.project:
                raise ConfigurationError(
                    "store_backend is 'firestore', and no project is named: set GCP_PROJECT_ID, or "
                    "GWI_STORE_URL=firestore://project"
                )
            return f"firestore://{self.project}"
        return f"embedded://{quote_folder(self.folder)}"


SETTINGS = {f.name: f for f in dataclasses.fields(Settings)}


def load(
    overrides: Mapping[str, Any],
    conf: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
    *,
    prefix: str = "",
) -> Settings:
    """Settings from arguments, ``app.conf`` and the environment, in this order of precedence.

    Args:
        prefix: Of the names in ``conf`` as the user wrote them, such as ``CELERY_``; for messages.

    Raises ConfigurationError for a name that doesn't exist (and names the nearest), and for a
    value that is impossible or of the wrong type.
    """
    environ = os.environ if environ is None else environ
    options.check_known(overrides, SETTINGS, "setup() has no setting ")
    written = [_spelt(key.removeprefix("gwi_"), prefix) for key in conf]
    known = [_spelt(name, prefix) for name in SETTINGS]
    options.check_known(written, known, "app.conf has ", ", which is no setting")
    _check_environment(environ)
    values: dict[str, Any] = {}
    for name, value, source in _given(overrides, conf, environ, prefix):
        where = f"setup({name}=...)" if source == _SETUP else source
        values[name] = _convert(SETTINGS[name], value, where)
    return Settings(**values)


def sources(overrides: Mapping[str, Any], conf: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Where :func:`load` takes each setting from: ``setup()``, ``app.conf.gwi_...``, or a variable.

    A setting that has its default is not among them.
    """
    return {name: source for name, _, source in _given(overrides, conf, os.environ, prefix)}


def in_app(app: Any) -> tuple[dict[str, Any], str]:
    """The ``gwi_*`` settings in ``app.conf``, under lower-case names, and the prefix they have there.

    With a namespace, as in ``config_from_object("django.conf:settings", namespace="CELERY")``, they are
    written ``CELERY_GWI_...``; without one ``GWI_...`` in capitals counts too.
    """
    conf, namespace = app.conf, app.namespace or ""
    prefix = f"{namespace.rstrip('_')}_" if namespace else ""
    found: dict[str, Any] = {}
    for key in map(str, conf):
        own = key[len(prefix) :] if prefix and key.startswith(prefix) else key
        if own.startswith("gwi_") or (own.startswith("GWI_") and (own != key or not prefix)):
            found[own.lower()] = conf[key]
    return found, prefix


_SETUP = "setup()"


def _given(
    overrides: Mapping[str, Any], conf: Mapping[str, Any], environ: Mapping[str, str], prefix: str
) -> Iterator[tuple[str, Any, str]]:
    """(name, value, source) of each setting that has one, from the first source that has it."""
    for name, setting in SETTINGS.items():
        env = setting.metadata["env"]
        if overrides.get(name) is not None:
            yield name, overrides[name], _SETUP
        elif conf.get(f"gwi_{name}") is not None:
            yield name, conf[f"gwi_{name}"], f"app.conf.{_spelt(name, prefix)}"
        elif environ.get(env):
            yield name, environ[env], env


def _spelt(name: str, prefix: str) -> str:
    """A setting's name in ``app.conf``, as a user who writes that prefix (``CELERY_``, "") spells it."""
    return prefix + (f"gwi_{name}".upper() if prefix.isupper() else f"gwi_{name}")


#: Variables that Kubernetes sets for each service: for one called "gwi-worker", GWI_WORKER_PORT.
_OF_A_SERVICE = re.compile(
    r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
#: Similarity (0 to 1) of a variable to a known one: certainly a typo, or possibly.
_TYPO, _PERHAPS = 0.86, 0.75


def _check_environment(environ: Mapping[str, str]) -> None:
    """Tell typos from foreign variables: others may use ``GWI_`` as well."""
    known = {f.metadata["env"] for f in SETTINGS.values()}
    for key, value in environ.items():
        if not key.startswith("GWI_") or key in known or _OF_A_SERVICE.fullmatch(key):
            continue
        if key.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", value):
            continue  # a service's as well
        bare = key.removeprefix("GWI_")
        alike = max(difflib.SequenceMatcher(None, key, name).ratio() for name in known)
        if alike >= _TYPO or bare in known:
            near = [bare] if bare in known else known
            raise ConfigurationError(
                f"the environment has {key}, which is no setting; {nearest(key, near)}"
            )
        begun = len(bare) > 3 and any(name.startswith(key) for name in known)
        if alike >= _PERHAPS or begun:
            warnings.warn(
                f"the environment has {key}, which is no setting of gwi_celery and is left alone; "
                f"{nearest(key, known).partition('?')[0]}?",
                stacklevel=2,
            )


def urls(broker_url: Any) -> list[str]:
    """The URLs of a ``broker_url``, which may be a list of alternates, or one text with ``;``."""
    if not broker_url:
        return []
    several = broker_url.split(";") if isinstance(broker_url, str) else broker_url
    return [str(url) for url in several if url]


def _convert(setting: dataclasses.Field[Any], value: Any, source: str) -> Any:
    if "read" in setting.metadata:
        return setting.metadata["read"](value, source)
    return options.of(setting.default).convert(value, source, f"but {setting.name} takes")
