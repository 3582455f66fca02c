"""Django's own signals, sent by Django and received through a message: what arrives, and for whom."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from celery import Celery
from django.apps import apps
from django.contrib.auth import authenticate, login, logout
from django.contrib.auth.models import AnonymousUser
from django.contrib.auth.models import User as SwappedOut
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.contrib.sessions.backends.cache import SessionStore
from django.core.management import call_command
from django.core.signals import got_request_exception, request_finished, request_started, setting_changed
from django.db import models
from django.db.migrations.state import ProjectState
from django.db.models.signals import (
    m2m_changed,
    post_delete,
    post_migrate,
    post_save,
    pre_delete,
    pre_migrate,
    pre_save,
)
from django.dispatch import Signal
from django.test import Client, RequestFactory, override_settings
from django.test.client import ClientHandler

import django_celery_signals
from django_celery_signals import ConnectError, NotCarried, connect, disconnect
from django_celery_signals.codec.standins import RequestFacts, Unavailable
from django_celery_signals.parameters import never_sends
from tests.drain import drain, take
from tests.receiving import Receiving
from tests.shop.models import (
    Club,
    Country,
    Customer,
    Everything,
    Invoice,
    Membership,
    Order,
    OrderLine,
    Parcel,
    Person,
    PriorityOrder,
    Product,
    Profile,
    Receipt,
    RushOrder,
    Stamped,
    Stock,
    Tag,
    User,
)

pytestmark = pytest.mark.django_db

TABLE_SIGNALS = (pre_save, post_save, pre_delete, post_delete)

order_paid = Signal()


class Till:
    """A sender that is no model."""


till = Till()


@pytest.fixture(autouse=True)
def at_once(settings: Any) -> None:
    """Messages leave without waiting for the commit, which the test never makes."""
    settings.DJANGO_CELERY_SIGNALS = {"GUARANTEE": "immediate"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Receives signals as a worker does, and keeps what the receivers were given."""

    app: Celery
    receiving: Receiving
    given: list[dict[str, Any]] = field(default_factory=list)

    def of(self, signal: Any, **options: Any) -> None:
        """Receive a signal, or several."""

        def note(**kwargs: Any) -> None:
            self.given.append(kwargs)

        task = self.receiving(Signal(), note)
        connect(signal, task, **options)
        where = {name: options[name] for name in ("sender", "subclasses") if name in options}
        self.receiving.undo.append(lambda: disconnect(signal, task, **where))

    def forget(self) -> None:
        """Drop what was sent so far."""
        take(self.app)

    def now(self) -> list[dict[str, Any]]:
        """Run what was sent, and return what the receivers were given."""
        assert {"SUCCESS"} >= {result.state for result in drain(self.app)}
        return self.given

    def only(self) -> dict[str, Any]:
        """Return what the only receiver was given."""
        (given,) = self.now()
        return given

    def words(self, *names: str) -> list[tuple[Any, ...]]:
        """Return some of what each was given."""
        return [tuple(given[name] for name in names) for given in self.now()]


@pytest.fixture
def arrivals(celery_app: Celery) -> Iterator[Arrivals]:
    receiving = Receiving(app=celery_app)
    yield Arrivals(app=celery_app, receiving=receiving)
    receiving.end()


@pytest.fixture
def order() -> Order:
    return Order.objects.create(customer=Customer.objects.create(name="Ada"))


# Saving ------------------------------------------------------------------------------------------------------------


