// Drives the product with the typed client: what docs/frontend.md shows is taken from here.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { test } from 'node:test';
import { connect, connectByCookie, readEvents, refresh, signUp, type ChatEvent } from './client.js';

const variable = (name: string): string => {
  const value = process.env[name];
  assert.ok(value, `${name} is not set`);
  return value;
};
const API = variable('API_URL');

async function newcomer() {
  const api = connect(API, () => token);
  let token: string | undefined;
  const data = await signUp(api, `${randomUUID()}@example.com`, 'correct horse battery');
  assert.ok(data?.sessionToken);
  token = data.token;
  return { api, data, sessionToken: data.sessionToken };
}

test('signs up, is who it is, refreshes, and signs out', async () => {
  const { api, data, sessionToken } = await newcomer();
  const me = await api.GET('/api/auth/me');
  assert.equal(me.data?.user.email, data.user.email);

  const fresh = await refresh(API, sessionToken);
  assert.ok(fresh?.sessionToken);
  assert.match(fresh.sessionToken, /^st_/);
  assert.notEqual(fresh.sessionToken, sessionToken);

  assert.equal((await api.POST('/api/auth/signout')).response.status, 204);
  const after = await api.GET('/api/auth/me');
  assert.equal(after.error?.code, 'session_expired');
  assert.equal(await refresh(API, fresh.sessionToken), undefined);
});

test('takes a failure to refresh for no end of the session', async (t) => {
  const problem = { status: 503, code: 'unavailable', detail: 'The service is not available' };
  t.mock.method(globalThis, 'fetch', async () => Response.json(problem, { status: 503 }));
  await assert.rejects(refresh(API, 'st_0'), /unavailable/);
});

test('has no token before the address is verified where it must be', async (t) => {
  t.mock.method(globalThis, 'fetch', async () => Response.json({ status: 'verification_required' }, { status: 202 }));
  const api = connect(API, () => undefined);
  assert.equal(await signUp(api, 'ada@example.com', 'correct horse battery'), undefined);
});

test('sends the cookie where the browser is told to', async (t) => {
  const { fetch } = globalThis;
  let cookie = '';
  t.mock.method(globalThis, 'fetch', async (request: Request) => {
    if (request.credentials !== 'include') return fetch(request);
    if (cookie) request.headers.set('cookie', cookie);
    const reply = await fetch(request);
    cookie = reply.headers.getSetCookie()[0]?.split(';')[0] ?? cookie;
    return reply;
  });
  const api = connectByCookie(API);
  const email = `${randomUUID()}@example.com`;
  await api.POST('/api/auth/signup', { body: { email, password: 'correct horse battery' } });
  const me = await api.GET('/api/auth/me');
  assert.equal(me.data?.user.email, email);
});

test('uses the cookie as a browser does', async () => {
  const headers = { 'content-type': 'application/json' };
  const body = JSON.stringify({ email: `${randomUUID()}@example.com`, password: 'correct horse battery' });
  const reply = await fetch(`${API}/api/auth/signup`, { method: 'POST', headers, body });
  const [cookie = ''] = reply.headers.getSetCookie();
  assert.match(cookie, /^session=.+HttpOnly/);
  assert.match(cookie, /SameSite=Lax/);
  const session = cookie.split(';')[0] ?? '';
  const me = await fetch(`${API}/api/auth/me`, { headers: { cookie: session } });
  assert.equal(me.status, 200);

  // A page of an origin that is not on the list cannot use it for anything that changes something.
  const forged = await fetch(`${API}/api/auth/signout`, { method: 'POST', headers: { cookie: session, origin: 'https://elsewhere.example' } });
  assert.equal(forged.status, 403);
  assert.equal((await forged.json()).code, 'origin_not_allowed');
});

test('names every bad field at once', async () => {
  const api = connect(API, () => undefined);
  // snippet: errors
  const { error } = await api.POST('/api/auth/signup', { body: { email: 'nobody', password: 'short' } });
  if (error?.code === 'validation_failed') {
    for (const { field, message } of error.errors) console.log(`${field}: ${message}`);
  }
  // end
  assert.ok(error?.code === 'validation_failed');
  assert.deepEqual(error.errors.map(({ field }) => field).sort(), ['email', 'password']);
  assert.match(error.requestId, /^[0-9a-f-]{36}$/);
});

test('answers as one document', async () => {
  const { api } = await newcomer();
  let text = '';
  // snippet: reply
  const { data, error } = await api.POST('/api/chat', { body: { message: 'Hello' } });
  if (error) throw new Error(`${error.code}: ${error.detail}`);
  // Typed as this or an event of a stream, which it is with `stream: true` alone.
  if ('message' in data) text = data.message.content;
  // end
  assert.ok(text.length > 0);
});

