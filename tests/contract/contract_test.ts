/**
 * The rules of the API server that the controller relies on, over raw HTTP. They run against the
 * embedded stand-in or, unchanged, against a real kube-apiserver:
 *
 *     CONTRACT_API=https://127.0.0.1:6443 CONTRACT_TOKEN=… CONTRACT_CA=ca.crt node --test tests/contract/contract_test.ts
 *
 * The token must be an administrator's. A server without a controller manager is enough.
 */
import {
  assert,
  assertEquals,
  assertMatch,
  assertNotEquals,
  assertStringIncludes,
} from "@std/assert";
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { after, before, describe, test } from "node:test";
import { decodeJwt } from "jose/jwt/decode";
import { createLocalJWKSet } from "jose/jwks/local";
import { jwtVerify } from "jose/jwt/verify";
import { Agent, type Dispatcher, request } from "undici";
import { type ApiServer, startApiServer } from "../fake/apiserver.ts";
import { makeAuthority } from "../fake/certificates.ts";
import { SECRET_TYPE } from "../support/names.ts";

// deno-lint-ignore no-explicit-any
type Json = any;

interface Answer {
  status: number;
  type: string;
  body: Json;
}

interface Watch {
  status: number;
  headers: Record<string, unknown>;
  /** The next event; undefined at the end. */
  next(): Promise<Json | undefined>;
  /** All that come until the end. */
  rest(): Promise<Json[]>;
  close(): void;
}

const MERGE_PATCH = "application/merge-patch+json";
const ADMIN = "contract-admin";

const run = `contract-${randomBytes(4).toString("hex")}`;
const other = `other-${run}`;
const secrets = `/api/v1/namespaces/${run}/secrets`;
const accounts = `/api/v1/namespaces/${run}/serviceaccounts`;
const events = `/apis/events.k8s.io/v1/namespaces/${run}/events`;

let server: ApiServer | undefined;
let url: string;
let token: string;
let dispatcher: Agent;

before(async () => {
  if (process.env.CONTRACT_API) {
    url = process.env.CONTRACT_API;
    token = process.env.CONTRACT_TOKEN ?? "";
    dispatcher = agent(readFileSync(process.env.CONTRACT_CA ?? "", "utf8"));
  } else {
    const authority = makeAuthority();
    server = await startApiServer({
      certificate: authority.issue(),
      tokens: new Map([[ADMIN, ADMIN]]),
      authorize: ({ user }) => user === ADMIN,
    });
    url = server.url;
    token = ADMIN;
    dispatcher = agent(authority.certificate);
  }
  for (const name of [run, other]) {
    assertEquals((await post("/api/v1/namespaces", { metadata: { name } })).status, 201);
  }
});

after(async () => {
  for (const namespace of [run, other]) {
    for (const resource of ["secrets", "serviceaccounts"]) {
      await call("DELETE", `/api/v1/namespaces/${namespace}/${resource}`);
    }
    await call("DELETE", `/apis/events.k8s.io/v1/namespaces/${namespace}/events`);
    await call("DELETE", `/api/v1/namespaces/${namespace}`);
  }
  await dispatcher.close();
  await server?.close();
});

function agent(ca: string): Agent {
  return new Agent({ allowH2: false, connect: { ca } });
}

async function call(
  method: Dispatcher.HttpMethod,
  path: string,
  body?: unknown,
  type = "application/json",
  bearer = token,
  others: Record<string, string> = {},
): Promise<Answer> {
  const text = body === undefined || typeof body === "string" ? body : JSON.stringify(body);
  const headers = { authorization: `Bearer ${bearer}`, "content-type": type, ...others };
  const answer = await request(url + path, { method, dispatcher, headers, body: text });
  const answered = await answer.body.text();
  const kind = String(answer.headers["content-type"]);
  const isJson = kind.includes("json");
  return {
    status: answer.statusCode,
    type: kind,
    body: isJson ? JSON.parse(answered) : answered,
  };
}

function get(path: string): Promise<Answer> {
  return call("GET", path);
}

function post(path: string, body: unknown): Promise<Answer> {
  return call("POST", path, body);
}

function patch(name: string, body: unknown): Promise<Answer> {
  return call("PATCH", `${secrets}/${name}?fieldManager=contract`, body, MERGE_PATCH);
}

/** Creates a Secret that must be fine. */
async function create(name: string, fields: object = {}, metadata: object = {}): Promise<Json> {
  const { status, body } = await post(secrets, { metadata: { name, ...metadata }, ...fields });
  assertEquals(status, 201, JSON.stringify(body));
  return body;
}

function pullSecret(config = "{}"): object {
  return { type: SECRET_TYPE, stringData: { ".dockerconfigjson": config } };
}

function selecting(selector: string, path = secrets): string {
  return `${path}?labelSelector=${encodeURIComponent(selector)}`;
}

async function names(path: string): Promise<string[]> {
  const { status, body } = await get(path);
  assertEquals(status, 200);
  return body.items.map((item: Json) => item.metadata.name);
}

/** The resource version to watch from. */
async function version(): Promise<string> {
  return (await get(`${secrets}?limit=1`)).body.metadata.resourceVersion;
}

