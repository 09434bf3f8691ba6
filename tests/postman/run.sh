#!/bin/sh
# Checks that the collection is current and runs it against the product.
set -eu
cd "$(dirname "$0")"
node generate.mjs --check
node room.mjs
exec ../node_modules/.bin/newman run collection.json --environment environment.json --color off --reporters cli \
    --reporter-cli-no-assertions --reporter-cli-no-banner --timeout-request 20000 --env-var "baseUrl=$API_URL" \
    --env-var "adminEmail=$ADMIN_EMAIL" --env-var "adminPassword=$ADMIN_PASSWORD"
