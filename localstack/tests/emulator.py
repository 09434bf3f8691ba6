"""MiniStack with the project's additions, as tests start, kill and ask it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import botocore.config
import botocore.session

FOLDER = Path(__file__).resolve().parents[1]


class Emulator:
    """One MiniStack on a state folder, which a test may kill and start again."""

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.environment = {
            **os.environ,
            "GATEWAY_PORT": str(self.port),
            "BIND_HOST": "127.0.0.1",
            "MINISTACK_HOST": "127.0.0.1",
            "PERSIST_STATE": "1",
            "STATE_DIR": str(folder),
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "LOG_LEVEL": "WARNING",
        }
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "servers.aws"], cwd=FOLDER, env=self.environment, start_new_session=True
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_ministack/health", timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "the emulator does not start"
                time.sleep(0.05)

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def checkpoint(self):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/_local/checkpoint", method="POST")
        urllib.request.urlopen(request, timeout=10).close()

    def client(self, service, access_key="test"):
        return botocore.session.get_session().create_client(
            service,
            region_name="us-east-1",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id=access_key,
            aws_secret_access_key="test",
            config=botocore.config.Config(retries={"total_max_attempts": 1}),
        )
