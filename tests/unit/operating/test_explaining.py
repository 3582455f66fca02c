"""``manage.py signals explain``: what happens after a save, a deletion, a change of a relation, a signal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from django.contrib.auth.signals import user_login_failed
from django.core.management.base import CommandError
from django.db import connections
from django.db.models.signals import m2m_changed, post_delete, post_init, post_migrate, post_save, pre_save
from django.dispatch import Signal

from django_celery_signals import connect, disconnect
from django_celery_signals.dispatch import OTHERS
from django_celery_signals.durable.failing import hooks
from django_celery_signals.operating import explaining, wording
from django_celery_signals.operating.outcomes import LIMITS
from django_celery_signals.options import RUNNING_NAMES, SendingOptions
from tests.making import Tasks
from tests.project.celery import configure
from tests.receiving import Receiving
from tests.saying import say, shown
from tests.shop.models import Club, Invoice, Membership, Order, Person, Receipt, Stamped, Tag

sold = Signal()
bartered = Signal()


class Shelf:
    """Holds a signal that has another's name."""

    bartered = Signal()


class Till:
    """A sender that is no model."""


def is_large(instance: Any) -> bool:
    return bool(instance)


def customer(instance: Any) -> Any:
    return instance


@pytest.fixture
def plainly() -> Iterator[Callable[..., None]]:
    """Connects plain receivers, and takes them back."""
    undo: list[Callable[[], Any]] = []

    def connect_plainly(signal: Signal, receiver: Any, **options: Any) -> None:
        signal.connect(receiver, **options)
        undo.append(lambda: signal.disconnect(receiver, **options))

    yield connect_plainly
    while undo:
        undo.pop()()


def touch(**kwargs: Any) -> None: ...


async def ping(**kwargs: Any) -> None: ...


def explained(what: str) -> dict[str, dict[str, str]]:
    """Return what is said of each receiver, by its name and the labels of the facts; and under "" of all of them."""
    found: dict[str, dict[str, str]] = {"": {}}
    receiver = None
    for line in say("explain", what).splitlines():
        if line == "For all of these receivers":
            receiver = ""
        elif found_name := re.fullmatch(r"  (tests\.\S+)( \(.*\))?", line):
            receiver = found_name[1]
            found[receiver] = {}
        elif receiver is not None and (fact := re.fullmatch(r" {2,4}(\w[\w ]*?)  +(\S.*)", line)):
            found[receiver][fact[1]] = fact[2]
        elif not line.startswith(" "):
            receiver = None
    return found


def facts_of(task: Any, what: str) -> dict[str, str]:
    """Return what is said of a task, by the labels of the facts."""
    found = explained(what)
    return {**found[""], **found[task.name]}


# What there is to explain --------------------------------------------------------------------------------------------


def test_a_model(receiving: Receiving, plainly: Callable[..., None]) -> None:
    """Of a model it says what a save, a deletion and a change of its relations lead to, in this order."""
    made = receiving(post_save, sender=Order, created=True)
    updated = receiving(pre_save, sender="shop.Order", created=None)
    deleted = receiving(post_delete, sender=Order)
    tagged = receiving(m2m_changed, sender="shop.Order.tags")
    rung = receiving(sold, sender=Order)
    other = receiving(post_save, sender=Tag)

    lines = say("explain", "shop.order").splitlines()
    titles = [line for line in lines if line.startswith(("Before", "When")) and "sent by" not in line]

    assert "shop.Order: what a worker runs afterwards" == lines[0]
    overview = dict(re.split(r" {2,}", line.strip()) for line in lines[1 : lines.index("")])
    short = {task: task.name.rpartition(".")[2] for task in (made, updated, deleted, tagged, rung)}
    assert {
        "created": f"{short[updated]}, {short[made]}",
        "updated": short[updated],
        "deleted": short[deleted],
        "tags changed": short[tagged],
        "sold sent": short[rung],
    }.items() <= overview.items()  # other tests leave receivers at signals of their own
    assert [
        "Before a shop.Order is saved (pre_save)",
        "When a shop.Order is saved (post_save)",
        "When a shop.Order is deleted (post_delete)",
        "When shop.Order.tags is changed (m2m_changed)",
    ] == titles
    assert "When sold is sent by shop.Order" in lines[lines.index(titles[-1]) :]
    assert other.name not in "\n".join(lines)


