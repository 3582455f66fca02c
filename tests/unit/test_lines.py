"""The publisher's threads: lent to one caller at a time, ended when they are left, with a connection that may die."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import QueueNotFound, SoftTimeLimitExceeded
from django.db import connection as database

from django_celery_signals import PublishError, PublishTimeout
from django_celery_signals import lines as module
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


def sent_ahead(line: Line, broker: Broker) -> list[str]:
    """Publish one message as ever, by which the line connects, and another one without waiting; return what is lost."""
    lost: list[str] = []
    app = line.app

    def publish(text: str) -> Callable[[Any], Any]:
        return lambda producer: producer.publish(
            text, routing_key=broker.queue, declare=[app.amqp.queues[broker.queue]]
        )

    assert not line.at_once(publish("too early"), lambda: lost.append("too early"))
    assert outcome(line.submit(publish("first"))) is None
    assert line.at_once(publish("second"), lambda: lost.append("second"))
    wait_until(lambda: broker.message_count() == 2, what="both messages")
    return lost


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


@each_broker("rabbitmq")
def test_what_is_not_waited_for_arrives(broker: Broker, line: Line) -> None:
    """Over a connection that is there, RabbitMQ is handed a message in the caller's own thread."""
    assert [] == sent_ahead(line, broker)
    assert [] == line.doubts()


@each_broker("rabbitmq")
def test_a_connection_that_breaks_leaves_doubts(broker: Broker, line: Line) -> None:
    """What was not confirmed when a connection broke may be lost; the line says so, and its thread connects anew."""
    lost = sent_ahead(line, broker)

    assert not line.at_once(failing(OSError("gone")), do_nothing_about_it)
    for doubt in line.doubts():
        doubt()

    assert ["second"] == lost
    assert [] == line.doubts()
    assert not line.at_once(do_nothing, do_nothing_about_it)
    assert outcome(line.submit(do_nothing)) is None
    assert line.at_once(do_nothing, do_nothing_about_it)


@each_broker("rabbitmq")
def test_a_time_limit_is_the_callers(broker: Broker, line: Line) -> None:
    """A soft time limit that is over while something is handed over ends the caller's work, not only that."""
    sent_ahead(line, broker)

    with pytest.raises(SoftTimeLimitExceeded):
        line.at_once(failing(SoftTimeLimitExceeded()), do_nothing_about_it)


@each_broker("rabbitmq")
@pytest.mark.parametrize("confirms", [True, False])
def test_others_wait_for_their_confirm(broker: Broker, celery_app: Celery, confirms: bool) -> None:
    """A publication that is waited for is confirmed, unless the project wants none."""
    celery_app.conf.broker_transport_options = {} if confirms else {"confirm_publish": False}
    line, found = Line(celery_app), []

    assert outcome(line.submit(lambda producer: found.append(producer.channel))) is None
    line.leave()

    (channel,) = found
    assert confirms == (channel.basic_publish == channel.basic_publish_confirm)


@each_broker("rabbitmq")
@pytest.mark.parametrize("timeout", [None, 60.0])
def test_who_may_hang_is_not_waited_for(broker: Broker, celery_app: Celery, timeout: float | None) -> None:
    """Where the project lets a write take longer than PUBLISH_TIMEOUT, or for ever, only a thread is safe."""
    celery_app.conf.broker_transport_options = {"write_timeout": timeout}
    line = Line(celery_app)

    assert outcome(line.submit(do_nothing)) is None
    assert not line.at_once(do_nothing, do_nothing_about_it)
    line.leave()


def do_nothing_about_it() -> None:
    """Leave a message that may be lost alone."""
