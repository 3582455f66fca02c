"""The pages of deliveries in Django's admin: what is shown, to whom, and what people can do there."""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from django.contrib.admin import AdminSite
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.db import connections
from django.db.models.signals import post_delete, post_save
from django.http import Http404
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext

from django_celery_signals.admin import bounds, changing, choices, facts, failures, lineage, listing, places, searching
from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.durable.rows import STEP
from django_celery_signals.models import Delivery
from tests.delivering import moment, place, states
from tests.parameters import each_database
from tests.receiving import Receiving
from tests.shop.models import Customer, Order, Tag, User

pytestmark = pytest.mark.django_db(databases=["default", "other"])

LIST = "/admin/django_celery_signals/delivery/"
FAILURES = f"{LIST}failures/"
EVERY = ("view_delivery", "replay_delivery", "view_payload")

SECRET = "4711-sesame"
PAYLOAD = f'{{"kwargs":[["instance",{{"!":"obj","v":0}}]],"objects":[{{"pk":5,"phone":"{SECRET}"}}]}}'
FAILED = {
    "state": State.FAILED,
    "due_at": moment(3600),
    "finished_at": moment(-60),
    "error_type": "shop.Boom",
    "error_message": f"No such phone: {SECRET}",
    "traceback": f"Traceback: phone={SECRET}",
    "fingerprint": "shop.Boom in shop.views.buy",
    "payload": PAYLOAD,
    "options": {"countdown": 77.25},
}


@pytest.fixture(autouse=True)
def two_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery's page asks no other databases what it caused."""
    monkeypatch.setattr(lineage, "keeping", lambda: ["default", "other"])


@pytest.fixture
def log_in() -> Callable[..., Client]:
    """Logs a member of the staff in, who has the given permissions of deliveries, or those of a superuser."""

    def enter(*permissions: str, superuser: bool = False) -> Client:
        user = User.objects.create_user("ada", password="x", is_staff=True, is_superuser=superuser)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        client = Client(enforce_csrf_checks=False)
        client.force_login(user)
        return client

    return enter


@pytest.fixture
def client(log_in: Callable[..., Client]) -> Client:
    """Somebody who may do everything with deliveries, and nothing else."""
    return log_in(*EVERY)


def written(alias: str = "default", receiver: str = "shop.note", **columns: Any) -> Any:
    """Write a delivery and return it."""
    facts = {"event_id": str(uuid.uuid4()), "summary": "post_save shop.Order pk=5 created", **columns}
    summary, event_id = facts.pop("summary"), facts.pop("event_id")
    place(alias, receiver, signal="django.db.models.signals:post_save", **facts)
    row = deliveries(alias).latest("pk")
    deliveries(alias).filter(pk=row.pk).update(summary=summary, event_id=event_id)
    row.refresh_from_db(using=alias)
    return row


def failed(alias: str = "default", receiver: str = "shop.note", **columns: Any) -> Any:
    """Write a delivery that has failed, and return it."""
    return written(alias, receiver, **{**FAILED, **columns})


def page(client: Client, url: str = LIST, **parameters: str) -> str:
    """Return the text of a page."""
    response = client.get(url, parameters)
    assert response.status_code == 200
    return unescape(response.content.decode())


def rows_of(client: Client, **parameters: str) -> list[Any]:
    """Return what the list shows."""
    response = client.get(LIST, parameters)
    assert response.status_code == 200
    return [row.pk for row in response.context["cl"].result_list]


def own(row: Any, page: str = "change") -> str:
    """Return the address of a delivery's page."""
    return f"{LIST}{row._state.db}_3A{row.pk}/{page}/"


def said(response: Any) -> list[str]:
    """Return the messages of a page."""
    return [str(message) for message in response.context["messages"]]


# Who may what --------------------------------------------------------------------------------------------------------


def test_without_the_admin_nothing_is_imported() -> None:
    """A project without ``django.contrib.admin`` never imports these pages."""
    code = """
import sys, django
from django.conf import settings
settings.configure(INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django_celery_signals"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
django.setup()
from django.core.management import call_command
call_command("check")
print(sorted(name for name in sys.modules if name.startswith(("django.contrib.admin", "django_celery_signals.admin"))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "[]" == done.stdout.splitlines()[-1]


def test_permissions_are_made() -> None:
    """There are three permissions: to see deliveries, to see what was sent, to retry and discard."""
    found = Permission.objects.filter(content_type__app_label="django_celery_signals", content_type__model="delivery")

    assert sorted(EVERY) == sorted(found.values_list("codename", flat=True))


@pytest.mark.parametrize("url", [LIST, FAILURES, f"{LIST}default_3A1/change/"])
def test_pages_need_a_permission(log_in: Callable[..., Client], url: str) -> None:
    """Without ``view_delivery`` no page is shown, whatever else somebody may do."""
    failed()
    client = log_in("replay_delivery", "view_payload")

    assert 403 == client.get(url).status_code or "doesn’t exist" in page(client, "/admin/")


def test_detail_needs_a_permission(log_in: Callable[..., Client]) -> None:
    """Nor a delivery's own page."""
    assert 403 == log_in("replay_delivery", "view_payload").get(own(failed())).status_code


