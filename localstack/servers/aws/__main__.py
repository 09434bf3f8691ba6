"""Start MiniStack with the project's additions: ``python -m servers.aws``."""

import sys

from servers.aws import durability, latency, orphans, queues, resources, rest_api


def main() -> int:
    """Apply every addition, then hand over to MiniStack's own entry point."""
    orphans.reap()
    for addition in (latency, rest_api, resources, queues, durability):
        addition.apply()

    from ministack.app import main as serve

    return serve() or 0


if __name__ == "__main__":
    sys.exit(main())
