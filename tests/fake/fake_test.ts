/**
 * What the contract suite cannot ask of a real server: faults, and the issuer. That each fault does what it says is seen
 * where it is used: k8s_test.ts, sts_test.ts and tests/program.
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { after, beforeEach, describe, test } from "node:test";
import { decodeJwt } from "jose/jwt/decode";
import { createLocalJWKSet } from "jose/jwks/local";
import { jwtVerify } from "jose/jwt/verify";
import { Agent, request } from "undici";
import { startApiServer } from "./apiserver.ts";
import { makeAuthority } from "./certificates.ts";
import { startIssuer } from "./issuer.ts";
import { makeSigningKey } from "./keys.ts";

const authority = makeAuthority();
const api = await startApiServer({ certificate: authority.issue() });
const issuer = await startIssuer({ certificate: authority.issue(), keys: api.jwks });
const dispatcher = new Agent({ allowH2: false, connect: { ca: authority.certificate } });

after(async () => {
  await dispatcher.close();
  await api.close();
  await issuer.close();
});

const secrets = `${api.url}/api/v1/namespaces/team/secrets`;

async function receive(url: string, options: Parameters<typeof request>[1] = {}) {
  const { statusCode, headers, body } = await request(url, { dispatcher, ...options });
  const text = await body.text();
  const isJson = headers["content-type"] === "application/json";
  return { status: statusCode, text, body: isJson ? JSON.parse(text) : undefined };
}

function patch(body: object) {
  const headers = { "content-type": "application/merge-patch+json" };
  return receive(`${secrets}/first`, { method: "PATCH", headers, body: JSON.stringify(body) });
}

beforeEach(() => {
  api.faults.clear();
  api.requests.length = 0;
  if (api.secret("team", "first")) return;
  api.createSecret({ metadata: { namespace: "team", name: "first" } });
});

describe("faults of the API server", () => {
  test("a status is answered with the body of the real server, as often as asked", async () => {
    const fault = api.faults.add({ verb: "patch", path: /first$/, status: 409, times: 2 });
    for (const expected of [409, 409, 200]) {
      const { status, body } = await patch({});
      assertEquals(status, expected);
      if (status === 409) assertEquals(body.details, { name: "first", kind: "secrets" });
    }
    assertEquals([fault.hits, api.count("patch")], [2, 3]);
  });

  test("a reset ends the connection, the request undone", async () => {
    api.faults.add({ reset: true });
    const { code } = await patch({ metadata: { labels: { reset: "" } } }).catch((error) => error);
    assertMatch(code, /RESET|SOCKET/);
    assertEquals(api.secret("team", "first")!.metadata.labels, undefined);
  });

  test("a cut after no line loses the answer of a request that was carried out", async () => {
    api.faults.add({ cut: 0 });
    const { code } = await patch({ metadata: { labels: { cut: "" } } }).catch((error) => error);
    assertEquals(code, "UND_ERR_SOCKET");
    assertEquals(api.secret("team", "first")!.metadata.labels, { cut: "" });
    api.patchSecret("team", "first", { metadata: { labels: null } });
  });

  test("bearer tokens and rights can change while it runs", async () => {
    const headers = { authorization: "Bearer one" };
    api.tokens = new Map([["one", "alice"]]);
    api.authorize = ({ verb, user }) => verb !== "list" || user === "bob" || "not on Mondays";
    const { status, body } = await receive(secrets, { headers });
    assertEquals(status, 403);
    assertStringIncludes(
      body.message,
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
    return await receive(`${issuer.url}/sts/exchange`, { method: "POST", headers, body });
  }

  test("issues a signed token of the identity for the audience", async () => {
    issuer.life = 12;
    const { status, body } = await exchange(await subject());
    issuer.life = 3600;
    assertEquals(status, 200);
    const discovery = await receive(`${issuer.url}/.well-known/openid-configuration`);
    const keys = createLocalJWKSet((await receive(discovery.body.jwks_uri)).body);
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

  test("takes parameters from the query, but not from JSON", async () => {
    const query = new URLSearchParams({ identity, aud: "cgr.dev" });
    const headers = {
      authorization: `Bearer ${await subject()}`,
      "content-type": "application/json",
    };
    const url = `${issuer.url}/sts/exchange`;
    assertEquals((await receive(`${url}?${query}`, { method: "POST", headers })).status, 200);
    const json = JSON.stringify(Object.fromEntries(query));
    const { status, body } = await receive(url, { method: "POST", headers, body: json });
    assertEquals([status, body.message], [400, "Audience must be specified"]);
  });

  const foreign = `${"c".repeat(40)}/${"d".repeat(16)}`;
  const asked = { identity, aud: "cgr.dev" };
  type Refusal = [
    title: string,
    bearer: () => string | Promise<string>,
    form: Record<string, string>,
    status: number,
    code: number,
  ];
  const refusals: Refusal[] = [
    ["no bearer token", () => "", asked, 401, 16],
    ["a bearer token that is no JWT", () => "nonsense", asked, 401, 16],
    ["a token for another audience", () => subject("other"), asked, 401, 16],
    ["an expired token", () => subject(undefined, -60), asked, 401, 16],
    ["a token that another key signed", forged, asked, 401, 16],
    ["an identity not bound", subject, { identity: foreign, aud: "x" }, 404, 5],
    ["an identity not of its form", subject, { identity: "x", aud: "x" }, 400, 3],
    ["no audience", subject, { identity }, 400, 3],
    ["another account's token", otherAccount, asked, 403, 7],
  ];
  for (const [title, bearer, form, status, code] of refusals) {
    test(`refuses ${title} with a ${status}`, async () => {
      const answer = await exchange(await bearer(), form);
      assertEquals([answer.status, answer.body.code, answer.body.details], [status, code, []]);
      assertEquals(issuer.exchanges.at(-1)!.status, status);
    });
  }

  function otherAccount(): Promise<string> {
    return api.serviceAccountToken("team", "other", issuer.audience);
  }

  async function forged(): Promise<string> {
    const claims = decodeJwt(await subject());
    return await (await makeSigningKey()).sign(claims);
  }
});
