"""Settings and URLs: what is wrong is named, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from gwi_celery import ReliableTask, setup, store_for
from gwi_celery.app import broker_for, settings_for
from gwi_celery.config import load, parse_embedded_url, quote_folder
from gwi_celery.errors import BrokerUnusable, ConfigurationError, StoreUnusable
from gwi_celery.stores.firestore import FirestoreStore
from gwi_celery.stores.url import open_store
from gwi_celery.transport.embedded import OPTIONS, open_broker


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
        ({"max_deliveries": 0}, {}, {}, "at least 1"),
        ({}, {}, {"GWI_STORE_BACKEND": "redis"}, "memory, sqlite"),
    ],
)
def test_a_wrong_setting_is_an_error_that_says_what_to_do(
    overrides: dict[str, Any], conf: dict[str, Any], environ: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(overrides, conf, environ)


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


def test_results_go_where_the_store_is() -> None:
    app = make_app()
    setup(app, broker_url=memory(), store_url="firestore://proj/mine")
    assert app.conf.result_backend == "firestore://proj/mine"


@pytest.mark.parametrize("folder", ["/a/b", "/a b/ä#?%;x", "/UPPER/Case:8"])
def test_any_folder_goes_through_a_url(folder: str) -> None:
    assert parse_embedded_url(f"embedded://{quote_folder(folder)}", OPTIONS).folder == Path(folder)


def test_the_forms_of_an_embedded_url(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_embedded_url("embedded://", OPTIONS).folder == tmp_path / ".gwi"
    assert parse_embedded_url("embedded://Sub/dir", OPTIONS).folder == tmp_path / "Sub/dir"
    assert parse_embedded_url("embedded://:memory:", OPTIONS).memory == "default"
    assert parse_embedded_url("embedded://:memory:/x", OPTIONS).memory == "x"
    options = parse_embedded_url("embedded:///x?lease_seconds=5", OPTIONS).options
    assert options == {"lease_seconds": "5"}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("embedded:/x", "no embedded URL"),
        ("redis://x", "no embedded URL"),
        ("embedded:///x?lease=1", "did you mean 'lease_seconds'"),
        ("embedded:///x?lease_seconds=soon", "not a number"),
        ("embedded:///x?lease_seconds=-1", "above 0"),
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
    ],
)
def test_a_configuration_that_breaks_the_promise_is_refused(name: str, value: Any) -> None:
    app = make_app()
    app.conf[name] = value
    with pytest.raises(ConfigurationError, match=f"{name}.*Leave it out"):
        setup(app, broker_url=memory(), store_url=memory())


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


def test_files_that_are_no_databases(tmp_path: Path) -> None:
    (tmp_path / "broker.sqlite3").write_text(
        "not a database, but some text that is long enough" * 9
    )
    (tmp_path / "store.sqlite3").write_text("not a database, but some text that is long enough" * 9)
    app = make_app()
    setup(app, folder=str(tmp_path))

    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str) -> None: ...

    with pytest.raises((BrokerUnusable, OperationalError), match="not a SQLite database"):
        t.delay(tenant_id="acme")
    with pytest.raises(BrokerUnusable, match="move the file away"):
        broker_for(app).connect()
    with pytest.raises(StoreUnusable, match="move the file away"):
        store_for(app).list_locks("acme")
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
