"""What tests are given: what was sent is known, and runs by the worker's way, also where nothing is ever committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from django.apps import apps
from django.db import transaction
from django.db.models.signals import post_delete, post_save
from django.dispatch import Signal
from django.test import TestCase, override_settings

from django_celery_signals import Discard, Fail, InstanceMissing, batched, current_event, deliveries
from django_celery_signals.exceptions import UnknownReceiver
from django_celery_signals.testing import assert_not_sent, assert_sent, captured, drain, muted
from tests.drain import take
from tests.making import Tasks
from tests.parameters import each_database
from tests.project.celery import configure
from tests.receiving import Receiving
from tests.shop.models import Customer, Tag

in_test_case = each_database("default", "postgres", "mariadb", transaction=False)
with_commits = each_database("default", "postgres", "mariadb")
every_guarantee = pytest.mark.parametrize("guarantee", ["durable", "on_commit"])

bell = Signal()


class Boom(Exception):
    """What receivers raise here."""


def names(alias: str) -> list[str]:
    return sorted(Tag.objects.using(alias).values_list("name", flat=True))


def leave(alias: str) -> Callable[..., None]:
    """Return a receiver that leaves an effect."""

    def receiver(name: str) -> None:
        Tag.objects.using(alias).create(name=name)

    return receiver


# What was sent -------------------------------------------------------------------------------------------------------


@in_test_case
@every_guarantee
def test_captured(alias: str, guarantee: str, receiving: Receiving) -> None:
    """What was sent, to whom, and with what, as a receiver would be given it."""
    first = receiving(post_save, sender=Customer, guarantee=guarantee)
    second = receiving(post_save, sender=Customer, guarantee=guarantee, changed=["name"])

    with captured() as sent:
        customer = Customer.objects.using(alias).create(name="Ada")

    assert [first.name, second.name] == [one.receiver for one in sent]
    [one] = sent.to(first)
    assert (post_save, Customer, guarantee) == (one.signal, one.sender, one.guarantee)
    given = one.kwargs
    assert (customer, True, alias) == (given["instance"], given["created"], given["using"])
    assert given["instance"] is not customer
    assert "Ada" == given["instance"].name
    assert f"pk={customer.pk}" in str(one)
    assert sent == sent.of(post_save) == sent.having(created=True)
    assert [] == sent.of(bell) == sent.having(created=False) == sent.having(nothing=1)


@in_test_case
def test_changes(alias: str, receiving: Receiving) -> None:
    """The event tells what has changed."""
    receiving(post_save, sender=Customer, changed=["name"])
    customer = Customer.objects.using(alias).create(name="Ada")
    customer = Customer.objects.using(alias).get()

    with captured() as sent:
        customer.name = "Grace"
        customer.save()

    assert {"name": ("Ada", "Grace")} == sent[0].event.changes


@in_test_case
def test_an_instance_that_is_gone(alias: str, receiving: Receiving) -> None:
    """A reference to a row that was deleted leads nowhere, as in a worker; a deletion carries the values."""
    receiving([post_save, post_delete], sender=Customer)
    with captured() as sent:
        Customer.objects.using(alias).create(name="Ada").delete()

    saved, deleted = sent
    with pytest.raises(InstanceMissing):
        saved.kwargs  # noqa: B018
    assert "Ada" == deleted.kwargs["instance"].name


@in_test_case
def test_nested(alias: str, receiving: Receiving) -> None:
    """Blocks within blocks see what is sent in them."""
    receiving(bell)
    with captured() as outer:
        bell.send(None, using=alias, name="a")
        with captured() as inner:
            bell.send(None, using=alias, name="b")
    bell.send(None, using=alias, name="c")

    assert (["a", "b"], ["b"]) == ([one.kwargs["name"] for one in outer], [one.kwargs["name"] for one in inner])


@in_test_case
def test_assert_sent(alias: str, receiving: Receiving) -> None:
    """It passes when it was sent, as often as is said, and says what was sent instead when not."""
    task = receiving(post_save, sender=Customer)
    other = receiving(bell)

    with assert_sent(task), assert_sent(task.name, post_save, times=1, created=True), assert_not_sent(other):
        Customer.objects.using(alias).create(name="Ada")
    wanted = rf"{task.name} with created=False was not sent. Sent was:\n  post_save"
    with pytest.raises(AssertionError, match=wanted), assert_sent(task, created=False):
        Customer.objects.using(alias).create(name="Ada")
    wanted = rf"post_save -> {task.name} was sent 1 time, not 2. Sent was:\n  post_save"
    with pytest.raises(AssertionError, match=wanted), assert_sent(task, post_save, times=2):
        Customer.objects.using(alias).create(name="Ada")
    with pytest.raises(AssertionError, match="Sent was: nothing"), assert_sent(other):
        pass
    with pytest.raises(AssertionError, match=rf"{other.name} was sent:\n  "), assert_not_sent(other):
        bell.send(None, using=alias)
    with assert_not_sent(other, name="b"):
        bell.send(None, using=alias, name="a")
    with pytest.raises(Boom), assert_sent(task):
        raise Boom


def test_no_receiver() -> None:
    """What is neither a task nor a name is said to be none."""
    with pytest.raises(TypeError, match="3 is no receiver"), assert_sent(3):
        pass


@in_test_case
def test_muted(alias: str, receiving: Receiving) -> None:
    """One receiver is not sent to, by its task or its name; the others are."""
    first, second = receiving(bell), receiving(bell)

    with captured() as sent:
        with muted(first):
            bell.send(None, using=alias)
        with muted(second.name), muted():
            bell.send(None, using=alias)
        muted(first, second)(lambda: bell.send(None, using=alias))()
        bell.send(None, using=alias)

    assert [second.name, first.name, second.name] == [one.receiver for one in sent]


# Run -----------------------------------------------------------------------------------------------------------------


@in_test_case
@every_guarantee
def test_drain(alias: str, guarantee: str, receiving: Receiving) -> None:
    """In a transaction that is never committed, receivers run when they are told to, once."""
    receiving(bell, leave(alias), guarantee=guarantee)
    with transaction.atomic(using=alias):
        bell.send(None, using=alias, name="a")
    bell.send(None, using=alias, name="b")
    before = names(alias)

    assert ([], 2, ["a", "b"], 0) == (before, drain(), names(alias), drain())
    assert not deliveries(alias).exists()


@with_commits
@every_guarantee
def test_drain_with_commits(alias: str, guarantee: str, receiving: Receiving, celery_app: Celery) -> None:
    """Where transactions are committed, no broker is given what is captured; it waits to be run."""
    receiving(bell, leave(alias), guarantee=guarantee)
    with captured():
        bell.send(None, using=alias, name="a")
        with transaction.atomic(using=alias):
            bell.send(None, using=alias, name="b")

    assert ([], []) == (take(celery_app), names(alias))
    assert (2, ["a", "b"], 0) == (drain(), names(alias), drain())


@pytest.mark.django_db(transaction=True)
def test_what_nobody_runs(receiving: Receiving) -> None:
    """What was captured and not run is dropped when the next test captures."""
    receiving(bell, leave("default"), guarantee="on_commit")
    with captured():
        bell.send(None, using="default", name="a")
    with captured():
        bell.send(None, using="default", name="b")

    assert (1, ["b"]) == (drain(), names("default"))


@in_test_case
@pytest.mark.parametrize("guarantee", ["durable", "on_commit"])
def test_what_is_rolled_back(alias: str, guarantee: str, receiving: Receiving) -> None:
    """What is rolled back within the test's transaction runs nothing."""
    receiving(bell, leave(alias), guarantee=guarantee)
    with transaction.atomic(using=alias):
        bell.send(None, using=alias, name="a")
        transaction.set_rollback(True, using=alias)

    assert (0, []) == (drain(), names(alias))