async function watch(query: Record<string, string>, path = secrets): Promise<Watch> {
  const parameters = new URLSearchParams({ watch: "true", timeoutSeconds: "20", ...query });
  const aborter = new AbortController();
  const answer = await request(`${url}${path}?${parameters}`, {
    dispatcher,
    headers: { authorization: `Bearer ${token}` },
    signal: aborter.signal,
  });
  const lines = splitLines(answer.body);
  const next = async () => (await lines.next()).value as Json | undefined;
  return {
    status: answer.statusCode,
    headers: answer.headers,
    next,
    rest: async () => {
      const all = [];
      for (let event = await next(); event; event = await next()) all.push(event);
      return all;
    },
    close: () => aborter.abort(),
  };
}

async function* splitLines(body: AsyncIterable<Uint8Array>): AsyncGenerator<Json> {
  const decoder = new TextDecoder();
  let tail = "";
  for await (const chunk of body) {
    const lines = (tail + decoder.decode(chunk, { stream: true })).split("\n");
    tail = lines.pop()!;
    for (const line of lines) yield JSON.parse(line);
  }
  assertEquals(tail, "", "the last line of a watch is whole");
}

function assertFailure({ status, type, body }: Answer, code: number, reason: string): void {
  const { kind, apiVersion, metadata, status: failure, message } = body;
  assertEquals([status, body.code, body.reason], [code, code, reason], message);
  assertEquals(type, "application/json");
  assertEquals({ kind, apiVersion, failure }, {
    kind: "Status",
    apiVersion: "v1",
    failure: "Failure",
  });
  assertEquals(typeof metadata, "object");
  assertEquals(typeof message, "string");
}

function assertInvalid(answer: Answer, reason: string, field: string): void {
  assertFailure(answer, 422, "Invalid");
  const { causes } = answer.body.details;
  assert(
    causes.some((cause: Json) => cause.reason === reason && cause.field === field),
    JSON.stringify(causes),
  );
}

