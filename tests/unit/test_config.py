"""Settings and URLs: what is wrong is named, with what to do."""

from __future__ import annotations

import gc
import os
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.concurrency import solo

from gwi_celery import ReliableTask, setup, store_for
from gwi_celery.config import SETTINGS, load
from gwi_celery.errors import ConfigurationError
from gwi_celery.integration import broker_for, settings_for
from gwi_celery.options import LONGEST
from gwi_celery.service import create_app
from gwi_celery.stores.firestore import FirestoreStore
from gwi_celery.stores.url import open_store
from gwi_celery.transport.embedded import open_broker
from gwi_celery.worker.pools import PoolCheck
from tests.workers import ROOT


def memory() -> str:
    return f"embedded://:memory:/{uuid4().hex}"


def make_app() -> Celery:
    return Celery(f"config-{uuid4().hex}", set_as_current=False)


def test_precedence_is_argument_then_conf_then_environment_then_default() -> None:
    environ = {"GWI_LOCK_TTL": "1", "GWI_LEASE_SECONDS": "2", "GWI_RESULT_TTL": "3"}
    conf = {"gwi_lock_ttl": 10, "gwi_lease_seconds": 20}
    settings = load({"lock_ttl": 100}, conf, environ)
    assert (settings.lock_ttl, settings.lease_seconds, settings.result_ttl) == (100.0, 20.0, 3.0)
    assert settings.max_deliveries == 20


