"""infra/terraform: parsed, held against the providers' documentation, and against the library's own list.

There is no Terraform here: nothing of it was planned or applied (docs/deploy.md says so).
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote_plus

import pytest
from redis.connection import SSLConnection

from gwi_celery import deployment
from gwi_celery.brokers.base import QueueSpec
from gwi_celery.brokers.pubsub.options import OPTIONS, parse
from gwi_celery.config import _CHOICES, SETTINGS
from gwi_celery.config import load as load_settings
from gwi_celery.firestore import indexes
from gwi_celery.firestore.url import parse as parse_store
from gwi_celery.rates import RedisRates
from gwi_celery.service.early import SUFFIX
from tests.infra.hcl import MODULE, ONE_PROCESS, faults, folder, load, references
from tests.workers import ROOT

pytestmark = ONE_PROCESS

#: What ours are called in the module.
ON = {
    "google_pubsub_topic.jobs": "topic",
    "google_pubsub_topic.later": "topic",
    "google_pubsub_topic.dead": "dead topic",
    "google_pubsub_subscription.jobs": "subscription",
    "google_pubsub_subscription.later": "subscription",
    "google_pubsub_subscription.dead": "dead subscription",
    "google_cloud_run_v2_service.worker": "service",
    "google_cloud_run_v2_worker_pool.worker": "pool",
    "google_service_account.worker": "worker",
    "google_service_account.pusher": "pusher",
}


@pytest.fixture(scope="module")
def module() -> Any:
    return folder(MODULE)


@pytest.mark.parametrize(
    "path", [MODULE, MODULE / "examples" / "push", MODULE / "examples" / "pull"]
)
def test_each_resource_is_as_its_provider_documents(path: Any) -> None:
    assert not list(faults(folder(path)))


def test_a_fault_is_found() -> None:
    wrong = load(['resource "google_pubsub_topic" "t" {\n kms_key = "k"\n}'])
    assert list(faults(wrong)) == [
        "google_pubsub_topic.t: kms_key is not documented",
        "google_pubsub_topic.t: name is missing",
    ]


def test_what_is_named_is_there_and_used(module: Any) -> None:
    assert not list(references(module))
    for name, variable in {**module.variables, **module.outputs}.items():
        assert variable["description"], name


def test_inputs_have_the_promised_names_and_defaults(module: Any) -> None:
    defaults = {name: variable.get("default") for name, variable in module.variables.items()}
    promised = {
        "gwi_worker_image": "",
        "gwi_worker_max_instances": 10,
        "gwi_worker_concurrency": 1,
        "gwi_worker_topic": "gwi-worker-jobs",
        "gwi_worker_subscription": "gwi-worker-push-sub",
    }
    assert promised.items() <= defaults.items()


@pytest.mark.parametrize("example", ["push", "pull"])
def test_examples_use_inputs_that_there_are(example: str, module: Any) -> None:
    inputs = folder(MODULE / "examples" / example).modules["gwi"]
    assert set(inputs) - {"source"} <= set(module.variables)
    needed = {name for name, variable in module.variables.items() if "default" not in variable}
    assert needed <= set(inputs)


# --- one source of truth --------------------------------------------------------------------------


def test_each_grant_is_one_of_the_librarys(module: Any) -> None:
    who = {
        "local.worker": "worker",
        "local.agent": "agent",
        "serviceAccount:${local.pusher}": "pusher",
    }
    found = set()
    for (type, name), body in module.resources.items():
        if not type.endswith("_iam_member") or body["role"].startswith(
            ("roles/secretmanager.", "roles/cloudkms.", "roles/iam.serviceAccountTokenCreator")
        ):
            continue  # by option: secrets, keys, and tokens for old service agents
        member = (
            body["member"].removeprefix("${").removesuffix("}")
            if (body["member"].startswith("${"))
            else body["member"]
        )
        if member.startswith("each.value"):
            member = re.search(r"var\.(\w+)s", body["for_each"])[1]
        on = ["project"]
        if not type.startswith("google_project"):
            text = str({k: v for k, v in body.items() if k != "depends_on"})
            named = re.findall(r"(google_(?:pubsub|cloud_run|service)\w+\.\w+)", text)
            on = [ON[what] for what in named if what in ON]
        assert on, (type, name)
        found |= {(who.get(member, member), body["role"], where) for where in on}
    assert found == {(g.who, g.role, g.on) for g in deployment.GRANTS}


def test_settings_are_the_librarys(module: Any) -> None:
    known = {f.metadata["env"] for f in SETTINGS.values()}
    for name in ("settings", "push_settings", "pull_settings"):
        assert set(module.locals[name]) <= known, name
    assert module.variables["gwi_push_auth"]["default"] == "iam", "Cloud Run takes signatures off"
    assert "iam" in _CHOICES["push_auth"]
    service = module.of("google_cloud_run_v2_service")["worker"]
    assert service["ingress"] == "INGRESS_TRAFFIC_INTERNAL_ONLY", "which iam relies on"


def url_of(module: Any, **values: str) -> str:
    """local.settings.GWI_BROKER_URL, as Terraform would make it."""
    parts = re.findall(r'"((?:[^"\\]|\\.)*)"', module.locals["broker_options"])[1:]
    filled = "&".join(parts)
    queues = {
        "celery": {"topic": "t", "subscription": "s", "dead_letter_topic": "t-dead"},
        "celery.dead": {"topic": "t-dead", "subscription": "t-dead"},
    }
    import json

    given = {
        "local.lease": "30",
        "!local.push && var.exactly_once": "false",
        "var.ordering": "false",
        "urlencode(jsonencode(local.queues))": quote_plus(json.dumps(queues)),
        "local.endpoint": "",
        "var.project": "p-1",
        "local.broker_options": filled,
        "var.firestore_prefix": "gwi",
        "urlencode(var.firestore_database)": quote_plus("(default)"),
        **values,
    }
    text = module.locals["settings"][
        "GWI_BROKER_URL" if not values.get("store") else "GWI_STORE_URL"
    ]
    while "${" in text:
        text = re.sub(r"\$\{([^${}]+)\}", lambda m: given[m[1]], text)
    return text


def test_workers_find_what_was_made(module: Any) -> None:
    options = parse(url_of(module), environ={})
    assert options.mode == "provisioned"
    assert set(re.findall(r"(\w+)=", module.locals["broker_options"])) <= set(OPTIONS)
    assert options.queues["celery"]["dead_letter_topic"] == options.queues["celery.dead"]["topic"]
    assert f"${{var.queue}}{SUFFIX}" in str(module.locals["queues"]), (
        "what a push service postpones"
    )
    assert "dead_letter_policy" not in module.of("google_pubsub_subscription")["later"]
    keys = {key for entry in module.locals["queues"].values() for key in entry}
    assert keys == {"topic", "subscription", "dead_letter_topic"}
    regional = url_of(module, **{"local.endpoint": "europe-west1-pubsub.googleapis.com/"})
    assert not parse(regional, environ={}).emulator
    store = parse_store(url_of(module, store="yes"))
    assert (store.project, store.database, store.prefix) == ("p-1", "(default)", "gwi")


def test_the_redis_that_is_made_counts_the_limits(module: Any) -> None:
    """The URL that Terraform would make, in a setting of the library's, read by the library."""
    [name] = re.findall(r"(GWI_\w+)\s*=", module.text.partition("limits_secrets =")[2])[:1]
    assert name in {f.metadata["env"] for f in SETTINGS.values()}
    certificate = "-----BEGIN CERTIFICATE-----\nAB+/=\n-----END CERTIFICATE-----"
    given = {
        "auth_string": quote_plus("p/@:+"),
        "host": "10.0.0.3",
        "port": "6378",
        "server_ca_certs": quote_plus(certificate),
    }
    text = "".join(re.findall(r'"((?:rediss|@|\?ssl)\S.*)",\n', module.text))
    url = re.sub(
        r"\$\{.*?\.(auth_string|host|port|server_ca_certs)\b[^}]*\}", lambda m: given[m[1]], text
    )
    assert "${" not in url
    settings = load_settings({}, {}, {name: url})
    pool = RedisRates(settings.limits_url, let_pass=True)._limiter.storage.storage.connection_pool
    wanted = {
        "host": "10.0.0.3",
        "port": 6378,
        "password": "p/@:+",
        "ssl_ca_data": certificate,
        "ssl_check_hostname": False,
    }
    assert wanted.items() <= pool.connection_kwargs.items()
    assert pool.connection_class is SSLConnection
    for kind in ("google_cloud_run_v2_service", "google_cloud_run_v2_worker_pool"):
        [container] = module.of(kind)["worker"]["template"][0]["containers"]
        secrets = [env for env in container["dynamic"] if "local.secrets" in str(env)]
        assert secrets, f"{kind} gets it"


