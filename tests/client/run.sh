#!/bin/sh
# Generates the client's types from the served description, compiles them strictly, and drives the product with them.
set -eu
cd "$(dirname "$0")"
node generate.mjs
../node_modules/.bin/tsc --project tsconfig.json
exec node --test documentation.test.mjs generated/out/client.test.js
