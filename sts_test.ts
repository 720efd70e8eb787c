/** The exchange, over real loopback HTTP and HTTPS against the stand-in, and what tokens say of themselves. */
import {
  assert,
  assertEquals,
  assertIsError,
  assertNotEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import fc from "fast-check";
import { Buffer } from "node:buffer";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer as createHttpServer } from "node:http";
import { type AddressInfo, connect as connectTcp, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, afterEach, describe, test } from "node:test";
import { inspect } from "node:util";
import { Agent, type Dispatcher } from "undici";
import {
  type Claims,
  decode,
  exchange,
  findFlaw,
  IDENTITY,
  issuerAgent,
  readAnswer,
  StsError,
  verify,
} from "./sts.ts";
import { makeAuthority } from "./dev/server/certificates.ts";
import { type IssuerFault, startIssuer } from "./dev/server/issuer.ts";
import { makeSigningKey } from "./dev/server/keys.ts";

const MIB = 1024 * 1024;
const ORG = "0123456789abcdef0123456789abcdef01234567";
const UID = `${ORG}/0123456789abcdef`;
const CLUSTER = "https://cluster.example";
const SUBJECT = "system:serviceaccount:pull-secret-updater:controller";

const authority = makeAuthority();
const cluster = await makeSigningKey();
const bindings = new Map([[UID, { iss: CLUSTER, sub: SUBJECT }]]);
const issuer = await startIssuer({ keys: cluster.jwks, bindings });
const secureIssuer = await startIssuer({
  keys: cluster.jwks,
  bindings,
  certificate: authority.issue(),
});
const subjectToken = await subjectTokenFor(issuer.audience);
const cleanups: (() => unknown)[] = [];

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
  return cluster.sign({ iss: CLUSTER, sub: SUBJECT, aud: [aud], iat: now, exp: now + 600 });
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
  const dispatcher = options.dispatcher ?? issuerAgent(undefined, "");
  if (!options.dispatcher) cleanups.push(() => dispatcher.destroy());
  return exchange({ issuer: url, subjectToken: token, identity, audience }, {
    dispatcher,
    userAgent: "pull-secret-updater/test",
    signal: signal ?? new AbortController().signal,
  });
}

