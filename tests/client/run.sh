#!/bin/sh
# Generates the client's types from the served description, compiles them strictly, also as strictly as a new project
# does by itself, and drives the product with them.
set -eu
cd "$(dirname "$0")"
node generate.mjs
../node_modules/.bin/tsc --project tsconfig.json
../node_modules/.bin/tsc --project tsconfig.json --noEmit --exactOptionalPropertyTypes false \
    --noUncheckedIndexedAccess false
exec node --test documentation.test.mjs generated/out/client.test.js
