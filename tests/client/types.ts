// What the generated types say of the contract: it is compiled, and nothing of it runs.

import type { components, paths } from './generated/schema.js';

type Schemas = components['schemas'];
type Question = paths['/api/chat']['post']['requestBody']['content']['application/json'];

export const own: Question = { message: 'Hello', temperature: 1 };
export const ofTheSdk: Question = { id: 'c1', messages: [], trigger: 'submit-message' };
// @ts-expect-error: it has no message of either kind.
export const silent: Question = { model: 'gpt-4' };
// @ts-expect-error: the AI SDK names its conversation.
export const nameless: Question = { messages: [] };

export const bad = ({ errors }: Schemas['ValidationProblem']): number => errors.length;
export const wait = (problem: Schemas['RateLimitedProblem'] | Schemas['TooManyAttemptsProblem']): number =>
  problem.retryAfterSeconds;
