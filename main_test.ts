/**
 * The rules of the controller, as tests: each title states one. The whole controller runs in virtual time
 * (dev/virtual.ts); nothing here sleeps, opens a socket or depends on chance.
 */
import process from "node:process";
import { test } from "node:test";
import {
  assert,
  assertEquals,
  assertMatch,
  assertNotEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import fc from "fast-check";
import { CONTROLLER, type Fault, LABEL, type Replica, VirtualWorld } from "./dev/virtual.ts";
import { ApiError, parseWatch, type Secret, type WatchEvent } from "./k8s.ts";
import {
  clean,
  ConfigError,
  createLog,
  decide,
  observe,
  readConfig,
  refreshDelay,
  withToken,
} from "./main.ts";
import { decode, findFlaw, readAnswer, StsError, verify } from "./sts.ts";

const PREFIX = "pull-secret-updater.chainguard.dev/";
const [IDENTITY, ACCOUNT, REFRESH] = [LABEL, `${PREFIX}service-account`, `${PREFIX}refresh`];
const [TOKEN_IDENTITY, TOKEN_EXPIRES] = [`${PREFIX}token-identity`, `${PREFIX}token-expires`];
const TYPE = "kubernetes.io/dockerconfigjson";
const DATA_KEY = ".dockerconfigjson";
const S = 1000;
const MIN = 60 * S;
const HOUR = 60 * MIN;
const NOW = Date.parse("2027-06-01T12:00:00Z");

/** The identity of a number, under one organisation. */
const identityOf = (number: number) => `${"a".repeat(40)}/${number.toString(16).padStart(16, "0")}`;
const ALICE = identityOf(1);
const BOB = identityOf(2);

const base64 = (text: string | Uint8Array) => Buffer.from(text as string).toString("base64");
const part = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");

/** A token for Alice that was issued now and lives an hour, unless the claims say otherwise. */
function token(claims: Record<string, unknown> = {}): string {
  const all = { aud: "cgr.dev", sub: ALICE, iat: NOW / S, exp: NOW / S + 3600, ...claims };
  return `${part({ alg: "RS256" })}.${part(all)}.c2lnbmF0dXJl`;
}

const entryOf = (jwt: string, user = "_token") => ({ auth: base64(`${user}:${jwt}`) });
const configOf = (jwt: string, ...hosts: string[]) =>
  JSON.stringify({
    auths: Object.fromEntries(
      (hosts.length ? hosts : ["cgr.dev"]).map((host) => [host, entryOf(jwt)]),
    ),
  });

interface Parts {
  namespace?: string;
  identity?: string;
  label?: string;
  annotations?: Record<string, string>;
  config?: string | Uint8Array;
  type?: string;
  immutable?: boolean;
  deletionTimestamp?: string;
}

/** A Secret as a user makes it, for Alice unless `identity` or `label` says otherwise. */
function secret(name: string, parts: Parts = {}): Secret {
  const {
    namespace = "apps",
    label = "",
    identity = label ? "" : ALICE,
    annotations,
    config = "{}",
  } = parts;
  const { type = TYPE, immutable, deletionTimestamp } = parts;
  return {
    metadata: {
      namespace,
      name,
      uid: "uid-0",
      resourceVersion: "1",
      ...(deletionTimestamp && { deletionTimestamp }),
      labels: { [IDENTITY]: label },
      annotations: { ...(identity && { [IDENTITY]: identity }), ...annotations },
    },
    type,
    ...(immutable !== undefined && { immutable }),
    data: { [DATA_KEY]: base64(config) },
  };
}

const look = (parts: Parts, registries = ["cgr.dev"]) =>
  observe(secret("a", parts), {
    audience: "cgr.dev",
    registries,
    ownNamespace: "pull-secret-updater",
  });

/** The verdict at the instant `now`, for one that is not due. */
const verdict = (parts: Parts, now = NOW, registries = ["cgr.dev"]) =>
  decide(look(parts, registries), now, Infinity);
const problem = (parts: Parts) => look(parts).problem?.reason;

/** A test in a world of its own; whatever happened in it, nothing else was written, and no token was told. */
function rule(title: string, run: (world: VirtualWorld) => Promise<void>, seed = 1): void {
  test(title, async () => {
    const world = new VirtualWorld(seed);
    await run(world);
    for (const replica of world.replicas) replica.stop();
    await world.clock.advance(0);
    assertEquals(world.broken, []);
    assertEquals(world.findLeak(), undefined);
  });
}

const written = (world: VirtualWorld, name?: string) =>
  world.cluster.requests.filter(({ verb, status, ...own }) =>
    verb === "patch" && status === 200 && own.name === (name ?? own.name)
  );
const asked = (world: VirtualWorld, verb: string, name?: string) =>
  world.cluster.requests.filter((request) =>
    request.verb === verb && request.name === (name ?? request.name)
  );
const told = (world: VirtualWorld, reason: string) =>
  world.cluster.events.filter((event) => event.reason === reason);

/** The token that a Secret holds for a registry. */
function jwtOf({ data }: Secret, host = "cgr.dev"): string | undefined {
  const { auths } = JSON.parse(Buffer.from(data![DATA_KEY]!, "base64").toString());
  return auths?.[host] &&
    Buffer.from(auths[host].auth, "base64").toString().slice("_token:".length);
}
const held = (world: VirtualWorld, name = "a", namespace = "apps") =>
  jwtOf(world.cluster.get(`${namespace}/${name}`));
const claimsOf = (jwt = "") => decode(jwt)!;

/** How often all was listed; a list may also ask for the newest version only. */
const wholeLists = (world: VirtualWorld) =>
  world.lines.filter((line) => line.includes('"msg":"listed"')).length;

/** For how long Secrets held tokens that had expired, in true time. */
function expiredFor(world: VirtualWorld): number {
  const since = new Map<string, { now: number; expiresAt: number }>();
  let sum = 0;
  function close(key: string, now: number): void {
    const last = since.get(key);
    if (last) sum += Math.max(0, now - Math.max(last.now, last.expiresAt));
    since.delete(key);
  }
  for (const { now, type, secret } of world.cluster.history) {
    const key = `${secret.metadata.namespace}/${secret.metadata.name}`;
    close(key, now);
    const jwt = type === "DELETED" ? undefined : jwtOf(secret);
    if (jwt) since.set(key, { now, expiresAt: claimsOf(jwt).expiresAt });
  }
  for (const key of since.keys()) close(key, world.clock.now());
  return sum;
}

/** The most that were under way at once. */
function peak(requests: { at: number; endedAt: number }[]): number {
  return Math.max(
    0,
    ...requests.map(({ at }) =>
      requests.filter((other) => other.at <= at && at < other.endedAt).length
    ),
  );
}

const gaps = (times: number[]) => times.slice(1).map((time, index) => time - times[index]!);
const blank = { data: { [DATA_KEY]: base64('{"auths":{}}') } };
const annotate = (annotations: Record<string, string | null>) => ({ metadata: { annotations } });

/** What the issuer's answer makes of an exchange. */
function answer(status: number, message = "no", retryAfter = ""): Error {
  return assertThrows(
    () => readAnswer(status, JSON.stringify({ code: 7, message }), retryAfter),
    StsError,
  );
}
const apiAnswer = (status: number, retryAfter = "") =>
  new ApiError(`answered ${status}`, { status, retryAfter });

function metric(replica: Replica, series: string): number | undefined {
  const line = replica.renderMetrics().split("\n").find((line) =>
    line.startsWith(`pull_secret_updater_${series} `)
  );
  return line === undefined ? undefined : +line.split(" ").at(-1)!;
}

// ───── The verdict ─────

test("1. A Secret that is being deleted is skipped, and nothing is reported", () => {
  assertEquals(verdict({ deletionTimestamp: "2027-06-01T12:00:00Z" }), "skip");
  assertEquals(problem({ deletionTimestamp: "2027-06-01T12:00:00Z" }), undefined);
});

test("1. The label names the identity with dots for slashes, at any depth", () => {
  const deep = `${ALICE}/${"b".repeat(16)}/${"0".repeat(16)}`;
  assertEquals(look({ label: ALICE.replace("/", ".") }).identity, ALICE);
  assertEquals(look({ label: deep.replaceAll("/", ".") }).identity, deep);
  assertEquals(look({ label: "f".repeat(40) }).problem, undefined);
});

test("1. The annotation wins over the label unless it is empty", () => {
  const label = BOB.replace("/", ".");
  assertEquals(look({ label, identity: ALICE }).identity, ALICE);
  assertEquals(look({ label, annotations: { [IDENTITY]: "" } }).identity, BOB);
  assertEquals(problem({ label, identity: "nonsense" }), "InvalidIdentity");
});

test("1. What is no identity's UID is skipped and reported: both empty, dots in the annotation, any other form", () => {
  const wrong = [
    ALICE.replace("/", "."),
    ALICE.toUpperCase(),
    ` ${ALICE}`,
    `${ALICE}\n`,
    `${ALICE}/`,
    `${ALICE}/12`,
    `/${ALICE}`,
    "a".repeat(39),
    "a".repeat(41),
    "g".repeat(40),
    `${ALICE}/../${BOB}`,
    "__proto__",
  ];
  for (const identity of wrong) {
    assertEquals(problem({ identity }), "InvalidIdentity", identity);
    assertEquals(verdict({ identity }), "skip", identity);
  }
  assertEquals(problem({ identity: "", label: "" }), "InvalidIdentity");
  assertEquals(problem({ label: ALICE.replace("/", "-") }), "InvalidIdentity");
  const bare = secret("a");
  delete bare.metadata.annotations;
  const facts = observe(bare, { audience: "cgr.dev", registries: ["cgr.dev"], ownNamespace: "x" });
  assertEquals(facts.problem?.reason, "InvalidIdentity");
  assertStringIncludes(facts.problem!.message, `set the annotation ${IDENTITY}`);
});

test("1. A service account that cannot be one is skipped and reported, also the empty one", () => {
  for (
    const account of [
      "",
      "..",
      ".",
      "a/b",
      "A",
      "a_b",
      "-a",
      "a-",
      "a..b",
      "a b",
      "a\n",
      "a%2fb",
      "a".repeat(254),
    ]
  ) {
    assertEquals(problem({ annotations: { [ACCOUNT]: account } }), "InvalidIdentity", account);
    assertEquals(verdict({ annotations: { [ACCOUNT]: account } }), "skip", account);
  }
  for (const account of ["default", "a.b-c.d", "0", "a".repeat(253)]) {
    assertEquals(look({ annotations: { [ACCOUNT]: account } }).problem, undefined, account);
    assertEquals(look({ annotations: { [ACCOUNT]: account } }).account, account);
  }
});

test("1. A service account of the controller's own namespace is never used", () => {
  const annotations = { [ACCOUNT]: "controller" };
  assertEquals(problem({ namespace: "pull-secret-updater", annotations }), "InvalidIdentity");
  assertEquals(look({ namespace: "pull-secret-updater" }).problem, undefined);
});

test("2. Another type, and an immutable Secret, are skipped and reported, whatever they hold", () => {
  for (
    const parts of [{ type: "Opaque" }, { type: "kubernetes.io/dockercfg" }, { type: "" }, {
      immutable: true,
    }]
  ) {
    assertEquals(problem(parts), "UnsupportedSecret", JSON.stringify(parts));
    assertEquals(verdict({ ...parts, config: configOf(token()) }), "skip");
  }
  assertEquals(problem({ immutable: false }), undefined);
  assertStringIncludes(look({ type: "Opaque" }).problem!.message, "Opaque");
});

test("3. What is not a docker config is skipped and reported, and nothing of it is quoted", () => {
  const wrong: (string | Uint8Array)[] = [
    "",
    "null",
    "[]",
    "1",
    '"hunter2"',
    '{"auths":[]}',
    '{"auths":"hunter2"}',
    '{"auths":0}',
    '{"auths":false}',
    '{"auths":{}',
    "{'auths':{}}",
    "\ufeff{}",
    new Uint8Array([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d]),
  ];
  for (const config of wrong) {
    const about = `${config}`.slice(0, 40);
    assertEquals(problem({ config }), "InvalidDockerConfig", about);
    assertEquals(verdict({ config }), "skip", about);
    assert(!look({ config }).problem!.message.includes("hunter2"));
  }
  const facts = (data?: Record<string, string>) =>
    observe({ ...secret("a"), data }, {
      audience: "cgr.dev",
      registries: ["cgr.dev"],
      ownNamespace: "x",
    });
  assertEquals(facts(undefined).problem?.reason, "InvalidDockerConfig");
  assertEquals(facts({}).problem?.reason, "InvalidDockerConfig");
  assertEquals(facts({ [DATA_KEY]: "%%%" }).problem?.reason, "InvalidDockerConfig");
});

test("3. JSON of any depth is looked at without harm", () => {
  const deep = (open: string, close: string) => open.repeat(100_000) + "1" + close.repeat(100_000);
  for (
    const config of [
      deep('{"a":', "}"),
      `{"auths":${deep("[", "]")}}`,
      `{"auths":{"cgr.dev":${deep('{"auth":', "}")}}}`,
    ]
  ) {
    assert(["missing", "skip"].includes(verdict({ config })));
  }
  assertEquals(verdict({ config: `{"auths":{"cgr.dev":{"auth":${deep("[", "]")}}}}` }), "missing");
});

test("3. An empty docker config, and auths of null, are filled", () => {
  for (
    const config of [
      "{}",
      '{"auths":null}',
      '{"auths":{}}',
      ' {"auths" : { } }\n',
      '{"credsStore":"x"}',
    ]
  ) {
    assertEquals(verdict({ config }), "missing", config);
  }
});

test("4. A new refresh value is requested, whatever the token; the one that was satisfied is not", () => {
  const config = configOf(token());
  assertEquals(verdict({ config, annotations: { [REFRESH]: "1" } }), "requested");
  assertEquals(verdict({ config, annotations: { [REFRESH]: "" } }), "requested");
  assertEquals(verdict({ annotations: { [REFRESH]: "1" } }), "requested");
  const facts = look({ config, annotations: { [REFRESH]: "2" } });
  assertEquals(decide(facts, NOW, Infinity, "1"), "requested");
  assertEquals(decide(facts, NOW, Infinity, "2"), "wait");
  assertEquals(verdict({ type: "Opaque", annotations: { [REFRESH]: "1" } }), "skip");
});

test("5. What is not ours in any one way is missing", () => {
  const iat = NOW / S;
  const wrong: Record<string, object> = {
    "another user": entryOf(token(), "someone"),
    "a pull token's user": entryOf(token(), ALICE),
    "no user": { auth: base64(token()) },
    "no token": entryOf(""),
    "not a JWT": entryOf("a.b.c"),
    "an audience that is another": entryOf(token({ aud: "cgr.example" })),
    "an audience that only begins so": entryOf(token({ aud: ["cgr.dev.example", "xcgr.dev"] })),
    "no audience": entryOf(token({ aud: undefined })),
    "an audience that is an object": entryOf(token({ aud: { "cgr.dev": 1 } })),
    "no subject": entryOf(token({ sub: undefined })),
    "no expiry": entryOf(token({ exp: undefined })),
    "an expiry that is text": entryOf(token({ exp: `${iat + 60}` })),
    "an expiry before its issue": entryOf(token({ exp: iat - 1 })),
    "an issue that is null": entryOf(token({ iat: null })),
    "issued over 60 s in the future": entryOf(token({ iat: iat + 61, exp: iat + 3600 })),
    "a life of over 24 h": entryOf(token({ exp: iat + 86_401 })),
    "24 h and more to live, begun in the past": entryOf(token({ iat: iat - 86_400, exp: iat + 1 })),
    "24 h and more to live, issued a bit in the future": entryOf(
      token({ iat: iat + 30, exp: iat + 86_420 }),
    ),
    "24 h and more to live, no issue": entryOf(token({ iat: undefined, exp: iat + 86_401 })),
    "an expiry beyond all dates": entryOf(token({ iat: undefined, exp: 1e20 })),
    "over 16 KiB": entryOf(
      token({ pad: "x".repeat(Math.floor((16 * 1024 - token({ pad: "" }).length) * 3 / 4) + 3) }),
    ),
    "user and password apart": { username: "_token", password: token() },
    "null": { auth: null },
  };
  for (const [what, entry] of Object.entries(wrong)) {
    assertEquals(
      verdict({ config: JSON.stringify({ auths: { "cgr.dev": entry } }) }),
      "missing",
      what,
    );
  }
  for (const entry of ["null", "1", '"x"', "[]"]) {
    assertEquals(verdict({ config: `{"auths":{"cgr.dev":${entry}}}` }), "missing", entry);
  }
});

test("5. What is at the limit is ours", () => {
  const iat = NOW / S;
  const right: Record<string, Record<string, unknown>> = {
    "the audience among others": { aud: ["x", "cgr.dev"] },
    "issued 60 s in the future": { iat: iat + 60 },
    "a life of 24 h": { exp: iat + 86_400 },
    "no issue": { iat: undefined },
    "16 KiB": { pad: "x".repeat(Math.floor((16 * 1024 - token({ pad: "" }).length) * 3 / 4) - 1) },
  };
  for (const [what, claims] of Object.entries(right)) {
    assertEquals(verdict({ config: configOf(token(claims)) }), "wait", what);
  }
});

test("5. Each of the registries has to hold a token of ours", () => {
  const registries = ["cgr.dev", "apk.cgr.dev"];
  assertEquals(verdict({ config: configOf(token(), ...registries) }, NOW, registries), "wait");
  assertEquals(verdict({ config: configOf(token()) }, NOW, registries), "missing");
  assertEquals(verdict({ config: configOf(token(), "apk.cgr.dev") }, NOW, ["cgr.dev"]), "missing");
  const mixed = {
    auths: { "cgr.dev": entryOf(token()), "apk.cgr.dev": entryOf(token({ sub: BOB })) },
  };
  assertEquals(verdict({ config: JSON.stringify(mixed) }, NOW, registries), "identity-changed");
});

test("1. Labels and annotations that are null count as none", () => {
  const bare = {
    ...secret("a"),
    metadata: { ...secret("a").metadata, labels: null, annotations: null },
  };
  const config = { audience: "cgr.dev", registries: ["cgr.dev"], ownNamespace: "x" };
  const { isGone, problem } = observe(bare as unknown as Secret, config);
  assertEquals([isGone, problem?.reason], [true, "InvalidIdentity"]);
});

test("5. Names of what every object has are no registry's entries", () => {
  for (const host of ["constructor", "valueof", "tostring"]) {
    assertEquals(verdict({}, NOW, [host]), "missing", host);
  }
  assertEquals(
    verdict({ config: `{"auths":{"__proto__":{"cgr.dev":${JSON.stringify(entryOf(token()))}}}}` }),
    "missing",
  );
  assertEquals(
    verdict({ config: `{"__proto__":{"auths":{"cgr.dev":${JSON.stringify(entryOf(token()))}}}}` }),
    "missing",
  );
});

test("5. An auth that is not text is no entry of ours, which is replaced", () => {
  for (const auth of [1, null, {}, { toString: 1 }, [[]], "?"]) {
    assertEquals(
      verdict({ config: JSON.stringify({ auths: { "cgr.dev": { auth } } }) }),
      "missing",
      JSON.stringify(auth),
    );
  }
});

test("6. A token of another identity is replaced", () => {
  assertEquals(verdict({ config: configOf(token({ sub: BOB })) }), "identity-changed");
  assertEquals(
    verdict({ config: configOf(token({ sub: `${ALICE}/${"0".repeat(16)}` })) }),
    "identity-changed",
  );
});

test("6. Where the token's subject is no UID, the annotation token-identity counts", () => {
  const config = configOf(token({ sub: "user@example.com" }));
  assertEquals(verdict({ config }), "identity-changed");
  assertEquals(verdict({ config, annotations: { [TOKEN_IDENTITY]: BOB } }), "identity-changed");
  assertEquals(verdict({ config, annotations: { [TOKEN_IDENTITY]: ALICE } }), "wait");
  assertEquals(
    verdict({ config: configOf(token()), annotations: { [TOKEN_IDENTITY]: BOB } }),
    "wait",
  );
});

test("6. A token that was exchanged for another service account's is replaced; one that does not say so stays", () => {
  const sub = (account: string, namespace = "apps") => ({
    act: { sub: `system:serviceaccount:${namespace}:${account}` },
  });
  const asked = { [ACCOUNT]: "puller" };
  const of = (claims: Record<string, unknown>, annotations?: Record<string, string>) =>
    verdict({ config: configOf(token(claims)), annotations });
  assertEquals(of(sub("puller"), asked), "wait");
  assertEquals(of(sub("other"), asked), "identity-changed");
  assertEquals(of(sub("puller", "elsewhere"), asked), "identity-changed");
  assertEquals(of({ act: { sub: CONTROLLER } }, asked), "identity-changed");
  assertEquals(of({}, asked), "wait");
  assertEquals(of({ act: {} }, asked), "wait");
  assertEquals(of({ act: null }, asked), "wait");
  assertEquals(of({ act: "x" }, asked), "wait");
  assertEquals(of({ act: { sub: 1 } }, asked), "wait");
  assertEquals(of({ act: { sub: CONTROLLER } }), "wait");
  // The annotation was taken off: the controller itself is meant again.
  assertEquals(of(sub("puller")), "identity-changed");
});

test("6. A Secret of the controller's own namespace is valid with the controller's own token", () => {
  const jwt = token({ act: { sub: CONTROLLER } });
  const own = secret("a", { namespace: "pull-secret-updater", config: configOf(jwt) });
  const facts = observe(own, {
    audience: "cgr.dev",
    registries: ["cgr.dev"],
    ownNamespace: "pull-secret-updater",
  });
  assertEquals(decide(facts, NOW, Infinity), "wait");
});

test("7. A token that has expired is replaced, at the very instant", () => {
  const config = configOf(token({ exp: NOW / S + 60 }));
  assertEquals(verdict({ config }, NOW + 60 * S - 1), "wait");
  assertEquals(verdict({ config }, NOW + 60 * S), "expired");
  assertEquals(
    verdict({
      config: configOf(token({ exp: NOW / S - 86_400 * 365, iat: NOW / S - 86_400 * 366 })),
    }),
    "expired",
  );
});

test("8. Otherwise it waits until it is due", () => {
  const facts = look({ config: configOf(token()) });
  assertEquals(decide(facts, NOW, NOW + 1), "wait");
  assertEquals(decide(facts, NOW, NOW), "due");
});

test("8. The wait is a fraction of the token's life: from now for one that arrived, else from its issue", () => {
  const claims = claimsOf(token());
  assertEquals(refreshDelay(claims, 0.7, NOW, true), 0.7 * HOUR);
  assertEquals(refreshDelay(claims, 0.7, NOW + 600 * S, false), 0.7 * HOUR - 600 * S);
  // The issuer's clock is 30 s ahead: its tokens live as long as they say all the same.
  assertEquals(refreshDelay(claims, 0.7, NOW - 30 * S, true), 0.7 * HOUR);
  // Without a time of issue, an hour is assumed.
  const bare = claimsOf(token({ iat: undefined, exp: NOW / S + 600 }));
  assertEquals(refreshDelay(bare, 0.7, NOW, false), 600 * S - 0.3 * HOUR);
  assertEquals(refreshDelay(bare, 0.7, NOW, true), 0.7 * 600 * S);
});

test("A token that the issuer gave is judged, and each flaw has a message of its own", () => {
  const iat = NOW / S;
  const judge = (claims: Record<string, unknown>) => verify(token(claims), ALICE, "cgr.dev", NOW);
  const flaws: [Record<string, unknown>, string][] = [
    [{ sub: BOB }, "another identity's"],
    [{ aud: "x" }, "its audience is x, not cgr.dev"],
    [{ sub: undefined }, "not a JWT with a subject and an expiry"],
    [{ exp: undefined }, "not a JWT with a subject and an expiry"],
    [{ exp: iat + 4 }, "within 5 s"],
    [{ iat: iat - 60, exp: iat - 1 }, "within 5 s"],
    [{ iat: iat + 61 }, "in the future"],
    [{ exp: iat + 86_401 }, "longer than a day"],
    [{ pad: "x".repeat(16 * 1024) }, "not a JWT"],
  ];
  for (const [claims, message] of flaws) {
    const error = assertThrows(() => judge(claims), StsError, message);
    assert(error.refused, message);
  }
  assertEquals(judge({}).expiresAt, (iat + 3600) * S);
  for (
    const claims of [{ sub: "user@example.com" }, { exp: iat + 5 }, { iat: iat + 60 }, {
      iat: undefined,
    }, {
      exp: iat + 86_400,
    }]
  ) {
    assertEquals(judge(claims).audiences, ["cgr.dev"]);
  }
});

// ───── What is written ─────

test("The token replaces our entries whole, and all else stays equal", () => {
  const before =
    '{"a":[1,{"b":null}],"auths":{"z.example":{"auth":"eA==","email":"é"},"cgr.dev":{"auth":"old","email":"x"}},"credsStore":""}';
  const after = JSON.parse(withToken(before, ["cgr.dev", "x.cgr.dev"], "t.t.t"));
  assertEquals(after, {
    a: [1, { b: null }],
    credsStore: "",
    auths: {
      "z.example": { auth: "eA==", email: "é" },
      "cgr.dev": entryOf("t.t.t"),
      "x.cgr.dev": entryOf("t.t.t"),
    },
  });
});

test("Numbers are kept to the last digit", () => {
  const after = withToken('{"a":12345678901234567890,"b":1.0,"c":1e400,"d":-0,"e":[1E+2]}', [
    "cgr.dev",
  ], "t");
  for (const text of ['"a":12345678901234567890', '"b":1.0', '"c":1e400', '"d":-0', '"e":[1E+2]']) {
    assertStringIncludes(after, text);
  }
});

test("Keys such as __proto__ are kept and reach nothing", () => {
  const after = withToken(
    '{"__proto__":{"x":1},"auths":{"__proto__":{"auth":"eA=="},"constructor":1}}',
    ["cgr.dev"],
    "t",
  );
  assertStringIncludes(after, '"__proto__":{"x":1}');
  assertStringIncludes(after, '"__proto__":{"auth":"eA=="}');
  assertStringIncludes(after, '"constructor":1');
  assertEquals(({} as Record<string, unknown>).x, undefined);
});

// ───── Configuration ─────

const IN_CLUSTER = { KUBERNETES_SERVICE_HOST: "10.0.0.1", KUBERNETES_SERVICE_PORT: "443" };
const configure = (env: Record<string, string>) =>
  readConfig((name) => ({ ...IN_CLUSTER, ...env })[name]);

test("Every variable has the default that the README names", () => {
  assertEquals(configure({}), {
    api: {
      url: "https://10.0.0.1:443",
      tokenFile: "/var/run/secrets/kubernetes.io/serviceaccount/token",
      caFile: "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
    },
    namespaces: [undefined],
    ownNamespace: "pull-secret-updater",
    issuer: "https://issuer.enforce.dev",
    audience: "cgr.dev",
    registries: ["cgr.dev"],
    subjectTokenFile: "/var/run/chainguard/oidc/oidc-token",
    httpsProxy: undefined,
    noProxy: "",
    port: 8080,
    logLevel: "info",
  });
  assert(Object.isFrozen(configure({})));
});

test("A variable that is set is taken; an empty one counts as unset", () => {
  assertEquals(configure({ ISSUER_URL: "" }).issuer, "https://issuer.enforce.dev");
  assertEquals(
    configure({ ISSUER_URL: "https://issuer.example/" }).issuer,
    "https://issuer.example",
  );
  assertEquals(configure({ ISSUER_URL: "http://127.0.0.1:8002" }).issuer, "http://127.0.0.1:8002");
  assertEquals(configure({ ISSUER_URL: "http://[::1]:8002" }).issuer, "http://[::1]:8002");
  assertEquals(configure({ ISSUER_URL: "http://localhost" }).issuer, "http://localhost");
  assertEquals(configure({ AUDIENCE: "x" }).audience, "x");
  assertEquals(configure({ REGISTRIES: "cgr.dev, apk.cgr.dev:5000,cgr.dev" }).registries, [
    "cgr.dev",
    "apk.cgr.dev:5000",
  ]);
  assertEquals(configure({ WATCH_NAMESPACES: "a,b" }).namespaces, ["a", "b"]);
  assertEquals(configure({ KUBERNETES_SERVICE_HOST: "fd00::1" }).api.url, "https://[fd00::1]:443");
  assertEquals(configure({ SERVICE_ACCOUNT_DIR: "/sa" }).api.tokenFile, "/sa/token");
  assertEquals(configure({ SUBJECT_TOKEN_FILE: "token" }).subjectTokenFile, "token");
  assertEquals(
    configure({ HTTPS_PROXY: "http://u:p@proxy:3128" }).httpsProxy,
    "http://u:p@proxy:3128",
  );
  assertEquals(configure({ NO_PROXY: "a,b" }).noProxy, "a,b");
  assertEquals(configure({ PORT: "65535", LOG_LEVEL: "debug" }).port, 65535);
  const proxied = { KUBERNETES_API: "http://127.0.0.1:8001", SERVICE_ACCOUNT_DIR: "." };
  assertEquals(configure(proxied).api, {
    url: "http://127.0.0.1:8001",
    tokenFile: undefined,
    caFile: undefined,
  });
});

test("A bad value ends it with one line: the variable, the value and what is allowed", () => {
  const wrong: Record<string, [string[], string]> = {
    ISSUER_URL: [[
      "http://issuer.example",
      "issuer.example",
      "https://u@x",
      "https://x?a=b",
      "https://x#a",
      "ftp://x",
      "http://localhost.example",
    ], "https URL"],
    KUBERNETES_API: [["http://10.0.0.1:8001", "https://u:p@x", "8001"], "https URL"],
    KUBERNETES_SERVICE_HOST: [["a/b", "a b", "a@b"], "a host"],
    KUBERNETES_SERVICE_PORT: [["0", "65536", "x", "-1"], "a port"],
    AUDIENCE: [["a b", "a\nb", "é"], "without spaces"],
    REGISTRIES: [
      ["https://cgr.dev", "cgr.dev/a", "CGR.dev", ",", "a,,b", "cgr.dev,", "__proto__", "a:x"],
      "comma list of hosts",
    ],
    WATCH_NAMESPACES: [["A", "a,", " ", "a b", "-a", "a".repeat(64)], "comma list of namespaces"],
    HTTPS_PROXY: [["proxy:3128", "socks5://proxy"], "http or https URL"],
    PORT: [["0", "70000", "8080x", "80 80", "1e3"], "from 1 to 65535"],
    LOG_LEVEL: [["INFO", "trace", "warning"], "debug, info, warn, error"],
  };
  for (const [name, [values, allowed]] of Object.entries(wrong)) {
    for (const value of values) {
      const { message } = assertThrows(
        () => configure({ [name]: value }),
        ConfigError,
        `${name}="`,
      );
      assertStringIncludes(message, allowed, value);
      if (!value.includes("@")) assertStringIncludes(message, clean(value), value);
      assert(!message.includes("\n"), message);
    }
  }
});

test("A password in a URL is never shown, however the URL is broken", () => {
  for (
    const url of [
      "user:hunter2@proxy:3128",
      "http://user:hun/hunter2@proxy:3128",
      "ftp://user:hunter2@proxy",
      "//user:hunter2@proxy",
      "http:user:hunter2@:x",
      "http://user:hunter2@",
    ]
  ) {
    for (const name of ["HTTPS_PROXY", "ISSUER_URL", "KUBERNETES_API"]) {
      const env: Record<string, string> = { KUBERNETES_API: "http://127.0.0.1:1", [name]: url };
      try {
        readConfig((name) => env[name]);
      } catch (error) {
        assert(!(error as Error).message.includes("hunter2"), (error as Error).message);
        assertStringIncludes((error as Error).message, name);
      }
    }
  }
});

test("A URL is written as it is used: without spaces, its scheme in small letters", () => {
  for (
    const url of [
      "HTTPS://api.example",
      " https://api.example",
      "https://api.example ",
      "HTTP://127.0.0.1:8001",
    ]
  ) {
    assertThrows(
      () => readConfig((name) => name === "KUBERNETES_API" ? url : undefined),
      ConfigError,
      "an https URL",
    );
  }
});

test("A value is taken as it is, or refused: nothing is silently cut off", () => {
  const env = (name: string, value: string) => (variable: string) =>
    ({ KUBERNETES_API: "http://127.0.0.1:1", [name]: value })[variable];
  assertEquals(
    readConfig(env("AUDIENCE", "https://registry.example/")).audience,
    "https://registry.example/",
  );
  for (
    const [name, value] of [["LOG_LEVEL", "info/"], ["PORT", "8080/"], ["REGISTRIES", "cgr.dev/"], [
      "WATCH_NAMESPACES",
      "a/",
    ]] as const
  ) {
    assertThrows(() => readConfig(env(name, value)), ConfigError, name);
  }
});

test("Without the address of an API server the message says which variable is missing", () => {
  const { message } = assertThrows(() => readConfig(() => undefined), ConfigError);
  assertStringIncludes(message, "KUBERNETES_SERVICE_HOST");
  assertStringIncludes(message, "KUBERNETES_API");
});

// ───── What is told ─────

test("Foreign text loses tokens, control and bidirectional characters, and what is over 200 characters", () => {
  const jwt = token();
  assertEquals(clean(`got ${jwt}.`), "got [removed].");
  assertEquals(clean("Authorization: Bearer abc.def"), "Authorization: [removed]");
  assertEquals(clean("bearer\tx y"), "[removed] y");
  assert(!clean(base64(`_token:${jwt}`)).includes(base64(`_token:${jwt}`).slice(0, 20)));
  assertEquals(clean("a\u001b[31mb\u0000\r\n\u007f\u0085"), "a\ufffd[31mb" + "\ufffd".repeat(5));
  assertEquals(
    clean("a\u202eb\u2066c\u200f\u061c\ufeff\u2028"),
    "a\ufffdb\ufffdc" + "\ufffd".repeat(4),
  );
  assertEquals(clean("é".repeat(300)), "é".repeat(200));
  assertEquals([...clean("\u{1f980}".repeat(300))].length, 200);
  assertEquals(clean(ALICE), ALICE);
  assertEquals(
    clean("system:serviceaccount:pull-secret-updater:controller"),
    "system:serviceaccount:pull-secret-updater:controller",
  );
});

test("The log is one JSON object a line, from its level on, in the order time, level, msg", () => {
  const lines: string[] = [];
  const at = (threshold: string) =>
    createLog(threshold, () => NOW, (line) => void lines.push(line));
  at("warn")("info", "no", {});
  at("warn")("debug", "no", {});
  at("warn")("warn", "yes", { namespace: "a", name: "b", count: 1, text: "x\ny" });
  at("error")("warn", "no", {});
  at("debug")("debug", "low", {});
  assertEquals(lines, [
    '{"time":"2027-06-01T12:00:00.000Z","level":"warn","msg":"yes","namespace":"a","name":"b","count":1,"text":"x\ufffdy"}\n',
    '{"time":"2027-06-01T12:00:00.000Z","level":"debug","msg":"low"}\n',
  ]);
});

// ───── The refresh: sharing ─────

rule("A Secret is filled within a second, and what else it holds stays", async (world) => {
  world.start();
  await world.clock.advance(5 * S);
  const config = '{"auths":{"other.example":{"auth":"eDp5"}},"HttpHeaders":{"n":1.0}}';
  const before = world.cluster.create({
    ...secret("a", { config, annotations: { note: "mine" } }),
    data: { [DATA_KEY]: base64(config), extra: "AAEC" },
  });
  await world.clock.advance(1 * S);
  const after = world.cluster.get("apps/a");
  assertEquals(after.data, {
    [DATA_KEY]: base64(withToken(config, ["cgr.dev"], held(world)!)),
    extra: "AAEC",
  });
  const { expiresAt } = claimsOf(held(world));
  assertEquals(after.metadata.labels, before.metadata.labels);
  assertEquals(after.metadata.annotations, {
    ...before.metadata.annotations,
    [TOKEN_IDENTITY]: ALICE,
    [TOKEN_EXPIRES]: new Date(expiresAt).toISOString(),
  });
  assertEquals(written(world).length, 1);
});

rule("All Secrets of an identity share one exchange and one token", async (world) => {
  for (let number = 0; number < 200; number++) {
    world.cluster.create(secret(`s-${number}`, { namespace: `n-${number % 7}` }));
  }
  world.start();
  await world.clock.advance(1 * S);
  assertEquals(world.issuer.requests.length, 1);
  assertEquals(written(world).length, 200);
  assertEquals(new Set([...world.cluster.secrets.values()].map((own) => jwtOf(own))).size, 1);
});

rule("Each identity is exchanged once, and none is mixed up with another", async (world) => {
  for (let number = 0; number < 60; number++) {
    world.cluster.create(secret(`s-${number}`, { identity: identityOf(number % 20) }));
  }
  world.issuer.fault = ({ identity }) => parseInt(identity.slice(-2), 16) * 37 % 100;
  world.start();
  await world.clock.advance(2 * S);
  assertEquals(world.issuer.requests.length, 20);
  for (let number = 0; number < 60; number++) {
    assertEquals(claimsOf(held(world, `s-${number}`)).subject, identityOf(number % 20));
  }
});

rule(
  "Each service account is a subject of its own, by namespace and name; without one it is the controller's",
  async (world) => {
    const annotations = { [ACCOUNT]: "puller" };
    world.cluster.create(secret("a", { namespace: "one", annotations }));
    world.cluster.create(secret("b", { namespace: "one", annotations }));
    world.cluster.create(secret("a", { namespace: "two", annotations }));
    world.cluster.create(secret("a", { namespace: "three" }));
    world.start();
    await world.clock.advance(1 * S);
    const actorOf = (namespace: string) => claimsOf(held(world, "a", namespace)).actor;
    assertEquals(actorOf("one"), "system:serviceaccount:one:puller");
    assertEquals(actorOf("two"), "system:serviceaccount:two:puller");
    assertEquals(actorOf("three"), CONTROLLER);
    assertEquals(held(world, "b", "one"), held(world, "a", "one"));
    assertEquals(world.issuer.requests.length, 3);
    const requests = asked(world, "token");
    assertEquals(requests.map(({ namespace, name }) => `${namespace}/${name}`), [
      "one/puller",
      "two/puller",
    ]);
    assertEquals(requests[0]!.body, { audience: "issuer.enforce.dev", seconds: 600 });
  },
);

for (const status of [403, 404, 500]) {
  rule(
    `A service account whose token is not given (${status}) is reported, and never another subject used`,
    async (world) => {
      world.cluster.create(secret("a", { annotations: { [ACCOUNT]: "puller" } }));
      world.cluster.create(secret("b", { identity: BOB }));
      world.cluster.fault = ({ verb }) => verb === "token" ? apiAnswer(status) : undefined;
      world.start();
      await world.clock.advance(10 * MIN);
      assertEquals(world.issuer.requests.map(({ identity }) => identity), [BOB]);
      assertEquals(held(world), undefined);
      assertEquals(told(world, "ExchangeFailed").map(({ regarding }) => regarding.name), ["a"]);
      world.cluster.fault = () => undefined;
      await world.clock.advance(5 * MIN);
      assertEquals(claimsOf(held(world)).actor, "system:serviceaccount:apps:puller");
    },
  );
}

rule("A service account that is named, changed and taken off again is followed", async (world) => {
  world.cluster.create(secret("a"));
  world.start();
  const steps: [string | null, string][] = [
    ["one", "system:serviceaccount:apps:one"],
    ["two", "system:serviceaccount:apps:two"],
    [null, CONTROLLER],
  ];
  for (const [account, subject] of steps) {
    await world.clock.advance(1 * MIN);
    world.cluster.update("apps/a", annotate({ [ACCOUNT]: account }));
    await world.clock.advance(1 * S);
    assertEquals(claimsOf(held(world)).actor, subject);
  }
});

rule("A token that is found in a Secret is never copied into another", async (world) => {
  const iat = Math.floor(world.clock.now() / S);
  const found = world.jwt({ aud: "cgr.dev", sub: ALICE, iat, exp: iat + 3600 });
  world.cluster.create(secret("a", { config: configOf(found) }));
  world.cluster.create(secret("b"));
  world.start();
  await world.clock.advance(10 * MIN);
  assertEquals(world.issuer.requests.length, 1);
  assertEquals(held(world, "a"), found);
  assertNotEquals(held(world, "b"), found);
});

rule(
  "A failed exchange is shared as well: one attempt at a time for all that wait",
  async (world) => {
    for (let number = 0; number < 50; number++) world.cluster.create(secret(`s-${number}`));
    world.issuer.fault = () => answer(503);
    world.start();
    await world.clock.advance(30 * S);
    assert(world.issuer.requests.length <= 7, `${world.issuer.requests.length}`);
    world.issuer.fault = () => undefined;
    await world.clock.advance(1 * MIN);
    assertEquals(written(world).length, 50);
  },
);

rule("At most 16 exchanges are under way, and 8 of one namespace", async (world) => {
  for (let number = 0; number < 20; number++) {
    world.cluster.create(secret(`s-${number}`, { identity: identityOf(number) }));
  }
  world.issuer.fault = () => 1 * S;
  world.start();
  await world.clock.advance(30 * S);
  assertEquals(peak(world.issuer.requests), 8);
  for (let number = 20; number < 80; number++) {
    world.cluster.create(
      secret(`s-${number}`, { identity: identityOf(number), namespace: `n-${number % 5}` }),
    );
  }
  await world.clock.advance(30 * S);
  assertEquals(peak(world.issuer.requests), 16);
  assertEquals(written(world).length, 80);
});

rule("At most 16 patches are under way", async (world) => {
  for (let number = 0; number < 40; number++) world.cluster.create(secret(`s-${number}`));
  world.cluster.fault = ({ verb }) => verb === "patch" ? 1 * S : undefined;
  world.start();
  await world.clock.advance(10 * S);
  assertEquals(peak(asked(world, "patch")), 16);
  assertEquals(written(world).length, 40);
});

rule("One namespace's hanging exchanges do not keep another's from its turn", async (world) => {
  for (let number = 10; number < 60; number++) {
    world.cluster.create(secret(`s-${number}`, { identity: identityOf(number), namespace: "bad" }));
  }
  world.issuer.fault = ({ identity }) => identity === ALICE ? undefined : "hang";
  world.start();
  await world.clock.advance(1 * S);
  world.cluster.create(secret("a"));
  await world.clock.advance(1 * S);
  assertNotEquals(held(world), undefined);
});

rule("First come the expired and the missing, then the soonest to expire", async (world) => {
  const now = Math.floor(world.clock.now() / S);
  const found = (name: string, number: number, expiresIn: number) => {
    const claims = {
      aud: "cgr.dev",
      sub: identityOf(number),
      iat: now - 3600,
      exp: now + expiresIn,
    };
    world.cluster.create(
      secret(name, { identity: claims.sub, namespace: "x", config: configOf(world.jwt(claims)) }),
    );
  };
  for (let number = 0; number < 16; number++) {
    world.cluster.create(
      secret(`s-${number}`, { identity: identityOf(number), namespace: `n-${number % 4}` }),
    );
  }
  found("late", 100, 600);
  found("soon", 101, 60);
  found("expired", 102, -1);
  world.cluster.create(secret("missing", { identity: identityOf(103), namespace: "x" }));
  world.issuer.fault = () => 5 * S;
  world.start();
  await world.clock.advance(20 * S);
  assertEquals(
    world.issuer.requests.slice(16).map(({ identity }) => identity),
    [102, 103, 101, 100].map(identityOf),
  );
});

rule("What failed last comes behind all others", async (world) => {
  world.issuer.fault = () => answer(503);
  world.cluster.create(secret("failed", { identity: BOB, namespace: "x" }));
  world.start();
  await world.clock.advance(100);
  world.issuer.fault = () => 5 * S;
  for (let number = 10; number < 26; number++) {
    world.cluster.create(
      secret(`s-${number}`, { identity: identityOf(number), namespace: `n-${number % 4}` }),
    );
  }
  await world.clock.advance(2 * S);
  world.cluster.create(secret("a", { namespace: "x" }));
  await world.clock.advance(20 * S);
  assertEquals(world.issuer.requests.slice(17).map(({ identity }) => identity), [ALICE, BOB]);
});

rule("What somebody else wrote first does not come behind all others", async (world) => {
  const patched = (name: string) =>
    asked(world, "patch", name).map(({ endedAt }) => endedAt).at(-1)!;
  const now = Math.floor(world.clock.now() / S);
  const config = configOf(
    world.jwt({ aud: "cgr.dev", sub: ALICE, iat: now - 3000, exp: now + 600 }),
  );
  world.cluster.create(secret("s-0"));
  for (let number = 1; number < 40; number++) {
    world.cluster.create(secret(`s-${number}`, { config }));
  }
  let lost = 0;
  world.cluster.fault = ({ verb, name }) => {
    if (verb !== "patch") return undefined;
    return name === "s-0" && lost++ === 0 ? apiAnswer(409) : 2 * S;
  };
  world.start();
  await world.clock.advance(20 * S);
  assert(patched("s-0") < patched("s-39"), `${patched("s-0")} ${patched("s-39")}`);
  assertEquals(asked(world, "patch", "s-0").map(({ status }) => status), [409, 200]);
});

rule(
  "Conflicts and missing answers by turns are tried more and more slowly, as either alone",
  async (world) => {
    world.cluster.create(secret("a"));
    let tries = 0;
    world.cluster.fault = ({ verb }) => {
      if (verb !== "patch") return undefined;
      return tries++ % 2 === 0
        ? apiAnswer(409)
        : new ApiError("no answer", { reason: "UND_ERR_SOCKET" });
    };
    world.start();
    await world.clock.advance(1 * MIN);
    assert(tries <= 8, `${tries}`);
  },
);

rule(
  "Somebody who writes to a Secret all the time is told of, from the third conflict in a row",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.fault = ({ verb }) => verb === "patch" ? apiAnswer(409) : undefined;
    world.start();
    await world.clock.advance(1 * S);
    assertEquals(told(world, "Overwritten"), []);
    await world.clock.advance(5 * S);
    assertEquals(told(world, "Overwritten").length, 1);
  },
);

