"""``manage.py signals``: the relay by hand, and what to do about deliveries that have failed."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from celery import Celery
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import OperationalError, connections
from django.db.models.signals import post_save
from django.dispatch import Signal

from django_celery_signals import connect, disconnect
from django_celery_signals.durable import relay
from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.durable.pauses import pause, paused
from django_celery_signals.durable.probe import probes
from django_celery_signals.durable.relay import Relay
from django_celery_signals.operating import choosing, listing, pausing, purging, standing
from django_celery_signals.operating.purging import DAY
from django_celery_signals.statistics import table
from tests.brokers import Broker
from tests.delivering import moment, place, states
from tests.drain import take
from tests.making import Tasks
from tests.project.celery import configure
from tests.receiving import Receiving
from tests.shop.models import Order, Tag

pytestmark = pytest.mark.django_db(databases=["default", "other"])

bell = Signal()

FAILED = {"state": State.FAILED, "due_at": moment(3600), "finished_at": moment(0), "error_type": "Boom"}


@pytest.fixture(autouse=True)
def two_databases(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Deliveries are kept in two databases; the process handles signals afterwards as it did before."""
    for user in (choosing, relay):
        monkeypatch.setattr(user, "keeping", lambda: ["default", "other"])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def say(*words: str) -> str:
    """Run the command, and return what it says."""
    out = StringIO()
    call_command("signals", *words, stdout=out)
    return out.getvalue()


def failed(alias: str = "default", receiver: str = "shop.note", **columns: Any) -> int:
    """Write a delivery that has failed, and return its number."""
    facts = {"fingerprint": "shop.Boom in shop.views.buy", "signal": "shop.signals:paid", **FAILED, **columns}
    place(alias, receiver, **facts)
    return int(deliveries(alias).latest("pk").pk)


# list ----------------------------------------------------------------------------------------------------------------


