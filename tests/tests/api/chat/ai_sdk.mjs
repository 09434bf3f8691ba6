// What a frontend does with the real AI SDK: `useChat` is this class with React around it.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';

const { AbstractChat, DefaultChatTransport } = createRequire(process.env.NODE_TOOLS + '/')('ai');

class State {
  status = 'ready';
  messages = [];
  error = undefined;
  pushMessage = (message) => { this.messages = [...this.messages, message]; };
  popMessage = () => { this.messages = this.messages.slice(0, -1); };
  replaceMessage = (index, message) => { this.messages = this.messages.with(index, message); };
  snapshot = (value) => structuredClone(value);
}

class Chat extends AbstractChat {
  constructor(id) {
    const { API_URL: api, TOKEN: token } = process.env;
    // snippet: transport
    const transport = new DefaultChatTransport({
      api: `${api}/api/chat`,
      headers: { authorization: `Bearer ${token}` },
    });
    // end
    super({ id, state: new State(), transport });
  }

  get lastText() {
    return this.messages.at(-1).parts.filter((part) => part.type === 'text').map((part) => part.text).join('');
  }
}

const chat = new Chat(`chat-${Date.now()}`);
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
assert.match(chat.error.message, /^The model provider failed/);

// What was delivered is not resumed; what is under way is, in another tab.
const reloaded = new Chat(chat.id);
await reloaded.resumeStream();
assert.deepEqual([reloaded.status, reloaded.messages.length], ['ready', 0]);

const slow = new Chat(`slow-${Date.now()}`);
const sent = slow.sendMessage({ text: 'AIMOCK:slow' });
while (slow.status !== 'streaming') await new Promise((done) => setTimeout(done, 20));
const tab = new Chat(slow.id);
await Promise.all([sent, tab.resumeStream()]);
assert.equal(tab.lastText, slow.lastText);
assert.equal(tab.messages.at(-1).metadata.finishReason, 'stop');
