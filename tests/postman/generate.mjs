// Writes the collection from openapi.yaml: `node tests/postman/generate.mjs`; with `--check`, says whether it is current.
// The requests come from the description; FLOW adds what it cannot say: which reply feeds which request.

import { readFileSync, writeFileSync } from 'node:fs';
import { promisify } from 'node:util';
import yaml from 'js-yaml';
import converter from 'openapi-to-postmanv2';

const TARGET = new URL('collection.json', import.meta.url);
const source = readFileSync(new URL('../../openapi.yaml', import.meta.url), 'utf8');
const described = yaml.load(source);

/** By operation: the status that the flow leads to, what is kept of the reply, what replaces the example. */
const FLOW = {
  'gateway-metrics': { status: 401 },
  'auth-signup': { status: 201, body: { email: '{{email}}', password: '{{password}}', transport: 'bearer' }, keep: { token: 'token', sessionToken: 'sessionToken' } },
  'auth-signin': { status: 200, body: { email: '{{email}}', password: '{{password}}' } },
  'auth-verify-email': { status: 400 },
  'auth-reset-password': { status: 400 },
  'auth-refresh': { status: 200, bearer: 'sessionToken', keep: { token: 'token', sessionToken: 'sessionToken' } },
  'auth-change-password': { status: 200, body: { currentPassword: '{{password}}', newPassword: '{{password}} again' } },
  'auth-list-sessions': { status: 200, keep: { id: 'sessions.find(({ current }) => !current).id' } },
  'auth-revoke-session': { status: 204 },
  'auth-signout': { status: 204 },
  'chat-send': { status: 200, keep: { id: 'conversationId' } },
  'chat-stop-stream': { status: 202, path: '{{streamId}}' },
  'chat-resume-stream': { statuses: [200, 204], path: '{{streamId}}' },
  'chat-resume-conversation': { status: 204 },
  'chat-create-conversation': { status: 201, keep: { id: 'conversation.id' } },
  'chat-create-conversation-alias': { status: 201, keep: { id: 'conversation.id' } },
  'chat-delete-conversation': { status: 204 },
  'chat-delete-conversation-alias': { status: 204 },
  'billing-create-subscription': { status: 201, keep: { id: 'subscription.id' } },
  'billing-create-subscription-alias': { status: 409 },
  'billing-checkout': { status: 409 },
  'billing-webhook': { status: 400 },
  'analytics-providers-models': { status: 200, path: 'openai' },
};
/** These end what the others need, so they come last, in this order. */
const LAST = ['auth-list-sessions', 'auth-revoke-session', 'auth-change-password', 'auth-signout'];

const operations = new Map();
for (const [path, methods] of Object.entries(described.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    if (operation.operationId) operations.set(`${method.toUpperCase()} ${path.replaceAll(/{(\w+)}/g, ':$1')}`, operation);
  }
}

const converted = await promisify(converter.convertV2.bind(converter))(
  { type: 'string', data: source },
  { folderStrategy: 'Tags', parametersResolution: 'Example', requestParametersResolution: 'Example' },
);
if (!converted.result) throw new Error(converted.reason);
const { item: folders, info } = converted.output[0].data;

const bearer = (name) => ({ type: 'bearer', bearer: [{ key: 'token', value: `{{${name}}}`, type: 'string' }] });
const script = (listen, exec) => ({ listen, script: { type: 'text/javascript', exec } });

