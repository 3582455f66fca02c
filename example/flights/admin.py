"""The pages on which flights and tags are edited, and the receivers' work is seen."""

from django.contrib import admin

from .models import AirportStatistics, CarrierStatistics, DelayAlert, Flight, LogEntry, Receipt, SearchEntry, Tag


@admin.register(Flight)
class FlightAdmin(admin.ModelAdmin):
    """Flights, to be changed and deleted."""

    list_display = ["__str__", "scheduled", "dep_delay", "arr_delay", "distance"]
    list_filter = ["origin", "carrier", "tags"]
    search_fields = ["number", "tailnum", "dest__code"]
    filter_horizontal = ["tags"]


admin.site.register([Tag, AirportStatistics, CarrierStatistics, DelayAlert, SearchEntry, LogEntry, Receipt])