/** How an exchange failed: always with a StsError, in which no token is to be found. */
async function failure(request: Promise<string>): Promise<StsError> {
  const error = await request.then(() => undefined, (caught) => caught);
  assertIsError(error, StsError);
  assertNoToken(error, subjectToken);
  return error;
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

function jwt(claims: unknown): string {
  const part = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");
  return `${part({ alg: "RS256" })}.${part(claims)}.c2lnbmF0dXJl`;
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

  const refusals: [what: string, options: Options, status: number, message: string][] = [
    ["an invalid identity", { identity: "no-uid" }, 400, "identity is not a valid UIDP"],
    ["a subject token of nobody", { token: jwt({ sub: "x" }) }, 401, "failed to verify token"],
    ["an empty subject token", { token: "" }, 401, "missing bearer token"],
    ["an unknown identity", { identity: ORG }, 404, "identity not found"],
  ];
  for (const [what, options, status, message] of refusals) {
    test(`fails on ${what} with the issuer's status and message, as a refusal`, async () => {
      const error = await failure(ask(options));
      assertEquals([error.status, error.refused], [status, true]);
      assertStringIncludes(error.message, message);
    });
  }

  test("fails on an identity that is bound to another subject, as a refusal", async () => {
    bindings.set(ORG, { iss: CLUSTER, sub: "system:serviceaccount:other:other" });
    cleanups.push(() => bindings.delete(ORG));
    const error = await failure(ask({ identity: ORG }));
    assertEquals([error.status, error.refused], [403, true]);
    assertStringIncludes(error.message, "token does not match the identity's claims");
  });

  const faults: [what: string, fault: IssuerFault, status: number, refused: boolean][] = [
    ["400", { status: 400 }, 400, true],
    ["401", { status: 401 }, 401, true],
    ["403", { status: 403 }, 403, true],
    ["404", { status: 404 }, 404, true],
    ["429", { status: 429 }, 429, false],
    ["500", { status: 500 }, 500, false],
    ["503", { status: 503 }, 503, false],
    ["504", { status: 504 }, 504, false],
    ["502 with HTML", { status: 502, body: "<html>a proxy's page</html>" }, 502, false],
    ["403 with HTML", { status: 403, body: "<html>a proxy's page</html>" }, 403, true],
    [
      "500 with a message that is no text",
      { status: 500, body: { message: { a: "proxy's page" } } },
      500,
      false,
    ],
    ["500 with the JSON null", { status: 500, body: "null" }, 500, false],
    ["204", { status: 204, body: "" }, 204, false],
    ["200 with HTML", { status: 200, body: "<html>a proxy's page</html>" }, 200, true],
    ["200 with nothing", { status: 200, body: "" }, 200, true],
    ["200 with the JSON null", { status: 200, body: "null" }, 200, true],
    ["200 without a token", { status: 200, body: { expiry: null } }, 200, true],
    ["200 with an empty token", { token: "" }, 200, true],
    ["200 with a token that is no text", { status: 200, body: { token: { a: 1 } } }, 200, true],
  ];
  for (const [what, fault, status, refused] of faults) {
    test(`fails on ${what}, as what ${refused ? "a person has to mend" : "may pass by itself"}`, async () => {
      issuer.faults.add(fault);
      const error = await failure(ask());
      assertEquals([error.status, error.refused], [status, refused]);
      assert(!inspect(error, { depth: Infinity, showHidden: true }).includes("proxy's page"));
    });
  }

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
      assert(!error.refused, "it may pass by itself");
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
      assertEquals([error.status, error.refused], [undefined, undefined]);
      assert(performance.now() - abortedAt < 500, "it took its time");
    }
  });

  test("fails when the connection is reset, cut or refused, as what may pass by itself", async () => {
    for (const fault of [{ reset: true }, { cut: 0 }, { cut: 0.5 }]) {
      issuer.faults.add(fault);
      const error = await failure(ask());
      assertEquals([error.status, !error.refused], [undefined, true]);
    }
    const gone = await startIssuer({ keys: cluster.jwks });
    await gone.close();
    const error = await failure(ask({ url: gone.url }));
    assertEquals([error.status, !error.refused], [undefined, true]);
  });

  test("leaves its connection to the next one, whatever the answer was", async () => {
    const dispatcher = issuerAgent(undefined, "");
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
    assertEquals({ ...error }, { name: "StsError", status: 401, retryAfter: "", refused: true });
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
  import { exchange, issuerAgent } from "./sts.ts";
  const { issuer, subjectToken, identity, proxy, noProxy, ms } = JSON.parse(process.env.INPUT);
  const dispatcher = issuerAgent(proxy, noProxy);
  const options = { dispatcher, userAgent: "test", signal: AbortSignal.timeout(ms) };
  const startedAt = performance.now();
  const answer = await exchange({ issuer, subjectToken, identity, audience: "cgr.dev" }, options).then(
    (token) => ({ token }),
    ({ name, message, status, cause }) => ({ error: { name, message, status, cause: cause?.message } }),
  );
  console.log(JSON.stringify({ ...answer, tookMs: performance.now() - startedAt }));
  process.exit();
`;

interface Outcome {
  token?: string;
  error?: { name: string; message: string; status?: number; cause?: string };
  tookMs: number;
}

type Trust = { trusted?: boolean; proxy?: string; noProxy?: string; ms?: number };

async function askInProcess(
  runtime: string,
  { trusted = true, proxy, noProxy = "", ms = 5_000 }: Trust = {},
) {
  const folder = mkdtempSync(join(tmpdir(), "sts-test-"));
  cleanups.push(() => rmSync(folder, { recursive: true }));
  const caFile = join(folder, "ca.crt");
  writeFileSync(caFile, authority.certificate);
  const token = await subjectTokenFor(secureIssuer.audience);
  const input = {
    issuer: secureIssuer.url,
    subjectToken: token,
    identity: UID,
    proxy,
    noProxy,
    ms,
  };
  const { PATH = "", HOME = "" } = process.env;
  const env = { PATH, HOME, DENO_NO_UPDATE_CHECK: "1", INPUT: JSON.stringify(input) };
  const extra = trusted ? { NODE_EXTRA_CA_CERTS: caFile } : {};
  const script = `import process from "node:process"; ${SCRIPT}`;
  const args = runtime === "deno" ? ["eval", script] : ["--input-type=module", "-e", script];
  const own = join(import.meta.dirname!, "node_modules", ".bin", runtime);
  const options = { cwd: import.meta.dirname!, env: { ...env, ...extra }, timeout: 20_000 };
  const stdout = await new Promise<string>((done, failed) => {
    execFile(existsSync(own) ? own : runtime, args, options, (error, stdout, stderr) => {
      if (error) failed(new Error(`${error.message}\n${stderr}`));
      else done(stdout);
    });
  });
  const outcome: Outcome = JSON.parse(stdout);
  if (outcome.error) assertNoToken(Object.assign(new Error(JSON.stringify(outcome.error))), token);
  return outcome;
}

interface ProxyRequest {
  line: string;
  authorization?: string;
}

/** A proxy that tunnels (CONNECT) for one user, or hangs, or refuses. */
async function startProxy(mode: "tunnel" | "hang" | "refuse" = "tunnel") {
  const requests: ProxyRequest[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {}).on("close", () => sockets.delete(socket));
    let head = "";
    const onData = (chunk: Buffer) => {
      head += chunk.toString("latin1");
      if (!head.includes("\r\n\r\n")) return;
      socket.off("data", onData);
      const line = head.split("\r\n")[0]!;
      const authorization = /^proxy-authorization: (.*)$/im.exec(head)?.[1];
      requests.push({ line, authorization });
      if (mode === "hang") return;
      if (mode === "refuse") {
        return void socket.end("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n");
      }
      if (authorization !== `Basic ${Buffer.from("user:p@ss").toString("base64")}`) {
        return void socket.end(
          "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n",
        );
      }
      const [, host = "", port = ""] = /^CONNECT (.*):(\d+) /.exec(line) ?? [];
      const upstream = connectTcp(+port, host, () => {
        socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
        socket.pipe(upstream).pipe(socket);
      });
      upstream.on("error", () => socket.destroy());
      socket.on("close", () => upstream.destroy());
    };
    socket.on("data", onData);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  cleanups.push(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  return {
    url: (credentials = "user:p%40ss@") => `http://${credentials}127.0.0.1:${port}`,
    requests,
  };
}