// ───── The refresh: lives ─────

/** How far into its life each token was when it was replaced. */
function agesAtReplacement(world: VirtualWorld, name = "a"): number[] {
  const changes = world.cluster.history.filter(({ secret }) => secret.metadata.name === name);
  return changes.slice(1).flatMap(({ now }, index) => {
    const jwt = jwtOf(changes[index]!.secret);
    if (!jwt) return [];
    const { issuedAt = 0, expiresAt } = claimsOf(jwt);
    return [(now - issuedAt) / (expiresAt - issuedAt)];
  });
}

for (
  const [life, during] of [[10 * S, 10 * MIN], [12 * S, 10 * MIN], [60 * S, 1 * HOUR], [
    1 * HOUR,
    7 * 24 * HOUR,
  ], [
    24 * HOUR,
    10 * 24 * HOUR,
  ]] as const
) {
  rule(
    `Tokens that live ${life / S} s are replaced between 60 and 90 % of their life, one patch each`,
    async (world) => {
      world.issuer.life = life;
      for (const name of ["a", "b", "c"]) world.cluster.create(secret(name));
      world.start();
      await world.clock.advance(during);
      for (const name of ["a", "b", "c"]) {
        const ages = agesAtReplacement(world, name);
        assert(ages.length > during / life, `${ages.length} lives`);
        assert(ages.every((age) => age > 0.6 && age < 0.9), `${ages}`);
      }
      assertEquals(expiredFor(world), 0);
      assert(
        world.issuer.requests.length <= during / (0.67 * life) + 2,
        `${world.issuer.requests.length} exchanges`,
      );
      assertEquals(world.cluster.events.map(({ reason }) => reason), [
        "TokenIssued",
        "TokenIssued",
        "TokenIssued",
      ]);
    },
  );
}

