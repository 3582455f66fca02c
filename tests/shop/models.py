"""The shop: one model of every kind, and every field type that all databases have."""

from __future__ import annotations

import json
import uuid
from decimal import Decimal
from typing import Any

from django.contrib.auth.models import AbstractUser
from django.contrib.contenttypes.fields import GenericForeignKey, GenericRelation
from django.contrib.contenttypes.models import ContentType
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.db.models import F
from django.db.models.functions import Now, Upper
from django.utils import timezone


class User(AbstractUser):
    """The project's user model; Django's own is swapped out."""

    phone = models.CharField(max_length=30, blank=True)


class Customer(models.Model):
    name = models.CharField(max_length=100)
    email = models.EmailField(blank=True)
    spent = models.DecimalField(max_digits=12, decimal_places=2, default=Decimal(0))  # the README's first example

    def __str__(self) -> str:
        return self.name


class Tag(models.Model):
    name = models.CharField(max_length=50)


class ExactDecoder(json.JSONDecoder):
    """Reads numbers with a fraction as decimals."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "parse_float": Decimal})


class Order(models.Model):
    class Status(models.TextChoices):
        NEW = "new", "New"
        PAID = "paid", "Paid"
        SENT = "sent", "Sent"

    customer = models.ForeignKey(Customer, on_delete=models.CASCADE, related_name="orders")
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.NEW)
    total = models.DecimalField(max_digits=10, decimal_places=2, default=Decimal(0))
    notes = models.JSONField(default=dict, blank=True)
    extras = models.JSONField(null=True, blank=True, encoder=DjangoJSONEncoder, decoder=ExactDecoder)
    placed_at = models.DateTimeField(default=timezone.now)
    tags = models.ManyToManyField(Tag, related_name="orders", blank=True)
    comments = GenericRelation("shop.Comment")


class PriorityOrder(Order):
    """A proxy."""

    class Meta:
        proxy = True


class RushOrder(Order):
    """A child with a table of its own."""

    courier = models.CharField(max_length=50)


class Stamped(models.Model):
    """An abstract base."""

    stamped_at = models.DateTimeField(auto_now_add=True)
    changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        abstract = True


class Invoice(Stamped):
    number = models.CharField(max_length=20)


class Receipt(Stamped):
    number = models.CharField(max_length=20)


class Document(models.Model):
    """A row that has a file beside the database."""

    file = models.FileField(upload_to="documents/")


class LiveManager(models.Manager["Article"]):
    """Hides the rows that are marked as deleted."""

    def get_queryset(self) -> models.QuerySet[Article]:
        return super().get_queryset().filter(deleted=False)


class Article(models.Model):
    """Soft deletion: both the default and the base manager filter."""

    title = models.CharField(max_length=100)
    deleted = models.BooleanField(default=False)

    objects = LiveManager()

    class Meta:
        base_manager_name = "objects"


class Parcel(models.Model):
    """A primary key that is set before the row exists."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    weight = models.FloatField(default=0.0)


class OrderLine(models.Model):
    """A primary key of two columns."""

    pk = models.CompositePrimaryKey("order_id", "number")
    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="lines")
    number = models.IntegerField()
    quantity = models.IntegerField(default=1)


class Profile(models.Model):
    """A primary key that is a foreign key."""

    customer = models.OneToOneField(Customer, on_delete=models.CASCADE, primary_key=True)
    motto = models.CharField(max_length=100, blank=True)


class Country(models.Model):
    """A primary key of text."""

    code = models.CharField(max_length=2, primary_key=True)
    name = models.CharField(max_length=50)


class Holiday(models.Model):
    """A primary key that is a date."""

    day = models.DateField(primary_key=True)
    name = models.CharField(max_length=50)


class WeightClass(models.Model):
    """A primary key that is a decimal."""

    limit = models.DecimalField(max_digits=6, decimal_places=2, primary_key=True)
    price = models.IntegerField(default=0)


