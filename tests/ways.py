"""All ways to use psycopg's connection, each of which leaves a tag."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections

from tests.shop.models import Tag

INSERT = "INSERT INTO shop_tag (name) VALUES (%s) RETURNING id"


@contextmanager
def able_to_leave(alias: str) -> Iterator[None]:
    """Give the database the function that one of the ways calls."""
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION dcs_leave(text) RETURNS bigint LANGUAGE sql "
            "AS 'INSERT INTO shop_tag (name) VALUES ($1) RETURNING id'"
        )
    yield
    with connections[alias].cursor() as cursor:
        cursor.execute("DROP FUNCTION dcs_leave")


def tags(alias: str) -> list[str]:
    """Return what was left."""
    return sorted(Tag.objects.using(alias).values_list("name", flat=True))


def by_django(connection: Any, name: str, kept: list[Any]) -> None:
    Tag.objects.using(connection.alias).create(name=name)


def by_many(connection: Any, name: str, kept: list[Any]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(INSERT, [(name,)])


def by_procedure(connection: Any, name: str, kept: list[Any]) -> None:
    with connection.cursor() as cursor:
        cursor.callproc("dcs_leave", [name])


def by_copy(connection: Any, name: str, kept: list[Any]) -> None:
    with connection.cursor() as cursor, cursor.copy("COPY shop_tag (name) FROM STDIN") as copy:
        copy.write_row([name])


def by_the_client(connection: Any, name: str, kept: list[Any]) -> None:
    connection.connection.execute(INSERT, [name])


def by_a_kept_cursor(connection: Any, name: str, kept: list[Any]) -> None:
    if not kept:
        kept.append(connection.connection.cursor())
    kept[0].execute(INSERT, [name])


def by_a_stream(connection: Any, name: str, kept: list[Any]) -> None:
    with connection.connection.cursor() as cursor:
        list(cursor.stream(INSERT, [name]))


def by_a_named_cursor(connection: Any, name: str, kept: list[Any]) -> None:
    with connection.connection.cursor(name="named") as cursor:
        cursor.execute("SELECT dcs_leave(%s)", [name])
        cursor.fetchall()


def by_a_transaction(connection: Any, name: str, kept: list[Any]) -> None:
    with connection.connection.transaction():
        connection.connection.execute(INSERT, [name])


def by_a_pipeline(connection: Any, name: str, kept: list[Any]) -> None:
    with connection.connection.pipeline():
        connection.connection.execute(INSERT, [name])


WAYS = (
    *(by_django, by_many, by_procedure, by_copy, by_the_client, by_a_kept_cursor, by_a_stream, by_a_named_cursor),
    *(by_a_transaction, by_a_pipeline),
)