@pytest.mark.parametrize(
    ("overrides", "conf", "environ", "message"),
    [
        ({"lease_second": 1}, {}, {}, "did you mean 'lease_seconds'"),
        ({}, {"gwi_lock_tll": 1}, {}, "did you mean 'gwi_lock_ttl'"),
        ({}, {}, {"GWI_FOLDR": "x"}, "did you mean 'GWI_FOLDER'"),
        ({"lock_ttl": "soon"}, {}, {}, "takes a number"),
        ({}, {}, {"GWI_MAX_CRASHES": "many"}, "GWI_MAX_CRASHES is 'many'.*whole number"),
        ({}, {}, {"GWI_INTERRUPT_ON_SHUTDOWN": "perhaps"}, "true or false"),
        ({"lock_ttl": 0}, {}, {}, "lock_ttl must be above 0"),
        ({"max_contention_delay": 0}, {}, {}, "max_contention_delay must be above 0"),
        ({"push_deadline": 601}, {}, {}, "at most 600 seconds, Pub/Sub's longest ack deadline"),
        ({"max_deliveries": 0}, {}, {}, "at least 1"),
        ({}, {}, {"GWI_STORE_BACKEND": "redis"}, "memory, sqlite"),
    ],
)
def test_a_wrong_setting_is_an_error_that_says_what_to_do(
    overrides: dict[str, Any], conf: dict[str, Any], environ: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(overrides, conf, environ)


def test_no_setting_is_a_time_that_timers_and_stores_can_not_handle() -> None:
    """A thread that waits for longer ends, and with it all renewals; Firestore refuses the documents."""
    seconds = [name for name, f in SETTINGS.items() if isinstance(f.default, float)]
    assert {"lock_ttl", "result_ttl", "lease_seconds", "cleanup_interval"} < set(seconds)
    for name in seconds:
        load({name: 600 if name == "push_deadline" else LONGEST}, {}, {})
        for value in (LONGEST + 1, 1e15):
            with pytest.raises(ConfigurationError, match=f"{name} must be at most 1000000000 sec"):
                load({}, {f"gwi_{name}": value}, {})


@pytest.mark.parametrize("expires", [1e15, 10**30, timedelta(days=20_000), "soon"])
def test_results_that_expire_after_all_timers_are_refused_at_setup(expires: object) -> None:
    app = make_app()
    app.conf.result_expires = expires
    with pytest.raises(ConfigurationError, match=r"app\.conf\.result_expires is"):
        setup(app, broker_url=memory(), store_url=memory())


def test_with_a_project_the_store_is_firestore_unless_told_otherwise() -> None:
    with_project = load({}, {}, {"GCP_PROJECT_ID": "p"})
    assert with_project.effective_store_url == "firestore://p"
    assert with_project.effective_broker_url == "pubsub://p"
    chosen = load({}, {}, {"GCP_PROJECT_ID": "p", "GWI_STORE_BACKEND": "sqlite"})
    assert chosen.effective_store_url.startswith("embedded://")
    own = load({}, {}, {"GCP_PROJECT_ID": "p", "GWI_STORE_URL": "firestore://q/mine"})
    assert own.effective_store_url == "firestore://q/mine"
    with pytest.raises(ConfigurationError, match="GCP_PROJECT_ID"):
        _ = load({}, {}, {"GWI_STORE_BACKEND": "firestore"}).effective_store_url


def test_a_firestore_store_is_opened_by_its_url_without_a_connection() -> None:
    store = open_store("firestore://proj/mine?database=db-1")
    assert isinstance(store, FirestoreStore)
    assert (store.url.project, store.url.prefix, store.url.database) == ("proj", "mine", "db-1")
    store.close()
    with pytest.raises(ConfigurationError, match="did you mean 'database'"):
        open_store("firestore://proj?databse=x")
    with pytest.raises(ConfigurationError, match="write firestore://project"):
        open_store("firestore://[proj")
    with pytest.raises(ConfigurationError, match="above 0 and below 3600"):
        open_store("firestore://proj?timeout=3600")


def test_results_go_where_the_store_is() -> None:
    app = make_app()
    setup(app, broker_url=memory(), store_url="firestore://proj/mine")
    assert app.conf.result_backend == "firestore://proj/mine"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("embedded:/x", "no embedded URL"),
        ("redis://x", "no embedded URL"),
        ("embedded:///x?lease=1", "did you mean 'lease_seconds'"),
        ("embedded:///x?lease_seconds=soon", "not a number"),
        ("embedded:///x?lease_seconds=-1", "above 0"),
        ("embedded:///x?lease_seconds=1e12", "lease_seconds must be at most 1000000000"),
        ("embedded:///x?retention=1e15", "retention must be at most 1000000000"),
    ],
)
def test_a_wrong_broker_url_is_named(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        open_broker(url)


def test_unknown_schemes() -> None:
    with pytest.raises(ConfigurationError, match="unknown store 'mysql://x'"):
        open_store("mysql://x")
    with pytest.raises(ConfigurationError, match="did you mean 'embedded'"):
        open_store("embeded://x")
    with pytest.raises(KeyError, match="embeded"):
        Celery("x", broker="embeded://", set_as_current=False).connection().connect()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("embeded:///x", "did you mean 'embedded'"),
        ("http://user:secret@x", r"http://user:\*\*@x.*pubsub"),
        ("embedded:/x", "embedded:///path"),
        ("embedded", "embedded:///path"),
        ("/x", "embedded:///path"),
        ("rabbit.local", "embedded:///path"),
    ],
)
def test_a_broker_that_is_none_is_refused_at_start(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        setup(make_app(), broker_url=url, store_url=memory())
    if url != "rabbit.local":
        app = make_app()
        app.conf.broker_url = url
        with pytest.raises(ConfigurationError, match=message):
            setup(app, store_url=memory())


def test_a_host_of_rabbitmq_may_be_celerys_broker_url() -> None:
    for url in (
        "rabbit.local",
        "rabbit:5672",
        "my.module:Transport://x",
        "SQS://",
        "sqla+sqlite://",
    ):
        app = make_app()
        app.conf.broker_url = url
        setup(app, store_url=memory())


def test_setup_configures_what_the_promise_needs() -> None:
    app = make_app()
    settings = setup(app, broker_url=memory(), store_url=memory(), lock_ttl=7)
    assert settings_for(app) is settings
    assert settings.lock_ttl == 7
    assert app.conf.task_acks_late is True
    assert app.conf.task_reject_on_worker_lost is True
    assert app.conf.worker_prefetch_multiplier == 1
    assert app.conf.accept_content == ["json"]
    app.close()


def test_a_configuration_loaded_after_setup_keeps_the_promise() -> None:
    app = make_app()
    url = memory()
    setup(app, broker_url=url, store_url=url)
    app.config_from_object({"task_default_queue": "mine"}, force=True)
    assert app.conf.task_default_queue == "mine"
    assert app.conf.task_acks_late is True
    assert app.conf.broker_url == url
    app.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task_acks_late", False),
        ("task_reject_on_worker_lost", False),
        ("worker_prefetch_multiplier", 4),
        ("task_serializer", "pickle"),
        ("accept_content", ["json", "pickle"]),
        ("result_accept_content", ["pickle"]),
    ],
)
def test_a_configuration_that_breaks_the_promise_is_refused(name: str, value: Any) -> None:
    app = make_app()
    app.conf[name] = value
    with pytest.raises(ConfigurationError, match=f"{name}.*Leave it out"):
        setup(app, broker_url=memory(), store_url=memory())
    # It is set after setup(): then by what starts.
    app = make_app()
    setup(app, broker_url=memory(), store_url=memory(), environment="development")
    app.conf[name] = value
    with pytest.raises(ConfigurationError, match=f"{name}.*Leave it out"):
        create_app(app)
    with pytest.raises(ConfigurationError, match=f"{name}.*Leave it out"):
        PoolCheck(SimpleNamespace(app=app, pool_cls=solo.TaskPool))