def test_nobody_edits(log_in: Callable[..., Client]) -> None:
    """Not even a superuser can add, edit or delete a delivery."""
    client, row = log_in(superuser=True), failed()

    assert 403 == client.get(f"{LIST}add/").status_code
    assert 403 == client.post(own(row), {"state": 1}).status_code
    assert 403 == client.post(own(row, "delete"), {"post": "yes"}).status_code
    assert 'value="delete_selected"' not in page(client)


def test_superusers_see_and_do(log_in: Callable[..., Client]) -> None:
    """A superuser has every permission."""
    text = page(log_in(superuser=True), own(failed()))

    assert SECRET in text
    assert "Discard…" in text


def test_what_was_sent_is_hidden(log_in: Callable[..., Client]) -> None:
    """Without ``view_payload`` no page has a value of what was sent, nor the key, options, message or traceback."""
    client, row = (
        log_in("view_delivery", "replay_delivery"),
        failed(key="Countess Lovelace", lane="x" * 32, slot="x" * 32),
    )
    pages = [page(client), page(client, own(row)), page(client, FAILURES)]

    for text in pages:
        for secret in (SECRET, "Lovelace", "77.25"):
            assert secret not in text
        assert "shop.Boom" in text or text is pages[0]
    assert 5 == pages[1].count(facts.HIDDEN + "</span>")
    assert "The traceback is hidden." in pages[2]


def test_a_search_is_no_oracle(log_in: Callable[..., Client]) -> None:
    """Without ``view_payload`` no search tells whether there is a key, and with it one does."""
    row = written(key="shop.Order:5", summary="paid shop.Order")
    blind = log_in("view_delivery")
    for text in ("shop.Order:5", "shop.Order 5", "key=shop.Order:5"):
        assert [] == rows_of(blind, q=text)
    User.objects.get().user_permissions.set(Permission.objects.filter(codename__in=EVERY))
    for text in ("shop.Order:5", "shop.Order 5", "key=shop.Order:5"):
        assert [row.pk] == rows_of(blind, q=text)


@pytest.mark.parametrize(
    "name", ["payload__contains", "key", "traceback__startswith", "error_message", "options__countdown"]
)
def test_an_address_is_no_oracle(client: Client, name: str) -> None:
    """Nobody can ask by the address for what no filter asks for."""
    failed()

    assert 400 == client.get(LIST, {name: "4"}).status_code


def test_actions_need_a_permission(log_in: Callable[..., Client]) -> None:
    """Without ``replay_delivery`` nothing is offered, and what is sent all the same is refused."""
    client, row = log_in("view_delivery", "view_payload"), failed()
    texts = [page(client), page(client, own(row)), page(client, FAILURES)]
    group = {"receiver": row.receiver, "fingerprint": row.fingerprint, "confirmed": "yes"}
    forged = {"action": "retry_selected", "_selected_action": row.pk, "index": 0}

    assert [] == [text for text in texts if re.search(r">Retry|>Discard|_selected_action", text)]
    assert 403 == client.post(LIST, forged).status_code
    assert 403 == client.post(own(row, "retry")).status_code
    assert 403 == client.post(own(row, "discard"), {"confirmed": "yes"}).status_code
    assert 403 == client.post(f"{FAILURES}retry/", group).status_code
    assert ({"failed": 1}, 0) == (states("default"), LogEntry.objects.count())


def test_forged_requests(log_in: Callable[..., Client]) -> None:
    """What changes something needs the token of Django's protection, and POST."""
    log_in(*EVERY)
    row, client = failed(), Client(enforce_csrf_checks=True)
    client.force_login(User.objects.get())
    group = {"receiver": row.receiver, "fingerprint": row.fingerprint, "confirmed": "yes"}

    assert 403 == client.post(own(row, "retry")).status_code
    assert 403 == client.post(own(row, "discard"), {"confirmed": "yes"}).status_code
    assert 403 == client.post(f"{FAILURES}discard/", group).status_code
    assert 403 == client.post(LIST, {"action": "retry_selected", "_selected_action": row.pk, "index": 0}).status_code
    assert 405 == client.get(own(row, "retry")).status_code
    assert 405 == client.get(f"{FAILURES}discard/", group).status_code
    assert {"failed": 1} == states("default")


# The list ------------------------------------------------------------------------------------------------------------


def test_list(client: Client) -> None:
    """The list shows the newest first, each with its state, and leads to its page."""
    old, new = written(key="k1", attempts=3), failed()
    text = page(client)

    assert [new.pk, old.pk] == rows_of(client)
    assert own(new) in text
    assert "post_save shop.Order pk=5 created" in text
    assert ">ready<" in text
    assert ">failed<" in text
    assert ">k1<" in text
    assert '<div class="dcs-below">3 attempts</div>' in text
    assert "2 deliveries" in text