describe("objects", () => {
  test("a new Secret gets a UID, a resource version, a time and its default type", async () => {
    const secret = await create("fresh", { stringData: { key: "välue" } });
    assertEquals([secret.kind, secret.apiVersion, secret.type], ["Secret", "v1", "Opaque"]);
    assertMatch(secret.metadata.uid, /^[0-9a-f-]{36}$/);
    assertMatch(secret.metadata.resourceVersion, /^\d+$/);
    assertMatch(secret.metadata.creationTimestamp, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
    assertEquals(secret.metadata.namespace, run);
  });

  test("stringData goes into data and wins over it", async () => {
    const data = { same: btoa("data"), kept: btoa("kept") };
    const secret = await create("strings", { data, stringData: { same: "string" } });
    assertEquals(secret.data, { kept: btoa("kept"), same: btoa("string") });
    assertEquals(secret.stringData, undefined);
  });

  test("a name is made of generateName", async () => {
    const { body } = await post(secrets, { metadata: { generateName: "made-" } });
    assertMatch(body.metadata.name, /^made-[a-z0-9]{5}$/);
  });

  test("a Secret that exists already is a 409 AlreadyExists", async () => {
    await create("twice");
    const answer = await post(secrets, { metadata: { name: "twice" } });
    assertFailure(answer, 409, "AlreadyExists");
    assertEquals(answer.body.message, `secrets "twice" already exists`);
  });

  test("a Secret that does not exist is a 404 NotFound that names it", async () => {
    const path = `${secrets}/absent`;
    const answers = [
      await get(path),
      await patch("absent", {}),
      await call("PUT", path, { metadata: { name: "absent" } }),
      await call("DELETE", path),
      await get("/api/v1/namespaces/no-such-namespace/secrets/absent"),
    ];
    for (const answer of answers) {
      assertFailure(answer, 404, "NotFound");
      assertEquals(answer.body.details, { name: "absent", kind: "secrets" });
      assertEquals(answer.body.message, `secrets "absent" not found`);
    }
  });

  test("nothing is created in a namespace that does not exist, and its list is empty", async () => {
    const path = "/api/v1/namespaces/no-such-namespace/secrets";
    const answer = await post(path, { metadata: { name: "x" } });
    assertFailure(answer, 404, "NotFound");
    assertEquals(answer.body.details.kind, "namespaces");
    assertEquals(await names(path), []);
  });

  test("an unknown resource is a 404, an unknown method a 405", async () => {
    assertFailure(await get("/api/v1/nonsense"), 404, "NotFound");
    assertFailure(await post(`${secrets}/named`, {}), 405, "MethodNotAllowed");
    assertFailure(await post("/api/v1/secrets", {}), 405, "MethodNotAllowed");
    assertEquals((await get("/apis/nonsense.example/v1/things")).status, 404);
  });

  test("PUT replaces, unless a resource version or a UID in it is another's", async () => {
    const first = await create("put", pullSecret());
    const path = `${secrets}/put`;
    const next = { ...first, metadata: { ...first.metadata, labels: { put: "1" } } };
    const second = (await call("PUT", path, next)).body;
    assertEquals(second.metadata.labels, { put: "1" });
    assertFailure(await call("PUT", path, next), 409, "Conflict");
    const free = { ...second, metadata: { name: "put" } };
    assertEquals((await call("PUT", path, free)).status, 200);
    const foreign = { ...second, metadata: { name: "put", uid: "another" } };
    assertFailure(await call("PUT", path, foreign), 409, "Conflict");
  });
});

describe("validation", () => {
  const valid = [
    { title: "an empty docker config", fields: pullSecret("{}") },
    { title: "a docker config of null", fields: pullSecret("null") },
    { title: "1 MiB of data", fields: { data: { big: base64Bytes(1024 * 1024) } } },
    {
      title: "256 KiB of annotations",
      metadata: { annotations: { long: "x".repeat(256 * 1024 - 4) } },
    },
    { title: "an empty label", metadata: { labels: { "example.com/empty": "" } } },
    { title: "dots in a label", metadata: { labels: { dots: "0123.abcd" } } },
    { title: "fields that it does not know", fields: { nonsense: 1 } },
  ];
  for (const [index, { title, fields, metadata }] of valid.entries()) {
    test(`a Secret may have ${title}`, async () => {
      await create(`valid-${index}`, fields, metadata);
    });
  }

  const REQUIRED = "FieldValueRequired";
  const INVALID = "FieldValueInvalid";
  const LONG = "FieldValueTooLong";
  const CONFIG = "data[.dockerconfigjson]";
  const invalid = [
    {
      title: "no docker config in one of that type",
      fields: { type: SECRET_TYPE, data: {} },
      reason: REQUIRED,
      field: CONFIG,
    },
    {
      title: "a docker config that is not JSON",
      fields: pullSecret("nonsense"),
      reason: INVALID,
      field: CONFIG,
    },
    {
      title: "a docker config that is an array",
      fields: pullSecret("[]"),
      reason: INVALID,
      field: CONFIG,
    },
    {
      title: "a docker config of no bytes",
      fields: pullSecret(""),
      reason: INVALID,
      field: CONFIG,
    },
    {
      title: "a slash in a label",
      metadata: { labels: { id: "a/b" } },
      reason: INVALID,
      field: "metadata.labels",
    },
    {
      title: "a label of 64 characters",
      metadata: { labels: { id: "x".repeat(64) } },
      reason: INVALID,
      field: "metadata.labels",
    },
    {
      title: "a space in a label's key",
      metadata: { labels: { "i d": "" } },
      reason: INVALID,
      field: "metadata.labels",
    },
    {
      title: "more than 256 KiB of annotations",
      metadata: { annotations: { long: "x".repeat(256 * 1024 - 3) } },
      reason: LONG,
      field: "metadata.annotations",
    },
    {
      title: "more than 1 MiB of data",
      fields: { data: { big: base64Bytes(1024 * 1024 + 1) } },
      reason: LONG,
      field: "data",
    },
    {
      title: "a space in a key of its data",
      fields: { data: { "a b": "" } },
      reason: INVALID,
      field: "data[a b]",
    },
    {
      title: "capitals in its name",
      metadata: { name: "Capital" },
      reason: INVALID,
      field: "metadata.name",
    },
    {
      title: "254 characters in its name",
      metadata: { name: "x".repeat(254) },
      reason: INVALID,
      field: "metadata.name",
    },
    { title: "no name", metadata: { name: undefined }, reason: REQUIRED, field: "metadata.name" },
  ];
  for (const { title, fields, metadata, reason, field } of invalid) {
    test(`a Secret may not have ${title}`, async () => {
      const answer = await post(secrets, { metadata: { name: "invalid", ...metadata }, ...fields });
      assertInvalid(answer, reason, field);
      assertEquals(answer.body.details.kind, "Secret");
    });
  }

  test("the contents of a Secret are redacted in what is said of it", async () => {
    const { body } = await post(secrets, {
      metadata: { name: "redacted" },
      ...pullSecret("nonsense"),
    });
    assertStringIncludes(body.message, `Invalid value: "<secret contents redacted>"`);
  });

  const malformed = [
    { title: "broken JSON", body: "{nonsense" },
    { title: "no body", body: "" },
    { title: "an array", body: "[]" },
    {
      title: "another kind",
      body: { kind: "ConfigMap", apiVersion: "v1", metadata: { name: "x" } },
    },
    {
      title: "another API version",
      body: { kind: "Secret", apiVersion: "v2", metadata: { name: "x" } },
    },
    { title: "another namespace", body: { metadata: { name: "x", namespace: other } } },
    { title: "base64 without padding", body: { metadata: { name: "x" }, data: { key: "e30" } } },
    { title: "base64url", body: { metadata: { name: "x" }, data: { key: "_-__" } } },
    { title: "a number as data", body: { metadata: { name: "x" }, data: { key: 1 } } },
    { title: "a number as label", body: { metadata: { name: "x", labels: { key: 1 } } } },
    { title: "an array of labels", body: { metadata: { name: "x", labels: [] } } },
  ];
  for (const { title, body } of malformed) {
    test(`a request with ${title} is a 400`, async () => {
      assertFailure(await post(secrets, body), 400, "BadRequest");
    });
  }

  test("a request of more than 3 MiB is a 413", async () => {
    const body = { metadata: { name: "huge" }, nonsense: "x".repeat(3 * 1024 * 1024) };
    assertFailure(await post(secrets, body), 413, "RequestEntityTooLarge");
  });

  test("a request of another content type is a 415", async () => {
    const answer = await call("POST", secrets, "a=b", "application/x-www-form-urlencoded");
    assertFailure(answer, 415, "UnsupportedMediaType");
  });
});

describe("merge-patch", () => {
  test("keeps other keys, labels and annotations byte for byte", async () => {
    const note = ` "quoted"\n\ttab, \u202e, 日本, ${"long ".repeat(1000)}`;
    const binary = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte)).toString("base64");
    const config = `{"auths" : {"example.com":{"auth":"eDp5"}} , "n":1.0}`;
    const metadata = { labels: { keep: "Yes_1" }, annotations: { note, gone: "1" } };
    const old = await create(
      "kept",
      { type: SECRET_TYPE, data: { binary, ".dockerconfigjson": btoa(config) } },
      metadata,
    );
    const { status, body } = await patch("kept", {
      metadata: { annotations: { "example.com/new": "é", gone: null } },
      data: { ".dockerconfigjson": btoa("{}") },
    });
    assertEquals(status, 200);
    assertEquals(body.data, { ".dockerconfigjson": btoa("{}"), binary });
    assertEquals(body.metadata.labels, { keep: "Yes_1" });
    assertEquals(body.metadata.annotations, { "example.com/new": "é", note });
    assertEquals(body.metadata.uid, old.metadata.uid);
    assertEquals(body.metadata.creationTimestamp, old.metadata.creationTimestamp);
    assert(Number(body.metadata.resourceVersion) > Number(old.metadata.resourceVersion));
    assertEquals((await get(`${secrets}/kept`)).body.data, body.data);
  });

  test("answers with the metadata alone to who accepts that", async () => {
    await create("partial", pullSecret());
    const path = `${secrets}/partial?fieldManager=contract`;
    const accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json";
    const change = { metadata: { labels: { a: "b" } } };
    const { status, body } = await call("PATCH", path, change, MERGE_PATCH, token, { accept });
    assertEquals(status, 200);
    assertEquals(Object.keys(body).sort(), ["apiVersion", "kind", "metadata"]);
    assertEquals([body.kind, body.apiVersion], ["PartialObjectMetadata", "meta.k8s.io/v1"]);
    const { metadata } = (await get(`${secrets}/partial`)).body;
    assertEquals(body.metadata, metadata);
  });

  test("that changes nothing keeps the resource version", async () => {
    const { metadata } = await create("unchanged", pullSecret(), { labels: { a: "b" } });
    const same = {
      metadata: { labels: { a: "b", absent: null } },
      data: { ".dockerconfigjson": "e30=" },
    };
    for (const body of [{}, same]) {
      assertEquals(
        (await patch("unchanged", body)).body.metadata.resourceVersion,
        metadata.resourceVersion,
      );
    }
  });

  test("with the current UID and resource version goes through", async () => {
    const { metadata: { uid, resourceVersion } } = await create("current");
    const { status } = await patch("current", {
      metadata: { uid, resourceVersion, labels: { a: "b" } },
    });
    assertEquals(status, 200);
  });

  test("with an old resource version is a 409 Conflict and changes nothing", async () => {
    const { metadata: { resourceVersion } } = await create("stale");
    await patch("stale", { metadata: { labels: { a: "new" } } });
    const answer = await patch("stale", { metadata: { resourceVersion, labels: { a: "old" } } });
    assertFailure(answer, 409, "Conflict");
    assertEquals(answer.body.details, { name: "stale", kind: "secrets" });
    assertMatch(
      answer.body.message,
      /^Operation cannot be fulfilled on secrets "stale": the object has/,
    );
    assertEquals((await get(`${secrets}/stale`)).body.metadata.labels, { a: "new" });
  });

  test("for an earlier Secret of the same name is a 409 Conflict", async () => {
    const { metadata: { uid, resourceVersion } } = await create("reborn");
    await call("DELETE", `${secrets}/reborn`);
    assertNotEquals((await create("reborn")).metadata.uid, uid);
    assertFailure(await patch("reborn", { metadata: { uid, resourceVersion } }), 409, "Conflict");
  });

  test("with another UID alone is a 422", async () => {
    await create("another");
    const uid = "00000000-0000-0000-0000-000000000000";
    assertInvalid(
      await patch("another", { metadata: { uid } }),
      "FieldValueInvalid",
      "metadata.uid",
    );
  });

  test("cannot change the type", async () => {
    await create("typed", pullSecret());
    assertInvalid(await patch("typed", { type: "Opaque" }), "FieldValueInvalid", "type");
  });

  test("cannot take the docker config away", async () => {
    await create("emptied", pullSecret());
    for (const body of [{ data: null }, { data: { ".dockerconfigjson": null } }]) {
      assertInvalid(await patch("emptied", body), "FieldValueRequired", "data[.dockerconfigjson]");
    }
  });

  test("cannot change the data of an immutable Secret, but its metadata", async () => {
    await create("frozen", { ...pullSecret(), immutable: true });
    const changes = { data: { ".dockerconfigjson": btoa(`{"auths":{}}`) } };
    assertInvalid(await patch("frozen", changes), "FieldValueForbidden", "data");
    assertInvalid(await patch("frozen", { immutable: null }), "FieldValueForbidden", "immutable");
    assertEquals((await patch("frozen", { metadata: { labels: { a: "b" } } })).status, 200);
  });

  test("of the name or the namespace is a 400", async () => {
    await create("renamed");
    assertFailure(await patch("renamed", { metadata: { name: "x" } }), 400, "BadRequest");
    assertFailure(await patch("renamed", { metadata: { namespace: other } }), 400, "BadRequest");
  });

  test("of what the server decides is ignored", async () => {
    const { metadata } = await create("decided");
    const { body } = await patch("decided", {
      metadata: { creationTimestamp: "2020-01-01T00:00:00Z", uid: null, resourceVersion: null },
    });
    assertEquals(body.metadata.uid, metadata.uid);
    assertEquals(body.metadata.creationTimestamp, metadata.creationTimestamp);
  });

  test("that is no JSON object is a 400", async () => {
    await create("mangled");
    for (const body of ["{nonsense", "[]", `"text"`]) {
      assertFailure(await patch("mangled", body), 400, "BadRequest");
    }
  });

  test("with values of a wrong type is a 422 that echoes the whole Secret", async () => {
    const { data } = await create("echoed", pullSecret(`{"auths":{"example.com":{}}}`));
    for (const body of [{ metadata: { labels: { a: 2 } } }, { data: { a: "@@" } }]) {
      const answer = await patch("echoed", body);
      assertInvalid(answer, "FieldValueInvalid", "patch");
      assertStringIncludes(answer.body.message, data[".dockerconfigjson"]);
    }
  });

  test("under another content type is a 415", async () => {
    await create("media");
    const answer = await call("PATCH", `${secrets}/media`, {}, "application/json");
    assertFailure(answer, 415, "UnsupportedMediaType");
    const withCharset = `${MERGE_PATCH}; charset=utf-8`;
    assertEquals((await call("PATCH", `${secrets}/media`, {}, withCharset)).status, 200);
  });
});

