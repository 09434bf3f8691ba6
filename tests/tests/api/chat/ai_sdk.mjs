// What a frontend does with the real AI SDK: `useChat` is this class with React around it.

import assert from 'node:assert/strict';
import { fetchAnswers } from '../../../client/fetch_answers.mjs';

// The newest SDK is `ai`, an earlier one `ai-5`.
const { AI_SDK, API_URL: api, TOKEN } = process.env;
const { AbstractChat, DefaultChatTransport: Transport } = await import(AI_SDK);
const isNewest = AI_SDK === 'ai';

/** As the guide has it: an earlier SDK needs a `fetch` of its own. */
class DefaultChatTransport extends Transport {
  constructor(options) {
    super(isNewest ? options : { ...options, fetch: fetchAnswers });
  }
}

// What a refresh has since replaced.
let token = 'old';

/** A browser tab's, which outlives the page. */
const sessionStorage = {
  items: new Map(),
  getItem: (key) => sessionStorage.items.get(key) ?? null,
  setItem: (key, value) => sessionStorage.items.set(key, value),
  removeItem: (key) => sessionStorage.items.delete(key),
};

// snippet: problem
/** What went wrong, of a chat's `error`: a refused request's message is its problem document, any other a sentence. */
const problemOf = (error) => {
  // What `fetch` says of a network that fails, each browser in its own words.
  if (error instanceof TypeError) return { detail: 'The connection was lost.' };
  try {
    return JSON.parse(error.message);
  } catch {
    return { detail: error.message };
  }
};
// end

class State {
  status = 'ready';
  messages = [];
  error = undefined;
  pushMessage = (message) => { this.messages = [...this.messages, message]; };
  popMessage = () => { this.messages = this.messages.slice(0, -1); };
  replaceMessage = (index, message) => { this.messages = this.messages.with(index, message); };
  snapshot = (value) => structuredClone(value);
}

// snippet: prepare
/** The API has the conversation: it needs the last answer's id and what was said since. The tab keeps that as well. */
const prepareSendMessagesRequest = ({ id, messages, trigger, messageId, body }) => {
  const lastAnswer = messages.findLastIndex((message) => message.role === 'assistant');
  const since = messages.slice(lastAnswer);
  sessionStorage.setItem(id, JSON.stringify(since));
  return { body: { ...body, id, messages: since, trigger, messageId } };
};
// end

// By either of the two below, whichever the newest chat has.
let signed;
const signedIn = () => signed();

function byToken() {
  // snippet: transport
  // A function, as the token is another one after a refresh.
  const signedIn = () => ({ headers: { authorization: `Bearer ${token}` } });
  const transport = new DefaultChatTransport({
    api: `${api}/api/chat`,
    headers: () => signedIn().headers,
    prepareSendMessagesRequest,
  });
  // end
  signed = signedIn;
  return transport;
}

function byCookie() {
  // snippet: cookies
  const signedIn = () => ({ credentials: 'include' });
  const transport = new DefaultChatTransport({
    api: `${api}/api/chat`,
    ...signedIn(),
    prepareSendMessagesRequest,
  });
  // end
  signed = signedIn;
  return transport;
}

class Chat extends AbstractChat {
  constructor(id, { messages = [], transport = byToken() } = {}) {
    // snippet: finish
    const onFinish = ({ message }) => {
      // An answer that is there has one; `ai` 5 also tells of a resumption that found nothing under way.
      if (message.metadata?.finishReason) sessionStorage.removeItem(id);
    };
    // end
    super({ id, state: Object.assign(new State(), { messages }), transport, onFinish });
  }

  get lastText() {
    return textOf(this.messages.at(-1));
  }
}

// snippet: reload
/** The last messages of a conversation as `useChat` takes them. */
const stored = async (id) => {
  const url = `${api}/api/chat/conversations/${id}?order=desc&limit=100`;
  const response = await fetch(url, signedIn());
  // As the SDK's own errors have it.
  if (!response.ok) throw new Error(await response.text());
  const { messages } = await response.json();
  return messages.reverse().map(({ id, role, content }) => ({ id, role, parts: [{ type: 'text', text: content }] }));
};

