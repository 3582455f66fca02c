"""Random schedules of senders, relays, workers and accidents: whatever happens, a simple model knows what comes out.

Everything happens in one process and one step at a time, so that a schedule that fails can be made smaller, and happens
again. Senders and workers are threads that wait in between, each with a connection of its own. The broker is a list.

Nothing depends on how long a step takes: no lease ends by itself. SQLite has one writer, so while a transaction is open
there only its sender takes steps, no two are open at once, and receivers run without one.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
from celery import Celery
from django.db import connections, transaction
from django.db.models import Case, When
from django.dispatch import Signal
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from django_celery_signals import Event, Fail, PublishError, ReceiverTask, Relay, deliveries, dispatch, execution
from django_celery_signals.durable import deliveries as statements
from django_celery_signals.durable import hold, outbox, turns, upkeep
from django_celery_signals.durable.bulk import Bulk
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import DeliveryQuerySet
from django_celery_signals.durable.hold import Held
from django_celery_signals.durable.lease import Lease
from django_celery_signals.durable.rows import State
from django_celery_signals.handover import Message, Patience
from django_celery_signals.wire import ARGUMENT
from tests.holding import trace
from tests.parameters import each_database
from tests.receiving import Receiving

step = Signal()

# How receivers take events, and what is sent to them.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "blocking": {"ordered": True},
    "parking": {"ordered": True, "on_failure": "park"},
    "coalescing": {"coalesce": True},
    "folding": {"ordered": True, "coalesce": True},
    "debounced": {"debounce": 1000.0},
}
BLOCKING, FOLDING = ("blocking", "folding"), ("coalescing", "folding", "debounced")
OUTCOMES = {"succeed": "SUCCESS", "retry": "RETRY", "fail": "FAILURE"}
SENDERS, WORKERS, BUDGET = 3, 4, 3  # how many there are, and the crashes that a delivery may have
MUCH = 8  # deliveries that are not done, with which nothing more is sent
PATIENCE = 60  # seconds for which a step may take, before the test is given up

Lane = tuple[str, str]  # kind and key

here = threading.local()  # knows what the worker of this thread runs


class Boom(Exception):
    """What receivers raise here."""


@dataclass(kw_only=True, eq=False)
class Run:
    """A message in the hands of a worker, which stops in the receiver until it is told how that ends."""

    worker: ThreadPoolExecutor
    pk: int
    told: SimpleQueue[str] = field(default_factory=SimpleQueue)  # where the worker is
    orders: SimpleQueue[str] = field(default_factory=SimpleQueue)
    ending: Future[str] = field(init=False)
    order: str = ""  # what the receiver was told to do
    lane: Lane = ("", "")
    number: int = 0  # of the sending that it got
    covers: frozenset[int] = frozenset()  # the sendings that it stands for
    coalesced: int = 0
    is_dead: bool = False  # whether its lease is over
    has_completed: bool = False  # all but the commit

    def begin(self, act: Callable[[], str]) -> bool:
        """Let the worker begin; tell whether it has reached the receiver."""

        def work() -> str:
            here.run = self
            return act()

        self.ending = self.worker.submit(work)
        self.ending.add_done_callback(lambda _: self.told.put("ended"))
        return self.told.get(timeout=PATIENCE) == "inside"

    def obey(self) -> None:
        """Be the receiver: wait for an order."""
        self.told.put("inside")
        self.order = self.orders.get(timeout=PATIENCE)
        if self.order == "fail":
            raise Fail("for good")
        if self.order == "retry":
            raise Boom

    def pause(self) -> None:
        """Be the worker, between the last statement of the transaction and its commit."""
        if self.order == "complete":
            self.told.put("completed")
            self.order = self.orders.get(timeout=PATIENCE)

    def go_on(self, order: str) -> str:
        """Tell the worker what to do, and return how far it has come."""
        self.orders.put(order)
        return self.told.get(timeout=PATIENCE)


@dataclass(kw_only=True, eq=False)
class Sender:
    """A connection that sends, and what it has sent in the transaction that is open."""

    thread: ThreadPoolExecutor
    using: str
    blocks: list[tuple[Any, list[int]]] = field(default_factory=list)  # each atomic() with the numbers sent in it

    def do(self, act: Callable[[], Any]) -> Any:
        return self.thread.submit(act).result(PATIENCE)

    def enter(self) -> None:
        """Open a transaction, or a savepoint."""
        atomic = transaction.atomic(using=self.using)
        self.do(atomic.__enter__)
        self.blocks.append((atomic, []))

    def leave(self, *, keep: bool) -> list[int]:
        """Close the innermost; return the numbers that are committed by that."""
        atomic, numbers = self.blocks.pop()
        self.do(partial(atomic.__exit__, *((None, None, None) if keep else (Boom, Boom(), None))))
        if keep and self.blocks:
            self.blocks[-1][1].extend(numbers)
        return numbers if keep and not self.blocks else []


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Late:
    """A hook that is yet to be called, and the lane that it is about."""

    lane: str | None
    act: Callable[[], None]
    commit: Patience | None  # what the hooks of one commit have together; they are called in their order

    def is_of(self, other: Late) -> bool:
        """Tell whether both are of one commit."""
        return self is other or (self.commit is not None and self.commit is other.commit)


@dataclass(kw_only=True, eq=False)
class World:
    """One database, its senders, its workers, and a broker; it outlives the schedules."""

    alias: str
    app: Celery
    senders: list[Sender]
    workers: list[ThreadPoolExecutor]
    relay: Relay
    receivers: dict[str, str] = field(default_factory=dict)  # names of the tasks, and their kinds
    broker: list[Message] = field(default_factory=list)
    mode: str = "at once"  # what becomes of hooks that are called after a commit
    late: list[Late] = field(default_factory=list)
    lost: set[str | None] = field(default_factory=set)  # lanes of hooks that are called by nobody
    missing: list[Message] = field(
        default_factory=list
    )  # what such hooks, or late ones, would publish, and what is lost

    @contextmanager
    def hooks(self, mode: str) -> Iterator[None]:
        """Let hooks be called in this way for a while."""
        saved, self.mode = self.mode, mode
        yield
        self.mode = saved

    def hooked(self, original: Callable[..., None], lane_of: Callable[..., str | None]) -> Callable[..., None]:
        """Return a hook that is called at once, late, never, or when the broker is away."""

        def hook(*args: Any) -> None:
            lane = lane_of(*args)
            if self.mode in ("later", "lost") and isinstance(args[0], Message):
                self.missing.append(args[0])
            if self.mode == "later":
                commit = next((one for one in args if isinstance(one, Patience)), None)
                self.late.append(Late(lane=lane, act=partial(original, *args), commit=commit))
            elif self.mode == "lost":
                self.lost.add(lane)
            else:
                original(*args)

        return hook

    def next_hooks(self) -> list[Late]:
        """Return those of the late hooks that are the next of their commits."""
        return [late for late in self.late if next(filter(late.is_of, self.late)) is late]

    def take(self, message: Message, patience: Any = None, doubt: Any = None) -> None:
        """Be the broker."""
        if self.mode == "refused":
            raise PublishError("The broker is away.")
        self.broker.append(message)

    def take_many(self, bulk: Bulk, messages: list[Message]) -> list[None]:
        """Be the broker, to a relay."""
        self.broker.extend(messages)
        return [None] * len(messages)

    def run(self, message: Message) -> str:
        """Run a message as a worker does, and return how Celery saw the end."""
        kwargs, retries = {ARGUMENT: message.body}, message.options["retries"]
        return trace(self.app, message.receiver, message.event_id, kwargs, retries).state

    def clear(self) -> None:
        """Begin anew."""
        self.mode = "at once"
        deliveries(self.alias).erase()
        for memory in (self.broker, self.late, self.lost, self.missing):
            memory.clear()


@pytest.fixture
def world(
    alias: str, celery_app: Celery, receiving: Receiving, settings: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> Iterator[World]:
    """The world of the schedules."""
    caplog.set_level(logging.CRITICAL)
    settings.DJANGO_CELERY_SIGNALS = {"FAST_PATH_LIMIT": 3, "LEASE": 1_000_000.0}
    monkeypatch.setattr(upkeep, "LONG_LOCK", PATIENCE)
    monkeypatch.setitem(connections.settings[alias], "CONN_MAX_AGE", None)
    with ExitStack() as stack:
        threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(SENDERS + WORKERS)]
        for thread in threads:
            stack.callback(lambda thread=thread: thread.submit(connections.close_all).result(PATIENCE))
        world = World(
            alias=alias,
            app=celery_app,
            senders=[Sender(thread=thread, using=alias) for thread in threads[:SENDERS]],
            workers=threads[SENDERS:],
            relay=Relay(app=celery_app, databases=[alias]),
        )
        for kind, options in KINDS.items():
            world.receivers[declared(receiving, kind, options, atomic=alias != "default").name] = kind
        complete = Held.complete

        def complete_and_pause(held: Held) -> None:
            complete(held)
            here.run.pause()

        monkeypatch.setattr(Held, "complete", complete_and_pause)
        for module, name, lane_of in (
            (dispatch, "publish_or_leave", lambda message, patience: message.lane),
            (hold, "publish_next", lambda app, using, lane: lane),
        ):
            monkeypatch.setattr(module, name, world.hooked(getattr(module, name), lane_of))
        monkeypatch.setattr(outbox, "publish", world.take)
        monkeypatch.setattr(Bulk, "publish", lambda bulk, messages, meanwhile: world.take_many(bulk, messages))
        for module in (statements, upkeep):
            monkeypatch.setattr(module, "CRASH_BUDGET", BUDGET)
        yield world


def declared(receiving: Receiving, kind: str, options: dict[str, Any], **more: Any) -> Any:
    """Return the receiver of a kind."""

    def note(key: str, number: int, update_fields: frozenset[str], event: Event) -> None:
        run: Run = here.run
        run.lane, run.number, run.coalesced = (kind, key), number, event.coalesced
        run.covers = frozenset(map(int, update_fields))  # of what is folded the names are united
        run.obey()

    mine = kind

    def is_mine(kind: str) -> bool:
        return kind == mine

    turns = {} if kind == "plain" else {"key": lambda key: key}
    return receiving(step, note, guarantee="durable", when=is_mine, **turns, **options, **more)


# The schedules and the model ---------------------------------------------------------------------------------------

# The steps, how often each is drawn compared to the others, and what there must be for it: it gets one of these.
STEPS: dict[str, tuple[int, Callable[[Schedule], Any]]] = {
    "send": (8, lambda now: now.may_send),
    "begin_savepoint": (1, lambda now: now.open),
    "end_savepoint": (2, lambda now: [sender for sender in now.open if len(sender.blocks) > 1]),
    "commit": (7, lambda now: now.open),
    "roll_back": (1, lambda now: now.open),
    "deliver": (9, lambda now: now.world.broker),
    "deliver_copy": (3, lambda now: now.world.broker),
    "succeed": (7, lambda now: now.running),
    "complete": (3, lambda now: now.alive if now.world.alias == "postgres" else []),
    "try_later": (2, lambda now: now.alive),
    "fail": (3, lambda now: now.alive),
    "crash": (3, lambda now: now.alive),
    "call_hook": (3, lambda now: now.world.next_hooks()),
    "lose_hook": (1, lambda now: now.world.next_hooks()),
    "lose_message": (1, lambda now: now.world.broker),
    "claim": (3, lambda now: range(1, 13)),
    "publish": (6, lambda now: now.claims),
    "sweep": (1, lambda now: [now.upkeep]),
    "suspect": (1, lambda now: [now.upkeep]),
    "retry": (4, lambda now: sorted(now.failed)),
    "discard": (1, lambda now: sorted(now.failed)),
}
SENDING = ("send", "begin_savepoint", "end_savepoint", "commit", "roll_back")
MODES = {"at once": 5, "later": 2, "lost": 1, "refused": 1}  # of the hooks of a step


def by_weight(weights: dict[str, int]) -> Any:
    return st.sampled_from([name for name, weight in weights.items() for _ in range(weight)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Focus:
    """What schedules are mostly about."""

    kinds: tuple[str, ...] = tuple(KINDS)  # of receivers
    often: tuple[str, ...] = ()  # steps that are drawn several times as often as in STEPS

    def weight(self, step: str) -> int:
        return STEPS[step][0] * (5 if step in self.often else 1)


class Schedule(RuleBasedStateMachine):
    """The steps, what is known of each sending, and what has to be true after every step, and in the end."""

    def __init__(self, world: World, focus: Focus) -> None:
        super().__init__()
        self.world, self.rows, self.focus = world, deliveries(world.alias), focus
        self.upkeep = upkeep.Upkeep(world.app, world.alias)
        self.is_sound = False  # whether all was well after the last step
        self.kinds: list[str] = []  # that are sent to
        self.sent: dict[int, Lane] = {}  # by number
        self.committed: set[int] = set()
        self.ended: Counter[int] = Counter()  # how often a sending was part of what succeeded, or was discarded
        self.numbers: dict[int, int] = {}  # which sending a row, by its id, has the arguments of
        self.covers: dict[int, frozenset[int]] = {}  # and for which ones it stands
        self.failed: dict[int, Lane] = {}  # rows that were given up
        self.turns: dict[Lane, int] = {}  # rows that have begun and not ended, and so let no other of their lane begin
        self.running: list[Run] = []
        self.claims: list[Any] = []
        self.slots: dict[int, str] = {}  # of rows, after the last step

    @initialize(data=st.data())
    def choose(self, data: Any) -> None:
        """Send to few of the receivers, so that much happens to each."""
        some = st.lists(st.sampled_from(self.focus.kinds), min_size=1, max_size=2, unique=True)
        self.kinds = data.draw(some, "kinds")

    @rule(data=st.data(), hooks=by_weight(MODES))
    def act(self, data: Any, hooks: str) -> None:
        """Do a step that can be done; its hooks after a commit are called at once, or not."""
        self.is_sound = False
        possible = {name: list(choice(self)) for name, (_, choice) in STEPS.items() if self.may(name)}
        weights = {name: self.focus.weight(name) for name, things in possible.items() if things}
        step = data.draw(by_weight(weights), "step")
        thing = possible[step][data.draw(st.integers(0, len(possible[step]) - 1), "with")]
        with self.world.hooks(hooks):
            getattr(self, step)(thing, data)
        self.check()
        self.is_sound = True

    def may(self, step: str) -> bool:
        """Tell whether a step would not wait for others: on SQLite a transaction keeps all others from writing."""
        if step.startswith("deliver") and len(self.running) == WORKERS:
            return False
        return self.world.alias != "default" or not self.open or step in SENDING

    # Senders ---------------------------------------------------------------------------------------------------------

    @property
    def open(self) -> list[Sender]:
        """Those in a transaction."""
        return [sender for sender in self.world.senders if sender.blocks]

    @property
    def may_send(self) -> list[Sender]:
        """Those that can send; nobody, while there is much to do."""
        if (
            len(self.committed - self.ended.keys())
            + sum(len(numbers) for sender in self.open for _, numbers in sender.blocks)
            > MUCH
        ):
            return []
        return self.open if self.open and self.world.alias == "default" else self.world.senders

    def send(self, sender: Sender, data: Any) -> None:
        """Send events; begin a transaction for them if there is none."""
        if not sender.blocks:
            sender.enter()
        for kind, key in data.draw(
            st.lists(st.tuples(st.sampled_from(self.kinds), st.sampled_from("aab")), min_size=1, max_size=3), "to"
        ):
            number = len(self.sent) + 1
            self.sent[number] = (kind, key)
            arguments = {"kind": kind, "key": key, "number": number, "update_fields": {str(number)}}
            sender.do(lambda arguments=arguments: step.send(sender=None, using=self.world.alias, **arguments))
            pk = sender.do(lambda: self.rows.order_by("-pk").values_list("pk", flat=True)[0])
            self.numbers[pk], self.covers[pk] = number, frozenset({number})
            sender.blocks[-1][1].append(number)

    def begin_savepoint(self, sender: Sender, data: Any) -> None:
        sender.enter()

    def end_savepoint(self, sender: Sender, data: Any) -> None:
        sender.leave(keep=data.draw(st.booleans(), "keep"))

    def commit(self, sender: Sender, data: Any) -> None:
        while sender.blocks:
            self.committed.update(sender.leave(keep=True))

    def roll_back(self, sender: Sender, data: Any) -> None:
        while sender.blocks:
            sender.leave(keep=False)

    def call_hook(self, late: Late, data: Any) -> None:
        """Let a sender, or a worker, that was slow do what it does after a commit."""
        self.world.late.remove(late)
        with self.world.hooks("at once"):
            late.act()

    def lose_hook(self, late: Late, data: Any) -> None:
        """Let one have died before it could, and before all that it was to do after that."""
        for lost in filter(late.is_of, list(self.world.late)):
            self.world.late.remove(lost)
            self.world.lost.add(lost.lane)

    # Workers ---------------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> list[Run]:
        """Runs that still have their delivery, and have more to do than to commit."""
        return [run for run in self.running if not run.is_dead and not run.has_completed]

    def deliver(self, message: Message, data: Any = None) -> None:
        self.world.broker.remove(message)
        busy = {run.worker for run in self.running}
        worker = next(worker for worker in self.world.workers if worker not in busy)
        run = Run(worker=worker, pk=message.body["id"])
        lane = self.rows.filter(pk=run.pk).values_list("lane", flat=True).first()
        waiting = list(self.rows.waiting(lane).values_list("pk", flat=True)) if lane else []
        if run.begin(lambda: self.world.run(message)):
            self.running.append(run)
            self.check_start(run, waiting)
        else:
            assert "SUCCESS" == run.ending.result()

    def deliver_copy(self, message: Message, data: Any) -> None:
        """Deliver what will be delivered again, now or much later."""
        self.world.broker.append(message)
        self.deliver(message)

    def check_start(self, run: Run, waiting: list[int]) -> None:
        """What runs is committed and nowhere else under way, has its turn, and stands for all that waits behind it."""
        others = [other for other in self.running if other is not run and not other.is_dead]
        assert run.pk not in {other.pk for other in others}
        assert run.lane[0] == "plain" or run.lane not in {other.lane for other in others}
        assert run.lane[0] not in BLOCKING or run.lane not in self.failed.values()
        assert run.lane[0] == "plain" or run.pk == self.turns.setdefault(run.lane, run.pk)
        folded = waiting if run.lane[0] in FOLDING else []
        assert self.covers[run.pk].union(*(self.covers[pk] for pk in folded)) == run.covers
        assert {run.lane} == {self.sent[number] for number in run.covers}
        assert run.covers <= self.committed
        assert len(run.covers) - 1 == run.coalesced
        assert self.numbers[max([run.pk, *folded])] == run.number
        self.covers[run.pk], self.numbers[run.pk] = run.covers, run.number

    def succeed(self, run: Run, data: Any = None) -> None:
        self.end(run, "succeed")

    def complete(self, run: Run, data: Any) -> None:
        """Do all that success takes, but for the commit; elsewhere than on PostgreSQL some statements wait for that."""
        assert "completed" == run.go_on("complete")
        run.has_completed = True

    def try_later(self, run: Run, data: Any) -> None:
        self.end(run, "retry")

    def fail(self, run: Run, data: Any) -> None:
        self.end(run, "fail")

    def end(self, run: Run, order: str) -> None:
        """Let a run end; what a dead one does is for nothing."""
        self.running.remove(run)
        assert "ended" == run.go_on(order)
        outcome = run.ending.result()
        assert ("IGNORED" if run.is_dead else OUTCOMES[order]) == outcome
        if outcome == "SUCCESS":
            self.ended.update(run.covers)
            self.turns.pop(run.lane, None)
        if outcome == "FAILURE":
            self.give_up(run)

    def crash(self, run: Run, data: Any) -> None:
        """Let the lease of a run end, while the worker itself goes on."""
        run.is_dead = True
        row = self.rows.filter(pk=run.pk)
        row.update(due_at=In(-1))
        self.upkeep.expire()
        if State.FAILED == row.get().state:
            self.give_up(run)

    def give_up(self, run: Run) -> None:
        """Note a failure, and the end of a turn, unless it blocks the key."""
        self.failed[run.pk] = run.lane
        if run.lane[0] not in BLOCKING:
            self.turns.pop(run.lane, None)

    # The relay, and people -------------------------------------------------------------------------------------------

    def claim(self, limit: int, data: Any = None) -> None:
        """Let time pass until all is due, the oldest first or last, and a relay claim some of it."""
        due = self.rows.filter(state=State.READY, due_at__isnull=False).order_by("pk" if limit % 3 else "-pk")
        if ids := list(due.values_list("pk", flat=True)):
            moments = Case(*(When(pk=pk, then=In(place - 1_000_000)) for place, pk in enumerate(ids)))
            self.rows.filter(pk__in=ids).update(due_at=moments, created_at=In(-1_000_000))
        if (claimed := self.rows.claim(limit, 30)).rows:
            self.claims.append(claimed)

    def publish(self, claimed: Any, data: Any = None) -> None:
        """Let a relay publish what it has claimed."""
        self.claims.remove(claimed)
        self.world.relay._publish(self.world.alias, claimed)

    def sweep(self, relay: Any = None, data: Any = None) -> None:
        """Let a relay lead strays."""
        self.upkeep.lead_strays()
        self.world.lost.clear()

    def lose_message(self, message: Message, data: Any) -> None:
        self.world.broker.remove(message)
        self.world.missing.append(message)

    def suspect(self, relay: Any = None, data: Any = None) -> None:
        """Let a relay take all that was published for lost."""
        sent = list(self.rows.filter(state=State.SENT).values_list("pk", "queue"))
        self.rows.filter(pk__in=[pk for pk, _ in sent]).update(sent_at=In(-1_000_000))
        for queue in sorted({queue for _, queue in sent}):
            self.rows.sweep(queue, In(0), 1000)

    def retry(self, pk: int, data: Any = None) -> None:
        assert 1 == self.rows.filter(pk=pk).retry()
        del self.failed[pk]

    def discard(self, pk: int, data: Any) -> None:
        assert 1 == self.rows.filter(pk=pk).discard()
        lane = self.failed.pop(pk)
        if self.turns.get(lane) == pk:
            del self.turns[lane]
        self.ended.update(self.covers[pk])

    # What is true always, and in the end -----------------------------------------------------------------------------

    def check(self) -> None:
        """Nothing is out of turn, and nothing waits that nobody will look at."""
        columns = ("pk", "state", "lane", "slot", "due_at", "token")
        rows = list(self.rows.order_by("pk").values_list(*columns, named=True))
        slots = {row.pk: row.slot for row in rows if row.slot is not None}
        waiting = [row for row in rows if row.lane is not None and row.slot is None and row.state == State.READY]
        for row in rows:
            if row.pk in slots.keys() - self.slots.keys():  # it has its turn since this step
                assert not [other.pk for other in waiting if other.lane == row.lane and other.pk < row.pk]
            if row.state in (State.SENT, State.RUNNING):
                assert row.lane == row.slot
            if row.state == State.READY and row.lane == row.slot:
                assert row.due_at is not None
        messages = {(message.body["id"], message.body["token"]) for message in self.world.broker + self.world.missing}
        assert {(row.pk, row.token) for row in rows if row.state == State.SENT} <= messages
        looked_at = {row.lane for row in waiting if row.due_at is not None} | set(slots.values())
        excused = {late.lane for late in self.world.late} | self.world.lost
        assert {row.lane for row in waiting} <= looked_at | excused
        self.slots = slots

    def teardown(self) -> None:
        try:
            if self.is_sound:
                self.finish()
        finally:
            self.clear()

    def finish(self) -> None:
        """Commit all; lose all messages and hooks; from now on let everything succeed. Then nothing is left."""
        with self.world.hooks("lost"):
            for sender in self.open:
                self.commit(sender, None)
            for run in list(self.running):
                self.succeed(run)
        for memory in (self.world.broker, self.world.late, self.claims):
            memory.clear()
        for pk in list(self.failed):
            self.retry(pk)
        self.suspect()
        self.sweep()
        for _ in range(2):
            self.claim(1000)
            for claimed in list(self.claims):
                self.publish(claimed)
            while self.world.broker:
                self.deliver(self.world.broker[0])
                for run in list(self.running):
                    self.succeed(run)
        assert not self.rows.exists()
        assert dict.fromkeys(self.committed, 1) == self.ended

    def clear(self) -> None:
        """Leave nothing behind; senders first, for whose transactions SQLite's workers would wait."""
        with self.world.hooks("lost"):
            for sender in self.open:
                self.roll_back(sender, None)
            for run in self.running:
                run.go_on("fail")
        self.world.clear()