describe("deletion", () => {
  test("answers a Status that says which UID is gone", async () => {
    const { metadata: { uid } } = await create("deleted");
    const { status, body } = await call("DELETE", `${secrets}/deleted`);
    assertEquals(status, 200);
    assertEquals([body.kind, body.status], ["Status", "Success"]);
    assertEquals(body.details, { name: "deleted", kind: "secrets", uid });
  });

  test("with the precondition of another UID or version is a 409 Conflict", async () => {
    await create("guarded");
    for (const preconditions of [{ uid: "another" }, { resourceVersion: "1" }]) {
      const answer = await call("DELETE", `${secrets}/guarded`, { preconditions });
      assertFailure(answer, 409, "Conflict");
    }
  });

  test("waits, marked in the object, until the last finalizer is taken off", async () => {
    const from = await version();
    await create("held", {}, { finalizers: ["example.com/hold"] });
    const marked = (await call("DELETE", `${secrets}/held`)).body;
    assertMatch(marked.metadata.deletionTimestamp, /^\d{4}-.*Z$/);
    assertEquals((await get(`${secrets}/held`)).status, 200);
    await patch("held", { metadata: { finalizers: null } });
    assertFailure(await get(`${secrets}/held`), 404, "NotFound");
    const seen = await watch({ resourceVersion: from, timeoutSeconds: "1" });
    const types = (await seen.rest()).filter(({ object }) => object.metadata.name === "held");
    assertEquals(types.map(({ type }) => type), ["ADDED", "MODIFIED", "DELETED"]);
  });
});

