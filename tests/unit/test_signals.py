"""The library's own signals: what they tell, in which order, and that listeners change nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from celery import Celery
from django.dispatch import Signal

from django_celery_signals import Discard, Event, PublishError, connect, signals
from django_celery_signals.signals import LIFECYCLE, tell
from tests.drain import drain, take
from tests.receiving import Receiving, hearing, ignore

pytestmark = pytest.mark.django_db

order_paid = Signal()

NAMES = {signal: name for name, signal in vars(signals).items() if isinstance(signal, Signal)}


@pytest.fixture(autouse=True)
def at_once(settings: Any) -> None:
    """Messages leave without waiting for the commit, which the test never makes."""
    settings.DJANGO_CELERY_SIGNALS = {"GUARANTEE": "immediate"}


@pytest.fixture
def told() -> Iterator[list[tuple[str, str, dict[str, Any]]]]:
    """What the library's own signals say, in the order of their sending: name, receiver, facts."""
    told: list[tuple[str, str, dict[str, Any]]] = []

    def listen(signal: Signal, sender: str, **facts: Any) -> None:
        told.append((NAMES[signal], sender, facts))

    for signal in LIFECYCLE:
        signal.connect(listen)
    yield told
    for signal in LIFECYCLE:
        signal.disconnect(listen)


def fail(**kwargs: Any) -> None:
    raise LookupError("the number 4111 is unknown")


def drop(**kwargs: Any) -> None:
    raise Discard("too late")


def test_every_signal_is_part_of_the_lifecycle() -> None:
    """All signals of the module are refused as signals of receivers, which would tell of themselves for ever (H27)."""
    assert set(NAMES) == set(LIFECYCLE)
    assert len(NAMES) == len(LIFECYCLE)


def test_a_receiver_that_succeeds(receiving: Receiving, celery_app: Celery, told: Any) -> None:
    """An event that arrives is told as sent, started and succeeded, with one id and the receiver's name."""
    task = receiving(order_paid)

    order_paid.send(sender=None, card="4111")
    drain(celery_app)

    (_, _, sent), (_, _, started), (_, _, succeeded) = told
    assert [(name, task.name) for name in ("event_sent", "receiver_started", "receiver_succeeded")] == [
        (name, receiver) for name, receiver, _ in told
    ]
    assert {"event_id", "signal_name", "using"} == set(sent)
    assert {"event"} == set(started)
    assert {"event", "runtime"} == set(succeeded)
    assert sent["event_id"] == started["event"].id == succeeded["event"].id
    assert (Event, f"{__name__}:order_paid") == (type(started["event"]), sent["signal_name"])
    assert isinstance(succeeded["runtime"], float)
    assert "4111" not in repr(told)


def test_a_receiver_that_fails(receiving: Receiving, celery_app: Celery, told: Any) -> None:
    """A failure is told with the error itself and whether it will be tried again."""
    receiving(order_paid, fail)

    order_paid.send(sender=None)
    drain(celery_app)

    _, _, facts = told[-1]
    assert ["event_sent", "receiver_started", "receiver_failed"] == [name for name, _, _ in told]
    assert {"event", "error", "will_retry", "using"} == set(facts)
    assert (LookupError, False) == (type(facts["error"]), facts["will_retry"])


def test_a_receiver_that_discards(receiving: Receiving, celery_app: Celery, told: Any) -> None:
    """What a receiver drops on purpose is told with its reason, and as no failure."""
    receiving(order_paid, drop)

    order_paid.send(sender=None)
    drain(celery_app)

    _, _, facts = told[-1]
    assert ["event_sent", "receiver_started", "receiver_discarded"] == [name for name, _, _ in told]
    assert ({"event", "reason"}, "too late") == (set(facts), facts["reason"])


def test_an_event_that_is_lost(receiving: Receiving, celery_app: Celery, told: Any) -> None:
    """An event that cannot be published is told as lost, with its id and the error (H31)."""
    task = receiving(order_paid)
    celery_app._tasks.pop(task.name)

    with pytest.raises(PublishError):
        order_paid.send(sender=None)

    ((name, receiver, facts),) = told
    assert ("event_lost", task.name, {"event_id", "signal_name", "summary", "error"}) == (name, receiver, set(facts))
    assert (PublishError, True) == (type(facts["error"]), bool(facts["event_id"]))


@pytest.mark.parametrize("function", [ignore, fail, drop])
def test_listeners_that_raise_change_nothing(
    function: Any, receiving: Receiving, celery_app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    """A listener that raises is logged by Django, and neither the sender nor the receiver notices."""
    receiving(order_paid, function)
    expected = {ignore: "SUCCESS", fail: "FAILURE", drop: "IGNORED"}[function]

    def raise_anyway(**kwargs: Any) -> None:
        raise RuntimeError("a listener failed")

    with ExitStack() as stack, caplog.at_level(logging.ERROR, "django.dispatch"):
        for signal in LIFECYCLE:
            signal.connect(raise_anyway)
            stack.callback(signal.disconnect, raise_anyway)
        answers = order_paid.send(sender=None)
        (result,) = drain(celery_app)

    assert [None] == [answer for _, answer in answers]
    assert expected == result.state
    assert 3 == caplog.text.count("RuntimeError: a listener failed")


def test_telling(celery_app: Celery) -> None:
    """Whoever listens is told the receiver's name as the sender, and the facts."""
    with hearing(signals.event_sent) as heard:
        tell(signals.event_sent, "shop.update", event_id="1", signal_name="shop:order_paid")

    assert [{"receiver": "shop.update", "event_id": "1", "signal_name": "shop:order_paid"}] == heard


def test_a_listener_that_sends(receiving: Receiving, celery_app: Celery) -> None:
    """A listener may send signals itself, which travel like any other."""
    order_seen = Signal()
    receiving(order_paid)
    seen = receiving(Signal())
    connect(order_seen, seen)

    def pass_on(sender: str, **kwargs: Any) -> None:
        if sender != seen.name:
            order_seen.send(sender=None)

    signals.event_sent.connect(pass_on)
    try:
        order_paid.send(sender=None)
    finally:
        signals.event_sent.disconnect(pass_on)

    assert 2 == len(take(celery_app))
