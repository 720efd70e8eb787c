/** What the contract suite cannot ask of a real server: faults, and the issuer. */
import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { after, beforeEach, describe, test } from "node:test";
import { decodeJwt } from "jose/jwt/decode";
import { createLocalJWKSet } from "jose/jwks/local";
import { jwtVerify } from "jose/jwt/verify";
import { Agent, request } from "undici";
import { errorEvent, startApiServer } from "./apiserver.ts";
import { makeAuthority } from "./certificates.ts";
import { type IssuerFault, startIssuer } from "./issuer.ts";
import { makeSigningKey } from "./keys.ts";

const authority = makeAuthority();
const api = await startApiServer({ certificate: authority.issue(), bookmarkInterval: 50 });
const issuer = await startIssuer({ certificate: authority.issue(), keys: api.jwks });
const dispatcher = trusting(authority.certificate);

after(async () => {
  await dispatcher.close();
  await api.close();
  await issuer.close();
});

function trusting(ca: string): Agent {
  return new Agent({ allowH2: false, connect: { ca } });
}

const secrets = `${api.url}/api/v1/namespaces/team/secrets`;
const watch = `${secrets}?watch=true&resourceVersion=0`;

/** What came of a request, whole or not. */
interface Received {
  status: number;
  headers: Record<string, unknown>;
  chunks: number;
  text: string;
  /** Code of the error that ended it. */
  error?: string;
}

async function receive(
  url: string,
  options: Parameters<typeof request>[1] = {},
): Promise<Received> {
  const received: Received = { status: 0, headers: {}, chunks: 0, text: "" };
  const timeouts = { headersTimeout: 500, bodyTimeout: 500 };
  try {
    const answer = await request(url, { dispatcher, ...timeouts, ...options });
    received.status = answer.statusCode;
    received.headers = answer.headers;
    const decoder = new TextDecoder();
    for await (const chunk of answer.body) {
      received.chunks++;
      received.text += decoder.decode(chunk, { stream: true });
    }
  } catch (error) {
    received.error = (error as { code?: string }).code;
  }
  return received;
}

function patch(body: object): Promise<Received> {
  const headers = { "content-type": "application/merge-patch+json" };
  return receive(`${secrets}/first`, { method: "PATCH", headers, body: JSON.stringify(body) });
}

/** Waits until a watch is open. */
async function opened(): Promise<void> {
  while (api.openWatches === 0) await new Promise((done) => setTimeout(done, 5));
}

beforeEach(() => {
  api.faults.clear();
  api.requests.length = 0;
  if (api.secret("team", "first")) return;
  api.createSecret({
    metadata: { namespace: "team", name: "first", annotations: { text: "日本é" } },
  });
  api.createSecret({ metadata: { namespace: "team", name: "second" } });
});