describe("lists", () => {
  before(async () => {
    for (const name of ["list-1", "list-2", "list-3", "list-4", "list-5"]) {
      await create(name, pullSecret(), { labels: { listed: name, [run]: "" } });
    }
    const elsewhere = { metadata: { name: "list-6", labels: { [run]: "" } } };
    await post(`/api/v1/namespaces/${other}/secrets`, elsewhere);
  });

  test("name their kind and version; the items do not", async () => {
    const { body } = await get(selecting("listed=list-1"));
    assertEquals([body.kind, body.apiVersion], ["SecretList", "v1"]);
    assertMatch(body.metadata.resourceVersion, /^\d+$/);
    const [item] = body.items;
    assertEquals([item.kind, item.apiVersion], [undefined, undefined]);
    assertEquals(item.data, { ".dockerconfigjson": "e30=" });
  });

  test("of all namespaces reach across them, in the order of namespace and name", async () => {
    assertEquals(
      await names(selecting(run, "/api/v1/secrets")),
      ["list-1", "list-2", "list-3", "list-4", "list-5", "list-6"],
    );
    assertEquals((await names(selecting(run))).length, 5);
  });

  const selectors = [
    { selector: "listed", selected: [1, 2, 3, 4, 5] },
    { selector: ` listed , ${run} `, selected: [1, 2, 3, 4, 5] },
    { selector: `!listed,${run}`, selected: [] },
    { selector: "listed=list-2", selected: [2] },
    { selector: "listed==list-2", selected: [2] },
    { selector: `listed!=list-2,${run}`, selected: [1, 3, 4, 5] },
    { selector: "listed in (list-1, list-3,absent)", selected: [1, 3] },
    { selector: `listed notin (list-1,list-3),${run}`, selected: [2, 4, 5] },
    { selector: "listed=", selected: [] },
    { selector: `${run}=`, selected: [1, 2, 3, 4, 5] },
  ];
  for (const { selector, selected } of selectors) {
    test(`select by ${selector.replace(run, "run")}`, async () => {
      assertEquals(await names(selecting(selector)), selected.map((number) => `list-${number}`));
    });
  }

  for (const selector of ["a b", "=a", "a in (", "a=b=c", ",", "!a=b", "a,,b", "a/b/c", "-a"]) {
    test(`refuse the selector ${selector} with a 400`, async () => {
      assertFailure(await get(selecting(selector)), 400, "BadRequest");
    });
  }

  test("in pages are those of the first page's moment", async () => {
    const first = (await get(`${secrets}?limit=2`)).body;
    const all = await names(secrets);
    assertEquals(first.metadata.remainingItemCount, all.length - 2);
    await create("after-the-first-page");
    await patch("list-5", { metadata: { labels: { changed: "1" } } });
    const found = first.items;
    let token = first.metadata.continue;
    while (token) {
      const { body } = await get(`${secrets}?limit=7&continue=${token}`);
      assertEquals(body.metadata.resourceVersion, first.metadata.resourceVersion);
      found.push(...body.items);
      token = body.metadata.continue;
    }
    assertEquals(found.map(({ metadata }: Json) => metadata.name), all);
    const last = found.find(({ metadata }: Json) => metadata.name === "list-5");
    assertEquals(last.metadata.labels.changed, undefined);
  });

  test("in pages keep the number of the rest to themselves under a selector", async () => {
    const { metadata, items } = (await get(`${selecting("listed")}&limit=4`)).body;
    assertEquals([items.length, metadata.remainingItemCount], [4, undefined]);
    const rest = await names(`${selecting("listed")}&limit=4&continue=${metadata.continue}`);
    assertEquals(rest, ["list-5"]);
  });

  test("go on with another limit, smaller or larger, without a gap or a repetition", async () => {
    const all = await names(selecting("listed"));
    let { metadata, items } = (await get(`${selecting("listed")}&limit=2`)).body;
    const seen = [...items];
    for (const limit of [1, 4, 1, 250]) {
      if (!metadata.continue) break;
      const page = await get(`${selecting("listed")}&limit=${limit}&continue=${metadata.continue}`);
      ({ metadata, items } = page.body);
      assert(items.length <= limit);
      seen.push(...items);
    }
    assertEquals(metadata.continue, undefined);
    assertEquals(seen.map(({ metadata }: Json) => metadata.name), all);
  });

  test("refuse a malformed continue, version or limit with a 400", async () => {
    const token = (await get(`${secrets}?limit=1`)).body.metadata.continue;
    for (
      const query of [
        "continue=abc",
        "resourceVersion=abc",
        "limit=abc",
        `continue=${token}&resourceVersion=1`,
      ]
    ) {
      assertFailure(await get(`${secrets}?${query}`), 400, "BadRequest");
    }
  });

  test("that go on from before a compaction are a 410 that offers the rest", async (context) => {
    const { continue: fresh } = (await get(`${selecting("listed")}&limit=2`)).body.metadata;
    const fields = JSON.parse(Buffer.from(fresh, "base64url").toString());
    const old = Buffer.from(JSON.stringify({ ...fields, rv: 1 })).toString("base64url");
    const answer = await get(`${selecting("listed")}&limit=2&continue=${old}`);
    if (answer.status === 200 && !server) return context.skip("nothing is compacted yet");
    assertFailure(answer, 410, "Expired");
    const rest = `${selecting("listed")}&continue=${answer.body.metadata.continue}`;
    assertEquals(await names(rest), ["list-3", "list-4", "list-5"]);
  });

  test("from a resource version of the future are a 504 that says when to come again", async () => {
    const answer = await get(`${secrets}?resourceVersion=999999999`);
    assertFailure(answer, 504, "Timeout");
    assertEquals(answer.body.details.retryAfterSeconds, 1);
  });
});

