#!/bin/sh
# Fuzzes the running API from its description: no 5xx, and no status, header, type or shape that is not described.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
for name in API_URL AWS_ENDPOINT_URL STACK_NAME; do
    eval "value=\${$name:-}"
    if [ -z "$value" ]; then
        echo "$name is not set: fuzzing needs a running stack; \`make test\` starts one and fuzzes it." >&2
        exit 1
    fi
done

venv=$root/.local/tools/fuzz
if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --no-deps --requirement "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/requirements.txt"
fi

# What the fuzzer remembers between runs stays out of the source tree.
mkdir -p "$root/.local/fuzz"
cd "$root/.local/fuzz"
export SCHEMATHESIS_HOOKS=hooks PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1
exec "$venv/bin/schemathesis" --config-file "$here/schemathesis.toml" run "$root/openapi.yaml" \
    --url "$API_URL" --no-color "$@"
