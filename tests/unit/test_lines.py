"""The publisher's threads: lent to one caller at a time, ended when they are left, with a connection that may die."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import QueueNotFound, SoftTimeLimitExceeded
from django.db import connection as database

from django_celery_signals import PublishError, PublishTimeout
from django_celery_signals import lines as module
from django_celery_signals.ahead import Doubt
from django_celery_signals.lines import Line, Lines
from tests.brokers import Broker
from tests.parameters import each_broker
from tests.publishing import do_nothing, failing
from tests.waiting import wait_until


@pytest.fixture
def lines(celery_app: Celery) -> Iterator[Lines]:
    """The lines of the app."""
    lines = Lines(celery_app)
    yield lines
    lines.close()


@pytest.fixture
def line(celery_app: Celery) -> Iterator[Line]:
    """One line."""
    line = Line(celery_app)
    yield line
    line.leave()


def outcome(done: Future[None]) -> BaseException | None:
    """Return what went wrong, if anything did."""
    return done.exception(10)


def text_for(line: Line, broker: Broker) -> Callable[[Any], Any]:
    """Return a publication of a text into the broker's queue."""
    queue = line.app.amqp.queues[broker.queue]
    return lambda producer: producer.publish("text", routing_key=broker.queue, declare=[queue])


def doubt(name: str) -> Doubt:
    return Doubt(name, list)


def go_ahead(line: Line, broker: Broker) -> None:
    """Publish as ever, by which the line connects, until a message goes ahead without being waited for."""
    publish = text_for(line, broker)

    def goes() -> bool:
        went = line.at_once(publish, doubt("ahead"))
        if not went:
            assert outcome(line.submit(publish)) is None
        return went

    wait_until(goes, what="a message to go ahead")


# A line ------------------------------------------------------------------------------------------------------------


def test_publication_gets_a_producer_and_the_context(line: Line) -> None:
    """A publication runs in the line's thread, with a producer and the caller's context variables."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nobody's")
    seen: list[Any] = []
    variable.set("the caller's")

    def publish(producer: Any) -> None:
        seen.extend([producer.channel.connection.client.transport_cls, variable.get(), threading.current_thread().name])

    assert outcome(line.submit(publish)) is None
    assert ["memory", "the caller's", "django-celery-signals-publisher"] == seen


def test_connection_is_kept(line: Line) -> None:
    """One connection serves one publication after the other."""
    producers: list[Any] = []

    assert [None, None] == [outcome(line.submit(producers.append)) for _ in range(2)]
    assert producers[0] is producers[1]


def test_what_went_wrong_is_handed_over(line: Line) -> None:
    """Whatever a publication raises comes out where it was asked for; the line goes on, over a new connection."""
    error, producers = SystemExit(3), []

    assert outcome(line.submit(producers.append)) is None
    assert error is outcome(line.submit(failing(error)))
    assert outcome(line.submit(producers.append)) is None
    assert producers[0] is not producers[1]


def test_a_line_that_is_left_ends(line: Line) -> None:
    """A line that is left lets go of its connection, and publishes nothing that comes later."""
    published: list[Any] = []
    assert outcome(line.submit(do_nothing)) is None

    line.leave()
    late = line.submit(published.append)

    wait_until(lambda: line._connection is None, what="the connection to be released")
    assert not late.done()
    assert [] == published


def test_cancelled_work_is_not_published(line: Line) -> None:
    """A publication whose caller gave up before it began is skipped; the line goes on."""
    running, end, published = threading.Event(), threading.Event(), []

    def first(producer: Any) -> None:
        running.set()
        end.wait(10)

    line.submit(first)
    assert running.wait(10)
    line.submit(lambda _: published.append("given up")).cancel()
    last = line.submit(lambda _: published.append("last"))
    end.set()

    assert outcome(last) is None
    assert ["last"] == published


@pytest.mark.django_db(transaction=True)
def test_database_connections_are_looked_after(line: Line) -> None:
    """A connection to a database that a listener to Celery's signals uses is closed when it is old or broken."""
    kept: list[Any] = []

    def publish(producer: Any) -> None:
        database.ensure_connection()
        kept.append(database.connection)

    assert [None, None] == [outcome(line.submit(publish)) for _ in range(2)]
    assert kept[0] is not kept[1]  # CONN_MAX_AGE is 0