/** Each test sees only its own Secrets, by a label: they run at the same time where the runtime can. */
describe("watches", { concurrency: true }, () => {
  test("from a list's version give every change since, in order, one object a line", async () => {
    const resourceVersion = await version();
    const labels = { seen: "" };
    await create("seen", pullSecret(), { labels });
    const seen = await watch({ resourceVersion, labelSelector: "seen" });
    assertEquals(seen.status, 200);
    assertEquals(seen.headers["content-type"], "application/json");
    assertEquals(seen.headers["transfer-encoding"], "chunked");
    const added = await seen.next();
    assertEquals([added.type, added.object.metadata.name], ["ADDED", "seen"]);
    assertEquals([added.object.kind, added.object.apiVersion], ["Secret", "v1"]);
    const patched = (await patch("seen", { metadata: { labels: { a: "b" } } })).body;
    await patch("seen", { metadata: { labels: { a: "b" } } });
    await call("DELETE", `${secrets}/seen`);
    const modified = await seen.next();
    assertEquals([modified.type, modified.object], ["MODIFIED", patched]);
    const deleted = await seen.next();
    assertEquals([deleted.type, deleted.object.metadata.labels], ["DELETED", { a: "b", seen: "" }]);
    const [before, after] = [modified, deleted].map(({ object }) =>
      object.metadata.resourceVersion
    );
    assert(Number(after) > Number(before), "a deletion has a version of its own");
    await create("seen", {}, { labels });
    const again = await seen.next();
    assertEquals(again.type, "ADDED");
    assertNotEquals(again.object.metadata.uid, added.object.metadata.uid);
    seen.close();
  });

  test("without a resource version begin with what there is", async () => {
    await create("there", {}, { labels: { there: "" } });
    for (const resourceVersion of ["", "0"]) {
      const seen = await watch({ resourceVersion, labelSelector: "there" });
      const { type, object } = await seen.next();
      assertEquals([type, object.metadata.name], ["ADDED", "there"]);
      seen.close();
    }
  });

  test("see what enters their selector as ADDED, what leaves it as DELETED in its last state", async () => {
    await create("moving", { stringData: { key: "old" } });
    const seen = await watch({ labelSelector: "moving", resourceVersion: await version() });
    const changes = [
      { metadata: { labels: { moving: "1" } } },
      { metadata: { labels: { moving: "2" } } },
      { metadata: { labels: { moving: null } }, stringData: { key: "new" } },
      { metadata: { labels: { unseen: "" } } },
      { metadata: { labels: { moving: "3" } } },
    ];
    const versions: string[] = [];
    for (const change of changes) {
      versions.push((await patch("moving", change)).body.metadata.resourceVersion);
    }
    const expected = [
      { type: "ADDED", labels: { moving: "1" }, key: "old", at: versions[0] },
      { type: "MODIFIED", labels: { moving: "2" }, key: "old", at: versions[1] },
      { type: "DELETED", labels: { moving: "2" }, key: "old", at: versions[2] },
      { type: "ADDED", labels: { moving: "3", unseen: "" }, key: "new", at: versions[4] },
    ];
    for (const { type, labels, key, at } of expected) {
      const event = await seen.next();
      assertEquals(event.type, type);
      assertEquals(event.object.metadata.labels, labels);
      assertEquals(atob(event.object.data.key), key);
      assertEquals(event.object.metadata.resourceVersion, at);
    }
    seen.close();
  });

  test("of one namespace see no other, those of all see each", async () => {
    const resourceVersion = await version();
    const labels = { both: run };
    await create("mine", {}, { labels });
    await post(`/api/v1/namespaces/${other}/secrets`, { metadata: { name: "theirs", labels } });
    const query = { resourceVersion, labelSelector: `both=${run}`, timeoutSeconds: "1" };
    const mine = await (await watch(query)).rest();
    assertEquals(mine.map(({ object }) => object.metadata.name), ["mine"]);
    const all = await (await watch(query, "/api/v1/secrets")).rest();
    assertEquals(all.map(({ object }) => object.metadata.name), ["mine", "theirs"]);
  });

  test("end after timeoutSeconds, a bookmark 2 s before, and go on from it without repetition", async () => {
    const resourceVersion = await version();
    const selector = { labelSelector: "marked", allowWatchBookmarks: "true" };
    const start = Date.now();
    const first = await watch({ ...selector, resourceVersion, timeoutSeconds: "4" });
    await create("unmarked");
    await create("marked", {}, { labels: { marked: "" } });
    const all = await first.rest();
    const seconds = (Date.now() - start) / 1000;
    assert(seconds > 3.5 && seconds < 6, `it lived ${seconds} s`);
    const [added, bookmark, ...more] = all;
    assertEquals([added.type, bookmark.type], ["ADDED", "BOOKMARK"]);
    assert(more.every(({ type }) => type === "BOOKMARK"), "some servers send another one");
    const { kind, apiVersion, metadata } = bookmark.object;
    assertEquals([kind, apiVersion, Object.keys(metadata)], ["Secret", "v1", ["resourceVersion"]]);
    assert(Number(metadata.resourceVersion) >= Number(added.object.metadata.resourceVersion));
    const { resourceVersion: from } = metadata;
    const second = await watch({ ...selector, resourceVersion: from, timeoutSeconds: "2" });
    assertEquals(await second.rest(), []);
  });

  test("get no bookmarks without asking", async () => {
    const seen = await watch({
      resourceVersion: await version(),
      timeoutSeconds: "3",
      labelSelector: "none",
    });
    assertEquals(await seen.rest(), []);
  });

  test("from a version that is too old get one ERROR event of a 410 and end", async (context) => {
    const seen = await watch({ resourceVersion: "1", labelSelector: "none", timeoutSeconds: "2" });
    assertEquals(seen.status, 200);
    const all = await seen.rest();
    if (all.length === 0 && !server) return context.skip("it still knows its whole history");
    assertEquals(all.map(({ type }) => type), ["ERROR"]);
    const [{ object }] = all;
    const { kind, apiVersion, status, reason, code, message } = object;
    assertEquals(
      { kind, apiVersion, status, reason, code },
      { kind: "Status", apiVersion: "v1", status: "Failure", reason: "Expired", code: 410 },
    );
    assertMatch(message, /^too old resource version: 1 \(\d+\)$/);
  });

  test("from a version of the future wait for it in silence", async () => {
    const query = {
      resourceVersion: "999999999",
      allowWatchBookmarks: "true",
      timeoutSeconds: "3",
    };
    assertEquals(await (await watch(query)).rest(), []);
  });

  test("of a malformed version, time-out or selector are refused", async () => {
    const malformed = [
      { query: "resourceVersion=abc", status: 500 },
      { query: "timeoutSeconds=abc", status: 400 },
      { query: "labelSelector=a%20b", status: 400 },
    ];
    for (const { query, status } of malformed) {
      const answer = await get(`${secrets}?watch=true&${query}`);
      assertEquals([answer.status, answer.body.kind], [status, "Status"]);
    }
  });
});