def test_a_relation(receiving: Receiving) -> None:
    """Of a many-to-many field it says what a change of it leads to, from either side, and by the through model."""
    task = receiving(m2m_changed, sender="shop.Order.tags")
    saved = receiving(post_save, sender=Order)

    for what, name in (
        ("shop.Order.tags", "shop.Order.tags"),
        ("shop.Tag.orders", "shop.Tag.orders"),
        ("shop.Order_tags", "shop.Order.tags"),
    ):
        said = say("explain", what)
        assert f"\nWhen {name} is changed (m2m_changed)\n" in said
        assert [True, False] == [f"  {one.name}\n" in said for one in (task, saved)]


def test_relations_of_a_model(receiving: Receiving) -> None:
    """The change of a relation is said once, also of one that has both sides at the same model."""
    receiving(m2m_changed, sender="shop.Person.follows")

    titles = [line for line in say("explain", "shop.Person").splitlines() if line.startswith("When")]

    assert ["When shop.Person.follows is changed (m2m_changed)"] == titles
    assert {"follows", "friends"} == {one.name for one in explaining.relations_of(Person)}


def test_through_models(receiving: Receiving) -> None:
    """A through model that the project made is a model, and its relation is a relation of both sides."""
    task = receiving([m2m_changed, post_save], sender=Membership)

    assert "\nWhen shop.Club.members is changed (m2m_changed)\n" in say("explain", Club._meta.label)
    assert "\nWhen shop.Customer.clubs is changed (m2m_changed)\n" in say("explain", "shop.Customer")
    assert "\nWhen a shop.Membership is saved (post_save)\n" in say("explain", "shop.Membership")
    assert task.name in say("explain", "shop.Club.members")


@pytest.mark.parametrize("name", ["sold", f"{__name__}:sold", f"{__name__}.sold"])
def test_a_signal(receiving: Receiving, name: str) -> None:
    """Of a signal it says who receives it, from which senders; it may be named with its module or without."""
    every = receiving(sold)
    mine = receiving(sold, sender=Till)

    lines = say("explain", name).splitlines()

    assert f"{__name__}:sold: what a worker runs afterwards" == lines[0]
    assert [
        ["by any sender", every.name.rpartition(".")[2]],
        ["by Till", mine.name.rpartition(".")[2]],
    ] == [re.split(r" {2,}", line.strip()) for line in lines[1:3]]
    assert ["When sold is sent by any sender", "When sold is sent by Till"] == [
        line for line in lines if line.startswith("When")
    ]


def test_a_swapped_model(receiving: Receiving) -> None:
    """A model that was swapped out never sends: its replacement is explained."""
    task = receiving(post_save, sender="auth.User")

    assert say("explain", "auth.User") == say("explain", "shop.User")
    assert task.name in say("explain", "auth.User")


def test_who_else_receives_it(receiving: Receiving, tasks: Tasks) -> None:
    """What is connected to every sender, or to a base class, is there as well; not what excludes the model."""
    every = receiving(post_save, exclude=[Tag])
    family = tasks.shared()
    connect(post_save, family, sender=Stamped, subclasses=True, dispatch_uid="all")

    said, of_tag = say("explain", "shop.Invoice"), say("explain", "shop.Tag")
    assert disconnect(post_save, family, sender=Stamped, subclasses=True, dispatch_uid="all")

    assert f"\n  {every.name} (connected to every sender)\n" in said
    assert f"\n  {family.name} (connected to shop.Stamped and its subclasses, dispatch_uid 'all')\n" in said
    assert [False, False] == [task.name in of_tag for task in (every, family)]