describe("faults of the API server", () => {
  test("a status is answered with the body of the real server, as often as asked", async () => {
    const fault = api.faults.add({ verb: "patch", path: /first$/, status: 409, times: 2 });
    for (const expected of [409, 409, 200]) {
      const { status, text } = await patch({});
      assertEquals(status, expected);
      if (status === 409) {
        assertEquals(JSON.parse(text).details, { name: "first", kind: "secrets" });
      }
    }
    assertEquals([fault.hits, api.count("patch")], [2, 3]);
  });

  test("a status may bear any header and body", async () => {
    api.faults.add({ status: 429, headers: { "retry-after": "7" } });
    assertEquals((await receive(secrets)).headers["retry-after"], "7");
    api.faults.add({ status: 502, headers: { "content-type": "text/html" }, body: "<html>" });
    const { status, headers, text } = await receive(secrets);
    assertEquals([status, headers["content-type"], text], [502, "text/html", "<html>"]);
  });

  test("a fault holds until it is removed", async () => {
    const fault = api.faults.add({ verb: "list", status: 403, times: Infinity });
    for (let tries = 0; tries < 3; tries++) assertEquals((await receive(secrets)).status, 403);
    fault.remove();
    assertEquals((await receive(secrets)).status, 200);
  });

  test("hanging gives no header, stalling a header or some lines and no end", async () => {
    api.faults.add({ hang: true });
    assertEquals((await receive(secrets)).error, "UND_ERR_HEADERS_TIMEOUT");
    api.faults.add({ stall: 0 });
    assertEquals(await outcome(secrets), [200, 0, "UND_ERR_BODY_TIMEOUT"]);
    api.faults.add({ stall: 1 });
    assertEquals(await outcome(watch), [200, 1, "UND_ERR_BODY_TIMEOUT"]);
  });

  test("a delay comes before the answer", async () => {
    api.faults.add({ delay: 200 });
    const start = Date.now();
    assertEquals((await receive(secrets)).status, 200);
    assert(Date.now() - start >= 190);
  });

  test("a reset ends the connection, the request undone", async () => {
    api.faults.add({ reset: true });
    assertMatch((await patch({ metadata: { labels: { reset: "" } } })).error!, /RESET|SOCKET/);
    assertEquals(api.secret("team", "first")!.metadata.labels, undefined);
  });

  test("a cut after no line loses the answer of a request that was carried out", async () => {
    api.faults.add({ cut: 0 });
    assertEquals((await patch({ metadata: { labels: { cut: "" } } })).error, "UND_ERR_SOCKET");
    assertEquals(api.secret("team", "first")!.metadata.labels, { cut: "" });
    api.patchSecret("team", "first", { metadata: { labels: null } });
  });

  test("a cut ends a watch in the middle of a line, a list in the middle of its body", async () => {
    api.faults.add({ cut: 1.5 });
    const { text, error } = await receive(watch);
    const [first, second] = text.split("\n");
    assertEquals(JSON.parse(first!).object.metadata.name, "first");
    assert(second!.startsWith(`{"type":"ADDED"`) && !second!.endsWith("}}"));
    assertEquals(error, "UND_ERR_SOCKET");
    api.faults.add({ cut: 0.5 });
    assertEquals((await receive(secrets)).error, "UND_ERR_SOCKET");
  });

  test("a split sends characters in pieces that add up", async () => {
    api.faults.add({ split: { bytes: 2, ms: 1 } });
    const { text, chunks } = await receive(`${secrets}/first`, { bodyTimeout: 5000 });
    assertEquals(JSON.parse(text).metadata.annotations.text, "日本é");
    assert(chunks > 50, `${chunks} chunks`);
  });

  test("watches can end early, begin with garbage or bear an error", async () => {
    api.faults.add({ verb: "watch", close: 50, times: 2 });
    for (let tries = 0; tries < 2; tries++) assertEquals(await outcome(watch), [200, 2, undefined]);
    api.faults.add({ lines: ["garbage\n"], close: 0 });
    assertEquals((await receive(watch)).text, "garbage\n");
    api.faults.add({ lines: [errorEvent(410, "Gone")], close: 0 });
    const { reason, code } = JSON.parse((await receive(watch)).text).object;
    assertEquals([reason, code], ["Gone", 410]);
  });

  test("open watches can be sent a line, ended, cut and stalled", async () => {
    const endings = [
      { act: () => api.endWatches(), error: undefined },
      { act: () => api.cutWatches(), error: "UND_ERR_SOCKET" },
      { act: () => api.stallWatches(), error: "UND_ERR_BODY_TIMEOUT" },
    ];
    for (const { act, error } of endings) {
      const ending = receive(watch);
      await opened();
      api.sendToWatches(errorEvent(500));
      await new Promise((done) => setTimeout(done, 50));
      act();
      const received = await ending;
      assertEquals([received.error, received.text.includes(`"ERROR"`)], [error, true]);
      while (api.openWatches > 0) await new Promise((done) => setTimeout(done, 5));
    }
  });

  test("bookmarks come as often as asked", async () => {
    const { text } = await receive(`${watch}&allowWatchBookmarks=true&timeoutSeconds=1`);
    assert(text.split(`"BOOKMARK"`).length > 10);
  });

  test("expired versions are a 410, as an event or as the status", async () => {
    const old = `${secrets}?watch=true&resourceVersion=${api.resourceVersion}`;
    api.patchSecret("team", "second", { metadata: { labels: { expired: "" } } });
    api.expire();
    assertEquals(JSON.parse((await receive(old)).text).object.code, 410);
    api.expiredAs = "status";
    assertEquals((await receive(old)).status, 410);
    api.expiredAs = "event";
  });

  test("refused connections come back on the same port with the same state", async () => {
    await api.refuse();
    const fresh = trusting(authority.certificate);
    const { code } = await assertRejects(() => request(secrets, { dispatcher: fresh })) as Error & {
      code: string;
    };
    assertEquals(code, "ECONNREFUSED");
    await api.accept();
    assertEquals((await receive(`${secrets}/first`, { dispatcher: fresh })).status, 200);
    await fresh.close();
  });

  test("another certificate is shown to new connections", async () => {
    const other = makeAuthority();
    api.useCertificate(other.issue());
    const [old, both] = [authority.certificate, authority.certificate + other.certificate];
    for (
      const [ca, error] of [[old, "UNABLE_TO_VERIFY_LEAF_SIGNATURE"], [both, undefined]] as const
    ) {
      const fresh = trusting(ca);
      assertEquals((await receive(secrets, { dispatcher: fresh })).error, error);
      await fresh.close();
    }
    api.useCertificate(authority.issue());
  });

  test("bearer tokens and rights can change while it runs", async () => {
    const headers = { authorization: "Bearer one" };
    api.tokens = new Map([["one", "alice"]]);
    api.authorize = ({ verb, user }) => verb !== "list" || user === "bob" || "not on Mondays";
    const { status, text } = await receive(secrets, { headers });
    assertEquals(status, 403);
    assertStringIncludes(
      JSON.parse(text).message,
      `User "alice" cannot list resource "secrets" in API group "" in the namespace "team": not on`,
    );
    api.tokens.set("one", "bob");
    assertEquals((await receive(secrets, { headers })).status, 200);
    api.tokens.delete("one");
    assertEquals((await receive(secrets, { headers })).status, 401);
    api.tokens = undefined;
    api.authorize = () => true;
  });

  test("requests are logged with verb, path, query, headers, body and status", async () => {
    await patch({ metadata: { annotations: { logged: null } } });
    await receive(`${secrets}?labelSelector=a`, { headers: { "user-agent": "x/1" } });
    const [first, second] = api.requests;
    assertEquals([first!.verb, first!.resource, first!.name], ["patch", "secrets", "first"]);
    assertEquals(JSON.parse(first!.body), { metadata: { annotations: { logged: null } } });
    assertEquals([second!.verb, second!.query.get("labelSelector"), second!.status], [
      "list",
      "a",
      200,
    ]);
    assertEquals(second!.headers["user-agent"], "x/1");
  });

  async function outcome(url: string): Promise<[number, number, string | undefined]> {
    const { status, text, error } = await receive(url);
    return [status, text.split("\n").length - 1, error];
  }
});