describe("token requests", () => {
  before(async () => {
    assertEquals((await post(accounts, { metadata: { name: "account" } })).status, 201);
  });

  function ask(spec: object, account = "account"): Promise<Answer> {
    const kind = { kind: "TokenRequest", apiVersion: "authentication.k8s.io/v1" };
    return post(`${accounts}/${account}/token`, { ...kind, spec });
  }

  test("yield a JWT of the account for the audience and the time asked for", async () => {
    const { status, body } = await ask({
      audiences: ["issuer.enforce.dev"],
      expirationSeconds: 600,
    });
    assertEquals(status, 201);
    const { token, expirationTimestamp } = body.status;
    const { issuer } = (await get("/.well-known/openid-configuration")).body;
    const keys = createLocalJWKSet((await get("/openid/v1/jwks")).body);
    const { payload, protectedHeader } = await jwtVerify(token, keys, { issuer });
    assertEquals(protectedHeader.alg, "RS256");
    assertEquals(payload.aud, ["issuer.enforce.dev"]);
    assertEquals(payload.sub, `system:serviceaccount:${run}:account`);
    assertEquals(payload.exp! - payload.iat!, 600);
    assertEquals(payload.exp! * 1000, Date.parse(expirationTimestamp));
    const bound = payload["kubernetes.io"] as Json;
    assertEquals([bound.namespace, bound.serviceaccount.name], [run, "account"]);
  });

  test("without an audience yield a token that the server itself accepts, without any right", async () => {
    const { body: { status: { token } } } = await ask({});
    const { sub } = decodeJwt(token);
    for (
      const [path, where] of [[secrets, `in the namespace "${run}"`], [
        "/api/v1/secrets",
        "at the cluster scope",
      ]]
    ) {
      const answer = await call("GET", path!, undefined, undefined, token);
      assertFailure(answer, 403, "Forbidden");
      assertEquals(answer.body.details, { kind: "secrets" });
      assertEquals(
        answer.body.message,
        `secrets is forbidden: User "${sub}" cannot list resource "secrets" in API group "" ${where}`,
      );
    }
    const answer = await call("POST", `${accounts}/account/token`, { spec: {} }, undefined, token);
    assertFailure(answer, 403, "Forbidden");
    assertStringIncludes(answer.body.message, `cannot create resource "serviceaccounts/token"`);
  });

  test("for less than 10 minutes are a 422", async () => {
    assertInvalid(
      await ask({ expirationSeconds: 599 }),
      "FieldValueInvalid",
      "spec.expirationSeconds",
    );
  });

  test("for an account that does not exist are a 404 that names it", async () => {
    const answer = await ask({}, "absent");
    assertFailure(answer, 404, "NotFound");
    assertEquals(answer.body.details, { name: "absent", kind: "serviceaccounts" });
  });

  test("with fields of a wrong type are a 400", async () => {
    for (const spec of [{ audiences: "text" }, { expirationSeconds: 600.5 }]) {
      assertFailure(await ask(spec), 400, "BadRequest");
    }
  });
});