def test_subscriptions_are_as_the_library_would_make_them(module: Any) -> None:
    options = parse("pubsub://p-1?retry_policy=10,600", environ={})
    [queue] = deployment.plan(options, [QueueSpec("celery")], None).queues
    [wanted] = queue.subscriptions
    made = module.of("google_pubsub_subscription")
    policy = made["jobs"]["dead_letter_policy"][0]
    assert policy["max_delivery_attempts"] == wanted.dead_letter_policy.max_delivery_attempts
    for name, like in [("jobs", wanted), ("dead", queue.dead_subscription)]:
        assert made[name]["expiration_policy"] == [{"ttl": ""}], "never"
        assert not like.expiration_policy.HasField("ttl"), "never"
        seconds = like.message_retention_duration.seconds
        assert made[name]["message_retention_duration"] == f"{seconds}s"
    assert made["dead"]["ack_deadline_seconds"] == queue.dead_subscription.ack_deadline_seconds
    assert module.variables["lease_seconds"]["default"] == wanted.ack_deadline_seconds
    assert (
        module.locals["lease"]
        == f"${{local.push ? {deployment.PUSH_DEADLINE} : var.lease_seconds}}"
    )
    service = module.of("google_cloud_run_v2_service")["worker"]
    assert service["template"][0]["timeout"] == f"{deployment.PUSH_DEADLINE}s"
    assert module.locals["push_settings"]["GWI_PUSH_DEADLINE"] == str(deployment.PUSH_DEADLINE)
    assert module.variables["retry_policy"]["default"] == {"minimum": 10, "maximum": 600}


