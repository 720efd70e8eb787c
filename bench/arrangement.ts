/** The Secrets of a row: as many as it takes, empty or filled, whatever the row before left behind. */
import { readFileSync } from "node:fs";
import { Agent, request } from "undici";
import { identityOf, standingOf } from "../tests/cluster/objects.ts";
import { type Ground, ISSUER_HOST, namespaceOf } from "./ground.ts";
import { DATA_KEY, IDENTITY, TOKEN_EXPIRES, TOKEN_IDENTITY } from "../tests/support/names.ts";
import type { Json } from "../tests/support/json.ts";
import { base64, configOf, pullSecret } from "../tests/support/secrets.ts";

/** More would only queue in the API server, on two cores. */
const AT_ONCE = 24;
const PAGE_LIMIT = 500;
const EMPTY = '{"auths":{}}';

export interface Arrangement {
  secrets: number;
  /** The Secrets take them in turn. Default: one. */
  identities?: number;
  /** Whether each holds a token. */
  isFilled?: boolean;
}

const identityFor = (index: number, identities: number) =>
  identityOf(`bench ${index % identities}`);
const nameOf = (index: number) => `pull-secret-${index}`;
const pathOf = (index: number) => `/api/v1/namespaces/${namespaceOf(index)}/secrets`;

/** How many there are, by cluster. */
const counts = new WeakMap<Ground, number>();

/** Has the cluster hold just these. */
export async function arrange(
  ground: Ground,
  { secrets, identities = 1, isFilled }: Arrangement,
): Promise<void> {
  const { admin } = ground;
  const before = counts.get(ground) ?? 0;
  const tokens = new Map<string, string>();
  for (let index = 0; isFilled && index < Math.min(identities, secrets); index++) {
    const identity = identityFor(index, identities);
    tokens.set(identity, await mint(ground, identity));
  }
  await inParallel(Math.max(before, secrets), async (index) => {
    const identity = identityFor(index, identities);
    const token = tokens.get(identity);
    if (index >= secrets) return await admin.delete(`${pathOf(index)}/${nameOf(index)}`);
    if (index < before) {
      return await admin.patch(`${pathOf(index)}/${nameOf(index)}`, stateOf(identity, token));
    }
    const secret = pullSecret(namespaceOf(index), nameOf(index), identity, {
      [IDENTITY]: identity,
    });
    secret.stringData[DATA_KEY] = dockerConfig(token);
    await admin.create(pathOf(index), secret);
  });
  counts.set(ground, secrets);
}

/** A merge patch to the state of a Secret that is new, or filled. */
function stateOf(identity: string, token: string | undefined): object {
  const none = { [TOKEN_IDENTITY]: null, [TOKEN_EXPIRES]: null };
  const metadata = {
    labels: { [IDENTITY]: identity.replaceAll("/", ".") },
    annotations: { [IDENTITY]: identity, ...none },
  };
  return { metadata, data: { [DATA_KEY]: base64(dockerConfig(token)) } };
}

const dockerConfig = (token: string | undefined) => token ? configOf(token) : EMPTY;

/** How many hold a token of their own identity that has not expired. */
export async function countFilled({ admin }: Ground): Promise<number> {
  let filled = 0;
  let next = "";
  const now = Date.now();
  do {
    const query = new URLSearchParams({
      labelSelector: IDENTITY,
      limit: `${PAGE_LIMIT}`,
      continue: next,
    });
    const page = await admin.get(`/api/v1/secrets?${query}`);
    filled += page.items.filter((secret: Json) => {
      return standingOf(secret, secret.metadata.annotations[IDENTITY], now).state === "valid";
    }).length;
    next = page.metadata.continue ?? "";
  } while (next);
  return filled;
}

/** A token of the issuer, got as any other. */
export async function mint(
  { issuer, account, issuerCaFile }: Ground,
  identity: string,
): Promise<string> {
  const dispatcher = new Agent({
    allowH2: false,
    connect: { ca: readFileSync(issuerCaFile, "utf8") },
  });
  const answer = await request(`${issuer.url}/sts/exchange`, {
    method: "POST",
    dispatcher,
    headers: {
      host: ISSUER_HOST,
      authorization: `Bearer ${readFileSync(account.settings.SUBJECT_TOKEN_FILE, "utf8")}`,
      "content-type": "application/x-www-form-urlencoded",
    },
    body: new URLSearchParams({ aud: "cgr.dev", identity }).toString(),
  });
  const { token } = await answer.body.json() as { token: string };
  await dispatcher.close();
  return token;
}

async function inParallel(total: number, run: (index: number) => Promise<unknown>): Promise<void> {
  let next = 0;
  const work = async () => {
    while (next < total) await run(next++);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
}
