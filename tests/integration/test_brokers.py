"""One suite over the brokers: what arrives there, how it reads in a monitor, and that every process may send."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import QueueNotFound
from django.db import transaction
from django.db.models.signals import m2m_changed, post_save
from django.dispatch import Signal
from kombu import Queue

from django_celery_signals import PublishError
from django_celery_signals.publisher import publisher
from django_celery_signals.signals import event_lost
from django_celery_signals.wire import ARGUMENT
from tests.brokers import Broker
from tests.drain import arrived, run, waiting
from tests.parameters import each_broker
from tests.processes import Processes, environment
from tests.project.celery import configure
from tests.receiving import Receiving, hearing
from tests.shop.models import Customer, Order, Tag

pytestmark = pytest.mark.django_db(transaction=True)

doorbell = Signal()


@each_broker
def test_event_arrives(celery_app: Celery, receiving: Receiving, broker: Broker) -> None:
    """What was saved and committed lies in the broker, once, and can be run from there."""
    seen: list[Any] = []
    receiving(post_save, lambda instance, created: seen.append((instance, created)), sender=Customer)

    with transaction.atomic():
        ada = Customer.objects.create(name="Ada")
    (message,) = arrived(broker)
    result = run(celery_app, message)

    assert "SUCCESS" == result.state
    assert [(ada, True)] == seen


@each_broker
def test_message_is_readable_and_discreet(celery_app: Celery, receiving: Receiving, broker: Broker) -> None:
    """A monitor shows signal, model, key and what happened, and nothing of what the fields hold."""
    receiving(post_save, sender=Order)
    customer = Customer.objects.create(name="Ada", email="ada@example.com")

    Order.objects.create(pk=5, customer=customer, notes={"door": "the blue one"})
    (message,) = arrived(broker)

    assert "post_save shop.Order pk=5 created" == message.headers["argsrepr"]
    assert "{}" == message.headers["kwargsrepr"]
    assert "blue" not in json.dumps([message.headers, message.properties], default=str)


@each_broker
def test_many_to_many_is_readable(celery_app: Celery, receiving: Receiving, broker: Broker) -> None:
    """A monitor shows the action of a many-to-many change."""
    receiving(m2m_changed, sender=Order.tags.through, action="post_add")
    order = Order.objects.create(pk=5, customer=Customer.objects.create(name="Ada"))

    order.tags.add(Tag.objects.create(name="new"))
    (message,) = arrived(broker)

    assert "m2m_changed shop.Order_tags pk=5 post_add" == message.headers["argsrepr"]


@each_broker
@pytest.mark.parametrize("how", ["retry", "apply_async"])
def test_message_that_is_sent_again_is_discreet(
    celery_app: Celery, receiving: Receiving, broker: Broker, how: str
) -> None:
    """A retried or resent message reads like the first, and holds no result to be stored."""
    task = receiving(post_save, sender=Customer, bind=True, function=keep_retrying)

    customer = Customer.objects.create(name="Ada", email="ada@example.com")
    (message,) = arrived(broker)
    if how == "retry":
        task.push_request(**{**message.headers, "args": [], "kwargs": message.kwargs, "called_directly": False})
        try:
            task.retry(countdown=1, throw=False)
        finally:
            task.pop_request()
    else:
        task.apply_async(kwargs=message.kwargs)
    (again,) = arrived(broker)

    assert f"post_save shop.Customer pk={customer.pk} created" == again.headers["argsrepr"]
    assert "{}" == again.headers["kwargsrepr"]
    assert again.headers["ignore_result"] is True
    assert message.sealed == again.sealed
    assert (1 if how == "retry" else 0) == again.headers["retries"]


def keep_retrying(self: Any, instance: Customer) -> None:
    raise self.retry()


@each_broker
def test_order_is_kept(celery_app: Celery, receiving: Receiving, broker: Broker) -> None:
    """The broker holds the events of one transaction in the order of their sending (H37)."""
    receiving(post_save, sender=Tag)

    with transaction.atomic():
        for pk in range(1, 31):
            Tag.objects.create(pk=pk, name="new")

    assert [f"post_save shop.Tag pk={pk} created" for pk in range(1, 31)] == [
        message.body["summary"] for message in arrived(broker, 30)
    ]


@each_broker
def test_queue_of_the_connection(celery_app: Celery, receiving: Receiving, broker: Broker) -> None:
    """A message goes to the queue that the connection names, which need not exist before."""
    queue = broker.queue_named("mail")
    receiving(doorbell, queue=queue)

    doorbell.send(sender=None)

    assert 1 == len(arrived(broker, 1, queue))
    assert [] == list(waiting(broker))


@each_broker
def test_unknown_queue_stops_no_other_message(celery_app: Celery, receiving: Receiving, broker: Broker) -> None:
    """A queue that the project does not define loses its own events, and leaves the broker in use for all others."""
    configure({"task_queues": [Queue(broker.queue)], "task_create_missing_queues": False})
    receiving(doorbell, queue="of-nobody")
    receiving(post_save, sender=Tag)

    with hearing(event_lost) as lost:
        doorbell.send(sender=None)
        Tag.objects.create(name="new")

    (told,) = lost
    assert isinstance(told["error"], PublishError)
    assert isinstance(told["error"].__cause__, QueueNotFound)
    assert 1 == len(arrived(broker))


@each_broker("rabbitmq")
def test_queue_declared_otherwise_stops_no_other_message(
    celery_app: Celery, receiving: Receiving, broker: Broker
) -> None:
    """A queue that exists with other arguments loses its own events, and leaves the broker in use for all others."""
    queue = Queue(broker.queue_named("short"), queue_arguments={"x-max-length": 5})
    with broker.connection() as connection, connection.channel() as channel:
        queue(channel).declare()
    receiving(doorbell, queue=queue.name)
    receiving(post_save, sender=Tag)

    with hearing(event_lost) as lost:
        for _ in range(2):
            doorbell.send(sender=None)
            Tag.objects.create(name="new")

    assert ["PreconditionFailed"] * 2 == [type(told["error"].__cause__).__name__ for told in lost]
    assert 2 == len(arrived(broker, 2))


@each_broker
def test_always_eager_needs_no_broker(celery_app: Celery, receiving: Receiving, broker: Broker) -> None:
    """With task_always_eager nothing goes to the broker; the receiver runs after the commit."""
    seen: list[str] = []
    receiving(post_save, lambda instance: seen.append(instance.name), sender=Tag)
    celery_app.conf.task_always_eager = True

    with transaction.atomic():
        Tag.objects.create(name="new")
        inside = list(seen)

    assert ([], ["new"]) == (inside, seen)
    assert [] == list(waiting(broker))


@each_broker
def test_json_only(celery_app: Celery, receiving: Receiving, broker: Broker) -> None:
    """A message is plain JSON, and its only argument is one string, whatever serializer the project prefers (H73)."""
    receiving(doorbell, serializer="json")

    doorbell.send(sender=None, size={1, 2}, door=b"\x00")
    (message,) = arrived(broker)

    assert ([], [ARGUMENT]) == (message.args, list(message.kwargs))
    assert isinstance(message.sealed, str)
    assert "application/json" == message.properties.get("content_type", "application/json")


@each_broker
def test_threads_send_side_by_side(celery_app: Celery, receiving: Receiving, broker: Broker) -> None:
    """Many threads send at once; each event arrives once, in its thread's order, over few connections (H37)."""
    receiving(doorbell, guarantee="immediate")

    def ring(thread: int) -> None:
        for number in range(15):
            doorbell.send(sender=None, thread=thread, number=number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ring, range(6)))

    kwargs = [dict(message.body["kwargs"]) for message in arrived(broker, 90)]
    for thread in range(6):
        assert list(range(15)) == [sent["number"] for sent in kwargs if sent["thread"] == thread]
    assert 6 >= len(publisher().lines(celery_app).idle)


