"""Where other outboxes lose, repeat or break something: each hole is closed here, on every database."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from threading import Thread
from typing import Any

import pytest
from celery import Celery
from celery.signals import before_task_publish
from django.db import connections, transaction
from django.db.models import F, Value
from django.db.models.functions import Replace
from django.db.models.signals import post_save
from django.dispatch import Signal
from django.test import override_settings

from django_celery_signals import Event, Relay, UnknownReceiver, deliveries
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import State
from django_celery_signals.exceptions import DecodeError, UnknownVersion
from tests.brokers import Broker
from tests.drain import run, take
from tests.parameters import each_database
from tests.receiving import Receiving
from tests.shop.models import Tag

bell = Signal()


@pytest.fixture(autouse=True)
def memory(broker: Broker) -> Broker:
    """A queue of the test's own."""
    return broker


def relay(app: Celery, alias: str) -> int:
    return Relay(app=app, databases=[alias]).once()


@each_database
def test_values_of_any_type_do_not_break_the_sender(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """A UUID or a datetime among the arguments raises nothing in the sender's transaction, and arrives as it was."""
    found: list[dict[str, Any]] = []
    receiving(bell, lambda **kwargs: found.append(kwargs), guarantee="durable")
    given = {
        "number": uuid.UUID(int=7),
        "moment": datetime(2026, 11, 25, 1, 2, 3, 4, tzinfo=UTC),
        "day": date(2026, 11, 25),
        "price": Decimal("1.10"),
        "pause": timedelta(seconds=1.5),
        "view": object(),
    }

    with transaction.atomic(using=alias):
        bell.send(sender=None, using=alias, **given)
    [message] = take(celery_app)
    run(celery_app, message)

    assert given["view"] is not found[0]["view"]
    assert {**given, "view": None} == {**{name: found[0][name] for name in given}, "view": None}


@each_database
def test_what_celery_derives_survives_the_table(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """Priority, queue and lineage of the sending are those of every publication, also of the relay's."""
    receiving(bell, guarantee="durable", priority=7, queue="urgent", countdown=60)
    headers: list[Any] = []

    @celery_app.task(name="tests.integration.test_holes.parent")
    def parent() -> None:
        bell.send(sender=None, using=alias)

    parent_id = parent.apply().id
    deliveries(alias).update(due_at=In(-1))
    relay(celery_app, alias)
    [message] = take(celery_app, "urgent")
    headers = [message.headers["root_id"], message.headers["parent_id"], message.properties["priority"]]

    assert [parent_id, parent_id, 7] == headers
    celery_app._tasks.pop(parent.name)


@each_database
def test_listeners_of_celery_see_every_publication(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """What others add to a message before it is published, as tracing does, is added by the relay, too."""
    receiving(bell, guarantee="durable", countdown=60)
    bell.send(sender=None, using=alias)
    deliveries(alias).update(due_at=In(-1))

    def trace(headers: dict[str, Any], **kwargs: Any) -> None:
        headers["trace"] = "abc"

    before_task_publish.connect(trace)
    celery_app.__dict__.pop("amqp", None)  # Celery 5.5 looks for listeners once
    relay(celery_app, alias)
    before_task_publish.disconnect(trace)
    celery_app.__dict__.pop("amqp", None)

    assert ["abc"] == [message.headers["trace"] for message in take(celery_app)]


@pytest.mark.django_db(transaction=True, databases=["default", "other", "postgres", "mariadb"])
def test_every_database_is_relayed(celery_app: Celery, receiving: Receiving) -> None:
    """A relay that is told no database serves all that keep deliveries, whatever their alias."""
    receiving(bell, guarantee="durable", countdown=60)
    aliases = [alias for alias in ("default", "other", "postgres", "mariadb") if alias in connections.settings]
    for alias in aliases:
        bell.send(sender=None, using=alias)
        deliveries(alias).update(due_at=In(-1))

    assert len(aliases) == Relay(app=celery_app).once()
    assert aliases == [message.kwargs["__event__"]["alias"] for message in take(celery_app)]


@each_database("other", "postgres", "mariadb", also=["default"])
def test_nothing_is_published_before_its_own_database_commits(
    alias: str, celery_app: Celery, receiving: Receiving
) -> None:
    """The commit that a publication waits for is that of the sending's database, whatever other one commits (H33)."""
    receiving(post_save, sender=Tag, guarantee="durable")

    with transaction.atomic(using=alias):
        with transaction.atomic(using="default"):
            Tag.objects.using(alias).create(name="red")
        assert [] == take(celery_app)

    assert 1 == len(take(celery_app))


@each_database
def test_what_cannot_be_read_is_kept(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """A damaged delivery fails with its payload still there; repaired, it can be retried."""
    seen: list[int] = []
    receiving(bell, lambda number: seen.append(number), guarantee="durable")
    bell.send(sender=None, using=alias, number=5)
    good = deliveries(alias).get().payload
    deliveries(alias).update(payload=good[:-2])

    [message] = take(celery_app)
    result = run(celery_app, message)

    row = deliveries(alias).get()
    assert isinstance(result.result, DecodeError)
    assert (State.FAILED, good[:-2], "django_celery_signals.exceptions.DecodeError") == (
        row.state,
        row.payload,
        row.error_type,
    )
    deliveries(alias).update(payload=good)
    assert 1 == deliveries(alias).retry()
    relay(celery_app, alias)
    [message] = take(celery_app)
    run(celery_app, message)
    assert ([5], 0) == (seen, deliveries(alias).count())


@each_database
def test_a_newer_version_waits_and_then_fails_aloud(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """A row that newer code wrote is tried for an hour without counting, and is then failed, not skipped (H75)."""
    receiving(bell, guarantee="durable")
    bell.send(sender=None, using=alias)
    deliveries(alias).update(payload=Replace(F("payload"), Value('"version":1'), Value('"version":99')))

    for tries in range(61):
        [message] = take(celery_app)
        result = run(celery_app, message)
        row = deliveries(alias).get()
        assert (min(tries + 1, 60), State.READY if tries < 60 else State.FAILED) == (row.reruns, row.state)
        deliveries(alias).filter(state=State.READY).update(due_at=In(-1))
        relay(celery_app, alias)

    assert isinstance(result.result, UnknownVersion)
    assert (1, 0) == (row.attempts, len(take(celery_app)))


@each_database
def test_unsent_rows_never_expire(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """A row that waits for ten years is published like any other."""
    receiving(bell, guarantee="durable", countdown=60)
    bell.send(sender=None, using=alias)
    ten_years = 10 * 366 * 86_400
    deliveries(alias).update(created_at=In(-ten_years), due_at=In(-ten_years))

    assert 1 == relay(celery_app, alias)


@each_database
def test_a_removed_receiver_fails_aloud(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """A delivery for a task that nobody knows waits for an hour, and is kept as failed with the remedy (H32)."""
    task = receiving(bell, guarantee="durable", countdown=60)
    bell.send(sender=None, using=alias)
    celery_app._tasks.pop(task.name)

    for _ in range(61):
        deliveries(alias).filter(state=State.READY).update(due_at=In(-1))
        assert 0 == relay(celery_app, alias)

    row = deliveries(alias).get()
    assert (State.FAILED, 0, f"{UnknownReceiver.__module__}.UnknownReceiver") == (
        row.state,
        row.attempts,
        row.error_type,
    )
    assert "former_names" in row.error_message


@each_database
def test_a_renamed_receiver_gets_what_waits(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """A task with former_names= takes rows that were written, and messages that were sent, under its old name (H75)."""
    seen: list[int] = []
    old = receiving(bell, guarantee="durable")
    bell.send(sender=None, using=alias, number=1)
    [message] = take(celery_app)
    receiving.end()
    new = receiving(Signal(), lambda number: seen.append(number), former_names=[old.name])

    assert old.name == message.task
    run(celery_app, message)
    assert [1] == seen
    celery_app._tasks.pop(old.name)
    assert new.name in celery_app.tasks


@each_database
def test_a_claim_is_committed_before_it_is_published(
    alias: str, celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a relay talks to the broker it is in no transaction and holds no lock: others change the very rows."""
    receiving(bell, guarantee="durable", countdown=60)
    bell.send(sender=None, using=alias)
    deliveries(alias).update(due_at=In(-1))
    found: list[Any] = []

    def elsewhere() -> None:
        found.append(deliveries(alias).update(summary="changed meanwhile"))
        connections.close_all()

    def publish(self: Any, messages: list[Any], meanwhile: Any) -> list[Any]:
        found.append(connections[alias].in_atomic_block)
        thread = Thread(target=elsewhere)
        thread.start()
        thread.join(10)
        return [None] * len(messages)

    monkeypatch.setattr("django_celery_signals.durable.bulk.Bulk.publish", publish)
    relay(celery_app, alias)

    assert [False, 1] == found


@each_database
def test_the_requests_other_hooks_run(
    alias: str, broker: Broker, celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that fails keeps no other on_commit hook from running, before or after ours (H38)."""
    receiving(bell, guarantee="durable")
    ran: list[str] = []

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError("refused")

    monkeypatch.setattr(Celery, "send_task", refuse)
    with transaction.atomic(using=alias):
        transaction.on_commit(lambda: ran.append("before"), using=alias)
        bell.send(sender=None, using=alias)
        transaction.on_commit(lambda: ran.append("after"), using=alias)

    assert ["before", "after"] == ran
    assert [(State.READY, 0)] == list(deliveries(alias).values_list("state", "attempts"))


@each_database
def test_an_outage_costs_no_attempt(
    alias: str, celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the broker is away, the receiver has all of its attempts left when it is back."""
    receiving(bell, guarantee="durable", countdown=60)
    bell.send(sender=None, using=alias)
    deliveries(alias).update(due_at=In(-1))

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError("refused")

    with monkeypatch.context() as patch:
        patch.setattr(Celery, "send_task", refuse)
        for _ in range(200):
            assert 0 == relay(celery_app, alias)
    assert 1 == relay(celery_app, alias)

    row = deliveries(alias).get()
    assert (State.SENT, 0, 0, 0) == (row.state, row.attempts, row.crashes, row.reruns)


@each_database
def test_the_same_id_in_two_databases(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """A message opens the row of its own database only, for its token fits no other (H42)."""
    seen: list[str] = []
    receiving(post_save, lambda instance: seen.append(instance._state.db), sender=Tag, guarantee="durable")
    Tag.objects.using(alias).create(name="here")
    [message] = take(celery_app)
    reference = message.kwargs["__event__"]
    deliveries(alias).update(token=F("token") + 1)  # what another row of that id would have

    run(celery_app, message)
    assert ([], State.SENT) == (seen, deliveries(alias).get(pk=reference["id"]).state)


@each_database("postgres", "mariadb")
def test_a_lower_id_that_commits_late(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """What commits after a row with a higher id was published is published all the same."""
    receiving(bell, guarantee="durable", countdown=60)
    published: list[int] = []

    def send_and_relay() -> None:
        bell.send(sender=None, using=alias)
        deliveries(alias).update(due_at=In(-1))
        published.append(relay(celery_app, alias))
        connections.close_all()

    with transaction.atomic(using=alias):
        bell.send(sender=None, using=alias)
        other = Thread(target=send_and_relay)
        other.start()
        other.join(20)
    deliveries(alias).filter(state=State.READY).update(due_at=In(-1))
    published.append(relay(celery_app, alias))

    ids = [message.kwargs["__event__"]["id"] for message in take(celery_app)]
    assert ([1, 1], 2, True) == (published, len(ids), ids[0] > ids[1])


@each_database
@override_settings(DJANGO_CELERY_SIGNALS={"MAX_DEPTH": 2})
def test_a_loop_is_parked(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """Receivers that keep causing one another end in a failed delivery that shows the chain, and lose nothing (H28)."""
    runs: list[int] = []

    def save_again(instance: Tag, event: Event) -> None:
        runs.append(event.depth)
        instance.save()

    receiving(post_save, save_again, sender=Tag, guarantee="durable")
    Tag.objects.using(alias).create(name="round")
    while messages := take(celery_app):
        for message in messages:
            run(celery_app, message)

    row = deliveries(alias).get()
    assert ([0, 1, 2], State.FAILED) == (runs, row.state)
    assert "MAX_DEPTH = 2" in row.error_message
