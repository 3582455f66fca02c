"""The publisher: bounded in time, and careful with a broker that fails."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from amqp.exceptions import NotAllowed, PreconditionFailed
from celery import Celery
from celery.exceptions import QueueNotFound
from django.test import override_settings
from kombu.exceptions import OperationalError

from django_celery_signals import PublishError, PublishTimeout
from django_celery_signals import publisher as module
from django_celery_signals.ahead import Doubt
from django_celery_signals.breaker import FIRST_PAUSE
from django_celery_signals.lines import Lines
from django_celery_signals.publisher import Publisher, publisher
from tests.brokers import Broker
from tests.parameters import each_broker
from tests.publishing import do_nothing, failing
from tests.waiting import wait_until

TIMEOUT = 0.3
SHORT = override_settings(DJANGO_CELERY_SIGNALS={"PUBLISH_TIMEOUT": TIMEOUT})


@pytest.fixture
def own() -> Iterator[Publisher]:
    """A publisher of the test's own."""
    own = Publisher()
    yield own
    own.close()


def has_opened(own: Publisher, app: Celery) -> bool:
    """Tell whether the breaker has opened, for however short a time."""
    return own.lines(app).breaker._pause > 0


# A publication -----------------------------------------------------------------------------------------------------


def test_publications_of_a_thread_keep_their_order(celery_app: Celery, own: Publisher) -> None:
    """Everything that many threads publish is published once, and each thread's order is kept (H37)."""
    published: list[tuple[int, int]] = []

    def publish_all(thread: int) -> None:
        for number in range(25):
            own.publish(celery_app, lambda _, number=number: published.append((thread, number)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(publish_all, range(8)))

    assert sorted((thread, number) for thread in range(8) for number in range(25)) == sorted(published)
    for thread in range(8):
        assert list(range(25)) == [number for who, number in published if who == thread]


def test_one_caller_waits_for_no_other(celery_app: Celery, own: Publisher) -> None:
    """Publications of several callers are under way at the same time."""
    meeting = threading.Barrier(3, timeout=10)

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(own.publish, celery_app, lambda _: meeting.wait()) for _ in range(3)]

    assert [None] * 3 == [one.exception() for one in waiting]
    assert 3 == len(own.lines(celery_app).idle)


def test_closed_publisher_connects_again(celery_app: Celery, own: Publisher) -> None:
    """After close() the next publication opens a new connection."""
    producers: list[Any] = []
    own.publish(celery_app, producers.append)
    (line,) = own.lines(celery_app).idle

    own.close()
    own.publish(celery_app, producers.append)

    assert producers[0] is not producers[1]
    assert line.left


def test_each_app_has_its_lines(celery_app: Celery, own: Publisher) -> None:
    """Messages of two apps go over two connections; an app that lies where another one lay gets a new one."""
    producers: list[Any] = []
    second = Celery("second", broker="memory://", set_as_current=False)
    try:
        own.publish(celery_app, producers.append)
        own.publish(second, producers.append)
        lines = own.lines(celery_app)
        lines.app = second
        own.publish(celery_app, producers.append)
    finally:
        second.close()
    lines.close()

    assert 3 == len({id(producer) for producer in producers})


# Failures ----------------------------------------------------------------------------------------------------------


