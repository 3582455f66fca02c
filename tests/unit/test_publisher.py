"""The publisher: one line per app, bounded in time, a circuit breaker, and a kept connection that may have died."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.exceptions import NotAllowed, PreconditionFailed
from celery import Celery
from celery.exceptions import QueueNotFound
from django.test import override_settings
from kombu.exceptions import OperationalError

from django_celery_signals import PublishError, PublishTimeout
from django_celery_signals import publisher as module
from django_celery_signals.publisher import Breaker, Line, Publisher, connection_for, project_app, publisher
from tests.waiting import wait_until

TIMEOUT = 0.3
SHORT = override_settings(DJANGO_CELERY_SIGNALS={"PUBLISH_TIMEOUT": TIMEOUT})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time as the breaker sees it, in seconds."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def own() -> Iterator[Publisher]:
    """A publisher of the test's own."""
    own = Publisher()
    yield own
    own.close()


@pytest.fixture
def stuck() -> Iterator[Callable[[Any], None]]:
    """A publication that does not come back before the test ends."""
    end = threading.Event()

    def publish(producer: Any) -> None:
        end.wait(30)

    yield publish
    end.set()


def do_nothing(producer: Any) -> None:
    """Publish nothing, successfully."""


def failing(error: BaseException) -> Callable[[Any], None]:
    def publish(producer: Any) -> None:
        raise error

    return publish


# The breaker -------------------------------------------------------------------------------------------------------


def test_breaker_begins_closed(clock: SimpleNamespace) -> None:
    """A breaker that saw no failure lets everybody try."""
    breaker = Breaker()

    assert [True, True, True] == [breaker.allows() for _ in range(3)]


def test_breaker_opens_for_longer_and_longer(clock: SimpleNamespace) -> None:
    """Each failure doubles the pause, up to a limit (H31)."""
    breaker, pauses = Breaker(), []

    for _ in range(7):
        breaker.failed()
        start = clock.now
        while not breaker.allows():
            clock.now += 0.5
        pauses.append(clock.now - start)

    assert [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] == pauses


def test_breaker_lets_one_try_after_the_pause(clock: SimpleNamespace) -> None:
    """Of several callers after the pause only the first may try, until the next pause is over."""
    breaker = Breaker()
    breaker.failed()
    clock.now += 1.0

    assert [True, False, False] == [breaker.allows() for _ in range(3)]

    clock.now += 1.0
    assert [True, False] == [breaker.allows() for _ in range(2)]


def test_breaker_closes_at_the_first_success(clock: SimpleNamespace) -> None:
    """After a success everybody may try again, and the next pause is the first one's length."""
    breaker = Breaker()
    breaker.failed()
    breaker.failed()
    breaker.succeeded()

    assert [True, True] == [breaker.allows() for _ in range(2)]

    breaker.failed()
    clock.now += 1.0
    assert breaker.allows()


# A publication -----------------------------------------------------------------------------------------------------


