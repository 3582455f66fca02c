"""Durable deliveries: one row for each event and receiver, from the sender's commit until the receiver has succeeded.

The sender writes it (``outbox``), the relay publishes it (``relay``, ``bulk``) and looks after it (``upkeep``,
``probe``), a worker opens and completes it (``hold``, ``lease``); ``deliveries`` has the statements.
"""