def test_saving(arrivals: Arrivals) -> None:
    """pre_save and post_save arrive with the live signal and class and exactly what Django sends (H20, H21, H22)."""
    arrivals.of([pre_save, post_save], sender=Tag)
    tag = Tag.objects.create(name="gift")
    tag.name = "present"
    tag.save(update_fields=["name"])

    first, second, third, fourth = arrivals.now()

    assert [pre_save, post_save, pre_save, post_save] == [given["signal"] for given in arrivals.given]
    assert {Tag} == {given["sender"] for given in arrivals.given}
    assert {"signal", "sender", "instance", "raw", "using", "update_fields"} == set(first) == set(third)
    assert {*first, "created"} == set(second) == set(fourth)
    assert [(False, "default", None)] * 2 == [
        (one["raw"], one["using"], one["update_fields"]) for one in (first, second)
    ]
    assert [True, False] == [second["created"], fourth["created"]]
    assert [frozenset({"name"})] * 2 == [one["update_fields"] for one in (third, fourth)]
    assert [None, tag.pk, tag.pk, tag.pk] == [given["instance"].pk for given in arrivals.given]
    assert [True, False] == [first["instance"]._state.adding, second["instance"]._state.adding]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Country.objects.create(code="de", name="Germany"),
        lambda: Parcel.objects.create(weight=2.5),
        lambda: Profile.objects.create(customer=Customer.objects.create(name="Ada"), motto="on"),
        lambda: Everything.objects.create(char="x"),
    ],
    ids=["text", "uuid", "foreign key", "every field"],
)
def test_primary_keys(make: Callable[[], models.Model], arrivals: Arrivals) -> None:
    """Rows of every kind are found again in the worker, and are of the class that was saved (H54)."""
    arrivals.of(post_save, created=True, exclude=Customer)

    saved = make()

    instance = arrivals.only()["instance"]
    assert (type(saved), saved.pk) == (type(instance), instance.pk)


def test_a_composite_primary_key(order: Order, arrivals: Arrivals) -> None:
    """A row with a key of two columns is found again, and arrives as it was when it is deleted (H54)."""
    arrivals.of([post_save, post_delete], sender=OrderLine)
    line = OrderLine.objects.create(order=order, number=3, quantity=7)
    arrivals.now()
    line.delete()

    saved, deleted = (given["instance"] for given in arrivals.now())

    assert [((order.pk, 3), 7)] * 2 == [(one.pk, one.quantity) for one in (saved, deleted)]


@pytest.mark.parametrize(
    ("save", "expected"),
    [
        (lambda: Tag.objects.get_or_create(name="gift"), [(True,)]),
        (
            lambda: [Tag.objects.update_or_create(name="gift", defaults={"name": "gift"}) for _ in "ab"],
            [(True,), (False,)],
        ),
        (lambda: Customer.objects.create(name="Ada").orders.create().tags.create(name="gift"), [(True,)]),
        (lambda: Tag(name="gift").save(force_insert=True), [(True,)]),
    ],
    ids=["get_or_create", "update_or_create", "create of a relation", "force_insert"],
)
def test_ways_to_save(save: Callable[[], Any], expected: list[Any], arrivals: Arrivals) -> None:
    """However a row is saved one by one, its signal arrives (H34)."""
    arrivals.of(post_save, sender=Tag)

    save()

    assert expected == arrivals.words("created")


# Deleting ----------------------------------------------------------------------------------------------------------


def test_deleting(arrivals: Arrivals) -> None:
    """pre_delete and post_delete arrive with the values and the key of the row, and the deletion's origin (H51)."""
    arrivals.of([pre_delete, post_delete], sender=Tag)
    tag = Tag.objects.create(name="gift")
    pk = tag.pk

    tag.delete()

    assert [(pre_delete, Tag, "default")] * 1 + [(post_delete, Tag, "default")] == arrivals.words(
        "signal", "sender", "using"
    )
    assert [(pk, "gift", False)] * 2 == [
        (one.pk, one.name, one._state.adding) for one in (given["instance"] for given in arrivals.given)
    ]
    assert all(given["origin"] is given["instance"] for given in arrivals.given)
    assert {"signal", "sender", "instance", "using", "origin"} == set(arrivals.given[0])


def test_deleting_many(arrivals: Arrivals) -> None:
    """QuerySet.delete sends one signal per row; the QuerySet it came from stays behind, with a reason (H18, H26)."""
    arrivals.of(post_delete, sender=Tag)
    for name in ("a", "b"):
        Tag.objects.create(name=name)

    Tag.objects.order_by("name").delete()

    assert ["a", "b"] == sorted(given["instance"].name for given in arrivals.now())
    assert {Unavailable} == {type(given["origin"]) for given in arrivals.given}
    with pytest.raises(NotCarried, match="send primary keys"):
        list(arrivals.given[0]["origin"])


