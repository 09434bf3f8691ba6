// Waits until the administrator may ask as often within the minute as the collection does.

const ENOUGH = 60;
const { API_URL, ADMIN_EMAIL, ADMIN_PASSWORD } = process.env;

async function ask(path, options) {
  const reply = await fetch(API_URL + path, options);
  if (!reply.ok) throw new Error(`${path} answers ${reply.status}: ${await reply.text()}`);
  return reply;
}

const signedIn = await ask('/api/auth/signin', {
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify({ email: ADMIN_EMAIL, password: ADMIN_PASSWORD, transport: 'bearer' }),
});
const { token } = await signedIn.json();
for (;;) {
  const reply = await fetch(`${API_URL}/api/auth/me`, { headers: { authorization: `Bearer ${token}` } });
  const [, left, seconds] = /r=(\d+);t=(\d+)/.exec(reply.headers.get('ratelimit') ?? '') ?? [];
  if (left === undefined || Number(left) >= ENOUGH) break;
  await new Promise((wake) => setTimeout(wake, (Number(seconds) + 1) * 1000));
}
