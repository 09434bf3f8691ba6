"""The environment of every deployed function of a running stack, as JSON on standard output."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "localstack"))

import deploy  # noqa: E402
import functions  # noqa: E402
from settings import PROFILES  # noqa: E402

profile = PROFILES[sys.argv[1]]
deployed = deploy.environments(profile).items()
print(json.dumps({name: functions.environment(profile, name, variables) for name, variables in deployed}))