@in_test_case
@every_guarantee
def test_cascade(alias: str, guarantee: str, receiving: Receiving) -> None:
    """What receivers send runs as well, and knows where it comes from."""
    told: list[Any] = []

    def rename(instance: Customer, created: bool) -> None:
        if created:
            instance.name += "!"
            instance.save()

    def tell(instance: Customer, created: bool) -> None:
        told.append((instance.name, created, current_event().depth))  # type: ignore[union-attr]

    receiving(post_save, rename, sender=Customer, guarantee=guarantee)
    receiving(post_save, tell, sender=Customer, guarantee=guarantee)
    Customer.objects.using(alias).create(name="Ada")

    assert 4 == drain()
    assert [("Ada!", True, 0), ("Ada!", False, 1)] == told


@in_test_case
@every_guarantee
def test_an_error(alias: str, guarantee: str, receiving: Receiving) -> None:
    """A receiver's error is the test's, what it did is taken back, and what comes after it waits for the next call."""

    def fail(name: str) -> None:
        Tag.objects.using(alias).create(name=name)
        if name == "bad":
            raise Fail("no good")

    receiving(bell, fail, guarantee=guarantee)
    for name in ("a", "bad", "b"):
        bell.send(None, using=alias, name=name)

    with pytest.raises(Exception, match="no good"):
        drain()
    assert ["a"] == names(alias)
    if guarantee == "durable":
        assert (1, ["a", "b"], 1) == (drain(), names(alias), deliveries(alias).failed().count())


@in_test_case
def test_an_error_that_is_tried_again(alias: str, receiving: Receiving) -> None:
    """An error that a worker would try again is raised as well, and the delivery waits, counted."""
    receiving(bell, raise_boom, guarantee="durable")
    bell.send(None, using=alias)

    for attempts in (1, 2):
        with pytest.raises(Boom):
            drain()
        assert [attempts] == list(deliveries(alias).values_list("attempts", flat=True))


