"""What arrives in place of a value that cannot travel: objects that know what they stand for and say so when used."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.utils.functional import LazyObject, SimpleLazyObject, empty

from .. import conf
from ..exceptions import NotCarried
from .core import TAG, Decoder, Encoder, Unencodable, register, register_transparent

_USED = (
    "__bool__ __call__ __iter__ __len__ __getitem__ __contains__ __enter__ __int__ __float__ __index__ __add__ __lt__ "
    "__eq__"
)


class Unavailable:
    """Stand in for a value that stayed behind; every use but ``repr`` and a type check raises :class:`NotCarried`."""

    def __init__(self, type_name: str, reason: str) -> None:
        """Remember what it stands for.

        Args:
            type_name: the value's type, as ``module.Name``.
            reason: why it did not travel.
        """
        self.__dict__.update(_type_name=type_name, _reason=reason)

    def __repr__(self) -> str:
        return f"<Unavailable {self._type_name}: {self._reason}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # copy, pickle and inspect probe for these
        raise self._error(f".{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise self._error(f".{name} = …")

    def _error(self, use: str) -> NotCarried:
        return NotCarried(
            f"This {self._type_name} stayed behind when the signal was sent ({self._reason}), so {use!r} cannot work. "
            "Send the facts the receiver needs instead (a primary key, a string), or teach the type with "
            "register_codec()."
        )


def _refuse(name: str) -> Any:
    def method(self: Unavailable, *args: Any, **kwargs: Any) -> Any:
        raise self._error(name)

    method.__name__ = name
    return method


for _name in _USED.split():
    setattr(Unavailable, _name, _refuse(_name))


def absent(error: Unencodable) -> dict[str, Any]:
    """Return the JSON of the stand-in for a value that has none."""
    cls = type(error.value)
    return {TAG: "absent", "v": [f"{cls.__module__}.{cls.__qualname__}", error.reason]}


def _pass_on(value: Unavailable, _: Encoder) -> list[str]:
    return [value._type_name, value._reason]


register(Unavailable, tag="absent", encode=_pass_on, decode=lambda p, _: Unavailable(str(p[0]), str(p[1])))

# Values that Django's own signals carry and that never travel: standing in for them is no surprise, even under STRICT.
_NEVER_CARRIED = {
    "django.db.models.query.QuerySet": "a QuerySet would have to be evaluated; send primary keys",
    "django.db.models.expressions.Combinable": "only the database knows what it comes to; fetch the row",
    "django.db.migrations.state.StateApps": "the historical models exist only while migrating; name the app instead",
    "django.apps.registry.Apps": "import django.apps.apps in the receiver instead",
    "django.db.backends.base.base.BaseDatabaseWrapper": "a connection belongs to its process; use the alias",
    "django.http.response.HttpResponseBase": "a response belongs to its request",
    "django.template.base.Template": "a template is loaded where it is used; send its name",
    "django.template.context.BaseContext": "a template context belongs to its rendering",
    "django.core.management.base.OutputWrapper": "an open file belongs to its process",
    "django.contrib.sessions.base_session.AbstractBaseSession": "its primary key is a secret",
    "io.IOBase": "an open file belongs to its process",
    "_io._IOBase": "an open file belongs to its process",
}


def expected(error: Unencodable) -> str | None:
    """Return why a value never travels, when it is one that Django's own signals carry; else None."""
    paths = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(error.value).__mro__)
    return next((_NEVER_CARRIED[path] for path in paths if path in _NEVER_CARRIED), None)


class RequestFacts:
    """What a receiver is given of a request: its method, path, ``REMOTE_ADDR``, user agent and user.

    ``META`` holds the two headers' values; ``query_string`` and ``session_key`` are there when the setting
    ``REQUEST_EXTRAS`` names them. Body, cookies and the other headers never travel.
    """

    method: str | None
    path: str
    META: dict[str, str]

    def __init__(self, facts: dict[str, Any], user: Any) -> None:
        """Take the facts by name, and the user, who may be lazy."""
        self.__dict__.update(facts, user=user)

    def __repr__(self) -> str:
        return f"<RequestFacts {self.method} {self.path}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        opt_in = " List it in REQUEST_EXTRAS to have it." if name in conf.REQUEST_EXTRAS else ""
        raise NotCarried(
            f"request.{name} stayed behind: of a request only {', '.join(sorted(self.__dict__))} travel.{opt_in} "
            "Send what the receiver needs as an argument of the signal."
        )


def _request(request: HttpRequest, encoder: Encoder) -> list[Any]:
    extras = conf.get().REQUEST_EXTRAS
    facts: dict[str, Any] = {
        "method": request.method,
        "path": request.path,
        "META": {key: request.META[key] for key in ("REMOTE_ADDR", "HTTP_USER_AGENT") if key in request.META},
    }
    if "query_string" in extras:
        facts["query_string"] = request.META.get("QUERY_STRING", "")
    if "session_key" in extras:
        facts["session_key"] = getattr(getattr(request, "session", None), "session_key", None)
    return [encoder.encode(facts), _user(request, encoder)]


def _user(request: HttpRequest, encoder: Encoder) -> Any:
    """Carry a user that the request has looked up already; looking one up here would query, perhaps in vain."""
    cached = getattr(request, "_cached_user", None)
    user: Any = request.__dict__.get("user", cached)
    while issubclass(type(user), LazyObject):
        user = user._wrapped
    if user is empty and cached is None:
        return absent(Unencodable(request, "the request never looked its user up; touch request.user before sending"))
    return encoder.encode(cached if user is empty else user)


def _request_from(payload: Any, decoder: Decoder) -> RequestFacts:
    facts, user = payload
    kind = user.get(TAG) if isinstance(user, dict) else None
    lazy = SimpleLazyObject(lambda: decoder.decode(user)) if kind == "obj" else decoder.decode(user)
    return RequestFacts(decoder.decode(facts), lazy)


def _facts(facts: RequestFacts, encoder: Encoder) -> dict[str, Any]:
    """Pass on, from a receiver that sends a signal itself, the facts it was given."""
    values = {key: value for key, value in vars(facts).items() if key != "user"}
    return {TAG: "request", "v": [encoder.encode(values), encoder.encode(facts.user)]}


register(HttpRequest, tag="request", encode=_request, decode=_request_from, subclasses=True)
register_transparent(RequestFacts, _facts)
register_transparent("rest_framework.request.Request", lambda request, encoder: encoder.strictly(request._request))

# request_started carries the raw WSGI environ or ASGI scope: every header, cookies and Authorization included.
_ENVIRON_FACTS = ("REQUEST_METHOD", "PATH_INFO", "REMOTE_ADDR", "HTTP_USER_AGENT")
_SCOPE_FACTS = ("type", "method", "path", "scheme")


def environ_facts(environ: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a WSGI environ or ASGI scope that may travel."""
    extra = ("QUERY_STRING", "query_string") if "query_string" in conf.get().REQUEST_EXTRAS else ()
    return {key: environ[key] for key in (*_ENVIRON_FACTS, *_SCOPE_FACTS, *extra) if key in environ}
