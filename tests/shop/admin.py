"""The shop's own pages of the admin, to which those of deliveries lead."""

from django.contrib import admin

from .models import Customer, Order

admin.site.register([Customer, Order])