FORK = """
import os, sys, threading
import django
django.setup()
import tests.project
from celery import shared_task
from django.dispatch import Signal
from django_celery_signals import ReceiverTask, connect
from django_celery_signals.handover import counts

bell = Signal()

@shared_task(base=ReceiverTask, name="tests.fork.listen")
def listen(**kwargs):
    pass

connect(bell, listen, guarantee="immediate")
bell.send(sender="parent", number=1)
child = os.fork()
if not child:
    try:
        bell.send(sender="child", number=2)
        grandchild = os.fork()
        if not grandchild:
            bell.send(sender="grandchild", number=3)
            os._exit(0)
        failed = os.waitpid(grandchild, 0)[1]
        bell.send(sender="child", number=4)
        os._exit(1 if failed else 0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(2)
failed = os.waitpid(child, 0)[1]
bell.send(sender="parent", number=5)
print("forked:", "failed" if failed else "well", counts["sent"], flush=True)
"""


@each_broker("rabbitmq", "redis")
def test_forked_processes_send(celery_app: Celery, broker: Broker, processes: Processes) -> None:
    """Processes forked after the first sending, as pre-loading servers do, send over connections of their own."""
    env = {**environment(broker), "PYTHONWARNINGS": "ignore::DeprecationWarning"}  # newer Pythons warn of any fork

    process = processes.start("python", "-c", FORK, name="fork", env=env)

    assert 0 == process.wait()
    assert "forked: well 2" in process.log
    bodies = [message.body for message in arrived(broker, 5)]
    assert [("parent", 1), ("child", 2), ("grandchild", 3), ("child", 4), ("parent", 5)] == [
        (body["sender"], dict(body["kwargs"])["number"]) for body in bodies
    ]
    assert 5 == len({body["id"] for body in bodies})