def test_page_of_the_app(client: Client) -> None:
    """The app's own page of the admin leads to the dashboard and to the failures."""
    text = page(client, "/admin/django_celery_signals/")

    assert f'<a href="{LIST}dashboard/">Dashboard</a>' in text
    assert f'<a href="{LIST}failures/">Failures by cause</a>' in text


def test_empty_list(client: Client) -> None:
    """A list without deliveries says so, and whether filters are the reason."""
    assert "all have arrived" in page(client)
    assert "No delivery is like that." in page(client, state="failed")


def test_order_is_given(client: Client) -> None:
    """No address can ask for an order that no index has."""
    first, second = failed(receiver="a"), failed(receiver="b")

    assert [second.pk, first.pk] == rows_of(client, o="3")


def test_states(client: Client) -> None:
    """The filter chooses deliveries in each state; an unknown one chooses nothing out."""
    rows = {state.name.lower(): written(state=state, finished_at=moment(-1)).pk for state in State}

    for name, pk in rows.items():
        assert [pk] == rows_of(client, state=name)
    assert len(State) == len(rows_of(client, state="lost"))


def test_receivers(client: Client, receiving: Receiving) -> None:
    """Offered are the receivers that are durable, those of failed deliveries, and the one asked for."""
    durable = receiving(post_save, sender=Order, guarantee="durable").name
    other = receiving(post_save, sender=Customer).name
    mine = failed(receiver="shop.gone")
    written(receiver="shop.waits")
    [spec] = [
        one
        for one in client.get(LIST, {"receiver": "shop.asked"}).context["cl"].filter_specs
        if one.title == "receiver"
    ]
    offered = {name for name, _ in spec.lookup_choices}

    assert {durable, "shop.gone", "shop.asked"} <= offered
    assert not {other, "shop.waits"} & offered
    assert [mine.pk] == rows_of(client, receiver="shop.gone")


def test_signals(client: Client, receiving: Receiving) -> None:
    """Offered are the signals of durable receivers; one chooses its deliveries."""
    receiving(post_delete, sender=Order, guarantee="durable")
    row = written()
    name = "django.db.models.signals:post_delete"

    assert f"?signal={name.replace(':', '%3A')}" in page(client)
    assert [] == rows_of(client, signal=name)
    assert [row.pk] == rows_of(client, signal=row.signal)


def test_ages(client: Client) -> None:
    """The filter chooses deliveries by the time since they were sent."""
    week, day, hour, now = (written(created_at=moment(-ago)).pk for ago in (800_000, 100_000, 7200, 1))

    assert [now] == rows_of(client, age="hour")
    assert [now, hour] == rows_of(client, age="day")
    assert [now, hour, day] == rows_of(client, age="week")
    assert [hour, day, week] == rows_of(client, age="older-hour")
    assert [day, week] == rows_of(client, age="older-day")
    assert [week] == rows_of(client, age="older-week")
    assert 4 == len(rows_of(client, age="?"))


def test_ages_of_nothing(client: Client) -> None:
    """An empty table has no age."""
    assert [] == rows_of(client, age="day") == rows_of(client, age="older-day")


