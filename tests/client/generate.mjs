// Writes the types of the API: `generated/schema.d.ts`, from the description that the product serves.

import { mkdir, writeFile } from 'node:fs/promises';
import openapiTS, { astToString } from 'openapi-typescript';

const here = new URL('./', import.meta.url);
const reply = await fetch(`${process.env.API_URL}/openapi.json`);
const description = await reply.json();
await mkdir(new URL('generated/', here), { recursive: true });
await writeFile(new URL('generated/schema.d.ts', here), astToString(await openapiTS(description)));