rule(
  "A shared token is exchanged at 0.67 of its life, and its Secrets are written spread over the tenth after",
  async (world) => {
    for (let number = 0; number < 200; number++) world.cluster.create(secret(`s-${number}`));
    world.start();
    await world.clock.advance(50 * MIN);
    const [first, second] = world.issuer.requests;
    const share = (at: number) => (at - first!.at) / HOUR;
    assert(share(second!.at) >= 0.669 && share(second!.at) < 0.68, `${share(second!.at)}`);
    assertEquals(world.issuer.requests.length, 2);
    const shares = written(world).slice(200).map(({ at }) => share(at));
    assertEquals(shares.length, 200);
    for (let step = 0; step < 5; step++) {
      const own = shares.filter((share) =>
        share >= 0.669 + step * 0.02 && share < 0.669 + (step + 1) * 0.02
      );
      assert(own.length > 20 && own.length < 60, `${own.length} of 200 in one fifth`);
    }
    assert(Math.max(...shares) <= 0.771);
  },
);

rule(
  "A Secret that is made with an old token in it has that replaced by its time of issue",
  async (world) => {
    world.start();
    await world.clock.advance(1 * S);
    const now = Math.floor(world.clock.now() / S);
    world.cluster.create(
      secret("a", { config: configOf(token({ iat: now - 2900, exp: now + 700 })) }),
    );
    world.cluster.create(
      secret("b", { config: configOf(token({ iat: now - 2200, exp: now + 1400 })) }),
    );
    await world.clock.advance(1 * S);
    assertEquals(written(world).map(({ name }) => name), ["a"]);
    await world.clock.advance(10 * MIN);
    assertEquals(written(world).map(({ name }) => name), ["a", "b"]);
  },
);

rule(
  "A restart with valid tokens makes no exchange and no patch; each is replaced when it is due",
  async (world) => {
    for (let number = 0; number < 20; number++) {
      world.cluster.create(secret(`s-${number}`, { identity: identityOf(number) }));
    }
    const first = world.start();
    await world.clock.advance(20 * MIN);
    first.stop();
    const [exchanges, patches] = [world.issuer.requests.length, written(world).length];
    const events = told(world, "TokenIssued").length;
    world.start();
    await world.clock.advance(20 * MIN - S);
    assertEquals([world.issuer.requests.length, written(world).length], [exchanges, patches]);
    await world.clock.advance(7 * MIN);
    assertEquals([world.issuer.requests.length, written(world).length], [
      2 * exchanges,
      2 * patches,
    ]);
    assertEquals(told(world, "TokenIssued").length, events);
  },
);

rule(
  "An issuer that caches its tokens is no failure: asked rarely, no Warning, never expired",
  async (world) => {
    world.issuer.life = 10 * MIN;
    world.issuer.renewBefore = 6 * S;
    for (const name of ["a", "b", "c"]) world.cluster.create(secret(name));
    world.start();
    await world.clock.advance(2 * HOUR);
    assertEquals(expiredFor(world), 0);
    assert(world.issuer.requests.length <= 8 * 13, `${world.issuer.requests.length} exchanges`);
    assert(written(world).length <= 3 * 13, `${written(world).length} patches`);
    assertEquals(world.cluster.events.map(({ reason }) => reason), [
      "TokenIssued",
      "TokenIssued",
      "TokenIssued",
    ]);
    assertEquals(metric(world.replicas[0]!, 'refreshes_total{result="failed"}'), undefined);
  },
);

rule("A token that expires no later than the Secret's own is kept in hand", async (world) => {
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(1 * MIN);
  const { expiresAt } = claimsOf(held(world));
  world.issuer.claims = () => ({ exp: expiresAt / S });
  await world.clock.advance(expiresAt - world.clock.now() - 20 * S);
  assertEquals(written(world).length, 1);
  assert(world.issuer.requests.length > 1);
  world.issuer.claims = () => ({});
  await world.clock.advance(20 * S);
  assertEquals(written(world).length, 2);
  assertEquals(expiredFor(world), 0);
  assertEquals(world.cluster.events.map(({ type }) => type), ["Normal"]);
});

rule(
  "An issuer whose tokens get shorter and shorter never has an expired one in the Secret",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    for (const life of [60, 30, 10, 5, 2, 1, 1]) {
      world.issuer.life = life * MIN;
      await world.clock.advance(1 * HOUR);
    }
    assertEquals(expiredFor(world), 0);
    assertEquals(world.cluster.events.map(({ type }) => type), ["Normal"]);
  },
);

// ───── The refresh: failures of the patch ─────

rule("A conflict costs one read, and the token in hand is written", async (world) => {
  world.cluster.create(secret("a"));
  world.cluster.fault = ({ verb }) => verb === "patch" ? 50 : undefined;
  world.start();
  await world.clock.advance(30);
  world.cluster.update("apps/a", annotate({ note: "mine" }));
  await world.clock.advance(1 * S);
  assertEquals(asked(world, "patch").map(({ status }) => status), [409, 200]);
  assertEquals(asked(world, "get").length, 1);
  assertEquals(world.issuer.requests.length, 1);
  assertEquals(held(world), world.issuer.requests[0]!.token);
  assertEquals(world.cluster.get("apps/a").metadata.annotations!.note, "mine");
  assertEquals(world.cluster.events.map(({ reason }) => reason), ["TokenIssued"]);
  assertEquals(metric(world.replicas[0]!, 'refreshes_total{result="conflict"}'), 1);
});