def test_the_apps_own_broker_and_backend_stay() -> None:
    app = make_app()
    own = memory()
    app.conf.broker_url = own
    app.conf.result_backend = "cache+memory://"
    setup(app, store_url=memory())
    assert app.conf.broker_url == own
    assert app.conf.result_backend == "cache+memory://"
    other = make_app()
    other.conf.broker_url = own
    with pytest.raises(ConfigurationError, match="two brokers"):
        setup(other, broker_url=memory(), store_url=memory())
    app.close()


def test_settings_in_app_conf_are_read() -> None:
    app = make_app()
    app.conf.gwi_lock_ttl = 12
    app.conf.gwi_broker_url = app.conf.gwi_store_url = memory()
    assert setup(app).lock_ttl == 12
    app.close()


def test_the_services_settings_are_checked_and_its_token_is_not_shown() -> None:
    settings = load({}, {}, {"PORT": "8080", "GWI_SERVICE_TOKEN": "s3cret"})
    assert settings.port == 8080
    assert "s3cret" not in repr(settings)
    assert (settings.effective_push_auth, settings.effective_host) == ("oidc", "0.0.0.0")
    development = load({}, {}, {"GWI_ENVIRONMENT": "development"})
    assert (development.effective_push_auth, development.effective_host) == ("none", "127.0.0.1")
    for environ, match in (
        ({"GWI_ENVIRONMENT": "develop"}, "did you mean 'development'"),
        ({"GWI_PUSH_POOL": "gevent"}, "push_pool"),
        ({"GWI_PUSH_AUTH": "jwt"}, "push_auth"),
        ({"PORT": "70000"}, "port must be"),
        ({"GWI_PUSH_WAIT": "-1"}, "push_wait must be"),
        ({"GWI_PUSH_CONCURRENCY": "0"}, "push_concurrency must be"),
    ):
        with pytest.raises(ConfigurationError, match=match):
            load({}, {}, environ)


def test_every_setting_is_documented() -> None:
    pages = (ROOT / "docs" / name for name in ("operating.md", "service.md"))
    text = "".join(page.read_text() for page in pages)
    assert [name for name in SETTINGS if f"`{name}`" not in text] == []


# --- where settings come from ---------------------------------------------------------------------


class Django:
    """Stands for ``django.conf:settings``: others' settings in capitals beside ours."""

    DEBUG = True
    GWI_LOCK_TTL = "another app's"
    CELERY_GWI_LOCK_TTL = 12
    CELERY_GWI_MAX_CRASHES = 3
    CELERY_TASK_DEFAULT_QUEUE = "mine"


@pytest.mark.parametrize("first", ["setup", "settings"])
def test_settings_in_a_namespace_are_read(first: str) -> None:
    app = make_app()
    if first == "settings":
        app.config_from_object(Django, namespace="CELERY")
    setup(app, broker_url=memory(), store_url=memory(), max_crashes=4)
    if first == "setup":
        app.config_from_object(Django, namespace="CELERY")
    assert (settings_for(app).lock_ttl, settings_for(app).max_crashes) == (12, 4)
    assert app.conf.task_default_queue == "mine"
    app.close()


@pytest.mark.parametrize("namespace", ["CELERY", "app", None])
def test_a_typo_is_told_as_it_is_written(namespace: str | None) -> None:
    prefix = f"{namespace}_" if namespace else ""
    good, bad = f"{prefix}gwi_lock_ttl", f"{prefix}gwi_lock_tll"
    if namespace == "CELERY":
        good, bad = good.upper(), bad.upper()
    app = make_app()
    app.config_from_object({bad: 1}, namespace=namespace)
    with pytest.raises(ConfigurationError, match=rf"has '{bad}'.*did you mean '{good}'"):
        setup(app, broker_url=memory(), store_url=memory())


def test_capitals_without_a_namespace_are_read() -> None:
    app = make_app()
    app.config_from_object({"GWI_LOCK_TTL": 12})
    assert setup(app, broker_url=memory(), store_url=memory()).lock_ttl == 12


