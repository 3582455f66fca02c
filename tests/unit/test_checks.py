"""The system checks; each test is named after the check's id."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any
from weakref import ReferenceType

import pytest
from celery import Celery
from celery.contrib.django.task import DjangoTask
from django.core.checks import Error, Info, Tags, Warning
from django.core.checks.registry import registry
from django.db import connection, connections
from django.db.backends.postgresql.psycopg_any import IsolationLevel
from django.db.models.signals import post_init, post_save, pre_save
from django.dispatch import Signal
from django.test import override_settings

from django_celery_signals import connect, disconnect
from django_celery_signals import connected as module
from django_celery_signals.checks import TAG, project
from django_celery_signals.durable import saving
from django_celery_signals.durable.rows import State
from tests.delivering import place
from tests.receiving import Receiving
from tests.shop.models import Order, Person, Tag

bell = Signal()


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests, and the project of the tests, have connected is not looked at."""
    before = {id(held) for signal in module.signals() for _, held, *_ in signal.receivers}
    monkeypatch.setattr(module, "_held_by", lambda signal: _newer(signal, before))


def _newer(signal: Signal, before: set[int]) -> list[tuple[Any, Any]]:
    entries = [(key, held) for key, held, *_ in signal.receivers if id(held) not in before]
    return [(key, held() if isinstance(held, ReferenceType) else held) for key, held in entries]


def found(*databases: str, include_deployment_checks: bool = False) -> list[Any]:
    """Return what the library's checks say: of Django's own some ask databases, from 6.1 on all there are."""
    checks = [one for one in registry.get_checks(include_deployment_checks) if TAG in one.tags]  # type: ignore[attr-defined]
    chosen = [one for one in checks if databases or Tags.database not in one.tags]  # type: ignore[attr-defined]
    return [message for one in chosen for message in one(app_configs=None, databases=list(databases) or None)]


def only(number: str, **options: Any) -> Any:
    """Return the one message of a check."""
    (message,) = (message for message in found(**options) if message.id == number)
    return message


def test_a_sound_project_hears_nothing(receiving: Receiving) -> None:
    """Receivers of all guarantees, of signals with and without a name, are no reason for a word."""
    receiving(post_save, sender=Tag, guarantee="on_commit")
    receiving(bell, guarantee="durable")
    receiving(Signal(), guarantee="immediate")

    assert [] == found()


def plainly(receiving: Receiving, signal: Signal, task: Any, **options: Any) -> None:
    """Connect a task as Django does, which asks nothing."""
    Signal.connect(signal, task.delay, **options)
    receiving.undo.append(lambda: Signal.disconnect(signal, task.delay, **options))


def again(receiving: Receiving, signal: Signal, task: Any, **options: Any) -> None:
    """Connect a task once more."""
    connect(signal, task, **options)
    place = {name: options[name] for name in ("sender", "dispatch_uid", "subclasses") if name in options}
    receiving.undo.append(lambda: disconnect(signal, task, **place))


def test_dcs_E001(receiving: Receiving, celery_app: Celery) -> None:
    """A receiver that its app does not have is named, with where its module belongs."""
    task = receiving(bell)
    del celery_app._tasks[task.name]

    message = only("dcs.E001")

    assert isinstance(message, Error)
    assert task.name in message.msg
    assert "AUTODISCOVER" in message.hint


def test_dcs_E002(receiving: Receiving) -> None:
    """A receiver that a plain ``connect()`` gave a signal which never sends what it needs is named, with that."""
    task = receiving(bell, needs)
    plainly(receiving, post_save, task, sender=Tag)

    message = only("dcs.E002")

    assert isinstance(message, Error)
    assert task.name in message.msg
    assert "'colour'" in message.msg


def test_a_task_itself(receiving: Receiving, celery_app: Celery) -> None:
    """A task that was connected as it stands is looked at as well."""
    task = receiving(bell, needs)
    Signal.connect(post_save, task, sender=Tag, weak=False)
    receiving.undo.append(lambda: Signal.disconnect(post_save, task, sender=Tag))

    assert task.name in only("dcs.E002").msg