const textOf = ({ parts }) => parts.filter((part) => part.type === 'text').map((part) => part.text).join('');

/** What this tab has asked since the answer that it begins with. */
const keptOf = (id) => JSON.parse(sessionStorage.getItem(id) ?? '[]');

/** What a chat begins with: what is stored, and what this tab has asked since. */
const opened = async (id) => {
  const [messages, asked] = [await stored(id), keptOf(id)];
  const answered = messages.findLastIndex((message) => message.id === asked[0]?.id);
  return asked.length ? [...messages.slice(0, Math.max(answered, 0)), ...asked] : messages;
};

/** Goes on with an answer that is under way. After its end the chat has what is stored. */
const reopen = async (chat) => {
  await chat.resumeStream();
  if (chat.status !== 'ready') return;
  const last = chat.lastMessage;
  const messages = await stored(chat.id);
  // Something was asked meanwhile.
  if (chat.status !== 'ready' || chat.lastMessage !== last) return;
  // An answer that was cut short once more, or left, is not stored yet, nor is a question that failed on its way.
  const asked = keptOf(chat.id);
  const answered = messages.findIndex(({ id }) => id === asked[0]?.id);
  const isStored = last?.role === 'user'
    ? messages.slice(answered + 1).some((message) => textOf(message) === textOf(last))
    : !last || messages.some(({ id }) => id === last.id);
  if (isStored || !asked.length) chat.messages = messages;
};
// end

const conversationOf = (chat) => chat.messages[1].metadata.conversationId;

