"""Stripe, locally: a stateful replica of its API with signed webhooks, offline.

- ``world``: the replica itself, called in process, and its file;
- ``cards``: Stripe's test cards, `pm_card_visa` and the others;
- ``gaps``: what it leaves out of its replies and a strict client needs;
- ``intents``, ``updates``, ``customers``: what it does otherwise than Stripe when invoices are collected, subscriptions
  changed and customers deleted;
- ``modes``: the billing mode of a subscription;
- ``webhooks``: its events, signed and pushed as Stripe does;
- ``life``: renewals, trials, retries and whatever else comes with time;
- ``checkout``, ``portal``, ``invoices``: routes that it lacks, entered by ``own``, and ``pages``,
  where a person completes them or reads an invoice;
- ``faults``: failures made to order;
- ``control``: routes that Stripe has not, for tests and for people, with examples;
- ``__main__``: the HTTP server that joins them.

All state is one SQLite file in the stack's data folder: it outlives a restart.
"""

import os

# The replica asks for this function of newer Pythons.
os.process_cpu_count = getattr(os, "process_cpu_count", os.cpu_count)  # type: ignore[attr-defined]
