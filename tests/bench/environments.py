"""Of a running stack, as JSON on standard output: every deployed function's environment, and all addresses."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "localstack"))

import deploy  # noqa: E402
import functions  # noqa: E402
import testing  # noqa: E402
from settings import PROFILES  # noqa: E402

profile = PROFILES[sys.argv[1]]
prefix = f"{profile.stack_name}-"
environments = {}
for page in deploy.client(profile, "lambda").get_paginator("list_functions").paginate():
    for function in page["Functions"]:
        name, variables = function["FunctionName"], function.get("Environment", {}).get("Variables", {})
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            environments[name] = functions.environment(profile, name, variables)
print(json.dumps({"functions": environments, "addresses": testing.environment(profile)}))