@SHORT
def test_timeout_leaves_the_line(celery_app: Celery, own: Publisher, stuck: Callable[[Any], None]) -> None:
    """A publication that does not come back in time is left behind with its thread; the next one gets a new thread."""
    own.publish(celery_app, do_nothing)
    (left,) = own.lines(celery_app).idle
    with pytest.raises(PublishTimeout, match=r"within 0\.3 s"):
        own.publish(celery_app, stuck)

    own.lines(celery_app).breaker.succeeded()
    own.publish(celery_app, do_nothing)

    assert left.left
    assert [left] != own.lines(celery_app).idle


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
def test_timeouts_at_the_same_time_count_once(
    celery_app: Celery, own: Publisher, stuck: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait for a broker that does not answer, the breaker opens as for one of them (H31)."""
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(own.publish, celery_app, stuck) for _ in range(8)]

    assert {PublishTimeout} == {type(one.exception()) for one in waiting}
    assert FIRST_PAUSE == own.lines(celery_app).breaker._pause


@SHORT
def test_waiting_for_others_is_no_outage(celery_app: Celery, own: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits in vain for a line, because a healthy broker is busy, does not keep later callers away."""
    monkeypatch.setattr(own.lines(celery_app), "_free", threading.BoundedSemaphore(1))
    with own.lines(celery_app).line(1), pytest.raises(PublishTimeout, match="other messages of this process"):
        own.publish(celery_app, do_nothing)

    own.publish(celery_app, do_nothing)


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
    assert has_opened(own, celery_app)


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


def test_message_error_closes_the_breaker(celery_app: Celery, own: Publisher) -> None:
    """Where one caller tries whether the broker is back, an error of its message says that it is (H31)."""
    breaker = own.lines(celery_app).breaker
    breaker.failed(0, "away")
    breaker._open_until = 0  # the pause is over

    with pytest.raises(PublishError, match="TypeError"):
        own.publish(celery_app, failing(TypeError("not JSON")))

    assert not has_opened(own, celery_app)


def test_one_apps_broker_is_not_anothers(celery_app: Celery, own: Publisher) -> None:
    """A broker that is away keeps nobody from publishing to the broker of another app (H31)."""
    second = Celery("second", broker="memory://", set_as_current=False)
    own.lines(celery_app).breaker.failed(0, "away")
    try:
        own.publish(second, do_nothing)
    finally:
        second.close()

    with pytest.raises(PublishError, match=r"\(away\)"):
        own.publish(celery_app, do_nothing)


@SHORT
def test_the_rest_of_a_patience_is_no_measure(celery_app: Celery, own: Publisher, stuck: Callable[[Any], None]) -> None:
    """Who has less than PUBLISH_TIMEOUT left, and too little, does not keep the next commit away."""
    with pytest.raises(PublishTimeout):
        own.publish(celery_app, stuck, TIMEOUT / 3)

    own.publish(celery_app, do_nothing)


# From within -------------------------------------------------------------------------------------------------------


def test_publication_from_within_a_publication(celery_app: Celery, own: Publisher) -> None:
    """What is published from within a publication goes at once, over a connection of its own, and nobody waits."""
    producers: list[Any] = []

    def publish(producer: Any) -> None:
        own.publish(celery_app, producers.append)
        producers.append(producer)

    own.publish(celery_app, publish)

    assert 2 == len(set(map(id, producers)))


def test_failure_from_within_a_publication(celery_app: Celery, own: Publisher) -> None:
    """An outage met from within a publication is raised there, and opens the breaker (H31)."""
    error = ConnectionRefusedError("refused")
    caught: list[PublishError] = []

    def publish(producer: Any) -> None:
        with pytest.raises(PublishError, match="ConnectionRefusedError") as failure:
            own.publish(celery_app, failing(error))
        caught.append(failure.value)
        assert has_opened(own, celery_app)

    own.publish(celery_app, publish)

    assert [error] == [failure.__cause__ for failure in caught]


# The process -------------------------------------------------------------------------------------------------------


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
        monkeypatch.setattr(parents, "pid", parents.pid + 1)
        publisher().publish(celery_app, published.append)

    assert parents is not publisher()
    assert [parents] == inherited
    assert 1 == len(published)
    assert [False] == [line.left for line in parents.lines(celery_app).idle]
    publisher().close()


# Without waiting ---------------------------------------------------------------------------------------------------


def go_ahead(own: Publisher, app: Celery, act: Callable[[list[Any]], list[Any]]) -> None:
    """Publish until there is a connection for those who do not wait."""

    def went() -> bool:
        own.publish(app, do_nothing, 2.0, Doubt("this one", act))
        return own.lines(app).idle[-1]._ahead is not None

    wait_until(went, what="a connection for those who do not wait")


@each_broker("rabbitmq")
def test_doubts_are_the_next_callers(broker: Broker, celery_app: Celery, own: Publisher) -> None:
    """What is known of earlier messages is told to the next caller who does not wait himself, all at once."""
    found: list[list[str]] = []

    def act(abouts: list[str]) -> list[str]:
        found.append(abouts)
        return ["b"]  # which cannot be done now

    go_ahead(own, celery_app, act)
    own.lines(celery_app).doubts.extend([Doubt("a", act), Doubt("b", act)])

    own.publish(celery_app, do_nothing)
    assert [] == found
    own.publish(celery_app, do_nothing, 2.0, Doubt("this one", act))
    own.publish(celery_app, do_nothing, 2.0, Doubt("this one", act))
    assert [["a", "b"], ["b"]] == found


@each_broker("rabbitmq")
def test_a_trial_is_waited_for(broker: Broker, celery_app: Celery, own: Publisher) -> None:
    """A write into a buffer proves nothing: after an outage somebody waits, and then all may go on."""
    go_ahead(own, celery_app, list)
    breaker, threads = own.lines(celery_app).breaker, []
    breaker._pause = 30.0  # which is over

    for _ in range(2):
        own.publish(celery_app, lambda _: threads.append(threading.current_thread()), 2.0, Doubt("it", list))

    assert [False, True] == [thread is threading.current_thread() for thread in threads]
    assert 0 == breaker._pause


@each_broker("memory")
def test_elsewhere_it_is_waited_for(broker: Broker, celery_app: Celery, own: Publisher) -> None:
    """A transport that confirms nothing has answered when the publication comes back."""
    threads: list[str] = []

    for _ in range(2):
        own.publish(celery_app, lambda _: threads.append(threading.current_thread().name), 2.0, Doubt("it", list))

    assert ["django-celery-signals-publisher"] * 2 == threads


@pytest.mark.parametrize("forked", [False, True])
def test_the_end_of_a_process(celery_app: Celery, monkeypatch: pytest.MonkeyPatch, forked: bool) -> None:
    """What went ahead is waited for, but not by a child for its parent."""
    publisher().lines(celery_app)
    waited: list[float] = []
    monkeypatch.setattr(Lines, "settle", lambda self, until: waited.append(until))
    monkeypatch.setattr(publisher(), "pid", -1 if forked else os.getpid())

    module._settle()

    assert forked == (waited == [])