def test_rows_that_go_meanwhile(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is emptied while a moment is looked for is found to be empty."""
    written()
    rows = deliveries("default")
    last = rows.latest("pk").pk
    rows.all().erase()
    monkeypatch.setattr(bounds.DeliveryQuerySet, "aggregate", lambda *args, **options: {"first": 1, "last": last})

    assert 1 == bounds._first_since("default", 5.0)


def test_databases(client: Client) -> None:
    """Each database that keeps deliveries can be looked at, and stays chosen on the way to a delivery and back."""
    mine, other = failed(), failed("other", receiver="other.note", summary="rang")
    text = page(client, database="other")

    assert [other.pk] == rows_of(client, database="other")
    assert f"{own(other)}?_changelist_filters=database%3Dother" in text
    assert "other.note" in page(client, own(other))
    assert "shop.note" in page(client, own(mine))
    assert "other.note" in page(client, FAILURES, database="other")
    assert 404 == client.get(LIST, {"database": "nowhere"}).status_code
    assert 404 == client.get(FAILURES, {"database": "nowhere"}).status_code


def test_filters_are_cleared_but_for_the_database(client: Client) -> None:
    """Whoever clears the filters, or the search, stays in the database; to have chosen only that is no filter."""
    failed("other")

    def links(**parameters: str) -> list[str]:
        found = re.findall(r'href="([^"]*)"[^>]*>(?:✖ Clear|show all)', page(client, **parameters))
        return sorted(found)

    assert ["?database=other&q=x", "?database=other&state=failed"] == links(database="other", state="failed", q="x")
    assert [] == links(database="other")
    assert ["?"] == links(state="failed")


def test_one_database(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one database keeps deliveries, there is nothing to choose."""
    failed()
    for user in (places, choices):
        monkeypatch.setattr(user, "keeping", lambda: ["default"])

    assert "By database" not in page(client)


@pytest.mark.parametrize(
    "text",
    ["shop.Order pk=5", "shop.order 5", "shop.Order:5", "default:{pk}", "{pk}", "{event}", "shop.Order pk=5 created"],
)
def test_search(client: Client, text: str) -> None:
    """A delivery is found by its object, its number, its event and its summary, and another one is not."""
    row = written()
    written(summary="post_save shop.Order pk=55 created", key="shop.Order:55")

    assert [row.pk] == rows_of(client, q=text.format(pk=row.pk, event=row.event_id.upper()))


def test_search_by_key(client: Client) -> None:
    """A delivery is found by its key, by an object among the parts of its key, and by its receiver."""
    plain = written(key="Ada", receiver="r1")
    parts = written(key='["shop.Order:7", "x"]', receiver="r2", summary="rang")

    assert [plain.pk] == rows_of(client, q="Ada") == rows_of(client, q="key=Ada") == rows_of(client, q="r1")
    assert [parts.pk] == rows_of(client, q="shop.Order 7")
    assert [] == rows_of(client, q="shop.Unknown 7")


def test_search_elsewhere(client: Client) -> None:
    """The number of a delivery in another database is not found here."""
    row = failed()

    assert [] == rows_of(client, q=f"other:{row.pk}")
    assert [row.pk] == rows_of(client, q=f"default:{row.pk}")


def test_search_has_a_bound(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no index finds is looked for among the newest only, which the page says; among the failed, in all."""
    monkeypatch.setattr(bounds, "LOOKED_AT", 3)
    monkeypatch.setattr(listing, "LOOKED_AT", 3)
    old = failed(created_at=moment(-9000))
    new = [written().pk for _ in range(3)][::-1]

    assert new == rows_of(client, q="shop.Order 5") == rows_of(client, receiver="shop.note")
    assert "Only the newest 3 deliveries" in page(client, q="shop.Order 5")
    assert [old.pk] == rows_of(client, q="shop.Order 5", state="failed")
    assert [old.pk] == rows_of(client, q="shop.Order 5", age="older-hour")
    assert "Only the newest" not in page(client, q="shop.Order 5", age="older-hour")
    assert [*new, old.pk] == rows_of(client)


def test_states_of_many_have_a_bound(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a state that has very many deliveries, those among the newest are shown, and older ones by their age."""
    monkeypatch.setattr(bounds, "COUNTED", 2)
    monkeypatch.setattr(bounds, "LOOKED_AT", 2)
    old = [failed(created_at=moment(-9000)).pk for _ in range(3)]
    new = failed().pk

    assert [new, old[2]] == rows_of(client, state="failed")
    assert "Only the newest" in page(client, state="failed")
    assert [old[2], old[1]] == rows_of(client, state="failed", age="older-hour")
    assert [] == rows_of(client, state="running")


def test_counting_has_a_bound(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliveries are counted and paged through up to a bound, which the page says."""
    monkeypatch.setattr(bounds, "COUNTED", 60)
    place("default", "shop.note", 70)
    text = page(client)

    assert "60+ deliveries" in text
    assert [1, 2] == list(client.get(LIST).context["cl"].paginator.page_range)
    assert 50 == len(rows_of(client))
    assert 10 == len(rows_of(client, p="2"))
    assert 302 == client.get(LIST, {"p": "3"}).status_code


def test_queries_of_the_list(client: Client) -> None:
    """The list asks as often for many deliveries as for one."""

    def asked(**parameters: str) -> int:
        with CaptureQueriesContext(connections["default"]) as queries:
            assert client.get(LIST, parameters).status_code == 200
        return len(queries)

    failed()
    searches: list[dict[str, str]] = [{}, {"q": "shop.Order 5"}, {"state": "failed"}]
    few = [asked(**search) for search in searches]
    for number in range(30):
        failed(receiver=f"shop.note{number}")
    assert few == [asked(**search) for search in searches]
    assert max(few) <= 8


def test_links_to_objects(log_in: Callable[..., Client]) -> None:
    """A delivery leads to its object's admin page, where there is one, it is there, and one may see it."""
    client = log_in(*EVERY, "view_order")
    link, row = "/admin/shop/order/5/change/", written()

    assert link in page(client, own(row))
    User.objects.get().user_permissions.set(Permission.objects.filter(codename__in=EVERY))
    assert link not in page(client, own(row))


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param({"summary": "rang"}, id="no object"),
        pytest.param({"summary": "post_save shop.Order pk=… created"}, id="key not shown"),
        pytest.param({"signal": "django.db.models.signals:post_delete"}, id="deleted"),
        pytest.param({"signal": "django.db.models.signals:m2m_changed"}, id="sender is the table between"),
        pytest.param({"summary": "post_save shop.Unknown pk=5"}, id="no model"),
        pytest.param({"summary": "post_save shop.Tag pk=5"}, id="no admin"),
    ],
)
def test_no_links(log_in: Callable[..., Client], columns: dict[str, Any]) -> None:
    """Where no page of the object can be shown, nothing leads there."""
    client, row = log_in(superuser=True), written()
    deliveries("default").filter(pk=row.pk).update(**columns)

    assert 'change/">shop.' not in page(client, own(row))


def test_no_links_to_another_database(log_in: Callable[..., Client]) -> None:
    """A delivery of another database does not lead to the default one's object of the same key."""
    row = written("other")

    assert 'change/">shop.' not in page(log_in(superuser=True), own(row))


def test_no_links_without_addresses(log_in: Callable[..., Client], rf: RequestFactory) -> None:
    """Where a site of one's own has a model's pages, but no address, nothing leads there."""
    site, request = AdminSite(name="elsewhere"), rf.get("/")
    site.register(Tag)
    log_in(superuser=True)
    request.user = User.objects.get()

    assert facts.object_link(site, request, written(summary="post_save shop.Tag pk=5")) is None


# One of them ---------------------------------------------------------------------------------------------------------


def test_detail(client: Client) -> None:
    """A delivery's page has every fact of it but what a message must know to open it."""
    row = failed(key="k1", lane="a" * 32, slot="a" * 32, attempts=21, crashes=2, queue="urgent")
    text = page(client, own(row))

    for fact in (
        f"default:{row.pk}",
        row.event_id,
        "urgent",
        "shop.Boom in shop.views.buy",
        ">k1<",
        "21 failed, 2 crashed",
        row.summary,
    ):
        assert fact in text
    assert f'"phone": "{SECRET}"' in text
    assert f"Traceback: phone={SECRET}" in text
    assert f"No such phone: {SECRET}" in text
    assert '"countdown": 77.25' in text
    assert str(row.token) not in text
    assert "Save" not in re.findall(r'type="submit" value="([^"]*)"', text)


def test_ways_from_the_detail(client: Client) -> None:
    """Buttons and links of a delivery's page lead to itself, in its own database."""
    row = failed("other")
    text = page(client, own(row))

    for word in ("retry", "discard"):
        assert f'formaction="{own(row, word)}"' in text
    assert f'href="{own(row, "history")}"' in text


def test_detail_of_what_waits(client: Client) -> None:
    """One that has not failed has no failure, and nothing can be done with it."""
    text = page(client, own(written()))

    assert "Traceback" not in text
    assert ">Retry<" not in text
    assert "Discard…" not in text


def test_no_such_delivery(client: Client) -> None:
    """What is no delivery has no page."""
    for name in ("default_3A99", "nowhere_3A1", "x"):
        response = client.get(f"{LIST}{name}/change/", follow=True)
        assert "doesn’t exist" in unescape(response.content.decode())
    assert 404 == client.post(f"{LIST}x/retry/").status_code


def test_damaged_payload(client: Client) -> None:
    """A payload that is no JSON is shown as it is, and escaped; of a very long one the beginning."""
    row = written(payload="<script>alert(1)</script>")

    assert "&lt;script&gt;alert(1)" in client.get(own(row)).content.decode()
    assert "1 characters more" in facts.block("x" * (facts.MOST_TEXT + 1))
    assert "[" * 99_999 in facts.pretty("[" * 99_999)


def test_turns(client: Client) -> None:
    """Deliveries of a key lead to one another: what waits to what it waits for, what blocks to what waits."""
    lane = {"lane": "b" * 32, "key": "k"}
    head = failed(**lane, slot="b" * 32)
    one, two = written(**lane, due_at=None), written(**lane, due_at=None)
    text = page(client, own(head))

    assert "Blocks its key: 2 wait behind it" in text
    assert own(one) in text
    assert own(two) not in text
    assert own(head) in page(client, own(two)).split("Waits behind")[1]
    deliveries("default").filter(pk=head.pk).update(state=State.RUNNING)
    assert "It is its turn: 2 wait behind it" in page(client, own(head))
    deliveries("default").filter(pk__in=[one.pk, two.pk]).erase()
    assert "No other waits behind it." in page(client, own(head))
    deliveries("default").filter(pk=head.pk).update(slot=None)
    assert "Waits for no other." in page(client, own(head))


def test_history(client: Client) -> None:
    """A delivery's history has what was done with it."""
    row = failed()
    client.post(own(row, "retry"))

    assert f"Retried default:{row.pk}" in page(client, own(row, "history"))


@pytest.mark.parametrize(
    ("state", "seconds", "words"),
    [
        (State.READY, 110, "in 1 min"),
        (State.READY, -70, "overdue by 1 min"),
        (State.RUNNING, 20, "lease ends in"),
        (State.RUNNING, -20, "lease ended"),
        (State.FAILED, 100_000, "erased in 1 d 3 h"),
        (State.DONE, 4000, "deleted in 1 h 6 min"),
    ],
)
def test_due(client: Client, state: State, seconds: float, words: str) -> None:
    """What happens to a delivery, and when, is said in words."""
    written(state=state, due_at=moment(seconds), finished_at=moment(-1))

    assert words in page(client)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (61, "1 min 1 s"), (3600 * 12 + 60, "12 h"), (-90_000, "1 d 1 h")],
)
def test_spans(seconds: float, words: str) -> None:
    """A distance is told in its two largest units, a long one in one."""
    assert words == facts.span(seconds)