rule("Conflicts without end do not spin, and end by themselves", async (world) => {
  world.cluster.create(secret("a"));
  world.cluster.fault = ({ verb }) => verb === "patch" ? apiAnswer(409) : undefined;
  world.start();
  await world.clock.advance(10 * MIN);
  const tries = asked(world, "patch").length;
  assert(tries > 5 && tries < 25, `${tries}`);
  world.cluster.fault = () => undefined;
  await world.clock.advance(1 * MIN);
  assertNotEquals(held(world), undefined);
  assertEquals(world.issuer.requests.length, 1);
});

const lost = new ApiError("patch: no answer of the API server: other side closed", {
  reason: "UND_ERR_SOCKET",
});
for (
  const [what, fault] of [
    ["404", apiAnswer(404)],
    ["429", apiAnswer(429)],
    ["500", apiAnswer(500)],
    ["401", apiAnswer(401)],
    ["lost", lost],
    ["hanging", "hang"],
  ] as const
) {
  rule(
    `After a patch that failed (${what}) the token in hand is written, without a second exchange`,
    async (world) => {
      let fails = 3;
      world.cluster.create(secret("a"));
      world.cluster.fault = ({ verb }) => verb === "patch" && fails-- > 0 ? fault : undefined;
      world.start();
      await world.clock.advance(5 * MIN);
      assertEquals(asked(world, "patch").length, 4);
      assertEquals(world.issuer.requests.length, 1);
      assertEquals(held(world), world.issuer.requests[0]!.token);
    },
  );
}

rule("A patch whose answer was lost is not made again", async (world) => {
  let fails = 1;
  world.cluster.create(secret("a"));
  world.cluster.fault = ({ verb }) => verb === "patch" && fails-- > 0 ? { after: lost } : undefined;
  world.start();
  await world.clock.advance(10 * MIN);
  assertEquals(asked(world, "patch").length, 1);
  assertEquals(world.issuer.requests.length, 1);
});

rule(
  "A Secret that is gone when it is patched is no failure that is told; made anew it gets the token in hand",
  async (world) => {
    const replica = world.start();
    await world.clock.advance(1 * S);
    const idle = replica.clock.pending();
    world.cluster.create(secret("a"));
    world.cluster.fault = ({ verb }) => verb === "patch" ? 50 : undefined;
    await world.clock.advance(30);
    // The patch comes before the news.
    world.cluster.deafen();
    world.cluster.delete("apps/a");
    await world.clock.advance(10 * S);
    assertEquals(asked(world, "patch").map(({ status }) => status), [404]);
    assertEquals(asked(world, "get").map(({ status }) => status), [404]);
    assertEquals(world.cluster.events, []);
    assertEquals(replica.clock.pending(), idle);
    world.cluster.endWatches();
    await world.clock.advance(100);
    world.cluster.create(secret("a"));
    await world.clock.advance(1 * S);
    assertEquals(held(world), world.issuer.requests[0]!.token);
    assertEquals(world.issuer.requests.length, 1);
  },
);

rule(
  "A Secret that something in between says is not there is brought back by the list after the watch",
  async (world) => {
    const replica = world.start();
    world.cluster.create(secret("a"));
    world.cluster.fault = ({ verb }) =>
      verb === "patch" || verb === "get" ? apiAnswer(404) : undefined;
    await world.clock.advance(10 * S);
    world.cluster.fault = () => undefined;
    assertEquals(written(world).length, 0);
    world.cluster.create(secret("b"));
    await world.clock.advance(2 * MIN);
    assertEquals(written(world).map(({ name }) => name).sort(), ["a", "b"]);
    assertEquals(metric(replica, 'secrets{state="valid"}'), 2);
  },
);

for (const status of [403, 422]) {
  rule(
    `A patch that is refused (${status}) is tried again after half a minute, then more and more rarely, up to 5 min`,
    async (world) => {
      world.cluster.create(secret("a"));
      world.cluster.fault = ({ verb }) => verb === "patch" ? apiAnswer(status) : undefined;
      world.start();
      await world.clock.advance(1 * HOUR);
      const waits = gaps(asked(world, "patch").map(({ at }) => at)).map((gap) => gap / S);
      for (const [index, cap] of [30, 60, 120, 240, 300, 300].entries()) {
        assert(waits[index]! >= cap / 2 - 0.1 && waits[index]! <= cap + 0.1, `${waits}`);
      }
      assertEquals(new Set(told(world, "ExchangeFailed").map(({ note }) => note)).size, 1);
      assertEquals(world.issuer.requests.length <= 2, true);
      assert(metric(world.replicas[0]!, 'refreshes_total{result="refused"}')! > 5);
    },
  );
}

rule("A refusal that quotes the whole Secret gives nothing of it away", async (world) => {
  world.cluster.create(secret("a"));
  world.cluster.fault = ({ verb, body }) => {
    const value = (body as { data?: Record<string, string> } | undefined)?.data?.[DATA_KEY];
    const message =
      `patch: the API server answered 422: Secret "a" is invalid: data: Invalid value: "${value}" {"auths":{"cgr.dev":{"auth":"${value}"}}}`;
    return verb === "patch" ? new ApiError(message, { status: 422 }) : undefined;
  };
  world.start();
  await world.clock.advance(1 * MIN);
  assertEquals(told(world, "ExchangeFailed").length, 1);
  const data = base64(configOf(world.issuer.requests[0]!.token!));
  const all = world.lines.join("") + JSON.stringify(world.cluster.events);
  for (let start = 0; start < 400; start += 8) {
    assert(!all.includes(data.slice(start, start + 16)), data.slice(start, start + 16));
  }
});

rule(
  "A docker config that broke between the verdict and the write is not quoted",
  async (world) => {
    world.cluster.create(secret("a", { config: '{"auths":{},"other":1}' }));
    world.cluster.fault = ({ verb }) => verb === "get" ? 100 : undefined;
    world.start();
    await world.clock.advance(50);
    world.cluster.update("apps/a", {
      data: { [DATA_KEY]: base64('{"auths":{"x":{"password": hunter2}}}') },
    });
    await world.clock.advance(10 * S);
    const all = world.lines.join("") + JSON.stringify(world.cluster.events);
    assert(!all.includes("hunter2"), all);
    assertEquals(told(world, "InvalidDockerConfig").length, 1);
  },
);

rule(
  "A docker config that was mended while its write was under way is not taken for the broken one",
  async (world) => {
    world.cluster.create(secret("a", { config: '{"auths":{},"other":1}' }));
    world.cluster.fault = ({ verb }) => verb === "get" ? { ms: 50, answerMs: 100 } : undefined;
    world.start();
    await world.clock.advance(20);
    world.cluster.update("apps/a", { data: { [DATA_KEY]: base64("{") } });
    await world.clock.advance(80);
    world.cluster.update("apps/a", { data: { [DATA_KEY]: base64('{"auths":{},"other":2}') } });
    await world.clock.advance(10 * S);
    assertEquals(held(world), world.issuer.requests[0]!.token);
  },
);

// ───── The refresh: back-off ─────

/** A token of the issuer, but for some claims. */
function fresh(world: VirtualWorld, claims: Record<string, unknown>): string {
  const iat = Math.floor(world.clock.now() / S);
  return world.jwt({ aud: "cgr.dev", sub: ALICE, iat, exp: iat + 3600, ...claims });
}

const RANGES = [
  {
    what: "what passes (503)",
    fault: () => answer(503),
    caps: [1, 2, 4, 8, 16, 32, 60, 60, 60],
    status: "failed",
  },
  {
    what: "what passes (no answer)",
    fault: () => new StsError("no answer of the issuer"),
    caps: [1, 2, 4, 8, 16, 32, 60, 60],
    status: "failed",
  },
  {
    what: "what passes (429 without Retry-After)",
    fault: () => answer(429),
    caps: [1, 2, 4, 8, 16, 32, 60, 60],
    status: "failed",
  },
  {
    what: "a refusal (401)",
    fault: () => answer(401),
    caps: [30, 60, 120, 240, 300, 300],
    status: "refused",
  },
  {
    what: "a refusal (400)",
    fault: () => answer(400),
    caps: [30, 60, 120, 240, 300, 300],
    status: "refused",
  },
  {
    what: "a 200 without a token",
    fault: () => answer(200),
    caps: [30, 60, 120, 240, 300, 300],
    status: "refused",
  },
  {
    what: "another identity's token",
    fault: (world: VirtualWorld) => fresh(world, { sub: BOB }),
    caps: [30, 60, 120, 240, 300, 300],
    status: "refused",
  },
];
for (const { what, fault, caps, status } of RANGES) {
  for (const seed of [1, 2]) {
    rule(
      `After ${what} it is tried again after a random half to the whole of ${caps} s (seed ${seed})`,
      async (world) => {
        world.cluster.create(secret("a"));
        world.issuer.fault = () => fault(world);
        world.start();
        await world.clock.advance(30 * MIN);
        const waits = gaps(world.issuer.requests.map(({ at }) => at)).map((gap) => gap / S);
        for (const [index, cap] of caps.entries()) {
          assert(
            waits[index]! >= cap / 2 - 0.01 && waits[index]! <= cap + 0.02,
            `${waits.slice(0, caps.length)}`,
          );
        }
        assert(metric(world.replicas[0]!, `refreshes_total{result="${status}"}`)! >= caps.length);
        world.issuer.fault = () => undefined;
        await world.clock.advance(5 * MIN);
        assertNotEquals(held(world), undefined);
      },
      seed,
    );
  }
}

rule("Retry-After holds an exchange, in seconds or as a date, for 5 min at most", async (world) => {
  const inAWhile = (ms: number) => new Date(world.clock.now() + ms).toUTCString();
  const cases: [string, number][] = [
    ["100", 100],
    [inAWhile(100 * S), 100],
    ["86400", 300],
    [inAWhile(86_400 * S), 300],
    ["-5", 0],
    ["soon", 0],
    ["", 0],
  ];
  for (const index of cases.keys()) {
    world.cluster.create(secret(`s-${index}`, { identity: identityOf(index + 50) }));
  }
  world.issuer.fault = ({ identity }) =>
    answer(503, "no", cases[parseInt(identity.slice(-2), 16) - 50]![0]);
  world.start();
  await world.clock.advance(20 * MIN);
  for (const [index, [retryAfter, seconds]] of cases.entries()) {
    const [first, second] = world.issuer.requests.filter(({ identity }) =>
      identity === identityOf(index + 50)
    );
    const wait = (second!.at - first!.at) / S;
    assert(wait >= Math.max(seconds - 2, 0.5) && wait <= seconds + 1.1, `${retryAfter}: ${wait}`);
  }
});

rule(
  "After a 429 its Retry-After holds for every exchange, and nothing skips it",
  async (world) => {
    world.cluster.create(secret("a"));
    world.issuer.fault = () => answer(429, "slow down", "120");
    world.start();
    await world.clock.advance(1 * S);
    world.issuer.fault = () => undefined;
    world.cluster.create(secret("b", { identity: BOB }));
    world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(118 * S);
    assertEquals(world.issuer.requests.length, 1);
    await world.clock.advance(3 * S);
    assertEquals(world.issuer.requests.length, 3);
    assertNotEquals(held(world, "b"), undefined);
  },
);

rule("Only exchanges that took place are counted", async (world) => {
  for (let number = 0; number < 60; number++) {
    world.cluster.create(
      secret(`s-${number}`, { identity: identityOf(number), namespace: `n-${number}` }),
    );
  }
  let isThrottled = false;
  world.issuer.fault = () => {
    if (isThrottled) return answer(429, "slow down", "30");
    isThrottled = true;
    return 1 * S;
  };
  const replica = world.start();
  await world.clock.advance(5 * MIN);
  world.issuer.fault = () => undefined;
  await world.clock.advance(5 * MIN);
  assertEquals(written(world).length, 60);
  assertEquals(metric(replica, "exchange_duration_seconds_count"), world.issuer.requests.length);
});

rule("A 429 of the API server to a token request holds no other exchange", async (world) => {
  world.cluster.create(secret("a", { annotations: { [ACCOUNT]: "puller" } }));
  world.cluster.fault = ({ verb }) => verb === "token" ? apiAnswer(429, "200") : undefined;
  world.start();
  await world.clock.advance(1 * S);
  world.cluster.create(secret("b", { identity: BOB }));
  await world.clock.advance(1 * S);
  assertNotEquals(held(world, "b"), undefined);
});

rule("Retry-After of the API server holds the patch, and nothing skips it", async (world) => {
  world.cluster.create(secret("a"));
  world.cluster.fault = ({ verb }) => verb === "patch" ? apiAnswer(429, "60") : undefined;
  world.start();
  await world.clock.advance(1 * S);
  world.cluster.fault = () => undefined;
  world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
  await world.clock.advance(58 * S);
  assertEquals(asked(world, "patch").length, 1);
  await world.clock.advance(2 * S);
  assertEquals(asked(world, "patch").length, 2);
});

rule("Success ends the back-off for good: the next failure begins anew", async (world) => {
  world.issuer.life = 60 * S;
  world.cluster.create(secret("a"));
  world.issuer.fault = () => answer(503);
  world.start();
  await world.clock.advance(5 * MIN);
  world.issuer.fault = () => undefined;
  await world.clock.advance(70 * S);
  const before = world.issuer.requests.length;
  world.issuer.fault = () => answer(503);
  await world.clock.advance(70 * S);
  const [first, second] = world.issuer.requests.slice(before);
  assert(second!.at - first!.at <= 1.1 * S, `${second!.at - first!.at}`);
});

rule("A changed identity ends the back-off", async (world) => {
  world.cluster.create(secret("a"));
  world.issuer.fault = ({ identity }) => identity === ALICE ? answer(403) : undefined;
  world.start();
  await world.clock.advance(10 * MIN);
  world.cluster.update("apps/a", annotate({ [IDENTITY]: BOB }));
  await world.clock.advance(1 * S);
  assertEquals(claimsOf(held(world)).subject, BOB);
});

rule("Success for one Secret wakes all others that wait for the same token", async (world) => {
  for (const name of ["a", "b", "c", "d"]) world.cluster.create(secret(name));
  world.issuer.fault = () => answer(403);
  world.start();
  await world.clock.advance(20 * MIN);
  world.issuer.fault = () => undefined;
  const before = world.issuer.requests.length;
  world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
  await world.clock.advance(1 * S);
  assertEquals(world.issuer.requests.length, before + 1);
  assertEquals(
    new Set(["a", "b", "c", "d"].map((name) => held(world, name))),
    new Set([world.issuer.requests.at(-1)!.token]),
  );
});

rule("A subject token that has expired is not sent, and the message says why", async (world) => {
  world.cluster.create(secret("a"));
  const now = Math.floor(world.clock.now() / S);
  world.readSubjectToken = () => world.jwt({ sub: CONTROLLER, iat: now - 3600, exp: now });
  world.start();
  await world.clock.advance(5 * MIN);
  assertEquals(world.issuer.requests, []);
  assertStringIncludes(told(world, "ExchangeFailed")[0].note, "the kubelet has not renewed it");
  world.readSubjectToken = () => world.subjectToken(CONTROLLER, "issuer.enforce.dev", 600);
  await world.clock.advance(61 * S);
  assertNotEquals(held(world), undefined);
});

rule(
  "A subject token file that is missing is told, and read again until it is there",
  async (world) => {
    const read = world.readSubjectToken;
    world.cluster.create(secret("a"));
    world.readSubjectToken = () => {
      throw new Error("ENOENT: no such file or directory, open '/token'");
    };
    world.start();
    await world.clock.advance(10 * S);
    assertStringIncludes(told(world, "ExchangeFailed")[0].note, "/token");
    world.readSubjectToken = read;
    await world.clock.advance(20 * S);
    assertNotEquals(held(world), undefined);
  },
);

rule("The subject token is read anew at every exchange", async (world) => {
  world.issuer.life = 60 * S;
  let reads = 0;
  const read = world.readSubjectToken;
  world.readSubjectToken = () => (reads++, read());
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(10 * MIN);
  assertEquals(reads, world.issuer.requests.length);
});

rule("An exchange takes 10 s at most", async (world) => {
  world.cluster.create(secret("a"));
  world.issuer.fault = () => "hang";
  world.start();
  await world.clock.advance(5 * MIN);
  assert(world.issuer.requests.length > 5);
  assert(
    world.issuer.requests.filter(({ endedAt }) => endedAt < Infinity).every(({ at, endedAt }) =>
      endedAt - at === 10 * S
    ),
  );
  assertStringIncludes(told(world, "ExchangeFailed")[0].note, "no answer within 10 s");
  world.issuer.fault = () => undefined;
  await world.clock.advance(71 * S);
  assertNotEquals(held(world), undefined);
});

rule("An API server that hangs is waited for, and everything is well soon after", async (world) => {
  for (let number = 0; number < 30; number++) world.cluster.create(secret(`s-${number}`));
  world.cluster.fault = () => "hang";
  world.start();
  await world.clock.advance(10 * MIN);
  world.cluster.fault = () => undefined;
  await world.clock.advance(50 * S);
  assertEquals(written(world).length, 30);
  world.cluster.fault = ({ verb }) => verb === "list" || verb === "watch" ? undefined : "hang";
  world.cluster.create(secret("a"));
  await world.clock.advance(10 * MIN);
  world.cluster.fault = () => undefined;
  await world.clock.advance(2 * MIN);
  assertNotEquals(held(world), undefined);
  assertEquals(world.issuer.requests.length, 1);
});

