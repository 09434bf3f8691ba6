"""Start MiniStack with the project's additions: ``python -m servers.aws``."""

import sys

from servers.aws import durability, latency, orphans, permissions, queues, resources, rest_api
from servers.browsers import OwnPagesOnly

# Seconds after which a thread that computes lets another one go on. With the default of 5 ms, a call on the data plane
# waits that long whenever a queue's poller is at work.
SWITCH_INTERVAL = 0.0005


def main() -> int:
    """Apply every addition, then hand over to MiniStack's own entry point."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    orphans.reap()
    for addition in (latency, rest_api, resources, queues, permissions, durability):
        addition.apply()

    from ministack import app as gateway

    # The deployed API has rules of its own for pages; by its path alone, as a page cannot name its host.
    gateway.app = OwnPagesOnly(gateway.app, lambda _, path: gateway._parse_execute_api_url("", path) is not None)
    return gateway.main() or 0


if __name__ == "__main__":
    sys.exit(main())