EXAMPLES = {"default": 40, "postgres": 30, "mariadb": 20}


def run(world: World, focus: Focus, **options: Any) -> None:
    """Run many schedules."""
    chosen = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, **options)
    run_state_machine_as_test(lambda: Schedule(world, focus), settings=chosen)


@each_database("default", "postgres", "mariadb")
def test_schedules(world: World, alias: str) -> None:
    """Whatever is sent, committed, rolled back, lost, delivered twice, failed or crashed, and in whichever order: what
    was committed is done, once and in turn, and nothing else is."""
    run(world, Focus(), max_examples=EXAMPLES[alias], stateful_step_count=60)


# What a wrong protocol does ------------------------------------------------------------------------------------------


def with_an_ungated_fold(patch: pytest.MonkeyPatch) -> None:
    """What waits behind a delivery is folded into it whether or not a message has opened it."""
    original = execution.opened

    def opened(task: Any, reference: Any) -> Any:
        held, rows = original(task, reference), deliveries(reference.alias)
        lane = rows.filter(pk=reference.id, folds=True).values_list("lane", flat=True).first()
        if held is None and lane is not None:
            rows.filter(pk__in=list(rows.waiting(lane).values_list("pk", flat=True))).erase()
        return held

    patch.setattr(execution, "opened", opened)