#: What Kubernetes gives the containers of a namespace with services "gwi", "gwi-worker", "gwi-push".
KUBERNETES = {
    f"GWI{name}_{suffix}": value
    for name in ("", "_WORKER", "_PUSH", "_BROKER", "_STORE")
    for suffix, value in {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "80",
        "SERVICE_PORT_HTTP": "80",
        "PORT": "tcp://10.0.0.1:80",
        "PORT_80_TCP": "tcp://10.0.0.1:80",
        "PORT_80_TCP_PROTO": "tcp",
        "PORT_80_TCP_PORT": "80",
        "PORT_80_TCP_ADDR": "10.0.0.1",
    }.items()
}


@pytest.mark.parametrize(
    "environ", [KUBERNETES, {"GWI_DEPLOYED_BY": "ci", "GWI_": "", "GWI_X": ""}]
)
def test_variables_of_others_stop_nobody(environ: dict[str, str]) -> None:
    """Warnings are errors in these tests: none is given either."""
    assert load({}, {}, {**environ, "GWI_LOCK_TTL": "7"}).lock_ttl == 7


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("GWI_LOCK_TLL", "GWI_LOCK_TTL"),
        ("GWI_LOCKTTL", "GWI_LOCK_TTL"),
        ("GWI_HOTS", "GWI_HOST"),
        ("GWI_MAX_DELIVERY", "GWI_MAX_DELIVERIES"),
        ("GWI_PORT", "PORT"),
        ("GWI_GCP_PROJECT_ID", "GCP_PROJECT_ID"),
    ],
)
def test_a_typo_in_the_environment_is_an_error(name: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"has {name},.*did you mean '{meant}'"):
        load({}, {}, {name: "8080"})


@pytest.mark.parametrize("name", ["GWI_BROKER", "GWI_WORKER_NAME", "GWI_LEASE"])
def test_what_may_be_a_typo_is_a_warning(name: str) -> None:
    with pytest.warns(UserWarning, match=f"has {name}, .*left alone; did you mean"):
        load({}, {}, {name: "x"})


# --- setup() more than once -----------------------------------------------------------------------


def test_the_last_setup_decides_for_broker_and_store_alike(tmp_path: Path) -> None:
    app = make_app()

    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str) -> None: ...

    for name in ("one", "two"):
        setup(app, folder=str(tmp_path / name))
        assert app.conf.broker_url == app.conf.result_backend == f"embedded://{tmp_path / name}"
        t.delay(tenant_id="acme")
        store_for(app).list_locks("acme")
        size = broker_for(app).size("celery")
        assert size is not None
        assert size.ready == 1
        assert {path.name for path in (tmp_path / name).glob("*.sqlite3")} == {
            "broker.sqlite3",
            "store.sqlite3",
        }
    app.close()


def test_a_setup_without_arguments_takes_back_those_of_the_first(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    app = make_app()
    setup(app, folder="one", lease_seconds=20)
    assert setup(app).lease_seconds == 30
    assert app.conf.broker_transport_options["lease_seconds"] == 30
    assert app.conf.broker_url == f"embedded://{tmp_path}/.gwi"
    # What the app itself says stays in force.
    app.conf.broker_url = own = memory()
    setup(app, folder="two")
    assert app.conf.broker_url == own


FORBIDDEN = {"task_acks_late": False, "broker_url": "embedded://:memory:/refused"}


@pytest.mark.parametrize("reliable", [True, False])
def test_a_forbidden_setting_that_is_loaded_later_refuses_each_call(reliable: bool) -> None:
    app = make_app()
    setup(app, store_url=memory())
    app.config_from_object(FORBIDDEN, force=True)

    @app.task(shared=False, base=ReliableTask if reliable else None, name="t")
    def t(*, tenant_id: str) -> None: ...

    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"task_acks_late is False.*Leave it out"):
            t.delay(tenant_id="acme")
    with pytest.raises(ConfigurationError, match="task_acks_late"):
        settings_for(app)
    app.config_from_object({"broker_url": "embedded://:memory:/refused"}, force=True)
    t.delay(tenant_id="acme")
    app.close()


@pytest.mark.filterwarnings("ignore::celery.exceptions.SecurityWarning")
def test_a_forbidden_setting_that_is_loaded_later_stops_the_worker() -> None:
    app = make_app()
    setup(app, broker_url=memory(), store_url=memory())
    app.config_from_object({"task_acks_late": False}, force=True)
    with pytest.raises(ConfigurationError, match=r"task_acks_late is False.*Leave it out"):
        app.Worker(pool="solo")
    app.close()


