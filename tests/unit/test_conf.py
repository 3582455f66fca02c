"""The settings: their defaults, what they may be, and when they are read again."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_celery_signals import SettingsError, conf
from django_celery_signals.conf import Settings, read


def test_defaults() -> None:
    """Without settings, everything has a value."""
    with override_settings():
        del settings.DJANGO_CELERY_SIGNALS  # of which Django tells nobody
        conf.get.cache_clear()
        found = conf.get()
    conf.get.cache_clear()

    assert Settings() == found == read({})
    assert {
        "GUARANTEE": None,
        "STRICT": False,
        "AUTODISCOVER": ("receivers", "tasks"),
        "SENSITIVE_FIELDS": (),
        "PUBLISH_TIMEOUT": 2.0,
        "FAST_PATH_LIMIT": 50,
        "LEASE": 25.0,
        "EMBED_RELAY": True,
        "ATOMIC_SAVES": True,
        "FAILED_PAYLOAD_DAYS": 30.0,
        "STATISTICS_DAYS": 7.0,
        "MAX_DEPTH": 8,
        "REQUEST_EXTRAS": (),
        "MAX_BINARY_BYTES": 2**20,
        "MAX_ENVELOPE_BYTES": 2**23,
    } == asdict(Settings())


@pytest.mark.parametrize("given", [{}, {"GUARANTEE": None}, {"GUARANTEE": "immediate"}])
def test_the_guarantee_of_receivers_that_name_none(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what the project says, else "durable", or "on_commit" where the app is not installed and has no table."""
    with override_settings(DJANGO_CELERY_SIGNALS=given):
        installed = conf.default_guarantee()
        monkeypatch.delitem(apps.app_configs, "django_celery_signals")
        without_app = conf.default_guarantee()

    named = given.get("GUARANTEE")
    assert (named or "durable", named or "on_commit") == (installed, without_app)


@pytest.mark.parametrize(
    ("key", "given", "typed"),
    [
        ("GUARANTEE", "durable", "durable"),
        ("GUARANTEE", "immediate", "immediate"),
        ("GUARANTEE", None, None),
        ("STRICT", True, True),
        ("AUTODISCOVER", ["handlers"], ("handlers",)),
        ("AUTODISCOVER", [], ()),
        ("SENSITIVE_FIELDS", ("iban", "shop.Customer.birthday"), ("iban", "shop.Customer.birthday")),
        ("SENSITIVE_FIELDS", {"iban"}, ("iban",)),
        ("PUBLISH_TIMEOUT", 1, 1),
        ("PUBLISH_TIMEOUT", 0.25, 0.25),
        ("FAST_PATH_LIMIT", 0, 0),
        ("LEASE", 1, 1),
        ("EMBED_RELAY", False, False),
        ("ATOMIC_SAVES", False, False),
        ("FAILED_PAYLOAD_DAYS", 0.5, 0.5),
        ("STATISTICS_DAYS", 0.5, 0.5),
        ("STATISTICS_DAYS", 0, 0),
        ("MAX_DEPTH", 1, 1),
        ("REQUEST_EXTRAS", ["session_key", "query_string"], ("session_key", "query_string")),
        ("MAX_BINARY_BYTES", 0, 0),
        ("MAX_ENVELOPE_BYTES", 1024, 1024),
    ],
)
def test_a_setting(key: str, given: Any, typed: Any) -> None:
    """A setting is what it is set to, lists as tuples that nobody can change, and the others keep their defaults."""
    found = read({key: given})

    assert typed == getattr(found, key)
    assert type(typed) is type(getattr(found, key))
    assert {key} >= {name for name in Settings.__slots__ if getattr(found, name) != getattr(Settings(), name)}