def test_deleting_cascades(order: Order, arrivals: Arrivals) -> None:
    """Rows that go with another one are signalled each, with their values and the origin of it all (H26, H51)."""
    product = Product.objects.create(sku="x1")
    Stock.objects.create(product=product, amount=5)
    arrivals.of(post_delete)
    customer, keys = order.customer, (order.customer.pk, order.pk)

    customer.delete()
    product.delete()

    gone = [(given["sender"], type(given["origin"])) for given in arrivals.now()]
    assert [(Order, Customer), (Customer, Customer), (Stock, Product), (Product, Product)] == gone
    assert keys == (arrivals.given[1]["instance"].pk, arrivals.given[0]["instance"].pk)
    assert keys[0] == arrivals.given[0]["instance"].customer_id
    assert ("x1", 5) == (arrivals.given[2]["instance"].product_id, arrivals.given[2]["instance"].amount)


def test_what_was_deleted_cannot_be_saved(arrivals: Arrivals) -> None:
    """The instance of a deletion is a copy of values: saving it is refused (H51)."""
    arrivals.of(post_delete, sender=Tag)
    Tag.objects.create(name="gift").delete()

    instance = arrivals.only()["instance"]

    with pytest.raises(NotCarried, match="is a snapshot"):
        instance.save()
    assert not Tag.objects.exists()


# Many-to-many ------------------------------------------------------------------------------------------------------


FORWARD: dict[str, tuple[Callable[[Order, Tag], Any], list[str]]] = {
    "add": (lambda order, tag: order.tags.add(tag), ["pre_add", "post_add"]),
    "remove": (lambda order, tag: order.tags.remove(tag), ["pre_remove", "post_remove"]),
    "clear": (lambda order, tag: order.tags.clear(), ["pre_clear", "post_clear"]),
    "set": (lambda order, tag: order.tags.set([]), ["pre_remove", "post_remove"]),
    "set with clear": (
        lambda order, tag: order.tags.set([tag], clear=True),
        ["pre_clear", "post_clear", "pre_add", "post_add"],
    ),
}


@pytest.mark.parametrize("case", FORWARD)
def test_many_to_many(case: str, order: Order, arrivals: Arrivals) -> None:
    """Every action of a many-to-many relation arrives, with the model at the other end and the keys (H17, H64)."""
    act, actions = FORWARD[case]
    tag = Tag.objects.create(name="gift")
    if case != "add":
        order.tags.add(tag)
    arrivals.of(m2m_changed, sender="shop.Order.tags")

    act(order, tag)

    keys = [None if action.endswith("clear") else {tag.pk} for action in actions]
    assert [(action, Tag, False, key) for action, key in zip(actions, keys, strict=True)] == arrivals.words(
        "action", "model", "reverse", "pk_set"
    )
    assert {Order.tags.through} == {given["sender"] for given in arrivals.given}
    assert {order} == {given["instance"] for given in arrivals.given}


def test_many_to_many_from_the_other_end(order: Order, arrivals: Arrivals) -> None:
    """From the other end a relation sends the same, in reverse; what adds nothing sends nothing."""
    tag = Tag.objects.create(name="gift")
    arrivals.of(m2m_changed, sender=Order.tags.through, action="post_*")

    tag.orders.add(order)
    tag.orders.add(order)
    tag.orders.clear()

    assert [
        ("post_add", True, Order, tag, {order.pk}),
        ("post_add", True, Order, tag, set()),
        ("post_clear", True, Order, tag, None),
    ] == arrivals.words("action", "reverse", "model", "instance", "pk_set")


def test_many_to_many_to_itself(arrivals: Arrivals) -> None:
    """A symmetrical relation sends once, although two rows are made, another one the direction it was asked for."""
    ada, bob = Person.objects.create(name="Ada"), Person.objects.create(name="Bob")
    arrivals.of(m2m_changed, sender=["shop.Person.friends", "shop.Person.follows"], action="post_add")

    ada.friends.add(bob)
    ada.follows.add(bob)
    ada.followers.add(bob)

    friends, follows = Person.friends.through, Person.follows.through
    assert [
        (friends, ada, {bob.pk}, False),
        (follows, ada, {bob.pk}, False),
        (follows, ada, {bob.pk}, True),
    ] == arrivals.words("sender", "instance", "pk_set", "reverse")


