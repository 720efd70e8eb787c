/** The client of the API server, over real loopback HTTPS against the stand-in. */
import {
  assert,
  assertEquals,
  assertIsError,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { decodeJwt } from "jose/jwt/decode";
import { Buffer } from "node:buffer";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, connect as connectTcp, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, describe, test } from "node:test";
import { inspect } from "node:util";
import type * as source from "./k8s.ts";
import type { Secret, WatchEvent } from "./k8s.ts";
import { urlOfShipped } from "./tests/support/program.ts";
import { type ApiServerOptions, errorEvent, startApiServer } from "./tests/fake/apiserver.ts";
import { makeAuthority } from "./tests/fake/certificates.ts";
import { CONTROLLER, IDENTITY, MIB } from "./tests/support/names.ts";
import { until } from "./tests/support/until.ts";

const TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJvbmUgb2YgdHdvIn0.c2lnbmF0dXJlLW9mLXRoZS1maXJzdA";
const NEXT_TOKEN =
  "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ0d28gb2YgdHdvIn0.c2lnbmF0dXJlLW9mLXRoZS1zZWNvbmQ";
/** Connections for requests that come one after the other: undici opens one more where it has not noticed an end yet. */
const FEW = 2;
const TEXT = "日本é😀";

const authority = makeAuthority();
const api = await startServer();
const cleanups: (() => unknown)[] = [];

const { ApiError, KubernetesClient, listAndWatch, parseWatch }: typeof source = await import(
  await urlOfShipped("k8s.ts")
);

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  api.faults.clear();
  api.tokens = new Map([[TOKEN, CONTROLLER]]);
  api.requests.length = 0;
});
after(() => api.close());

function startServer(options: ApiServerOptions = {}) {
  return startApiServer({
    certificate: authority.issue(),
    tokens: new Map([[TOKEN, CONTROLLER]]),
    ...options,
  });
}

/** A server for one test, which may change its certificate. */
async function startOwnServer(options: ApiServerOptions = {}) {
  const server = await startServer(options);
  cleanups.push(() => server.close());
  return server;
}

interface Credentials {
  token?: string;
  ca?: string;
  servername?: string;
}

/** A client with a service-account folder of its own; undefined credentials are not used at all. */
function connect(
  url = api.url,
  { token, ca, servername }: Credentials = { token: TOKEN, ca: authority.certificate },
) {
  const folder = mkdtempSync(join(tmpdir(), "k8s-test-"));
  const files = { token: join(folder, "token"), ca: join(folder, "ca.crt") };
  if (token !== undefined) writeFileSync(files.token, token);
  if (ca !== undefined) writeFileSync(files.ca, ca);
  const responses: string[] = [];
  const client = new KubernetesClient({
    url,
    servername,
    tokenFile: token === undefined ? undefined : files.token,
    caFile: ca === undefined ? undefined : files.ca,
    labelSelector: IDENTITY,
    userAgent: "pull-secret-updater/test",
    onResponse: (verb, code) => responses.push(`${verb} ${code}`),
  });
  cleanups.push(() => client.close(), () => rmSync(folder, { recursive: true }));
  return Object.assign(client, { files, responses });
}

const anySignal = () => new AbortController().signal;