# Retry and discard ---------------------------------------------------------------------------------------------------


def test_retry_one(client: Client) -> None:
    """Retry lets a delivery start anew, is logged, and leads back to its page."""
    row = failed()
    response = client.post(own(row, "retry"), follow=True)
    [entry] = LogEntry.objects.all()

    assert {"ready": 1} == states("default")
    assert ["1 retried."] == said(response)
    assert own(row) == response.request["PATH_INFO"]
    assert (User.objects.get().pk, CHANGE, f"default:{row.pk}") == (entry.user_id, entry.action_flag, entry.object_id)
    assert f"Retried default:{row.pk}: {row.summary} for shop.note." == entry.get_change_message()
    assert own(row).removesuffix("change/") in str(entry.get_admin_url()) + "/"


def test_discard_one(client: Client) -> None:
    """Discard asks first, says what waits behind, and then deletes; what waits goes on."""
    row = failed(lane="c" * 32, slot="c" * 32)
    written(lane="c" * 32, due_at=None)
    asked = client.post(own(row, "discard"))
    text = unescape(asked.content.decode())

    assert {"failed": 1, "ready": 1} == states("default")
    assert "<strong>1</strong> failed delivery in the database default will be discarded." in text
    assert "<strong>1</strong> wait behind these" in text
    response = client.post(own(row, "discard"), {"confirmed": "yes"}, follow=True)
    assert ["1 discarded; 1 wait behind these and go on."] == said(response)
    assert LIST == response.request["PATH_INFO"]
    assert {"ready": 1} == states("default")
    assert [DELETION] == list(LogEntry.objects.values_list("action_flag", flat=True))