def test_publication_gets_a_producer_and_the_context(celery_app: Celery, own: Publisher) -> None:
    """A publication runs in the publisher's thread, with a producer and the caller's context variables."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nobody's")
    seen: list[Any] = []
    variable.set("the caller's")

    def publish(producer: Any) -> None:
        seen.extend([producer.channel.connection.client.transport_cls, variable.get(), threading.current_thread().name])

    own.publish(celery_app, publish)

    assert ["memory", "the caller's", "django-celery-signals-publisher"] == seen


def test_publications_of_a_thread_keep_their_order(celery_app: Celery, own: Publisher) -> None:
    """Threads share one connection, everything is published once, and each thread's order is kept (H37)."""
    published: list[tuple[int, int]] = []

    def publish_all(thread: int) -> None:
        for number in range(25):
            own.publish(celery_app, lambda _, number=number: published.append((thread, number)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(publish_all, range(8)))

    assert sorted((thread, number) for thread in range(8) for number in range(25)) == sorted(published)
    for thread in range(8):
        assert list(range(25)) == [number for who, number in published if who == thread]


def test_connection_is_kept(celery_app: Celery, own: Publisher) -> None:
    """One connection serves one publication after the other."""
    producers: list[Any] = []

    own.publish(celery_app, producers.append)
    own.publish(celery_app, producers.append)

    assert producers[0] is producers[1]


def test_closed_publisher_connects_again(celery_app: Celery, own: Publisher) -> None:
    """After close() the next publication opens a new connection, and the old thread ends."""
    producers: list[Any] = []
    own.publish(celery_app, producers.append)
    line = own._lines[id(celery_app)]

    own.close()
    own.publish(celery_app, producers.append)

    assert producers[0] is not producers[1]
    wait_until(lambda: line._connection is None, what="the old connection to be released")


def test_each_app_has_a_line(celery_app: Celery, own: Publisher) -> None:
    """Messages of two apps go over two connections; an app that lies where another one lay gets a new one."""
    producers: list[Any] = []
    second = Celery("second", broker="memory://", set_as_current=False)
    try:
        own.publish(celery_app, producers.append)
        own.publish(second, producers.append)
        first_line = own._lines[id(celery_app)]
        first_line.app = second
        own.publish(celery_app, producers.append)
    finally:
        second.close()
    first_line.leave()

    assert 3 == len({id(producer) for producer in producers})


# Failures ----------------------------------------------------------------------------------------------------------


@SHORT
def test_timeout_leaves_the_line(celery_app: Celery, own: Publisher, stuck: Callable[[Any], None]) -> None:
    """A publication that does not come back in time is left behind with its thread; the next one gets a new thread."""
    with pytest.raises(PublishTimeout, match=r"within 0\.3 s"):
        own.publish(celery_app, stuck)
    left = own._lines[id(celery_app)]

    own.breaker.succeeded()
    own.publish(celery_app, do_nothing)

    assert left.left
    assert left is not own._lines[id(celery_app)]


def test_timeout_of_one_publication(celery_app: Celery, own: Publisher, stuck: Callable[[Any], None]) -> None:
    """A publication may be given less than PUBLISH_TIMEOUT, and the error says what it was given."""
    with pytest.raises(PublishTimeout, match=r"within 0\.1 s"):
        own.publish(celery_app, stuck, 0.1)


@SHORT
def test_timeout_opens_the_breaker(celery_app: Celery, own: Publisher, stuck: Callable[[Any], None]) -> None:
    """The next caller after a timeout is refused at once (H31)."""
    with pytest.raises(PublishTimeout):
        own.publish(celery_app, stuck)

    with pytest.raises(PublishError, match="circuit breaker") as caught:
        own.publish(celery_app, stuck)

    assert not isinstance(caught.value, PublishTimeout)


@SHORT
def test_what_waits_behind_a_stuck_publication_is_given_up(
    celery_app: Celery, own: Publisher, stuck: Callable[[Any], None]
) -> None:
    """Who waits behind a publication that does not come back times out as well, and is never published later."""
    published: list[str] = []

    def second() -> None:
        own.publish(celery_app, lambda _: published.append("late"))

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(own.publish, celery_app, stuck)
        wait_until(lambda: id(celery_app) in own._lines and own._lines[id(celery_app)]._connection, what="the first")
        line = own._lines[id(celery_app)]
        behind = pool.submit(second)
        assert isinstance(first.exception(10), PublishTimeout)
        assert isinstance(behind.exception(10), PublishTimeout)

    assert line.left
    assert [] == published


@SHORT
def test_timeouts_behind_one_publication_count_once(
    celery_app: Celery, own: Publisher, stuck: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait behind a publication that does not come back, the breaker is told once (H31)."""
    told: list[bool] = []
    monkeypatch.setattr(own.breaker, "failed", lambda: told.append(True))

    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(own.publish, celery_app, stuck) for _ in range(8)]

    assert {PublishTimeout} == {type(one.exception()) for one in waiting}
    assert [True] == told


def test_what_is_queued_behind_the_end_is_not_published(celery_app: Celery) -> None:
    """A line that was left takes no more work, and drops what it has (H31)."""
    running, end, published = threading.Event(), threading.Event(), []

    def first(producer: Any) -> None:
        running.set()
        end.wait(10)

    line = Line(celery_app)
    done = line.submit(first)
    assert running.wait(10)
    behind = line.submit(lambda _: published.append("late"))
    line.leave()
    end.set()

    assert done.exception(10) is None
    wait_until(lambda: line._connection is None, what="the connection to be released")
    assert not behind.done()
    assert [] == published


def test_cancelled_work_is_not_published(celery_app: Celery) -> None:
    """A publication whose caller gave up before it began is skipped; the line goes on."""
    running, end, published = threading.Event(), threading.Event(), []

    def first(producer: Any) -> None:
        running.set()
        end.wait(10)

    line = Line(celery_app)
    line.submit(first)
    assert running.wait(10)
    given_up = line.submit(lambda _: published.append("given up"))
    given_up.cancel()
    last = line.submit(lambda _: published.append("last"))
    end.set()

    assert last.exception(10) is None
    line.leave()
    assert ["last"] == published


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("away"),
        ConnectionRefusedError("refused"),
        TimeoutError("slow"),
        OSError("no route"),
        NotAllowed("no such vhost"),
    ],
)
def test_outage_opens_the_breaker(celery_app: Celery, own: Publisher, error: Exception) -> None:
    """An error that speaks of the broker is raised as PublishError, and keeps the next callers away (H31)."""
    with pytest.raises(PublishError, match=type(error).__name__) as caught:
        own.publish(celery_app, failing(error))

    assert error is caught.value.__cause__
    assert not own.breaker.allows()


@pytest.mark.parametrize("url", ["memory://", "redis://127.0.0.1", "amqp://127.0.0.1"])
@pytest.mark.parametrize(
    "error",
    [
        QueueNotFound("no such queue"),
        PreconditionFailed("another queue of that name"),
        TypeError("not JSON"),
        SystemExit(3),
    ],
)
def test_message_error_leaves_the_breaker_closed(
    celery_app: Celery, own: Publisher, error: BaseException, url: str
) -> None:
    """An error of one message is raised as PublishError, and stops no other message, whatever the transport."""
    celery_app.conf.broker_url = url
    with pytest.raises(PublishError, match=type(error).__name__):
        own.publish(celery_app, failing(error))

    published: list[Any] = []
    own.publish(celery_app, published.append)
    assert 1 == len(published)


def test_transport_that_is_not_installed(celery_app: Celery, own: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker whose client library is missing is a PublishError like any other, with the reason (H31)."""
    celery_app.conf.broker_url = "redis://127.0.0.1"
    monkeypatch.setattr("kombu.transport.redis.redis", None)

    with pytest.raises(PublishError, match="ImportError: Missing redis library"):
        own.publish(celery_app, lambda producer: producer.channel)


def test_message_error_closes_the_breaker(celery_app: Celery, own: Publisher, clock: SimpleNamespace) -> None:
    """Where one caller tries whether the broker is back, an error of its message says that it is (H31)."""
    own.breaker.failed()
    clock.now += 1.0

    with pytest.raises(PublishError, match="TypeError"):
        own.publish(celery_app, failing(TypeError("not JSON")))

    assert [True, True] == [own.breaker.allows() for _ in range(2)]


# From within -------------------------------------------------------------------------------------------------------


def test_publication_from_within_a_publication(celery_app: Celery, own: Publisher) -> None:
    """What is published from within a publication goes at once, over a connection of its own, and nobody waits."""
    producers: list[Any] = []

    def publish(producer: Any) -> None:
        own.publish(celery_app, producers.append)
        producers.append(producer)

    own.publish(celery_app, publish)

    assert 2 == len(set(map(id, producers)))
    assert not own._lines[id(celery_app)].left


def test_failure_from_within_a_publication(celery_app: Celery, own: Publisher) -> None:
    """An outage met from within a publication is raised there, and opens the breaker (H31)."""
    error = ConnectionRefusedError("refused")
    caught: list[PublishError] = []

    def publish(producer: Any) -> None:
        with pytest.raises(PublishError, match="ConnectionRefusedError") as failure:
            own.publish(celery_app, failing(error))
        caught.append(failure.value)
        assert not own.breaker.allows()

    own.publish(celery_app, publish)

    assert [error] == [failure.__cause__ for failure in caught]


def test_dead_kept_connection_is_replaced(celery_app: Celery, own: Publisher) -> None:
    """When a kept connection turns out to be dead, the message is published over a new one, and nobody is told."""
    producers: list[Any] = []

    def publish(producer: Any) -> None:
        producers.append(producer)
        if len(producers) == 2:
            raise ConnectionResetError("The broker was restarted.")

    own.publish(celery_app, publish)
    own._lines[id(celery_app)]._connection = _Recoverable(own._lines[id(celery_app)]._connection)  # type: ignore[assignment]
    own.publish(celery_app, publish)

    assert 3 == len(producers)
    assert producers[0] is producers[1]
    assert producers[1] is not producers[2]


def test_new_connection_is_not_replaced(celery_app: Celery, own: Publisher) -> None:
    """A connection that fails at its first publication is not tried a second time."""
    tries: list[Any] = []

    def publish(producer: Any) -> None:
        tries.append(producer)
        raise ConnectionResetError("The broker hangs up.")

    with pytest.raises(PublishError):
        own.publish(celery_app, publish)

    assert 1 == len(tries)


def test_dead_connection_of_a_left_line_is_not_replaced(celery_app: Celery) -> None:
    """A line that was left does not publish again what its caller has given up."""
    tries: list[Any] = []

    def publish(producer: Any) -> None:
        tries.append(producer)
        line.leave()
        raise ConnectionResetError("The broker was restarted.")

    line = Line(celery_app)
    assert line.submit(do_nothing).exception(10) is None
    line._connection = _Recoverable(line._connection)  # type: ignore[assignment]

    assert isinstance(line.submit(publish).exception(10), ConnectionResetError)
    assert 1 == len(tries)


class _Recoverable:
    """A connection of the memory transport, which knows no errors, with those of a network."""

    recoverable_connection_errors = (ConnectionError,)
    recoverable_channel_errors = ()

    def __init__(self, connection: Any) -> None:
        self.release = connection.release


def test_connection_that_fails_to_close(celery_app: Celery, own: Publisher, caplog: pytest.LogCaptureFixture) -> None:
    """An error while closing a connection that failed anyway is only worth a line for debugging."""
    own.publish(celery_app, do_nothing)
    connection = own._lines[id(celery_app)]._connection
    assert connection is not None
    connection.release, release = failing(OSError("Already gone.")), connection.release  # type: ignore[method-assign]
    connection.release = lambda: failing(OSError("Already gone."))(None)  # type: ignore[method-assign]

    with caplog.at_level(logging.DEBUG, logger=module.__name__), pytest.raises(PublishError, match="QueueNotFound"):
        own.publish(celery_app, failing(QueueNotFound("no such queue")))
    release()

    assert "Already gone." in caplog.text


# The connection ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://broker//", {"confirm_publish": True}),
        ("pyamqp://broker//", {"confirm_publish": True}),
        ("redis://broker/0", {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}),
        ("memory://", {}),
    ],
)
@SHORT
def test_connection_is_bounded_where_the_transport_can(celery_app: Celery, url: str, expected: dict[str, Any]) -> None:
    """RabbitMQ confirms what it took, Redis gets its timeouts, and nobody tries more than once."""
    celery_app.conf.broker_url = url

    connection = connection_for(celery_app)

    options = connection.transport_options
    assert {**expected, "max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0} == options
    assert TIMEOUT == connection.connect_timeout


@SHORT
def test_connection_keeps_the_projects_options(celery_app: Celery) -> None:
    """The project's own transport options win over the publisher's, except for the number of tries."""
    celery_app.conf.broker_url = "redis://broker/0"
    celery_app.conf.broker_transport_options = {"socket_timeout": 9, "global_keyprefix": "mine:", "max_retries": 99}

    options = connection_for(celery_app).transport_options

    assert (9, "mine:", 0) == (options["socket_timeout"], options["global_keyprefix"], options["max_retries"])


def test_connection_tries_every_host_once(celery_app: Celery) -> None:
    """With several brokers, each is tried once."""
    celery_app.conf.broker_url = "amqp://one//;amqp://two//;amqp://three//"

    assert 2 == connection_for(celery_app).transport_options["max_retries"]


# The app -----------------------------------------------------------------------------------------------------------


def test_project_app_is_the_current_one(celery_app: Celery) -> None:
    """The current app is the project's when it was configured."""
    assert celery_app is project_app()


def test_project_app_past_celerys_fallback(celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread for which Celery fell back to an unconfigured app publishes through the project's all the same."""
    fallback = Celery("fallback", loader="default", set_as_current=False)
    monkeypatch.setattr(module, "current_app", SimpleNamespace(_get_current_object=lambda: fallback))
    monkeypatch.setattr(module, "_get_active_apps", lambda: {fallback, celery_app})

    assert celery_app is project_app()
    fallback.close()


def test_project_app_is_not_guessed(celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two apps to choose from, or none, Celery's own choice stands."""
    fallback = Celery("fallback", loader="default", set_as_current=False)
    second = Celery("second", set_as_current=False)
    monkeypatch.setattr(module, "current_app", SimpleNamespace(_get_current_object=lambda: fallback))

    for others in (set(), {celery_app, second}):
        monkeypatch.setattr(module, "_get_active_apps", lambda others=others: {fallback, *others})
        assert fallback is project_app()
    fallback.close()
    second.close()


def test_a_process_has_one_publisher() -> None:
    """All threads of a process share its publisher."""
    with ThreadPoolExecutor(4) as pool:
        publishers = {pool.submit(publisher).result() for _ in range(4)}

    assert {publisher()} == publishers


def test_a_forked_process_has_its_own(celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked process begins with a publisher of its own, although the parent's was busy, and keeps the parent's."""
    parents, inherited = publisher(), []
    monkeypatch.setattr(module, "_publisher", parents)
    monkeypatch.setattr(module, "_inherited", inherited)
    parents.publish(celery_app, do_nothing)
    published: list[Any] = []

    with parents._lock:
        module._begin_anew()
        publisher().publish(celery_app, published.append)

    assert parents is not publisher()
    assert [parents] == inherited
    assert 1 == len(published)
    assert not parents._lines[id(celery_app)].left
    publisher().close()
