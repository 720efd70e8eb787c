/** The exchange, over real loopback HTTP and HTTPS against the stand-in, and what tokens say of themselves. */
import {
  assert,
  assertEquals,
  assertIsError,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { Buffer } from "node:buffer";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer as createHttpServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, afterEach, describe, test } from "node:test";
import { inspect } from "node:util";
import { Agent, type Dispatcher } from "undici";
import type * as source from "./sts.ts";
import type { Claims } from "./sts.ts";
import { RUNTIME, urlOfShipped } from "./tests/support/program.ts";
import { type Certificate, makeAuthority } from "./tests/fake/certificates.ts";
import { type IssuerFault, startIssuer } from "./tests/fake/issuer.ts";
import { makeSigningKey } from "./tests/fake/keys.ts";
import { basic, type ProxyOptions, startProxy as startProxyServer } from "./tests/fake/proxy.ts";
import { CONTROLLER, MIB } from "./tests/support/names.ts";
import { makeJwt, ORG } from "./tests/support/secrets.ts";

const UID = `${ORG}/0123456789abcdef`;
const CLUSTER = "https://cluster.example";

const authority = makeAuthority();
const cluster = await makeSigningKey();
const bindings = new Map([[UID, { iss: CLUSTER, sub: CONTROLLER }]]);
const issuer = await startIssuer({ keys: cluster.jwks, bindings });
const secureIssuer = await startIssuer({
  keys: cluster.jwks,
  bindings,
  certificate: authority.issue(),
});
const subjectToken = await subjectTokenFor(issuer.audience);
const cleanups: (() => unknown)[] = [];

const shippedUrl = await urlOfShipped("sts.ts");
const sts: typeof source = await import(shippedUrl);
const { decode, findLifeFlaw, IDENTITY, StsError, TokenSource, verify } = sts;

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  for (const each of [issuer, secureIssuer]) {
    each.faults.clear();
    each.requests.length = 0;
    each.exchanges.length = 0;
  }
});
after(async () => {
  await issuer.close();
  await secureIssuer.close();
});

function subjectTokenFor(aud: string): Promise<string> {
  const now = Math.floor(Date.now() / 1000);
  return cluster.sign({ iss: CLUSTER, sub: CONTROLLER, aud: [aud], iat: now, exp: now + 600 });
}

interface Options {
  url?: string;
  token?: string;
  identity?: string;
  audience?: string;
  dispatcher?: Dispatcher;
  signal?: AbortSignal;
}

/** Exchanges; by default everything is right. */
function ask(options: Options = {}): Promise<string> {
  const { url = issuer.url, token = subjectToken, identity = UID, audience = "cgr.dev", signal } =
    options;
  const dispatcher = options.dispatcher ?? sts.issuerAgent(url);
  if (!options.dispatcher) cleanups.push(() => dispatcher.destroy());
  return sts.exchange(url, token, { aud: audience, identity }, {
    dispatcher,
    userAgent: "pull-secret-updater/test",
    signal: signal ?? new AbortController().signal,
  });
}

/** How an exchange failed: always with a StsError, in which no token is to be found. */
async function failure(request: Promise<string>): Promise<source.StsError> {
  const error = await request.then(() => undefined, (caught) => caught);
  assertIsError(error, StsError);
  assertNoToken(error, subjectToken);
  return error as source.StsError;
}

function assertNoToken(error: Error, token: string): void {
  const seen = [inspect(error, { depth: Infinity, showHidden: true }), JSON.stringify(error)];
  for (let each: unknown = error; each instanceof Error; each = each.cause) {
    seen.push(each.message, `${each.stack}`);
  }
  const text = seen.join("\n");
  for (const segment of token.split(".").slice(1)) {
    for (let at = 0; at + 16 <= segment.length; at++) {
      const part = segment.slice(at, at + 16);
      assert(
        !text.includes(part),
        `a part of the token, ${part}, is in the error: ${text.slice(0, 200)}`,
      );
    }
  }
}

