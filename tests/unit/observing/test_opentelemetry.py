"""Traces: what a receiver's run has to do with its sending, and what its span says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.app.trace import build_tracer
from django.db import transaction
from django.dispatch import Signal
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from django_celery_signals import Discard, Relay, current_event
from django_celery_signals import context as surroundings
from django_celery_signals.durable import packing
from django_celery_signals.durable.deliveries import deliveries
from django_celery_signals.event import new_event
from django_celery_signals.observing import opentelemetry
from django_celery_signals.observing.opentelemetry import connect
from django_celery_signals.signals import (
    receiver_failed,
    receiver_started,
    receiver_succeeded,
    tell,
)
from tests.delivering import moment
from tests.drain import drain, take
from tests.receiving import Receiving

NAME = "tests.nobody"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test has connected is forgotten at its end."""
    monkeypatch.setattr(surroundings, "_carriers", dict(surroundings._carriers))
    monkeypatch.setattr(opentelemetry, "_registered", [])
    yield
    opentelemetry.disconnect()


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Has the spans that have ended."""
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    """Makes spans, of the test's own."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def send(provider: TracerProvider, signal: Signal, **kwargs: Any) -> ReadableSpan:
    """Send a signal within a span, which is returned."""
    with provider.get_tracer("tests").start_as_current_span("request") as span:
        signal.send(sender=None, **kwargs)
    return span  # type: ignore[return-value]