for (const runtime of ["node", "deno"]) {
  describe(`the way to the issuer, on ${runtime}`, () => {
    test("trusts a private CA through NODE_EXTRA_CA_CERTS, and only so", async () => {
      const [trusting, other] = await Promise.all([
        askInProcess(runtime),
        askInProcess(runtime, { trusted: false }),
      ]);
      assertEquals(trusting.token, secureIssuer.exchanges[0]?.token);
      assertEquals([other.error?.name, other.error?.status, secureIssuer.requests.length], [
        "StsError",
        undefined,
        1,
      ]);
    });

    test("goes through the proxy, with its user and password; NO_PROXY goes around it", async () => {
      const proxy = await startProxy();
      const host = new URL(secureIssuer.url).host;
      const [through, around, beside] = await Promise.all([
        askInProcess(runtime, { proxy: proxy.url() }),
        askInProcess(runtime, {
          proxy: proxy.url("wrong:word@"),
          noProxy: "example.com,127.0.0.1",
        }),
        askInProcess(runtime, { proxy: proxy.url(), noProxy: "example.com" }),
      ]);
      for (const { token } of [through, around, beside]) assert(token);
      const authorization = `Basic ${Buffer.from("user:p@ss").toString("base64")}`;
      assertEquals(
        proxy.requests,
        Array(2).fill({ line: `CONNECT ${host} HTTP/1.1`, authorization }),
      );
      assertEquals(secureIssuer.exchanges.length, 3);
    });

    test("fails where the proxy refuses, hangs or wants another password, which is in no error", async () => {
      const [tunnel, refusing, hanging] = await Promise.all(
        [startProxy(), startProxy("refuse"), startProxy("hang")],
      );
      const outcomes = await Promise.all([
        askInProcess(runtime, { proxy: tunnel.url("user:another-word@") }),
        askInProcess(runtime, { proxy: refusing.url() }),
        askInProcess(runtime, { proxy: hanging.url(), ms: 1_000 }),
      ]);
      for (const { error } of outcomes) {
        assertEquals([error?.name, error?.status], ["StsError", undefined]);
        for (const part of ["another-word", "p@ss", "p%40ss"]) {
          assert(!JSON.stringify(error).includes(part));
        }
      }
      assert(outcomes[2].tookMs < 2_000, `aborted after 1 s, ended after ${outcomes[2].tookMs} ms`);
      assertEquals(secureIssuer.requests, []);
    });

    test("gives up an answer of five megabytes through the proxy as well", async () => {
      const proxy = await startProxy();
      secureIssuer.faults.add({
        body: JSON.stringify({ token: "x", padding: "z".repeat(5 * MIB) }),
      });
      const { error } = await askInProcess(runtime, { proxy: proxy.url() });
      assertEquals(error?.name, "StsError");
    });
  });
}