def with_turns_by_age(patch: pytest.MonkeyPatch) -> None:
    """A delivery has its turn when there is no older one of its lane, and no other holds a slot then."""

    def take_turn(self: Any, pk: int, lane: str) -> bool:
        older = self.filter(lane=lane, pk__lt=pk, state__in=(State.READY, State.SENT, State.RUNNING))
        row = self.filter(pk=pk, state=State.READY)
        return not older.exists() and row.update(lane=None, state=State.SENT, sent_at=In(0), due_at=None) > 0

    patch.setattr(DeliveryQuerySet, "take_turn", take_turn)


def with_turns_out_of_order(patch: pytest.MonkeyPatch) -> None:
    """A sender's delivery has its turn when no other has it, whatever waits before it."""
    ordered = turns.texts_for

    def texts_for(connection: Any) -> Any:
        found = ordered(connection)
        return replace(found, free=found.free.replace("AND id < %s", "AND id < %s AND 1 = 0"))

    patch.setattr(turns, "texts_for", texts_for)


def with_the_youngest_first(patch: pytest.MonkeyPatch) -> None:
    """The delivery that waits shortest is the next."""
    original = DeliveryQuerySet.next_of

    def next_of(self: Any, lane: str) -> Any | None:
        return original(self, lane) and self.waiting(lane).order_by("-lane", "-pk").first()

    patch.setattr(DeliveryQuerySet, "next_of", next_of)


