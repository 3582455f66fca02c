"""The addresses of the site."""

from django.contrib import admin
from django.urls import path
from flights.views import statistics

urlpatterns = [path("", statistics, name="statistics"), path("admin/", admin.site.urls)]