class Product(models.Model):
    sku = models.CharField(max_length=20, unique=True)
    views = models.IntegerField(default=0)


class Stock(models.Model):
    """A foreign key that does not point at the primary key."""

    product = models.ForeignKey(Product, on_delete=models.CASCADE, to_field="sku", related_name="stocks")
    amount = models.IntegerField(default=0)


class Comment(models.Model):
    """A foreign key to a row of any model."""

    content_type = models.ForeignKey(ContentType, on_delete=models.CASCADE)
    object_id = models.CharField(max_length=64)
    subject = GenericForeignKey("content_type", "object_id")
    text = models.TextField(blank=True)


class Account(models.Model):
    """Fields whose names say that their values are secret."""

    owner = models.CharField(max_length=50)
    password = models.CharField(max_length=128)
    api_token = models.CharField(max_length=64, blank=True)
    secret = models.TextField(blank=True)
    iban = models.CharField(max_length=34, blank=True)


class Club(models.Model):
    """Many-to-many through a model of its own."""

    name = models.CharField(max_length=50)
    members = models.ManyToManyField(Customer, through="Membership", related_name="clubs")


class Membership(models.Model):
    club = models.ForeignKey(Club, on_delete=models.CASCADE)
    customer = models.ForeignKey(Customer, on_delete=models.CASCADE)
    role = models.CharField(max_length=20, default="member")


class Person(models.Model):
    """Many-to-many to itself, symmetrical and not."""

    name = models.CharField(max_length=50)
    friends = models.ManyToManyField("self", blank=True)
    follows = models.ManyToManyField("self", symmetrical=False, related_name="followers", blank=True)


class Everything(models.Model):
    """Every field type of Django's core that needs no further package."""

    class Level(models.IntegerChoices):
        LOW = 1, "Low"
        HIGH = 2, "High"

    binary = models.BinaryField(default=b"")
    binary_null = models.BinaryField(null=True)
    boolean = models.BooleanField(default=False)
    boolean_null = models.BooleanField(null=True)
    char = models.CharField(max_length=100, default="")
    char_null = models.CharField(max_length=100, null=True)
    date = models.DateField(null=True)
    date_time = models.DateTimeField(null=True)
    time = models.TimeField(null=True)
    decimal = models.DecimalField(max_digits=20, decimal_places=6, null=True)
    duration = models.DurationField(null=True)
    email = models.EmailField(blank=True, default="")
    file = models.FileField(upload_to="files/", blank=True, default="")
    file_path = models.FilePathField(blank=True, default="")
    float = models.FloatField(null=True)
    ip_address = models.GenericIPAddressField(null=True)
    integer = models.IntegerField(default=0)
    integer_null = models.IntegerField(null=True)
    big_integer = models.BigIntegerField(null=True)
    small_integer = models.SmallIntegerField(null=True)
    positive = models.PositiveIntegerField(null=True)
    positive_big = models.PositiveBigIntegerField(null=True)
    positive_small = models.PositiveSmallIntegerField(null=True)
    json = models.JSONField(null=True)
    json_exact = models.JSONField(null=True, encoder=DjangoJSONEncoder, decoder=ExactDecoder)
    level = models.IntegerField(choices=Level.choices, default=Level.LOW)
    slug = models.SlugField(blank=True, default="")
    text = models.TextField(blank=True, default="")
    url = models.URLField(blank=True, default="")
    uuid = models.UUIDField(default=uuid.uuid4)
    uuid_null = models.UUIDField(null=True)
    customer = models.ForeignKey(Customer, on_delete=models.CASCADE, null=True)
    doubled = models.GeneratedField(expression=F("integer") * 2, output_field=models.IntegerField(), db_persist=True)
    shouted = models.GeneratedField(
        expression=Upper("char"), output_field=models.CharField(max_length=100), db_persist=True
    )
    stored_at = models.DateTimeField(db_default=Now())
    points = models.IntegerField(db_default=7)
