"""Pages that save something."""

from __future__ import annotations

from decimal import Decimal

from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from .models import Customer, Order


def home(request: HttpRequest) -> HttpResponse:
    """Answer, so that a test can see the server is there."""
    return HttpResponse("open")


@csrf_exempt
def place_order(request: HttpRequest) -> JsonResponse:
    """Save an order, and tell its primary key."""
    return JsonResponse({"pk": _place_order().pk})


@csrf_exempt
@transaction.atomic
def place_order_and_fail(request: HttpRequest) -> HttpResponse:
    """Save an order in a transaction that is rolled back."""
    _place_order()
    raise RuntimeError("The page fails after saving.")


def _place_order() -> Order:
    customer = Customer.objects.create(name="Ada", email="ada@example.com")
    return Order.objects.create(customer=customer, total=Decimal("12.50"))