def test_many_to_many_through_a_model(arrivals: Arrivals) -> None:
    """A through model of the project's own is the sender of the relation, and of its own rows' signals."""
    club, ada = Club.objects.create(name="Readers"), Customer.objects.create(name="Ada")
    arrivals.of(m2m_changed, sender="shop.Club.members", action="post_*")
    arrivals.of(post_save, sender=Membership)

    club.members.add(ada, through_defaults={"role": "chair"})
    Membership.objects.create(club=club, customer=Customer.objects.create(name="Bob"))

    first, second = arrivals.now()
    assert (m2m_changed, Membership, {ada.pk}) == (first["signal"], first["sender"], first["pk_set"])
    assert (post_save, Membership, "member") == (second["signal"], second["sender"], second["instance"].role)


def test_keys_of_the_other_ends_type(arrivals: Arrivals) -> None:
    """``pk_set`` is the set that Django sends, with keys of the other model's own type (H54, H64)."""
    arrivals.of(m2m_changed)
    parcel = Parcel.objects.create()

    m2m_changed.send(
        Order.tags.through,
        instance=parcel,
        action="post_add",
        reverse=False,
        model=Parcel,
        pk_set={parcel.pk},
        using="default",
    )

    pk_set = arrivals.only()["pk_set"]
    assert (set, {parcel.pk}, type(parcel.pk)) == (type(pk_set), pk_set, type(next(iter(pk_set))))


@pytest.mark.parametrize(("sender", "named"), [(Order, "shop.Order.tags"), ("shop.Tag", "shop.Order.tags")])
def test_a_model_is_no_sender_of_its_relations(sender: Any, named: str, arrivals: Arrivals) -> None:
    """Connecting m2m_changed to a model, which would never hear anything, raises and names the through model (H7)."""
    with pytest.raises(ConnectError, match=rf"never sends m2m_changed.*sender=\['{named}'\]"):
        arrivals.of(m2m_changed, sender=sender)


@pytest.mark.parametrize("signal", TABLE_SIGNALS, ids=["pre_save", "post_save", "pre_delete", "post_delete"])
def test_a_generated_through_model_sends_m2m_changed_only(signal: Any, arrivals: Arrivals) -> None:
    """Rows of a generated through model send no signal of their own, and connecting to one says so (H7, H9)."""
    with pytest.raises(
        ConnectError, match=r"shop\.Order_tags is the generated through model .*m2m_changed\. Connect to"
    ):
        arrivals.of(signal, sender="shop.Order.tags")


# Tables of several models ------------------------------------------------------------------------------------------


def test_saving_a_child_with_its_own_table(order: Order, arrivals: Arrivals) -> None:
    """Saving a child sends its own signals and none of its parent's, and the child arrives (H11, H50)."""
    arrivals.of([pre_save, post_save], exclude=Customer)

    rush = RushOrder.objects.create(customer=order.customer, courier="Bob")

    assert [(pre_save, RushOrder), (post_save, RushOrder)] == arrivals.words("signal", "sender")
    instance = arrivals.given[1]["instance"]
    assert (RushOrder, "Bob", rush.pk) == (type(instance), instance.courier, instance.pk)


def test_saving_the_parent_of_a_child(order: Order, arrivals: Arrivals) -> None:
    """Saving a child's parent row by its parent model is the parent's signal (H11)."""
    rush = RushOrder.objects.create(customer=order.customer, courier="Bob")
    arrivals.of(post_save, exclude=["shop.Customer"])

    Order.objects.get(pk=rush.pk).save()

    assert [(Order, Order)] == [(given["sender"], type(given["instance"])) for given in arrivals.now()]


def test_deleting_a_child_with_its_own_table(order: Order, arrivals: Arrivals) -> None:
    """Deleting a child sends the child's signals, then the parent's, for one key and one origin (H11)."""
    rush = RushOrder.objects.create(customer=order.customer, courier="Bob")
    arrivals.of([pre_delete, post_delete])
    pk = rush.pk

    rush.delete()

    senders = [(given["signal"], given["sender"], given["instance"].pk) for given in arrivals.now()]
    assert {(signal, model, pk) for signal in (pre_delete, post_delete) for model in (RushOrder, Order)} == set(senders)
    assert 4 == len(senders)
    assert {"Bob"} == {given["instance"].courier for given in arrivals.given if given["sender"] is RushOrder}
    assert {RushOrder} == {type(given["origin"]) for given in arrivals.given}