test('streams an answer', async () => {
  const { api } = await newcomer();
  const seen: ChatEvent[] = [];
  // snippet: stream
  const { data: body, error } = await api.POST('/api/chat', {
    body: { message: 'Hello', stream: true },
    parseAs: 'stream',
  });
  if (error || !body) throw new Error(`${error?.code}: ${error?.detail}`);
  let answer = '';
  for await (const event of readEvents(body)) {
    if (event.event === 'delta') answer += event.data.text;
    if (event.event === 'error') throw new Error(event.data.message);
    seen.push(event);
  }
  // end
  assert.ok(answer.length > 0);
  assert.deepEqual([seen[0]?.event, seen.at(-1)?.event], ['start', 'done']);
  const ids = seen.map(({ id }) => id);
  assert.deepEqual(ids, [...new Set(ids)].sort((a, b) => a - b));

  const [start, done] = [seen[0], seen.at(-1)];
  assert.ok(start?.event === 'start' && done?.event === 'done');
  assert.ok(done.data.quota.used >= done.data.usage.totalTokens);
  const kept = await api.GET('/api/chat/conversations/{id}', { params: { path: { id: start.data.conversationId } } });
  assert.ok(kept.data?.messages.some((message) => message.content === answer));
});

test('names the provider that another one has answered for', async () => {
  const { api } = await newcomer();
  const body = { message: 'AIMOCK:fallback', model: 'gpt-4o-mini', stream: true };
  const { data } = await api.POST('/api/chat', { body, parseAs: 'stream' });
  assert.ok(data);
  for await (const event of readEvents(data)) {
    if (event.event === 'start') assert.equal(event.data.fallbackFrom, 'openai');
  }
});

test('lets go of a reply that is not read to its end', async () => {
  let reason: unknown = 'still read';
  const body = new ReadableStream<Uint8Array>({
    pull: (controller) => controller.enqueue(new TextEncoder().encode('id: 1\nevent: delta\ndata: {"text":"Hi"}\n\n')),
    cancel: (why) => { reason = why; },
  });
  for await (const event of readEvents(body)) {
    assert.deepEqual(event, { id: 1, event: 'delta', data: { text: 'Hi' } });
    break;
  }
  assert.equal(reason, undefined);
});

test("takes the AI SDK's messages as it keeps them after its first answer", async () => {
  const { api } = await newcomer();
  const { response } = await api.POST('/api/chat', {
    body: {
      id: randomUUID(),
      trigger: 'submit-message',
      messages: [
        { id: '1', role: 'system', parts: [{ type: 'text', text: '' }] },
        { id: '2', role: 'user', parts: [{ type: 'file', mediaType: 'image/png', url: 'data:image/png;base64,' }] },
        { id: '3', role: 'assistant', parts: [{ type: 'step-start' }, { type: 'text', text: 'Hi', state: 'done' }], metadata: {} },
        { id: '4', role: 'user', parts: [{ type: 'text', text: 'Hello' }] },
      ],
    },
    parseAs: 'stream',
  });
  assert.equal(response.status, 200);
  await response.body?.cancel();
});

test('resumes a stream after the event that it has', async () => {
  const { api } = await newcomer();
  const first = await api.POST('/api/chat', { body: { message: 'AIMOCK:slow', stream: true }, parseAs: 'stream' });
  assert.ok(first.data);
  const whole: ChatEvent[] = [];
  let rest: Promise<ChatEvent[]> | undefined;
  for await (const event of readEvents(first.data)) {
    whole.push(event);
    const start = whole[0];
    if (whole.length === 3 && start?.event === 'start') rest = resume(start.data.streamId, event.id);
  }

  async function resume(streamId: string, lastEventId: number): Promise<ChatEvent[]> {
    const events: ChatEvent[] = [];
    // snippet: resume
    const { data: body, response } = await api.GET('/api/chat/streams/{id}', {
      params: { path: { id: streamId }, header: { 'Last-Event-ID': String(lastEventId) } },
      parseAs: 'stream',
    });
    if (response.status === 200 && body) {
      for await (const event of readEvents(body)) events.push(event);
    }
    // end
    return events;
  }

  assert.ok(rest);
  assert.deepEqual(await rest, whole.slice(3));
  assert.equal(whole.at(-1)?.event, 'done');
});

test('gets the stored reply for a repeated key', async () => {
  const { api } = await newcomer();
  // snippet: idempotency
  const key = randomUUID();
  const send = () => api.POST('/api/chat', {
    params: { header: { 'Idempotency-Key': key } },
    body: { message: 'Hello' },
  });
  // end
  const [first, second] = [await send(), await send()];
  assert.ok(first.data && typeof first.data === 'object' && 'message' in first.data);
  assert.deepEqual(second.data, first.data);
  const other = await api.POST('/api/chat', { params: { header: { 'Idempotency-Key': key } }, body: { message: 'Another' } });
  assert.equal(other.error?.code, 'idempotency_key_reused');
});

test('reads analytics as an admin, and as nobody else', async () => {
  const { api } = await newcomer();
  const refused = await api.GET('/api/analytics/users/count');
  assert.equal(refused.error?.status, 403);

  const signedIn = await connect(API, () => undefined).POST('/api/auth/signin', {
    body: { email: variable('ADMIN_EMAIL'), password: variable('ADMIN_PASSWORD') },
  });
  const admin = connect(API, () => signedIn.data?.token);
  const users = await admin.GET('/api/analytics/users/growth', { params: { query: { interval: 'day' } } });
  assert.equal(users.data?.data.length, 30);
  assert.equal(users.data?.meta.timezone, 'UTC');
});
