// docs/frontend.md shows code that runs: each of its snippets is a marked part of a test. `--write` copies them there.

import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';

const root = new URL('../../', import.meta.url);
const PAGE = new URL('docs/frontend.md', root);
const SOURCES = ['tests/client/client.ts', 'tests/client/client.test.ts', 'tests/tests/api/chat/ai_sdk.mjs'];

const snippets = new Map();
for (const source of SOURCES) {
  const text = readFileSync(new URL(source, root), 'utf8');
  for (const [, indent, name, body] of text.matchAll(/^([ ]*)\/\/ snippet: (\w+)\n(.*?)^[ ]*\/\/ end$/gms)) {
    snippets.set(name, body.split('\n').map((line) => line.replace(indent, '')).join('\n'));
  }
}

const shown = [];
const page = readFileSync(PAGE, 'utf8');
const wanted = page.replace(/(<!-- snippet: (\w+) -->\n```ts\n).*?(?=```)/gs, (_all, head, name) => {
  shown.push(name);
  return head + snippets.get(name);
});

if (process.argv.includes('--write')) {
  writeFileSync(PAGE, wanted);
} else {
  test('the frontend guide shows the code that is run', () => {
    assert.deepEqual(shown.toSorted(), [...snippets.keys()].toSorted());
    assert.equal(page, wanted);
    assert.equal(page.match(/```ts/g).length, shown.length, 'a block of code is not taken from a test');
  });
}
