"""Keep the logs short: ``python -m servers.logs FOLDER``.

Processes append to their files themselves, so a file can be emptied under them.
A line that comes while it is being copied may be lost.
"""

import os
import shutil
import sys
import time
from pathlib import Path

# Bytes beyond which a log becomes the older one, in the place of the one before.
LIMIT = 20_000_000
PAUSE_SECONDS = 10


def shorten(folder: Path, limit: int) -> None:
    """Set aside what has grown too long."""
    for log in folder.glob("*.log"):
        if log.stat().st_size > limit:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)


if __name__ == "__main__":
    while True:
        shorten(Path(sys.argv[1]), LIMIT)
        time.sleep(PAUSE_SECONDS)