rule("While the issuer is down, the token in hand serves a Secret that has none", async (world) => {
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(30 * MIN);
  world.issuer.fault = () => answer(503);
  for (const name of ["early", "late"]) {
    world.cluster.create(secret(name));
    await world.clock.advance(1 * S);
    assertEquals(held(world, name), held(world));
    await world.clock.advance(25 * MIN);
  }
});

rule(
  "No token is lost to an issuer that is down for less than a fifth of a life",
  async (world) => {
    for (const name of ["a", "b", "c"]) world.cluster.create(secret(name));
    world.start();
    for (let hour = 0; hour < 48; hour++) {
      world.issuer.fault = () => hour % 2 ? "hang" : answer(503);
      await world.clock.advance(12 * MIN);
      world.issuer.fault = () => undefined;
      await world.clock.advance(48 * MIN);
    }
    assertEquals(expiredFor(world), 0);
  },
);

// ───── `refresh` ─────

rule(
  "A refresh gets a new token at once; the annotation goes in the same patch, and no sibling is rewritten",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.create(secret("b"));
    world.start();
    await world.clock.advance(10 * MIN);
    const before = held(world, "b");
    world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(1 * S);
    assertNotEquals(held(world), before);
    assertEquals(held(world, "b"), before);
    assertEquals(world.cluster.get("apps/a").metadata.annotations![REFRESH], undefined);
    const [patch] = written(world).slice(2);
    const { metadata, data } = patch!.body as Secret & {
      metadata: { annotations: Record<string, string | null> };
    };
    assertEquals(metadata.annotations[REFRESH], null as unknown as string);
    assert(data![DATA_KEY]);
    await world.clock.advance(20 * MIN);
    assertEquals([world.issuer.requests.length, written(world).length], [2, 3]);
    await world.clock.advance(30 * MIN);
    assertEquals(expiredFor(world), 0);
  },
);

rule(
  "A refresh is satisfied by the token of an exchange that began within the 10 s before",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.create(secret("b"));
    world.start();
    await world.clock.advance(3 * S);
    world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(1 * MIN);
    assertEquals(world.issuer.requests.length, 1);
    assertEquals(world.cluster.get("apps/a").metadata.annotations![REFRESH], undefined);
    const [, , third, ...rest] = written(world);
    assert(third!.at >= 10 * S && third!.at <= 11 * S, `${third!.at}`);
    assertEquals(rest, []);
  },
);

rule(
  "A refresh soon after a token was got gets that one, though its exchange began long ago",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.create(secret("b", { config: configOf(fresh(world, {})) }));
    world.issuer.fault = () => 9 * S;
    world.start();
    await world.clock.advance(15 * S);
    world.cluster.update("apps/b", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(1 * S);
    assertEquals(held(world, "b"), held(world, "a"));
    await world.clock.advance(10 * MIN);
    assertEquals(world.issuer.requests.length, 1);
  },
);

rule(
  "Two Secrets that ask for a refresh soon after each other share one exchange",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.create(secret("b"));
    world.start();
    await world.clock.advance(10 * MIN);
    world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(5 * S);
    world.cluster.update("apps/b", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(1 * S);
    assertEquals(world.issuer.requests.length, 2);
    assertEquals(held(world, "b"), held(world, "a"));
  },
);

rule(
  "A refresh skips the back-off once; after that its failures back off as all others",
  async (world) => {
    world.cluster.create(secret("a"));
    world.issuer.fault = () => answer(403);
    world.start();
    await world.clock.advance(20 * MIN);
    const before = world.issuer.requests.length;
    world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(1 * S);
    assertEquals(world.issuer.requests.length, before + 1);
    await world.clock.advance(13 * S);
    assertEquals(world.issuer.requests.length, before + 1);
    await world.clock.advance(16.5 * S);
    assertEquals(world.issuer.requests.length, before + 2);
  },
);

/** Asks for a refresh; while its exchange is under way, for 2 s, somebody writes to the Secret. */
async function disturbWish(world: VirtualWorld, exchange: Fault): Promise<void> {
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(1 * MIN);
  world.issuer.fault = () => exchange;
  world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
  await world.clock.advance(1 * S);
  world.cluster.update("apps/a", annotate({ other: "1" }));
  await world.clock.advance(2 * S);
}

rule(
  "A wish waits for the exchange that it asked for, whatever is written to the Secret meanwhile",
  async (world) => {
    await disturbWish(world, 2 * S);
    assertEquals([world.issuer.requests.length, written(world).length], [2, 2]);
  },
);

rule(
  "A wish whose exchange fails is told so, whatever is written to the Secret meanwhile",
  async (world) => {
    await disturbWish(world, { ms: 2 * S, after: answer(503) });
    assertEquals(told(world, "ExchangeFailed").length, 1);
  },
);

rule("A wish that another replica fulfilled skips no back-off later", async (world) => {
  world.cluster.create(secret("a"));
  world.cluster.create(secret("b"));
  world.start();
  await world.clock.advance(1 * MIN);
  world.issuer.fault = () => 2 * S;
  world.cluster.update("apps/b", annotate({ [REFRESH]: "1" }));
  await world.clock.advance(1 * S);
  // Due at 80 min at the earliest, when that of "a" has failed for 40.
  const config = configOf(fresh(world, { exp: Math.floor(world.clock.now() / S) + 7200 }));
  world.cluster.update("apps/b", {
    ...annotate({ [REFRESH]: null }),
    data: { [DATA_KEY]: base64(config) },
  });
  await world.clock.advance(1 * MIN);
  world.issuer.fault = () => answer(403);
  await world.clock.advance(100 * MIN);
  const refused = world.issuer.requests.filter(({ token }) => token === undefined).map(({ at }) =>
    at
  );
  assert(refused.length > 15);
  assert(gaps(refused).slice(4).every((gap) => gap >= 150 * S), `${gaps(refused)}`);
});

rule(
  "The same refresh value asks no second time; another does, and so does a new uid",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    const set = async (value: string) => {
      world.cluster.update("apps/a", annotate({ [REFRESH]: value }));
      await world.clock.advance(1 * MIN);
      return world.issuer.requests.length;
    };
    await world.clock.advance(1 * MIN);
    assertEquals(await set("1"), 2);
    assertEquals(await set("1"), 2);
    assertEquals(await set("2"), 3);
    world.cluster.delete("apps/a");
    world.cluster.create(secret("a", { annotations: { [REFRESH]: "2" } }));
    await world.clock.advance(1 * MIN);
    assertEquals(world.issuer.requests.length, 4);
  },
);

for (
  const [what, fault] of [["works", () => undefined], ["refuses", () => answer(403)], [
    "fails",
    () => answer(503),
  ]] as [
    string,
    () => Fault,
  ][]
) {
  rule(
    `A flood of refresh values does not spin: no more than six exchanges and writes a minute, when the issuer ${what}`,
    async (world) => {
      for (const name of ["a", "b", "c"]) world.cluster.create(secret(name));
      world.issuer.fault = fault;
      world.start();
      for (let step = 0; step < 3000; step++) {
        world.cluster.update(
          `apps/${["a", "b", "c"][step % 3]}`,
          annotate({ [REFRESH]: `${step}` }),
        );
        await world.clock.advance(100);
      }
      assert(
        world.issuer.requests.length <= 5 * 6 + 8,
        `${world.issuer.requests.length} exchanges`,
      );
      for (const name of ["a", "b", "c"]) assert(asked(world, "patch", name).length <= 5 * 6 + 2);
    },
  );
}

// ───── Spacing ─────

rule(
  "A user's new identity is written at once, though the last write was only 12 s ago",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(12 * S);
    world.cluster.update("apps/a", annotate({ [IDENTITY]: BOB }));
    await world.clock.advance(1 * S);
    assertEquals(claimsOf(held(world)).subject, BOB);
    assertEquals(told(world, "Overwritten"), []);
  },
);

rule(
  "A requested refresh is written at once, though the last write was only 12 s ago",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(12 * S);
    const before = held(world);
    world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(1 * S);
    assertNotEquals(held(world), before);
    assertEquals(world.cluster.get("apps/a").metadata.annotations![REFRESH], undefined);
  },
);

rule(
  "A Secret that comes late in a shared token's life never holds an expired one",
  async (world) => {
    world.issuer.life = 12 * S;
    world.start();
    for (let number = 0; number < 40; number++) {
      world.cluster.create(secret(`late-${number}`));
      await world.clock.advance(1_300);
    }
    await world.clock.advance(1 * MIN);
    assertEquals(expiredFor(world), 0);
  },
);

rule(
  "Someone who blanks a Secret every 500 ms brings about spaced writes, one exchange a life and one Warning",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    for (let step = 0; step < 2 * 25 * 60; step++) {
      await world.clock.advance(500);
      world.cluster.update("apps/a", blank);
    }
    const writes = written(world).map(({ endedAt }) => endedAt);
    assert(gaps(writes).every((gap) => gap >= 30 * S), `${gaps(writes)}`);
    assert(writes.length >= 45, "it is mended again and again");
    assertEquals(world.issuer.requests.length, 1);
    assertEquals(told(world, "Overwritten").length, 1);
  },
);

rule(
  "A Secret that is blanked for the first time is mended at once, from the token in hand",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(1 * MIN);
    world.cluster.update("apps/a", blank);
    await world.clock.advance(1 * S);
    assertEquals(held(world), world.issuer.requests[0]!.token);
    assertEquals([world.issuer.requests.length, world.cluster.events.length], [1, 1]);
  },
);

rule(
  "Another writer's wrong tokens are treated like blanks: spaced writes, one Warning",
  async (world) => {
    const iat = Math.floor(world.clock.now() / S);
    const forged = [
      world.jwt({ aud: "cgr.dev", sub: BOB, iat, exp: iat + 80_000 }),
      world.jwt({ aud: "cgr.dev", sub: ALICE, exp: iat + 1e9 }),
      world.jwt({ aud: "cgr.dev", sub: ALICE, iat: iat - 7200, exp: iat - 3600 }),
      "x",
    ];
    world.cluster.create(secret("a"));
    world.start();
    for (let step = 0; step < 1200; step++) {
      await world.clock.advance(500);
      world.cluster.update("apps/a", { data: { [DATA_KEY]: base64(configOf(forged[step % 4]!)) } });
    }
    const writes = written(world).map(({ endedAt }) => endedAt);
    assert(writes.length > 15 && gaps(writes).every((gap) => gap >= 30 * S), `${gaps(writes)}`);
    assertEquals(world.issuer.requests.length, 1);
  },
);

rule(
  "A forged token with a day to live blocks no refresh, and is gone within the day",
  async (world) => {
    const iat = Math.floor(world.clock.now() / S);
    const forged = world.jwt({ aud: "cgr.dev", sub: ALICE, iat, exp: iat + 86_400 });
    world.cluster.create(secret("a", { config: configOf(forged) }));
    world.start();
    await world.clock.advance(1 * MIN);
    world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(1 * S);
    assertEquals(held(world), world.issuer.requests[0]!.token);
    world.cluster.update("apps/a", { data: { [DATA_KEY]: base64(configOf(forged)) } });
    await world.clock.advance(24 * HOUR);
    assertNotEquals(held(world), forged);
    assertEquals(expiredFor(world), 0);
  },
);

rule("Spacing is half a token's life where that is less than 30 s", async (world) => {
  world.issuer.life = 20 * S;
  world.cluster.create(secret("a"));
  world.start();
  for (let step = 0; step < 200; step++) {
    await world.clock.advance(300);
    world.cluster.update("apps/a", blank);
  }
  const writes = gaps(written(world).map(({ endedAt }) => endedAt));
  assert(writes.length >= 4 && writes.every((gap) => gap >= 9 * S && gap < 12 * S), `${writes}`);
});

rule(
  "Cycling identities does not spin: no more than six exchanges and writes a minute",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    for (let step = 0; step < 1200; step++) {
      world.cluster.update("apps/a", annotate({ [IDENTITY]: identityOf(step + 1) }));
      await world.clock.advance(250);
    }
    assert(world.issuer.requests.length <= 5 * 6 + 2, `${world.issuer.requests.length} exchanges`);
    assert(written(world).length <= 5 * 6 + 2, `${written(world).length} writes`);
    await world.clock.advance(15 * S);
    assertEquals(claimsOf(held(world)).subject, identityOf(1200));
  },
);

rule("Cycling service accounts does not spin either", async (world) => {
  world.cluster.create(secret("a"));
  world.start();
  for (let step = 0; step < 1200; step++) {
    world.cluster.update("apps/a", annotate({ [ACCOUNT]: `account-${step}` }));
    await world.clock.advance(250);
  }
  assert(
    asked(world, "token").length <= 5 * 6 + 2,
    `${asked(world, "token").length} token requests`,
  );
  assert(world.issuer.requests.length <= 5 * 6 + 2, `${world.issuer.requests.length} exchanges`);
});

rule(
  "An issuer whose every token is for somebody else, or no good, brings about no write and few exchanges",
  async (world) => {
    world.cluster.create(secret("a"));
    world.issuer.fault = () => {
      const now = Math.floor(world.clock.now() / S);
      const bad = [
        fresh(world, { sub: BOB }),
        fresh(world, { aud: "x" }),
        "",
        "a.b.c",
        fresh(world, { exp: now + 4 }),
        fresh(world, { iat: now + 120 }),
        fresh(world, { exp: now + 90_000 }),
        fresh(world, { pad: "x".repeat(16 * 1024) }),
      ];
      return bad[world.issuer.requests.length % bad.length]!;
    };
    world.start();
    await world.clock.advance(1 * HOUR);
    assertEquals(asked(world, "patch"), []);
    assert(world.issuer.requests.length < 25, `${world.issuer.requests.length}`);
  },
);

rule(
  "Tokens that say another account than the one asked for are written once a life, not over and over",
  async (world) => {
    world.issuer.claims = () => ({ act: { sub: "system:serviceaccount:apps:other" } });
    world.cluster.create(secret("a", { annotations: { [ACCOUNT]: "puller" } }));
    world.start();
    await world.clock.advance(2 * HOUR);
    assert(written(world).length <= 5, `${written(world).length}`);
    assert(world.issuer.requests.length <= 5, `${world.issuer.requests.length}`);
  },
);

// ───── Clocks ─────

for (const skew of [-55 * S, -20 * S, 20 * S, 40 * S]) {
  rule(`A clock that is off by ${skew / S} s changes nothing but a little`, async (world) => {
    world.issuer.life = 10 * MIN;
    world.cluster.create(secret("a"));
    world.start({ skew });
    await world.clock.advance(5 * HOUR);
    const ages = agesAtReplacement(world);
    assert(ages.length > 25 && ages.every((age) => age > 0.6 && age < 0.9), `${ages}`);
    assertEquals(expiredFor(world), 0);
    assertEquals(world.cluster.events.length, 1);
  });
}

rule(
  "A machine that slept for two hours replaces the expired token within half a minute",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(10 * MIN);
    world.clock.slept += 2 * HOUR;
    await world.clock.advance(31 * S);
    assert(claimsOf(held(world)).expiresAt > world.clock.now());
    assertEquals([world.issuer.requests.length, written(world).length], [2, 2]);
  },
);

rule("A machine that slept until a token was due replaces it before it expires", async (world) => {
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(10 * MIN);
  world.clock.slept += 45 * MIN;
  await world.clock.advance(31 * S);
  assertEquals([world.issuer.requests.length, written(world).length], [2, 2]);
  await world.clock.advance(5 * HOUR);
  assertEquals(expiredFor(world), 0);
});

rule(
  "A wall clock that is set forward or back and right again leaves a valid token in the Secret, and spins never",
  async (world) => {
    world.cluster.create(secret("a"));
    const replica = world.start();
    for (const jump of [30 * MIN, -30 * S, -2 * HOUR, 5 * HOUR, -30 * 24 * HOUR]) {
      await world.clock.advance(20 * MIN);
      replica.clock.skew = jump;
      await world.clock.advance(3 * MIN);
      replica.clock.skew = 0;
    }
    await world.clock.advance(2 * HOUR);
    assertEquals(expiredFor(world), 0);
    assert(world.issuer.requests.length < 40, `${world.issuer.requests.length} exchanges`);
    assert(written(world).length < 20, `${written(world).length} patches`);
  },
);

// ───── Several replicas ─────

const TWO = { identities: 5, secrets: 20, life: 60 * S, during: 15 * MIN };

async function run(world: VirtualWorld, replicas: number): Promise<number> {
  world.issuer.life = TWO.life;
  for (let number = 0; number < TWO.secrets; number++) {
    world.cluster.create(secret(`s-${number}`, { identity: identityOf(number % TWO.identities) }));
  }
  for (let number = 0; number < replicas; number++) world.start();
  await world.clock.advance(TWO.during);
  assertEquals(expiredFor(world), 0);
  return written(world).length;
}

rule(
  "Two replicas never leave an expired token, and make hardly more patches than one",
  async (world) => {
    const alone = await run(new VirtualWorld(2), 1);
    const two = await run(world, 2);
    assert(two <= 1.15 * alone, `${two} patches of two, ${alone} of one`);
    assert(
      world.issuer.requests.length <= 2 * TWO.identities * (TWO.during / (0.67 * TWO.life) + 1),
    );
    const tries = asked(world, "patch").length;
    assert(tries <= 1.1 * two + 20, `${tries} tries for ${two} patches`);
  },
);

rule(
  "A replica that always came too late is no slower when the other one is gone",
  async (world) => {
    world.issuer.life = 12 * S;
    world.cluster.create(secret("a"));
    world.start();
    const second = world.start();
    world.cluster.fault = ({ verb, replica }) =>
      verb === "patch" && replica === second.name ? apiAnswer(409) : undefined;
    await world.clock.advance(5 * MIN);
    assert(metric(second, 'refreshes_total{result="conflict"}')! > 4);
    world.cluster.fault = () => undefined;
    world.replicas[0]!.stop();
    await world.clock.advance(1 * MIN);
    assertEquals(expiredFor(world), 0);
  },
);