def with_the_turn_passed_on_too_early(patch: pytest.MonkeyPatch) -> None:
    """The next has its turn in the transaction that completes the one before it."""
    complete, publish_next = Held._completed, hold.publish_next

    def complete_and_pass(held: Held) -> int:
        count = complete(held)
        if held.known.lane is not None:
            held.lease.row().pass_turn(held.known.lane)
        return count

    patch.setattr(Held, "_completed", complete_and_pass)
    patch.setattr(hold, "publish_next", lambda *args: publish_next(*args) if here.run.order == "fail" else None)


def with_a_turn_given_away_at_a_retry(patch: pytest.MonkeyPatch) -> None:
    """A delivery that is to be retried waits among the others of its lane."""
    original = Held._change
    patch.setattr(Held, "_change", lambda held, **changes: original(held, **changes, slot=None))


def without_a_turn_after_failures(patch: pytest.MonkeyPatch) -> None:
    """A failed delivery is parked, and nobody is told."""
    publish_next = hold.publish_next
    patch.setattr(hold, "publish_next", lambda *args: None if here.run.order == "fail" else publish_next(*args))


def without_a_turn_after_discards(patch: pytest.MonkeyPatch) -> None:
    """What is discarded takes the key along."""
    patch.setattr(DeliveryQuerySet, "drop", DeliveryQuerySet.erase)


