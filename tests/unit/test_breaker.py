"""The circuit breaker: how long it refuses, whom it lets try, and what it says."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from django_celery_signals import PublishError
from django_celery_signals import breaker as module
from django_celery_signals.breaker import Breaker

COST = 2.0  # seconds that a failed try took


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time as the breaker sees it, in seconds."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def allows(breaker: Breaker) -> bool:
    """Tell whether a caller may try."""
    try:
        breaker.check()
    except PublishError:
        return False
    return True


def fail(breaker: Breaker, clock: SimpleNamespace, cost: float = COST) -> None:
    """Let a try fail that began so many seconds ago."""
    breaker.failed(clock.now - cost, "OSError: no route")


def pauses(breaker: Breaker, clock: SimpleNamespace, cost: float) -> list[float]:
    """Return how long each of several failures keeps callers away."""
    found: list[float] = []
    for _ in range(7):
        clock.now += cost
        fail(breaker, clock, cost)
        start = clock.now
        while not allows(breaker):
            clock.now += 0.125
        found.append(clock.now - start)
    return found


def test_it_begins_closed(clock: SimpleNamespace) -> None:
    """A breaker that saw no failure lets everybody try."""
    breaker = Breaker()

    assert [True, True, True] == [allows(breaker) for _ in range(3)]


def test_it_opens_for_longer_and_longer(clock: SimpleNamespace) -> None:
    """Each failure doubles the pause, up to a limit (H31)."""
    assert [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] == pauses(Breaker(), clock, COST)


def test_a_cheap_failure_costs_a_short_pause(clock: SimpleNamespace) -> None:
    """A broker that refuses at once is tried again soon: while it is left alone, events are lost (H31)."""
    assert [0.125 * module.MOST_OF_COST] * 6 == pauses(Breaker(), clock, 0.125)[1:]


def test_it_lets_one_try_after_the_pause(clock: SimpleNamespace) -> None:
    """Of several callers after the pause only the first may try, until the next pause is over."""
    breaker = Breaker()
    fail(breaker, clock)
    clock.now += 1.0

    assert [True, False, False] == [allows(breaker) for _ in range(3)]

    clock.now += 1.0
    assert [True, False] == [allows(breaker) for _ in range(2)]


def test_it_closes_at_the_first_success(clock: SimpleNamespace) -> None:
    """After a success everybody may try again, and the next pause is the first one's length."""
    breaker = Breaker()
    fail(breaker, clock)
    clock.now += COST
    fail(breaker, clock)
    breaker.succeeded()

    assert [True, True] == [allows(breaker) for _ in range(2)]

    clock.now += COST
    fail(breaker, clock)
    clock.now += 1.0
    assert allows(breaker)


def test_who_only_asks_does_not_try(clock: SimpleNamespace) -> None:
    """To ask whether it is open takes nobody's turn: after the pause it is not, until somebody tries."""
    breaker = Breaker()
    closed = breaker.is_open()
    fail(breaker, clock)
    during = breaker.is_open()
    clock.now += 1.0
    after = [breaker.is_open(), breaker.is_open()]

    assert (False, True, [False, False]) == (closed, during, after)
    assert allows(breaker)
    assert breaker.is_open()
    breaker.succeeded()
    assert not breaker.is_open()


def test_it_learns_an_outage_once(clock: SimpleNamespace) -> None:
    """What began before the breaker opened, and fails after that, does not lengthen the pause (H31)."""
    breaker = Breaker()
    fail(breaker, clock)
    clock.now += 0.5
    for _ in range(8):
        fail(breaker, clock)

    clock.now += 0.5
    assert allows(breaker)


def test_it_logs_an_outage_once(clock: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    """The log says once of each outage that the broker takes nothing, whatever fails after that."""
    breaker = Breaker()
    pauses(breaker, clock, COST)
    words = "The broker takes no messages (OSError: no route). Durable deliveries wait in their table until it does."

    assert [("django_celery_signals.breaker", logging.WARNING, words)] == caplog.record_tuples

    breaker.succeeded()
    clock.now += COST
    fail(breaker, clock)
    assert [words] * 2 == caplog.messages


def test_it_says_why(clock: SimpleNamespace) -> None:
    """Whom it refuses it tells what failed, and for how long it will go on."""
    breaker = Breaker()
    fail(breaker, clock)
    clock.now += 0.25

    with pytest.raises(PublishError, match=r"\(OSError: no route\) and is left alone for another 0\.8 s"):
        breaker.check()
