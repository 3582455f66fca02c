"""Savepoints that begin when a receiver first uses the connection: by whatever way, and not at all without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from django.db import connections, transaction

from django_celery_signals.durable import client, savepoints
from tests.delivering import states
from tests.elsewhere import elsewhere, execute
from tests.holding import bell, message_together, send
from tests.parameters import each_database
from tests.receiving import Receiving
from tests.shop.models import Tag
from tests.ways import INSERT, WAYS, able_to_leave, tags

ALIAS = "postgres"
each_of_psycopg = each_database(ALIAS)


class Boom(Exception):
    """What receivers raise here."""


@pytest.fixture
def receive(receiving: Receiving) -> Any:
    """Declares a durable receiver of the bell whose deliveries can be put together."""
    return lambda function: receiving(bell, function, guarantee="durable", chunk_size=50)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The savepoints that were begun."""
    names: list[str] = []
    begin = savepoints._Savepoints._begin

    def noted(self: Any, client: Any, name: str) -> None:
        begin(self, client, name)
        if self._last == name:
            names.append(name)

    monkeypatch.setattr(savepoints._Savepoints, "_begin", noted)
    return names


@each_of_psycopg
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_ways_to_use_a_connection(
    alias: str, celery_app: Celery, receive: Any, begun: list[str], way: Callable[..., None]
) -> None:
    """However a receiver uses the connection, its savepoint begins before, and takes back what fails."""
    connection, kept = connections[alias], list[Any]()

    def act(name: str) -> None:
        way(connection, name, kept)
        if name.startswith("bad"):
            raise Boom

    receive(act)
    for name in ("a", "bad 1", "b", "bad 2", "bad 3", "c"):
        send(alias, name=name)

    with able_to_leave(alias):
        assert "SUCCESS" == message_together(alias)(celery_app).state

    assert (["a", "b", "c"], {"ready": 3}) == (tags(alias), states(alias))
    assert 6 == len(set(begun)) == len(begun)


@each_of_psycopg
def test_receivers_that_do_not_use_it(alias: str, celery_app: Celery, receive: Any, begun: list[str]) -> None:
    """Without a statement there is no savepoint; what fails takes back what was to follow the commit all the same."""
    followed: list[str] = []

    def act(name: str) -> None:
        transaction.on_commit(lambda: followed.append(name), using=alias)
        if name == "used":
            Tag.objects.using(alias).create(name=name)
        if name == "bad":
            raise Boom

    receive(act)
    for name in ("a", "b", "bad", "used", "c"):
        send(alias, name=name)

    assert "SUCCESS" == message_together(alias)(celery_app).state

    assert (["a", "b", "used", "c"], ["used"], {"ready": 1}) == (followed, tags(alias), states(alias))
    assert ["2", "3"] == [name.rpartition("_")[2] for name in begun]  # one to be rolled back, one that was used