def without_a_block(patch: pytest.MonkeyPatch) -> None:
    """A failed delivery is always parked."""
    patch.setattr(ReceiverTask, "blocks_key", False)


def without_a_fence(patch: pytest.MonkeyPatch) -> None:
    """A worker whose lease is over ends the delivery that another one runs."""
    patch.setattr(Lease, "row", lambda lease: deliveries(lease.using).filter(pk=lease.pk, state=State.RUNNING))
    complete = DeliveryQuerySet.complete
    patch.setattr(DeliveryQuerySet, "complete", lambda rows, pk, token: complete(rows, pk, rows.get(pk=pk).token))


def without_a_sweep(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks for strays."""
    patch.setattr(upkeep.Upkeep, "lead_strays", lambda upkeep: False)


def with_lost_followers(patch: pytest.MonkeyPatch) -> None:
    """What is folded is not what is deleted: one more that waits goes with it."""
    original = DeliveryQuerySet.followers

    def followers(self: Any, lane: str, limit: int) -> list[Any]:
        found = original(self, lane, limit)
        self.filter(pk__in=[row.pk for row in found[1:]]).erase()
        return found[:1]

    patch.setattr(DeliveryQuerySet, "followers", followers)


IN_TURN = Focus(kinds=("blocking", "parking"))
# Each with what it is about, so that it is soon found.
CONTROLS = {
    with_an_ungated_fold: Focus(kinds=("coalescing", "folding"), often=("deliver_copy",)),
    with_turns_by_age: IN_TURN,
    with_turns_out_of_order: IN_TURN,
    with_the_youngest_first: IN_TURN,
    with_the_turn_passed_on_too_early: IN_TURN,
    with_a_turn_given_away_at_a_retry: Focus(kinds=("parking",), often=("try_later", "fail", "retry")),
    with_lost_followers: Focus(kinds=FOLDING),
    without_a_turn_after_failures: Focus(kinds=("parking",), often=("fail",)),
    without_a_turn_after_discards: Focus(kinds=("blocking",), often=("fail", "discard")),
    without_a_block: Focus(kinds=BLOCKING, often=("fail",)),
    without_a_fence: Focus(kinds=("plain",), often=("crash", "publish")),
    without_a_sweep: IN_TURN,
}


each_control = pytest.mark.parametrize(
    ("variant", "focus"), CONTROLS.items(), ids=[variant.__name__ for variant in CONTROLS]
)


@each_database("postgres")
@each_control
def test_control(world: World, variant: Callable[[pytest.MonkeyPatch], None], focus: Focus) -> None:
    """Schedules find whatever is missing from the protocol."""
    find(world, variant, focus)


@pytest.mark.exhaustive
@each_database("default", "mariadb")
@each_control
def test_control_elsewhere(world: World, variant: Callable[[pytest.MonkeyPatch], None], focus: Focus) -> None:
    """So they do on the other databases."""
    find(world, variant, focus)


def find(world: World, variant: Callable[[pytest.MonkeyPatch], None], focus: Focus) -> None:
    """Run schedules without a part of the protocol until one fails."""
    with pytest.MonkeyPatch.context() as patch:
        variant(patch)
        with pytest.raises(AssertionError):
            run(
                world,
                focus,
                phases=[Phase.generate],
                derandomize=True,
                database=None,
                report_multiple_bugs=False,
                max_examples=300,
            )