def raise_boom() -> None:
    raise Boom


@in_test_case
def test_what_is_discarded(alias: str, receiving: Receiving) -> None:
    """To drop an event is no error."""

    def discard() -> None:
        raise Discard("not wanted")

    receiving(bell, discard, guarantee="durable")
    bell.send(None, using=alias)

    assert (1, False) == (drain(), deliveries(alias).exists())


@in_test_case
def test_keys(alias: str, receiving: Receiving) -> None:
    """Events of a key run in their order, newer ones are folded in, and a key that is blocked stays so."""

    def act(name: str) -> None:
        if name == "bad":
            raise Fail("no good")
        Tag.objects.using(alias).create(name=name)

    receiving(bell, act, ordered=True, key=lambda order: order, guarantee="durable")
    for order, name in ((1, "bad"), (1, "behind"), (2, "other")):
        bell.send(None, using=alias, order=order, name=name)
    with pytest.raises(Exception, match="no good"):
        drain()
    assert (1, ["other"], 0) == (drain(), names(alias), drain())


@in_test_case
def test_coalesced(alias: str, receiving: Receiving) -> None:
    """The newest of a key stands for all; that it is to wait is no matter."""
    durable = {"guarantee": "durable"}
    receiving(bell, leave(alias), coalesce=True, debounce=60, key=lambda order: order, **durable)
    receiving(bell, leave(alias), countdown=60, **durable)
    with batched(alias):
        for name in ("a", "b"):
            bell.send(None, using=alias, order=1, name=name)

    assert (3, ["a", "b", "b"]) == (drain(), names(alias))


@in_test_case
def test_eager(alias: str, receiving: Receiving) -> None:
    """Eager tasks run after the commit, which in a test's transaction does not come: there drain() runs them."""
    configure({"task_always_eager": True})
    receiving(bell, leave(alias), guarantee="durable")
    with captured():
        bell.send(None, using=alias, name="a")

    assert ([], 1, ["a"]) == (names(alias), drain(), names(alias))


@with_commits
def test_eager_with_commits(alias: str, receiving: Receiving) -> None:
    """Where it comes, they run with it, through encoding and decoding."""
    configure({"task_always_eager": True})
    receiving(bell, leave(alias), guarantee="durable")
    with captured() as sent:
        bell.send(None, using=alias, name="a")

    assert (1, ["a"], 0) == (len(sent), names(alias), drain())


@in_test_case
def test_commit_hooks_that_are_run(alias: str, receiving: Receiving, celery_app: Celery) -> None:
    """What Django's captureOnCommitCallbacks() runs is captured, too, and drained once."""
    receiving(bell, leave(alias), guarantee="on_commit")
    receiving(bell, leave(alias), guarantee="durable")

    with captured(), TestCase.captureOnCommitCallbacks(using=alias, execute=True):
        bell.send(None, using=alias, name="a")

    assert ([], 2, ["a", "a"], 0) == (take(celery_app), drain(), names(alias), drain())


@in_test_case
def test_an_unknown_receiver(alias: str, receiving: Receiving, tasks: Tasks, celery_app: Celery) -> None:
    """A task that the process does not have is named."""
    task = receiving(bell, guarantee="durable")
    bell.send(None, using=alias)
    celery_app._tasks.pop(task.name)

    with pytest.raises(UnknownReceiver, match=task.name):
        drain()


@pytest.mark.django_db(databases=["default"])
def test_a_database_that_the_test_does_not_name(receiving: Receiving) -> None:
    """Only the databases of the test are looked at."""
    receiving(bell, leave("default"), guarantee="durable")
    bell.send(None, using="default", name="a")

    assert 1 == drain()


@pytest.mark.django_db
def test_fixtures(receiving: Receiving, sent_signals: Any, drain_signals: Any) -> None:
    """Pytest has both as fixtures."""
    task = receiving(bell, leave("default"))
    bell.send(None, using="default", name="a")

    assert ([task.name], 1) == ([one.receiver for one in sent_signals], drain_signals())


@pytest.mark.django_db
def test_settings_of_a_test(receiving: Receiving) -> None:
    """What settings say of guarantees is what is sent under."""
    receiving(bell)
    with override_settings(DJANGO_CELERY_SIGNALS={"GUARANTEE": "immediate"}), captured() as sent:
        bell.send(None)

    assert (["immediate"], 1) == ([one.guarantee for one in sent], drain())


@pytest.mark.django_db
def test_without_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """A project without the table has nothing of its kind to run or to forget."""
    monkeypatch.delitem(apps.app_configs, "django_celery_signals")

    assert 0 == drain()