describe("the issuer", () => {
  const identity = `${"a".repeat(40)}/${"b".repeat(16)}`;
  const subject = (audience = issuer.audience, seconds = 600) =>
    api.serviceAccountToken("team", "account", audience, seconds);

  beforeEach(() => {
    issuer.faults.clear();
    issuer.exchanges.length = 0;
    issuer.bind(identity, api.issuer, "team", "account");
  });

  async function exchange(
    bearer: string,
    form: Record<string, string> = { identity, aud: "cgr.dev" },
  ) {
    const headers = {
      authorization: `Bearer ${bearer}`,
      "content-type": "application/x-www-form-urlencoded",
    };
    const body = new URLSearchParams(form).toString();
    const received = await receive(`${issuer.url}/sts/exchange`, { method: "POST", headers, body });
    const isJson = received.headers["content-type"] === "application/json";
    return { ...received, body: isJson ? JSON.parse(received.text) : undefined };
  }

  test("issues a signed token of the identity for the audience", async () => {
    issuer.life = 12;
    const { status, body } = await exchange(await subject());
    issuer.life = 3600;
    assertEquals(status, 200);
    const { jwks_uri } = JSON.parse(
      (await receive(`${issuer.url}/.well-known/openid-configuration`)).text,
    );
    const keys = createLocalJWKSet(JSON.parse((await receive(jwks_uri)).text));
    const { payload } = await jwtVerify(body.token, keys, {
      issuer: issuer.url,
      audience: "cgr.dev",
    });
    assertEquals([payload.sub, payload.exp! - payload.iat!], [identity, 12]);
    assertEquals(payload.act, {
      iss: api.issuer,
      sub: "system:serviceaccount:team:account",
      aud: [issuer.audience],
    });
    const [logged] = issuer.exchanges;
    assertEquals([logged!.identity, logged!.status, logged!.token], [identity, 200, body.token]);
  });

  test("takes parameters from the query, but not from JSON", async () => {
    const query = new URLSearchParams({ identity, aud: "cgr.dev" });
    const headers = {
      authorization: `Bearer ${await subject()}`,
      "content-type": "application/json",
    };
    const url = `${issuer.url}/sts/exchange`;
    assertEquals((await receive(`${url}?${query}`, { method: "POST", headers })).status, 200);
    const body = JSON.stringify(Object.fromEntries(query));
    const { status, text } = await receive(url, { method: "POST", headers, body });
    assertEquals([status, JSON.parse(text).message], [400, "Audience must be specified"]);
  });

  const foreign = `${"c".repeat(40)}/${"d".repeat(16)}`;
  const refusals = [
    { title: "no bearer token", bearer: () => "", status: 401, code: 16 },
    { title: "a bearer token that is no JWT", bearer: () => "nonsense", status: 401, code: 16 },
    {
      title: "a token for another audience",
      bearer: () => subject("other"),
      status: 401,
      code: 16,
    },
    { title: "an expired token", bearer: () => subject(undefined, -60), status: 401, code: 16 },
    { title: "a token that another key signed", bearer: forged, status: 401, code: 16 },
    { title: "an identity not bound", form: { identity: foreign, aud: "x" }, status: 404, code: 5 },
    {
      title: "an identity not of its form",
      form: { identity: "x", aud: "x" },
      status: 400,
      code: 3,
    },
    { title: "no audience", form: { identity }, status: 400, code: 3 },
    {
      title: "another account's token",
      bearer: () => api.serviceAccountToken("team", "other", issuer.audience),
      status: 403,
      code: 7,
    },
  ];
  for (const { title, bearer = subject, form, status, code } of refusals) {
    test(`refuses ${title} with a ${status}`, async () => {
      const answer = await exchange(await bearer(), form as Record<string, string>);
      assertEquals([answer.status, answer.body.code, answer.body.details], [status, code, []]);
      assertEquals(issuer.exchanges.at(-1)!.status, status);
    });
  }

  async function forged(): Promise<string> {
    const claims = decodeJwt(await subject());
    return await (await makeSigningKey()).sign(claims);
  }

  test("caches tokens until some seconds before their end, if asked to", async () => {
    const bearer = await subject();
    const issue = async () => (await exchange(bearer)).body.token;
    const first = await issue();
    issuer.cacheUntil = 300;
    assertEquals(await issue(), first);
    issuer.cacheUntil = 3600;
    assert(await issue() !== first);
    issuer.cacheUntil = undefined;
  });

  test("may have a clock of its own", async () => {
    issuer.skew = 120;
    const { iat } = decodeJwt((await exchange(await subject())).body.token);
    issuer.skew = 0;
    assert(Math.abs(iat! - Date.now() / 1000 - 120) < 5);
  });

  const tokens: { title: string; fault: IssuerFault; check: (token: string) => void }[] = [
    { title: "empty", fault: { token: "" }, check: (token) => assertEquals(token, "") },
    {
      title: "for another audience and identity, long expired",
      fault: { claims: { aud: "other", sub: "other", exp: 1 } },
      check: (token) => {
        const { aud, sub, exp } = decodeJwt(token);
        assertEquals([aud, sub, exp], ["other", "other", 1]);
      },
    },
    {
      title: "of another algorithm",
      fault: { header: { alg: "none" } },
      check: (token) => assertEquals(JSON.parse(atob(token.split(".")[0]!)).alg, "none"),
    },
  ];
  for (const { title, fault, check } of tokens) {
    test(`can issue a token that is ${title}`, async () => {
      issuer.faults.add(fault);
      check((await exchange(await subject())).body.token);
    });
  }

  test("can redirect, send 5 MB, HTML, and echo the subject token", async () => {
    const bearer = await subject();
    issuer.faults.add({ status: 307, headers: { location: "http://127.0.0.1:1/" } });
    assertEquals((await exchange(bearer)).headers.location, "http://127.0.0.1:1/");
    issuer.faults.add({ status: 200, body: { token: "x".repeat(5_000_000) } });
    assertEquals((await exchange(bearer)).body.token.length, 5_000_000);
    issuer.faults.add({ status: 200, body: "<html>" });
    assertEquals((await exchange(bearer)).text, "<html>");
    const body = ({ headers }: { headers: Record<string, string> }) => ({
      message: headers.authorization,
    });
    issuer.faults.add({ status: 401, body });
    assertEquals((await exchange(bearer)).body.message, `Bearer ${bearer}`);
    issuer.faults.add({ status: 503, headers: { "retry-after": "3" } });
    const { headers, body: { code } } = await exchange(bearer);
    assertEquals([headers["retry-after"], code], ["3", 14]);
  });
});