def of(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    """Return the one span of that name that has ended."""
    [span] = [span for span in exporter.get_finished_spans() if span.name == name]
    return span


@pytest.mark.django_db(transaction=True)
def test_a_child(
    provider: TracerProvider, exporter: InMemorySpanExporter, receiving: Receiving, celery_app: Celery
) -> None:
    """A run's span is a child of the one that sent, surrounds the receiver, and says which event it is."""
    connect(tracer_provider=provider)
    bell, seen = Signal(), []

    def ring(word: str) -> None:
        seen.append((current_event(), trace.get_current_span().get_span_context().span_id, baggage.get_baggage("who")))

    name = receiving(bell, ring).name
    token = context.attach(baggage.set_baggage("who", "ada"))
    sent = send(provider, bell, word="a secret")
    context.detach(token)
    drain(celery_app)

    run, [(event, span_id, who)] = of(exporter, f"{name} process"), seen
    assert (sent.context.span_id, sent.context.trace_id) == (run.parent.span_id, run.context.trace_id)
    assert (SpanKind.CONSUMER, StatusCode.UNSET, ()) == (run.kind, run.status.status_code, tuple(run.links))
    assert (run.context.span_id, "ada") == (span_id, who)
    assert {
        "messaging.system": "django_celery_signals",
        "messaging.operation.type": "process",
        "messaging.message.id": event.id,
        "django_celery_signals.receiver": name,
        "django_celery_signals.signal_name": event.signal_name,
        "django_celery_signals.using": "default",
        "django_celery_signals.outcome": "succeeded",
    } == run.attributes
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.django_db(transaction=True)
def test_a_link(
    provider: TracerProvider, exporter: InMemorySpanExporter, receiving: Receiving, celery_app: Celery
) -> None:
    """A run's span may be of a trace of its own, and linked to the one that sent."""
    connect(relation="link", tracer_provider=provider)
    bell = Signal()
    name = receiving(bell).name
    sent = send(provider, bell)
    drain(celery_app)

    run = of(exporter, f"{name} process")
    assert run.parent is None
    assert [sent.context.span_id] == [link.context.span_id for link in run.links]


@pytest.mark.django_db(transaction=True)
def test_without_a_trace(
    provider: TracerProvider, exporter: InMemorySpanExporter, receiving: Receiving, celery_app: Celery
) -> None:
    """Where nothing is traced at the sending, the run has a span all the same."""
    connect(tracer_provider=provider)
    bell = Signal()
    name = receiving(bell).name
    bell.send(sender=None)
    drain(celery_app)

    run = of(exporter, f"{name} process")
    assert (None, 0) == (run.parent, len(run.links))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("record", [False, True])
def test_a_failure(
    provider: TracerProvider, exporter: InMemorySpanExporter, receiving: Receiving, celery_app: Celery, record: bool
) -> None:
    """A span says the error's type, and its message only where that was asked for."""
    connect(record_messages=record, tracer_provider=provider)

    def refuse() -> None:
        raise ValueError("a secret")

    bell = Signal()
    name = receiving(bell, refuse, guarantee="durable").name
    bell.send(sender=None)
    drain(celery_app)

    run = of(exporter, f"{name} process")
    assert StatusCode.ERROR == run.status.status_code
    assert (run.attributes or {}).items() >= {
        ("error.type", "ValueError"),
        ("django_celery_signals.outcome", "will_retry"),
    }
    assert record is ("secret" in run.to_json())
    assert ("ValueError: a secret" if record else "ValueError") == run.status.description


@pytest.mark.django_db(transaction=True)
def test_a_discarded_event(
    provider: TracerProvider, exporter: InMemorySpanExporter, receiving: Receiving, celery_app: Celery
) -> None:
    """What is dropped on purpose is no error."""
    connect(tracer_provider=provider)

    def refuse() -> None:
        raise Discard("a secret")

    bell = Signal()
    name = receiving(bell, refuse).name
    bell.send(sender=None)
    drain(celery_app)

    run = of(exporter, f"{name} process")
    assert StatusCode.UNSET == run.status.status_code
    assert "discarded" == (run.attributes or {})["django_celery_signals.outcome"]
    assert "secret" not in run.to_json()


@pytest.mark.parametrize("relation", ["parent", "link"])
@pytest.mark.django_db(transaction=True)
def test_beside_celerys_own(
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    receiving: Receiving,
    celery_app: Celery,
    relation: opentelemetry.Relation,
) -> None:
    """OpenTelemetry's instrumentation of Celery traces the message, this the event, and each leads to the other."""
    connect(relation=relation, tracer_provider=provider)
    instrumentor = CeleryInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        bell = Signal()
        name = receiving(bell).name
        sent = send(provider, bell)
        [message] = take(celery_app)
        task = celery_app.tasks[name]
        tracer = build_tracer(name, task, app=celery_app)  # as a worker does, which gives the task the headers
        tracer(message.headers["id"], message.args, message.kwargs, request={**message.headers, "hostname": "worker"})
    finally:
        instrumentor.uninstrument()

    names = (f"apply_async/{name}", f"run/{name}", f"{name} process")
    published, ran, run = (of(exporter, text) for text in names)
    assert 4 == len(exporter.get_finished_spans())
    assert (sent.context.trace_id, published.context.span_id) == (published.context.trace_id, ran.parent.span_id)
    ids = {"parent": sent.context.span_id, "link": ran.context.span_id}
    assert ids.pop(relation) == run.parent.span_id
    assert list(ids.values()) == [link.context.span_id for link in run.links]
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_wrong_relation() -> None:
    """A relation that there is not is refused."""
    with pytest.raises(ValueError, match='must be "parent" or "link"'):
        connect(relation="sibling")  # type: ignore[arg-type]


def test_connecting_twice(provider: TracerProvider) -> None:
    """To connect once more means the newer options."""
    connect(tracer_provider=provider)
    connect(relation="link", tracer_provider=provider)

    assert ["link"] == [options.relation for options in opentelemetry._options]


@pytest.mark.django_db(transaction=True)
def test_disconnecting(
    provider: TracerProvider, exporter: InMemorySpanExporter, receiving: Receiving, celery_app: Celery
) -> None:
    """Once disconnected there is no span, but the trace goes on; and it can be connected again."""
    connect(tracer_provider=provider)
    opentelemetry.disconnect()
    bell, seen = Signal(), []
    receiving(bell, lambda: seen.append(trace.get_current_span().get_span_context().span_id))
    sent = send(provider, bell)
    drain(celery_app)
    assert ([sent.context.span_id], 1) == (seen, len(exporter.get_finished_spans()))

    connect(tracer_provider=provider)
    bell.send(sender=None)
    drain(celery_app)
    assert 2 == len(exporter.get_finished_spans())


def test_every_attribute_is_documented() -> None:
    """The page's table has every attribute of a run's span, and no other."""
    root = Path(__file__).resolve().parents[3]
    source = Path(opentelemetry.__file__).read_text().replace("{SYSTEM}", opentelemetry.SYSTEM)
    own = set(re.findall(r"\"((?:messaging|error|django_celery_signals)\.[\w.]+)\"", source))
    table = (root / "docs" / "observability.md").read_text().partition("| attribute | |")[2].partition("\n\n")[0]

    assert own == set(re.findall(r"`(\w+\.[\w.]+)`", table))


# Several in one message ----------------------------------------------------------------------------------------------


def begin(exporter: InMemorySpanExporter, event: Any) -> opentelemetry._Run:
    """Run an event, and leave its block before its outcome is told."""
    with surroundings.restored({"otel": {}}):
        run = opentelemetry._running.get()
        assert run is not None
        run.event_id = event.id
        tell(receiver_started, NAME, event=event)
    assert () == exporter.get_finished_spans()
    return run


def test_an_outcome_that_comes_later(provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
    """A span ends when its run did, and says what was told of it when the others had ended."""
    connect(tracer_provider=provider)
    event = new_event(NAME, "", "", "default")
    run = begin(exporter, event)
    tell(receiver_succeeded, NAME, event=new_event(NAME, "", "", "default"), runtime=1.0)  # another's
    assert () == exporter.get_finished_spans()
    tell(receiver_failed, NAME, event=event, error=KeyError(), will_retry=False, using="default")

    span = of(exporter, f"{NAME} process")
    assert (StatusCode.ERROR, run.ended_at) == (span.status.status_code, span.end_time)
    assert {} == opentelemetry._pending.runs


def test_an_outcome_that_is_never_told(
    provider: TracerProvider, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all of a message run again, their spans end with it; there are never too many that wait."""
    connect(tracer_provider=provider)
    begin(exporter, new_event(NAME, "", "", "default"))
    opentelemetry.task_postrun.send(sender=None)
    assert 1 == len(exporter.get_finished_spans())

    exporter.clear()
    monkeypatch.setattr(opentelemetry, "MOST_PENDING", 1)
    begin(exporter, new_event(NAME, "", "", "default"))
    with surroundings.restored({"otel": {}}):
        pass
    assert (1, 1) == (len(exporter.get_finished_spans()), len(opentelemetry._pending.runs))


def test_what_cannot_be_read(provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
    """A failure without an event is the running span's, and without a span nobody's."""
    connect(tracer_provider=provider)
    failure = {"event": None, "error": KeyError(), "will_retry": False, "using": None}
    tell(receiver_failed, NAME, **failure)
    tell(receiver_started, NAME, event=new_event(NAME, "", "", "default"))
    with surroundings.restored({"otel": {}}):
        tell(receiver_failed, NAME, **failure)

    [span] = exporter.get_finished_spans()
    assert StatusCode.ERROR == span.status.status_code


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("batch", [False, True])
def test_several_in_a_message(
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    receiving: Receiving,
    celery_app: Celery,
    batch: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of several has its span; a receiver that takes them all at once has one for all of a trace."""
    monkeypatch.setattr(packing, "SHARES", 1)  # else only where many wait
    connect(tracer_provider=provider)
    bell = Signal()

    def take_all(events: Any) -> None:
        pass

    def take_one(number: int) -> None:
        if number == 1:
            raise Discard("this one")

    options: dict[str, Any] = {"batch": True} if batch else {"chunk_size": 10}
    task = receiving(bell, take_all if batch else take_one, guarantee="durable", countdown=1, **options)
    with provider.get_tracer("tests").start_as_current_span("request"):
        for number in range(3):
            bell.send(sender=None, number=number)
    deliveries("default").update(due_at=moment(-1))
    assert 3 == Relay(app=celery_app, databases=["default"]).once()
    with celery_app.connection_for_read() as connection:
        queue = connection.default_channel.queue_declare(celery_app.conf.task_default_queue)
    assert 1 == queue.message_count
    drain(celery_app)

    runs = [span for span in exporter.get_finished_spans() if span.name == f"{task.name} process"]
    outcomes = [str((run.attributes or {})["django_celery_signals.outcome"]) for run in runs]
    assert (["succeeded"] if batch else ["discarded", "succeeded", "succeeded"]) == sorted(outcomes)
    counts = [(run.attributes or {}).get("messaging.batch.message_count") for run in runs]
    assert counts == ([3] if batch else [None] * 3)
    assert {} == opentelemetry._pending.runs


@pytest.mark.django_db(transaction=True)
def test_what_follows_one_of_several(
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    receiving: Receiving,
    celery_app: Celery,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is done after the commit of several has no span of its own, and each run's span ends once."""
    monkeypatch.setattr(packing, "SHARES", 1)  # else only where many wait
    connect(tracer_provider=provider)
    bell, seen = Signal(), []

    def take_one(number: int) -> None:
        transaction.on_commit(lambda: seen.append(number))
        if number == 1:
            raise ValueError("this one")

    task = receiving(bell, take_one, guarantee="durable", countdown=1, chunk_size=10)
    with provider.get_tracer("tests").start_as_current_span("request"):
        for number in range(3):
            bell.send(sender=None, number=number)
    deliveries("default").update(due_at=moment(-1))
    assert 3 == Relay(app=celery_app, databases=["default"]).once()
    [message] = take(celery_app)
    tracer = build_tracer(task.name, task, app=celery_app)  # as a worker does
    tracer(message.headers["id"], message.args, message.kwargs, request={**message.headers, "hostname": "worker"})

    names = [span.name for span in exporter.get_finished_spans()]
    assert (["request", *[f"{task.name} process"] * 3], [0, 2]) == (names, seen)
    assert [] == [record.message for record in caplog.records if record.name.startswith("opentelemetry")]