def test_the_way_back(client: Client) -> None:
    """After one was discarded the list is shown as it was before, in the database of the delivery."""
    row = failed("other")
    url = f"{own(row, 'discard')}?_changelist_filters=database%3Dother%26state%3Dfailed"
    response = client.post(url, {"confirmed": "yes"})

    assert f"{LIST}?database=other&state=failed" == response.headers["Location"]
    assert f'href="{LIST}?database=other"' in page(client, own(failed("other")))


@each_database(also=["default"])
def test_what_waits_goes_on(log_in: Callable[..., Client], alias: str) -> None:
    """When one that blocks its key was discarded, the next of the key has its turn; in every database."""
    client, lane = log_in(*EVERY), {"lane": "f" * 32, "key": "k"}
    head, other = failed(alias, **lane, slot="f" * 32), failed(alias)
    following = written(alias, **lane, due_at=None)
    action = {**chosen("discard", head, other), "confirmed": "yes"}
    del action["index"]

    assert 302 == client.post(f"{LIST}?database={alias}", action).status_code
    assert {"ready": 1} == states(alias)
    assert "f" * 32 == deliveries(alias).get(pk=following.pk).slot
    assert 2 == LogEntry.objects.count()


def test_retry_without_payload(client: Client) -> None:
    """One that has lost its payload cannot be retried, which its page and the answer say."""
    row = failed(payload=None)

    assert ">Retry<" not in page(client, own(row))
    assert "cannot be retried: it has lost its payload" in page(client, own(row))
    response = client.post(own(row, "retry"), follow=True)
    assert ["0 retried.", "1 cannot be retried: they have lost their payload. Discard them."] == said(response)
    assert ({"failed": 1}, 0) == (states("default"), LogEntry.objects.count())


def test_retry_of_what_has_not_failed(client: Client) -> None:
    """One that has not failed is left alone."""
    response = client.post(own(written(), "retry"), follow=True)

    assert ["0 retried.", "1 have not failed, and are left alone."] == said(response)


def test_other_databases(client: Client) -> None:
    """A delivery of another database is changed there, and its log entry leads there."""
    row, mine = failed("other"), failed()
    client.post(own(row, "retry"))

    assert ({"ready": 1}, {"failed": 1}) == (states("other"), states("default"))
    assert f"other:{row.pk}" == LogEntry.objects.get().object_id
    assert mine.pk == deliveries("default").failed().get().pk


def chosen(action: str, *rows: Any, **more: Any) -> dict[str, Any]:
    """Return what the list sends when deliveries are chosen."""
    return {"action": f"{action}_selected", "_selected_action": [row.pk for row in rows], "index": 0, **more}