@pytest.fixture
def fixture_file(order: Order, tmp_path: Path) -> Path:
    """What ``dumpdata`` says of a customer, and of an order that is a child with a table of its own."""
    RushOrder.objects.create(customer=order.customer, courier="Bob")
    file = tmp_path / "orders.json"
    call_command("dumpdata", "shop.customer", "shop.order", "shop.rushorder", output=str(file), verbosity=0)
    Customer.objects.all().delete()
    return file


def test_fixtures_are_skipped(fixture_file: Path, arrivals: Arrivals) -> None:
    """Loading a fixture reaches no receiver that does not ask for it (H30)."""
    arrivals.of([pre_save, post_save])
    arrivals.of([pre_save, post_save], sender=RushOrder, raw=False)

    call_command("loaddata", str(fixture_file), verbosity=0)

    assert [] == arrivals.now()
    assert 1 == RushOrder.objects.count()


def test_fixtures_on_request(fixture_file: Path, arrivals: Arrivals) -> None:
    """With ``raw=True`` each row of a fixture arrives, table by table, as the model it was loaded for (H11, H30)."""
    arrivals.of(post_save, raw=True)

    call_command("loaddata", str(fixture_file), verbosity=0)

    expected = [(Customer, True, "default"), (Order, True, "default"), (Order, True, "default")]
    assert [*expected, (RushOrder, True, "default")] == arrivals.words("sender", "raw", "using")
    assert "Bob" == arrivals.given[-1]["instance"].courier


def test_a_fixture_of_one_table(order: Order, tmp_path: Path, arrivals: Arrivals) -> None:
    """A row whose relations are not loaded arrives before they exist, as its values (H30)."""
    file = tmp_path / "order.json"
    fields = {"order_ptr": order.pk, "courier": "Bob"}
    file.write_text(json.dumps([{"model": "shop.rushorder", "pk": order.pk, "fields": fields}]))
    arrivals.of(pre_save, sender="shop.RushOrder", raw=True)

    call_command("loaddata", str(file), verbosity=0)

    instance = arrivals.only()["instance"]
    assert (RushOrder, order.pk, "Bob") == (type(instance), instance.pk, instance.courier)


# Proxies, abstract and swapped models ------------------------------------------------------------------------------


def test_a_proxy_is_its_own_sender(order: Order, arrivals: Arrivals) -> None:
    """A proxy sends as itself: a receiver of its base does not hear it, and the proxy arrives (H10, H50)."""
    arrivals.of([post_save, post_delete], sender=Order)
    assert 0 == len(arrivals.now())
    arrivals.of([post_save, post_delete], sender=PriorityOrder)

    proxy = PriorityOrder.objects.get(pk=order.pk)
    proxy.save()
    arrivals.now()
    proxy.delete()

    assert [(post_save, PriorityOrder), (post_delete, PriorityOrder)] == arrivals.words("signal", "sender")
    assert {PriorityOrder} == {type(given["instance"]) for given in arrivals.given}


def test_subclasses(order: Order, arrivals: Arrivals) -> None:
    """``subclasses=True`` hears the model, its proxies and its children, and no other (H10, H11)."""
    arrivals.of(post_save, sender="shop.Order", subclasses=True)

    order.save()
    PriorityOrder.objects.get(pk=order.pk).save()
    RushOrder.objects.create(customer=order.customer, courier="Bob")
    order.customer.save()

    assert [(Order,), (PriorityOrder,), (RushOrder,)] == arrivals.words("sender")


def test_an_abstract_model(arrivals: Arrivals) -> None:
    """An abstract model never sends; with ``subclasses=True`` it stands for all models made from it (H12)."""
    with pytest.raises(ConnectError, match=r"Stamped is abstract and never sends.*subclasses=True"):
        arrivals.of(post_save, sender=Stamped)
    arrivals.of(post_save, sender=Stamped, subclasses=True)

    Invoice.objects.create(number="1")
    Receipt.objects.create(number="2")
    Tag.objects.create(name="gift")

    assert [(Invoice,), (Receipt,)] == arrivals.words("sender")


@pytest.mark.parametrize("sender", ["auth.User", "auth.user", SwappedOut, "shop.User", User])
def test_a_swapped_model(sender: Any, arrivals: Arrivals) -> None:
    """Whatever names the user model is the installed one, by which it also travels (H12)."""
    arrivals.of(post_save, sender=sender)

    user = User.objects.create_user("ada", phone="123")

    assert [(User, user)] == arrivals.words("sender", "instance")