for (const seed of [1, 2, 3]) {
  rule(
    `Either of two replicas may be stopped and started at any time (seed ${seed})`,
    async (world) => {
      world.issuer.life = TWO.life;
      for (let number = 0; number < TWO.secrets; number++) {
        world.cluster.create(
          secret(`s-${number}`, { identity: identityOf(number % TWO.identities) }),
        );
      }
      let running = [world.start(), world.start()];
      for (let step = 0; step < 30; step++) {
        await world.clock.advance(world.random() * 40 * S);
        const [victim, other] = world.random() < 0.5 ? running : running.toReversed();
        victim!.stop();
        await world.clock.advance(world.random() * 20 * S);
        running = [other!, world.start()];
      }
      assertEquals(expiredFor(world), 0);
    },
    seed,
  );
}

rule(
  "Replicas that tie at the first write cost one conflict, not a second token in the Secret",
  async (world) => {
    world.start();
    world.start();
    await world.clock.advance(1 * S);
    world.cluster.create(secret("a"));
    await world.clock.advance(1 * MIN);
    assertEquals(asked(world, "patch").map(({ status }) => status).toSorted(), [200, 409]);
    assertEquals(told(world, "ExchangeFailed"), []);
  },
);

// ───── Secrets that come and go ─────

const GOING: [string, (world: VirtualWorld) => void][] = [
  ["is deleted", (world) => world.cluster.delete("apps/a")],
  [
    "loses its label",
    (world) => void world.cluster.update("apps/a", { metadata: { labels: { [IDENTITY]: null } } }),
  ],
];
for (const [what, go] of GOING) {
  for (const at of [2, 8, 20 * S, 41 * MIN]) {
    rule(
      `No timer is left for a Secret that ${what} after ${at} ms, and nothing is done for it`,
      async (world) => {
        const replica = world.start();
        await world.clock.advance(1 * S);
        const idle = replica.clock.pending();
        world.cluster.create(secret("a"));
        await world.clock.advance(at);
        go(world);
        await world.clock.advance(1 * S);
        assertEquals(replica.clock.pending(), idle);
        const before = [world.issuer.requests.length, asked(world, "patch").length];
        await world.clock.advance(3 * HOUR);
        assertEquals([world.issuer.requests.length, asked(world, "patch").length], before);
        assertEquals(metric(replica, 'secrets{state="valid"}'), 0);
        assert(!replica.renderMetrics().includes("token_expiry_timestamp_seconds{"));
      },
    );
  }
}

rule("Nothing is done for a failing Secret once it is gone", async (world) => {
  const replica = world.start();
  await world.clock.advance(1 * S);
  const idle = replica.clock.pending();
  world.cluster.create(secret("a"));
  world.cluster.create(secret("b", { type: "Opaque" }));
  world.issuer.fault = () => answer(403);
  await world.clock.advance(10 * MIN);
  world.cluster.delete("apps/a");
  world.cluster.delete("apps/b");
  const before = world.issuer.requests.length;
  await world.clock.advance(1 * HOUR);
  assertEquals(world.issuer.requests.length, before);
  assertEquals(replica.clock.pending(), idle);
});

rule(
  "A Secret that is made anew starts afresh: it is filled at once, whatever befell the one before",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(1 * S);
    for (let step = 0; step < 5; step++) {
      world.cluster.delete("apps/a");
      world.cluster.create(secret("a"));
      await world.clock.advance(1 * S);
      assertEquals(held(world), world.issuer.requests[0]!.token);
    }
    assertEquals(world.issuer.requests.length, 1);
  },
);

rule(
  "A Secret that was made anew while the watch was down starts afresh too: its uid is another",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(5 * S);
    world.cluster.deafen();
    world.cluster.delete("apps/a");
    world.cluster.create(secret("a"));
    world.cluster.compactedTo = 1e9;
    world.cluster.endWatches(new ApiError("too old", { status: 410 }));
    await world.clock.advance(1 * S);
    assertEquals(held(world), world.issuer.requests[0]!.token);
    assertEquals(told(world, "Overwritten"), []);
  },
);

rule(
  "A Secret made anew under the same name while it is patched is told from the old one",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.fault = ({ verb }) => verb === "patch" ? 50 : undefined;
    world.start();
    await world.clock.advance(30);
    world.cluster.delete("apps/a");
    world.cluster.create(secret("a", { identity: BOB }));
    await world.clock.advance(1 * S);
    assertEquals(claimsOf(held(world)).subject, BOB);
    assertEquals(world.cluster.get("apps/a").metadata.annotations![TOKEN_IDENTITY], BOB);
  },
);

rule("A Secret that is deleted while it is patched makes nobody list again", async (world) => {
  world.cluster.create(secret("a"));
  world.cluster.fault = ({ verb }) => verb === "patch" ? 50 : undefined;
  world.start();
  await world.clock.advance(30);
  world.cluster.delete("apps/a");
  await world.clock.advance(2 * S);
  world.cluster.endWatches();
  await world.clock.advance(1 * S);
  assertEquals([asked(world, "watch").length, wholeLists(world)], [2, 1]);
});

rule(
  "A list that was made before a write tells of nobody who replaces the token",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.fault = ({ verb }) =>
      verb === "patch" ? { ms: 500 } : verb === "list" ? { answerMs: 1 * S } : undefined;
    world.start();
    await world.clock.advance(1_200); // the patch is under way
    world.cluster.endWatches(apiAnswer(410));
    await world.clock.advance(5 * S);
    assertEquals([wholeLists(world), written(world).length], [2, 1]);
    assertEquals(told(world, "Overwritten"), []);
  },
);

rule("A Secret that is relabelled is looked after again", async (world) => {
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(1 * MIN);
  world.cluster.update("apps/a", { metadata: { labels: { [IDENTITY]: null } } });
  await world.clock.advance(2 * HOUR);
  world.cluster.update("apps/a", { metadata: { labels: { [IDENTITY]: "" } } });
  await world.clock.advance(1 * S);
  assert(claimsOf(held(world)).expiresAt > world.clock.now());
});

for (const seen of ["MODIFIED", "DELETED"] as const) {
  rule(`What comes late, of an older resource version, is ignored (${seen})`, async (world) => {
    const old = world.cluster.create(secret("a"));
    const replica = world.start();
    await world.clock.advance(1 * S);
    world.cluster.history.push({ ...world.cluster.history[0]!, secret: old, seen });
    world.cluster.create(secret("b"));
    await world.clock.advance(1 * S);
    assertEquals(metric(replica, 'secrets{state="valid"}'), 2);
    await world.clock.advance(40 * S);
    assertEquals(asked(world, "patch").map(({ name }) => name), ["a", "b"]);
    assertEquals(told(world, "Overwritten"), []);
  });
}

rule("Of a Secret that is being deleted nothing more is done", async (world) => {
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(1 * MIN);
  world.cluster.update("apps/a", {
    ...blank,
    metadata: { deletionTimestamp: "2027-01-01T00:00:00Z" },
  });
  await world.clock.advance(2 * HOUR);
  assertEquals(written(world).length, 1);
  assertEquals(world.cluster.events.length, 1);
});

for (
  const parts of [{ type: "Opaque" }, { immutable: true }, { identity: "x" }, { config: "[]" }, {
    annotations: { [ACCOUNT]: "" },
  }] as Parts[]
) {
  rule(
    `A Secret that cannot be served (${
      JSON.stringify(parts)
    }) costs no exchange, no write and one Warning; once mended it is filled`,
    async (world) => {
      world.cluster.create(secret("a", parts));
      world.cluster.create(secret("b", { identity: BOB }));
      world.start();
      await world.clock.advance(25 * MIN);
      assertEquals(world.issuer.requests.map(({ identity }) => identity), [BOB]);
      assertEquals(asked(world, "patch", "a"), []);
      assertEquals(world.cluster.events.filter(({ type }) => type === "Warning").length, 1);
      world.cluster.delete("apps/a");
      world.cluster.create(secret("a"));
      await world.clock.advance(1 * S);
      assertNotEquals(held(world), undefined);
    },
  );
}

rule(
  "A docker config too deep to be written again is reported, never written, and keeps nobody from theirs",
  async (world) => {
    world.cluster.create(
      secret("a", { config: '{"a":'.repeat(100_000) + "1" + "}".repeat(100_000) }),
    );
    world.cluster.create(secret("b"));
    world.start();
    for (let step = 0; step < 30; step++) {
      await world.clock.advance(500);
      world.cluster.update("apps/a", annotate({ note: `${step}` }));
    }
    assertEquals(told(world, "InvalidDockerConfig").length, 1);
    assertEquals(asked(world, "patch").map(({ name }) => name), ["b"]);
    assert(asked(world, "get").length < 8, `${asked(world, "get").length} reads`);
    assertEquals(world.issuer.requests.length, 1);
  },
);

rule(
  "After a token too short to be of use the issuer is asked again at half of what the Secret's has left",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(1 * S);
    const { expiresAt } = claimsOf(held(world));
    world.issuer.claims = () => ({ exp: Math.floor(world.clock.now() / 1000) + 6 });
    await world.clock.advance(48 * MIN);
    world.issuer.claims = () => ({});
    const asked = world.issuer.requests.length;
    assert(asked > 1 && asked < 5, `asked ${asked} times`);
    assertEquals(claimsOf(held(world)).expiresAt, expiresAt);
    await world.clock.advance(8 * MIN);
    assert(claimsOf(held(world)).expiresAt > expiresAt);
    assertEquals(world.issuer.requests.length, asked + 1);
  },
);

for (
  const [what, end, during] of [
    [
      "and the API server was away meanwhile",
      new ApiError("cut", { reason: "UND_ERR_SOCKET" }),
      new Error("connect ECONNREFUSED"),
    ],
    ["and the API server throttled meanwhile", "end", apiAnswer(429)],
    ["and every version was too old meanwhile", "end", apiAnswer(410)],
  ] as const
) {
  rule(`An etcd that was restored from a backup is followed, ${what}`, async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.create(secret("b"));
    world.start();
    await world.clock.advance(2 * HOUR);
    const restore = world.cluster.backUp();
    // Its token has expired by then.
    await world.clock.advance(65 * MIN);
    for (let step = 0; step < 50; step++) {
      world.cluster.update("apps/b", annotate({ note: `${step}` }));
    }
    await world.clock.advance(1 * S);

    world.cluster.fault = () => during;
    world.cluster.endWatches(end);
    await world.clock.advance(1 * MIN);
    restore();
    world.cluster.fault = () => undefined;
    await world.clock.advance(6 * S);
    for (const name of ["a", "b"]) {
      assert(claimsOf(held(world, name)).expiresAt > world.clock.now(), name);
    }
    world.cluster.create(secret("c", { identity: BOB }));
    await world.clock.advance(1 * S);
    assertNotEquals(held(world, "c"), undefined);
  });
}

rule(
  "A restored etcd that has counted on past what is known is noticed by the next conflict",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.create({ ...secret("other"), metadata: { namespace: "apps", name: "other" } });
    world.start();
    await world.clock.advance(1 * MIN);
    const restore = world.cluster.backUp(0);
    await world.clock.advance(50 * MIN);
    restore();
    for (let step = 0; step < 50; step++) {
      world.cluster.update(
        "apps/other",
        annotate({ note: `${step}` }),
      );
    }
    world.cluster.endWatches();
    await world.clock.advance(45 * MIN);
    assert(claimsOf(held(world)).expiresAt > world.clock.now());
  },
);

rule("A stopped replica sends nothing more, and leaves no timer", async (world) => {
  for (let number = 0; number < 20; number++) {
    world.cluster.create(secret(`s-${number}`, { identity: identityOf(number) }));
  }
  world.issuer.fault = ({ identity }) => identity === identityOf(3) ? "hang" : undefined;
  world.cluster.fault = ({ verb, name }) => verb === "patch" && name === "s-1" ? "hang" : undefined;
  const replica = world.start();
  await world.clock.advance(3 * S);
  replica.stop();
  await world.clock.advance(1);
  assertEquals(replica.clock.pending(), 0);
  const before = [world.issuer.requests.length, world.cluster.requests.length];
  await world.clock.advance(2 * HOUR);
  assertEquals([world.issuer.requests.length, world.cluster.requests.length], before);
});

// ───── Events ─────

rule("An event has the form of events.k8s.io/v1, on the Secret", async (world) => {
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(1 * S);
  const [{ at: _, ...event }] = world.cluster.events;
  assertMatch(event.eventTime, /^2027-01-01T00:00:00\.\d{6}Z$/);
  assertMatch(event.reportingInstance, /^controller-\w+$/);
  const { expiresAt } = claimsOf(held(world));
  assertEquals(event, {
    metadata: { generateName: "pull-secret-updater-", namespace: "apps" },
    eventTime: event.eventTime,
    reportingController: "pull-secret-updater.chainguard.dev/controller",
    reportingInstance: event.reportingInstance,
    action: "Refresh",
    regarding: { apiVersion: "v1", kind: "Secret", namespace: "apps", name: "a", uid: "uid-1" },
    reason: "TokenIssued",
    type: "Normal",
    note: `the Secret holds a token of ${ALICE} until ${new Date(expiresAt).toISOString()}`,
  });
});

rule(
  "TokenIssued is told of the first token, of another identity and of a recovery, never of a refresh",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(24 * HOUR);
    assertEquals(told(world, "TokenIssued").length, 1);
    world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(1 * HOUR);
    assertEquals(told(world, "TokenIssued").length, 1);
    world.cluster.update("apps/a", annotate({ [IDENTITY]: BOB }));
    await world.clock.advance(1 * HOUR);
    assertEquals(told(world, "TokenIssued").length, 2);
    world.issuer.fault = () => answer(503);
    await world.clock.advance(1 * HOUR);
    world.issuer.fault = () => undefined;
    await world.clock.advance(1 * HOUR);
    assertEquals(told(world, "TokenIssued").length, 3);
    assertEquals(told(world, "ExchangeFailed").length >= 1, true);
  },
);

rule("A problem that stands is told again every 30 min, whatever else happens", async (world) => {
  for (const parts of [{ identity: "x" }, { type: "Opaque" }, { config: "[]" }]) {
    world.cluster.create(secret(`s-${Object.keys(parts)}`, parts));
  }
  world.cluster.create(secret("a"));
  world.issuer.fault = () => answer(403);
  world.start();
  for (let step = 0; step < 3 * 60; step++) {
    await world.clock.advance(1 * MIN);
    for (const key of world.cluster.secrets.keys()) {
      world.cluster.update(key, annotate({ note: `${step}` }));
    }
  }
  for (
    const reason of [
      "InvalidIdentity",
      "UnsupportedSecret",
      "InvalidDockerConfig",
      "ExchangeFailed",
    ]
  ) {
    const times = told(world, reason).map(({ at }) => at);
    assert(times.length === 6 || times.length === 7, `${reason}: ${times.length}`);
    assert(
      gaps(times).every((gap) => gap >= 30 * MIN && gap < 36 * MIN),
      `${reason}: ${gaps(times)}`,
    );
  }
});

rule(
  "The same reason for the same name is told every 5 min at most, though its message changes or it is made anew",
  async (world) => {
    world.cluster.create(secret("a", { identity: "0" }));
    world.start();
    for (let step = 1; step <= 60; step++) {
      await world.clock.advance(20 * S);
      if (step % 2) {
        world.cluster.update("apps/a", annotate({ [IDENTITY]: `x${step}` }));
      } else {
        world.cluster.delete("apps/a");
        world.cluster.create(secret("a", { identity: `y${step}` }));
      }
    }
    const times = told(world, "InvalidIdentity").map(({ at }) => at);
    assert(times.length >= 3 && times.length <= 5, `${times.length}`);
    assert(gaps(times).every((gap) => gap >= 5 * MIN), `${gaps(times)}`);
  },
);

rule(
  "A namespace has 6 events in 5 s; beyond it they are dropped and counted, never queued",
  async (world) => {
    for (let number = 0; number < 50; number++) {
      world.cluster.create(
        secret(`s-${number}`, { identity: "x" }),
      );
    }
    const replica = world.start();
    await world.clock.advance(20 * MIN);
    assertEquals(world.cluster.events.length, 6);
    assertEquals(metric(replica, "events_dropped_total"), 44);
  },
);

rule(
  "An event that was dropped is told when its Secret is next looked at, and there is room",
  async (world) => {
    world.start();
    await world.clock.advance(1 * S);
    const names = Array.from({ length: 10 }, (_, number) => `s-${number}`);
    for (const name of names) world.cluster.create(secret(name, { identity: "nonsense" }));
    await world.clock.advance(10 * S);
    assertEquals(told(world, "InvalidIdentity").length, 6);
    for (const name of names) world.cluster.update(`apps/${name}`, annotate({ touched: "" }));
    await world.clock.advance(1 * S);
    assertEquals(told(world, "InvalidIdentity").length, 10);
  },
);

rule("All namespaces together have 25 events in 5 s", async (world) => {
  for (let number = 0; number < 50; number++) {
    world.cluster.create(secret("a", { identity: "x", namespace: `n-${number}` }));
  }
  const replica = world.start();
  await world.clock.advance(1 * MIN);
  assertEquals(world.cluster.events.length, 25);
  assertEquals(metric(replica, "events_dropped_total"), 25);
  world.cluster.create(secret("b", { identity: "x" }));
  await world.clock.advance(1 * S);
  assertEquals(world.cluster.events.length, 26);
});