@each_of_psycopg
def test_client_that_cannot_be_waited_for(
    alias: str, celery_app: Celery, receive: Any, begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another client each savepoint begins beforehand."""
    monkeypatch.setattr(savepoints, "takes_its_lock", lambda connection: False)

    def act(name: str) -> None:
        Tag.objects.using(alias).create(name=name)
        if name == "bad":
            raise Boom

    receive(act)
    for name in ("a", "bad", "b"):
        send(alias, name=name)

    assert "SUCCESS" == message_together(alias)(celery_app).state
    assert (["a", "b"], {"ready": 1}, 3) == (tags(alias), states(alias), len(begun))


@each_of_psycopg
def test_receivers_that_take_long(
    alias: str, celery_app: Celery, receive: Any, begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A savepoint that is long after the one before it begins at once: the server sees that somebody is there."""
    monkeypatch.setattr(savepoints, "IDLE", 0.0)
    receive(lambda: None)
    for _ in range(3):
        send(alias)

    assert "SUCCESS" == message_together(alias)(celery_app).state
    assert ({}, 3) == (states(alias), len(begun))


@each_of_psycopg
def test_transaction_that_is_gone(alias: str, celery_app: Celery, receive: Any) -> None:
    """What ends the transaction past psycopg is found out, and nothing is taken for done."""

    def act(name: str) -> None:
        if name == "b":
            connections[alias].connection.pgconn.exec_(b"ROLLBACK")
        else:
            Tag.objects.using(alias).create(name=name)

    receive(act)
    for name in ("a", "b", "c"):
        send(alias, name=name)

    assert "SUCCESS" == message_together(alias)(celery_app).state
    assert ([], {"ready": 3}) == (tags(alias), states(alias))


def roll_back(connection: Any) -> None:
    connection.connection.rollback()
    connection.connection.execute(INSERT, ["b"])  # for which psycopg begins another transaction


def roll_back_and_chain(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ROLLBACK AND CHAIN")
        cursor.execute(INSERT, ["b"])


def roll_back_only(connection: Any) -> None:
    connection.connection.rollback()


@each_of_psycopg
@pytest.mark.parametrize("end", [roll_back, roll_back_and_chain, roll_back_only], ids=lambda end: end.__name__)
@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "idle"), ("a", "b", "c")], ids="-".join)
def test_receiver_that_ends_the_transaction(
    alias: str, celery_app: Celery, receive: Any, end: Callable[[Any], None], names: tuple[str, ...]
) -> None:
    """What another receiver rolls back, by whatever way, is not taken for done, whoever comes after it."""

    def act(name: str) -> None:
        if name == "b":
            end(connections[alias])
        elif name != "idle":
            Tag.objects.using(alias).create(name=name)

    receive(act)
    for name in names:
        send(alias, name=name)

    assert "SUCCESS" == message_together(alias)(celery_app).state
    assert ([], {"ready": len(names)}) == (tags(alias), states(alias))


@each_of_psycopg
def test_what_goes_past_the_client(alias: str, celery_app: Celery, receive: Any) -> None:
    """Not promised: what a receiver executes by the library beneath psycopg is no part of its savepoint."""

    def act(name: str) -> None:
        connections[alias].connection.pgconn.exec_(f"INSERT INTO shop_tag (name) VALUES ('{name}')".encode())
        raise Boom

    receive(act)
    for name in ("a", "b"):
        send(alias, name=name)

    assert "SUCCESS" == message_together(alias)(celery_app).state
    assert {"ready": 2} == states(alias)
    assert ["a", "b"] == tags(alias)


@each_of_psycopg
@pytest.mark.parametrize("pooled", [True, False])
def test_receiver_that_closes_the_connection(
    alias: str, celery_app: Celery, receive: Any, begun: list[str], pooled: bool
) -> None:
    """What the client does from then on, perhaps for others, begins nothing; all run again."""
    clients: list[Any] = []

    def act(name: str) -> None:
        if name == "b":
            connection: Any = connections[alias]
            clients.append(connection.connection)
            connection.close()
            if pooled:
                connection.connection = None  # as Django does that has given it back to a pool
                with clients[0].lock:
                    pass

    receive(act)
    for name in ("a", "b", "c"):
        send(alias, name=name)

    assert "SUCCESS" == message_together(alias)(celery_app).state
    assert ({"ready": 3}, []) == (states(alias), begun)
    assert not isinstance(clients[0].lock, client._Lock)


@each_of_psycopg
def test_connection_that_is_gone(alias: str, celery_app: Celery, receive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is noticed by the savepoint that begins after a while, before the receivers that are left have run."""
    monkeypatch.setattr(savepoints, "IDLE", 0.0)
    ran: list[str] = []

    def act(name: str) -> None:
        ran.append(name)
        pid = connections[alias].connection.info.backend_pid
        elsewhere(lambda: execute(alias, f"SELECT pg_terminate_backend({pid}, 5000)"))

    receive(act)
    for name in ("a", "b", "c"):
        send(alias, name=name)

    assert "SUCCESS" == message_together(alias)(celery_app).state
    assert (["a"], {"ready": 3}) == (ran, states(alias))
