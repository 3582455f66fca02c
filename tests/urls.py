"""The pages of the tests' project."""

from django.contrib import admin
from django.urls import path

from tests.shop import views

urlpatterns = [
    path("", views.home),
    path("orders/", views.place_order),
    path("failing/", views.place_order_and_fail),
    path("admin/", admin.site.urls),
]
