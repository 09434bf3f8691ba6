#!/bin/sh
# Sends as much as the machine holds, for DURATION seconds by USERS at once: to port 4000, and through the API Gateway.
# TARGETS="https://api.example.com" sends to a deployment instead: one of its own, with AuthLimits=relaxed and a
# WafRequestsPerMinute that one address will not reach.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=$root/.local/tools/load
if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/requirements.txt"
fi

reports=$root/.local/load
mkdir -p "$reports"
failed=0
number=0
for target in ${TARGETS:-$API_URL $GATEWAY_URL}; do
    number=$((number + 1))
    # Port 4000 believes the addresses that it is told. What is deployed does not, so the local stack's accounts are
    # made at port 4000 also for the other door.
    spread=0
    accounts=
    if [ "$target" = "$API_URL" ]; then spread=1; elif [ -z "${TARGETS:-}" ]; then accounts=$API_URL; fi
    printf '\n%s for %s s by %s users\n' "$target" "${DURATION:-300}" "${USERS:-16}"
    PYTHONDONTWRITEBYTECODE=1 SPREAD=$spread ACCOUNTS_URL=$accounts "$venv/bin/locust" --locustfile "$here/scenario.py" \
        --headless --only-summary --host "$target" --users "${USERS:-16}" --spawn-rate 8 --run-time "${DURATION:-300}s" --stop-timeout 30 \
        --html "$reports/report-$number.html" --loglevel WARNING > "$reports/report-$number.txt" 2>&1 || failed=1
    sed -n '/^load of the machine before/p' "$reports/report-$number.txt"
    sed -n '/^route /,/^Type /{/^Type /!p;}' "$reports/report-$number.txt"
    echo "The plot is in $reports/report-$number.html"
done
exit $failed