def test_a_call_before_setup_is_refused() -> None:
    app = make_app()

    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str) -> None: ...

    for call in (t.delay, lambda **kwargs: t.apply(kwargs=kwargs).get()):
        with pytest.raises(ConfigurationError, match=r"call gwi_celery\.setup\(app\)"):
            call(tenant_id="acme")


# --- URLs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["postgres://x", "redis://x", "mysql://x", "sqlite:///x", "nonsense"]
)
def test_setup_refuses_a_store_it_does_not_know(url: str) -> None:
    app = make_app()
    with pytest.raises(ConfigurationError, match=f"unknown store '{url}'.*embedded.*firestore"):
        setup(app, broker_url=memory(), store_url=url)


def test_redis_without_its_client_names_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for conf in (
        {"broker_url": "redis://:s3cret@host:1/0"},
        {"result_backend": "rediss://:s3cret@host"},
    ):
        app = make_app()
        app.conf.update(conf)
        with pytest.raises(ConfigurationError, match=r"pip install 'gwi-celery\[redis\]'") as info:
            setup(app, store_url=memory())
        assert "s3cret" not in str(info.value)


@pytest.mark.parametrize("as_list", [True, False])
def test_options_reach_each_of_several_brokers(as_list: bool, tmp_path: Path) -> None:
    """The first is no database, so that a call fails over to the second, with that one's options."""
    (tmp_path / "one").write_text("a file where a folder is needed")
    urls = [
        f"embedded://{tmp_path}/one/x?lease_seconds=7",
        f"embedded://{tmp_path}/two?lease_seconds=9&retention=50",
        "pubsub://a-project?lease_seconds=60",
        "pubsub://host.example:8085/other",
        "pubsub://third",
    ]
    app = make_app()
    app.conf.broker_url = urls if as_list else ";".join(urls)
    setup(app, store_url=memory(), lease_seconds=11, max_deliveries=4)
    with app.connection_for_write() as connection:
        seen = []
        for url in urls:
            transport = connection.transport
            assert transport.url == url
            assert connection.as_uri() == url
            options = getattr(transport.broker, "options", transport.broker)
            seen.append((options.lease_seconds, getattr(options, "endpoint", None)))
            transport.broker.close()
            connection.maybe_switch_next()
    assert seen == [
        (7, None),
        (9, None),
        (60, "pubsub.googleapis.com:443"),
        (11, "host.example:8085"),
        (11, "pubsub.googleapis.com:443"),
    ]
    app.close()


def test_a_broker_of_anothers_among_the_alternates() -> None:
    """Kombu reads its URL; nothing of ours stays in its connection."""
    app = make_app()
    app.conf.broker_url = ["pubsub://h:1/p?timeout=3", "redis://:s@r.example:6380/3", "pubsub://q"]
    setup(app, store_url=memory())
    connection = app.connection_for_write()
    connection.maybe_switch_next()
    assert (connection.transport_cls, connection.hostname) == ("redis", "r.example")
    assert (connection.port, connection.virtual_host, connection.password) == (6380, "3", "s")
    connection.maybe_switch_next()
    assert connection.transport.url == "pubsub://q"


# --- one broker for an app ------------------------------------------------------------------------


def test_an_app_has_one_broker_however_often_it_is_asked_for(tmp_path: Path) -> None:
    app = make_app()
    setup(app, folder=str(tmp_path))
    broker_for(app).connect()
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(20):
        assert broker_for(app) is broker_for(app)
        broker_for(app).has_queue("celery")
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (descriptors, threads)
    read, write = os.pipe()
    mine = broker_for(app)
    pid = os.fork()
    if not pid:
        os.write(write, b"own" if broker_for(app) is not mine else b"the parent's")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 100) == b"own"
    os.close(read)
    os.close(write)
    assert not mine.has_queue("celery")
    app.close()


def test_an_apps_broker_is_closed_with_the_app(tmp_path: Path) -> None:
    app = make_app()
    setup(app, folder=str(tmp_path))
    broker_for(app).connect()
    path = str(tmp_path / "broker.sqlite3")

    def opened() -> bool:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return any(os.path.realpath(link) == path for link in links)

    assert opened()
    app.close()
    del app
    gc.collect()
    assert not opened()


@pytest.mark.parametrize(
    ("name", "value"), [("task_serializer", "auth"), ("accept_content", ["auth", "json"])]
)
def test_celerys_auth_serializer_is_refused_with_what_to_use_instead(name: str, value: Any) -> None:
    app = Celery("auth", set_as_current=False)
    app.conf[name] = value
    with pytest.raises(ConfigurationError, match="signing_keys"):
        setup(app, store_url="embedded://:memory:/auth", broker_url="embedded://:memory:/auth")