def test_retry_selected(client: Client) -> None:
    """Those that were ticked are retried, and reported are those that could not be."""
    rows = [failed(), failed(), failed(payload=None), written()]
    failed()
    response = client.post(LIST, chosen("retry", *rows), follow=True)

    assert {"ready": 3, "failed": 2} == states("default")
    assert said(response) == [
        "2 retried.",
        "1 cannot be retried: they have lost their payload. Discard them.",
        "1 have not failed, and are left alone.",
    ]
    assert 2 == LogEntry.objects.count()


def test_discard_selected(client: Client) -> None:
    """Those that were ticked are discarded once that was confirmed, in their own database."""
    rows = [failed("other"), failed("other"), written("other")]
    url = f"{LIST}?database=other"
    text = unescape(client.post(url, chosen("discard", *rows)).content.decode())
    hidden = re.findall(r'type="hidden" name="(\w+)" value="(\w+)"', text)

    assert {"failed": 2, "ready": 1} == states("other")
    assert "<strong>2</strong> failed deliveries in the database other" in text
    assert "<strong>1</strong> have not failed" in text
    data: dict[str, list[str]] = {}
    for name, value in hidden:
        data.setdefault(name, []).append(value)
    assert 302 == client.post(url, data).status_code
    assert {"ready": 1} == states("other")
    assert 2 == LogEntry.objects.count()


