"""The tables: what they are called, what they hold, and how they come into a database."""

from __future__ import annotations

import pytest
from django.core.management import call_command
from django.db import DataError, connections
from django.db.models import F
from django.db.models.signals import post_delete, post_save, pre_delete, pre_save

from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.models import Delivery, Minute, QueueProbe
from tests.delivering import place
from tests.parameters import each_database
from tests.receiving import hearing

APP = "django_celery_signals"
TABLES = {model._meta.db_table for model in (Delivery, QueueProbe, Minute)}


def tables(alias: str) -> set[str]:
    return TABLES.intersection(connections[alias].introspection.table_names())


def test_words() -> None:
    """A delivery is shown as what was sent, for whom, and where it stands; a probe as its queue."""
    row = Delivery(summary="post_save shop.Order pk=5 created", receiver="shop.tasks.index", state=State.RUNNING)

    assert "post_save shop.Order pk=5 created -> shop.tasks.index (running)" == str(row)
    assert "mails" == str(QueueProbe(queue="mails"))
    assert "deliveries" == Delivery._meta.verbose_name_plural


@pytest.mark.django_db(databases="__all__")
def test_migrations_are_complete(capsys: pytest.CaptureFixture[str]) -> None:
    """No model differs from its migrations, whatever the databases."""
    call_command("makemigrations", APP, check=True, dry_run=True)

    assert "No changes detected" in capsys.readouterr().out


@each_database
def test_migrate(alias: str) -> None:
    """The tables are made in every database, can be removed, and be made again."""
    assert TABLES == tables(alias)
    try:
        call_command("migrate", APP, "zero", database=alias, verbosity=0)
        assert set() == tables(alias)
    finally:
        call_command("migrate", APP, database=alias, verbosity=0)
    assert TABLES == tables(alias)

    place(alias, "tests.nobody")
    assert 1 == deliveries(alias).count()


@each_database
def test_a_new_delivery(alias: str) -> None:
    """A row that says only what it must has used up nothing, has no slot and no error, and holds no options."""
    place(alias, "tests.nobody")
    row = deliveries(alias).get()

    counts = (row.attempts, row.crashes, row.reruns, row.sends)
    unknown = (row.key, row.slot, row.claim, row.sent_at, row.finished_at)
    error = (row.error_type, row.error_message, row.traceback, row.fingerprint)
    assert ((0, 0, 0, 0), {}) == (counts, row.options)
    assert {None} == {*unknown, *error}


@each_database
def test_long_values(alias: str) -> None:
    """Names may have 255 characters of any language, a payload millions."""
    names = ("receiver", "signal", "summary", "queue", "key", "error_type", "fingerprint")
    place(alias, "tests.nobody")
    deliveries(alias).update(**dict.fromkeys(names, "ж" * 255), payload="p" * 3_000_000, traceback="🔔" * 100_000)

    row = deliveries(alias).get()
    assert {"ж" * 255} == {getattr(row, name) for name in names}
    assert (3_000_000, 100_000) == (len(row.payload), len(row.traceback))


@each_database("postgres", "mariadb")
def test_longer_names(alias: str) -> None:
    """What is longer is refused, never cut off in silence."""
    with pytest.raises(DataError):
        place(alias, "x" * 256)


@each_database
def test_large_tokens(alias: str) -> None:
    """Tokens and claims have 60 bits and room to count."""
    place(alias, "tests.nobody")
    deliveries(alias).update(token=2**60 - 1, claim=2**60 - 1)
    deliveries(alias).update(token=F("token") + 1)

    assert (2**60, 2**60 - 1) == deliveries(alias).values_list("token", "claim").get()


@each_database("default")
def test_no_signal_is_sent_for_a_delivery(alias: str) -> None:
    """A receiver of every model's saves and deletions is not told of deliveries, or it would be told of itself."""
    place(alias, "tests.nobody", 2, state=State.FAILED)
    rows = deliveries(alias)

    with hearing(pre_save) as a, hearing(post_save) as b, hearing(pre_delete) as c, hearing(post_delete) as d:
        rows.update(due_at=In(0))
        assert 2 == rows.retry()
        rows.update(state=State.FAILED)
        assert 2 == rows.discard()

    assert [[]] * 4 == [a, b, c, d]