def test_list_of_receivers(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """list shows what is connected to what, with its guarantee and queue, and whose saves are atomic for it."""
    durable = receiving(post_save, sender=Tag, guarantee="durable", queue="urgent")
    other = receiving(bell)

    lines = say("list").splitlines()
    rows = [line.split() for line in lines]

    assert ["SIGNAL", "SENDER", "RECEIVER", "QUEUE", "GUARANTEE", "OPTIONS"] == rows[0]
    assert ["post_save", "shop.Tag", durable.name, "urgent", "durable", "-"] in rows
    assert ["bell", "*", other.name, other.app.conf.task_default_queue, "on_commit", "-"] in rows
    assert "shop.Tag" in lines[-1].removeprefix("models whose saves are atomic: ").split(", ")


@pytest.mark.parametrize(("atomic", "said"), [(True, "none"), (False, "none (ATOMIC_SAVES)")])
def test_list_of_models(settings: Any, monkeypatch: pytest.MonkeyPatch, atomic: bool, said: str) -> None:
    """Where no model's saves are atomic list says so, and whether the setting is the reason."""
    settings.DJANGO_CELERY_SIGNALS = {"ATOMIC_SAVES": atomic}
    monkeypatch.setattr(listing.saving, "models", lambda: [] if atomic else [Tag])

    assert f"models whose saves are atomic: {said}" == say("list").splitlines()[-1]


def test_list_of_models_without_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models in a SQLite database whose transactions begin without the lock are named, with the check that tells it."""
    monkeypatch.setattr(listing.saving, "models", lambda: [Tag, Order])
    monkeypatch.setitem(connections["default"].settings_dict, "OPTIONS", {})

    assert [
        "models whose saves are atomic: none",
        "not atomic: shop.Order, shop.Tag. The SQLite database 'default' has no transaction_mode IMMEDIATE (dcs.W001).",
    ] == say("list").splitlines()[-2:]


def test_list_of_a_route_that_leads_nowhere(receiving: Receiving) -> None:
    """Where a route names no queue, list says that it is the route's."""
    task = receiving(bell)
    configure({"task_routes": {task.name: {"exchange": "news", "routing_key": "all"}}})

    [line] = [line for line in say("list").splitlines() if task.name in line]
    assert "  (by its route)  " in line


# status --------------------------------------------------------------------------------------------------------------


def test_status(some: dict[str, str]) -> None:
    """status counts the deliveries of every database, and shows each key that a failed one blocks, the oldest first."""
    for state in State:
        place("other", "shop.note", int(state), state=state, finished_at=moment(0))
    last = failed(lane="b", slot="b", key="shop.Order:7")
    first = failed(
        lane="a", slot="a", key="shop.Order:5", finished_at=moment(-3600), payload="secret", traceback="secret"
    )
    failed(lane="c", key="parked")
    place("default", "shop.note", 2, lane="a", due_at=None)
    place("default", "shop.note", lane="c", due_at=None)

    lines = say("status").splitlines()

    waits = "wait for their key's turn"
    when = f"{deliveries('default').get(pk=first).finished_at:%Y-%m-%d %H:%M:%S}"
    assert f"default: 3 ready, 0 sent, 0 running, 6 failed, 0 done, 0 paused, 3 of the ready ones {waits}" == lines[0]
    assert "default: the oldest that is due has waited 0 s" == lines[1]
    rates = "default: 0.0 sent, 0.0 succeeded, 0.0 retried, 0.0 failed, 0.0 discarded a minute, in the last 5 minutes"
    assert rates == lines.pop(2)
    assert lines.pop(6).startswith("other: 0.0 sent")
    cause = "bell  shop.Boom in shop.views.buy"
    assert f"default:{first}  blocked since {when}  shop.note  key=shop.Order:5  behind=2  {cause}" == lines[2]
    assert lines[3].startswith(f"default:{last}  blocked since ")
    assert lines[3].endswith(f"  shop.note  key=shop.Order:7  behind=0  {cause}")
    assert "other: 1 ready, 2 sent, 3 running, 5 failed, 5 done, 6 paused" == lines[4]
    assert "other: 1 wait for a task that this process does not know: shop.note (1)" == lines.pop(6)
    assert lines[5].startswith("other: the oldest that is due has waited ")
    assert lines[6].startswith("broker: answers after ")
    assert 7 == len(lines)


def test_status_of_one_database(some: dict[str, str]) -> None:
    """--database chooses databases."""
    lines = say("status", "--database=other", "--no-broker").splitlines()

    assert "other: 0 ready, 0 sent, 0 running, 1 failed, 0 done, 0 paused" == lines[0]
    assert 3 == len(lines)


def test_status_of_pauses_and_probes() -> None:
    """Paused receivers, and what is known of queues, have lines of their own."""
    pause("shop.note", "default")
    probes("default").create(queue="mail", token=1, probed_at=moment(-9), seen_at=moment(-30))
    probes("default").create(queue="new", token=1, probed_at=moment(-9))
    probes("default").create(queue="unused", token=1)

    lines = say("status", "--database=default", "--no-broker").splitlines()[3:]

    assert re.fullmatch(r"default: paused since \S+ \S+  shop.note", lines[0])
    assert re.fullmatch(r"default: probe of queue mail  sent \d+ s ago, last seen 3\d s ago", lines[1])
    assert re.fullmatch(r"default: probe of queue new  sent \d+ s ago, never seen", lines[2])
    assert 3 == len(lines)


def late(**columns: Any) -> dict[str, Any]:
    """Describe a delivery, its moments in seconds from now."""
    return {"sent_at": None, "state": State.READY, **columns}


@pytest.mark.parametrize(
    ("columns", "seconds"),
    [
        (late(due_at=-100), 100),
        (late(state=State.SENT, due_at=None, sent_at=-70, queue="mail"), 70),
        (late(state=State.SENT, due_at=None, sent_at=-80, queue=""), 80),
        (late(due_at=100), 0),
        (late(state=State.RUNNING, due_at=-90), 90),
        (late(state=State.RUNNING, due_at=20), 0),
        (late(state=State.PAUSED, due_at=-100), 0),
        (late(state=State.FAILED, due_at=-100), 0),
    ],
)
@pytest.mark.parametrize("using", ["default", "postgres", "mariadb"])
@pytest.mark.django_db(databases=["default", "other", "postgres", "mariadb"])
def test_lag(columns: dict[str, Any], seconds: int, using: str) -> None:
    """How late it is, is the age of the oldest that the relay should have published or a worker opened."""
    moments = {name: moment(value) for name in ("due_at", "sent_at") if (value := columns[name]) is not None}
    place(using, "shop.note", **{**columns, **moments})
    place(using, "shop.note", due_at=moment(50))

    assert seconds == pytest.approx(deliveries(using).lag(), abs=5)


def test_status_for_a_monitor(tasks: Tasks) -> None:
    """--check ends with an error that says what is wrong, after what status always says; without it nothing is."""
    place("default", tasks.shared(), due_at=moment(-100))
    failed("other")
    say("status")
    say("status", "--check", "--max-lag=200", "--max-failed=1")

    with pytest.raises(CommandError, match=r"^default: the oldest that is due has waited \d+ s, more than 60$"):
        say("status", "--check")
    with pytest.raises(CommandError, match=r"more than 9.5; other: 1 have failed, more than 0$"):
        say("status", "--check", "--max-lag=9.5", "--max-failed=0")


def test_status_of_tasks_that_nobody_knows(tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for tasks that are gone is counted, the most first, and is wrong; there may be many of them."""
    place("default", tasks.shared(), 3)
    place("default", "shop.gone", 2, due_at=moment(60))
    place("default", "shop.lost", 3, due_at=moment(60))
    place("default", "shop.paused", state=State.PAUSED, due_at=None)
    wait = "wait for a task that this process does not know"

    lines = say("status", "--no-broker", "--database=default").splitlines()
    assert f"default: 5 {wait}: shop.lost (3), shop.gone (2)" == lines[3]
    with pytest.raises(CommandError, match=rf"^default: 5 {wait}: shop.lost \(3\), shop.gone \(2\)$"):
        say("status", "--check", "--database=default")

    monkeypatch.setattr(standing, "MOST_NAMED", 1)
    monkeypatch.setattr(standing, "MOST_READ", 6)
    assert f"default: 3 {wait}: shop.gone (2) and 1 more\n" in say("status", "--no-broker", "--database=default")


@pytest.mark.parametrize("using", ["default", "postgres", "mariadb"])
@pytest.mark.django_db(databases=["default", "other", "postgres", "mariadb"])
def test_tasks_that_nobody_knows(using: str, tasks: Tasks) -> None:
    """Every database finds them, by an index."""
    place(using, "shop.gone", 2)
    place(using, tasks.shared())

    assert {"shop.gone": 2} == standing.standing(using).unknown


def test_status_of_many_blocked_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many blocked keys some are shown."""
    monkeypatch.setattr(standing, "MOST_SHOWN", 2)
    for number in range(3):
        failed(lane=f"{number}", slot=f"{number}", key=f"{number}")

    lines = say("status", "--no-broker", "--database=default").splitlines()[3:]

    assert "default: the 2 keys that have been blocked longest; there are more" == lines[0]
    assert ["key=0", "key=1"] == [re.findall(r"key=\d", line)[0] for line in lines[1:]]


def test_status_without_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that does not answer keeps nobody from hearing of the others."""

    def refuse(alias: str) -> Any:
        raise OperationalError("away")

    real = standing.standing
    monkeypatch.setattr(standing, "standing", lambda alias: real(alias) if alias == "other" else refuse(alias))

    assert ["default: away", "other: 0 ready"] == [line[:14] for line in say("status", "--no-broker").splitlines()[:2]]
    with pytest.raises(CommandError, match=r"^the database 'default' does not answer: away$"):
        say("status", "--check", "--no-broker")


@pytest.fixture
def unmigrated() -> None:
    """One of the databases lacks a table."""
    with connections["other"].cursor() as cursor:
        cursor.execute("ALTER TABLE django_celery_signals_delivery RENAME TO elsewhere")


@pytest.mark.usefixtures("unmigrated")
@pytest.mark.parametrize(
    "words", ["status", "status --check", "list-failed", "retry --all", "discard --all", "purge --older-than=1"]
)
def test_a_missing_table(words: str) -> None:
    """A database that was not migrated is an error that names the command which does it, not the SQL that failed."""
    said = "other: the table django_celery_signals_delivery is missing; run manage.py migrate --database=other"
    with pytest.raises(CommandError, match=f"^{said}$"):
        say(*words.split())


@pytest.mark.usefixtures("unmigrated")
def test_a_missing_table_of_one() -> None:
    """The others are shown as ever, before the error."""
    out = StringIO()
    with pytest.raises(CommandError, match=r"^other: the table"):
        call_command("signals", "status", "--no-broker", stdout=out)
    assert out.getvalue().startswith("default: 0 ready")
    assert "other" not in out.getvalue()


def test_another_error_of_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has another reason is raised as it is, also where nobody can tell which tables there are."""

    def refuse(alias: str) -> Any:
        raise OperationalError("away")

    monkeypatch.setattr(choosing, "deliveries", refuse)
    with pytest.raises(OperationalError, match="away"):
        say("list-failed")
    monkeypatch.setattr(choosing, "missing_tables", refuse)
    with pytest.raises(OperationalError, match="away"):
        say("list-failed")


def test_status_without_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that does not answer is wrong, and so is a process without the project's app."""

    def refuse(app: Celery) -> Any:
        raise OSError("refused")

    monkeypatch.setattr(standing, "connection_for", refuse)
    assert "broker: away, OSError: refused\n" in say("status")
    with pytest.raises(CommandError, match=r"^the broker is away: away, OSError: refused$"):
        say("status", "--check")
    say("status", "--check", "--no-broker")

    monkeypatch.setattr(standing, "is_fallback", lambda app: True)
    assert "broker: there is no Celery app of the project" in say("status")


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan"])
def test_lag_that_cannot_be(text: str) -> None:
    """A lag is a number above zero."""
    with pytest.raises(CommandError, match="must be a number of seconds above zero"):
        say("status", f"--max-lag={text}")


def test_status_of_rates() -> None:
    """How much was done lately is what processes have written down."""
    table.add("default", [("", table.this_minute() - 1, (10, 5, 1, 2, 0, 1.5))])

    said = say("status", "--no-broker", "--database=default")

    assert "default: 2.0 sent, 1.0 succeeded, 0.4 retried, 0.2 failed, 0.0 discarded a minute" in said


# pause, resume -------------------------------------------------------------------------------------------------------


def test_pause_and_resume(receiving: Receiving) -> None:
    """A receiver is paused in every database, or in those that were chosen, and goes on again."""
    name = receiving(bell, guarantee="durable").name

    assert f"default: {name} would be paused\nother: {name} would be paused\n" == say("pause", name, "--dry-run")
    assert ({}, {}) == (paused("default"), paused("other"))
    assert f"other: {name} is paused\n" == say("pause", name, "--database=other")
    assert f"default: {name} is paused\nother: {name} is paused already\n" == say("pause", name)
    place("other", name, 2, state=State.PAUSED)

    would = [
        f"{alias}: {name} would go on; {n} deliveries were paused\n" for alias, n in (("default", 0), ("other", 2))
    ]
    assert "".join(would) == say("resume", name, "--dry-run")
    assert [name] == list(paused("other"))
    assert "".join(would).replace("would go on", "goes on") == say("resume", "--all")
    assert ({}, {}) == (paused("default"), paused("other"))
    pause(name, "other")
    deliveries("other").filter(pk=deliveries("other").latest("pk").pk).delete()
    assert f"other: {name} goes on; 1 delivery was paused\n" == say("resume", "--all")
    assert "Nothing is paused.\n" == say("resume", "--all")
    assert f"{name}: not paused.\n" == say("resume", name)


def test_pause_of_former_names(receiving: Receiving) -> None:
    """Deliveries that the receiver still takes under another name wait as well."""
    name = receiving(bell, guarantee="durable", former_names=["shop.before"]).name

    say("pause", name, "--database=default")

    assert {name, "shop.before"} == set(paused("default"))
    say("resume", "shop.before", "--database=default")
    assert {name} == set(paused("default"))
    say("pause", name, "--database=default")
    say("resume", name, "--database=default")
    assert {} == paused("default")


def test_pause_of_one_without_rows(receiving: Receiving) -> None:
    """What has no rows cannot wait, which is said."""
    task = receiving(bell, guarantee="durable")
    connect(bell, task, guarantee="on_commit", dispatch_uid="at once")

    said = say("pause", task.name)

    assert f"{task.name} is also sent what has no row" in said
    disconnect(bell, task)
    with pytest.raises(CommandError, match="has no durable deliveries"):
        say("pause", task.name)
    disconnect(bell, task, dispatch_uid="at once")


def test_pause_of_one_that_is_not_connected_any_more(receiving: Receiving) -> None:
    """Its deliveries may wait still."""
    task = receiving(bell, guarantee="durable")
    disconnect(bell, task)

    assert f"default: {task.name} is paused\n" == say("pause", task.name, "--database=default")


def test_many_that_were_paused(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many it is not counted how many."""
    monkeypatch.setattr(pausing, "MOST_COUNTED", 2)
    name = receiving(bell, guarantee="durable").name
    place("default", name, 3, state=State.PAUSED)
    say("pause", name)

    assert "more than 2 deliveries" in say("resume", name)


def test_pause_of_nobody(receiving: Receiving) -> None:
    """A name that is none is refused, with one that is close, or all there are; so is to name none."""
    name = receiving(bell, guarantee="durable").name

    with pytest.raises(CommandError, match=f"no such receiver: {name}s. Did you mean {name}"):
        say("pause", f"{name}s")
    with pytest.raises(CommandError, match=r"no such receiver: 5\. There are: .*tests\.receiving"):
        say("pause", "5")
    with pytest.raises(CommandError, match="or give --all"):
        say("resume")


# purge ---------------------------------------------------------------------------------------------------------------


def test_purge(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ended long ago is deleted, in steps; of failed ones only if that is said."""
    monkeypatch.setattr(purging, "STEP", 2)
    place("default", "shop.note", 5, state=State.DONE, finished_at=moment(-3 * DAY))
    place("default", "shop.greet", state=State.DONE, finished_at=moment(-3 * DAY))
    place("default", "shop.note", state=State.DONE, finished_at=moment(-DAY))
    failed(finished_at=moment(-3 * DAY), lane="a", slot="a")
    place("default", "shop.note", lane="a", due_at=None)
    old = ["purge", "--older-than=2"]

    assert "default: 6 done would be deleted\nother: 0 done would be deleted\n" == say(*old, "--dry-run")
    assert "default: 1 done deleted\n" == say(*old, "--receiver=shop.greet", "--database=default")
    assert "default: 5 done deleted\n" == say(*old, "--database=default")
    assert {"done": 1, "failed": 1, "ready": 1} == states("default")
    assert "default: 1 failed deleted\n" == say(*old, "--state=failed", "--database=default")
    assert {"done": 1, "ready": 1} == states("default")


@pytest.mark.parametrize("verb", ["retry", "discard"])
def test_many_in_a_terminal(verb: str) -> None:
    """In a terminal it says how far it is."""
    failed()
    out = Terminal()

    call_command("signals", verb, "--all", "--database=default", stdout=out)

    assert f"default: {verb}" in out.getvalue()
    assert out.getvalue().endswith(f"default: 1 {'retried' if verb == 'retry' else 'discarded'}\n")


def test_purge_in_a_terminal() -> None:
    """In a terminal it says how far it is."""
    place("default", "shop.note", state=State.DONE, finished_at=moment(-3 * DAY))
    out = Terminal()

    call_command("signals", "purge", "--older-than=1", "--database=default", stdout=out)

    assert "default: purge: 1 of 1" in out.getvalue()
    assert out.getvalue().endswith("default: 1 done deleted\n")


class Terminal(StringIO):
    """What a person looks at."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.mark.parametrize("text", ["-1", "old", "nan", "1e9"])
def test_days_that_cannot_be(text: str) -> None:
    """Days are a number."""
    with pytest.raises(CommandError, match="must be a number of days"):
        say("purge", f"--older-than={text}")


# relay ---------------------------------------------------------------------------------------------------------------


def test_relay_once(celery_app: Celery, tasks: Tasks) -> None:
    """--once publishes what is due in every database, says how much, and ends."""
    for alias in ("default", "other"):
        place(alias, tasks.shared(), 2)

    assert "published: 4\n" == say("relay", "--once")
    assert 4 == len(take(celery_app))


def test_relay_of_one_database(tasks: Tasks) -> None:
    """--database chooses databases."""
    for alias in ("default", "other"):
        place(alias, tasks.shared())

    assert "published: 1\n" == say("relay", "--once", "--database", "other")
    assert ({"ready": 1}, {"sent": 1}) == (states("default"), states("other"))


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_relay_until_a_signal(tasks: Tasks, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --once it runs until it is told to end, in batches and with pauses of the sizes that were given."""
    sizes: list[Any] = []

    def sleep(self: Relay, seconds: float) -> None:
        sizes.append((self.batch_size, self.idle))
        signal.raise_signal(number)

    monkeypatch.setattr(Relay, "_sleep", sleep)
    place("default", tasks.shared(), 5)

    assert "relay: default\n" == say("relay", "--database=default", "--batch-size=3", "--idle=0.5")
    assert [(3, 0.5)] == sizes
    assert {"sent": 3, "ready": 2} == states("default")


def test_relay_knows_what_a_worker_knows(celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay imports the modules that Celery's settings name, as a worker does, for their tasks are no strangers."""
    imported: list[Any] = []
    monkeypatch.setattr(celery_app.loader, "import_default_modules", lambda: imported.append(True))

    say("relay", "--once")

    assert [True] == imported


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--batch-size=0"], "batch_size=0 must be at least 1"),
        (["--idle=0"], "idle=0.0 above zero"),
        (["--database=nowhere"], "there is no database .'nowhere'.; DATABASES has"),
    ],
)
def test_relay_that_cannot_be(words: list[str], reason: str) -> None:
    """What cannot be is refused, with what can."""
    with pytest.raises(CommandError, match=reason):
        say("relay", "--once", *words)


# list-failed ---------------------------------------------------------------------------------------------------------


def test_list(tasks: Tasks) -> None:
    """list-failed shows one line for each, the newest first, with all that helps but no value of the sending."""
    old = failed(finished_at=moment(-3600), payload="secret", error_message="secret", traceback="secret", attempts=20)
    new = failed(crashes=5, payload=None)
    other = failed("other")
    place("default", tasks.shared())

    lines = say("list-failed").splitlines()

    assert [f"default:{new}", f"default:{old}", f"other:{other}"] == [line.split()[0] for line in lines]
    when = f"{deliveries('default').get(pk=old).finished_at:%Y-%m-%d %H:%M:%S}"
    assert f"default:{old}  {when}  shop.note  bell  shop.Boom in shop.views.buy  attempts=20 crashes=0" == lines[1]


def test_list_with_tracebacks() -> None:
    """--traceback shows what was raised under each line, as text that moves no cursor, or that it is erased."""
    failed(finished_at=moment(-2), traceback="Traceback:\n  File\x1b[2J\nBoom: 5\n", error_message="5")
    failed(finished_at=moment(-1), error_message="6")
    failed(finished_at=moment(0))

    lines = say("list-failed", "--traceback").splitlines()

    assert "    The traceback is not kept any more (FAILED_PAYLOAD_DAYS)." == lines[1]
    assert "    6" == lines[3]
    assert ["    Traceback:", "      File [2J", "    Boom: 5"] == lines[5:]


def test_list_is_limited() -> None:
    """--limit is the most that are shown, of all databases together."""
    for _ in range(3):
        failed()
    failed("other")

    assert 2 == len(say("list-failed", "--limit=2").splitlines())
    assert 3 == len(say("list-failed", "--limit=3").splitlines())


@pytest.mark.parametrize("limit", ["0", "-1", "many"])
def test_limit_that_cannot_be(limit: str) -> None:
    """A limit is a number above zero."""
    with pytest.raises(CommandError, match="must be a number, at least 1"):
        say("list-failed", f"--limit={limit}")


def test_nothing_to_list(tasks: Tasks) -> None:
    """Where there is nothing to show, it says whether that is for the filters."""
    assert "No delivery has failed.\n" == say("list-failed")
    failed()
    assert "There is no such failed delivery.\n" == say("list-failed", "--receiver", tasks.shared().name)


FILTERS = [
    (["--receiver=shop.note"], ["note", "other"]),
    (["--signal=paid"], ["note", "greet", "other"]),
    (["--signal=shop.signals:paid"], ["note", "greet", "other"]),
    (["--signal=aid"], []),
    (["--signal=prepaid"], ["prepaid"]),
    (["--error=Boom"], ["note", "prepaid", "other"]),
    (["--error=shop.views"], ["note", "greet", "prepaid", "other"]),
    (["--error=TimeoutError", "--signal=paid"], ["greet"]),
    (["--parent=p"], ["note", "other"]),
    (["--root=r"], ["prepaid"]),
    (["--root=r", "--parent=p"], []),
    (["--database=other"], ["other"]),
]


@pytest.fixture
def some() -> dict[str, str]:
    """Some failed deliveries, by the names that list-failed gives them."""
    return {
        f"default:{failed(parent_id='p')}": "note",
        f"default:{failed(receiver='shop.greet', fingerprint='TimeoutError in shop.views.greet')}": "greet",
        f"default:{failed(receiver='shop.prepaid', signal='shop.signals:prepaid', root_id='r')}": "prepaid",
        f"other:{failed('other', parent_id='p')}": "other",
    }


@pytest.mark.parametrize(("words", "expected"), FILTERS, ids=lambda value: " ".join(value))
def test_filters(some: dict[str, str], words: list[str], expected: list[str]) -> None:
    """Receiver, signal, error, what caused them and database narrow what is chosen, one by one or together."""
    listed = [line.split()[0] for line in say("list-failed", *words).splitlines() if ":" in line]

    assert expected == [name for number, name in some.items() if number in listed]


@pytest.mark.parametrize("word", ["list-failed", "retry", "discard"])
@pytest.mark.parametrize("words", [["--receiver=greet"], ["--database=other", "--receiver=shop.greet"]])
def test_receivers_that_there_are_not(some: dict[str, str], tasks: Tasks, word: str, words: list[str]) -> None:
    """A name that no receiver has, and no failed delivery where it looks, is refused with those that there are."""
    name = tasks.shared().name
    with pytest.raises(CommandError, match=r"^There is no such receiver: (shop\.)?greet\. (There are|Did you mean)"):
        say(word, *words)
    with pytest.raises(CommandError, match=f"Did you mean {name}"):
        say(word, f"--receiver={name}s")
    assert {"failed": 3} == states("default")


def test_numbers(some: dict[str, str]) -> None:
    """--id takes what list-failed shows, as often as one likes, and touches no other database's deliveries."""
    first, *_, last = some
    for alias in ("default", "other"):
        failed(alias, pk=77_000)

    assert [first, last] == [line.split()[0] for line in say("list-failed", "--id", first, "--id", last).splitlines()]
    assert ["default:77000"] == [line.split()[0] for line in say("list-failed", "--id=default:77000").splitlines()]
    assert "There is no such failed delivery.\n" == say("list-failed", "--id", first, "--database=other")


@pytest.mark.parametrize("number", ["5", "default:", ":5", "default:x"])
def test_numbers_that_cannot_be(number: str) -> None:
    """A number without its database might be another delivery's."""
    with pytest.raises(CommandError, match="must name the database, too, as list-failed shows it: default:5"):
        say("discard", "--id", number)


# retry and discard ---------------------------------------------------------------------------------------------------


def test_retry(celery_app: Celery, tasks: Tasks) -> None:
    """retry lets deliveries start anew, with all their attempts; the relay publishes them."""
    failed(receiver=tasks.shared().name, attempts=20, crashes=5, reruns=60, sends=3)

    assert "default: 1 retried\nother: 0 retried\n" == say("retry", "--all")

    row = deliveries("default").get()
    assert (State.READY, 0, 0, 0, 0) == (row.state, row.attempts, row.crashes, row.reruns, row.sends)
    assert "published: 1\n" == say("relay", "--once")
    assert 1 == len(take(celery_app))


def test_retry_without_a_payload() -> None:
    """What has lost its payload cannot start anew, stays as it is, and is said."""
    failed()
    failed(payload=None)
    said = "default: 1 cannot be retried: they have lost their payload. Discard them.\nother: 0 {}retried\n"

    assert "default: 1 would be retried\n" + said.format("would be ") == say("retry", "--all", "--dry-run")
    assert {"failed": 2} == states("default")
    assert "default: 1 retried\n" + said.format("") == say("retry", "--all")
    assert {"failed": 1, "ready": 1} == states("default")


def test_discard(some: dict[str, str], tasks: Tasks) -> None:
    """discard deletes what was chosen and nothing else; a dry run deletes nothing."""
    place("default", tasks.shared())

    assert "default: 2 would be discarded\nother: 1 would be discarded\n" == say(
        "discard", "--signal=paid", "--dry-run"
    )
    assert {"failed": 3, "ready": 1} == states("default")
    assert "default: 2 discarded\nother: 1 discarded\n" == say("discard", "--signal=paid")
    assert ({"failed": 1, "ready": 1}, {}) == (states("default"), states("other"))
    assert "default: 1 discarded\nother: 0 discarded\n" == say("discard", "--all")
    assert {"ready": 1} == states("default")


def test_discard_by_number(some: dict[str, str]) -> None:
    """Only the databases that are named are touched."""
    first = next(iter(some))

    assert "default: 1 discarded\n" == say("discard", "--id", first)
    assert ({"failed": 2}, {"failed": 1}) == (states("default"), states("other"))


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
@pytest.mark.parametrize("word", ["retry", "discard"])
def test_how_many_go_on(word: str) -> None:
    """retry and discard say how many wait behind what they let go on, before and after."""
    first, second = (failed(lane=lane, slot=lane) for lane in "ab")
    failed(lane="c")
    for lane in "aab":
        place("default", "shop.note", lane=lane, due_at=None)
    waiting = list(deliveries("default").waiting().values_list("pk", flat=True))
    done = {"retry": "retried", "discard": "discarded"}[word]

    assert f"default: 1 would be {done}; 2 wait behind these and go on\n" == say(
        word, "--id", f"default:{first}", "--dry-run"
    )
    assert f"default: 1 {done}; 2 wait behind these and go on\n" == say(word, "--id", f"default:{first}")
    assert f"default: 2 {done}; 1 wait behind these and go on\nother: 0 {done}\n" == say(word, "--all")
    turns = {"retry": [first, second], "discard": [waiting[0], waiting[2]]}[word]
    assert turns == list(deliveries("default").exclude(slot=None).order_by("pk").values_list("pk", flat=True))
    assert 0 == len(deliveries("default").blocked())


def test_how_many_go_on_after_what_is_left(tasks: Tasks) -> None:
    """What has lost its payload is not retried, so what waits behind it is not counted."""
    failed(lane="a", slot="a", payload=None)
    place("default", "shop.note", lane="a", due_at=None)

    said = "default: 0 retried\ndefault: 1 cannot be retried: they have lost their payload. Discard them.\n"
    assert said == say("retry", "--all", "--database=default")


@pytest.mark.parametrize("word", ["retry", "discard"])
@pytest.mark.parametrize("words", [[], ["--database=default"], ["--dry-run"]], ids=["bare", "database", "dry run"])
def test_all_must_be_meant(word: str, words: list[str]) -> None:
    """Without a filter, --all is asked for, so that nobody changes everything by accident."""
    failed()

    with pytest.raises(CommandError, match="by --id, --receiver, --signal, --error, --parent, --root, or give --all"):
        say(word, *words)
    assert {"failed": 1} == states("default")


@pytest.mark.parametrize("words", ["status", "list-failed", "retry --all", "discard --all"])
def test_unknown_database(words: str) -> None:
    """A database that is not there is an error that names those that are, before anything is changed."""
    failed()
    with pytest.raises(CommandError, match="There is no database 'nowhere'; DATABASES has default, other"):
        say(*words.split(), "--database=default", "--database=nowhere")
    assert {"failed": 1} == states("default")


def test_a_word_is_needed() -> None:
    """Without a word the command names its words."""
    with pytest.raises(CommandError, match=r"list\|explain\|status\|relay\|list-failed\|retry\|discard"):
        say()