for (const fault of [apiAnswer(403), apiAnswer(500), "hang"] as Fault[]) {
  rule(
    `An event that cannot be written (${fault}) slows nothing down, and is logged`,
    async (world) => {
      world.cluster.create(secret("a"));
      world.cluster.create(secret("b", { identity: "x" }));
      world.cluster.fault = ({ verb }) => verb === "event" ? fault : undefined;
      world.start();
      await world.clock.advance(100);
      assertNotEquals(held(world), undefined);
      await world.clock.advance(5 * MIN);
      assertEquals(asked(world, "event").length, 2);
      assertEquals(world.lines.filter((line) => line.includes("event not written")).length, 2);
    },
  );
}

rule(
  "A refusal says whose subject token it was, and how to bind the identity: with the UID alone",
  async (world) => {
    for (const [index, status] of [401, 403, 400, 404].entries()) {
      world.cluster.create(secret(`s-${status}`, { identity: identityOf(index) }));
    }
    world.issuer.fault = ({ identity }) =>
      answer([401, 403, 400, 404][+identity.slice(-1)]!, "denied \u202e$(rm -rf /)");
    world.start();
    await world.clock.advance(1 * S);
    for (const { note, regarding } of told(world, "ExchangeFailed")) {
      assertStringIncludes(note, "denied \ufffd$(rm -rf /)");
      const isBinding = ["s-401", "s-403"].includes(regarding.name);
      assertEquals(note.includes("chainctl iam identities create "), isBinding, regarding.name);
      if (!isBinding) continue;
      for (
        const text of ["iss=https://cluster.example", `sub=${CONTROLLER}`, "aud=issuer.enforce.dev"]
      ) {
        assertStringIncludes(note, text);
      }
      const line = note.slice(note.indexOf("chainctl"));
      assertStringIncludes(line, `--parent=${"a".repeat(40)} --role=registry.pull`);
      assert(!line.includes("rm"), line);
    }
  },
);

rule("What a subject token says of itself is cleaned before it is told", async (world) => {
  world.cluster.create(secret("a"));
  world.issuer.fault = () => answer(403);
  const hidden = world.subjectToken("x", "x", 60);
  world.readSubjectToken = () =>
    world.subjectToken(`a\u001b[2J\u202e${hidden}`, `b\n${"y".repeat(500)}`, 600);
  world.start();
  await world.clock.advance(1 * S);
  const [{ note }] = told(world, "ExchangeFailed");
  assertMatch(note, /sub=a\ufffd\[2J\ufffd\[removed\] aud=b\ufffdy{198}\. /);
});

rule(
  "The issuer's message is cleaned before it is told: a token in it, control characters, its length",
  async (world) => {
    world.cluster.create(secret("a"));
    world.issuer.fault = ({ subject }) =>
      answer(503, `${world.subjectToken(subject, "x", 60)} \u001b[31m\u2028${"z".repeat(5000)}`);
    world.start();
    await world.clock.advance(1 * S);
    const [{ note }] = told(world, "ExchangeFailed");
    assertMatch(note, /^the issuer answered 503: \[removed\] \ufffd\[31m\ufffdz+$/);
    assertEquals(note.length, 200);
  },
);

rule("An event's note is never too long for the API server, whatever it quotes", async (world) => {
  world.cluster.create(secret("a", { identity: "\u{1f980}".repeat(300) }));
  world.cluster.create(secret("b"));
  world.issuer.fault = () => answer(403, "\u20ac".repeat(300));
  world.readSubjectToken = () =>
    world.subjectToken("\u20ac".repeat(300), "\u20ac".repeat(300), 600);
  world.start();
  await world.clock.advance(1 * S);
  assertEquals(told(world, "InvalidIdentity").length, 1);
  assertEquals(told(world, "ExchangeFailed").length, 1);
});

rule("An identity that is told was cleaned", async (world) => {
  world.cluster.create(
    secret("a", { identity: `${token()}\u001b]0;\u0007\u202e${"q".repeat(400)}` }),
  );
  world.start();
  await world.clock.advance(1 * S);
  const [{ note }] = told(world, "InvalidIdentity");
  assertMatch(note, /^the identity "\[removed\]\ufffd\]0;\ufffd\ufffdq{180,190}" is not a UID/);
});

// ───── Metrics ─────

rule(
  "The metrics count Secrets by state, refreshes by result, exchanges, and dropped events",
  async (world) => {
    world.issuer.fault = ({ identity }) =>
      identity === BOB ? answer(403) : identity === identityOf(3) ? answer(503) : 250;
    world.cluster.create(secret("a"));
    world.cluster.create(secret("b", { identity: BOB }));
    world.cluster.create(secret("c", { type: "Opaque" }));
    world.cluster.create(secret("d", { identity: "x" }));
    const now = Math.floor(world.clock.now() / S);
    const expired = world.jwt({
      aud: "cgr.dev",
      sub: identityOf(3),
      iat: now - 3600,
      exp: now - 1,
    });
    world.cluster.create(secret("e", { identity: identityOf(3), config: configOf(expired) }));
    const replica = world.start();
    await world.clock.advance(400);
    const expected = {
      'build_info{version="0.1.0"}': 1,
      'secrets{state="valid"}': 1,
      'secrets{state="missing"}': 1,
      'secrets{state="expired"}': 1,
      'secrets{state="skipped"}': 2,
      'token_expiry_timestamp_seconds{namespace="apps",name="a"}': claimsOf(held(world)).expiresAt /
        S,
      'token_expiry_timestamp_seconds{namespace="apps",name="e"}': now - 1,
      'refreshes_total{result="success"}': 1,
      'refreshes_total{result="refused"}': 1,
      'refreshes_total{result="failed"}': 1,
      exchange_duration_seconds_count: 3,
      exchange_duration_seconds_sum: 0.26,
    };
    for (const [series, value] of Object.entries(expected)) {
      assertEquals(
        metric(replica, series),
        value,
        series,
      );
    }
    replica.countAnswer("patch", "200");
    replica.countAnswer("patch", "200");
    assertEquals(metric(replica, 'api_requests_total{verb="patch",code="200"}'), 2);
    world.cluster.endWatches();
    await world.clock.advance(2 * S);
    assertEquals(metric(replica, 'watch_restarts_total{reason="short"}'), 1);
  },
);

rule(
  "Each metric has its help and type before its samples, and nothing stands twice",
  async (world) => {
    world.cluster.create(secret("a"));
    const replica = world.start();
    await world.clock.advance(1 * S);
    const seen = new Set<string>();
    let family = "";
    for (const line of replica.renderMetrics().trimEnd().split("\n")) {
      const [, kind, name] = /^# (HELP|TYPE) (\w+) /.exec(line) ?? [];
      if (kind === "HELP") family = name!;
      else if (kind === "TYPE") assertEquals(name, family);
      else assertMatch(line, new RegExp(`^${family}(_sum|_count)?(\\{[^{}]*\\})? [0-9.e+]+$`));
      const series = kind ? `${kind} ${name}` : line.split(" ")[0]!;
      assert(!seen.has(series), series);
      seen.add(series);
    }
    assert(seen.size > 20);
  },
);

rule("A label's value is escaped in the metrics", async (world) => {
  world.cluster.create(secret('a"b\\c\td', {}));
  const replica = world.start();
  await world.clock.advance(1 * S);
  assertStringIncludes(
    replica.renderMetrics(),
    'token_expiry_timestamp_seconds{namespace="apps",name="a\\"b\\\\c?d"} ',
  );
});

rule("The expiry has 10,000 series at most, the states count all", async (world) => {
  const iat = Math.floor(world.clock.now() / S);
  const config = configOf(world.jwt({ aud: "cgr.dev", sub: ALICE, iat, exp: iat + 3600 }));
  for (let number = 0; number < 10_050; number++) {
    world.cluster.create(secret(`s-${number}`, { config }));
  }
  const replica = world.start();
  await world.clock.advance(1 * S);
  assertEquals(metric(replica, 'secrets{state="valid"}'), 10_050);
  assertEquals(replica.renderMetrics().split("token_expiry_timestamp_seconds{").length - 1, 10_000);
});

// ───── Probes ─────

const OUTAGES: [string, (world: VirtualWorld) => void][] = [
  ["the issuer hangs", (world) => world.issuer.fault = () => "hang"],
  ["the issuer is down", (world) => world.issuer.fault = () => answer(503, "no", "300")],
  ["the issuer refuses", (world) => world.issuer.fault = () => answer(403)],
  ["the API server hangs", (world) => world.cluster.fault = () => "hang"],
  ["the API server is slow", (world) => world.cluster.fault = () => 25 * S],
  [
    "the API server's writes hang",
    (world) =>
      world.cluster.fault = ({ verb }) => verb === "patch" || verb === "get" ? "hang" : undefined,
  ],
  ["the API server throttles", (world) => world.cluster.fault = () => apiAnswer(429, "3000")],
  ["the API server throttles slowly", (world) => {
    const slowly = { after: apiAnswer(503, "3000"), ms: 25 * S };
    world.cluster.fault = ({ verb }) => verb === "list" || verb === "watch" ? slowly : undefined;
  }],
  ["the watches are deaf", (world) => world.cluster.isDeaf = true],
];
for (const [what, begin] of OUTAGES) {
  rule(`/healthz does not fail while ${what}`, async (world) => {
    for (let number = 0; number < 60; number++) {
      const config = number % 3 ? "{}" : '{"auths":{},"other":1}';
      world.cluster.create(secret(`s-${number}`, { identity: identityOf(number % 40), config }));
    }
    world.issuer.life = 5 * MIN;
    const replica = world.start();
    await world.clock.advance(1 * MIN);
    begin(world);
    world.cluster.endWatches();
    for (let step = 0; step < 120; step++) {
      await world.clock.advance(15 * S);
      assertEquals(replica.findStuck(), undefined);
    }
  });
}

rule(
  "/healthz does not fail while the API server hangs from the start; /readyz does",
  async (world) => {
    world.cluster.fault = () => "hang";
    const replica = world.start();
    for (let step = 0; step < 60; step++) {
      await world.clock.advance(20 * S);
      assertEquals(replica.findStuck(), undefined);
      assertStringIncludes(replica.findUnready()!, "list");
    }
  },
);

rule(
  "/healthz fails a minute after a timer was lost, and not before there was anything to do",
  async (world) => {
    world.cluster.create(secret("a"));
    const replica = world.start();
    await world.clock.advance(1 * MIN);
    replica.clock.loseTimers();
    await world.clock.advance(35 * MIN);
    assertEquals(replica.findStuck(), undefined);
    await world.clock.advance(15 * MIN);
    assertStringIncludes(replica.findStuck()!, "work is due");
  },
);

rule(
  "/healthz fails when the watch loop has neither tried nor received anything for 5 min",
  async (world) => {
    const client = world.cluster.client("replica-1");
    world.cluster.client = () => ({
      ...client,
      async *watch() {
        yield await new Promise<never>(() => {});
      },
    });
    const replica = world.start();
    await world.clock.advance(299 * S);
    assertEquals(replica.findStuck(), undefined);
    await world.clock.advance(2 * S);
    assertStringIncludes(replica.findStuck()!, "a watch");
  },
);

rule(
  "A watch that hangs in spite of its time-out is given up after two minutes, and opened again",
  async (world) => {
    const replica = world.start();
    await world.clock.advance(1 * S);
    world.cluster.fault = ({ verb }) => verb === "watch" ? Infinity : undefined;
    world.cluster.endWatches();
    await world.clock.advance(10 * S);
    world.cluster.fault = () => undefined;
    world.cluster.create(secret("a"));
    await world.clock.advance(2 * MIN);
    assertEquals(replica.findStuck(), undefined);
    assertNotEquals(held(world), undefined);
  },
);

rule("/healthz fails when an exchange never ends, though it was given up", async (world) => {
  world.issuer.client = () => () => new Promise(() => {});
  world.cluster.create(secret("a"));
  const replica = world.start();
  await world.clock.advance(59 * S);
  assertEquals(replica.findStuck(), undefined);
  await world.clock.advance(2 * S);
  assertStringIncludes(replica.findStuck()!, "work is due");
});

rule("/healthz fails when a write never ends, though it was given up", async (world) => {
  const client = world.cluster.client("replica-1");
  world.cluster.client = () => ({ ...client, patch: () => new Promise(() => {}) });
  world.cluster.create(secret("a"));
  const replica = world.start();
  await world.clock.advance(62 * S);
  assertStringIncludes(replica.findStuck()!, "work is due");
});

rule("/healthz is well when nothing has been due for days", async (world) => {
  world.cluster.create(secret("b", { identity: "x" }));
  const replica = world.start();
  for (let step = 0; step < 48; step++) {
    await world.clock.advance(1 * HOUR);
    assertEquals(replica.findStuck(), undefined);
  }
});

rule("/readyz waits for every first list, and stays ready in an outage", async (world) => {
  world.cluster.fault = ({ verb, namespace }) =>
    verb === "list" && namespace === "two" ? apiAnswer(403) : undefined;
  const replica = world.start({ env: { WATCH_NAMESPACES: "one,two" } });
  await world.clock.advance(10 * S);
  assertStringIncludes(replica.findUnready()!, "list");
  world.cluster.fault = () => undefined;
  await world.clock.advance(11 * S);
  assertEquals(replica.findUnready(), undefined);
  world.cluster.fault = () => apiAnswer(500);
  world.cluster.endWatches();
  await world.clock.advance(10 * MIN);
  assertEquals(replica.findUnready(), undefined);
});

// ───── The watch ─────

const SLOW = 10 * S;
/** The most requests in any 10 s. */
function rate(world: VirtualWorld, from = 0): number {
  const times = world.cluster.requests.filter(({ verb, at }) =>
    ["list", "watch"].includes(verb) && at >= from
  ).map((
    { at },
  ) => at);
  return Math.max(
    0,
    ...times.map((start) => times.filter((at) => at >= start && at < start + SLOW).length),
  );
}

rule(
  "A watch that ends is opened again from the last version, at once and without a list",
  async (world) => {
    world.start();
    await world.clock.advance(20 * S);
    world.cluster.endWatches();
    world.cluster.create(secret("a"));
    await world.clock.advance(100);
    assertEquals([asked(world, "list").length, asked(world, "watch").length], [1, 2]);
    assertNotEquals(held(world), undefined);
  },
);

rule(
  "Watches are asked to live 60 to 90 s, and a list is never made again while they end well",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(24 * HOUR);
    assertEquals(asked(world, "list").length, 1);
    const lives = gaps(asked(world, "watch").map(({ at }) => at));
    assert(
      Math.min(...lives) >= 60 * S && Math.max(...lives) <= 90 * S + 100,
      `${Math.min(...lives)} ${Math.max(...lives)}`,
    );
    assert(new Set(lives.map((life) => Math.round(life / S))).size > 20, "they spread");
  },
);

rule("Bookmarks carry the version on, where nothing of ours changes", async (world) => {
  world.start();
  await world.clock.advance(10 * S);
  world.cluster.create({
    ...secret("unlabelled"),
    metadata: { namespace: "apps", name: "unlabelled" },
  });
  await world.clock.advance(3 * MIN);
  world.cluster.compactedTo = 1001;
  await world.clock.advance(10 * MIN);
  assertEquals(asked(world, "list").length, 1);
});

for (const life of [0, 50, 900, 1_100, 3_000]) {
  rule(
    `Watches that end after ${life} ms each cause no more than 2 requests a second, and miss nothing`,
    async (world) => {
      world.cluster.watchLife = life;
      world.start();
      await world.clock.advance(1 * MIN);
      world.cluster.create(secret("a"));
      await world.clock.advance(11 * S);
      assertNotEquals(held(world), undefined);
      await world.clock.advance(20 * MIN);
      assert(rate(world) <= 20, `${rate(world)} in 10 s`);
    },
  );
}

rule("A 410 leads to a list at once; a second one in a row backs off", async (world) => {
  world.cluster.create(secret("a"));
  const replica = world.start();
  await world.clock.advance(20 * S);
  world.cluster.endWatches(new ApiError("too old", { status: 410, reason: "Expired" }));
  await world.clock.advance(100);
  assertEquals([asked(world, "list").length, asked(world, "watch").length], [2, 2]);
  await world.clock.advance(20 * S);
  world.cluster.fault = ({ verb }) => verb === "watch" ? apiAnswer(410) : undefined;
  world.cluster.endWatches();
  await world.clock.advance(100);
  const [lists, watches] = [asked(world, "list").length, asked(world, "watch").length];
  assert(lists === 3 && watches === 4, `${lists} lists, ${watches} watches`);
  await world.clock.advance(20 * MIN);
  assert(rate(world) <= 20, `${rate(world)} in 10 s`);
  world.cluster.fault = () => undefined;
  await world.clock.advance(11 * S);
  assertEquals(written(world).length, 1);
  assert(metric(replica, 'watch_restarts_total{reason="gone"}')! > 10);
});

rule("A 410 does not touch what is known before the new list is there", async (world) => {
  world.cluster.create(secret("a"));
  const replica = world.start();
  await world.clock.advance(20 * S);
  const before = replica.clock.pending();
  world.cluster.fault = ({ verb }) => verb === "list" ? "hang" : undefined;
  world.cluster.endWatches(new ApiError("too old", { status: 410 }));
  await world.clock.advance(1 * HOUR);
  assert(replica.clock.pending() >= before - 1);
  assert(written(world).length >= 2, "it is refreshed all the same");
});

for (
  const [what, error, lists] of [
    ["ERROR 500", new ApiError("boom", { status: 500 }), 2],
    ["ERROR 404", new ApiError("boom", { status: 404 }), 2],
    ["ERROR 429", new ApiError("slow down", { status: 429 }), 1],
    ["InvalidAnswer", new ApiError("a line is not JSON", { reason: "InvalidAnswer" }), 2],
    ["a cut connection", new ApiError("cut", { reason: "UND_ERR_SOCKET" }), 1],
    ["401", new ApiError("no", { status: 401 }), 1],
    ["403", new ApiError("no", { status: 403 }), 1],
  ] as const
) {
  rule(
    `After a watch that ended by ${what} it backs off, and ${
      lists > 1 ? "lists again" : "goes on from the same version"
    }`,
    async (world) => {
      world.start();
      await world.clock.advance(20 * S);
      world.cluster.endWatches(error);
      await world.clock.advance(390);
      assertEquals([wholeLists(world), asked(world, "watch").length], [1, 1]);
      world.cluster.create(secret("a"));
      await world.clock.advance(500);
      assertEquals([wholeLists(world), asked(world, "watch").length], [lists, 2]);
      assertNotEquals(held(world), undefined);
    },
  );
}

rule("Retry-After of a watch or a list is waited for, 5 min at most", async (world) => {
  world.start();
  await world.clock.advance(20 * S);
  for (
    const [status, retryAfter, seconds] of [[429, "60", 60], [503, "60", 60], [
      429,
      "3600",
      300,
    ]] as const
  ) {
    const before = asked(world, "watch").length;
    world.cluster.fault = ({ verb }) =>
      verb === "watch" ? apiAnswer(status, retryAfter) : undefined;
    world.cluster.endWatches();
    await world.clock.advance(1 * S);
    const failed = asked(world, "watch").slice(before);
    assertEquals(failed.length, 1);
    world.cluster.fault = () => undefined;
    await world.clock.advance(305 * S);
    const next = world.cluster.requests.find(({ verb, at }) =>
      ["list", "watch"].includes(verb) && at > failed[0]!.at
    )!;
    assert(
      next.at - failed[0]!.at >= seconds * S && next.at - failed[0]!.at < seconds * S + 100,
      `${next.at - failed[0]!.at}`,
    );
  }
});

rule(
  "While it fails the waits double from 0.8 s, a random half to the whole, up to 5 s",
  async (world) => {
    world.start();
    await world.clock.advance(20 * S);
    world.cluster.fault = () => new ApiError("no answer", { reason: "ECONNREFUSED" });
    world.cluster.endWatches();
    await world.clock.advance(5 * MIN);
    const tries = world.cluster.requests.filter(({ verb }) => verb === "watch" || verb === "list")
      .slice(2);
    const waits = gaps(tries.map(({ at }) => at)).map((gap) => gap / S);
    for (const [index, wait] of waits.entries()) {
      const whole = Math.min(5, 0.8 * 2 ** index);
      assert(wait >= whole / 2 && wait <= whole + 0.01, `${index}: ${wait}`);
    }
    assert(waits.length > 40);
    world.cluster.create(secret("a"));
    world.cluster.fault = () => undefined;
    await world.clock.advance(5 * S + 100);
    assertNotEquals(held(world), undefined);
  },
);

rule(
  "After a failure it asks for the newest version once, and not for each watch that follows",
  async (world) => {
    world.start();
    await world.clock.advance(20 * S);
    world.cluster.endWatches(apiAnswer(429));
    world.cluster.watchLife = 1_100;
    await world.clock.advance(1 * MIN);
    assert(asked(world, "watch").length > 30);
    assertEquals(asked(world, "list").length, 2);
  },
);

rule("A newest version that cannot be had keeps the one that is known", async (world) => {
  world.start();
  await world.clock.advance(20 * S);
  world.cluster.fault = ({ verb }) => verb === "list" ? apiAnswer(500) : undefined;
  world.cluster.endWatches(new ApiError("cut", { reason: "UND_ERR_SOCKET" }));
  await world.clock.advance(30 * S);
  world.cluster.fault = () => undefined;
  await world.clock.advance(10 * S);
  assertEquals(wholeLists(world), 1);
  assertEquals(asked(world, "watch").length, 2);
});

rule("The back-off starts anew after a watch that lived 10 s", async (world) => {
  world.start();
  await world.clock.advance(1 * S);
  world.cluster.fault = () => new ApiError("no answer", { reason: "ECONNRESET" });
  world.cluster.endWatches();
  await world.clock.advance(2 * MIN);
  world.cluster.fault = () => undefined;
  await world.clock.advance(21 * S);
  const before = asked(world, "watch").length;
  world.cluster.endWatches(new ApiError("cut", { reason: "ECONNRESET" }));
  await world.clock.advance(810);
  assertEquals(asked(world, "watch").length, before + 1);
});

rule(
  "Secrets that came and went during an outage are found by the list after it",
  async (world) => {
    const replica = world.start();
    await world.clock.advance(1 * S);
    const idle = replica.clock.pending();
    world.cluster.create(secret("a"));
    await world.clock.advance(20 * S);
    world.cluster.fault = () => new ApiError("no answer", { reason: "ECONNREFUSED" });
    world.cluster.endWatches();
    world.cluster.delete("apps/a");
    world.cluster.create(secret("b"));
    world.cluster.delete("apps/b");
    world.cluster.create(secret("c"));
    world.cluster.compactedTo = 1e9;
    await world.clock.advance(10 * S);
    world.cluster.fault = () => undefined;
    await world.clock.advance(6 * S);
    assertNotEquals(held(world, "c"), undefined);
    assertEquals(metric(replica, 'secrets{state="valid"}'), 1);
    world.cluster.delete("apps/c");
    world.cluster.compactedTo = 0;
    await world.clock.advance(11 * S);
    assertEquals(replica.clock.pending(), idle);
  },
);

rule("A deaf watch is noticed within two minutes", async (world) => {
  world.start();
  await world.clock.advance(1 * S);
  world.cluster.deafen();
  world.cluster.create(secret("a"));
  await world.clock.advance(59 * S);
  assertEquals(held(world), undefined);
  await world.clock.advance(60 * S);
  assertNotEquals(held(world), undefined);
});

rule("A list is taken page by page", async (world) => {
  world.cluster.pageSize = 7;
  for (let number = 0; number < 50; number++) world.cluster.create(secret(`s-${number}`));
  world.start();
  await world.clock.advance(1 * S);
  assertEquals(asked(world, "list").length, 8);
  assertEquals(written(world).length, 50);
});

rule(
  "Each watched namespace has a list and a watch of its own, and no other is looked at",
  async (world) => {
    for (const namespace of ["one", "two", "three"]) {
      world.cluster.create(
        secret("a", { namespace }),
      );
    }
    world.start({ env: { WATCH_NAMESPACES: "one,two" } });
    await world.clock.advance(20 * S);
    assertEquals(written(world).map(({ namespace }) => namespace), ["one", "two"]);
    assertEquals(asked(world, "list").map(({ namespace }) => namespace), ["one", "two"]);
    world.cluster.fault = ({ verb, namespace }) =>
      verb === "watch" && namespace === "one" ? apiAnswer(500) : undefined;
    world.cluster.endWatches(new ApiError("too old", { status: 410 }));
    await world.clock.advance(10 * S);
    world.cluster.create(secret("b", { namespace: "two" }));
    await world.clock.advance(1 * S);
    assertNotEquals(held(world, "b", "two"), undefined);
    assertNotEquals(held(world, "a", "one"), undefined);
    assertEquals(written(world).length, 3);
  },
);

// ───── Properties ─────

/** How many cases, and from which seed: `FC_SEED=1 FC_RUNS=100000 node --test main_test.ts` for a long run. */
const cases = (numRuns: number) => ({
  numRuns: +(process.env.FC_RUNS ?? numRuns),
  seed: +(process.env.FC_SEED ?? 42),
});

const anyTime = fc.oneof(
  fc.integer({ min: NOW / S - 100_000, max: NOW / S + 100_000 }),
  fc.double(),
  fc.jsonValue(),
);
const anyClaims = fc.record({
  sub: fc.oneof(fc.constantFrom(ALICE, BOB, "user", ""), fc.jsonValue()),
  aud: fc.oneof(fc.constantFrom("cgr.dev", ["cgr.dev"], ["x", "cgr.dev"], "x"), fc.jsonValue()),
  iat: anyTime,
  exp: anyTime,
  act: fc.oneof(
    fc.record({ sub: fc.constantFrom(CONTROLLER, "system:serviceaccount:apps:x") }),
    fc.jsonValue(),
  ),
  iss: fc.jsonValue(),
}, { requiredKeys: [] });
const anyToken = fc.oneof(
  { weight: 4, arbitrary: anyClaims.map((claims) => token(claims as Record<string, unknown>)) },
  fc.string({ unit: "binary" }),
  fc.tuple(fc.string(), fc.json(), fc.string({ unit: "binary" })).map(([head, body, tail]) =>
    `${head}.${Buffer.from(body).toString("base64url")}.${tail}`
  ),
);
const anyEntry = fc.oneof(
  anyToken.map((jwt) => entryOf(jwt)),
  fc.record({ auth: fc.jsonValue() }),
  fc.jsonValue(),
);
const anyHost = fc.constantFrom("cgr.dev", "other.example", "__proto__", "constructor", "");
const anyConfig = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.tuple(
      fc.dictionary(anyHost, anyEntry),
      fc.dictionary(fc.string(), fc.jsonValue()),
    ).map((
      [auths, rest],
    ) => JSON.stringify({ ...rest, auths })),
  },
  fc.json(),
  fc.string({ unit: "binary" }),
  fc.uint8Array(),
);
const anySecret = fc.record({
  namespace: fc.constantFrom("apps", "pull-secret-updater", "__proto__"),
  identity: fc.oneof({ weight: 5, arbitrary: fc.constant(ALICE) }, fc.string({ unit: "binary" })),
  label: fc.oneof(fc.constant(""), fc.string()),
  annotations: fc.dictionary(
    fc.constantFrom(ACCOUNT, REFRESH, TOKEN_IDENTITY, IDENTITY),
    fc.oneof(fc.constantFrom("puller", ALICE, ""), fc.string()),
  ),
  config: anyConfig,
  type: fc.oneof({ weight: 5, arbitrary: fc.constant(TYPE) }, fc.string()),
  immutable: fc.constantFrom(undefined, false, true),
}, { requiredKeys: ["config"] });