/** Waits until something holds of a chat, unless its answer fails. */
async function until(chat, holds) {
  for (const deadline = Date.now() + 30_000; !holds(); ) {
    assert.ok(chat.status !== 'error' && Date.now() < deadline, `waited in vain: ${chat.status} ${chat.error}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}

const chat = new Chat(`chat-${Date.now()}`);
token = TOKEN;
await chat.sendMessage({ text: 'Hello' });
assert.equal(chat.status, 'ready');
assert.equal(chat.messages.length, 2);
assert.ok(chat.lastText.length > 0);
const { metadata, id } = chat.messages[1];
assert.equal(metadata.finishReason, 'stop');
assert.ok(metadata.usage.totalTokens > 0 && metadata.quota.limit > 0 && metadata.conversationId && metadata.streamId);

await chat.regenerate();
assert.equal(chat.messages.length, 2);
assert.notEqual(chat.messages[1].id, id);
assert.equal(chat.messages[1].metadata.conversationId, metadata.conversationId);

await chat.sendMessage({ text: 'And again' });
assert.equal(chat.messages.length, 4);
assert.equal(chat.messages[3].metadata.conversationId, metadata.conversationId);

await chat.sendMessage({ text: 'AIMOCK:disconnect' });
assert.equal(chat.status, 'error');
assert.match(problemOf(chat.error).detail, /^The model provider failed/);

// The same said again, which fails, and tried once more: the first answer stays.
const same = new Chat(`same-${Date.now()}`);
await same.sendMessage({ text: 'Continue' });
await same.sendMessage({ text: 'Continue' }, { body: { model: 'no-such-model' } });
assert.deepEqual([same.status, same.messages.length], ['error', 3]);
const { code, status } = problemOf(same.error);
assert.deepEqual([code, status], ['model_not_available', 400]);
await same.regenerate();
assert.equal(same.status, 'ready');
const answers = (await stored(conversationOf(same))).filter(({ role }) => role === 'assistant');
assert.deepEqual(answers.map((answer) => answer.id), [same.messages[1].id, same.messages[3].id]);

// An edit that fails, and is tried once more, is an edit all the same; what was never answered is asked again by its id.
const edited = new Chat(`edited-${Date.now()}`);
const fails = { body: { model: 'no-such-model' } };
for (const text of ['One', 'Two', 'Three']) await edited.sendMessage({ text });
await edited.sendMessage({ text: 'Two, edited', messageId: edited.messages[2].id }, fails);
assert.equal(problemOf(edited.error).code, 'model_not_available');
await edited.regenerate();
await edited.sendMessage({ text: 'Four' }, fails);
await edited.regenerate({ messageId: edited.lastMessage.id });
assert.equal(edited.status, 'ready');
const asked = (await stored(conversationOf(edited))).filter(({ role }) => role === 'user').map(textOf);
assert.deepEqual(asked, ['One', 'Two, edited', 'Four']);

// Whoever leaves an answer before its first word, and has it stopped, does not know its id; what is said next may fail
// and be edited all the same.
const hasty = new Chat(`hasty-${Date.now()}`);
await hasty.sendMessage({ text: 'Hello' });
const leaving = hasty.sendMessage({ text: 'AIMOCK:thinks long' });
const headers = { authorization: `Bearer ${token}` };
const reserved = async () => (await (await fetch(`${api}/api/chat/usage`, { headers })).json()).tokens.reserved;
for (const deadline = Date.now() + 30_000; (await reserved()) === 0; ) assert.ok(Date.now() < deadline);
await hasty.stop();
await leaving;
assert.equal((await fetch(`${api}/api/chat/streams/${hasty.id}/stop`, { method: 'POST', headers })).status, 202);
await hasty.sendMessage({ text: 'And on' }, fails);
assert.deepEqual([hasty.status, hasty.messages.length], ['error', 4]);
await hasty.sendMessage({ text: 'And further', messageId: hasty.lastMessage.id });
assert.equal(hasty.status, 'ready');
const said = (await stored(conversationOf(hasty))).map(textOf);
assert.deepEqual([said.length, said[2], said[3], said[4]], [6, 'AIMOCK:thinks long', '', 'And further']);

// What was delivered is not resumed; what is under way is, in another tab.
const reloaded = new Chat(chat.id);
await reloaded.resumeStream();
assert.deepEqual([reloaded.status, reloaded.messages.length], ['ready', 0]);

const slow = new Chat(`slow-${Date.now()}`);
const sent = slow.sendMessage({ text: 'AIMOCK:slow' });
await until(slow, () => slow.messages.length > 1 && slow.lastText.split(' ').length > 3);
// Its events are written down a moment after they were sent, which on a busy machine is a long one.
const isKnown = async (id) => {
  const reply = await fetch(`${api}/api/chat/${id}/stream`, { headers });
  await reply.body?.cancel();
  return reply.status === 200;
};
for (const deadline = Date.now() + 5_000; !(await isKnown(slow.id)); ) assert.ok(Date.now() < deadline);
const tab = new Chat(slow.id);
await Promise.all([sent, tab.resumeStream()]);
assert.equal(tab.lastText, slow.lastText);
assert.equal(tab.messages.at(-1).metadata.finishReason, 'stop');

// One that is stopped where it is made ends for the SDK too, with what there was of it.
const stopped = new Chat(`stopped-${Date.now()}`);
const stopping = stopped.sendMessage({ text: 'AIMOCK:slow' });
await until(stopped, () => stopped.status === 'streaming' && stopped.lastText !== '');
const stop = `${api}/api/chat/streams/${stopped.lastMessage.metadata.streamId}/stop`;
assert.equal((await fetch(stop, { method: 'POST', headers: { authorization: `Bearer ${token}` } })).status, 202);
await stopping;
assert.deepEqual([stopped.status, stopped.lastMessage.metadata.finishReason], ['ready', 'stopped']);
assert.equal(stopped.lastText, (await stored(conversationOf(stopped)))[1].parts[0].text);

const make = async () => {
  const headers = { authorization: `Bearer ${token}` };
  const made = await fetch(`${api}/api/chat/conversations`, { method: 'POST', headers });
  return (await made.json()).conversation.id;
};

// With a browser's cookie.
const conversationOfCookie = await make();
const { fetch: connected } = globalThis;
globalThis.fetch = (input, { credentials, headers, ...init }) => {
  const sent = new Headers(headers);
  assert.ok(!sent.has('authorization'));
  if (credentials === 'include') sent.set('authorization', `Bearer ${token}`);
  return connected(input, { headers: sent, ...init });
};
const browser = new Chat(conversationOfCookie, { transport: byCookie() });
await browser.sendMessage({ text: 'Hello' });
assert.deepEqual([browser.status, browser.messages.length], ['ready', 2]);
await reopen(browser);
assert.deepEqual([browser.status, browser.messages], ['ready', await opened(browser.id)]);
globalThis.fetch = connected;

/** Asks, and loses the connection in the middle of the answer, in the words of a browser. */
async function lose(chat, meanwhile = () => {}) {
  let isLost = false;
  globalThis.fetch = async (...request) => {
    globalThis.fetch = connected;
    const response = await connected(...request);
    const cut = new TransformStream({
      transform(chunk, controller) {
        if (isLost) controller.error(new TypeError('network error'));
        else controller.enqueue(chunk);
      },
    });
    return new Response(response.body.pipeThrough(cut), response);
  };
  const half = chat.sendMessage({ text: 'AIMOCK:slow' });
  await until(chat, () => chat.messages.length === 2 && textOf(chat.lastMessage) !== '');
  await meanwhile();
  isLost = true;
  await half;
  assert.deepEqual([chat.status, problemOf(chat.error).detail], ['error', 'The connection was lost.']);
}

/** The answer is there once, and whole. */
async function holdsItsAnswer(chat) {
  assert.deepEqual([chat.status, chat.messages.length, chat.error], ['ready', 2, undefined]);
  assert.equal(textOf(chat.lastMessage), (await stored(conversationOf(chat)))[1].parts[0].text);
}

// The same chat resumed.
const torn = new Chat(`torn-${Date.now()}`);
await lose(torn);
await torn.resumeStream();
await holdsItsAnswer(torn);

// One that was read to its end elsewhere meanwhile is not replayed.
const behind = new Chat(await make());
await lose(behind);
await new Chat(behind.id).resumeStream();
await reopen(behind);
assert.deepEqual([behind.status, behind.messages], ['ready', await stored(behind.id)]);

// The hook of React resumes by itself what was lost, when its page is seen again.
if (isNewest) {
  const { Chat: HookedChat, useChat } = await import('@ai-sdk/react');
  const { act, createElement } = await import('react');
  const { create } = await import('react-test-renderer');
  globalThis.document = Object.assign(new EventTarget(), { visibilityState: 'visible' });
  let chat;
  const resumed = new Promise((done) => {
    const onFinish = ({ isError }) => isError || done();
    chat = new HookedChat({ id: `hooked-${Date.now()}`, transport: byToken(), onFinish });
  });
  const Page = () => useChat({ chat, resume: true }) && null;
  await lose(chat, async () => {
    globalThis.IS_REACT_ACT_ENVIRONMENT = true;
    await act(() => create(createElement(Page)));
    globalThis.IS_REACT_ACT_ENVIRONMENT = false;
  });
  document.dispatchEvent(new Event('visibilitychange'));
  await resumed;
  await holdsItsAnswer(chat);
}

// A page that is loaded anew while its first question is answered, then while that is answered anew, then afterwards.
const conversation = await make();
let page = new Chat(conversation, { messages: await opened(conversation) });
for (const ask of [() => page.sendMessage({ text: 'AIMOCK:slow' }), () => page.regenerate()]) {
  const asked = ask();
  await until(page, () => page.status === 'streaming' && page.lastText !== '');
  const reading = page.lastMessage.id;
  await page.stop();
  await asked;
  page = new Chat(conversation, { messages: await opened(conversation) });
  assert.deepEqual([page.messages.length, page.lastText], [1, 'AIMOCK:slow']);
  const going = reopen(page);
  await until(page, () => page.status === 'streaming' && page.messages.length === 2);
  assert.equal(page.lastMessage.id, reading);
  await going;
  assert.deepEqual(page.messages, await stored(conversation));
  assert.deepEqual(page.messages.map(({ id, role }) => [id === reading, role]), [[false, 'user'], [true, 'assistant']]);
}
// What the tab has kept although it was answered and read elsewhere.
const keeps = [{ id: 'kept', role: 'user', parts: [{ type: 'text', text: 'AIMOCK:slow' }] }];
sessionStorage.setItem(conversation, JSON.stringify(keeps));
page = new Chat(conversation, { messages: await opened(conversation) });
assert.deepEqual(page.messages.map(({ id }) => id), ['kept']);
await reopen(page);
assert.deepEqual([page.status, page.messages], ['ready', await stored(conversation)]);

// One that is left before its end keeps its question, and what there was of it.
void page.sendMessage({ text: 'AIMOCK:slow' });
await until(page, () => page.status === 'streaming' && page.lastText !== '');
await page.stop();
page = new Chat(conversation, { messages: await opened(conversation) });
const going = reopen(page);
await until(page, () => page.status === 'streaming' && page.lastText !== '');
await page.stop();
await going;
assert.deepEqual(page.messages.slice(-2).map(({ role }) => role), ['user', 'assistant']);
assert.equal(page.messages.at(-2).parts[0].text, 'AIMOCK:slow');

// What never arrived, and an edit that was refused, stay in a page that is seen again or loaded anew, to be tried again.
const offline = new Chat(await make());
await offline.sendMessage({ text: 'Hello' });
const answered = offline.lastMessage.id;
globalThis.fetch = async () => { throw new TypeError('Failed to fetch'); };
await offline.sendMessage({ text: 'And again' });
globalThis.fetch = connected;
assert.equal(offline.status, 'error');
await reopen(offline);
assert.deepEqual([offline.status, offline.messages.length, offline.lastText], ['ready', 3, 'And again']);
let again = new Chat(offline.id, { messages: await opened(offline.id) });
await reopen(again);
assert.deepEqual([again.status, again.messages.length, again.lastText], ['ready', 3, 'And again']);
await again.regenerate();
assert.deepEqual((await stored(again.id)).map(({ id }) => id === answered), [false, true, false, false]);
await again.sendMessage({ text: 'And again, edited', messageId: again.messages[2].id }, fails);
await reopen(again);
assert.deepEqual([again.status, again.messages.length, again.lastText], ['ready', 3, 'And again, edited']);
await again.regenerate();
assert.deepEqual((await stored(again.id)).map(textOf).filter((_, i) => i % 2 === 0), ['Hello', 'And again, edited']);

// What is asked while the conversation is read stays as well.
again = new Chat(again.id, { messages: await opened(again.id) });
let asking;
globalThis.fetch = async (...request) => {
  const response = await connected(...request);
  if (String(request[0]).includes('/conversations/')) asking = again.sendMessage({ text: 'AIMOCK:thinks' });
  return response;
};
await reopen(again);
globalThis.fetch = connected;
assert.equal(again.lastText, 'AIMOCK:thinks');
await asking;
assert.deepEqual([again.status, again.messages.length, textOf(again.messages[4])], ['ready', 6, 'AIMOCK:thinks']);

// Files beside a text are left out; of files alone there is nothing to ask.
const files = [{ type: 'file', mediaType: 'image/png', url: 'data:image/png;base64,iVBORw0KGgo=' }];
const seeing = new Chat(await make());
await seeing.sendMessage({ text: 'What is this?', files });
assert.deepEqual([seeing.status, (await stored(seeing.id))[0].parts[0].text], ['ready', 'What is this?']);
await seeing.sendMessage({ files });
const { code: refused, errors } = problemOf(seeing.error);
assert.deepEqual([refused, errors.map(({ field }) => field)], ['validation_failed', ['messages']]);

// A conversation that another tab has deleted is not found; what is said in it is the beginning of another one.
await fetch(`${api}/api/chat/conversations/${page.id}`, { method: 'DELETE', headers: { authorization: `Bearer ${token}` } });
for (const read of [() => opened(page.id), () => reopen(page)]) {
  await assert.rejects(read, (error) => problemOf(error).code === 'not_found');
}
await page.sendMessage({ text: 'Hello' });
const { conversationId } = page.lastMessage.metadata;
assert.notEqual(conversationId, page.id);
assert.deepEqual((await stored(conversationId)).map(({ role }) => role), ['user', 'assistant']);