describe("events", () => {
  const event = {
    kind: "Event",
    apiVersion: "events.k8s.io/v1",
    metadata: { generateName: "pull-secret-" },
    eventTime: "2026-01-02T03:04:05.678900Z",
    reportingController: "example.com/controller",
    reportingInstance: "controller-0",
    action: "Refresh",
    reason: "TokenIssued",
    type: "Normal",
    note: "x".repeat(1024),
    regarding: { apiVersion: "v1", kind: "Secret", namespace: run, name: "pull-secret" },
  };

  test("are stored as sent", async () => {
    const { status, body } = await post(events, event);
    assertEquals(status, 201);
    for (const field of ["eventTime", "action", "reason", "type", "note", "regarding"] as const) {
      assertEquals(body[field], event[field]);
    }
    assert((await names(events)).includes(body.metadata.name));
  });

  const REQUIRED = "FieldValueRequired";
  const INVALID = "FieldValueInvalid";
  const invalid = [
    { title: "no eventTime", change: { eventTime: null }, reason: REQUIRED, field: "eventTime" },
    { title: "another type", change: { type: "Error" }, reason: INVALID, field: "type" },
    {
      title: "no reportingController",
      change: { reportingController: "" },
      reason: REQUIRED,
      field: "reportingController",
    },
    {
      title: "spaces in the reportingController",
      change: { reportingController: "a b" },
      reason: INVALID,
      field: "reportingController",
    },
    {
      title: "no reportingInstance",
      change: { reportingInstance: "" },
      reason: REQUIRED,
      field: "reportingInstance",
    },
    { title: "no action", change: { action: "" }, reason: REQUIRED, field: "action" },
    { title: "no reason", change: { reason: "" }, reason: REQUIRED, field: "reason" },
    {
      title: "a reason of 129 characters",
      change: { reason: "x".repeat(129) },
      reason: INVALID,
      field: "reason",
    },
    {
      title: "a note of more than 1024 bytes",
      change: { note: "é".repeat(513) },
      reason: INVALID,
      field: "message",
    },
    {
      title: "nothing that they regard",
      change: { regarding: null },
      reason: INVALID,
      field: "involvedObject.namespace",
    },
    {
      title: "a dot at the end of generateName",
      change: { metadata: { generateName: "a." } },
      reason: INVALID,
      field: "metadata.generateName",
    },
    {
      title: "a series of one",
      change: { series: { count: 1, lastObservedTime: event.eventTime } },
      reason: INVALID,
      field: "series.count",
    },
    {
      title: "a deprecated count",
      change: { deprecatedCount: 1 },
      reason: INVALID,
      field: "count",
    },
  ];
  for (const { title, change, reason, field } of invalid) {
    test(`may not have ${title}`, async () => {
      assertInvalid(await post(events, { ...event, ...change }), reason, field);
    });
  }

  for (const eventTime of ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.678Z"]) {
    test(`may not have the time ${eventTime}, which lacks microseconds`, async () => {
      assertFailure(await post(events, { ...event, eventTime }), 400, "BadRequest");
    });
  }
});

describe("the server", () => {
  test("is ready", async () => {
    const { status, body } = await get("/readyz");
    assertEquals([status, body], [200, "ok"]);
  });

  test("answers a wrong bearer token with a 401", async () => {
    for (const bearer of ["nonsense", decodable()]) {
      const answer = await call("GET", secrets, undefined, undefined, bearer);
      assertFailure(answer, 401, "Unauthorized");
      assertEquals(answer.body.message, "Unauthorized");
    }
  });
});

/** A JWT that nobody signed. */
function decodable(): string {
  const parts = [{ alg: "RS256" }, { sub: "x", exp: 4102444800 }];
  return [...parts.map((part) => btoa(JSON.stringify(part))), "c2ln"].join(".").replace(/=/g, "");
}

function base64Bytes(length: number): string {
  return Buffer.alloc(length).toString("base64");
}