@pytest.mark.parametrize("sender", ["auth.User.groups", "shop.User.groups"])
def test_a_relation_of_a_swapped_model(sender: Any, arrivals: Arrivals) -> None:
    """The relation of a swapped-out model is that of the installed one (H12)."""
    arrivals.of(m2m_changed, sender=sender, action="post_add")
    group = apps.get_model("auth.Group").objects.create(name="staff")

    User.objects.create_user("ada").groups.add(group)

    assert [(User.groups.through, {group.pk})] == arrivals.words("sender", "pk_set")


# Every sender ------------------------------------------------------------------------------------------------------


def test_every_sender_but_some(order: Order, arrivals: Arrivals) -> None:
    """``exclude`` leaves out models by class, by text and by the name of a swapped-out one, generated ones too (H9)."""
    arrivals.of([post_save, m2m_changed], exclude=[Customer, "shop.tag", "auth.User", Order.tags.through])

    Customer.objects.create(name="Bob")
    order.tags.add(Tag.objects.create(name="gift"))
    User.objects.create_user("ada")
    order.save()

    assert [(Order,)] == arrivals.words("sender")


def test_what_a_migration_saves(arrivals: Arrivals) -> None:
    """A migration's historical models reach no receiver: their label is a live model's, not their class (H9, H29)."""
    historical = ProjectState.from_apps(apps).apps
    arrivals.of([*TABLE_SIGNALS, m2m_changed])
    arrivals.of([post_save, post_delete], sender="shop.Tag")

    tag = historical.get_model("shop", "Tag").objects.create(name="gift")
    customer = historical.get_model("shop", "Customer").objects.create(name="Ada")
    order = historical.get_model("shop", "Order").objects.create(customer=customer)
    order.tags.add(tag)
    tag.delete()

    assert [] == arrivals.now()


# Users -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def request_with_session(rf: RequestFactory) -> Any:
    request = rf.get("/login/?next=/secret/", HTTP_USER_AGENT="tests", HTTP_AUTHORIZATION="Basic c2VjcmV0")
    request.session = SessionStore()
    request.user = AnonymousUser()
    return request


def test_logging_in_and_out(request_with_session: Any, arrivals: Arrivals) -> None:
    """A login and a logout arrive with the user, fetched again, and the facts of the request (H22, H69)."""
    user = User.objects.create_user("ada", password="correct")
    arrivals.of([user_logged_in, user_logged_out])

    login(request_with_session, user, backend="django.contrib.auth.backends.ModelBackend")
    logout(request_with_session)

    assert [(user_logged_in, User, user), (user_logged_out, User, user)] == arrivals.words("signal", "sender", "user")
    request = arrivals.given[0]["request"]
    assert (RequestFacts, "GET", "/login/") == (type(request), request.method, request.path)
    assert {"REMOTE_ADDR": "127.0.0.1", "HTTP_USER_AGENT": "tests"} == request.META
    assert (user, {"signal", "sender", "request", "user"}) == (request.user, set(arrivals.given[0]))
    with pytest.raises(NotCarried, match="stayed behind"):
        _ = request.COOKIES


def test_logging_in_saves_the_user(request_with_session: Any, arrivals: Arrivals) -> None:
    """Django's own receiver of the login saves the user, which arrives as a save of one field."""
    user = User.objects.create_user("ada")
    arrivals.of(post_save, sender="auth.User")

    login(request_with_session, user, backend="django.contrib.auth.backends.ModelBackend")

    assert [(User, frozenset({"last_login"}))] == arrivals.words("sender", "update_fields")


def test_logging_out_nobody(request_with_session: Any, arrivals: Arrivals) -> None:
    """The logout of somebody who was not logged in has no user."""
    arrivals.of(user_logged_out)

    logout(request_with_session)

    assert [(user_logged_out, None)] == arrivals.words("signal", "user")