describe("the proxy", () => {
  test("is not used for an issuer on plain http", async () => {
    const proxy = await startProxy();
    const dispatcher = issuerAgent(proxy.url(), "");
    cleanups.push(() => dispatcher.destroy());
    assertEquals(await ask({ dispatcher }), issuer.exchanges[0]?.token);
    assertEquals(proxy.requests, []);
  });
});

describe("reading an answer", () => {
  test("returns the token of a 200, and nothing else", () => {
    assertEquals(readAnswer(200, '{"token":"x","refreshToken":"y","expiry":null}', ""), "x");
    assertThrows(() => readAnswer(201, '{"token":"x"}', ""), StsError);
  });

  test("fails with a StsError whatever an answer without a token is", () => {
    fc.assert(
      fc.property(
        fc.oneof(fc.string(), fc.json()),
        fc.integer({ min: 100, max: 599 }),
        (text, status) => {
          fc.pre(!text.includes('"token"'));
          const error = assertThrows(() => readAnswer(status, text, ""), StsError);
          assertEquals(error.status, status);
        },
      ),
    );
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
    const token = jwt({ ...CLAIMS, act: { iss: CLUSTER, sub: SUBJECT, aud: ["x"] } });
    const { fingerprint, ...claims } = decode(token)!;
    assertEquals(claims, {
      issuer: "https://issuer.example",
      subject: UID,
      actor: SUBJECT,
      audiences: ["cgr.dev"],
      issuedAt: NOW,
      expiresAt: NOW + 3600_000,
    });
    assert(fingerprint.length >= 40 && !token.includes(fingerprint));
  });

  test("tells two tokens apart by their fingerprints", () => {
    const [one, again, other] = [CLAIMS, CLAIMS, { ...CLAIMS, jti: "x" }].map((claims) =>
      decode(jwt(claims))
    );
    assertEquals(one!.fingerprint, again!.fingerprint);
    assertNotEquals(one!.fingerprint, other!.fingerprint);
  });

  const lenient: [what: string, claims: object, expected: Partial<Claims>][] = [
    ["audiences in a list", { aud: ["a", "b"] }, { audiences: ["a", "b"] }],
    ["audiences that are no text", { aud: ["a", 1, null] }, { audiences: ["a"] }],
    ["no audience", { aud: undefined }, { audiences: [] }],
    ["no time of issue", { iat: undefined }, { issuedAt: undefined }],
    ["no issuer", { iss: undefined }, { issuer: "" }],
    ["an issuer that is no text", { iss: {} }, { issuer: "" }],
    ["an actor of null", { act: null }, { actor: undefined }],
    ["an actor that is text", { act: "x" }, { actor: undefined }],
    ["an actor's subject that is no text", { act: { sub: 1 } }, { actor: undefined }],
    ["a subject of another form", { sub: "x" }, { subject: "x" }],
    ["times with fractions", { iat: now + 0.5, exp: now + 1.5 }, {
      issuedAt: NOW + 500,
      expiresAt: NOW + 1500,
    }],
  ];
  for (const [what, claims, expected] of lenient) {
    test(`takes one with ${what}`, () => {
      const decoded = decode(jwt({ ...CLAIMS, ...claims }));
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
    ["a payload that is a list", jwt([])],
    ["a payload that is null", jwt(null)],
    ["a payload that is text", jwt("text")],
    ["no subject", jwt({ ...CLAIMS, sub: undefined })],
    ["a subject that is no text", jwt({ ...CLAIMS, sub: 7 })],
    ["no expiry", jwt({ ...CLAIMS, exp: undefined })],
    ["an expiry of null", jwt({ ...CLAIMS, exp: null })],
    ["an expiry that is text", jwt({ ...CLAIMS, exp: `${now}` })],
    ["an expiry before 1970", jwt({ ...CLAIMS, iat: undefined, exp: -1 })],
    ["an expiry beyond all dates", jwt({ ...CLAIMS, exp: 8.64e12 + 1 })],
    ["an expiry beyond all numbers", jwt(CLAIMS).replace(/\..*\./, `.${infiniteExpiry()}.`)],
    ["a time of issue that is text", jwt({ ...CLAIMS, iat: "now" })],
    ["a time of issue of null", jwt({ ...CLAIMS, iat: null })],
    ["a time of issue at its expiry", jwt({ ...CLAIMS, iat: CLAIMS.exp })],
    ["a time of issue after its expiry", jwt({ ...CLAIMS, iat: CLAIMS.exp + 1 })],
    ["more than 16 KiB", jwt({ ...CLAIMS, padding: "x".repeat(16 * 1024) })],
  ];
  for (const [what, token] of none) {
    test(`gives nothing for ${what}`, () => assertEquals(decode(token), undefined));
  }

  function infiniteExpiry(): string {
    return Buffer.from(`{"sub":"x","exp":1e999}`).toString("base64url");
  }

  test("takes a token of exactly 16 KiB", () => {
    const token = jwt(CLAIMS);
    assert(decode(token.padEnd(16 * 1024, "x")));
    assertEquals(decode(token.padEnd(16 * 1024 + 1, "x")), undefined);
  });

  test("never fails, and gives dates only, whatever the token is", () => {
    const claims = fc.record({
      sub: fc.jsonValue(),
      exp: fc.jsonValue(),
      iat: fc.jsonValue(),
      act: fc.jsonValue(),
    });
    const token = fc.oneof(
      fc.string(),
      claims.map(jwt),
      fc.json().map((text) => `e30.${btoa(text)}.x`),
    );
    fc.assert(fc.property(token.filter((text) => /^[ -~]*$/.test(text)), (text) => {
      const { expiresAt = 0, issuedAt = 0 } = decode(text) ?? {};
      for (const time of [expiresAt, issuedAt]) {
        assert(!Number.isNaN(new Date(time).getTime()), `${time}`);
      }
    }));
  });
});

const claims = (changes: object = {}) => decode(jwt({ ...CLAIMS, ...changes }))!;
const DAY = 86_400;

describe("judging a token", () => {
  const flawless: [what: string, changes: object][] = [
    ["an ordinary one", {}],
    ["one of several audiences", { aud: ["other", "cgr.dev"] }],
    ["one that has expired", { iat: now - 7200, exp: now - 3600 }],
    ["one issued 60 s in the future", { iat: now + 60 }],
    ["one that lives a day", { exp: now + DAY }],
    ["one that does not say when it was issued", { iat: undefined, exp: now + DAY }],
    ["one that long ago lived a day", { iat: now - 2 * DAY, exp: now - DAY }],
  ];
  for (const [what, changes] of flawless) {
    test(`finds no flaw in ${what}`, () => assertEquals(findFlaw(claims(changes), NOW), undefined));
  }

  const flawed: [what: string, changes: object, flaw: string][] = [
    ["a time of issue more than 60 s in the future", { iat: now + 60.001 }, "future"],
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
      assertStringIncludes(`${findFlaw(claims(changes), NOW)}`, flaw);
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
      assertEquals(verify(jwt({ ...CLAIMS, ...changes }), UID, "cgr.dev", NOW), claims(changes));
    });
  }

  const rejected: [what: string, token: string, message: string][] = [
    ["text that is no JWT", "opaque", "not a JWT"],
    ["one without an expiry", jwt({ ...CLAIMS, exp: undefined }), "not a JWT"],
    ["one of more than 16 KiB", jwt({ ...CLAIMS, padding: "x".repeat(16 * 1024) }), "not a JWT"],
    ["another identity's", jwt({ ...CLAIMS, sub: ORG }), "another identity's"],
    ["one for another audience", jwt({ ...CLAIMS, aud: "other" }), "audience"],
    ["one for no audience", jwt({ ...CLAIMS, aud: undefined }), "audience"],
    [
      "one for an audience that begins like ours",
      jwt({ ...CLAIMS, aud: "cgr.dev.example" }),
      "audience",
    ],
    ["one that has expired", jwt({ ...CLAIMS, iat: now - 7200, exp: now - 3600 }), "expires"],
    ["one that lives less than 5 s more", jwt({ ...CLAIMS, exp: now + 4.999 }), "expires"],
    ["one that lives more than a day", jwt({ ...CLAIMS, exp: now + DAY + 1 }), "day"],
    ["one of the future", jwt({ ...CLAIMS, iat: now + 61 }), "future"],
  ];
  for (const [what, token, message] of rejected) {
    test(`rejects ${what} from the issuer, as a refusal, without showing it`, () => {
      const error = assertThrows(() => verify(token, UID, "cgr.dev", NOW), StsError, message);
      assertEquals([error.status, error.refused], [200, true]);
      assertNoToken(error, token);
    });
  }

  test("lets nothing pass that would be a flaw in a Secret", () => {
    const time = fc.integer({ min: now - 3 * DAY, max: now + 3 * DAY });
    fc.assert(fc.property(time, fc.option(time, { nil: undefined }), (exp, iat) => {
      const token = jwt({ ...CLAIMS, exp, iat });
      try {
        assertEquals(findFlaw(verify(token, UID, "cgr.dev", NOW), NOW), undefined);
      } catch (error) {
        assertIsError(error, StsError);
      }
    }));
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
