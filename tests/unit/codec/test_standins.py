"""What arrives in place of a value that cannot travel, and what travels of a request."""

from __future__ import annotations

import copy
import io
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.backends.cache import SessionStore
from django.db import connections
from django.db.migrations.state import StateApps
from django.db.models import F, Q
from django.http import FileResponse, HttpRequest, HttpResponse
from django.template import Context, Engine, Template
from django.test import RequestFactory, override_settings
from django.utils.functional import LazyObject, SimpleLazyObject

from django_celery_signals import NotCarried
from django_celery_signals.codec.core import Unencodable
from django_celery_signals.codec.standins import RequestFacts, Unavailable, environ_facts, expected
from django_celery_signals.envelope import Sending, write
from tests.carrying import carried, leaves, sent, some_signal, to_json
from tests.shop.models import Customer, User

EXTRAS = {"REQUEST_EXTRAS": ["query_string", "session_key"]}


@pytest.fixture
def stand_in() -> Unavailable:
    return Unavailable("shop.views.Cart", "no codec is registered for its type")


# Stand-ins ---------------------------------------------------------------------------------------------------------


def _assign(value: Any) -> None:
    value.total = 1


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda value: value.total, ".total"),
        (_assign, ".total = …"),
        (lambda value: value(), "__call__"),
        (bool, "__bool__"),
        (len, "__len__"),
        (list, "__iter__"),
        (int, "__int__"),
        (float, "__float__"),
        (operator.index, "__index__"),
        (lambda value: value["a"], "__getitem__"),
        (lambda value: "a" in value, "__contains__"),
        (lambda value: value + 1, "__add__"),
        (lambda value: value < 1, "__lt__"),
        (lambda value: value == "paid", "__eq__"),
        (lambda value: value != "paid", "__eq__"),
        (lambda value: value in ("new", "paid"), "__eq__"),
        (lambda value: value.__enter__(), "__enter__"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_stand_in_raises_when_it_is_used(stand_in: Unavailable, use: Callable[[Any], Any], name: str) -> None:
    """Every use of a stand-in raises an error that names type, reason, use and remedy (H18)."""
    with pytest.raises(NotCarried) as raised:
        use(stand_in)

    said = str(raised.value)
    assert "shop.views.Cart stayed behind when the signal was sent (no codec is registered for its type)" in said
    assert f"so {name!r} cannot work" in said
    assert "register_codec()" in said


def test_a_stand_in_can_be_looked_at(stand_in: Unavailable) -> None:
    """A stand-in may be printed, checked for its type, hashed, asked for an attribute it may lack, and copied (H18)."""
    assert "<Unavailable shop.views.Cart: no codec is registered for its type>" == repr(stand_in) == f"{stand_in}"
    assert not isinstance(stand_in, str)
    assert {stand_in: 1}[stand_in] == 1
    assert getattr(stand_in, "total", None) is None
    for other in (copy.copy(stand_in), copy.deepcopy(stand_in), pickle.loads(pickle.dumps(stand_in))):
        assert repr(stand_in) == repr(other)


def test_a_stand_in_travels_on(stand_in: Unavailable) -> None:
    """A stand-in that a receiver passes on still stands for the first value (H18)."""
    assert repr(stand_in) == repr(carried([stand_in])[0])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Customer.objects.all, "send primary keys"),
        (lambda: F("total") + 1, "fetch the row"),
        (lambda: StateApps([], {}), "historical models"),
        (lambda: apps, "import django.apps.apps in the receiver"),
        (lambda: connections["default"], "use the alias"),
        (HttpResponse, "belongs to its request"),
        (lambda: FileResponse(io.BytesIO()), "belongs to its request"),
        (lambda: Template("", engine=Engine()), "send its name"),
        (Context, "belongs to its rendering"),
        (io.BytesIO, "an open file belongs to its process"),
        (io.StringIO, "an open file belongs to its process"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_never_travels_is_known(make: Callable[[], Any], reason: str) -> None:
    """What Django's own signals carry and no process can give away has a stand-in that names what to do (H18, H29)."""
    assert reason in str(expected(Unencodable(make(), "any")))


def test_other_values_are_a_surprise() -> None:
    """A value that Django's own signals do not carry is not among those (H18)."""
    assert expected(Unencodable(Q(), "any")) is None


# Requests ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def request_() -> HttpRequest:
    """A request full of what must not travel."""
    request = RequestFactory().post(
        "/orders/5/?coupon=hidden-query",
        {"card": "hidden-body"},
        REMOTE_ADDR="192.0.2.7",
        headers={
            "User-Agent": "Browser",
            "Authorization": "hidden-authorization",
            "Cookie": "sessionid=hidden-cookie",
            "X-Forwarded-For": "hidden-address",
        },
    )
    request.session = SessionStore("hidden-session")
    request.user = AnonymousUser()
    return request


def test_a_request_arrives_as_its_facts(request_: HttpRequest) -> None:
    """Of a request, method, path, address and user agent travel, and the address is not what a header claims (H69)."""
    arrived = carried(request_)

    assert type(arrived) is RequestFacts
    assert ("POST", "/orders/5/") == (arrived.method, arrived.path)
    assert {"REMOTE_ADDR": "192.0.2.7", "HTTP_USER_AGENT": "Browser"} == arrived.META
    assert "<RequestFacts POST /orders/5/>" == repr(arrived)
    assert bool(arrived)


def test_nothing_else_of_a_request_travels(request_: HttpRequest) -> None:
    """Body, cookies, credentials, query string and session stay behind (H69)."""
    request_.POST  # noqa: B018 - read, so that the body is there

    assert [] == [leaf for leaf in leaves(to_json(request_)) if "hidden" in str(leaf)]


@pytest.mark.parametrize("name", ["POST", "COOKIES", "headers", "body", "GET"])
def test_what_stays_behind_of_a_request_says_so(request_: HttpRequest, name: str) -> None:
    """Asking the facts of a request for anything else raises an error that lists what there is (H69)."""
    arrived = carried(request_)

    with pytest.raises(NotCarried, match=rf"request\.{name} stayed behind: of a request only META, method, path, user"):
        getattr(arrived, name)
    assert not hasattr(arrived, name)
    assert repr(copy.copy(arrived)) == repr(arrived)


@pytest.mark.parametrize(
    ("name", "value"), [("query_string", "coupon=hidden-query"), ("session_key", "hidden-session")]
)
def test_query_string_and_session_travel_on_demand(request_: HttpRequest, name: str, value: str) -> None:
    """Query string and session key travel when REQUEST_EXTRAS lists them, and otherwise the error says so (H69)."""
    with pytest.raises(NotCarried, match="List it in REQUEST_EXTRAS"):
        getattr(carried(request_), name)
    with override_settings(DJANGO_CELERY_SIGNALS=EXTRAS):
        assert value == getattr(carried(request_), name)


@override_settings(DJANGO_CELERY_SIGNALS=EXTRAS)
def test_a_request_may_lack_session_and_query() -> None:
    """A request without a session has no session key, and a bare one has empty facts (H69)."""
    arrived = carried(HttpRequest())

    assert (None, "", "", None, {}) == (
        arrived.method,
        arrived.path,
        arrived.query_string,
        arrived.session_key,
        arrived.META,
    )
    assert arrived.user is None


def test_a_request_of_the_rest_framework_is_the_request_in_it(request_: HttpRequest) -> None:
    """A REST framework's request travels as the request it wraps (H69)."""
    wrapper = type("Request", (), {"__module__": "rest_framework.request"})()
    wrapper._request = request_

    assert "/orders/5/" == carried(wrapper).path


class Wrapped(LazyObject):
    """A lazy object that a test fills."""

    def _setup(self) -> None:
        raise AssertionError("It was evaluated.")


def wrap(value: Any) -> Any:
    lazy = Wrapped()
    lazy._wrapped = value
    return lazy


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_user_who_was_looked_up_travels(request_: HttpRequest, depth: int) -> None:
    """The user of a request travels, out of however many lazy objects, an anonymous one included (H66b, H69)."""
    request_.user = AnonymousUser()
    for _ in range(depth):
        request_.user = wrap(request_.user)

    arrived = carried(request_)

    assert type(arrived.user) is AnonymousUser
    assert not arrived.user.is_authenticated


@pytest.mark.parametrize("depth", [1, 3])
def test_a_user_nobody_looked_up_stays_behind(request_: HttpRequest, depth: int) -> None:
    """A user whom the request did not look up is not looked up for the sending; the stand-in says what to do (H69)."""
    request_.user = Wrapped()
    for _ in range(depth - 1):
        request_.user = wrap(request_.user)

    arrived = carried(request_)

    with pytest.raises(NotCarried, match=r"touch request\.user before sending"):
        arrived.user.is_authenticated  # noqa: B018


def test_a_user_the_middleware_remembers_travels(request_: HttpRequest) -> None:
    """A user whom the session's middleware has looked up travels also where request.user was not touched (H69)."""
    request_.user = Wrapped()
    request_._cached_user = AnonymousUser()  # type: ignore[attr-defined]
    assert type(carried(request_).user) is AnonymousUser
    del request_.user
    assert type(carried(request_).user) is AnonymousUser


@pytest.mark.django_db
def test_a_user_is_fetched_when_asked_for(request_: HttpRequest, django_assert_num_queries: Any) -> None:
    """A user travels by reference, is fetched when the receiver asks, the same object as elsewhere (H67, H69)."""
    user = request_.user = User.objects.create_user("ada", password="hidden-password")

    with django_assert_num_queries(0):
        arrival = sent({"request": request_, "user": user})
        arrived = arrival["request"]
        assert isinstance(arrived.user, SimpleLazyObject)
    with django_assert_num_queries(1):
        assert user == arrived.user
    assert arrival["user"] is arrived.user._wrapped
    assert [] == [leaf for leaf in leaves(arrival.envelope.objects) if "ada" in str(leaf)]


@pytest.mark.django_db
def test_the_facts_of_a_request_travel_on(request_: HttpRequest) -> None:
    """A receiver that sends a signal itself can pass the request on (H69)."""
    request_.user = User.objects.create_user("ada")
    first = sent({"request": request_})["request"]

    second = sent({"request": first})["request"]

    assert type(second) is RequestFacts
    assert ("POST", "/orders/5/", first.META) == (second.method, second.path, second.META)
    assert request_.user == second.user


def test_facts_are_those_of_the_sending(request_: HttpRequest) -> None:
    """What happens to a request after the sending changes nothing of what travels (H35, H66b)."""
    sending = Sending(signal=some_signal, sender=None, kwargs={"request": request_})
    envelope = write(sending, "tests.receiver", using="default")
    before = str(envelope)

    request_.path, request_.method, request_.user = "/later/", "GET", None
    request_.META["REMOTE_ADDR"] = "later"

    assert before == str(envelope)


# Raw requests ------------------------------------------------------------------------------------------------------

ENVIRON = {
    "REQUEST_METHOD": "GET",
    "PATH_INFO": "/orders/",
    "QUERY_STRING": "hidden=1",
    "REMOTE_ADDR": "192.0.2.7",
    "HTTP_USER_AGENT": "Browser",
    "HTTP_COOKIE": "hidden",
    "HTTP_AUTHORIZATION": "hidden",
    "wsgi.url_scheme": "http",
    "wsgi.input": io.BytesIO(),
}
SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "method": "GET",
    "path": "/orders/",
    "scheme": "https",
    "query_string": b"hidden=1",
    "headers": [(b"cookie", b"hidden")],
}


@pytest.mark.parametrize(
    ("raw", "facts"),
    [
        (
            ENVIRON,
            {
                "REQUEST_METHOD": "GET",
                "PATH_INFO": "/orders/",
                "REMOTE_ADDR": "192.0.2.7",
                "HTTP_USER_AGENT": "Browser",
            },
        ),
        (SCOPE, {"type": "http", "method": "GET", "path": "/orders/", "scheme": "https"}),
    ],
    ids=["wsgi", "asgi"],
)
def test_a_raw_request_travels_as_its_facts(raw: dict[str, Any], facts: dict[str, Any]) -> None:
    """Of a WSGI environ and an ASGI scope, whoever sends them, only the facts travel; the query string on demand
    (H69)."""
    assert facts == sent({"environ": raw})["environ"]
    assert facts == environ_facts(raw)
    with override_settings(DJANGO_CELERY_SIGNALS=EXTRAS):
        assert len(facts) + 1 == len(environ_facts(raw))