def test_failing_to_log_in(request_with_session: Any, arrivals: Arrivals) -> None:
    """A failed login arrives with what Django leaves of the credentials, from a module as sender (H22, H65)."""
    arrivals.of(user_login_failed)

    authenticate(request_with_session, username="ada", password="a secret")

    given = arrivals.only()
    assert {"username": "ada", "password": "********************"} == given["credentials"]
    assert ("django.contrib.auth", "/login/") == (given["sender"], given["request"].path)
    assert {"signal", "sender", "credentials", "request"} == set(given)


# Requests ----------------------------------------------------------------------------------------------------------


def test_a_request(client: Client, arrivals: Arrivals) -> None:
    """The start of a request arrives with the facts of its environ, and its end as Django sends it (H22, H69)."""
    arrivals.of([request_started, request_finished])

    client.get("/?token=hidden", headers={"authorization": "Basic c2VjcmV0", "cookie": "a=b"})

    started, finished = arrivals.now()
    assert {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "REMOTE_ADDR": "127.0.0.1"} == started["environ"]
    assert {"signal", "sender", "environ"} == set(started)
    assert {"signal", "sender"} == set(finished)
    assert [request_started, request_finished] == [started["signal"], finished["signal"]]
    assert (ClientHandler, None) == (started["sender"], finished["sender"])


def test_a_request_that_fails(client: Client, arrivals: Arrivals) -> None:
    """The news that a view raised arrives with the facts of its request (H22, H69)."""
    client.raise_request_exception = False
    arrivals.of(got_request_exception)

    response = client.post("/failing/", {"card": "4111"})

    given = arrivals.only()
    assert (500, "POST", "/failing/") == (response.status_code, given["request"].method, given["request"].path)
    assert {"signal", "sender", "request"} == set(given)


def test_what_a_request_saves(client: Client, arrivals: Arrivals) -> None:
    """What a view saves arrives as what any code saves."""
    arrivals.of(post_save, sender=["shop.Customer", Order], created=True)

    pk = client.post("/orders/").json()["pk"]

    assert [Customer, Order] == [given["sender"] for given in arrivals.now()]
    assert pk == arrivals.given[1]["instance"].pk


def test_a_setting_that_changes(arrivals: Arrivals) -> None:
    """setting_changed arrives with name, value and direction."""
    arrivals.of(setting_changed, when=lambda setting: setting == "SHOP_OPEN")

    with override_settings(SHOP_OPEN=("mon", {"tue"})):
        pass

    assert [(("mon", {"tue"}), True), (None, False)] == arrivals.words("value", "enter")


# Migrations --------------------------------------------------------------------------------------------------------


def test_migrating(arrivals: Arrivals) -> None:
    """``migrate`` is received once per app, as data: app, database and plan; the models stay behind (H29)."""
    arrivals.of([pre_migrate, post_migrate], sender=apps.get_app_config("shop"))
    arrivals.of(post_migrate, when=lambda app_config: app_config.label == "sessions")

    call_command("migrate", verbosity=0, interactive=False)

    shop, sessions = apps.get_app_config("shop"), apps.get_app_config("sessions")
    expected = [(pre_migrate, shop, shop), (post_migrate, sessions, sessions), (post_migrate, shop, shop)]
    assert expected == arrivals.words("signal", "sender", "app_config")
    assert {("default", 0, False)} == set(arrivals.words("using", "verbosity", "interactive"))
    assert [Unavailable] * 3 == [type(given["apps"]) for given in arrivals.given]
    assert [[], [], []] == [given["plan"] for given in arrivals.given]


# Signals of a project's own ----------------------------------------------------------------------------------------


def sending_function() -> None: ...


