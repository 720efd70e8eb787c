/**
 * The least that the work takes: bare programs on the same runtime, with the same HTTP client, that do one thing only.
 *
 * - `patch`: writes a token into all Secrets, as many at once as the controller
 * - `watched`: the same, while it watches them, as who keeps them must; what it reads it throws away
 * - `list`: lists all Secrets, then is ready
 * - `reflex`: watches, and writes a token into each Secret that is added
 */
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import process from "node:process";
import { Agent, request } from "undici";
import { DATA_KEY, IDENTITY, TOKEN_EXPIRES, TOKEN_IDENTITY } from "../tests/support/names.ts";
import { base64, configOf } from "../tests/support/secrets.ts";

/** As the controller. */
const MAX_PATCHES = 16;
const PAGE_LIMIT = 500;

interface Target {
  namespace: string;
  name: string;
  uid: string;
  resourceVersion: string;
}
type WatchRecord = {
  type: string;
  object: { metadata: Target & { annotations?: Record<string, string> } };
};

const {
  KUBERNETES_SERVICE_HOST,
  KUBERNETES_SERVICE_PORT,
  SERVICE_ACCOUNT_DIR = "",
  TOKEN_FILE,
  PORT,
} = process.env;
const api = `https://${KUBERNETES_SERVICE_HOST}:${KUBERNETES_SERVICE_PORT}`;
const ca = readFileSync(join(SERVICE_ACCOUNT_DIR, "ca.crt"), "utf8");
const bearer = readFileSync(join(SERVICE_ACCOUNT_DIR, "token"), "utf8");
const dispatcher = new Agent({ allowH2: false, connect: { ca } });
const headers = { authorization: `Bearer ${bearer}`, accept: "application/json" };
const selector = new URLSearchParams({ labelSelector: IDENTITY });

/** The part of a patch that is the same for all. */
function content(token: string) {
  const { sub, exp } = JSON.parse(Buffer.from(token.split(".")[1]!, "base64url").toString());
  return {
    annotations: {
      [TOKEN_IDENTITY]: sub,
      [TOKEN_EXPIRES]: new Date(exp * 1000).toISOString(),
    },
    data: { [DATA_KEY]: base64(configOf(token)) },
  };
}

async function patch(
  target: Target,
  { annotations, data }: ReturnType<typeof content>,
): Promise<void> {
  const { namespace, name, uid, resourceVersion } = target;
  const path = `/api/v1/namespaces/${namespace}/secrets/${name}?fieldManager=limit`;
  const { statusCode, body } = await request(api + path, {
    method: "PATCH",
    dispatcher,
    headers: { ...headers, "content-type": "application/merge-patch+json" },
    body: JSON.stringify({ metadata: { uid, resourceVersion, annotations }, data }),
  });
  if (statusCode !== 200) throw new Error(`patch: ${statusCode} ${await body.text()}`);
  await body.dump({ limit: Infinity });
}

async function list(): Promise<{ targets: Target[]; resourceVersion: string }> {
  const targets: Target[] = [];
  let next = "";
  for (;;) {
    const query = new URLSearchParams([...selector, ["limit", `${PAGE_LIMIT}`], [
      "continue",
      next,
    ]]);
    const { body } = await request(`${api}/api/v1/secrets?${query}`, { dispatcher, headers });
    const page = JSON.parse(await body.text());
    for (const { metadata: { namespace, name, uid, resourceVersion } } of page.items) {
      targets.push({ namespace, name, uid, resourceVersion });
    }
    next = page.metadata.continue ?? "";
    if (!next) return { targets, resourceVersion: page.metadata.resourceVersion };
  }
}

async function patchAll(isWatched: boolean): Promise<void> {
  const same = content(readFileSync(TOKEN_FILE!, "utf8"));
  const { targets, resourceVersion } = await list();
  if (isWatched) void (await watch(resourceVersion)).dump({ limit: Infinity });
  let next = 0;
  let written = 0;
  const work = async () => {
    for (let target = targets[next++]; target; target = targets[next++]) {
      await patch(target, same);
      written++;
      if (written === 1 || written === targets.length) console.log(`written: ${written}`);
    }
  };
  await Promise.all(Array.from({ length: MAX_PATCHES }, work));
}

async function watch(resourceVersion: string) {
  const query = new URLSearchParams([...selector, ["watch", "1"], [
    "resourceVersion",
    resourceVersion,
  ]]);
  return (await request(`${api}/api/v1/secrets?${query}`, { dispatcher, headers, bodyTimeout: 0 }))
    .body;
}

async function reflex(): Promise<void> {
  const same = content(readFileSync(TOKEN_FILE!, "utf8"));
  const { resourceVersion } = await list();
  const body = await watch(resourceVersion);
  serve();
  let rest = "";
  for await (const chunk of body) {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop()!;
    for (const line of lines) {
      const { type, object } = JSON.parse(line) as WatchRecord;
      if (type === "ADDED") void patch(object.metadata, same);
    }
  }
}

function serve(): void {
  createServer((_request, response) => response.end("ok\n")).listen(Number(PORT));
}

const modes: Record<string, () => unknown> = {
  // Stays until it is ended, as its CPU time is read last.
  patch: () => patchAll(false).then(serve),
  watched: () => patchAll(true).then(serve),
  list: () => list().then(serve),
  reflex,
};
process.on("SIGTERM", () => process.exit(0));
await modes[process.argv[2] ?? ""]!();
