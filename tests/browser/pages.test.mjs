// The pages that the product serves, and the `fetch` of the frontend guide, in a real browser.

import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { chromium } from 'playwright-core';
import { fetchAnswers } from '../client/fetch_answers.mjs';

const { API_URL, ADMIN_EMAIL, ADMIN_PASSWORD, LOCAL_STACK_DIR } = process.env;
const PICTURES = `${LOCAL_STACK_DIR}/pictures`;
const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync',
];

let browser;
before(async () => {
  await mkdir(PICTURES, { recursive: true });
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: FLAGS });
});
after(() => browser?.close());

/** A page of a fresh browser that keeps what went wrong on it. */
async function open(path) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 1000 } });
  // Violations of the policy are events of the document and don't all reach the console.
  await context.addInitScript(() => {
    window.violations = [];
    document.addEventListener('securitypolicyviolation', (event) => {
      window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`);
    });
  });
  const page = await context.newPage();
  const seen = { errors: [], hosts: new Set(), failed: [] };
  page.on('console', (message) => message.type() === 'error' && seen.errors.push(message.text()));
  page.on('pageerror', (error) => seen.errors.push(String(error)));
  page.on('request', (request) => {
    const address = new URL(request.url());
    if (address.protocol !== 'data:') seen.hosts.add(address.origin);
  });
  page.on('response', (response) => response.status() >= 400 && seen.failed.push([response.status(), new URL(response.url()).pathname]));
  const reply = await page.goto(API_URL + path);
  assert.equal(reply.status(), 200);
  return { page, seen, reply, close: () => context.close() };
}

async function nothingForeign(page, seen) {
  assert.deepEqual([...seen.hosts], [new URL(API_URL).origin]);
  assert.deepEqual(await page.evaluate(() => window.violations), []);
}

async function call(path, options = {}) {
  const headers = { 'content-type': 'application/json', ...options.headers };
  const reply = await fetch(API_URL + path, { ...options, headers });
  const text = await reply.text();
  assert.ok(reply.ok, `${path}: ${reply.status} ${text}`);
  return text && JSON.parse(text);
}

const post = (path, body, headers) => call(path, { method: 'POST', body: JSON.stringify(body), headers });
const bearer = (token) => ({ authorization: `Bearer ${token}` });

/** An account that has sent a message, so that there is something to draw. */
async function customer() {
  const email = `browser-${crypto.randomUUID()}@example.com`;
  const password = 'a browser opens the page';
  const { token } = await post('/api/auth/signup', { email, password });
  await post('/api/chat', { message: 'Hello' }, bearer(token));
  return { email, password };
}

async function signIn(page, email, password) {
  await page.getByLabel('E-mail').fill(email);
  await page.getByLabel('Password').fill(password);
  await page.getByRole('button', { name: 'Sign in' }).click();
}

/** Which figure the page asks for. */
const figureOf = (request) => new URL(request.url()).pathname.split('/analytics/')[1];

/** What a figure is of which there is nothing. */
const nothing = (figure) => ({
  'users/active': { dau: 0, wau: 0, mau: 0, series: [] },
  'users/count': { total: 0, verified: 0 },
  'chat/messages': { total: 0, failed: 0 },
}[figure] ?? []);

/** The net revenue of two days, which is as much on the second as is given by currency. */
const revenue = (amounts) => ['2026-01-01', '2026-01-02'].flatMap((date, n) =>
  Object.entries(amounts).map(([currency, net]) => ({ date, currency, net: n * net })));

/** The dashboard of an admin who has earned that, and nothing else. */
async function openRevenue(amounts) {
  const opened = await open('/admin/analytics');
  await opened.page.route('**/api/analytics/**', (route) => {
    const figure = figureOf(route.request());
    return route.fulfill({ json: { data: figure === 'revenue/over-time' ? revenue(amounts) : nothing(figure) } });
  });
  return opened;
}

/** Polls until `read` gives what `holds` accepts. */
async function until(read, holds, pause = 200) {
  const end = Date.now() + 20_000;
  for (;;) {
    const value = await read();
    if (holds(value)) return value;
    assert.ok(Date.now() < end, `still ${JSON.stringify(value)}`);
    await new Promise((resume) => setTimeout(resume, pause));
  }
}

test('the description is rendered from this host alone', async () => {
  const { page, seen, reply, close } = await open('/docs');
  const described = await call('/openapi.json');
  await page.locator('.opblock').first().waitFor();
  const operations = Object.values(described.paths)
    .flatMap((path) => Object.keys(path).filter((name) => ['get', 'put', 'post', 'patch', 'delete'].includes(name)));
  assert.equal(await page.locator('.opblock').count(), operations.length);
  assert.match(await page.locator('.info .title').innerText(), new RegExp(described.info.title));

  // An operation opens, shows its fields, and can be tried.
  await page.locator('#operations-gateway-gateway-root .opblock-summary-control').click();
  await page.getByRole('button', { name: 'Try it out' }).click();
  await page.getByRole('button', { name: 'Execute' }).click();
  await page.locator('.live-responses-table .response-col_status', { hasText: '200' }).waitFor();

  await page.screenshot({ path: `${PICTURES}/docs.png` });
  assert.match(reply.headers()['content-security-policy'], /default-src 'none'; script-src 'sha256-/);
  assert.deepEqual(seen.errors, []);
  assert.deepEqual(seen.failed, []);
  await nothingForeign(page, seen);
  await close();
});

test('the fetch of the frontend guide hands on answers, and that there is none', async () => {
  const { page, seen, close } = await open('/docs');
  const credentials = { email: `browser-${crypto.randomUUID()}@example.com`, password: 'a browser opens the page' };
  const { token } = await post('/api/auth/signup', credentials);
  const replies = await page.evaluate(`(async () => {
    const fetchAnswers = ${fetchAnswers};
    const headers = { authorization: 'Bearer ${token}', 'content-type': 'application/json' };
    const body = JSON.stringify({ message: 'Hello', stream: true });
    const answer = await fetchAnswers('/api/chat', { method: 'POST', headers, body });
    const nothing = await fetchAnswers('/api/chat/${crypto.randomUUID()}/stream', { headers });
    return { answer: [answer.status, await answer.text()], nothing: [nothing.status, await nothing.text()] };
  })()`);
  assert.equal(replies.answer[0], 200);
  assert.match(replies.answer[1], /^id: 1\nevent: start\n[^]*event: done\n/);
  assert.deepEqual(replies.nothing, [204, '']);
  assert.deepEqual(seen.failed, []);
  await close();
});

test('the dashboard shows nothing before sign-in and says what is wrong', async () => {
  const { page, seen, reply, close } = await open('/admin/analytics');
  await page.getByText('Sign in as an admin.').waitFor();
  assert.ok(await page.locator('#signin').isVisible());
  assert.ok(!(await page.locator('#range').isVisible()));
  assert.equal(await page.locator('section, dd, table').count(), 0);
  assert.ok(!seen.failed.some(([, path]) => path.startsWith('/api/analytics')), 'a figure was asked for without a session');

  await signIn(page, ADMIN_EMAIL, 'not the password');
  await page.getByText('Check the e-mail address and the password.').waitFor();
  assert.ok(await page.locator('#signin').isVisible());

  const { email, password } = await customer();
  await signIn(page, email, password);
  await page.getByText("This account is not an admin's.").waitFor();
  assert.equal(await page.locator('section, dd, table').count(), 0);

  assert.match(reply.headers()['content-security-policy'], /default-src 'none'; script-src 'sha256-/);
  // The browser itself logs each refused request.
  assert.deepEqual(seen.errors.filter((text) => !text.includes('status of 401')), []);
  await nothingForeign(page, seen);
  await close();
});

test('the dashboard draws what the endpoints say', async () => {
  await customer();
  const { token } = await post('/api/auth/signin', { email: ADMIN_EMAIL, password: ADMIN_PASSWORD });
  const today = new Date().toISOString().slice(0, 10);
  const start = new Date(Date.now() - 29 * 86_400_000).toISOString().slice(0, 10);
  const figure = async (path) => (await call(`/api/analytics/${path}?startDate=${start}&endDate=${today}&interval=day`, { headers: bearer(token) })).data;
  // Events go on arriving. The page asks for all figures at once, and the limit lets it do that a few times a minute.
  const figures = () => Promise.all([figure('users/count'), figure('users/active'), figure('chat/messages')]);
  let before;
  await until(figures, (now) => {
    const settled = now[2].total > 0 && JSON.stringify(now) === before;
    before = JSON.stringify(now);
    return settled;
  }, 2000);

  const { page, seen, close } = await open('/admin/analytics');
  await signIn(page, ADMIN_EMAIL, ADMIN_PASSWORD);
  await page.locator('section').first().waitFor();
  assert.ok(!(await page.locator('#signin').isVisible()));

  const total = (label) => page.locator('#totals div', { has: page.getByText(label, { exact: true }) }).locator('dd').innerText();
  // Some may still arrive, so page and endpoints are read until they meet.
  await until(async () => {
    await page.getByRole('button', { name: 'Show' }).click();
    await page.locator('#notice:empty').waitFor({ state: 'attached' });
    const [count, active, messages] = await figures();
    const wanted = [count.total, count.verified, active.dau, active.wau, active.mau, messages.total, messages.failed];
    const labels = ['Users', 'Verified', 'Daily active', 'Weekly active', 'Monthly active', 'Messages', 'Failed'];
    const drawn = await Promise.all(labels.map(total));
    return { wanted: wanted.map((value) => value.toLocaleString('en-US')), drawn };
  }, ({ wanted, drawn }) => JSON.stringify(wanted) === JSON.stringify(drawn), 5000);

  const activity = await figure('chat/activity');
  const chat = page.locator('section', { has: page.getByRole('heading', { name: 'Chat', exact: true }) });
  assert.equal(await page.locator('details table').count(), 0);
  await chat.getByText('As a table').click();
  await chat.locator('details tbody tr').first().waitFor();
  const rows = await chat.locator('details tbody tr').evaluateAll((all) => all.map((row) => [...row.cells].map((cell) => cell.textContent)));
  assert.equal(rows.length, activity.length);
  for (const [n, row] of activity.entries()) {
    if (row.date === today) continue;
    assert.deepEqual(rows[n], [row.date, ...[row.messages, row.conversations, row.errors].map((value) => value.toLocaleString('en-US'))]);
  }

  // A chart holds ink: a canvas that nothing was drawn on is transparent all over.
  const titles = ['Users', 'Active users', 'Sign-ups', 'Chat', 'Requests by provider'];
  for (const title of titles) {
    const section = page.locator('section', { has: page.getByRole('heading', { name: title, exact: true }) });
    const inked = await section.locator('canvas').evaluate((canvas) => {
      const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      return data.some((value, n) => n % 4 === 3 && value > 0);
    });
    assert.ok(inked, `${title} is empty`);
  }
  await page.screenshot({ path: `${PICTURES}/analytics.png`, fullPage: true });

  assert.deepEqual(seen.errors.filter((text) => !text.includes('status of 401')), []);
  assert.deepEqual(seen.failed, [[401, '/api/auth/me']]);
  await nothingForeign(page, seen);

  await page.getByRole('button', { name: 'Sign out' }).click();
  await page.getByText('Signed out.').waitFor();
  assert.equal(await page.locator('section, dd, table').count(), 0);
  await page.reload();
  await page.getByText('Sign in as an admin.').waitFor();
  await close();
});

test('the dashboard has room for the numbers of an axis', async () => {
  const { page, close } = await openRevenue({ JPY: 5_000_000_000 });
  await page.evaluate(() => {
    window.written = [];
    const { fillText } = CanvasRenderingContext2D.prototype;
    CanvasRenderingContext2D.prototype.fillText = function (text, x, ...rest) {
      if (this.textAlign === 'right') window.written.push([text, x - this.measureText(text).width]);
      return fillText.call(this, text, x, ...rest);
    };
  });
  await signIn(page, ADMIN_EMAIL, ADMIN_PASSWORD);
  await page.locator('canvas').waitFor();
  const written = await until(() => page.evaluate(() => window.written), (labels) => labels.length);
  assert.ok(written.some(([text]) => text === '5,000,000,000'), `${written}`);
  assert.deepEqual(written.filter(([, left]) => left < 0), []);
  await close();
});

/** The ratio of WCAG 2 of two colours that the browser has computed. */
function contrast(...colours) {
  const [light, dark] = colours.map((colour) => {
    const [red, green, blue] = colour.match(/\d+/g).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05;
  }).sort((a, b) => b - a);
  return light / dark;
}

test('the dashboard draws each currency in a colour of its own that is seen', async () => {
  const currencies = ['AUD', 'CAD', 'CHF', 'EUR', 'GBP', 'JPY', 'SEK', 'USD'];
  const { page, close } = await openRevenue(Object.fromEntries(currencies.map((currency) => [currency, 100])));
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    await page.reload();
    if (colorScheme === 'light') await signIn(page, ADMIN_EMAIL, ADMIN_PASSWORD);
    await page.locator('canvas').waitFor();
    const { ground, lines } = await page.evaluate(() => ({
      ground: getComputedStyle(document.body).backgroundColor,
      lines: [...document.querySelectorAll('.u-series .u-marker')].map((marker) => getComputedStyle(marker).borderColor).slice(-8),
    }));
    assert.equal(new Set(lines).size, currencies.length);
    assert.deepEqual(lines.filter((line) => contrast(line, ground) < 3), [], `on ${ground}`);
  }
  await close();
});

test('the dashboard fits its window when that is made narrow and wide', async () => {
  const { page, seen, close } = await openRevenue({ EUR: 123_456_789_000, JPY: 5_000_000_000, USD: 100 });
  await signIn(page, ADMIN_EMAIL, ADMIN_PASSWORD);
  await page.locator('canvas').waitFor();
  const widths = () => page.evaluate(() => {
    const section = document.querySelector('section:has(canvas)');
    return {
      beyond: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      left: section.clientWidth - section.querySelector('canvas').clientWidth,
    };
  });
  for (const width of [320, 700, 1280]) {
    await page.setViewportSize({ width, height: 640 });
    // What is left is the section's padding.
    await until(widths, ({ beyond, left }) => beyond === 0 && left > 0 && left < 40);
  }
  assert.deepEqual(seen.errors.filter((text) => !text.includes('status of 401')), []);
  await close();
});

test('the dashboard says in plain words why there are no figures', async () => {
  const { page, close } = await openRevenue({ USD: 100 });
  await signIn(page, ADMIN_EMAIL, ADMIN_PASSWORD);
  await page.locator('canvas').waitFor();
  const UNREACHABLE = 'The server could not be reached. Try again in a moment.';
  const failures = [
    [(route) => route.abort(), UNREACHABLE],
    [(route) => route.fulfill({ status: 502, contentType: 'text/html', body: '<h1>Bad gateway</h1>' }), UNREACHABLE],
    [(route) => route.fulfill({ status: 503, json: { message: null } }), UNREACHABLE],
    [(route) => route.fulfill({ status: 429, json: { status: 429, detail: 'Wait a moment.' } }), 'Wait a moment.'],
  ];
  for (const [fail, text] of failures) {
    await page.route('**/api/analytics/**', fail);
    await page.getByRole('button', { name: 'Show' }).click();
    await page.getByText(text, { exact: true }).waitFor();
    assert.equal(await page.locator('section, dd, table').count(), 0);
    await page.unroute('**/api/analytics/**', fail);
    await page.getByRole('button', { name: 'Show' }).click();
    await page.locator('canvas').waitFor();
    assert.equal(await page.locator('#notice').innerText(), '');
  }
  await close();
});

test('the dashboard shows the other figures beside one that is refused', async () => {
  const { page, close } = await openRevenue({ USD: 100 });
  const refusal = { status: 400, json: { status: 400, errors: [{ field: 'interval', message: 'Makes too many rows.' }] } };
  await page.route('**/api/analytics/revenue/mrr?**', (route) => route.fulfill(refusal));
  await page.route('**/api/analytics/users/count?**', (route) => route.fulfill(refusal));
  await signIn(page, ADMIN_EMAIL, ADMIN_PASSWORD);
  await page.locator('canvas').waitFor();
  const refused = page.locator('section', { hasText: 'interval: Makes too many rows.' });
  assert.deepEqual(await refused.locator('h2').allInnerTexts(), ['Monthly recurring revenue']);
  assert.equal(await page.locator('section').count(), 7);
  assert.equal(await page.locator('#notice').innerText(), 'interval: Makes too many rows.');
  assert.deepEqual(await page.locator('#totals dt').allInnerTexts(), ['Daily active', 'Weekly active', 'Monthly active', 'Messages', 'Failed']);

  // Whoever may not see one figure sees none.
  const ended = (route) => route.fulfill({ status: 401, json: { status: 401, detail: 'Sign in.' } });
  await page.route('**/api/analytics/users/growth?**', ended);
  await page.getByRole('button', { name: 'Show' }).click();
  await page.getByText('Sign in as an admin.').waitFor();
  assert.equal(await page.locator('section, dd, table').count(), 0);
  await close();
});

test('the dashboard shows nothing that comes too late', async () => {
  const { page, seen, close } = await open('/admin/analytics');
  // One user at the start of each range, and nothing else. A reply is held back while `isSlow`.
  const held = [];
  let isSlow = false;
  const growth = (start) => ({ json: { data: [{ date: start, totalUsers: 1 }] } });
  await page.route('**/api/analytics/**', (route) => {
    const figure = figureOf(route.request());
    if (figure !== 'users/growth') return route.fulfill({ json: { data: nothing(figure) } });
    return isSlow ? held.push(route) : route.fulfill(growth(new URL(route.request().url()).searchParams.get('startDate')));
  });
  const show = async (start) => {
    await page.getByLabel('From').fill(start);
    await page.getByRole('button', { name: 'Show' }).click();
  };
  const showSlowly = async (start) => {
    isSlow = true;
    await show(start);
    await until(() => held.length, (count) => count === 1);
    isSlow = false;
  };
  /** Gives the reply that was held back; one to a later request comes after it. */
  const letGo = async (reply) => {
    await held.pop().fulfill(reply);
    await page.evaluate(() => fetch('../openapi.json').then((later) => later.text()));
  };
  const failure = { status: 500, json: { title: 'Something went wrong', status: 500 } };

  await signIn(page, ADMIN_EMAIL, ADMIN_PASSWORD);
  await page.locator('section').first().waitFor();
  for (const late of [growth('2026-01-01'), failure]) {
    await showSlowly('2026-01-01');
    await show('2026-01-02');
    await page.locator('#notice:empty').waitFor({ state: 'attached' });
    await page.getByText('As a table').click();
    await page.getByRole('cell', { name: '2026-01-02' }).waitFor();
    await letGo(late);
    assert.equal(await page.getByRole('cell', { name: '2026-01-02' }).count(), 1);
    assert.equal(await page.locator('#notice').innerText(), '');
  }

  await showSlowly('2026-01-01');
  await page.getByRole('button', { name: 'Sign out' }).click();
  await page.getByText('Signed out.').waitFor();
  await letGo(growth('2026-01-01'));
  assert.equal(await page.locator('section, dd, table').count(), 0);
  assert.equal(await page.locator('#notice').innerText(), 'Signed out.');
  assert.deepEqual(seen.errors.filter((text) => !text.includes('status of 401')), []);
  await close();
});