function request(item) {
  const path = `/${item.request.url.path.join('/')}`;
  const operation = operations.get(`${item.request.method} ${path}`);
  if (!operation) throw new Error(`${item.request.method} ${path} is not described`);
  const flow = FLOW[operation.operationId] ?? {};
  // Without an entry in FLOW: a success that is described.
  const successes = Object.keys(operation.responses).map(Number).filter((status) => status < 300);
  const statuses = flow.statuses ?? (flow.status ? [flow.status] : successes);
  const body = flow.body ?? (item.request.body?.raw ? JSON.parse(item.request.body.raw) : undefined);
  const tests = [
    `pm.test('${operation.operationId} answers ${statuses.join(' or ')}', () => pm.expect(pm.response.code, pm.response.text()).to.be.oneOf(${JSON.stringify(statuses)}));`,
    "pm.test('the reply names its request', () => pm.response.to.have.header('x-request-id'));",
    ...Object.entries(flow.keep ?? {}).map(([name, place]) =>
      `pm.collectionVariables.set('${name}', pm.response.json().${place});`),
  ];
  const folder = operation.tags[0];
  const credential = flow.bearer ?? (folder === 'analytics' ? 'adminToken' : 'token');
  const open = operation.security?.length === 0 || operation.operationId === 'gateway-metrics';
  return {
    id: operation.operationId,
    name: operation.summary,
    event: [script('test', tests)],
    request: {
      method: item.request.method,
      auth: open ? { type: 'noauth' } : bearer(credential),
      header: body ? [{ key: 'content-type', value: 'application/json' }] : [],
      url: {
        raw: `{{baseUrl}}${path}`,
        host: ['{{baseUrl}}'],
        path: item.request.url.path,
        variable: (item.request.url.variable ?? []).map(({ key }) => ({ key, value: flow.path ?? '{{id}}' })),
      },
      ...(body && { body: { mode: 'raw', raw: JSON.stringify(body, null, 2), options: { raw: { language: 'json' } } } }),
    },
  };
}

/** A request beside the described ones, which differs from its twin in body and in what is kept. */
function variant(twin, id, name, body, keep) {
  const copy = structuredClone(twin);
  copy.id = id;
  copy.name = name;
  copy.request.body.raw = JSON.stringify(body, null, 2);
  copy.event[0].script.exec = [...copy.event[0].script.exec.filter((line) => line.startsWith('pm.test')), keep];
  return copy;
}

const requests = (entries) => entries.flatMap((entry) => (entry.item ? requests(entry.item) : [request(entry)]));
const made = folders.map(({ name, item }) => ({ name, item: requests(item) }));
const folder = (name) => made.find((entry) => entry.name === name).item;

// Sign-out ends the session of all folders.
const auth = folder('auth');
const ending = new Map(auth.filter(({ id }) => LAST.includes(id)).map((item) => [item.id, item]));
auth.splice(0, auth.length, ...auth.filter(({ id }) => !LAST.includes(id)));
const signin = auth.find(({ id }) => id === 'auth-signin');
const chat = folder('chat');
const send = chat.findIndex(({ id }) => id === 'chat-send');
chat.splice(chat.findIndex(({ id }) => id === 'chat-stop-stream'), 0, variant(
  chat[send], 'chat-send-streamed', 'Send a message and read the stream', { message: 'Hello', stream: true },
  "pm.collectionVariables.set('streamId', /\"streamId\":\"([^\"]+)\"/.exec(pm.response.text())[1]);",
));
folder('analytics').unshift(variant(
  signin, 'auth-signin-admin', 'Sign in as an admin', { email: '{{adminEmail}}', password: '{{adminPassword}}' },
  "pm.collectionVariables.set('adminToken', pm.response.json().token);",
));
made.push({ name: 'sessions', item: LAST.map((id) => ending.get(id)) });

const collection = {
  info: { name: info.name, description: 'Made from openapi.yaml; run it from its top.', schema: info.schema },
  variable: ['token', 'sessionToken', 'adminToken', 'id', 'streamId', 'email'].map((key) => ({ key, value: '' })),
  event: [script('prerequest', [
    "if (!pm.collectionVariables.get('email')) pm.collectionVariables.set('email', `postman-${Date.now()}-${Math.random().toString(36).slice(2)}@example.com`);",
  ])],
  item: made,
};
const text = `${JSON.stringify(collection, null, 1)}\n`;
if (!process.argv.includes('--check')) {
  writeFileSync(TARGET, text);
} else if (readFileSync(TARGET, 'utf8') !== text) {
  console.error('tests/postman/collection.json is not what openapi.yaml makes; run `node tests/postman/generate.mjs`.');
  process.exitCode = 1;
}