@pytest.mark.parametrize(
    ("key", "given", "wanted"),
    [
        *[("GUARANTEE", value, "one of 'durable', 'on_commit', 'immediate'") for value in ("always", "", True, [])],
        ("STRICT", 1, "True or False"),
        ("STRICT", "yes", "True or False"),
        ("AUTODISCOVER", "receivers", r"a list of module names such as \['receivers', 'tasks'\]"),
        ("AUTODISCOVER", True, "a list of module names"),
        ("AUTODISCOVER", [5], "a list of module names"),
        ("SENSITIVE_FIELDS", "iban", r"a list of field names such as \['iban', 'shop.Customer.birthday'\]"),
        *[("PUBLISH_TIMEOUT", value, "a number of seconds greater than zero") for value in (0, -1, "2", True, None)],
        ("PUBLISH_TIMEOUT", math.inf, "a number of seconds greater than zero"),
        ("PUBLISH_TIMEOUT", math.nan, "a number of seconds greater than zero"),
        *[("FAST_PATH_LIMIT", value, "a whole number; 0: leave all to the relay") for value in (-1, 1.0, True, None)],
        *[("LEASE", value, "a number of seconds, at least 1") for value in (0.5, 0, -1, math.inf, True, "60", None)],
        *[("EMBED_RELAY", value, "True or False") for value in (1, None, "no")],
        *[("ATOMIC_SAVES", value, "True or False") for value in (0, None, "no")],
        *[("FAILED_PAYLOAD_DAYS", value, "a number of days greater than zero") for value in (0, -1, None, math.inf)],
        *[("STATISTICS_DAYS", value, "a number of days; 0: count nothing") for value in (-1, None, False, math.inf)],
        *[("MAX_DEPTH", value, "a whole number of at least 1") for value in (0, -1, 1.5, True, "8", None)],
        ("REQUEST_EXTRAS", ["cookies"], "a list of 'query_string', 'session_key'"),
        ("REQUEST_EXTRAS", "query_string", "a list of 'query_string', 'session_key'"),
        *[("MAX_BINARY_BYTES", value, "a number of bytes") for value in (-1, 1.5, True, "1M")],
        *[("MAX_ENVELOPE_BYTES", value, "a number of bytes, at least 1024") for value in (1023, 2000.0, None)],
    ],
)
def test_a_wrong_setting(key: str, given: Any, wanted: str) -> None:
    """A value that cannot be raises, showing the key, the value and what it may be."""
    with pytest.raises(SettingsError, match=rf"DJANGO_CELERY_SIGNALS\['{key}'\] is .*, but must be {wanted}") as caught:
        read({key: given})

    assert repr(given) in str(caught.value)
    assert isinstance(caught.value, ImproperlyConfigured)


@pytest.mark.parametrize("key", ["guarantee", "GUARANTE", 5])
def test_an_unknown_key(key: Any) -> None:
    """A key that does not exist raises, and the error lists those that do."""
    with pytest.raises(
        SettingsError, match=rf"the unknown key {key!r}\. Known keys: GUARANTEE, STRICT, AUTODISCOVER, "
    ):
        read({key: "on_commit"})


@pytest.mark.parametrize("given", [None, "on_commit", ["GUARANTEE"]])
def test_settings_are_a_dict(given: Any) -> None:
    """Settings that are no dict raise, showing an example."""
    with pytest.raises(SettingsError, match=r"but must be a dict such as {'GUARANTEE': 'on_commit'}"):
        read(given)


def test_settings_are_read_once() -> None:
    """The settings are checked at their first use, and again when a test changes them."""
    before = conf.get()
    with override_settings(SHOP_OPEN=True):
        assert before is conf.get()
    with override_settings(DJANGO_CELERY_SIGNALS={"MAX_DEPTH": 3}):
        assert 3 == conf.get().MAX_DEPTH
    assert before == conf.get()


def test_wrong_settings_of_a_project() -> None:
    """The first use of settings that cannot be raises, and so does every other."""
    with override_settings(DJANGO_CELERY_SIGNALS={"STRICT": "no"}):
        for _ in range(2):
            with pytest.raises(SettingsError, match=r"DJANGO_CELERY_SIGNALS\['STRICT'\] is 'no'"):
                conf.get()
