/**
 * The same duty done the usual way: an informer of `@kubernetes/client-node`, and no more around it than the duty takes.
 * One exchange per identity, as many patches at once as the controller makes, a patch before the token expires. It has
 * no back-off, no events, no metrics and no guard against other writers.
 */
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import process from "node:process";
import { decodeJwt } from "jose/jwt/decode";

// deno-lint-ignore no-explicit-any
type Secret = any;

// Not written into the import, as the checkout is checked without it: it is installed for the bench alone.
const SDK: string = "@kubernetes/client-node";
const { CoreV1Api, KubeConfig, makeInformer, PatchStrategy, setHeaderOptions } = await import(SDK);

const MAX_PATCHES = 16;
/** As the controller. */
const REFRESH_FRACTION = 0.67;
const REFRESH_SPREAD = 0.1;
const RETRY_MS = 5_000;
const PREFIX = "pull-secret-updater.chainguard.dev";
const IDENTITY = `${PREFIX}/identity`;
const DATA_KEY = ".dockerconfigjson";
const { ISSUER_URL, SUBJECT_TOKEN_FILE = "", PORT } = process.env;

const config = new KubeConfig();
config.loadFromDefault();
const api = config.makeApiClient(CoreV1Api);
const informer = makeInformer(
  config,
  "/api/v1/secrets",
  () => api.listSecretForAllNamespaces({ labelSelector: IDENTITY }),
  IDENTITY,
);

const timers = new Map<string, NodeJS.Timeout>();
const tokens = new Map<string, Promise<string>>();
const queue: (() => Promise<void>)[] = [];
let patching = 0;

const keyOf = ({ metadata: { namespace, name } }: Secret) => `${namespace}/${name}`;

/** The token in a Secret, if it is of its identity. */
function tokenIn(secret: Secret): string | undefined {
  try {
    const { auths } = JSON.parse(Buffer.from(secret.data[DATA_KEY], "base64").toString());
    const [user, token] = Buffer.from(auths["cgr.dev"].auth, "base64").toString().split(":");
    return user === "_token" && decodeJwt(token!).sub === secret.metadata.annotations[IDENTITY]
      ? token
      : undefined;
  } catch {
    return undefined;
  }
}

/** How long until it is to be replaced. */
function delayOf(token: string | undefined): number {
  if (token === undefined) return 0;
  const { iat = 0, exp = 0 } = decodeJwt(token);
  return (iat + (REFRESH_FRACTION + Math.random() * REFRESH_SPREAD) * (exp - iat)) * 1000 -
    Date.now();
}

function schedule(secret: Secret, delay = delayOf(tokenIn(secret))): void {
  const key = keyOf(secret);
  clearTimeout(timers.get(key));
  timers.set(key, setTimeout(() => enqueue(() => refresh(key, secret)), Math.max(delay, 0)));
}

function enqueue(job: () => Promise<void>): void {
  queue.push(job);
  startNext();
}

function startNext(): void {
  if (patching >= MAX_PATCHES) return;
  const job = queue.shift();
  if (!job) return;
  patching++;
  job().finally(() => {
    patching--;
    startNext();
  });
}

/** One exchange for all that need the token of an identity, until it is due itself. */
function tokenOf(identity: string): Promise<string> {
  const token = tokens.get(identity) ?? exchange(identity);
  tokens.set(identity, token);
  const drop = () => void tokens.delete(identity);
  token.then((jwt) => setTimeout(drop, delayOf(jwt)).unref(), drop);
  return token;
}

async function exchange(identity: string): Promise<string> {
  const answer = await fetch(`${ISSUER_URL}/sts/exchange`, {
    method: "POST",
    headers: { authorization: `Bearer ${readFileSync(SUBJECT_TOKEN_FILE, "utf8")}` },
    body: new URLSearchParams({ aud: "cgr.dev", identity }),
  });
  if (!answer.ok) throw new Error(`the issuer answered ${answer.status}`);
  const { token } = await answer.json() as { token: string };
  return token;
}

async function refresh(key: string, secret: Secret): Promise<void> {
  const { namespace, name, uid, resourceVersion, annotations } = secret.metadata;
  try {
    const identity = annotations[IDENTITY];
    const token = await tokenOf(identity);
    const auth = Buffer.from(`_token:${token}`).toString("base64");
    const docker = JSON.stringify({ auths: { "cgr.dev": { auth } } });
    const expires = new Date((decodeJwt(token).exp ?? 0) * 1000).toISOString();
    const told = { [`${PREFIX}/token-identity`]: identity, [`${PREFIX}/token-expires`]: expires };
    const body = {
      metadata: { uid, resourceVersion, annotations: told },
      data: { [DATA_KEY]: Buffer.from(docker).toString("base64") },
    };
    const asMerge = setHeaderOptions("content-type", PatchStrategy.MergePatch);
    await api.patchNamespacedSecret({ namespace, name, body }, asMerge);
    console.log(`token written: ${key}`);
  } catch (error) {
    console.log(`failed: ${key}: ${(error as Error).message}`);
    const current = informer.get(name, namespace);
    if (current) schedule(current, RETRY_MS);
  }
}

informer.on("add", schedule);
informer.on("update", schedule);
informer.on("delete", (secret: Secret) => {
  clearTimeout(timers.get(keyOf(secret)));
  timers.delete(keyOf(secret));
});
informer.on("error", (error: Error) => {
  console.log(`watch failed: ${error.message}`);
  setTimeout(() => informer.start(), RETRY_MS);
});
process.on("SIGTERM", () => process.exit(0));

let isReady = false;
createServer((_request, response) => response.writeHead(isReady ? 200 : 503).end()).listen(
  Number(PORT),
);
await informer.start();
isReady = true;
