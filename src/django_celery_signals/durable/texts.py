"""The statements of every sending and run, as text: over a queryset Django thinks longer than the database works."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any

from django.apps import apps
from django.db.backends.base.base import BaseDatabaseWrapper

from .clock import byte_length, force
from .rows import State

LANES = "dcs_delivery_lane"  # the index of the lanes
LARGE = ("payload", "traceback")  # columns that are read only where they are needed
#: Columns that a sender gives values to; the moments are expressions of the database's.
GIVEN = (
    *("event_id", "receiver", "signal", "summary", "queue", "key", "lane", "folds", "state", "token"),
    *("sends", "options", "payload"),
)
LINEAGE = ("depth", "parent_id", "root_id")  # the same of what another event caused; of all else they have defaults
COUNTS = ("attempts", "crashes", "reruns")  # which begin with nothing
MOMENTS = ("due_at", "sent_at", "created_at")
#: Columns that a relay must know.
PUBLISHED = (
    *("id", "event_id", "receiver", "signal", "summary", "lane", "slot", "folds", "token", "attempts", "crashes"),
    *("reruns", "options", "created_at"),
)


def among(connection: BaseDatabaseWrapper, *lists: Sequence[int]) -> tuple[str, list[Any]]:
    """Return the condition that a column has a value of a list, for lists of one length, and their parameters."""
    if connection.vendor == "postgresql":
        # As text, which is read as the column's kind: of a list the client makes an array far more slowly.
        return "= ANY(%s)", ["{" + ",".join(map(str, values)) + "}" for values in lists]
    return f"IN ({', '.join(['%s'] * len(lists[0]))})", [value for values in lists for value in values]


#: Columns that a worker must know, where they need no conversion.
OPENED = (
    *("id", "event_id", "receiver", "signal", "summary", "key", "lane", "folds", "token", *COUNTS),
    *("options", "payload", "due_at"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """The statements for one database; the names of moments are for who executes them to fill in."""

    returns: bool  # whether what is inserted or opened is returned, so that it need not be asked for
    given: Sequence[str]  # the columns that a new row is inserted with
    values: Callable[[Any], tuple[Any, ...]]  # what it has for them
    insert: str
    row: str  # what follows for each row that is inserted
    key: str  # what follows for a single one, to learn its key
    many: str  # of many, their values by column, which ``sources_of`` fills in; empty where there are no such lists
    open: str
    open_folding: str  # says as well whether others wait behind it
    complete: str
    open_all: str  # of several, which are to be filled in as lists
    read_all: str
    read_folding: str
    complete_all: str
    claim: str  # empty where no single statement can
    mark: str  # the same
    followers: str
    next: str
    strays: str
    free: str  # a condition: no other of a lane has the slot, or waits before this one


def texts_for(connection: BaseDatabaseWrapper, *, caused: bool = False) -> Texts:
    """Return what is executed in a database; to insert what other events caused, too, with its lineage."""
    # MySQL returns nothing, MariaDB nothing from an update, and SQLite does from 3.35 on.
    returns = connection.vendor != "mysql" and bool(connection.features.can_return_columns_from_insert)
    kind = connection.vendor, returns, caused
    if kind not in _known:
        _known[kind] = _texts(connection, returns, (*GIVEN, *LINEAGE) if caused else GIVEN)
    return _known[kind]


_known: dict[tuple[str, bool, bool], Texts] = {}


def _texts(connection: BaseDatabaseWrapper, returns: bool, given: Sequence[str] = GIVEN) -> Texts:
    meta = apps.get_model("django_celery_signals", "Delivery")._meta
    quote: Any = connection.ops.quote_name
    table, columns = quote(meta.db_table), [str(field.column) for field in meta.concrete_fields]
    whole = ", ".join(map(quote, columns))
    names = {
        **{state.name.lower(): int(state) for state in State},
        "table": table,
        "not_paused": _NOT_PAUSED.format(quote(apps.get_model("django_celery_signals", "Pause")._meta.db_table)),
        "lanes": f"{table} {force(connection, LANES)}",
        "whole": whole,
        "others": f"{table} AS other {force(connection, LANES)}",
        "bytes": byte_length(connection),
        "bare": ", ".join(f"NULL AS {quote(name)}" if name in LARGE else quote(name) for name in columns),
        "given": ", ".join(map(quote, (*given, *COUNTS, *MOMENTS))),
        "values": ", ".join([*["%s"] * len(given), *["0"] * len(COUNTS)]),
        "id": "RETURNING id" if returns else "",  # else the cursor knows it
        **{later: f"{{{later}}}" for later in ("now", "due", "among", "sources", *MOMENTS)},
        "selected": ", ".join(f"{quote(name)}{'::jsonb' if name == 'options' else ''}" for name in given),
        "zeros": ", ".join(["0"] * len(COUNTS)),
        "published": ", ".join(f"{table}.{quote(name)}" for name in PUBLISHED),
        "returning": _returning(connection, whole) if returns else "",
    }
    names["first"] = "ORDER BY other.lane, other.id LIMIT 1"
    names["next_lane"] = f"(SELECT other.lane FROM {names['others']} WHERE other.state = {names['ready']} AND"  # noqa: S608
    names["followed"] = _FOLLOWED.format(**names)
    names["returning_followed"] = f"{names['returning']}, {names['followed']}" if returns else ""
    absent = () if connection.vendor == "postgresql" else ("claim", "mark", "many")
    texts = {name: "" if name in absent else text.format(**names) for name, text in _TEXTS.items()}
    values = attrgetter(*("json" if name == "options" else name for name in given))
    return Texts(returns=returns, given=given, values=values, **texts)


def _returning(connection: BaseDatabaseWrapper, whole: str) -> str:
    quote: Any = connection.ops.quote_name
    return f"RETURNING {', '.join(map(quote, OPENED)) if connection.vendor == 'postgresql' else whole}"


#: How the values of many rows are said: as an array, as a text to be cut where this is, or once, when all are alike.
LIST, CUT, ONCE = "%s::{}[]", "string_to_array(%s, chr(31))", "%s::{}"
SEPARATOR = chr(31)


@lru_cache
def sources_of(given: Sequence[str], ways: Sequence[str]) -> str:
    """Return what PostgreSQL reads many new rows from. The parameters of what is said once are the last.

    Args:
        given: the columns; ``due_in`` follows them.
        ways: how the values of each are said.
    """
    columns = list(zip((*given, "due_in"), ways, strict=True))
    many, once = ([column for column in columns if (column[1] == ONCE) is is_once] for is_once in (False, True))
    sources = [f"unnest({_placed(many)}) AS v ({_named(many)})", f"(VALUES ({_placed(once)})) AS w ({_named(once)})"]
    return ", ".join(sources if once else sources[:1])


def _placed(columns: Sequence[tuple[str, str]]) -> str:
    return ", ".join(way.format(_KINDS.get(name, "text")) for name, way in columns)


def _named(columns: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f'"{name}"' for name, _ in columns)


# What PostgreSQL takes a value for that is none of text.
_KINDS = {
    "folds": "boolean",
    "state": "smallint",
    "token": "bigint",
    "sends": "integer",
    "depth": "smallint",
    "due_in": "float8",
}

# Of the ways to ask, the one over which PostgreSQL thinks least: it reads the few that there are beforehand.
_NOT_PAUSED = "receiver NOT IN (SELECT pause.receiver FROM {} AS pause)"
# ``by_index`` adds its hint to those that change something; it knows them by how they begin.
_OPEN = (
    "UPDATE {table} SET state = {running}, token = token + 1, due_at = {due}, claim = NULL, sends = 0 "
    "WHERE id = %s AND token = %s AND receiver = %s AND state IN ({ready}, {sent}) AND {not_paused}"
)
_FOLLOWED = (
    "EXISTS (SELECT 1 FROM {others} WHERE other.lane >= {table}.lane AND other.lane <= {table}.lane "
    "AND other.state = {ready} AND other.slot IS NULL AND other.id <> {table}.id) AS followed"
)
_HELD = "FROM {table} WHERE id = %s AND token = %s AND state = {running}"
_ALL_HELD = "FROM {table} WHERE id {among} AND token {among} AND state = {running}"
_WAITING = "FROM {lanes} WHERE lane >= %s AND lane <= %s AND state = {ready} AND slot IS NULL"
_UNLESS_HELD = "AND NOT EXISTS (SELECT 1 FROM {table} AS other WHERE other.slot = %s)"
# What a statement changes, MariaDB and MySQL look at only by way of an inner table, which LIMIT keeps apart.
_NO_HOLDER = "NOT EXISTS (SELECT 1 FROM (SELECT id FROM {table} WHERE slot = %s LIMIT 1) AS other)"
_NONE_BEFORE = (
    "NOT EXISTS (SELECT 1 FROM (SELECT id FROM {lanes} WHERE lane >= %s AND lane <= %s AND state = {ready} AND id < %s "
    "ORDER BY lane, id LIMIT 1) AS other)"
)
_TEXTS = {
    "insert": "INSERT INTO {table} ({given}) VALUES",
    "row": "({values}, {due_at}, {sent_at}, {created_at})",
    "key": "{id}",
    "many": "INSERT INTO {table} ({given}) SELECT {selected}, {zeros}, {now} + due_in * INTERVAL '1 second', "
    "CASE WHEN sends > 0 THEN {now} END, {now} FROM {sources}",
    "open": f"{_OPEN} {{returning}}",
    "open_folding": f"{_OPEN} {{returning_followed}}",
    "complete": f"DELETE {_HELD}",
    "open_all": "UPDATE {table} SET state = {running}, token = token + 1, due_at = {due}, claim = %s, sends = 0 "
    "WHERE id {among} AND token {among} AND receiver = %s AND state IN ({ready}, {sent}) "
    "AND {not_paused} {returning}",
    "read_all": f"SELECT {{whole}} {_ALL_HELD}",
    "read_folding": f"SELECT {{whole}}, {{followed}} {_ALL_HELD}",
    "complete_all": f"DELETE {_ALL_HELD}",
    "claim": "WITH due AS MATERIALIZED (SELECT id FROM {table} WHERE state = {ready} AND due_at <= {now} "
    "ORDER BY due_at, id LIMIT %s FOR UPDATE SKIP LOCKED) "
    "UPDATE {table} SET claim = %s, due_at = {due}, sent_at = {now} FROM due WHERE {table}.id = due.id "
    "RETURNING {published}",
    "mark": "UPDATE {table} SET state = {sent}, due_at = NULL, claim = NULL, queue = %s, sends = sends + 1 "
    "WHERE id = ANY(%s) AND claim = %s AND state = {ready}",
    "followers": f"SELECT {{bare}}, {{bytes}}(payload) AS size {_WAITING} ORDER BY lane, id LIMIT %s",
    "next": f"SELECT {{bare}} {_WAITING} {_UNLESS_HELD} ORDER BY lane, id LIMIT 1",
    # From lane to lane, however many deliveries each has; MySQL and MariaDB go no more than a thousand steps.
    "strays": "WITH RECURSIVE walk (lane, steps) AS (SELECT {next_lane} other.lane > %s {first}), 1 UNION ALL "
    "SELECT {next_lane} other.lane > walk.lane {first}), steps + 1 FROM walk WHERE lane IS NOT NULL AND steps < %s) "
    "SELECT lane, (SELECT other.due_at IS NULL AND other.slot IS NULL FROM {others} WHERE other.lane >= walk.lane AND "
    "other.lane <= walk.lane AND other.state = {ready} {first}), "
    "(SELECT 1 FROM {table} AS holder WHERE holder.slot = walk.lane) FROM walk WHERE lane IS NOT NULL",
    "free": f"{_NO_HOLDER} AND {_NONE_BEFORE}",
}
