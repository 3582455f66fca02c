"""Chaos: real processes, real servers, a seeded schedule of faults, and a ledger that what is tested cannot touch."""