def needs(colour: str, **_: Any) -> None:
    """Ask for what no save sends."""


def takes(events: list[Any]) -> None:
    """Take a batch."""


def test_dcs_E002_of_a_batch(receiving: Receiving) -> None:
    """What takes events is no error, and what does not is one."""
    receiving(bell, takes, guarantee="durable", batch=True)
    assert [] == found()

    odd = receiving(bell, takes, guarantee="durable", batch=True)
    type(odd).run = staticmethod(needs)

    assert "list of events" in only("dcs.E002").msg


def test_dcs_E003(receiving: Receiving) -> None:
    """A signal that can have no receiver in a worker is named, although nothing was refused."""
    plainly(receiving, post_init, receiving(bell), sender=Tag)

    message = only("dcs.E003")

    assert isinstance(message, Error)
    assert "post_init" in message.msg
    assert "plain function" in message.hint


def test_dcs_E004(receiving: Receiving) -> None:
    """A task that takes turns, connected where there are no rows, is named; nothing refused that."""
    ordered = receiving(bell, guarantee="durable", ordered=True, key=lambda n: n)
    plainly(receiving, pre_save, ordered, sender=Tag)

    message = only("dcs.E004")

    assert isinstance(message, Error)
    assert "guarantee='durable'" in message.msg


def test_dcs_I001(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models with durable receivers are named by ``check --deploy``, with the setting that leaves their saves alone."""
    monkeypatch.setattr(saving, "_atomic", [])
    monkeypatch.setattr(Tag, "save_base", Tag.save_base)
    assert [] == found(include_deployment_checks=True)

    receiving(post_save, sender=Tag, guarantee="durable")

    message = only("dcs.I001", include_deployment_checks=True)
    assert isinstance(message, Info)
    assert message.msg.startswith("Saves of shop.Tag are atomic")
    assert "'ATOMIC_SAVES': False" in (message.hint or "")
    assert [] == found()
    with override_settings(DJANGO_CELERY_SIGNALS={"ATOMIC_SAVES": False}):
        assert ["dcs.W007"] == [message.id for message in found(include_deployment_checks=True)]
    monkeypatch.setitem(connections["default"].settings_dict, "OPTIONS", {})  # W001 says that they are not
    assert ["dcs.W001", "dcs.W007"] == [message.id for message in found(include_deployment_checks=True)]


def test_dcs_W001(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SQLite database with deliveries whose transactions do not take the lock at once is named, with its setting."""
    monkeypatch.setitem(connections["other"].settings_dict, "OPTIONS", {"timeout": 20})
    assert [] == found()

    receiving(Signal(), guarantee="durable")

    (message,) = found()
    assert ("dcs.W001", 30) == (message.id, message.level)
    assert "'other'" in message.msg
    assert "DATABASES['other']['OPTIONS'] = {'transaction_mode': 'IMMEDIATE'}" == message.hint


def test_dcs_W001_by_default(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that says nothing is durable where the app is installed."""
    monkeypatch.setitem(connections["default"].settings_dict, "OPTIONS", {"transaction_mode": "DEFERRED"})
    with override_settings(DJANGO_CELERY_SIGNALS={}):
        assert [] == found()
        receiving(bell)
        assert ["dcs.W001"] == [message.id for message in found()]


def test_dcs_W002(receiving: Receiving) -> None:
    """A receiver that says what a failure does to its key, and has none, is named, with what to give it."""
    bell = Signal()
    alone = receiving(bell, guarantee="durable", on_failure="park")
    receiving(bell, guarantee="durable")
    in_order = receiving(bell, guarantee="durable", on_failure="block", ordered=True, key=lambda n: n)
    folding = receiving(bell, guarantee="durable", on_failure="block")
    again(receiving, bell, folding, guarantee="durable", coalesce=True, key=lambda n: n, dispatch_uid="folding")

    messages = [message for message in found() if message.id == "dcs.W002"]
    assert [] == [message for message in found() if message.id == "dcs.W003" and alone.name in message.msg]

    assert [True] == [alone.name in message.msg and "on_failure='park'" in message.msg for message in messages]
    assert in_order.name not in messages[0].msg
    assert "ordered=True" in messages[0].hint


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"sender": Tag}, {"sender": Tag, "dispatch_uid": "again"}),
        ({"sender": Tag}, {}),
        ({"sender": Tag}, {"sender": Tag, "dispatch_uid": "new", "created": True}),
        ({"sender": Tag, "created": True}, {"created": True}),
        ({"sender": Person}, {"sender": Person, "subclasses": True}),
        ({"sender": Person, "subclasses": True}, {"sender": Person, "dispatch_uid": "more"}),
    ],
)
def test_dcs_W003(receiving: Receiving, first: dict[str, Any], second: dict[str, Any]) -> None:
    """A receiver that is connected twice for the same events is named, with both senders."""
    task = receiving(post_save, **first)
    again(receiving, post_save, task, **second)

    message = only("dcs.W003")

    assert isinstance(message, Warning)
    assert f"{task.name} is connected twice to post_save" in message.msg
    assert "for shop." in message.msg or "sender shop." in message.msg


def test_dcs_W003_shows_what_tells_them_apart(receiving: Receiving) -> None:
    """The words that tell two connections apart to Django are shown."""
    task = receiving(post_save, sender=Tag)
    again(receiving, post_save, task, sender=Tag, dispatch_uid="again")

    assert "(dispatch_uid 'again')" in only("dcs.W003").msg


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"created": True}, {"created": False}),
        ({"countdown": 60}, {"countdown": 3600}),
        ({}, {"sender": Order}),
        ({"exclude": [Order]}, {"sender": Order}),
        ({"exclude": ["shop.Order"]}, {"sender": Order}),
        ({"sender": Person, "subclasses": True}, {"sender": Tag}),
        ({"guarantee": "durable"}, {"guarantee": "durable", "debounce": 5}),
    ],
)
def test_dcs_W003_two_that_differ(receiving: Receiving, first: dict[str, Any], second: dict[str, Any]) -> None:
    """Connections for other events, and reminders at several times, are meant."""
    task = receiving(post_save, **{"sender": None if "exclude" in first else Tag, **first})
    again(receiving, post_save, task, **{"sender": Tag, "dispatch_uid": "second", **second})

    assert [] == found()


def test_dcs_W004(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without the project's Celery app is told where to import it, once something is connected."""
    monkeypatch.setattr(project, "is_fallback", lambda app: True)
    assert [] == found()

    receiving(bell)

    assert "from .celery import app as celery_app" in only("dcs.W004").hint


def test_dcs_W005(receiving: Receiving, celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures that are stored for nobody are named, if there is a place to store them."""
    task = receiving(bell, store_errors_even_if_ignored=True)
    assert [] == found()

    monkeypatch.setitem(celery_app.conf, "result_backend", "cache+memory://")

    message = only("dcs.W005")
    assert task.name in message.msg
    assert "STORE_ERRORS_EVEN_IF_IGNORED" in message.hint


@pytest.mark.parametrize("word", ["acks_late", "reject_on_worker_lost"])
def test_dcs_W006(receiving: Receiving, word: str) -> None:
    """A durable receiver whose message stays with the broker is named; of others that is the only safety."""
    receiving(bell, guarantee="on_commit", **{word: True})
    assert [] == found()

    task = receiving(bell, guarantee="durable", **{word: True})

    message = only("dcs.W006")
    assert task.name in message.msg
    assert f"{word}=False" in message.hint


def test_dcs_W007_of_a_database(receiving: Receiving, celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Django's own setting closes it as well."""
    monkeypatch.setitem(celery_app.conf, "CELERY_DB_REUSE_MAX", 1000)
    for alias in connections:
        monkeypatch.setitem(connections[alias].settings_dict, "CONN_MAX_AGE", 60)
    receiving(bell, guarantee="durable")
    assert "dcs.W007" not in [message.id for message in found(include_deployment_checks=True)]

    monkeypatch.setitem(connections["other"].settings_dict, "CONN_MAX_AGE", 0)

    assert "DATABASES['other']['CONN_MAX_AGE'] = 600" == only("dcs.W007", include_deployment_checks=True).hint

    monkeypatch.setitem(connections["other"].settings_dict, "OPTIONS", {"pool": True})  # Django wants 0 there

    assert "dcs.W007" not in [message.id for message in found(include_deployment_checks=True)]


def test_dcs_W007(receiving: Receiving, celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that connect anew for each task are named by ``check --deploy``, once something is connected."""
    assert "dcs.W007" not in [message.id for message in found(include_deployment_checks=True)]

    receiving(bell)

    assert [] == found()
    assert "CELERY_DB_REUSE_MAX = 1000" == only("dcs.W007", include_deployment_checks=True).hint
    monkeypatch.setitem(celery_app.conf, "CELERY_DB_REUSE_MAX", 1000)
    assert "dcs.W007" not in [message.id for message in found(include_deployment_checks=True)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"countdown": 7200}, "7200 seconds (countdown=)"),
        ({"autoretry_for": (OSError,), "default_retry_delay": 3600}, "3600 seconds (default_retry_delay=)"),
        (
            {"autoretry_for": (OSError,), "retry_backoff": 60, "retry_backoff_max": 9000, "max_retries": 7},
            "3840 seconds (retry_backoff=)",
        ),
        (
            {"autoretry_for": (OSError,), "retry_backoff": True, "retry_backoff_max": 9000, "max_retries": None},
            "9000 seconds",
        ),
    ],
)
def test_dcs_W008(
    receiving: Receiving, celery_app: Celery, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    """What waits in a worker for longer than Redis bears is named; a durable delivery waits in its row."""
    monkeypatch.setattr(celery_app, "connection_for_read", lambda: transport("redis"))
    receiving(bell, guarantee="durable", **options)
    receiving(bell, guarantee="on_commit", countdown=3599)
    receiving(bell, guarantee="on_commit", autoretry_for=(OSError,))
    assert [] == found()

    task = receiving(bell, guarantee="on_commit", **options)

    message = only("dcs.W008")
    assert task.name in message.msg
    assert words in message.msg
    assert "guarantee='durable'" in message.hint
    monkeypatch.setattr(celery_app, "connection_for_read", lambda: transport("redis", visibility_timeout=10_000))
    assert [] == found()
    monkeypatch.setattr(celery_app, "connection_for_read", lambda: transport("amqp"))
    assert [] == found()


def transport(name: str, **options: Any) -> Any:
    return SimpleNamespace(transport_cls=name, transport_options=options)


def of_databases(*aliases: str) -> list[Any]:
    return found(*aliases)


with_databases = pytest.mark.django_db(databases=["default", "other", "postgres", "mariadb"])


@pytest.fixture
def durable(receiving: Receiving) -> Any:
    """A receiver whose deliveries are kept."""
    return receiving(bell, guarantee="durable")


@pytest.mark.usefixtures("durable")
@with_databases
def test_dcs_W009(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without SKIP LOCKED is named, with those that have it."""
    assert [] == of_databases("default", "mariadb")

    monkeypatch.setitem(connections["mariadb"].features.__dict__, "has_select_for_update_skip_locked", False)

    (message,) = of_databases("default", "mariadb")
    assert ("dcs.W009", "Run MariaDB 10.6 or MySQL 8.0.1, or later.") == (message.id, message.hint)


@pytest.mark.usefixtures("durable")
@pytest.mark.parametrize(
    ("alias", "level"), [("postgres", IsolationLevel.REPEATABLE_READ), ("mariadb", "serializable")], ids=str
)
@pytest.mark.django_db(transaction=True, databases=["postgres", "mariadb"])
def test_dcs_W010(alias: str, level: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database whose transactions do not see what others commit is named, with its level."""
    assert [] == of_databases("postgres", "mariadb")
    connection = connections[alias]
    monkeypatch.setitem(
        connection.settings_dict, "OPTIONS", {**connection.settings_dict["OPTIONS"], "isolation_level": level}
    )
    connection.close()

    (message,) = of_databases("postgres", "mariadb")

    connection.close()
    assert "dcs.W010" == message.id
    assert f"{alias!r} run at {'SERIALIZABLE' if alias == 'mariadb' else 'REPEATABLE READ'}" in message.msg
    assert f"DATABASES[{alias!r}]" in message.hint


@pytest.mark.usefixtures("durable")
@with_databases
def test_dcs_W011(receiving: Receiving) -> None:
    """Deliveries for a task that is gone are named, with both remedies; a former name is still taken."""
    task = receiving(bell, former_names=["tests.before"])
    for name in ("tests.gone", "tests.before", task.name):
        place("default", name)
    place("default", "tests.long_gone", state=State.FAILED)
    place("default", "tests.long_gone", state=State.DONE)

    (message,) = of_databases("default", "other")

    assert "dcs.W011" == message.id
    assert "for tests.gone" in message.msg
    assert "former_names=['tests.gone']" in message.hint


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("DJANGO_CELERY_SIGNAL", {"STRICT": True}, "Rename it to DJANGO_CELERY_SIGNALS."),
        ("CELERY_SIGNALS", {}, "Rename it to DJANGO_CELERY_SIGNALS."),
        ("DJANGO_CELERY_SIGNALS_STRICT", True, "Write DJANGO_CELERY_SIGNALS = {'STRICT': ...}."),
    ],
)
def test_dcs_W012(name: str, value: Any, hint: str) -> None:
    """A setting that is almost the library's is named, with what to write."""
    with override_settings(**{name: value}):
        message = only("dcs.W012")

    assert name in message.msg
    assert hint == message.hint


@pytest.mark.parametrize("name", ["DJANGO_CELERY_SIGNALS_OWN", "DJANGO_CELERY_BEAT", "DJANGO_CELERY_SIGNAL"])
def test_dcs_W012_others(name: str) -> None:
    """Settings of others are theirs, and a text is none of ours."""
    with override_settings(**{name: "text"}):
        assert [] == found()


@pytest.mark.usefixtures("durable")
def test_dcs_W013(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database without autocommit is named."""
    monkeypatch.setitem(connections["other"].settings_dict, "AUTOCOMMIT", False)

    message = only("dcs.W013")

    assert "DATABASES['other']" in message.msg
    assert "ATOMIC_REQUESTS" in message.hint


@pytest.mark.parametrize("spelling", ["delay", "apply_async", "delay_on_commit"])
def test_dcs_W015(receiving: Receiving, celery_app: Celery, spelling: str) -> None:
    """A task that knows no signals, and is connected as one that does, is named; what it does else is its own."""
    ordinary = celery_app.task(base=DjangoTask, name=f"shop.ordinary.{spelling}")(takes)
    for signal, receiver in ((bell, getattr(ordinary, spelling)), (post_save, ordinary.run), (post_save, ordinary)):
        signal.connect(receiver, sender=Tag)
        receiving.undo.append(partial(signal.disconnect, receiver, sender=Tag))

    message = only("dcs.W015")

    assert isinstance(message, Warning)
    assert f"{ordinary.name} is an ordinary Celery task, whose {spelling}() is connected to bell" in message.msg
    assert "base=ReceiverTask" in message.hint


@pytest.mark.usefixtures("durable")
@with_databases
@pytest.mark.parametrize("table", ["django_celery_signals_delivery", "django_celery_signals_pause"])
def test_dcs_W014(table: str) -> None:
    """A database without the table is named, with the command that makes it; one that was never migrated is new."""
    connection = connections["default"]
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO elsewhere")

    (message,) = of_databases("default", "other")

    assert "dcs.W014" == message.id
    assert f"'default' has no table {table}" in message.msg
    assert message.hint.startswith("manage.py migrate --database=default")
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE django_migrations RENAME TO elsewhere_too")
    assert [] == of_databases("default", "other")


def test_nothing_durable_asks_no_database() -> None:
    """Where nothing is durable, no database is asked."""
    with connection.execute_wrapper(_refuse):
        assert [] == of_databases("default")


def _refuse(*_: Any) -> Any:
    raise AssertionError("a query")