WAYS: dict[str, Callable[..., Any]] = {
    "send": order_paid.send,
    "send_robust": order_paid.send_robust,
    "asend": async_to_sync(order_paid.asend),
    "asend_robust": async_to_sync(order_paid.asend_robust),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_projects_own_signal(way: str, order: Order, arrivals: Arrivals) -> None:
    """However a custom signal is sent, all its arguments arrive, whatever they are called, and the answer is None
    (H14, H17, H19, H20)."""
    arrivals.of(order_paid)
    extra = {"amount": 5, "order": order, "queue": "door", "task_id": None, "args": (1,), "using": "cash"}

    answers = WAYS[way](sender=Till, **extra)

    given = arrivals.only()
    assert [None] == [answer for _, answer in answers]
    assert (order_paid, Till) == (given.pop("signal"), given.pop("sender"))
    assert list(extra.items()) == list(given.items())


SENDERS: dict[str, Any] = {
    "class": Till,
    "model": Tag,
    "text": "the till",
    "nobody": None,
    "function": sending_function,
    "object of a module": till,
    "number": 5,
}


@pytest.mark.parametrize("chosen", [False, True], ids=["every sender", "this sender"])
@pytest.mark.parametrize("sender", SENDERS)
def test_senders_of_a_projects_own_signal(sender: str, chosen: bool, arrivals: Arrivals) -> None:
    """A class, a function and an object of a module arrive as themselves, other senders equal (H22)."""
    who = SENDERS[sender]
    arrivals.of(order_paid, sender=who if chosen and not isinstance(who, str) else None)

    order_paid.send(sender=who)

    assert who == arrivals.only()["sender"]


def test_an_instance_that_sends(order: Order, arrivals: Arrivals) -> None:
    """An instance that sends arrives as the row, the same object as among the arguments (H22, H67)."""
    arrivals.of(order_paid)

    order_paid.send(sender=order, order=order)

    given = arrivals.only()
    assert (order, Order) == (given["sender"], type(given["sender"]))
    assert given["sender"] is given["order"]


def test_an_object_that_sends_and_cannot_travel(arrivals: Arrivals) -> None:
    """An object that no module holds arrives as a stand-in of its type, and its event is not lost (H18, H22)."""
    arrivals.of(order_paid)

    order_paid.send(sender=Till(), amount=5)

    given = arrivals.only()
    assert (Unavailable, 5) == (type(given["sender"]), given["amount"])
    assert "Till" in repr(given["sender"])


# What Django sends -------------------------------------------------------------------------------------------------


def test_the_library_knows_what_django_sends(order: Order, client: Client, request_with_session: Any) -> None:
    """No argument that Django really sends is one that the library takes for impossible (H3, H17)."""
    sent: dict[Any, set[str]] = {}

    def note(signal: Any, sender: Any, **kwargs: Any) -> None:
        sent.setdefault(signal, set()).update(kwargs)

    signals = [
        *(*TABLE_SIGNALS, m2m_changed, request_started, request_finished, got_request_exception, pre_migrate),
        *(post_migrate, user_logged_in, user_logged_out, user_login_failed, setting_changed),
    ]
    for signal in signals:
        signal.connect(note)
    try:
        client.raise_request_exception = False
        client.post("/failing/")
        authenticate(request_with_session, username="ada", password="a secret")
        login(
            request_with_session, User.objects.create_user("ada"), backend="django.contrib.auth.backends.ModelBackend"
        )
        logout(request_with_session)
        order.tags.add(Tag.objects.create(name="gift"))
        order.delete()
        call_command("migrate", verbosity=0, interactive=False)
        with override_settings(SHOP_OPEN=True):
            pass
    finally:
        for signal in signals:
            signal.disconnect(note)

    assert set(signals) == set(sent)
    assert [] == [name for signal in sent for name in sent[signal] if never_sends(signal, name)]


def test_nobody_reads_a_signals_receivers() -> None:
    """The library's code never touches a signal's list of receivers, whose entries differ between versions (H6).

    Whether Celery's own signals have any at all is asked of their lists, as Celery itself does before it publishes. And
    what is connected is shown by the first two parts of each entry, which every version has.
    """
    others = {"template.py", "connected.py"}
    files = [path for path in Path(django_celery_signals.__file__).parent.glob("*.py") if path.name not in others]
    found = [(file.name, line) for file in files for line in private_parts(file.read_text(encoding="utf-8"))]

    assert 20 < len(files)
    assert [] == found
    assert [1, 2, 3] == list(private_parts("signal.receivers\ngetattr(signal, 'receivers')\nsignal._live_receivers(5)"))
    assert [] == list(private_parts("from . import receivers\nreceivers.connect(signal.connect)"))


def private_parts(code: str) -> Iterator[int]:
    """Yield the lines of some code that look into a signal."""
    private = {"receivers", "sender_receivers_cache", "_live_receivers", "_clear_dead_receivers", "_dead_receivers"}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and node.attr in private:
            yield node.lineno
        if isinstance(node, ast.Call) and any(isinstance(a, ast.Constant) and a.value in private for a in node.args):
            yield node.lineno