def test_the_database_and_its_indexes_are_the_librarys(module: Any) -> None:
    [file] = re.findall(r'file\("\$\{path.module\}/([^"]+)"\)', module.locals["indexes"])
    assert (MODULE / file).resolve() == ROOT / "gwi_celery" / "firestore" / indexes.FILE_NAME
    content, text = indexes.load(), (MODULE / "firestore.tf").read_text()
    used = {
        f"fields.value.{key}" for index in content["indexes"] for f in index["fields"] for key in f
    }
    used |= {
        f"indexes.value.{key}" for f in content["fieldOverrides"] for i in f["indexes"] for key in i
    }
    used |= {f"each.value.{key}" for f in content["fieldOverrides"] for key in f}
    used |= {f"each.value.{key}" for index in content["indexes"] for key in index}
    for key in used:
        assert key in text, f"firestore.tf leaves out {key}"
    database = module.of("google_firestore_database")["jobs"]
    assert database["type"] == deployment.FIRESTORE["type"]
    assert database["database_edition"] == deployment.FIRESTORE["edition"]


def test_apis_are_the_librarys(module: Any) -> None:
    listed = module.of("google_project_service")["apis"]["for_each"]
    assert set(re.findall(r"[\w.]+\.googleapis\.com", listed)) == set(deployment.APIS)


def test_workers_have_what_the_library_asks_of_their_platform(module: Any) -> None:
    service = module.of("google_cloud_run_v2_service")["worker"]["template"][0]["containers"][0]
    pool = module.of("google_cloud_run_v2_worker_pool")["worker"]["template"][0]["containers"][0]
    assert (
        service["resources"][0]["cpu_idle"] == "${false}" or not service["resources"][0]["cpu_idle"]
    )
    for container in (service, pool):
        for probe in ("startup_probe", "liveness_probe"):
            assert container[probe][0]["http_get"][0]["path"] == "/health"
    assert service["readiness_probe"][0]["http_get"][0]["path"] == "/ready"
    assert service["args"] == ["gwi", "serve"]
    assert pool["args"][0] == "worker"


def test_the_page_on_permissions_has_each_grant() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    for grant in deployment.GRANTS:
        assert grant.role in page, f"docs/deploy.md says nothing of {grant.role} of the {grant.who}"