# A dead connection -------------------------------------------------------------------------------------------------


class Recoverable:
    """A connection of the memory transport, which knows no errors, with those of a network."""

    recoverable_connection_errors = (ConnectionError,)
    recoverable_channel_errors = ()

    def __init__(self, connection: Any) -> None:
        self.release = connection.release


def test_dead_kept_connection_is_replaced(line: Line) -> None:
    """When a kept connection turns out to be dead, the message is published over a new one, and nobody is told."""
    producers: list[Any] = []

    def publish(producer: Any) -> None:
        producers.append(producer)
        if len(producers) == 2:
            raise ConnectionResetError("The broker was restarted.")

    assert outcome(line.submit(publish)) is None
    line._connection = Recoverable(line._connection)  # type: ignore[assignment]
    assert outcome(line.submit(publish)) is None

    assert 3 == len(producers)
    assert producers[0] is producers[1]
    assert producers[1] is not producers[2]


def test_new_connection_is_not_replaced(line: Line) -> None:
    """A connection that fails at its first publication is not tried a second time."""
    tries: list[Any] = []

    def publish(producer: Any) -> None:
        tries.append(producer)
        raise ConnectionResetError("The broker hangs up.")

    assert isinstance(outcome(line.submit(publish)), ConnectionResetError)
    assert 1 == len(tries)


def test_dead_connection_of_a_left_line_is_not_replaced(line: Line) -> None:
    """A line that was left does not publish again what its caller has given up."""
    tries: list[Any] = []

    def publish(producer: Any) -> None:
        tries.append(producer)
        line.leave()
        raise ConnectionResetError("The broker was restarted.")

    assert outcome(line.submit(do_nothing)) is None
    line._connection = Recoverable(line._connection)  # type: ignore[assignment]

    assert isinstance(outcome(line.submit(publish)), ConnectionResetError)
    assert 1 == len(tries)