/** Passes bytes on to a port, and counts the connections. */
async function startRelay(port: number) {
  const sockets = new Set<Socket>();
  const relay = { url: "", opened: 0, open: () => sockets.size };
  const server = createServer((socket) => {
    relay.opened++;
    sockets.add(socket);
    const upstream = connectTcp(port, "127.0.0.1");
    socket.pipe(upstream).pipe(socket);
    socket.on("error", () => {}).on("close", () => {
      sockets.delete(socket);
      upstream.destroy();
    });
    upstream.on("error", () => {}).on("close", () => socket.destroy());
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  relay.url = `https://127.0.0.1:${(server.address() as AddressInfo).port}`;
  cleanups.push(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return relay;
}

const portOf = (url: string) => +new URL(url).port;

/** How a request failed: always with an ApiError, in which no token is to be found. */
async function failure(request: Promise<unknown>): Promise<source.ApiError> {
  const error = await request.then(() => undefined, (caught) => caught);
  assertIsError(error, ApiError);
  assertNoToken(error);
  return error as source.ApiError;
}

function assertNoToken(error: Error): void {
  const seen = [inspect(error, { depth: Infinity, showHidden: true })];
  for (let each: unknown = error; each instanceof Error; each = each.cause) {
    seen.push(each.message, `${each.stack}`);
  }
  const text = seen.join("\n");
  for (const token of [TOKEN, NEXT_TOKEN]) {
    for (let at = 0; at + 16 <= token.length; at++) {
      const part = token.slice(at, at + 16);
      assert(
        !text.includes(part),
        `a part of the token, ${part}, is in the error: ${text.slice(0, 200)}`,
      );
    }
  }
}

async function listAll(
  client: Pick<ReturnType<typeof connect>, "list">,
  namespace?: string,
  signal = anySignal(),
) {
  const names: string[] = [];
  for await (const { items } of client.list(namespace, signal)) {
    names.push(...items.map(({ metadata }) => metadata.name));
  }
  return names;
}

/** Reads a watch to its end. */
async function readAll(events: AsyncIterable<WatchEvent>) {
  const seen: string[] = [];
  try {
    for await (const event of events) seen.push(brief(event));
  } catch (error) {
    assertIsError(error, ApiError);
    assertNoToken(error);
    return { seen, error: error as source.ApiError };
  }
  return { seen, error: undefined };
}

function brief(event: WatchEvent): string {
  return event.type === "BOOKMARK"
    ? `BOOKMARK ${event.resourceVersion}`
    : `${event.type} ${event.secret.metadata.name}`;
}

let namespaces = 0;

/** A namespace of its own for each test, with so many labelled Secrets. */
function createSecrets(count: number, server = api): string {
  const namespace = `team-${++namespaces}`;
  server.createNamespace(namespace);
  for (let index = 0; index < count; index++) createSecret(namespace, `pull-${index}`, server);
  return namespace;
}

function createSecret(namespace: string, name: string, server = api) {
  const type = "kubernetes.io/dockerconfigjson";
  const metadata = { namespace, name, labels: { [IDENTITY]: "" }, annotations: { text: TEXT } };
  return server.createSecret({ metadata, type, stringData: { ".dockerconfigjson": "{}" } });
}

const added = (name: string) => ({
  type: "ADDED",
  object: { metadata: { namespace: "team", name, uid: "u", resourceVersion: "7" } },
});

describe("the bearer token", () => {
  test("is sent trimmed, with every request, to an API server over TLS", async () => {
    const client = connect(api.url, { token: `\n${TOKEN}\n`, ca: authority.certificate });
    const namespace = createSecrets(1);
    await listAll(client, namespace);
    await client.get(namespace, "pull-0", anySignal());
    assertEquals(
      api.requests.map(({ headers }) => headers.authorization),
      Array(2).fill(`Bearer ${TOKEN}`),
    );
  });

  test("is never sent where there is no file of it", async () => {
    api.tokens = undefined;
    await listAll(connect(api.url, { ca: authority.certificate }));
    assertEquals(api.requests.map(({ headers }) => headers.authorization), [undefined]);
  });

  test("is read anew for each request, as the kubelet replaces it", async () => {
    const client = connect();
    await listAll(client);
    api.tokens!.set(NEXT_TOKEN, CONTROLLER);
    writeFileSync(client.files.token, NEXT_TOKEN);
    await listAll(client);
    const sent = api.requests.map(({ headers }) => headers.authorization);
    assertEquals(sent, [TOKEN, NEXT_TOKEN].map((token) => `Bearer ${token}`));
  });

  test("is tried once: a 401 fails, and the next request reads it anew", async () => {
    const client = connect();
    api.tokens = new Map([[NEXT_TOKEN, CONTROLLER]]);
    const error = await failure(listAll(client));
    assertEquals([error.status, error.reason], [401, "Unauthorized"]);
    writeFileSync(client.files.token, NEXT_TOKEN);
    await listAll(client);
    assertEquals(client.responses, ["list 401", "list 200"]);
  });

  for (const state of ["missing", "empty"]) {
    test(`fails a request, without sending it, while its file is ${state}; its message names the file`, async () => {
      const client = connect();
      await listAll(client);
      api.requests.length = 0;
      if (state === "missing") rmSync(client.files.token);
      else writeFileSync(client.files.token, "\n");
      const error = await failure(listAll(client));
      assertStringIncludes(error.message, client.files.token);
      assertEquals([error.status, api.requests.length], [undefined, 0]);
      writeFileSync(client.files.token, TOKEN);
      await listAll(client);
    });
  }

  test("is in no error when it cannot stand in a header", async () => {
    for (const token of [`${TOKEN}\n${TOKEN}`, `${TOKEN}\u0000`, `${TOKEN}é😀`]) {
      await failure(listAll(connect(api.url, { token, ca: authority.certificate })));
    }
    assertEquals(api.requests, []);
  });
});

describe("TLS", () => {
  test("refuses an API server whose certificate another CA signed", async () => {
    const error = await failure(
      listAll(connect(api.url, { token: TOKEN, ca: makeAuthority().certificate })),
    );
    assertMatch(
      `${error.reason}`,
      /UNABLE_TO_VERIFY|SELF_SIGNED|UNKNOWN_ISSUER|UNABLE_TO_GET_ISSUER/,
    );
    assertEquals([error.status, api.requests.length], [undefined, 0]);
  });

  test("refuses, without a CA of its own, an API server that the system's roots do not know", async () => {
    await failure(listAll(connect(api.url, { token: TOKEN })));
    assertEquals(api.requests.length, 0);
  });

  test("refuses a certificate for another host", async () => {
    const server = await startOwnServer({ certificate: authority.issue(["elsewhere.example"]) });
    const error = await failure(listAll(connect(server.url)));
    assertEquals([error.reason, server.requests.length], ["ERR_TLS_CERT_ALTNAME_INVALID", 0]);
  });

  test("takes a certificate for an address of IPv6 alone, or for the name that it is given", async (t) => {
    const hosts = ["::1", "kubernetes.default.svc"];
    for (const [index, host] of hosts.entries()) {
      const certificate = authority.issue([host]);
      const server = await startServer({ certificate, host: "::1" }).catch(() => undefined);
      if (!server) return t.skip("there is no IPv6 here");
      cleanups.push(() => server.close());
      const credentials = { token: TOKEN, ca: authority.certificate };
      const named = { ...credentials, servername: hosts[1] };
      await listAll(connect(server.url, index === 0 ? credentials : named));
      await failure(listAll(connect(server.url, index === 0 ? named : credentials)));
      assertEquals(server.count("list"), 1);
    }
  });

  test("checks the certificate for the name that it is given, in place of the address", async () => {
    const server = await startOwnServer({ certificate: authority.issue(["elsewhere.example"]) });
    const credentials = { token: TOKEN, ca: authority.certificate };
    await listAll(connect(server.url, { ...credentials, servername: "elsewhere.example" }));
    await failure(listAll(connect(server.url, { ...credentials, servername: "other.example" })));
    assertEquals(server.requests.length, 1);
  });

  test("takes each CA of the file that is whole, and trusts nobody where none is", async () => {
    const good = authority.certificate;
    const other = makeAuthority().certificate;
    const broken = [
      "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
      other.replace(/[^\n]+\n(?=-----END)/, ""),
      other.slice(0, 200) + "\n",
      "no certificate\n",
    ];
    for (const part of broken) {
      for (const ca of [part + good, good + part]) {
        await listAll(connect(api.url, { token: TOKEN, ca }));
      }
      await failure(listAll(connect(api.url, { token: TOKEN, ca: part })));
    }
  });

  test("takes an intermediate CA alone, whether the API server sends it too or not", async () => {
    const intermediate = authority.makeIntermediate();
    const leaf = intermediate.issue();
    const ca = intermediate.certificate;
    for (const cert of [leaf.cert, leaf.cert + ca]) {
      const server = await startOwnServer({ certificate: { ...leaf, cert } });
      await listAll(connect(server.url, { token: TOKEN, ca }));
      const other = makeAuthority().makeIntermediate().certificate;
      await failure(listAll(connect(server.url, { token: TOKEN, ca: other })));
      assertEquals(server.requests.length, 1);
    }
  });

  test("takes up a new ca.crt with the next connection; a running watch goes on", async () => {
    const server = await startOwnServer();
    const namespace = createSecrets(0, server);
    const client = connect(server.url);
    const watch = client.watch(namespace, server.resourceVersion, 60, anySignal());
    const first = watch.next();
    await until(() => server.openWatches === 1, "the watch is open");
    const other = makeAuthority();
    server.useCertificate(other.issue());
    await failure(listAll(client));
    writeFileSync(client.files.ca, other.certificate);
    await listAll(client);
    createSecret(namespace, "late", server);
    assertEquals(brief((await first).value!), "ADDED late");
    assertEquals(client.responses, ["watch 200", "list error", "list 200"]);
  });

  for (const state of ["missing", "empty", "not PEM"]) {
    test(`fails a request, without sending it, while ca.crt is ${state}`, async () => {
      const client = connect();
      if (state === "missing") rmSync(client.files.ca);
      else writeFileSync(client.files.ca, state === "empty" ? "\n" : "text");
      const error = await failure(listAll(client));
      assertEquals([error.status, api.requests.length], [undefined, 0]);
      if (state !== "not PEM") assertStringIncludes(error.message, client.files.ca);
      writeFileSync(client.files.ca, authority.certificate);
      await listAll(client);
    });
  }
});

describe("each request", () => {
  test("names the program, asks for JSON and counts its response", async () => {
    const namespace = createSecrets(1);
    const client = connect();
    api.createServiceAccount(namespace, "puller");
    await listAll(client, namespace);
    await client.get(namespace, "pull-0", anySignal());
    await client.patch(namespace, "pull-0", {}, anySignal());
    await client.requestToken(namespace, "puller", "audience", 600, anySignal());
    await failure(client.get(namespace, "none", anySignal()));
    api.faults.add({ verb: "watch", close: 0 });
    await readAll(client.watch(namespace, "0", 60, anySignal()));
    for (const { method, headers } of api.requests) {
      const isPatch = method === "PATCH";
      assertEquals([headers["user-agent"], headers.accept], [
        "pull-secret-updater/test",
        isPatch
          ? "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json"
          : "application/json",
      ]);
    }
    const responses = ["list 200", "get 200", "patch 200", "create 201", "get 404", "watch 200"];
    assertEquals(client.responses, responses);
  });

  test("counts no response as `error`, with the code of the connection as reason", async () => {
    const server = await startOwnServer();
    await server.close();
    const client = connect(server.url);
    const error = await failure(listAll(client));
    assertEquals([error.reason, error.status], ["ECONNREFUSED", undefined]);
    assertEquals(client.responses, ["list error"]);
  });

  test("fails with an ApiError when the connection is reset, before or in the midst of the answer", async () => {
    const namespace = createSecrets(1);
    const client = connect();
    for (const fault of [{ reset: true }, { cut: 0 }, { cut: 0.5 }]) {
      api.faults.add(fault);
      const error = await failure(client.get(namespace, "pull-0", anySignal()));
      assertMatch(`${error.reason}`, /^(UND_ERR_SOCKET|ECONNRESET)$/);
      assertEquals(error.status, undefined);
    }
  });

  test("ends at once when it is aborted before there are headers, and its connection too", async () => {
    const relay = await startRelay(portOf(api.url));
    const client = connect(relay.url);
    api.faults.add({ hang: true });
    const controller = new AbortController();
    const request = failure(client.get("team", "any", controller.signal));
    await until(() => api.requests.length === 1, "the request has arrived");
    const abortedAt = performance.now();
    controller.abort(new Error("enough"));
    assertStringIncludes((await request).message, "enough");
    assert(performance.now() - abortedAt < 500, "it took its time");
    await until(() => relay.open() === 0, "the connection is closed");
  });

  test("ends at once when it is aborted in the midst of the body, and its connection too", async () => {
    const relay = await startRelay(portOf(api.url));
    const client = connect(relay.url);
    const namespace = createSecrets(1);
    api.faults.add({ stall: 0.5 });
    const controller = new AbortController();
    const request = failure(client.get(namespace, "pull-0", controller.signal));
    await until(() => client.responses.length === 1, "there are headers");
    controller.abort(new Error("enough"));
    await request;
    await until(() => relay.open() === 0, "the connection is closed");
  });

  test("is not sent when it was aborted before", async () => {
    await failure(connect().get("team", "any", AbortSignal.abort(new Error("enough"))));
    assertEquals(api.requests.length, 0);
  });

  test("leaves its connection to the next one, whatever the answer was", async () => {
    const relay = await startRelay(portOf(api.url));
    const client = connect(relay.url);
    for (const status of [400, 403, 404, 409, 422, 429, 500, 503]) {
      api.faults.add({ status });
      await failure(client.get("team", "any", anySignal()));
    }
    api.faults.add({ status: 502, body: "<html>".repeat(10_000) });
    await failure(client.get("team", "any", anySignal()));
    await listAll(client);
    assert(relay.opened <= FEW, `${relay.opened} connections`);
  });

  test("bears the API server's status, message, reason and Retry-After in its error", async () => {
    const client = connect();
    const notFound = await failure(client.get("team", "none", anySignal()));
    assertEquals([notFound.status, notFound.reason], [404, "NotFound"]);
    assertStringIncludes(notFound.message, 'secrets "none" not found');
    api.faults.add({ status: 429, headers: { "retry-after": "7" } });
    const tooMany = await failure(client.get("team", "none", anySignal()));
    assertEquals([tooMany.status, tooMany.retryAfter], [429, "7"]);
    const date = "Wed, 21 Oct 2026 07:28:00 GMT";
    api.faults.add({ status: 503, headers: { "retry-after": date } });
    const unavailable = await failure(client.get("team", "none", anySignal()));
    assertEquals([unavailable.status, unavailable.retryAfter], [503, date]);
  });

  test("never has a body that is no Status in its error", async () => {
    const client = connect();
    for (
      const body of ["<html>a proxy's page</html>", "", "null", "42", '"a proxy\'s page"', "[]"]
    ) {
      api.faults.add({ status: 502, body });
      const error = await failure(client.get("team", "any", anySignal()));
      assertEquals(error.status, 502);
      assert(!inspect(error, { depth: Infinity, showHidden: true }).includes("proxy's page"));
    }
  });

  test("has the status of a refusal whose message is no text", async () => {
    const client = connect();
    for (const message of [{ toString: 1 }, [], 1, null]) {
      api.faults.add({ status: 403, body: { message } });
      const error = await failure(client.patch("team", "any", {}, anySignal()));
      assertEquals(error.status, 403);
      assertStringIncludes(error.message, "not a response of the API server");
    }
  });

  test("follows no redirect", async () => {
    const elsewhere = await startOwnServer();
    const client = connect();
    for (const status of [301, 302, 303, 307, 308]) {
      api.faults.add({ status, headers: { location: `${elsewhere.url}/api/v1/secrets` } });
      assertEquals((await failure(listAll(client))).status, status);
    }
    assertEquals(elsewhere.requests, []);
  });

  test("fails with an ApiError when the answer is not what was asked for", async () => {
    const client = connect();
    for (
      const body of [
        "",
        "{",
        "<html></html>",
        "null",
        "42",
        '"text"',
        "[]",
        "{}",
        '{"metadata":null}',
        '{"metadata":{},"items":[]}',
      ]
    ) {
      const requests = {
        list: () => listAll(client),
        get: () => client.get("team", "any", anySignal()),
        token: () => client.requestToken("team", "any", "audience", 600, anySignal()),
      };
      for (const [name, send] of Object.entries(requests)) {
        api.faults.add({ status: 200, body });
        const error = await send().catch((caught) => caught);
        assertIsError(error, ApiError);
        assertEquals([name, body, error.reason], [name, body, "InvalidResponse"]);
      }
    }
  });

  const names = [
    ...[
      "",
      ".",
      "..",
      "a/b",
      "../x",
      "..;",
      "%2e%2e",
      "%2f",
      "a?b=c",
      "a#b",
      "\\..\\",
      "é😀",
      " ",
      "\n",
    ],
    ...["a%00", "//host", "A", "a_b", "a.", "\u001b[31m"],
  ];

  test("never becomes part of a path: a name of another form than that of a Secret's is none", async () => {
    const client = connect();
    for (const name of names) {
      const object = (namespace: string, name: string) => ({
        metadata: { namespace, name, uid: "u", resourceVersion: "1" },
      });
      const body = (namespace: string, name: string) => ({
        metadata: { resourceVersion: "1" },
        items: [object(namespace, name)],
      });
      api.faults.add({ status: 200, body: body("team", name) });
      assertEquals(
        (await failure(listAll(client))).reason,
        "InvalidResponse",
        JSON.stringify(name),
      );
      // What a namespace ends with stands before a dot there, and before a slash in a path.
      if (/^[-.]|[^-.]$/.test(name)) {
        api.faults.add({ status: 200, body: body(name, "pull") });
        assertEquals(
          (await failure(listAll(client))).reason,
          "InvalidResponse",
          JSON.stringify(name),
        );
      }
      const records = [{ type: "ADDED", object: object("team", name) }];
      api.faults.add({ verb: "watch", lines: records, close: 0 });
      const { error } = await readAll(client.watch("team", "1", 60, anySignal()));
      assertEquals(error?.reason, "InvalidResponse");
    }
  });

  test("ends when the client is closed", async () => {
    const client = connect();
    const watch = readAll(client.watch(createSecrets(0), api.resourceVersion, 60, anySignal()));
    await until(() => api.openWatches === 1, "the watch is open");
    client.close();
    assert((await watch).error);
    await until(() => api.openWatches === 0, "the watch is closed");
  });
});

describe("the list", () => {
  test("asks for the selected Secrets, at any resource version, 250 at a time, and follows `continue`", async () => {
    const namespace = createSecrets(603);
    api.createSecret({ metadata: { namespace, name: "unlabelled" } });
    const names = await listAll(connect(), namespace);
    assertEquals(names.length, 603);
    assertEquals(new Set(names).size, 603);
    assert(!names.includes("unlabelled"));
    for (const { path, query } of api.requests) {
      assertEquals(path, `/api/v1/namespaces/${namespace}/secrets`);
      assertEquals([query.get("labelSelector"), query.get("limit")], [IDENTITY, "250"]);
      assert(!query.has("resourceVersion") && !query.has("watch"));
    }
    assertEquals(api.requests.map(({ query }) => query.has("continue")), [false, true, true]);
  });

  test("bears the resource version to watch from, the same on every page", async () => {
    const namespace = createSecrets(251);
    const versions = new Set<string>();
    const { resourceVersion } = api;
    for await (const page of connect().list(namespace, anySignal())) {
      versions.add(page.resourceVersion);
    }
    assertEquals([...versions], [resourceVersion]);
  });

  test("is of the whole cluster where no namespace is named", async () => {
    const server = await startOwnServer();
    createSecrets(1, server);
    createSecrets(1, server);
    assertEquals((await listAll(connect(server.url))).length, 2);
    assertEquals(server.requests[0]?.path, "/api/v1/secrets");
  });

  test("makes a page smaller until it is within 4 MiB, and larger again where it was", async () => {
    const namespace = createSecrets(0);
    const blob = Buffer.alloc(350 * 1024, 1).toString("base64");
    const labels = { [IDENTITY]: "" };
    for (let index = 0; index < 24; index++) {
      const name = `a-large-${`${index}`.padStart(2, "0")}`;
      api.createSecret({ metadata: { namespace, name, labels }, data: { blob } });
    }
    for (let index = 0; index < 300; index++) createSecret(namespace, `b-small-${index}`);
    const names = await listAll(connect(), namespace);
    assertEquals([new Set(names).size, names.length], [324, 324]);
    const limits = api.requests.map(({ query }) => +query.get("limit")!);
    assertEquals(limits.slice(0, 4), [250, 63, 16, 4]);
    assert(limits.length <= 20, limits.join());
    assert(limits.at(-1)! >= 64, limits.join());
    for (const { name } of api.secrets(namespace).map(({ metadata }) => metadata)) {
      api.deleteSecret(namespace, name);
    }
  });

  test("takes a single Secret of more than 4 MiB", async () => {
    const item = {
      metadata: { namespace: "team", name: "large", uid: "u", resourceVersion: "1" },
      data: { blob: "x".repeat(9 * MIB) },
    };
    // As text, or each response would make it anew.
    const body = JSON.stringify({ metadata: { resourceVersion: "7" }, items: [item] });
    api.faults.add({ verb: "list", times: Infinity, body });
    assertEquals(await listAll(connect()), ["large"]);
    assertEquals(api.requests.map(({ query }) => query.get("limit")), [
      "250",
      "63",
      "16",
      "4",
      "1",
    ]);
  });

  test("takes a page of exactly 4 MiB, and asks for one of a byte more again", async () => {
    const body = JSON.stringify({ metadata: { resourceVersion: "7" }, items: [] });
    const cases: [size: number, limits: string[]][] = [
      [4 * MIB, ["250"]],
      [4 * MIB + 1, ["250", "63"]],
    ];
    for (const [size, limits] of cases) {
      api.requests.length = 0;
      api.faults.add({ verb: "list", body: body.padEnd(size) });
      await listAll(connect(), createSecrets(0));
      assertEquals(api.requests.map(({ query }) => query.get("limit")), limits);
    }
  });

  test("ends with the page whose `continue` is empty", async () => {
    const body = { metadata: { resourceVersion: "7", continue: "" }, items: [] };
    api.faults.add({ verb: "list", times: 2, body });
    assertEquals(await listAll(connect()), []);
    assertEquals(api.requests.length, 1);
  });

  test("asks for a page that was too large again, from the same place", async () => {
    const namespace = createSecrets(300);
    const relay = await startRelay(portOf(api.url));
    const match = (request: { query: URLSearchParams }) => request.query.has("continue");
    api.faults.add({ verb: "list", match, body: "x".repeat(12 * MIB) });
    assertEquals(new Set(await listAll(connect(relay.url), namespace)).size, 300);
    const [, second, third] = api.requests.map(({ query }) => query);
    assertEquals(second?.get("continue"), third?.get("continue"));
    assertEquals([second?.get("limit"), third?.get("limit")], ["250", "63"]);
    await until(() => relay.open() === 1, "the connection of the page that was given up is closed");
  });

  test("gives up a single Secret that is too large", async () => {
    api.faults.add({ verb: "list", times: Infinity, body: "x".repeat(17 * MIB) });
    const error = await failure(listAll(connect(), createSecrets(1)));
    assertEquals(error.reason, "BodyTooLarge");
    assertEquals(api.requests.map(({ query }) => query.get("limit")), [
      "250",
      "63",
      "16",
      "4",
      "1",
    ]);
  });

  test("fails with a 410 when `continue` has expired", async () => {
    const client = connect();
    const pages = client.list(createSecrets(251), anySignal());
    assertEquals((await pages.next()).value?.items.length, 250);
    api.expire();
    const error = await failure(pages.next());
    assertEquals([error.status, error.reason], [410, "Expired"]);
  });
});

describe("the watch", () => {
  test("asks for the selected Secrets from a resource version on, with bookmarks, for so many seconds", async () => {
    const namespace = createSecrets(0);
    const { resourceVersion } = api;
    api.faults.add({ verb: "watch", close: 0 });
    await readAll(connect().watch(namespace, resourceVersion, 73, anySignal()));
    const [{ path, query } = api.requests[0]!] = api.requests;
    assertEquals(path, `/api/v1/namespaces/${namespace}/secrets`);
    assertEquals([query.get("labelSelector"), query.get("resourceVersion")], [
      IDENTITY,
      resourceVersion,
    ]);
    assertEquals([query.get("timeoutSeconds"), query.get("allowWatchBookmarks")], ["73", "true"]);
    assert(["1", "true"].includes(`${query.get("watch")}`));
  });

  test("gives each change as it happens, with its resource version", async () => {
    const namespace = createSecrets(0);
    const controller = new AbortController();
    const watch = connect().watch(namespace, api.resourceVersion, 60, controller.signal);
    const next = async () => (await watch.next()).value!;
    createSecret(namespace, "one");
    const added = await next();
    assertEquals([brief(added), added.resourceVersion], ["ADDED one", api.resourceVersion]);
    assertEquals("secret" in added && added.secret.metadata.annotations?.text, TEXT);
    api.patchSecret(namespace, "one", { metadata: { annotations: { text: "another" } } });
    assertEquals(brief(await next()), "MODIFIED one");
    api.patchSecret(namespace, "one", { metadata: { labels: { [IDENTITY]: null } } });
    const unlabelled = await next();
    assertEquals([brief(unlabelled), unlabelled.resourceVersion], [
      "DELETED one",
      api.resourceVersion,
    ]);
    createSecret(namespace, "two");
    api.deleteSecret(namespace, "two");
    assertEquals([brief(await next()), brief(await next())], ["ADDED two", "DELETED two"]);
    controller.abort();
    await failure(watch.next());
  });

  test("gives bookmarks, for the resource version in them", async () => {
    const server = await startOwnServer({ bookmarkInterval: 20 });
    const watch = connect(server.url).watch(
      createSecrets(0, server),
      server.resourceVersion,
      60,
      anySignal(),
    );
    createSecrets(0, server);
    for (let index = 0; index < 2; index++) {
      assertEquals(brief((await watch.next()).value!), `BOOKMARK ${server.resourceVersion}`);
    }
    await watch.return(undefined);
  });

  test("puts characters and lines together that come in pieces, some milliseconds apart", async () => {
    const texts = ["one", "two", TEXT];
    const lines = texts.map((text) => {
      const { type, object } = added("pull");
      return `${JSON.stringify({ type, object: { ...object, type: text } })}\n`;
    });
    api.faults.add({
      verb: "watch",
      lines: [lines.join("")],
      close: 2_500,
      split: { bytes: 1, ms: 2 },
    });
    const watch = connect().watch(createSecrets(0), "1", 60, anySignal());
    for (const text of texts) {
      const event = (await watch.next()).value!;
      assertEquals("secret" in event && event.secret.type, text);
    }
    await watch.return(undefined);
  });

  test("gives a line of more than a megabyte whole", async () => {
    const namespace = createSecrets(0);
    const watch = connect().watch(namespace, api.resourceVersion, 60, anySignal());
    const first = watch.next();
    const blob = Buffer.alloc(MIB - 1_000, 1).toString("base64");
    api.createSecret({
      metadata: { namespace, name: "large", labels: { [IDENTITY]: "" } },
      data: { blob },
    });
    const event = (await first).value!;
    assertEquals("secret" in event && event.secret.data?.blob, blob);
    await watch.return(undefined);
    api.deleteSecret(namespace, "large");
  });

  test("gives a line of 8.7 MB whole, in which each character is escaped", async () => {
    const text = "\u0001".repeat(Math.floor(8.7e6 / 6));
    const object = { ...added("large").object, data: { text } };
    const line = `${JSON.stringify({ type: "ADDED", object })}\n`;
    assert(line.length > 8.69e6, `${line.length}`);
    api.faults.add({ verb: "watch", lines: [line, added("next")], close: 0 });
    const seen: unknown[] = [];
    for await (const event of connect().watch(createSecrets(0), "1", 60, anySignal())) {
      seen.push("secret" in event && [event.secret.metadata.name, event.secret.data?.text?.length]);
    }
    assertEquals(seen, [["large", text.length], ["next", undefined]]);
  });

  test("gives up a line of more than 16 MiB, and its connection", async () => {
    const relay = await startRelay(portOf(api.url));
    api.faults.add({ verb: "watch", lines: [added("one"), "x".repeat(17 * MIB)] });
    const { seen, error } = await readAll(
      connect(relay.url).watch(createSecrets(0), "1", 60, anySignal()),
    );
    assertEquals([seen, error?.reason], [["ADDED one"], "InvalidResponse"]);
    await until(() => relay.open() === 0, "the connection is closed");
  });

  test("fails when the connection is cut in the midst of a line, which is dropped", async () => {
    const namespace = createSecrets(2);
    api.faults.add({ verb: "watch", cut: 1.5 });
    const { seen, error } = await readAll(connect().watch(namespace, "0", 60, anySignal()));
    assertEquals(seen, ["ADDED pull-0"]);
    assertMatch(`${error?.reason}`, /^(UND_ERR_SOCKET|ECONNRESET)$/);
    assertEquals(error?.status, undefined);
  });

  test("ends without an error where the API server ends it; part of a line is dropped", async () => {
    const lines = [added("one"), JSON.stringify(added("two")).slice(0, -9)];
    api.faults.add({ verb: "watch", lines, close: 0 });
    const { seen, error } = await readAll(connect().watch(createSecrets(0), "1", 60, anySignal()));
    assertEquals([seen, error], [["ADDED one"], undefined]);
  });

  const badLines: [what: string, line: string | object][] = [
    ["is not JSON", "{garbage\n"],
    ["is empty", "\n"],
    ["is null", "null\n"],
    ["is a number", "42\n"],
    ["is a list", "[]\n"],
    ["has no type", { object: added("x").object }],
    ["has an unknown type", { ...added("x"), type: "RENAMED" }],
    ["has no object", { type: "ADDED" }],
    ["has an object without metadata", { type: "MODIFIED", object: {} }],
    ["has an object without a uid", {
      type: "DELETED",
      object: { metadata: { namespace: "n", name: "x", resourceVersion: "1" } },
    }],
    ["has an object whose version is no string", {
      type: "ADDED",
      object: { metadata: { ...added("x").object.metadata, resourceVersion: 7 } },
    }],
    ["is a bookmark without a version", { type: "BOOKMARK", object: { metadata: {} } }],
    ["is a bookmark without an object", { type: "BOOKMARK" }],
    ["is a bookmark of null", { type: "BOOKMARK", object: null }],
  ];

  test("fails at a record that is none, with a message for each way; those before it count", async () => {
    const client = connect();
    const messages = new Set<string>();
    for (const [what, line] of badLines) {
      api.faults.add({ verb: "watch", lines: [added("one"), line, added("two")], close: 0 });
      const { seen, error } = await readAll(client.watch("team", "1", 60, anySignal()));
      assertEquals([what, seen, error?.reason], [what, ["ADDED one"], "InvalidResponse"]);
      assertEquals([what, error?.status], [what, undefined]);
      messages.add(`${error?.message}`);
    }
    assert(messages.size >= 4, [...messages].join("\n"));
  });

  test("fails at an ERROR record, with the code, reason and message in it", async () => {
    const client = connect();
    const records: [object, number | undefined, string | undefined][] = [
      [errorEvent(410), 410, "Expired"],
      [errorEvent(410, "Gone"), 410, "Gone"],
      [errorEvent(429), 429, "TooManyRequests"],
      [errorEvent(500), 500, "InternalError"],
      [{ type: "ERROR", object: { code: 410 } }, 410, undefined],
      [{ type: "ERROR", object: null }, undefined, undefined],
      [{ type: "ERROR" }, undefined, undefined],
      [{ type: "ERROR", object: "text" }, undefined, undefined],
      // Whatever stands there is looked up by those who handle the error.
      [{ type: "ERROR", object: { code: { toString: 1 } } }, undefined, undefined],
      [{ type: "ERROR", object: { code: "constructor" } }, undefined, undefined],
      [{ type: "ERROR", object: { code: {} } }, undefined, undefined],
      [{ type: "ERROR", object: { message: { toString: 1 } } }, undefined, undefined],
    ];
    for (const [record, status, reason] of records) {
      api.faults.add({ verb: "watch", lines: [added("one"), record, added("two")], close: 0 });
      const { seen, error } = await readAll(client.watch("team", "1", 60, anySignal()));
      assertEquals([seen, error?.status, error?.reason], [["ADDED one"], status, reason]);
    }
    api.faults.add({ verb: "watch", lines: [errorEvent(500)], close: 0 });
    const { error } = await readAll(client.watch("team", "1", 60, anySignal()));
    assertStringIncludes(error!.message, "etcdserver: leader changed");
  });

  test("fails with 410 when the version is too old, be it told by the status or by a record", async () => {
    const server = await startOwnServer();
    const namespace = createSecrets(1, server);
    server.expire();
    for (const expiredAs of ["status", "event"] as const) {
      server.expiredAs = expiredAs;
      const { seen, error } = await readAll(
        connect(server.url).watch(namespace, "1", 60, anySignal()),
      );
      assertEquals([seen, error?.status, error?.reason], [[], 410, "Expired"]);
    }
  });

  test("fails once nothing has come for ten seconds more than it was to last", async () => {
    const relay = await startRelay(portOf(api.url));
    // Nine seconds less than none: silence counts as death after one.
    api.faults.add({ verb: "watch", lines: [added("one")], stall: 1 });
    const openedAt = performance.now();
    const { seen, error } = await readAll(
      connect(relay.url).watch(createSecrets(0), "1", -9, anySignal()),
    );
    const lived = performance.now() - openedAt;
    assertEquals([seen, error?.reason], [["ADDED one"], "UND_ERR_BODY_TIMEOUT"]);
    assert(lived > 900 && lived < 3_000, `${lived} ms`);
    await until(() => relay.open() === 0, "the connection is closed");
  });

  test("lives on as long as something comes", async () => {
    const line = `${JSON.stringify(added("one"))}\n`;
    api.faults.add({
      verb: "watch",
      lines: [line.repeat(5)],
      split: { bytes: line.length, ms: 300 },
    });
    const { seen, error } = await readAll(
      connect().watch(createSecrets(0), api.resourceVersion, -9, anySignal()),
    );
    assertEquals([seen.length, error], [5, undefined]);
  });

  test("ends at once when it is aborted, and its connection too", async () => {
    const relay = await startRelay(portOf(api.url));
    const controller = new AbortController();
    const watch = readAll(
      connect(relay.url).watch(createSecrets(0), api.resourceVersion, 60, controller.signal),
    );
    await until(() => api.openWatches === 1, "the watch is open");
    const abortedAt = performance.now();
    controller.abort(new Error("enough"));
    assertStringIncludes((await watch).error!.message, "enough");
    assert(performance.now() - abortedAt < 500, "it took its time");
    await until(() => relay.open() === 0, "the connection is closed");
  });

  test("closes its connection when nobody reads on", async () => {
    const relay = await startRelay(portOf(api.url));
    for await (const event of connect(relay.url).watch(createSecrets(1), "0", 60, anySignal())) {
      assertEquals(brief(event), "ADDED pull-0");
      break;
    }
    await until(() => relay.open() === 0, "the connection is closed");
  });

  test("leaks no connection, however often it is opened", async () => {
    const relay = await startRelay(portOf(api.url));
    const client = connect(relay.url);
    api.faults.add({ verb: "watch", close: 0, times: 30 });
    const namespace = createSecrets(0);
    for (let index = 0; index < 30; index++) {
      await readAll(client.watch(namespace, "1", 60, anySignal()));
    }
    assert(relay.opened <= FEW, `${relay.opened} connections`);
  });

  test("keeps a byte-order mark that stands in a text, even where a piece begins with it", async () => {
    const object = {
      metadata: { namespace: "n", name: "pull", uid: "a\ufeffb", resourceVersion: "1" },
    };
    const body = Buffer.from(`${JSON.stringify({ type: "ADDED", object })}\n`);
    async function* cut(at: number) {
      yield body.subarray(0, at);
      yield body.subarray(at);
    }
    for (let at = 0; at <= body.length; at++) {
      const seen = await Array.fromAsync(parseWatch(cut(at)));
      assertEquals(seen, [{ type: "ADDED", secret: object, resourceVersion: "1" }]);
    }
  });

  test("says the code of an error that has no message", async () => {
    // deno-lint-ignore require-yield
    async function* body() {
      throw Object.assign(new AggregateError([]), { code: "ECONNREFUSED" });
    }
    const error = await Array.fromAsync(parseWatch(body())).catch((caught) => caught);
    assertIsError(error, undefined, "the API server: ECONNREFUSED");
  });
});

describe("writing", () => {
  test("merges a patch, under the program's name as field manager", async () => {
    const namespace = createSecrets(1);
    const { uid, resourceVersion } = api.secret(namespace, "pull-0")!.metadata;
    const patch = { metadata: { uid, resourceVersion, annotations: { text: null, new: TEXT } } };
    assertEquals(await connect().patch(namespace, "pull-0", patch, anySignal()), undefined);
    const { annotations, resourceVersion: next } = api.secret(namespace, "pull-0")!.metadata;
    assertEquals([annotations, next], [{ new: TEXT }, api.resourceVersion]);
    const [{ method, query, headers, body } = api.requests[0]!] = api.requests;
    assertEquals([method, query.get("fieldManager")], ["PATCH", "pull-secret-updater"]);
    assertEquals(headers["content-type"], "application/merge-patch+json");
    assertEquals(JSON.parse(body), patch);
  });

  test("takes a 2xx for done, whatever its body: only list and watch say what a Secret is", async () => {
    const namespace = createSecrets(1);
    const client = connect();
    const patchOnce = (value: string, signal = anySignal()) =>
      client.patch(namespace, "pull-0", { metadata: { annotations: { a: value } } }, signal);
    for (const body of ["", "{", "<html></html>", "null", "[]", "{}", "x".repeat(MIB)]) {
      api.faults.add({ status: 200, body });
      await patchOnce("never");
    }
    api.faults.add({ cut: 0.5 });
    await patchOnce("cut");
    assertEquals(api.secret(namespace, "pull-0")!.metadata.annotations?.a, "cut");
    api.faults.add({ stall: 0.5 });
    const [controller, { length }] = [new AbortController(), client.responses];
    const stalled = patchOnce("stalled", controller.signal);
    await until(() => client.responses.length > length, "there are headers");
    controller.abort();
    await stalled;
    assertEquals(api.secret(namespace, "pull-0")!.metadata.annotations?.a, "stalled");
    assertEquals(await listAll(client, namespace), ["pull-0"]);
  });

  test("takes an event for written only if the response is of the API server", async () => {
    const client = connect();
    for (const body of ["", "{", "<html></html>"]) {
      api.faults.add({ status: 201, body });
      const error = await failure(client.createEvent("default", {}, anySignal()));
      assertEquals(error.reason, "InvalidResponse", body);
    }
  });

  test("fails with a 409 where the Secret is not as it was, or another", async () => {
    const namespace = createSecrets(1);
    const { uid, resourceVersion } = api.secret(namespace, "pull-0")!.metadata;
    api.patchSecret(namespace, "pull-0", { metadata: { annotations: { text: "another" } } });
    const client = connect();
    const patches = [{ uid, resourceVersion }, { uid: "another", resourceVersion }];
    for (const metadata of patches) {
      const error = await failure(client.patch(namespace, "pull-0", { metadata }, anySignal()));
      assertEquals([error.status, error.reason], [409, "Conflict"]);
    }
  });

  test("never creates a Secret that is gone", async () => {
    const namespace = createSecrets(0);
    assertEquals((await failure(connect().patch(namespace, "none", {}, anySignal()))).status, 404);
    assertEquals(api.secrets(namespace), []);
  });

  test("creates an event in the namespace, of events.k8s.io", async () => {
    const namespace = createSecrets(0);
    const event = {
      metadata: { generateName: "pull-secret-updater-", namespace },
      eventTime: "2026-01-01T00:00:00.000000Z",
      reportingController: "pull-secret-updater.chainguard.dev/controller",
      reportingInstance: "controller-1",
      action: "Refresh",
      regarding: { apiVersion: "v1", kind: "Secret", namespace, name: "any", uid: "u" },
      reason: "TokenIssued",
      type: "Normal",
      note: TEXT,
    };
    await connect().createEvent(namespace, event, anySignal());
    assertEquals(api.events(namespace).map(({ note }) => note), [TEXT]);
    assertEquals(api.requests[0]?.headers["content-type"], "application/json");
  });

  test("requests a token of a service account for one audience and so many seconds", async () => {
    const namespace = createSecrets(0);
    api.createServiceAccount(namespace, "puller");
    const token = await connect().requestToken(
      namespace,
      "puller",
      "issuer.example",
      600,
      anySignal(),
    );
    const { aud, sub, iat = 0, exp = 0 } = decodeJwt(token);
    assertEquals(aud as unknown, ["issuer.example"]);
    assertEquals([sub, exp - iat], [`system:serviceaccount:${namespace}:puller`, 600]);
    const { apiVersion, kind, spec } = JSON.parse(api.requests[0]!.body);
    assertEquals([apiVersion, kind], ["authentication.k8s.io/v1", "TokenRequest"]);
    assertEquals(spec, { audiences: ["issuer.example"], expirationSeconds: 600 });
  });

  test("fails where a token request is refused, with the API server's reason", async () => {
    const namespace = createSecrets(0);
    const client = connect();
    const error = await failure(
      client.requestToken(namespace, "none", "audience", 600, anySignal()),
    );
    assertEquals([error.status, error.reason], [404, "NotFound"]);
    api.faults.add({ status: 403 });
    const forbidden = await failure(
      client.requestToken(namespace, "none", "audience", 600, anySignal()),
    );
    assertEquals(forbidden.status, 403);
  });
});

function secretOf(name: string, resourceVersion = "1"): Secret {
  return { metadata: { namespace: "team", name, uid: "u", resourceVersion } };
}

/** One round over a list and a watch that are played to it: what it asks for and gives, in order. */
async function round(
  version: string,
  pages: (string[] | source.ApiError)[],
  records: WatchEvent[] = [],
  error?: source.ApiError,
) {
  const told: string[] = [];
  const api = {
    async *list() {
      told.push("list");
      for (const names of pages) {
        if (names instanceof ApiError) throw names;
        yield { items: names.map((name) => secretOf(name)), resourceVersion: "7" };
      }
    },
    async *watch(_namespace: string | undefined, version: string, seconds: number) {
      told.push(`watch ${version} for ${seconds} s`);
      yield* records;
      if (error) throw error;
    },
  };
  try {
    for await (const event of listAndWatch(api, "team", version, () => 0.999, anySignal())) {
      const what = event.type === "LISTED"
        ? [...event.keys].join()
        : "secret" in event
        ? event.secret.metadata.name
        : "";
      told.push(`${event.type} ${what} ${event.resourceVersion}`);
    }
  } catch (caught) {
    told.push((caught as source.ApiError).message);
  }
  return told;
}

describe("a round of list and watch", () => {
  const records: WatchEvent[] = [
    { type: "ADDED", secret: secretOf("d", "8"), resourceVersion: "8" },
    { type: "DELETED", secret: secretOf("a", "9"), resourceVersion: "9" },
    { type: "BOOKMARK", resourceVersion: "20" },
  ];
  const watched = ["ADDED d 8", "DELETED a 9", "BOOKMARK  20"];

  test("without a version lists page by page, and tells all that there are", async () => {
    assertEquals(await round("", [["a", "b"], ["c"]]), [
      ...["list", "ADDED a 7", "ADDED b 7", "ADDED c 7", "LISTED team/a,team/b,team/c 7"],
    ]);
  });

  test("with a version watches from it, without a list", async () => {
    assertEquals(await round("5", [], records), ["watch 5 for 90 s", ...watched]);
  });

  test("ends with the failure of either; what a list that failed had given does not count as all", async () => {
    const broken = new ApiError("broken", { reason: "UND_ERR_SOCKET" });
    assertEquals(await round("", [["a"], broken]), ["list", "ADDED a 7", "broken"]);
    assertEquals(await round("5", [], records, broken), ["watch 5 for 90 s", ...watched, "broken"]);
  });
});