def test_subclasses_send_as_themselves(receiving: Receiving) -> None:
    """Proxies and children of a model are mentioned, for their saves are not the model's."""
    receiving(post_save, sender=Order)
    receiving(post_save, sender=Tag)

    note = (
        "Saves through shop.PriorityOrder or shop.RushOrder have that class as their sender, and are not what follows"
    )
    assert note in say("explain", "shop.Order")
    assert "Saves through" not in say("explain", "shop.Tag") + say("explain", "post_save")


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("shop.Ordr", r"'shop.Ordr' is no installed model .* Did you mean 'shop.Order' or "),
        ("Ordr", r"Did you mean 'shop.Order'"),
        ("post_sav", r"Did you mean 'post_save' or 'pre_save'"),
        ("qwertz", r"no signal of an imported module \('post_save', 'app.signals:name'\)\.$"),
        ("shop.Order.tag", r"shop.Order has no field 'tag'. Did you mean 'tags'"),
        ("shop.Order.qwertz", r"shop.Order has no field 'qwertz'\.$"),
        ("shop.Order.total", r"shop.Order.total is no many-to-many field, .* its many-to-many fields are tags\."),
        ("shop.Receipt.number", r"its many-to-many fields are none\."),
        ("bartered", rf"'bartered' is the name of several signals: {__name__}:Shelf.bartered, {__name__}:bartered\."),
    ],
)
def test_names_of_nothing(what: str, reason: str) -> None:
    """A name that means nothing is refused, with what may have been meant."""
    with pytest.raises(CommandError, match=reason):
        say("explain", what)


def test_signals_of_one_name(receiving: Receiving) -> None:
    """Two signals that share a name are told apart by the rest of it."""
    task = receiving(Shelf.bartered)

    assert task.name in say("explain", f"{__name__}:Shelf.bartered")
    assert task.name not in say("explain", f"{__name__}:bartered")


# Nothing, and what is missing ----------------------------------------------------------------------------------------


def test_nothing_is_connected(settings: Any) -> None:
    """Where no task is connected it says so, and where one would have been found."""
    settings.DJANGO_CELERY_SIGNALS = {"AUTODISCOVER": ["receivers", "jobs"]}

    assert [
        "shop.Receipt: no worker runs anything, for no task is connected to it in this process.",
        "Receivers are found in receivers.py or jobs.py of the apps in INSTALLED_APPS (AUTODISCOVER).",
    ] == say("explain", Receipt._meta.label).splitlines()


def test_nothing_is_discovered(settings: Any) -> None:
    """Where nothing is discovered, it is not said that something is."""
    settings.DJANGO_CELERY_SIGNALS = {"AUTODISCOVER": []}

    assert "Receivers are found nowhere by themselves: AUTODISCOVER is empty." in say("explain", "shop.Receipt")


def test_a_missing_task(receiving: Receiving, celery_app: Celery) -> None:
    """Of a task that the app does not have it says that nothing is sent, and what to do."""
    task, other = receiving(post_save, sender=Tag), receiving(post_save, sender=Tag)
    del celery_app._tasks[task.name]

    said = explained("shop.Tag")

    assert ["missing"] == list(said[task.name])
    assert re.match("the Celery app .* has no task of this name, so nothing is sent.", said[task.name]["missing"])
    assert "guarantee" in said[other.name]


def test_a_signal_that_is_refused(tasks: Tasks, plainly: Callable[..., None]) -> None:
    """Of a signal that can have no receiver in a worker it says so, with the reason."""
    task = tasks.shared()
    plainly(post_init, task.delay, sender=Tag)

    assert "sent for every instance that is loaded" in facts_of(task, "post_init")["refused"]


# What Django calls by itself -----------------------------------------------------------------------------------------


def test_plain_receivers(receiving: Receiving, plainly: Callable[..., None]) -> None:
    """What Django calls at once is named by module and name, the coroutines last."""
    receiving(post_save, sender=Tag)
    plainly(post_save, ping, sender=Tag)
    plainly(post_save, touch)

    assert (
        f"\n  At once, in the process that does it, Django calls {__name__}.touch and {__name__}.ping (a coroutine). "
        "If one raises, what was connected after it is not called.\n"
    ) in say("explain", "shop.Tag")


def test_plain_receivers_alone(plainly: Callable[..., None]) -> None:
    """They are named also where no task is connected."""
    plainly(sold, touch)

    said = say("explain", "sold")

    assert "no worker runs anything" in said
    assert (
        f"\nWhen sold is sent by any sender\n  At once, where the signal is sent, Django calls {__name__}.touch.\n"
        in said
    )