test("No Secret whatever makes the verdict throw, nor is any with a problem refreshed or waited for", () => {
  fc.assert(
    fc.property(
      anySecret,
      fc.integer({ min: 0, max: 4e12 }),
      fc.constantFrom<string[]>(["cgr.dev"], ["cgr.dev", "constructor"]),
      (parts, now, registries) => {
        const facts = look(parts as Parts, registries);
        const judged = decide(facts, now, NOW);
        const isMissing = facts.tokens.some((own) => !own);
        assert(
          ["skip", "requested", "missing", "identity-changed", "expired", "due", "wait"].includes(
            judged,
          ),
        );
        assertEquals(judged === "skip", facts.problem !== undefined);
        if (judged === "due" || judged === "wait") {
          assert(
            !isMissing && facts.tokens.every((own) => own!.expiresAt > now),
          );
        }
        // Nothing but derived facts is kept.
        assert(
          JSON.stringify(facts).length < 4000 + 6 * JSON.stringify({ ...parts, config: "" }).length,
        );
      },
    ),
    cases(3000),
  );
});

/** JSON with each number as its text, and each object as its entries. */
const exactly = (text: string): unknown => {
  const keepText = (_key: string, value: unknown, context?: { source: string }) =>
    typeof value === "number" ? `number ${context!.source}` : value;
  return JSON.parse(text, keepText as (key: string, value: unknown) => unknown);
};
const anyNumber = fc.tuple(
  fc.constantFrom("", "-"),
  fc.bigInt({ min: 0n, max: 10n ** 40n }),
  fc.constantFrom("", ".0", ".10", "e5", "E-400", "e+400"),
).map((parts) => parts.join(""));

test("Whatever else is in a docker config survives a write exactly, to the digit", () => {
  fc.assert(
    fc.property(
      fc.dictionary(anyHost, fc.jsonValue()),
      fc.dictionary(fc.string({ unit: "binary" }), fc.jsonValue()),
      anyNumber,
      anyNumber,
      (auths, rest, one, two) => {
        const others = Object.entries(auths).filter(([host]) => host !== "cgr.dev").map((
          [host, entry],
        ) => `${JSON.stringify(host)}:${JSON.stringify(entry)}`);
        const fields = Object.entries(rest).filter(([key]) => key !== "auths").map(([key, value]) =>
          `${JSON.stringify(key)}:${JSON.stringify(value)}`
        );
        const withEntry = (entry: string) =>
          `{${
            [
              ...fields,
              `"one":${one}`,
              `"auths":{${[...others, `"two":[${two}]`, `"cgr.dev":${entry}`].join()}}`,
            ]
              .join()
          }}`;
        const after = withToken(withEntry('{"auth":"old","email":"x"}'), ["cgr.dev"], "a.b.c");
        assertEquals(exactly(after), exactly(withEntry(JSON.stringify(entryOf("a.b.c")))));
      },
    ),
    cases(2000),
  );
});

test("No text whatever makes the decoding of a token throw", () => {
  fc.assert(
    fc.property(anyToken, fc.integer({ min: 0, max: 4e12 }), (jwt, now) => {
      const claims = decode(jwt);
      if (claims) {
        findFlaw(claims, now);
        assert(new Date(claims.expiresAt).toISOString());
        assert(claims.audiences.every((audience) => typeof audience === "string"));
      }
      try {
        verify(jwt, ALICE, "cgr.dev", now);
      } catch (error) {
        assert(error instanceof StsError && error.refused);
        assert(jwt.length < 20 || !error.message.includes(jwt));
      }
    }),
    cases(3000),
  );
});

test("A token that passes for the issuer's passes in the Secret too, until it expires", () => {
  const claims = fc.record({
    sub: fc.constantFrom(ALICE, "user@example.com"),
    aud: fc.constantFrom("cgr.dev", ["x", "cgr.dev"]),
    iat: fc.option(fc.integer({ min: NOW / S - 86_400, max: NOW / S + 70 }), { nil: undefined }),
    exp: fc.integer({ min: NOW / S, max: NOW / S + 86_500 }),
    pad: fc.nat(12_500).map((length) => "x".repeat(length)),
  });
  let passed = 0;
  fc.assert(
    fc.property(claims, fc.double({ min: 0, max: 1, noNaN: true }), (parts, share) => {
      const jwt = token(parts);
      let expiresAt;
      try {
        ({ expiresAt } = verify(jwt, ALICE, "cgr.dev", NOW));
      } catch {
        return;
      }
      passed++;
      const config = withToken("{}", ["cgr.dev", "apk.cgr.dev"], jwt);
      const facts = look({ config, annotations: { [TOKEN_IDENTITY]: ALICE } }, [
        "cgr.dev",
        "apk.cgr.dev",
      ]);
      const now = NOW + Math.floor(share * (expiresAt - NOW - 1));
      assertEquals(facts.tokens.map((own) => findFlaw(own!, now)), [undefined]);
      assertEquals(decide(facts, now, Infinity), "wait");
      assertEquals(decide(facts, expiresAt, Infinity), "expired");
    }),
    cases(2000),
  );
  assert(passed > 100);
});

async function parse(
  chunks: Iterable<Uint8Array>,
): Promise<{ events: WatchEvent[]; error?: string }> {
  const events: WatchEvent[] = [];
  try {
    const body = async function* () {
      yield* chunks;
    };
    for await (const event of parseWatch(body())) events.push(event);
  } catch (error) {
    return { events, error: (error as Error).message };
  }
  return { events };
}

test("However a watch is cut into chunks, it gives the same events", async () => {
  const text = fc.string({ unit: "binary" });
  const anyRecord = fc.oneof(
    {
      weight: 8,
      arbitrary: fc.record({
        type: fc.constantFrom("ADDED", "MODIFIED", "DELETED"),
        object: fc.record({
          metadata: fc.record({ namespace: text, name: text, uid: text, resourceVersion: text }),
          data: fc.dictionary(text, text),
        }),
      }),
    },
    {
      weight: 3,
      arbitrary: fc.record({
        type: fc.constant("BOOKMARK"),
        object: fc.record({ metadata: fc.record({ resourceVersion: text }) }),
      }),
    },
    fc.constant({ type: "ERROR", object: { code: 410, message: "too old", reason: "Expired" } }),
    fc.record({ type: fc.string(), object: fc.jsonValue() }),
    fc.jsonValue(),
  );
  await fc.assert(
    fc.asyncProperty(
      fc.array(anyRecord, { maxLength: 8 }),
      fc.string({ unit: "binary" }),
      fc.infiniteStream(fc.integer({ min: 1, max: 40 })),
      async (records, tail, sizes) => {
        const bytes = Buffer.from(
          records.map((record) => JSON.stringify(record) + "\n").join("") +
            tail.replaceAll("\n", ""),
        );
        const chunks: Uint8Array[] = [];
        for (let start = 0; start < bytes.length;) {
          const size = sizes.next().value!;
          chunks.push(bytes.subarray(start, start + size));
          start += size;
        }
        const whole = await parse([bytes]);
        assertEquals(await parse(chunks), whole);
        const isFine = (record: unknown) =>
          /^(ADDED|MODIFIED|DELETED|BOOKMARK)$/.test(
            `${(record as { type?: string } | null)?.type}`,
          );
        if (records.every((record) => isFine(record)) && !whole.error) {
          assertEquals(whole.events.length, records.length);
        }
      },
    ),
    cases(1000),
  );
});

test("What was cleaned has no control or bidirectional character, no token, and 200 characters at most", () => {
  const piece = fc.oneof(
    fc.string({ unit: "binary" }),
    fc.constantFrom("\u202e", "\u0000", "\u001b[2J", "\u2028", "\ud800", "Bearer "),
    anyClaims.map((claims) => token(claims as Record<string, unknown>)),
    fc.string({ maxLength: 400 }),
  );
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 6 }), (pieces) => {
      const text = clean(pieces.join(" "));
      assert([...text].length <= 200);
      assert(!/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u.test(text), JSON.stringify(text));
      assert(!/eyJ/.test(text) && !/\bbearer\s+[!-~]/i.test(text), text);
    }),
    cases(2000),
  );
});
