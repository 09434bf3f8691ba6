// docs/frontend.md shows code that runs: each of its snippets is a marked part of a test. `--write` copies them there.
// docs/security.md names tests that exist.

import assert from 'node:assert/strict';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';

const root = new URL('../../', import.meta.url);
const PAGE = new URL('docs/frontend.md', root);
const SOURCES = [
  'tests/client/client.ts', 'tests/client/client.test.ts', 'tests/client/fetch_answers.mjs', 'tests/tests/api/chat/ai_sdk.mjs',
];

const snippets = new Map();
for (const source of SOURCES) {
  const text = readFileSync(new URL(source, root), 'utf8');
  for (const [, indent, name, body] of text.matchAll(/^([ ]*)\/\/ snippet: (\w+)\n(.*?)^[ ]*\/\/ end$/gms)) {
    snippets.set(name, body.split('\n').map((line) => line.replace(indent, '')).join('\n'));
  }
}

const shown = [];
const page = readFileSync(PAGE, 'utf8');
const wanted = page.replace(/(<!-- snippet: (\w+) -->\n```[jt]s\n).*?(?=```)/gs, (_all, head, name) => {
  shown.push(name);
  return head + snippets.get(name);
});

if (process.argv.includes('--write')) {
  writeFileSync(PAGE, wanted);
} else {
  test('the frontend guide shows the code that is run', () => {
    assert.deepEqual(shown.toSorted(), [...snippets.keys()].toSorted());
    assert.equal(page, wanted);
    assert.equal(page.match(/```[jt]s/g).length, shown.length, 'a block of code is not taken from a test');
  });

  test('the security table names tests that exist', () => {
    const sources = ['lib/src', 'tests/tests', 'tests/browser', 'tests/client', 'localstack/tests'].flatMap((folder) =>
      readdirSync(new URL(folder, root), { recursive: true })
        .filter((name) => /\.(rs|mjs|ts|py)$/.test(name) && !name.startsWith('generated'))
        .map((name) => readFileSync(new URL(`${folder}/${name}`, root), 'utf8')));
    const there = new Set(sources.flatMap((text) => [
      ...[...text.matchAll(/\b(?:fn|def) (\w+)/g)].map(([, name]) => name),
      ...[...text.matchAll(/^ *test\('([^']+)'/gm)].map(([, name]) => name),
    ]));
    const rows = readFileSync(new URL('docs/security.md', root), 'utf8').split('\n').filter((line) => line.startsWith('|'));
    const named = rows.flatMap((row) => [...row.split('|').at(-2).matchAll(/`([^`]+)`/g)].map(([, name]) => name));
    const tests = named.filter((name) => !name.startsWith('make ') && !name.includes('/'));
    assert.ok(tests.length > 50);
    assert.deepEqual(tests.filter((name) => !there.has(name)), []);
  });
}
