"""Stripe, locally: a stateful replica of its API with signed webhooks.

- ``world``: the replica itself, called in process;
- ``gaps``: what it leaves out of its replies and a strict client needs;
- ``webhooks``: its events, signed and pushed as Stripe does;
- ``__main__``: the HTTP server that joins them. Routes that the replica does
  not have (checkout, billing portal) belong beside it as modules of their own,
  entered into ``ROUTES``.

State is in memory and starts empty.
"""