def test_connection_that_fails_to_close(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    """An error while closing a connection that failed anyway is only worth a line for debugging."""
    assert outcome(line.submit(do_nothing)) is None
    connection = line._connection
    assert connection is not None
    release = connection.release
    connection.release = lambda: failing(OSError("Already gone."))(None)  # type: ignore[method-assign]

    with caplog.at_level(logging.DEBUG, logger=module.__name__):
        assert isinstance(outcome(line.submit(failing(QueueNotFound("no such queue")))), QueueNotFound)
    release()

    assert "Already gone." in caplog.text


# The lines of an app -----------------------------------------------------------------------------------------------


def test_callers_one_after_the_other_share_a_line(lines: Lines) -> None:
    """A line that came back is lent again."""
    with lines.line(1) as first:
        pass
    with lines.line(1) as second:
        pass

    assert first is second


def test_callers_at_the_same_time_have_lines_of_their_own(lines: Lines) -> None:
    """A line is lent to one caller only; both come back."""
    with lines.line(1) as one, lines.line(1) as other:
        assert one is not other

    assert {one, other} == set(lines.idle)


def test_there_are_only_so_many_lines(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """When all lines are lent, a caller waits for one, but no longer than it said."""
    monkeypatch.setattr(lines, "_free", threading.BoundedSemaphore(1))
    with ThreadPoolExecutor(1) as pool, lines.line(1) as first:
        with pytest.raises(PublishTimeout, match="The broker is slow"), lines.line(0.01):
            pass
        waiting = pool.submit(lines.line(10).__enter__)

    assert first is waiting.result(10)


def test_who_gives_up_leaves_the_line(lines: Lines, stuck: Callable[[Any], None]) -> None:
    """A line whose caller gives up, for whatever reason, is lent to nobody else."""
    lent: list[Line] = []

    def give_up() -> None:
        with lines.line(1) as line:
            line.submit(stuck)
            lent.append(line)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        give_up()
    with lines.line(1) as other:
        pass

    assert lent[0].left
    assert lent[0] is not other


def test_lines_that_are_closed_let_go(lines: Lines) -> None:
    """When the lines are closed all of them end, those that are lent as soon as they come back."""
    with lines.line(1) as lent:
        with lines.line(1) as idle:
            pass
        lines.close()
        assert [False, True] == [lent.left, idle.left]

    assert lent.left
    assert [] == lines.idle


def test_thread_that_cannot_be_started(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no further thread can be started, the message is refused, with the reason; later ones are not (H31)."""
    with monkeypatch.context() as short_of_memory:
        short_of_memory.setattr(threading.Thread, "start", lambda _: failing(RuntimeError("can't start new thread"))(_))
        with pytest.raises(PublishError, match="can't start new thread"), lines.line(1):
            pass

    with lines.line(1) as line:
        assert outcome(line.submit(do_nothing)) is None


# Without waiting ---------------------------------------------------------------------------------------------------


def told(line: Line) -> list[str]:
    """Return of which messages there are doubts, once."""
    found = [one.about for one in line.doubts]
    line.doubts.clear()
    return found


@each_broker("rabbitmq")
def test_what_is_not_waited_for_arrives(broker: Broker, line: Line) -> None:
    """Over a connection that is there, RabbitMQ is handed a message in the caller's own thread."""
    go_ahead(line, broker)
    before = broker.message_count()
    assert line.at_once(text_for(line, broker), doubt("another"))

    wait_until(lambda: broker.message_count() == before + 1, what="the message")
    assert [] == told(line)


@each_broker("rabbitmq")
def test_a_connection_that_breaks_leaves_doubts(broker: Broker, line: Line) -> None:
    """What was not confirmed when a connection broke may be lost; the line says so, and its thread connects anew."""

    def breaks() -> bool:
        go_ahead(line, broker)
        assert not line.at_once(failing(OSError("gone")), doubt("this one"))
        return told(line) == ["ahead"]

    wait_until(breaks, what="a connection to break before the confirm is heard")
    assert not line.at_once(do_nothing, doubt("this one"))
    go_ahead(line, broker)


@each_broker("rabbitmq")
@pytest.mark.parametrize("error", [SoftTimeLimitExceeded(), KeyboardInterrupt()], ids=["soft", "keyboard"])
def test_a_time_limit_is_the_callers(broker: Broker, line: Line, error: BaseException) -> None:
    """What ends the caller's work from outside while something is handed over ends not only that."""

    def ends() -> bool:
        go_ahead(line, broker)
        with pytest.raises(type(error)):
            line.at_once(failing(error), doubt("this one"))
        return told(line) == ["ahead"]

    wait_until(ends, what="the caller to be ended before the confirm is heard")
    assert not line.at_once(do_nothing, doubt("this one"))


@each_broker("rabbitmq")
def test_a_line_that_is_left_tells_what_is_open(broker: Broker, line: Line) -> None:
    """Its connections go with it, and with them what nobody has confirmed."""
    go_ahead(line, broker)
    line.leave()

    wait_until(lambda: "ahead" in [one.about for one in line.doubts], what="the doubt")


@each_broker("rabbitmq")
def test_the_end_of_a_process(broker: Broker, celery_app: Celery) -> None:
    """What went ahead is waited for."""
    lines = Lines(celery_app)
    with lines.line(2.0) as line, lines.line(2.0):  # another one, which has no such connection
        go_ahead(line, broker)

    lines.settle(time.monotonic() + 5)
    lines.close()
    wait_until(lambda: line._ahead is None, what="the end of the line")

    assert [] == lines.take_doubts()


@each_broker("rabbitmq")
@pytest.mark.parametrize("given", [{"confirm_publish": False}, {"write_timeout": 60.0}], ids=str)
def test_nobody_goes_ahead(broker: Broker, celery_app: Celery, given: dict[str, Any]) -> None:
    """Where a project wants no confirms, or lets a write take long, every message is the thread's."""
    celery_app.conf.broker_transport_options = given
    line = Line(celery_app)

    for _ in range(3):
        assert not line.at_once(do_nothing, doubt("this one"))
        assert outcome(line.submit(do_nothing)) is None
    line.leave()


@each_broker("rabbitmq")
def test_no_other_connection(broker: Broker, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the broker has no room for it, every message is the thread's, until that connects anew."""

    def refuse(app: Celery) -> Any:
        raise OSError("There are too many.")

    with monkeypatch.context() as patch:
        patch.setattr(module, "Ahead", refuse)
        for _ in range(3):
            assert not line.at_once(do_nothing, doubt("this one"))
            assert outcome(line.submit(do_nothing)) is None
    assert not line.at_once(do_nothing, doubt("this one"))

    assert outcome(line.submit(failing(ValueError("This breaks the connection.")))) is not None
    go_ahead(line, broker)