describe("the exchange", () => {
  test("returns the token that the issuer gives", async () => {
    const token = await ask();
    assertEquals(token, issuer.exchanges[0]?.token);
    assertEquals(decode(token)?.subject, UID);
  });

  test("asks in a form body, so that no URL has the identity in it", async () => {
    await ask();
    const [{ method, path, query, body, headers } = issuer.requests[0]!] = issuer.requests;
    assertEquals([method, path, [...query]], ["POST", "/sts/exchange", []]);
    assertEquals([...new URLSearchParams(body)], [["aud", "cgr.dev"], ["identity", UID]]);
    assertEquals(headers["content-type"], "application/x-www-form-urlencoded");
    assertEquals(headers.authorization, `Bearer ${subjectToken}`);
    assertEquals(headers["user-agent"], "pull-secret-updater/test");
  });

  test("keeps identity and audience apart whatever is in them", async () => {
    await failure(ask({ identity: "a&aud=b%26c d+é", audience: "x&identity=y" }));
    const body = new URLSearchParams(issuer.requests[0]?.body);
    assertEquals([...body], [["aud", "x&identity=y"], ["identity", "a&aud=b%26c d+é"]]);
  });

  test("keeps a path in the issuer's URL", async () => {
    await failure(ask({ url: `${issuer.url}/prefix` }));
    assertEquals(issuer.requests[0]?.path, "/prefix/sts/exchange");
  });

  test("says the code where none of a host's addresses answers, as there is no message then", async () => {
    const refused = Object.assign(new AggregateError([]), { code: "ECONNREFUSED" });
    const dispatcher = new Agent({ connect: (_to, callback) => callback(refused, null) });
    cleanups.push(() => dispatcher.destroy());
    const { message } = await failure(ask({ dispatcher }));
    assert(message.endsWith(": ECONNREFUSED"), message);
  });

  const refusals: [what: string, options: Options, status: number, message: string][] = [
    ["an invalid identity", { identity: "no-uid" }, 400, "identity is not a valid UIDP"],
    ["a subject token of nobody", { token: makeJwt({ sub: "x" }) }, 401, "failed to verify token"],
    ["an empty subject token", { token: "" }, 401, "missing bearer token"],
    ["an unknown identity", { identity: ORG }, 404, "identity not found"],
  ];
  for (const [what, options, status, message] of refusals) {
    test(`fails on ${what} with the issuer's status and message, which is one of an STS`, async () => {
      const error = await failure(ask(options));
      assertEquals([error.status, error.code !== undefined], [status, true]);
      assertStringIncludes(error.message, message);
    });
  }

  test("fails on an identity that is bound to another subject", async () => {
    bindings.set(ORG, { iss: CLUSTER, sub: "system:serviceaccount:other:other" });
    cleanups.push(() => bindings.delete(ORG));
    const error = await failure(ask({ identity: ORG }));
    assertEquals([error.status, error.code], [403, 7]);
    assertStringIncludes(error.message, "token does not match the identity's claims");
  });

  const faults: [what: string, fault: IssuerFault, status: number][] = [
    ["302", { status: 302 }, 302],
    ["400", { status: 400 }, 400],
    ["401", { status: 401 }, 401],
    ["403", { status: 403 }, 403],
    ["404", { status: 404 }, 404],
    ["408", { status: 408, body: "" }, 408],
    ["409, ABORTED", { status: 409, body: { code: 10, message: "aborted" } }, 409],
    ["425", { status: 425, body: "" }, 425],
    ["429", { status: 429 }, 429],
    ["499, CANCELLED", { status: 499, body: { code: 1, message: "cancelled" } }, 499],
    ["500", { status: 500 }, 500],
    ["503", { status: 503 }, 503],
    ["504", { status: 504 }, 504],
    ["502 with HTML", { status: 502, body: "<html>a proxy's page</html>" }, 502],
    ["403 with HTML", { status: 403, body: "<html>a proxy's page</html>" }, 403],
    [
      "500 with a message that is no text",
      { status: 500, body: { message: { a: "proxy's page" } } },
      500,
    ],
    ["500 with the JSON null", { status: 500, body: "null" }, 500],
    ["204", { status: 204, body: "" }, 204],
    ["200 with HTML", { status: 200, body: "<html>a proxy's page</html>" }, 200],
    ["200 with nothing", { status: 200, body: "" }, 200],
    ["200 with the JSON null", { status: 200, body: "null" }, 200],
    ["200 without a token", { status: 200, body: { expiry: null } }, 200],
    ["200 with an empty token", { token: "" }, 200],
    ["200 with a token that is no text", { status: 200, body: { token: { a: 1 } } }, 200],
  ];
  for (const [what, fault, status] of faults) {
    test(`fails on ${what}, with its status and nothing of a body that is not the STS's`, async () => {
      issuer.faults.add(fault);
      const error = await failure(ask());
      assertEquals(error.status, status);
      assert(!inspect(error, { depth: Infinity, showHidden: true }).includes("proxy's page"));
    });
  }

  test("tells the STS's own responses by their code from those of a proxy or another server", async () => {
    const sts = { status: 403, body: { code: 7, message: "no", details: [] } };
    const unauthenticated = { status: 401, body: { code: 16, message: "no", details: [] } };
    const others: IssuerFault[] = [
      { status: 403, body: "<html>blocked</html>" },
      { status: 403, body: { message: "no" } },
      { status: 403, body: { code: "7", message: "no" } },
      { status: 403, body: { code: 403, message: "a Status of the API server" } },
      { status: 403, body: { code: 7 } },
    ];
    issuer.faults.add(sts);
    assertEquals((await failure(ask())).code, 7);
    issuer.faults.add(unauthenticated);
    assertEquals((await failure(ask())).code, 16);
    for (const fault of others) {
      issuer.faults.add(fault);
      const { status, code } = await failure(ask());
      assertEquals([status, code], [403, undefined], JSON.stringify(fault.body));
    }
  });

  test("tells a redirect as what it is", async () => {
    issuer.faults.add({ status: 302, headers: { location: "https://elsewhere.example/" } });
    assertStringIncludes((await failure(ask())).message, "302: a redirect");
  });

  test("bears Retry-After, seconds or a date, on 429 and on 5xx", async () => {
    for (const [status, value] of [[429, "7"], [503, "Wed, 21 Oct 2026 07:28:00 GMT"]] as const) {
      issuer.faults.add({ status, headers: { "retry-after": value } });
      const error = await failure(ask());
      assertEquals([error.status, error.retryAfter], [status, value]);
    }
  });

  test("follows no redirect: the subject token reaches no other server", async () => {
    const other = await startIssuer({ keys: cluster.jwks, bindings });
    cleanups.push(() => other.close());
    for (const status of [301, 302, 303, 307, 308]) {
      issuer.faults.add({ status, headers: { location: `${other.url}/sts/exchange` } });
      assertEquals((await failure(ask())).status, status);
    }
    assertEquals(other.requests, []);
  });

  for (const status of [200, 500]) {
    test(`gives up a ${status} of five megabytes`, async () => {
      const text = JSON.stringify({ token: "x", message: "y", padding: "z".repeat(5 * MIB) });
      issuer.faults.add({ status, body: text });
      const error = await failure(ask());
      assertEquals(error.status, undefined);
      assert(inspect(error, { depth: Infinity, showHidden: true }).length < 10_000);
    });
  }

  test("gives up a body that has no end", async () => {
    let sent = 0;
    const server = createHttpServer((_, response) => {
      response.writeHead(200, { "content-type": "application/json" });
      const timer = setInterval(() => {
        sent += 65_536;
        response.write("x".repeat(65_536));
      }, 1);
      response.on("close", () => clearInterval(timer)).on("error", () => {});
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    cleanups.push(() => server.close(), () => server.closeAllConnections());
    await failure(ask({ url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }));
    assert(sent < 8 * MIB, `${sent} bytes were sent`);
  });

  test("takes an answer of up to a megabyte", async () => {
    issuer.faults.add({ body: JSON.stringify({ token: "x", padding: "z".repeat(MIB - 100) }) });
    assertEquals(await ask(), "x");
  });

  test("ends at once when it is aborted, with the reason, while the issuer hangs", async () => {
    for (const fault of [{ hang: true }, { stall: 0 }, { stall: 0.5 }]) {
      issuer.requests.length = 0;
      issuer.faults.add(fault);
      const controller = new AbortController();
      const request = failure(ask({ signal: controller.signal }));
      while (issuer.requests.length === 0) await new Promise((done) => setTimeout(done, 5));
      const abortedAt = performance.now();
      controller.abort(new Error("enough"));
      const error = await request;
      assertStringIncludes(error.message, "enough");
      assertEquals(error.status, undefined);
      assert(performance.now() - abortedAt < 500, "it took its time");
    }
  });

  test("fails when the connection is reset, cut or refused, without a status", async () => {
    for (const fault of [{ reset: true }, { cut: 0 }, { cut: 0.5 }]) {
      issuer.faults.add(fault);
      const error = await failure(ask());
      assertEquals(error.status, undefined);
    }
    const gone = await startIssuer({ keys: cluster.jwks });
    await gone.close();
    const error = await failure(ask({ url: gone.url }));
    assertEquals(error.status, undefined);
  });

  test("leaves its connection to the next one, whatever the answer was", async () => {
    const dispatcher = sts.issuerAgent(issuer.url);
    cleanups.push(() => dispatcher.destroy());
    const ports = new Set<number | undefined>();
    const server = createHttpServer((request, response) => {
      ports.add(request.socket.remotePort);
      response.writeHead(500, { "content-type": "application/json" }).end(
        JSON.stringify({ message: "no" }),
      );
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    cleanups.push(() => server.close(), () => server.closeAllConnections());
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    for (let index = 0; index < 10; index++) await failure(ask({ url, dispatcher }));
    assert(ports.size <= 2, `${ports.size} connections`);
  });

  test("has no token in a field of its error, though the issuer's message echoes it", async () => {
    issuer.faults.add({
      status: 401,
      body: ({ headers }) => ({ code: 16, message: `no: ${headers.authorization}` }),
    });
    const error = await ask().catch((caught) => caught);
    assertIsError(error, StsError, "no: Bearer");
    assertEquals({ ...error }, { name: "StsError", status: 401, code: 16, retryAfter: "" });
  });

  test("has no token in its error where it cannot stand in a header", async () => {
    for (const token of [`${subjectToken}\n${subjectToken}`, `${subjectToken}\u0000`]) {
      await failure(ask({ token }));
    }
    assertEquals(issuer.requests, []);
  });

  test("goes over TLS, verified", async () => {
    const trusting = new Agent({ allowH2: false, connect: { ca: authority.certificate } });
    cleanups.push(() => trusting.destroy());
    const token = await ask({ url: secureIssuer.url, dispatcher: trusting });
    assertEquals(token, secureIssuer.exchanges[0]?.token);
    secureIssuer.requests.length = 0;
    await failure(ask({ url: secureIssuer.url }));
    assertEquals(secureIssuer.requests, []);
  });
});

/** Exchanges in a process of its own, as a runtime reads `NODE_EXTRA_CA_CERTS` at its start. */
const SCRIPT = `
  import process from "node:process";
  const { sts, subjectToken, identity, ways } = JSON.parse(process.env.INPUT);
  const { exchange, issuerAgent } = await import(sts);
  async function ask({ issuer, proxy, noProxy, ms, tries = 1 }) {
    const dispatcher = issuerAgent(issuer, proxy, noProxy);
    const startedAt = performance.now();
    let outcome;
    do {
      const options = { dispatcher, userAgent: "test", signal: AbortSignal.timeout(ms) };
      outcome = await exchange(issuer, subjectToken, { aud: "cgr.dev", identity }, options).then(
        (token) => ({ token }),
        ({ name, message, status, cause }) => ({ error: { name, message, status, cause: cause?.message } }),
      );
    } while (outcome.error && --tries > 0);
    return { ...outcome, tookMs: performance.now() - startedAt };
  }
  console.log(JSON.stringify(await Promise.all(ways.map(ask))));
  process.exit();
`;

interface Outcome {
  token?: string;
  error?: { name: string; message: string; status?: number; cause?: string };
  tookMs: number;
}

/** A way to the issuer. */
interface Way {
  issuer?: string;
  proxy?: string;
  noProxy?: string;
  ms?: number;
  /** How often, at most, until there is a token. */
  tries?: number;
}

/** Tries each way; what the runtime itself has to say about one fails. */
async function askInProcess(
  ways: Way[],
  ca: string | null = authority.certificate,
): Promise<Outcome[]> {
  const folder = mkdtempSync(join(tmpdir(), "sts-test-"));
  cleanups.push(() => rmSync(folder, { recursive: true }));
  const caFile = join(folder, "ca.crt");
  writeFileSync(caFile, ca ?? "");
  const token = await subjectTokenFor(secureIssuer.audience);
  const input = {
    sts: shippedUrl,
    subjectToken: token,
    identity: UID,
    ways: ways.map((way) => ({ issuer: secureIssuer.url, noProxy: "", ms: 5_000, ...way })),
  };
  const { PATH = "", HOME = "" } = process.env;
  const env = { PATH, HOME, DENO_NO_UPDATE_CHECK: "1", INPUT: JSON.stringify(input) };
  const extra = ca === null ? {} : { NODE_EXTRA_CA_CERTS: caFile };
  const args = RUNTIME === "deno" ? ["eval", SCRIPT] : ["--input-type=module", "-e", SCRIPT];
  const options = { cwd: import.meta.dirname!, env: { ...env, ...extra }, timeout: 20_000 };
  const [stdout, stderr] = await new Promise<string[]>((done, failed) => {
    execFile(process.execPath, args, options, (error, stdout, stderr) => {
      if (error) failed(new Error(`${error.message}\n${stderr}`));
      else done([stdout, stderr]);
    });
  });
  // undici names an https proxy by its address where that is all that there is, which Node remarks on.
  assertEquals(
    stderr!.split("\n").filter((line) => !/DEP0123|trace-deprecation|^$/.test(line)),
    [],
  );
  const outcomes: Outcome[] = JSON.parse(stdout!);
  for (const { error } of outcomes) {
    if (error) assertNoToken(Object.assign(new Error(JSON.stringify(error))), token);
  }
  return outcomes;
}

/** A proxy for one test. */
async function startProxy(options: ProxyOptions = {}) {
  const proxy = await startProxyServer(options);
  cleanups.push(() => proxy.close());
  return proxy;
}

/** An issuer with a certificate of its own. */
async function startSecureIssuer(certificate: Certificate, host = "127.0.0.1") {
  const started = await startIssuer({
    keys: cluster.jwks,
    bindings,
    certificate,
    host,
    issuer: secureIssuer.url,
  });
  cleanups.push(() => started.close());
  return started;
}

describe("the way to the issuer", () => {
  test("trusts a private CA through NODE_EXTRA_CA_CERTS, and only so", async () => {
    const [[trusting], [other]] = await Promise.all([
      askInProcess([{}]),
      askInProcess([{}], null),
    ]);
    assertEquals(trusting!.token, secureIssuer.exchanges[0]?.token);
    assertEquals([other!.error?.name, other!.error?.status, secureIssuer.requests.length], [
      "StsError",
      undefined,
      1,
    ]);
  });

  test("takes an intermediate CA alone for its trust: directly, in a tunnel, for an https proxy", async () => {
    const intermediate = authority.makeIntermediate();
    const leaf = intermediate.issue();
    const whole = { ...leaf, cert: leaf.cert + intermediate.certificate };
    const [issuerOfLeaf, issuerOfWhole, proxyOfLeaf, proxyOfWhole] = await Promise.all([
      startSecureIssuer(leaf),
      startSecureIssuer(whole),
      startProxy({ certificate: leaf }),
      startProxy({ certificate: whole }),
    ]);
    const plain = await startProxy();
    const ways = [issuerOfLeaf.url, issuerOfWhole.url].flatMap((issuer) =>
      [undefined, plain.url(), proxyOfLeaf.url(), proxyOfWhole.url()].map((proxy) => ({
        issuer,
        proxy,
      }))
    );
    const outcomes = await askInProcess(ways, intermediate.certificate);
    for (const [index, { token, error }] of outcomes.entries()) {
      assert(token, JSON.stringify([ways[index], error]));
    }
    const [stranger] = await askInProcess(
      [{ issuer: issuerOfLeaf.url }],
      makeAuthority().makeIntermediate().certificate,
    );
    assertEquals(stranger!.error?.name, "StsError");
  });

  test("goes through a proxy by http and https, by name, IPv4 and IPv6, with its user and password", async () => {
    const certificate = authority.issue();
    const proxies = await Promise.all([
      startProxy(),
      startProxy({ host: "::1" }),
      startProxy({ certificate }),
      startProxy({ certificate, host: "::1" }),
    ]);
    const credentials: [given: string, sent: string | undefined][] = [
      ["", undefined],
      ["user:word@", basic("user:word")],
      ["user:p%40ss%3A%25@", basic("user:p@ss:%")],
      ["user@", basic("user:")],
    ];
    const cases = proxies.flatMap((proxy, index) =>
      [...(index % 2 === 0 ? ["127.0.0.1", "localhost"] : ["[::1]"])].flatMap((host) =>
        credentials.map(([given, sent]) => ({ proxy, url: proxy.url(given, host), sent }))
      )
    );
    const outcomes = await askInProcess(cases.map(({ url }) => ({ proxy: url })));
    for (const [index, { token, error }] of outcomes.entries()) {
      assert(token, JSON.stringify([cases[index]!.url, error]));
    }
    const line = `CONNECT ${new URL(secureIssuer.url).host} HTTP/1.1`;
    for (const proxy of proxies) {
      const expected = cases.filter((each) => each.proxy === proxy).map(({ sent }) => `${sent}`);
      assertEquals(
        proxy.requests.map(({ authorization }) => `${authorization}`).toSorted(),
        expected.toSorted(),
      );
      assertEquals(new Set(proxy.requests.map((request) => request.line)), new Set([line]));
    }
  });

  test("goes around the proxy to what NO_PROXY names, in the forms that Go knows", async () => {
    const named = await startSecureIssuer(authority.issue(["issuer.example"]));
    const onSix = await startSecureIssuer(authority.issue(), "::1");
    const { port } = new URL(secureIssuer.url);
    const { port: namedPort } = new URL(named.url);
    const byName = `https://issuer.example:${namedPort}`;
    const forms: [issuer: string, noProxy: string, isAround: boolean][] = [
      [secureIssuer.url, "", false],
      [secureIssuer.url, "example.com", false],
      [secureIssuer.url, "127.0.0.1", true],
      [secureIssuer.url, "example.com,127.0.0.1", true],
      [secureIssuer.url, "example.com, 127.0.0.1", true],
      [secureIssuer.url, `127.0.0.1:${port}`, true],
      [secureIssuer.url, "127.0.0.1:1", false],
      [secureIssuer.url, "127.0.0.0/8", true],
      [secureIssuer.url, "10.0.0.0/8,127.0.0.0/30", true],
      [secureIssuer.url, "10.0.0.0/8,fd00::/8", false],
      [secureIssuer.url, "127.0.0.0/33", false],
      [secureIssuer.url, "127.0.1.0/24", false],
      [secureIssuer.url, "*", true],
      [onSix.url, "::1", true],
      [onSix.url, "[::1]", true],
      [onSix.url, "::/127", true],
      [onSix.url, "0.0.0.0/0", false],
      [onSix.url, "fd00::/8", false],
      [byName, "issuer.example", true],
      [byName, "ISSUER.EXAMPLE", true],
      [byName, "example", true],
      [byName, ".example", true],
      [byName, "*.example", true],
      [byName, `issuer.example:${namedPort}`, true],
      [byName, "issuer.example:1", false],
      [byName, "suer.example", false],
      [byName, "127.0.0.0/8", false],
    ];
    const proxies = await Promise.all(forms.map(() => startProxy()));
    const outcomes = await askInProcess(
      forms.map(([issuer, noProxy], index) => ({
        issuer,
        noProxy,
        proxy: proxies[index]!.url(),
      })),
    );
    for (const [index, [issuer, noProxy, isAround]] of forms.entries()) {
      const what = JSON.stringify([issuer, noProxy, outcomes[index]!.error]);
      assertEquals(proxies[index]!.requests.length, isAround ? 0 : 1, what);
      // No name of an example can be resolved.
      if (!isAround || issuer !== byName) assert(outcomes[index]!.token, what);
    }
  });

  test("fails where the proxy refuses, hangs or wants another password, which is in no error", async () => {
    const [tunnel, refusing, hanging] = await Promise.all([
      startProxy({ user: "user:p@ss" }),
      startProxy({ mode: "refuse" }),
      startProxy({ mode: "hang" }),
    ]);
    const outcomes = await askInProcess([
      { proxy: tunnel.url("user:another-word@") },
      { proxy: refusing.url("user:p%40ss@") },
      { proxy: hanging.url("user:p%40ss@"), ms: 1_000 },
    ]);
    for (const { error } of outcomes) {
      assertEquals([error?.name, error?.status], ["StsError", undefined]);
      for (const part of ["another-word", "p@ss", "p%40ss"]) {
        assert(!JSON.stringify(error).includes(part));
      }
    }
    assert(
      outcomes[2]!.tookMs < 2_000,
      `aborted after 1 s, ended after ${outcomes[2]!.tookMs} ms`,
    );
    assertEquals(secureIssuer.requests, []);
  });

  test("gives up a CONNECT that the proxy does not answer, and tries anew", async () => {
    const proxy = await startProxy({ mode: "hang", times: 1 });
    const [outcome] = await askInProcess([{ proxy: proxy.url(), ms: 7_000, tries: 2 }]);
    assert(outcome!.token, JSON.stringify(outcome));
    assertEquals(proxy.requests.length, 2);
  });

  test("refuses an https proxy whose certificate is another host's, or of an unknown CA", async () => {
    const proxies = await Promise.all([
      startProxy({ certificate: authority.issue(["elsewhere.example"]) }),
      startProxy({ certificate: makeAuthority().issue() }),
    ]);
    const ways = proxies.flatMap((
      { url },
    ) => [{ proxy: url() }, { proxy: url("", "localhost") }]);
    for (const { error } of await askInProcess(ways)) {
      assertEquals([error?.name, error?.status], ["StsError", undefined]);
    }
    assertEquals(proxies.flatMap(({ requests }) => requests), []);
  });

  test("gives up a response of five megabytes through the proxy as well", async () => {
    const proxy = await startProxy();
    secureIssuer.faults.add({
      body: JSON.stringify({ token: "x", padding: "z".repeat(5 * MIB) }),
    });
    const [outcome] = await askInProcess([{ proxy: proxy.url() }]);
    assertEquals([outcome!.error?.name, proxy.requests.length], ["StsError", 1]);
  });
});

describe("the proxy", () => {
  test("is not used for an issuer on plain http", async () => {
    const proxy = await startProxy();
    const dispatcher = sts.issuerAgent(issuer.url, proxy.url());
    cleanups.push(() => dispatcher.destroy());
    assertEquals(await ask({ dispatcher }), issuer.exchanges[0]?.token);
    assertEquals(proxy.requests, []);
  });
});

describe("reading a response", () => {
  test("returns the token of a 200, and nothing else", () => {
    assertEquals(
      sts.readResponse(200, '{"token":"x","refreshToken":"y","expiry":null}', ""),
      "x",
    );
    assertThrows(() => sts.readResponse(201, '{"token":"x"}', ""), StsError);
    assertThrows(() => sts.readResponse(200, '{"token":""}', ""), StsError);
  });

  test("is quoted up to 300 characters, of which none is half a character", () => {
    const text = JSON.stringify({ code: 7, message: `${"x".repeat(299)}\u{1f980}y` });
    const { message } = assertThrows(() => sts.readResponse(403, text, ""), StsError);
    assert(message.includes("x".repeat(299)) && !message.includes("y"), message);
    assert(message.isWellFormed(), message);
  });
});

const NOW = Date.parse("2026-03-01T12:00:00Z");
const now = NOW / 1000;
const CLAIMS = {
  iss: "https://issuer.example",
  sub: UID,
  aud: "cgr.dev",
  iat: now,
  exp: now + 3600,
};

describe("decoding a token", () => {
  test("gives its claims, times in milliseconds", () => {
    const token = makeJwt({ ...CLAIMS, act: { iss: CLUSTER, sub: CONTROLLER, aud: ["x"] } });
    assertEquals(decode(token), {
      issuer: "https://issuer.example",
      subject: UID,
      audiences: ["cgr.dev"],
      issuedAt: NOW,
      expiresAt: NOW + 3600_000,
    });
  });

  const lenient: [what: string, claims: object, expected: Partial<Claims>][] = [
    ["audiences in a list", { aud: ["a", "b"] }, { audiences: ["a", "b"] }],
    ["audiences that are no text", { aud: ["a", 1, null] }, { audiences: ["a"] }],
    ["no audience", { aud: undefined }, { audiences: [] }],
    ["no time of issue", { iat: undefined }, { issuedAt: undefined }],
    ["no issuer", { iss: undefined }, { issuer: "" }],
    ["an issuer that is no text", { iss: {} }, { issuer: "" }],
    ["a subject of another form", { sub: "x" }, { subject: "x" }],
    ["times with fractions", { iat: now + 0.5, exp: now + 1.5 }, {
      issuedAt: NOW + 500,
      expiresAt: NOW + 1500,
    }],
  ];
  for (const [what, claims, expected] of lenient) {
    test(`takes one with ${what}`, () => {
      const decoded = decode(makeJwt({ ...CLAIMS, ...claims }));
      assert(decoded);
      assertEquals({ ...decoded, ...expected }, decoded);
    });
  }

  const none: [what: string, token: string][] = [
    ["an empty text", ""],
    ["one part", "abc"],
    ["two parts", "abc.def"],
    ["five parts", "a.b.c.d.e"],
    ["a payload that is not base64", "e30.$$$.x"],
    ["a payload that is not JSON", `e30.${Buffer.from("{").toString("base64url")}.x`],
    ["a payload that is a list", makeJwt([])],
    ["a payload that is null", makeJwt(null)],
    ["a payload that is text", makeJwt("text")],
    ["no subject", makeJwt({ ...CLAIMS, sub: undefined })],
    ["a subject that is no text", makeJwt({ ...CLAIMS, sub: 7 })],
    ["no expiry", makeJwt({ ...CLAIMS, exp: undefined })],
    ["an expiry of null", makeJwt({ ...CLAIMS, exp: null })],
    ["an expiry that is text", makeJwt({ ...CLAIMS, exp: `${now}` })],
    ["an expiry before 1970", makeJwt({ ...CLAIMS, iat: undefined, exp: -1 })],
    ["an expiry beyond all dates", makeJwt({ ...CLAIMS, exp: 8.64e12 + 1 })],
    ["an expiry beyond all numbers", makeJwt(CLAIMS).replace(/\..*\./, `.${infiniteExpiry()}.`)],
    ["a time of issue that is text", makeJwt({ ...CLAIMS, iat: "now" })],
    ["a time of issue of null", makeJwt({ ...CLAIMS, iat: null })],
    ["a time of issue at its expiry", makeJwt({ ...CLAIMS, iat: CLAIMS.exp })],
    ["a time of issue after its expiry", makeJwt({ ...CLAIMS, iat: CLAIMS.exp + 1 })],
    ["more than 16 KiB", makeJwt({ ...CLAIMS, padding: "x".repeat(16 * 1024) })],
  ];
  for (const [what, token] of none) {
    test(`gives nothing for ${what}`, () => assertEquals(decode(token), undefined));
  }

  function infiniteExpiry(): string {
    return Buffer.from(`{"sub":"x","exp":1e999}`).toString("base64url");
  }

  test("takes a token of exactly 16 KiB", () => {
    const token = makeJwt(CLAIMS);
    assert(decode(token.padEnd(16 * 1024, "x")));
    assertEquals(decode(token.padEnd(16 * 1024 + 1, "x")), undefined);
  });
});

const claims = (changes: object = {}) => decode(makeJwt({ ...CLAIMS, ...changes }))!;
const DAY = 86_400;

describe("judging a token", () => {
  const flawless: [what: string, changes: object][] = [
    ["an ordinary one", {}],
    ["one of several audiences", { aud: ["other", "cgr.dev"] }],
    ["one that has expired", { iat: now - 7200, exp: now - 3600 }],
    ["one issued 5 min in the future", { iat: now + 300 }],
    ["one that lives 5 s", { exp: now + 5 }],
    ["one that lives a day", { exp: now + DAY }],
    ["one that does not say when it was issued", { iat: undefined, exp: now + DAY }],
    ["one that long ago lived a day", { iat: now - 2 * DAY, exp: now - DAY }],
  ];
  for (const [what, changes] of flawless) {
    test(`finds no flaw in ${what}`, () =>
      assertEquals(findLifeFlaw(claims(changes), NOW), undefined));
  }

  const flawed: [what: string, changes: object, flaw: string][] = [
    ["a time of issue more than 5 min in the future", { iat: now + 300.001 }, "future"],
    ["a life of less than 5 s", { exp: now + 4.999 }, "less than 5 s"],
    ["a life of more than a day", { exp: now + DAY + 0.001 }, "day"],
    ["a life of more than a day from now on", { iat: now + 30, exp: now + DAY + 1 }, "day"],
    [
      "a life of more than a day, without a time of issue",
      { iat: undefined, exp: now + DAY + 1 },
      "day",
    ],
    ["a life of more than a day that is over", { iat: now - 3 * DAY, exp: now - DAY }, "day"],
  ];
  for (const [what, changes, flaw] of flawed) {
    test(`finds a flaw in one with ${what}`, () => {
      assertStringIncludes(`${findLifeFlaw(claims(changes), NOW)}`, flaw);
    });
  }

  const accepted: [what: string, changes: object][] = [
    ["an ordinary one", {}],
    ["one whose subject is not of the UID's form", { sub: "user-7" }],
    ["one that lives 5 s more", { exp: now + 5 }],
    ["one that lives a day more", { exp: now + DAY }],
  ];
  for (const [what, changes] of accepted) {
    test(`accepts ${what} from the issuer`, () => {
      assertEquals(
        verify(makeJwt({ ...CLAIMS, ...changes }), UID, "cgr.dev", NOW),
        claims(changes),
      );
    });
  }

  const rejected: [what: string, token: string, message: string][] = [
    ["text that is no JWT", "opaque", "not a JWT"],
    ["one without an expiry", makeJwt({ ...CLAIMS, exp: undefined }), "not a JWT"],
    [
      "one of more than 16 KiB",
      makeJwt({ ...CLAIMS, padding: "x".repeat(16 * 1024) }),
      "not a JWT",
    ],
    ["another identity's", makeJwt({ ...CLAIMS, sub: ORG }), "another identity's"],
    ["one for another audience", makeJwt({ ...CLAIMS, aud: "other" }), "audience"],
    ["one for no audience", makeJwt({ ...CLAIMS, aud: undefined }), "audience"],
    [
      "one for an audience that begins like ours",
      makeJwt({ ...CLAIMS, aud: "cgr.dev.example" }),
      "audience",
    ],
    ["one that has expired", makeJwt({ ...CLAIMS, iat: now - 7200, exp: now - 3600 }), "expires"],
    ["one that lives less than 5 s more", makeJwt({ ...CLAIMS, exp: now + 4.999 }), "expires"],
    ["one that lives more than a day", makeJwt({ ...CLAIMS, exp: now + DAY + 1 }), "day"],
    ["one of the future", makeJwt({ ...CLAIMS, iat: now + 301 }), "future"],
    [
      "one whose whole life is less than 5 s",
      makeJwt({ ...CLAIMS, iat: now + 2, exp: now + 6 }),
      "less than 5 s",
    ],
  ];
  for (const [what, token, message] of rejected) {
    test(`rejects ${what} from the issuer, without showing it`, () => {
      const error = assertThrows(
        () => verify(token, UID, "cgr.dev", NOW),
        StsError,
        message,
      );
      assertEquals([error.status, error.code], [200, 0]);
      assertNoToken(error, token);
    });
  }

  test("says of a subject token why it cannot be exchanged, or nothing", () => {
    const host = "issuer.example";
    const subject = (changes: object = {}) => makeJwt({ ...CLAIMS, aud: [host], ...changes });
    const flaw = (token: string) => `${sts.findSubjectTokenFlaw(token, host, NOW)}`;
    assertEquals(flaw(subject()), "undefined");
    assertEquals(flaw(subject({ aud: host })), "undefined");
    assertEquals(flaw(subject({ aud: ["other.example", host] })), "undefined");
    const flawed: [token: string, message: string][] = [
      ["", "is not a JWT"],
      ["text", "is not a JWT"],
      [`${subject()}\n${subject()}`, "is not a JWT"],
      [subject({ iat: now - 20, exp: now }), "expired at 2026-03-01T12:00:00.000Z"],
      [subject({ aud: ["other.example"] }), `has the audience "other.example"`],
      [subject({ aud: `https://${host}` }), `needs the issuer's host name, "${host}"`],
    ];
    for (const [token, message] of flawed) assertStringIncludes(flaw(token), message);
  });

  test("tells when a token is to be renewed, by its times alone", () => {
    assertEquals(sts.renewalTime(claims({ iat: now, exp: now + 100 }), 0.67), NOW + 67_000);
    const withoutIat = claims({ iat: undefined, exp: now + 1800 });
    assertEquals(sts.renewalTime(withoutIat, 0.75), NOW + 900_000);
  });

  test("knows an identity's UID, of any depth, from everything else", () => {
    for (const uid of [ORG, UID, `${UID}/fedcba9876543210`]) assert(IDENTITY.test(uid), uid);
    const others = [
      "",
      "/",
      `${ORG}/`,
      `/${ORG}`,
      ORG.slice(1),
      `${ORG}0`,
      `${ORG}/0123`,
      UID.toUpperCase(),
    ];
    const hostile = [
      `${UID}\n`,
      ` ${UID}`,
      `${UID}/..`,
      UID.replace("/", "."),
      UID.replace("/", "%2f"),
      `${UID}é`,
    ];
    for (const text of [...others, ...hostile]) assert(!IDENTITY.test(text), JSON.stringify(text));
  });
});

describe("a shared token", () => {
  const give = (shared: InstanceType<typeof TokenSource>, token: string, at = NOW) =>
    shared.store(token, UID, "cgr.dev", at);

  test("is renewed by one exchange for all who need it meanwhile", async () => {
    const shared = new TokenSource();
    let exchanges = 0;
    const exchange = async () => {
      exchanges++;
      await new Promise((done) => setTimeout(done, 5));
    };
    await Promise.all([shared.renew(exchange), shared.renew(exchange), shared.pending]);
    assertEquals([exchanges, shared.pending], [1, undefined]);
    await shared.renew(exchange);
    assertEquals(exchanges, 2);
  });

  test("serves until 0.67 of its life; it tells how long it has left", () => {
    const shared = new TokenSource();
    const token = makeJwt(CLAIMS);
    assertEquals(give(shared, token, NOW + 600_000), 3_000_000);
    const { expiresAt, renewAt } = shared.token!;
    assertEquals([shared.token!.jwt, expiresAt, renewAt], [
      token,
      NOW + 3600_000,
      NOW + 0.67 * 3600_000,
    ]);
  });

  test("that the issuer gives again serves for half of what it has left", () => {
    const shared = new TokenSource();
    const token = makeJwt(CLAIMS);
    give(shared, token);
    assertEquals(give(shared, token, NOW + 3000_000), 600_000);
    assertEquals(shared.token?.renewAt, NOW + 3300_000);
  });

  test("that has expired is no good when the issuer gives it again", () => {
    const shared = new TokenSource();
    give(shared, makeJwt(CLAIMS));
    assertThrows(() => give(shared, makeJwt(CLAIMS), NOW + 3600_000), StsError, "expires");
  });

  test("stays when the issuer gives one that is no good", () => {
    const shared = new TokenSource();
    const token = makeJwt(CLAIMS);
    give(shared, token);
    assertThrows(() => give(shared, makeJwt({ ...CLAIMS, sub: ORG })), StsError);
    assertEquals(shared.token?.jwt, token);
  });
});