# In whose transaction ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signal", "sender", "what", "setting", "words"),
    [
        (post_save, Tag, "shop.Tag", True, "a save outside of a transaction is given one of its own"),
        (post_save, None, "post_save", True, "Of saves outside of one, the first in each process is an exception"),
        (post_save, Tag, "shop.Tag", False, "a process that dies just then loses the event"),
        (post_delete, Tag, "shop.Tag", True, "Django does this in a transaction"),
        (m2m_changed, "shop.Order.tags", "shop.Order.tags", True, "Django does this in a transaction"),
        (sold, None, "sold", True, "committed with the transaction in which the signal is sent"),
    ],
)
def test_transactions(
    receiving: Receiving, settings: Any, signal: Signal, sender: Any, what: str, setting: bool, words: str
) -> None:
    """It is said with what durable deliveries are committed."""
    settings.DJANGO_CELERY_SIGNALS = {"ATOMIC_SAVES": setting, "GUARANTEE": "on_commit"}
    receiving(signal, sender=sender, guarantee="durable")

    assert words in say("explain", what)


def test_transactions_of_sqlite_without_the_lock(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transactions begin without the lock, saves have none of their own, and it is said why."""
    receiving(post_save, sender=Tag, guarantee="durable")
    monkeypatch.setitem(connections["default"].settings_dict, "OPTIONS", {})

    said = say("explain", "shop.Tag")

    assert "loses the event. The SQLite database 'default' has no transaction_mode IMMEDIATE (dcs.W001)." in said
    assert "a save outside of a transaction is given one of its own" not in said


def test_transactions_without_deliveries(receiving: Receiving) -> None:
    """Where nothing is durable, nothing is committed."""
    receiving(post_save, sender=Tag)

    assert "transaction" not in say("explain", "shop.Tag").partition("  tests.")[0]


@pytest.mark.parametrize("guarantee", ["durable", *OTHERS])
def test_guarantees(receiving: Receiving, guarantee: str) -> None:
    """Each guarantee that was named is explained once, and no other."""
    given = {} if guarantee == "audit" else {"guarantee": guarantee}
    task = receiving(user_login_failed, **given)
    receiving(user_login_failed, **given)

    legend = say("explain", "user_login_failed").partition("What a guarantee means\n")[2].splitlines()

    assert [guarantee] == [line.split()[0] for line in legend[: legend.index("")]]
    assert guarantee == facts_of(task, "user_login_failed")["guarantee"]


# The words of each option --------------------------------------------------------------------------------------------

DURABLE = {"guarantee": "durable"}
WHEN = "if tests.unit.operating.test_explaining.is_large returns true"
SAME = "about the same shop.Order"
#: For each option: the signal, what the receiver says, the fact that speaks of it, and its words.
OPTIONS: list[tuple[str, Signal, dict[str, Any], str, str]] = [
    ("guarantee", post_save, {"guarantee": "immediate"}, "guarantee", "immediate"),
    (
        "when",
        post_save,
        {"when": is_large},
        "sent",
        f"each time: when it is created, and when it is updated, but only {WHEN}",
    ),
    (
        "changed",
        post_save,
        {"changed": ["total"]},
        "sent",
        "when it is created, or updated with a new total (changed=).",
    ),
    ("changed", post_save, {"changed": ["total", "status"]}, "sent", "with a new value of total or status (changed=)."),
    ("changed", post_save, {"changed": ["total"], "created": True}, "sent", "when it is created (created=True)."),
    ("created", post_save, {"created": True}, "sent", "when it is created (created=True)."),
    ("created", post_save, {"created": False}, "sent", "when it is updated, not when it is created (created=False)."),
    ("action", m2m_changed, {"action": "post_*"}, "sent", "after objects are added, removed or cleared (action=)."),
    ("action", m2m_changed, {"action": ["*_add"]}, "sent", "before objects are added and after objects are added"),
    ("action", sold, {"action": "refund"}, "sent", "when the action is refund (action=)."),
    (
        "key",
        post_save,
        {"key": customer, "ordered": True, **DURABLE},
        "starts",
        "the same key, which is what tests.unit.",
    ),
    ("coalesce", post_save, {"coalesce": True, **DURABLE}, "starts", f"One run stands for all sendings {SAME}"),
    ("debounce", post_save, {"debounce": 1, **DURABLE}, "starts", f"after 1 second without another sending {SAME} "),
    ("debounce", post_save, {"debounce": 2, **DURABLE}, "starts", "at most 30 seconds after the first of them"),
    (
        "max_wait",
        post_save,
        {"debounce": 2, "max_wait": 9, **DURABLE},
        "starts",
        "at most 9 seconds after the first of them",
    ),
    ("instance", post_save, {"instance": "snapshot"}, "given", "the values as they were when the signal was sent"),
    ("raw", post_save, {"raw": True}, "sent", "Also what loaddata saves from fixtures (raw=True)."),
    ("queue", post_save, {"queue": "mail"}, "queue", "mail"),
    ("priority", post_save, {"priority": 3}, "queue", "with priority 3"),
    (
        "countdown",
        post_save,
        {"countdown": 60},
        "starts",
        "60 seconds after the sending at the earliest (countdown=); until then its message",
    ),
    ("countdown", post_save, {"countdown": 60, **DURABLE}, "starts", "until then its row waits"),
    (
        "expires",
        post_save,
        {"expires": 90},
        "starts",
        "If no worker has started it 90 seconds after the sending, it is dropped",
    ),
    ("expires", post_save, {"expires": timedelta(minutes=2)}, "starts", "120 seconds after the sending"),
    ("expires", post_save, {"expires": datetime(2030, 1, 2, tzinfo=UTC)}, "starts", "by 2030-01-02 00:00:00+00:00"),
    (
        "exclude",
        sold,
        {"exclude": [Tag, "shop.Invoice"]},
        "sent",
        "Not what shop.Tag or shop.Invoice sends (exclude=).",
    ),
    ("atomic", post_save, {"atomic": False}, "runs", "in no transaction (atomic=False)"),
    (
        "on_missing",
        post_save,
        {"on_missing": "retry"},
        "given",
        "the run is tried again, for it may come (on_missing='retry').",
    ),
    ("on_missing", sold, {"on_missing": "fail"}, "given", "the run fails with InstanceMissing (on_missing='fail')."),
    (
        "former_names",
        post_save,
        {"former_names": ["shop.a", "shop.b"]},
        "also takes",
        "what was sent to shop.a and shop.b",
    ),
    (
        "retain",
        post_save,
        {"retain": 3600, **DURABLE},
        "kept",
        "3600 seconds after it has succeeded, as done (retain=).",
    ),
    (
        "ordered",
        post_save,
        {"ordered": True, **DURABLE},
        "starts",
        f"Sendings {SAME} run one at a time, the oldest first",
    ),
    ("on_failure", post_save, {"ordered": True, **DURABLE}, "behind it", f"later sendings {SAME} wait until someone"),
    ("on_failure", post_save, {"ordered": True, "on_failure": "park", **DURABLE}, "behind it", "go on without"),
    ("on_failure", post_save, {"on_failure": "park", **DURABLE}, "behind it", "on_failure='park' changes nothing"),
    (
        "chunk_size",
        post_save,
        {"chunk_size": 20, **DURABLE},
        "runs",
        "up to 20 come in one message; each runs by itself",
    ),
    ("batch", post_save, {"batch": True, **DURABLE}, "runs", "a list of up to 100 events at once"),
    (
        "autoretry_for",
        post_save,
        {"autoretry_for": (ValueError, KeyError)},
        "an error",
        "ValueError or KeyError (autoretry_for=) is tried again up to 3 times (max_retries=), after 180 "
        "seconds each time. Any other error fails at once.",
    ),
    (
        "autoretry_for",
        post_save,
        {"autoretry_for": (OSError,), "retry_kwargs": {"max_retries": 1, "countdown": 9}},
        "an error",
        "tried again once (max_retries=), after 9 seconds",
    ),
    (
        "autoretry_for",
        post_save,
        {"autoretry_for": (OSError,), "retry_backoff": 5, "retry_backoff_max": 99},
        "an error",
        "after 5, 10, 20, ... at most 99 seconds (retry_backoff=).",
    ),
    (
        "autoretry_for",
        post_save,
        {"autoretry_for": (OSError,), "retry_kwargs": {"max_retries": 1}, "retry_backoff": 5},
        "an error",
        "tried again once (max_retries=), after about 5 seconds (retry_backoff=).",
    ),
    (
        "max_retries",
        post_save,
        {"max_retries": 1, **DURABLE},
        "an error",
        "is tried again once (max_retries=), after about 1 second.",
    ),
    (
        "max_retries",
        post_save,
        {"max_retries": 5, **DURABLE},
        "an error",
        "is tried again up to 5 times (max_retries=), after 1, 2, 4, ... at most 600 seconds.",
    ),
    (
        "max_retries",
        post_save,
        {"max_retries": 0, **DURABLE},
        "an error",
        "is not tried again (max_retries=0).",
    ),
    ("max_retries", post_save, {"max_retries": None, **DURABLE}, "an error", "is tried again without end"),
    ("time_limit", post_save, {"time_limit": 60}, "runs", "After 60 seconds its process is killed (time_limit=)."),
    (
        "soft_time_limit",
        post_save,
        {"soft_time_limit": 50},
        "runs",
        "After 50 seconds it is interrupted by SoftTimeLimit",
    ),
    ("rate_limit", post_save, {"rate_limit": "10/m"}, "runs", "Each worker begins 10/m at most (rate_limit=)."),
]
SENDERS = {post_save: Order, m2m_changed: "shop.Order.tags", sold: None}
SUBJECTS = {post_save: "shop.Order", m2m_changed: "shop.Order.tags", sold: "sold"}


def takes_events(events: Any) -> None: ...


@pytest.mark.parametrize(
    ("signal", "options", "fact", "words"),
    [pytest.param(*entry[1:], id=f"{entry[0]}-{number}") for number, entry in enumerate(OPTIONS)],
)
def test_each_option_has_its_words(
    receiving: Receiving, signal: Signal, options: dict[str, Any], fact: str, words: str
) -> None:
    """What an option means is said, and is not said without it."""
    with_it = receiving(signal, takes_events if "batch" in options else ignore, sender=SENDERS[signal], **options)
    same = {name: value for name, value in options.items() if name == "guarantee" and value == "durable"}
    without = receiving(signal, sender=SENDERS[signal], **same)

    assert words in facts_of(with_it, SUBJECTS[signal])[fact]
    assert words not in facts_of(without, SUBJECTS[signal]).get(fact, "")


def ignore(**kwargs: Any) -> None: ...


def test_no_option_is_forgotten() -> None:
    """Every option of a connection and of a task has its words above, and a fact that speaks of it."""
    options = {one.name for one in fields(SendingOptions)} | {*RUNNING_NAMES, "autoretry_for", "max_retries", *LIMITS}

    assert options == {name for fact in wording.FACTS for name in fact.options}
    assert options == {entry[0] for entry in OPTIONS} | {"family"}  # of subclasses=True, which has a test of its own


def test_words_of_a_family(tasks: Tasks) -> None:
    """A base class that is connected for its subclasses is said to be."""
    task = tasks.shared()
    connect(post_save, task, sender=Stamped, subclasses=True)

    facts = facts_of(task, Invoice._meta.label)
    assert disconnect(post_save, task, sender=Stamped, subclasses=True)

    assert facts["sent"].endswith("Also what subclasses of shop.Stamped send (subclasses=True).")


@pytest.mark.parametrize(
    ("signal", "sender", "what", "given"),
    [
        (
            pre_save,
            Tag,
            "shop.Tag",
            "the values as they were when the signal was sent, for the row is not written yet.",
        ),
        (post_delete, Tag, "shop.Tag", "the values as they were when the signal was sent, for the row is deleted."),
        (
            post_save,
            Tag,
            "shop.Tag",
            "the row as it is when the worker reads it. If it is gone by then, nothing runs",
        ),
        (
            sold,
            None,
            "sold",
            "what was sent; model instances in it are read again by the worker. If the row of one is gone",
        ),
    ],
)
def test_what_is_given(receiving: Receiving, signal: Signal, sender: Any, what: str, given: str) -> None:
    """What a receiver finds in the instance is said."""
    assert facts_of(receiving(signal, sender=sender), what)["given"].startswith(given)


def test_defaults(receiving: Receiving) -> None:
    """Of a receiver that says nothing, it says what happens then."""
    task = receiving(m2m_changed, sender="shop.Order.tags")

    facts = facts_of(task, "shop.Order.tags")

    assert (
        "before objects are added, removed or cleared and after objects are added, removed or cleared, so twice for "
        "each change (choose by action=)."
    ) == facts["sent"]
    assert "after the commit, as soon as a worker is free." == facts["starts"]
    assert "is not tried again, unless the receiver asks for it (self.retry(), RetryAfter)." == facts["an error"]
    assert "it is lost, and Celery logs the error." == facts["if given up"]
    assert {"behind it", "kept", "also takes"}.isdisjoint(facts)


def test_keys_of_other_instances(receiving: Receiving) -> None:
    """Where the sender does not say whose instances are sent, none is named."""
    task = receiving(m2m_changed, sender="shop.Order.tags", ordered=True, guarantee="durable")
    every = receiving(post_save, ordered=True, guarantee="durable")

    assert "Sendings about the same instance run one at a time" in facts_of(task, "shop.Order.tags")["starts"]
    assert "Sendings about the same instance run one at a time" in facts_of(every, "post_save")["starts"]


def test_countdown_and_debounce(receiving: Receiving) -> None:
    """Several sentences are sentences."""
    task = receiving(post_save, sender=Tag, countdown=60, debounce=1, guarantee="durable")

    assert "until then its row waits. After 1 second without another" in facts_of(task, "shop.Tag")["starts"]


def test_immediate(receiving: Receiving) -> None:
    """What is sent at once waits for no commit."""
    task = receiving(sold, guarantee="immediate")

    assert "as soon as a worker is free." == facts_of(task, "sold")["starts"]


def test_failures_of_a_key(receiving: Receiving) -> None:
    """What a failure means for a key that a function makes is said without naming the function again."""
    task = receiving(sold, key=customer, ordered=True, guarantee="durable")

    assert "later sendings about the same key wait until" in facts_of(task, "sold")["behind it"]


def test_eager(receiving: Receiving) -> None:
    """Where Celery runs tasks at once, it is said that no worker does."""
    receiving(sold)
    assert "CELERY_TASK_ALWAYS_EAGER" not in say("explain", "sold")

    configure({"task_always_eager": True})

    assert "\n  CELERY_TASK_ALWAYS_EAGER is on: no worker runs these" in say("explain", "sold")


def test_fixtures(receiving: Receiving) -> None:
    """That fixtures are left out is said of signals that they send."""
    receiving([post_save, sold])

    assert [True, False] == ["loaddata" in say("explain", what) for what in ("post_save", "sold")]


def test_who_is_told(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """What @task.on_failed decorates is named."""
    task = receiving(sold, guarantee="durable")
    monkeypatch.setitem(hooks, task.name, [touch, ping])

    assert facts_of(task, "sold")["if given up"].endswith(
        f"This is told to {__name__}.touch and {__name__}.ping (@task.on_failed)."
    )


def test_route_that_leads_nowhere(receiving: Receiving) -> None:
    """Where a route names no queue, it is said to be the route's."""
    task = receiving(sold)
    configure({"task_routes": {task.name: {"exchange": "news", "routing_key": "all"}}})

    assert "(by its route)" == facts_of(task, "sold")["queue"]


# How it looks --------------------------------------------------------------------------------------------------------


def test_what_is_the_same_is_said_once(receiving: Receiving) -> None:
    """What is true of all receivers stands before them, and what is not stands with each."""
    one = receiving(post_save, sender=Tag, queue="mail")
    other = receiving(post_delete, sender=Tag, queue="mail", atomic=False)

    found = explained("shop.Tag")

    assert ("on_commit", "mail") == (found[""]["guarantee"], found[""]["queue"])
    assert [["sent", "given", "runs"]] * 2 == [list(found[task.name]) for task in (one, other)]


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal(receiving: Receiving, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """On a terminal no line is wider than it, and none is too wide to be read."""
    receiving([post_save, post_delete], sender=Order, guarantee="durable", debounce=1)

    lines = shown(monkeypatch, width, "explain", "shop.Order").splitlines()

    assert min(width, 100) >= max(map(len, lines)) > min(width, 100) - 15


def test_migration_signals(receiving: Receiving) -> None:
    """A signal of Django's own is explained like any other, by its sender, which is no class."""
    receiving(post_migrate)

    assert "by any sender" in say("explain", "post_migrate").splitlines()[1]
