// What a frontend writes around the generated types.

import createClient, { type Middleware } from 'openapi-fetch';
import type { components, paths } from './generated/schema.js';

// snippet: events
type Schemas = components['schemas'];
type Provider = Schemas['ProviderId'];
type Ids = { streamId: string; conversationId: string; messageId: string };
type Start = Ids & { provider: Provider; model: string; fallbackFrom?: Provider };
type Result = { usage: Schemas['Usage']; finishReason: Schemas['FinishReason']; quota: Schemas['Quota'] };

export type ChatEvent =
  | { id: number; event: 'start'; data: Start }
  | { id: number; event: 'delta'; data: { text: string } }
  | { id: number; event: 'done'; data: { messageId: string } & Result }
  | { id: number; event: 'error'; data: { code: Schemas['Code']; message: string } };

/** Reads server-sent events from any reply of `fetch`. */
export async function* readEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<ChatEvent> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let text = '';
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) {
      text += decoder.decode(read.value, { stream: true });
      for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
        const fields: Record<string, string> = {};
        for (const line of text.slice(0, end).split('\n')) {
          const colon = line.indexOf(':');
          // A line that begins with a colon is a comment that keeps the connection open.
          if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
        }
        text = text.slice(end + 2);
        if (fields.data !== undefined) {
          yield { id: Number(fields.id), event: fields.event, data: JSON.parse(fields.data) } as ChatEvent;
        }
      }
    }
  } finally {
    await reader.cancel();
  }
}
// end

// snippet: client
export function connect(baseUrl: string, token: () => string | undefined) {
  const client = createClient<paths>({ baseUrl });
  const authorize: Middleware = {
    onRequest({ request }) {
      const held = token();
      if (held) request.headers.set('authorization', `Bearer ${held}`);
      return request;
    },
  };
  client.use(authorize);
  return client;
}
// end

// snippet: signup
/** Signs up; nothing comes back where the address must be verified before the first sign-in. */
export async function signUp(api: ReturnType<typeof connect>, email: string, password: string) {
  const { data, error } = await api.POST('/api/auth/signup', { body: { email, password, transport: 'bearer' } });
  if (error) throw new Error(`${error.code}: ${error.detail}`);
  return 'token' in data ? data : undefined;
}
// end

// snippet: refresh
/** The next tokens; nothing comes back where the session has ended and its owner has to sign in. */
export async function refresh(baseUrl: string, sessionToken: string) {
  const { data, error } = await connect(baseUrl, () => sessionToken).POST('/api/auth/refresh');
  if (error && error.status !== 401) throw new Error(`${error.code}: ${error.detail}`);
  return data;
}
// end

// snippet: cookie
/** The client of a page whose browser keeps the cookie. */
export const connectByCookie = (baseUrl: string) => createClient<paths>({ baseUrl, credentials: 'include' });
// end