def test_all_of_the_list(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pages of the list are retried once that was confirmed, in steps, and up to a bound."""
    monkeypatch.setattr(changing, "STEP", 2)
    monkeypatch.setattr(changing, "LOGGED", 2)
    monkeypatch.setattr(changing, "COUNTED", 4)
    rows = [failed(receiver=f"shop.r{number % 2}") for number in range(6)]
    written()
    across = chosen("retry", rows[0], select_across="1")
    text = unescape(client.post(f"{LIST}?state=failed", across).content.decode())

    assert {"failed": 6, "ready": 1} == states("default")
    assert "<strong>6</strong> failed deliveries" in text
    assert 'name="select_across" value="1"' in text
    del across["index"]
    response = client.post(f"{LIST}?state=failed", {**across, "confirmed": "yes"}, follow=True)
    assert ["4 retried.", "More are left: retry them by the same action again."] == said(response)
    assert {"failed": 2, "ready": 5} == states("default")
    entries = list(LogEntry.objects.order_by("pk").values_list("object_id", "change_message"))
    assert [f"default:{rows[5].pk}", f"default:{rows[4].pk}", None] == [place for place, _ in entries]
    first, last = (f"default:{row.pk}" for row in rows[2:4])
    assert f"Retried 2 deliveries between {first} and {last}: shop.r1 (1), shop.r0 (1)." == entries[2][1]


def test_what_others_have_meanwhile(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was retried by somebody else in the meantime is not logged."""
    row = failed()
    monkeypatch.setattr(changing, "LOGGED", 0)

    def steal(self: Any, limit: int) -> Any:
        deliveries("default").filter(pk=row.pk).update(state=State.READY)
        return held(self, limit)

    held = changing.DeliveryQuerySet.held
    monkeypatch.setattr(changing.DeliveryQuerySet, "held", steal)
    response = client.post(own(row, "retry"), follow=True)

    assert (["0 retried."], 0) == (said(response), LogEntry.objects.count())


def test_nothing_chosen(client: Client) -> None:
    """Without a choice nothing happens."""
    failed()
    response = client.post(LIST, {"action": "retry_selected", "index": 0}, follow=True)

    assert ["Items must be selected in order to perform actions on them. No items have been changed."] == said(response)
    assert {"failed": 1} == states("default")


def test_very_many_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many blocked keys it is counted for some how many wait, and said that there may be more."""
    monkeypatch.setattr(changing, "MOST_LOCKED", 1)
    for name in "de":
        failed(lane=name * 32, slot=name * 32)
        written(lane=name * 32, due_at=None)

    assert "1+" == str(changing.waiting_behind(deliveries("default").all()))


# Failures by cause ---------------------------------------------------------------------------------------------------


def test_failures(client: Client) -> None:
    """Failures are grouped by receiver and fingerprint, the largest group first, each with one traceback."""
    for ago in (300, 200, 100):
        failed(finished_at=moment(-ago))
    failed(receiver="shop.other", fingerprint=None)
    found = client.get(FAILURES).context["found"]
    text = page(client, FAILURES)

    assert [("shop.note", 3), ("shop.other", 1)] == [(one.receiver, len(one.rows)) for one in found.groups]
    assert 199 < (found.groups[0].last - found.groups[0].first).total_seconds() < 201
    assert f"Traceback: phone={SECRET}" in text
    assert "no fingerprint" in text
    assert "database=default&state=failed&receiver=shop.other" in text


def test_no_failures(client: Client) -> None:
    """Where nothing has failed, the page says so."""
    assert "Nothing has failed in the database default." in page(client, FAILURES)


def test_very_many_failures(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many the newest are grouped, and of very many groups the largest shown; the page says so."""
    monkeypatch.setattr(failures, "COUNTED", 3)
    monkeypatch.setattr(failures, "SHOWN", 2)
    for number in range(4):
        failed(receiver=f"shop.r{number}")
    text = page(client, FAILURES)

    assert "Only the newest 3 failed deliveries" in text
    assert "1 smaller groups are not shown" in text
    assert ["shop.r3", "shop.r2"] == [one.receiver for one in client.get(FAILURES).context["found"].groups]


@pytest.mark.parametrize("permissions", [EVERY, ("view_delivery",)])
def test_queries_of_the_failures(log_in: Callable[..., Client], permissions: tuple[str, ...]) -> None:
    """The page asks as often for many groups as for one, whoever looks."""
    client = log_in(*permissions)

    def asked() -> int:
        with CaptureQueriesContext(connections["default"]) as queries:
            assert client.get(FAILURES).status_code == 200
        return len(queries)

    failed()
    few = asked()
    for number in range(30):
        failed(receiver=f"shop.note{number}")
    assert few == asked() <= 6


@pytest.mark.parametrize("fingerprint", ["shop.Boom in shop.views.buy", ""])
def test_group(client: Client, fingerprint: str) -> None:
    """A group is changed as a whole, once that was confirmed, and nothing besides."""
    mine = [failed(fingerprint=fingerprint or None).pk for _ in range(2)]
    failed(fingerprint="shop.Bang in shop.views.buy")
    failed(receiver="shop.other")
    group = {"receiver": "shop.note", "fingerprint": fingerprint}
    text = unescape(client.post(f"{FAILURES}retry/?database=default", group).content.decode())

    assert {"failed": 4} == states("default")
    assert "<strong>2</strong> failed deliveries" in text
    assert f"shop.note: {fingerprint or 'no fingerprint'}" in text
    response = client.post(f"{FAILURES}retry/?database=default", {**group, "confirmed": "yes"}, follow=True)
    assert ["2 retried."] == said(response)
    assert FAILURES == response.request["PATH_INFO"]
    assert mine == list(deliveries("default").filter(state=State.READY).order_by("pk").values_list("pk", flat=True))


def test_unknown_word(client: Client) -> None:
    """A group can be retried or discarded."""
    assert 404 == client.post(f"{FAILURES}hide/", {"receiver": "a"}).status_code


# Places --------------------------------------------------------------------------------------------------------------


def test_places(monkeypatch: pytest.MonkeyPatch, rf: RequestFactory) -> None:
    """A delivery's name has the database; without one it is of the first that keeps deliveries, if any does."""
    assert ("other", 5) == places.read_place("other:5")
    assert ("default", 5) == places.read_place("5")
    assert ("other", 5) == places.read_place("5", "other")
    for text in ("other:", "nowhere:5", "other:²", "other:9999999999999999999", ""):
        assert places.read_place(text) is None
    monkeypatch.setattr(places, "keeping", list)
    assert places.read_place("5") is None
    with pytest.raises(Http404, match="no deliveries"):
        places.database_of(rf.get("/"))


def test_labels() -> None:
    """A model's name is read whatever its letters; an unknown one stays as it is."""
    assert "shop.Order" == searching._label("shop.order")
    assert "shop.Nothing" == searching._label("shop.Nothing")


def test_steps() -> None:
    """A step is as large as one statement may be."""
    assert changing.STEP == STEP


@pytest.mark.parametrize("place", ["", "failures/", "dashboard/", "other_3A1/change/"])
def test_a_database_that_is_away(client: Client, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of a database that does not answer, or was not migrated, says so, and leads to the others."""
    with connections["other"].cursor() as cursor:
        cursor.execute("ALTER TABLE django_celery_signals_delivery RENAME TO elsewhere")

    answer = client.get(f"{LIST}{place}", {"database": "other"})

    assert 503 == answer.status_code
    text = answer.content.decode()
    assert "OperationalError: no such table: django_celery_signals_delivery" in text
    assert "manage.py migrate --database=other" in text
    assert f'href="{LIST}?database=default"' in text


def test_an_action_on_a_database_that_is_away(client: Client) -> None:
    """The same for what would change something."""
    pk = failed().pk
    with connections["default"].cursor() as cursor:
        cursor.execute("ALTER TABLE django_celery_signals_delivery RENAME TO elsewhere")

    assert 503 == client.post(f"{LIST}default_3A{pk}/retry/").status_code


def test_who_may_change_may_not_see(log_in: Callable[..., Client]) -> None:
    """A permission to change deliveries, which there is no more, opens no page."""
    kind = ContentType.objects.get_for_model(Delivery)
    Permission.objects.get_or_create(content_type=kind, codename="change_delivery", defaults={"name": "old"})

    assert 403 == log_in("change_delivery").get(LIST).status_code
