/**
 * What a Secret holds, what it needs, what is written to it and how text from elsewhere is shown, as
 * rules: each title states one. The rules of the whole controller are in tests/controller/: they run in
 * virtual time (tests/virtual/world.ts). Nothing here sleeps, opens a socket or depends on chance.
 */
import { test } from "node:test";
import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { type Secret } from "./k8s.ts";
import { clean, createLog, decide, parseSecret, toNote, withToken } from "./main.ts";
import { decode, renewalTime, StsError, verify } from "./sts.ts";
import {
  DATA_KEY,
  HOUR,
  IDENTITY,
  REFRESH,
  REFRESHED,
  S,
  SERVICE_ACCOUNT,
  TOKEN_IDENTITY,
} from "./tests/support/names.ts";
import {
  ALICE,
  base64,
  BOB,
  configOf,
  entryOf,
  NOW,
  type Parts,
  secret,
  token,
} from "./tests/support/secrets.ts";

const CONFIG = {
  audience: "cgr.dev",
  registries: ["cgr.dev"],
  ownNamespace: "pull-secret-updater",
};
/** `{"ä":1}` as Windows writes it. */
const LATIN_1 = new Uint8Array([0x7b, 0x22, 0xe4, 0x22, 0x3a, 0x31, 0x7d]);
/** The fraction by which nothing is ever due. */
const NEVER = Infinity;

/** What is read from a Secret. */
const read = (parts: Parts, now = NOW, registries = ["cgr.dev"]) =>
  parseSecret(secret("a", parts), { ...CONFIG, registries }, now);

/** The decision at the instant `now`, when the Secret is read, for a token that is not due. */
const decision = (parts: Parts, now = NOW, registries = ["cgr.dev"]) =>
  decide(read(parts, now, registries), now, NEVER);
const problem = (parts: Parts) => read(parts).problem?.reason;

// ───── The decision ─────

test("1. A Secret that is being deleted is skipped, and nothing is reported", () => {
  assertEquals(decision({ deletionTimestamp: "2027-06-01T12:00:00Z" }), "skip");
  assertEquals(problem({ deletionTimestamp: "2027-06-01T12:00:00Z" }), undefined);
});

test("1. The label names the identity with dots for slashes, at any depth", () => {
  const deep = `${ALICE}/${"b".repeat(16)}/${"0".repeat(16)}`;
  assertEquals(read({ label: ALICE.replace("/", ".") }).identity, ALICE);
  assertEquals(read({ label: deep.replaceAll("/", ".") }).identity, deep);
  assertEquals(read({ label: "f".repeat(40) }).problem, undefined);
});

test("1. Label and annotation name the same identity, or one of them is empty; else nothing is done", () => {
  const label = BOB.replace("/", ".");
  const agreeing: Parts["annotations"][] = [{}, { [IDENTITY]: "" }, { [IDENTITY]: BOB }];
  for (const annotations of agreeing) {
    assertEquals(read({ label, annotations }).identity, BOB);
    assertEquals(decision({ label, annotations }), "missing");
  }
  assertEquals(decision({ identity: BOB }), "missing");
  const others = [ALICE, "nonsense", " ", `${BOB}/`, BOB.toUpperCase(), BOB.replace("/", "."), "."];
  for (const identity of others) {
    assertEquals(problem({ label, identity }), "InvalidIdentity", identity);
    assertEquals(decision({ label, identity }), "skip", identity);
    assertEquals(decision({ label, identity, config: configOf(token()) }), "skip", identity);
    assertEquals(decision({ label, identity, annotations: { [REFRESH]: "1" } }), "skip", identity);
  }
  const { message } = read({ label, identity: ALICE }).problem!;
  for (const identity of [ALICE, BOB]) assertStringIncludes(message, `"${identity}"`);
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
    `${ALICE}\n${BOB}`,
    `${ALICE},${BOB}`,
    `${ALICE}&aud=other`,
    ALICE.replace("a", "а"), // of another script
    "__proto__",
  ];
  for (const identity of wrong) {
    assertEquals(problem({ identity }), "InvalidIdentity", identity);
    assertEquals(decision({ identity }), "skip", identity);
  }
  assertEquals(problem({ identity: "", label: "" }), "InvalidIdentity");
  assertEquals(problem({ label: ALICE.replace("/", "-") }), "InvalidIdentity");
  const bare = secret("a");
  delete bare.metadata.annotations;
  assertEquals(parseSecret(bare, CONFIG, NOW).problem?.reason, "InvalidIdentity");
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
      "a?dryRun=All",
      "а", // of another script
      "../../apps/serviceaccounts/a",
      "system:serviceaccount:apps:a",
      "a".repeat(254),
    ]
  ) {
    assertEquals(
      problem({ annotations: { [SERVICE_ACCOUNT]: account } }),
      "InvalidIdentity",
      account,
    );
    assertEquals(decision({ annotations: { [SERVICE_ACCOUNT]: account } }), "skip", account);
  }
  for (const account of ["default", "a.b-c.d", "0", "a".repeat(253)]) {
    assertEquals(read({ annotations: { [SERVICE_ACCOUNT]: account } }).problem, undefined, account);
    assertEquals(read({ annotations: { [SERVICE_ACCOUNT]: account } }).account, account);
  }
});

test("1. A service account of the controller's own namespace is never used", () => {
  const annotations = { [SERVICE_ACCOUNT]: "controller" };
  assertEquals(problem({ namespace: "pull-secret-updater", annotations }), "InvalidIdentity");
  assertEquals(read({ namespace: "pull-secret-updater" }).problem, undefined);
});

test("1. Another type, and an immutable Secret, are skipped and reported, whatever they hold", () => {
  for (
    const parts of [{ type: "Opaque" }, { type: "kubernetes.io/dockercfg" }, { type: "" }, {
      immutable: true,
    }]
  ) {
    assertEquals(problem(parts), "UnsupportedSecret", JSON.stringify(parts));
    assertEquals(decision({ ...parts, config: configOf(token()) }), "skip");
  }
  assertEquals(problem({ immutable: false }), undefined);
  assertStringIncludes(read({ type: "Opaque" }).problem!.message, "Opaque");
});

test("1. What is not a docker config is skipped and reported, and nothing of it is quoted", () => {
  const wrong: (string | Uint8Array)[] = [
    "",
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
    LATIN_1,
  ];
  for (const config of wrong) {
    const about = `${config}`.slice(0, 40);
    assertEquals(problem({ config }), "InvalidDockerConfig", about);
    assertEquals(decision({ config }), "skip", about);
    assert(!read({ config }).problem!.message.includes("hunter2"));
  }
  const none: Secret["data"][] = [undefined, {}, { [DATA_KEY]: "%%%" }];
  for (const data of none) {
    const { problem } = parseSecret({ ...secret("a"), data }, CONFIG, NOW);
    assertEquals(problem?.reason, "InvalidDockerConfig");
  }
});

test("1. Each flaw of a docker config has a message of its own: no JSON, no UTF-8, no object", () => {
  const flaw = (config: string | Uint8Array) => read({ config }).problem!.message;
  assertStringIncludes(flaw("{"), `${DATA_KEY} is not JSON; `);
  assertStringIncludes(flaw(LATIN_1), `${DATA_KEY} is not UTF-8 text; `);
  assertStringIncludes(flaw('{"auths":1}'), `${DATA_KEY} is not a JSON object whose auths is one`);
});

test("1. JSON of any depth is read without harm", () => {
  const deep = (open: string, close: string) => open.repeat(100_000) + "1" + close.repeat(100_000);
  for (
    const config of [
      deep('{"a":', "}"),
      `{"auths":${deep("[", "]")}}`,
      `{"auths":{"cgr.dev":${deep('{"auth":', "}")}}}`,
    ]
  ) {
    assert(["missing", "skip"].includes(decision({ config })));
  }
  assertEquals(decision({ config: `{"auths":{"cgr.dev":{"auth":${deep("[", "]")}}}}` }), "missing");
});

test("1. Labels and annotations that are null count as none", () => {
  const bare = {
    ...secret("a"),
    metadata: { ...secret("a").metadata, labels: null, annotations: null },
  };
  const read = parseSecret(bare as unknown as Secret, CONFIG, NOW);
  assertEquals([decide(read, NOW, NEVER), read.problem], ["skip", undefined]);
});

test("2. A new refresh value is requested, whatever the token; the one that was served is not", () => {
  const config = configOf(token());
  assertEquals(decision({ config, annotations: { [REFRESH]: "1" } }), "requested");
  assertEquals(decision({ config, annotations: { [REFRESH]: "" } }), "requested");
  assertEquals(decision({ annotations: { [REFRESH]: "1" } }), "requested");
  assertEquals(decision({ annotations: { [REFRESH]: "1", [REFRESHED]: "1" } }), "missing");
  for (const refreshed of ["1", "", "02"]) {
    const annotations = { [REFRESH]: "2", [REFRESHED]: refreshed };
    assertEquals(decision({ config, annotations }), "requested", refreshed);
  }
  assertEquals(decision({ config, annotations: { [REFRESH]: "2", [REFRESHED]: "2" } }), "wait");
  assertEquals(decision({ config, annotations: { [REFRESH]: "", [REFRESHED]: "" } }), "wait");
  assertEquals(decision({ config, annotations: { [REFRESHED]: "1" } }), "wait");
  assertEquals(decision({ type: "Opaque", annotations: { [REFRESH]: "1" } }), "skip");
});

test("3. An empty docker config, null, and auths of null, are filled", () => {
  for (
    const config of [
      "{}",
      "null",
      " null\n",
      '{"auths":null}',
      '{"auths":{}}',
      ' {"auths" : { } }\n',
      '{"credsStore":"x"}',
    ]
  ) {
    assertEquals(decision({ config }), "missing", config);
  }
});

test("3. What is not ours in any one way is missing", () => {
  const iat = NOW / S;
  const wrong: Record<string, object> = {
    "another user": entryOf(token(), "someone"),
    "a pull token's user": entryOf(token(), ALICE),
    "no user": { auth: base64(token()) },
    "no token": entryOf(""),
    "not a JWT": entryOf("a.b.c"),
    "another identity": entryOf(token({ sub: BOB })),
    "a child of the identity": entryOf(token({ sub: `${ALICE}/${"0".repeat(16)}` })),
    "an audience that is another": entryOf(token({ aud: "cgr.example" })),
    "an audience that only begins so": entryOf(token({ aud: ["cgr.dev.example", "xcgr.dev"] })),
    "no audience": entryOf(token({ aud: undefined })),
    "an audience that is an object": entryOf(token({ aud: { "cgr.dev": 1 } })),
    "no subject": entryOf(token({ sub: undefined })),
    "no expiry": entryOf(token({ exp: undefined })),
    "an expiry that is text": entryOf(token({ exp: `${iat + 60}` })),
    "an expiry before its issue": entryOf(token({ exp: iat - 1 })),
    "an issue that is null": entryOf(token({ iat: null })),
    "issued over 5 min in the future": entryOf(token({ iat: iat + 301, exp: iat + 3600 })),
    "a life of under 5 s": entryOf(token({ exp: iat + 4.999 })),
    "a life of 1 ms, issued a bit in the future": entryOf(
      token({ iat: iat + 55, exp: iat + 55.001 }),
    ),
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
      decision({ config: JSON.stringify({ auths: { "cgr.dev": entry } }) }),
      "missing",
      what,
    );
  }
  for (const entry of ["null", "1", '"x"', "[]"]) {
    assertEquals(decision({ config: `{"auths":{"cgr.dev":${entry}}}` }), "missing", entry);
  }
});

test("3. What is at the limit is ours", () => {
  const iat = NOW / S;
  const right: Record<string, Record<string, unknown>> = {
    "the audience among others": { aud: ["x", "cgr.dev"] },
    "issued 5 min in the future": { iat: iat + 300 },
    "a life of 5 s": { exp: iat + 5 },
    "a life of 24 h": { exp: iat + 86_400 },
    "no issue": { iat: undefined },
    "16 KiB": { pad: "x".repeat(Math.floor((16 * 1024 - token({ pad: "" }).length) * 3 / 4) - 1) },
  };
  for (const [what, claims] of Object.entries(right)) {
    assertEquals(decision({ config: configOf(token(claims)) }), "wait", what);
  }
});

test("3. Where the token's subject is no UID, the annotation token-identity counts", () => {
  const config = configOf(token({ sub: "user@example.com" }));
  assertEquals(decision({ config }), "missing");
  assertEquals(decision({ config, annotations: { [TOKEN_IDENTITY]: BOB } }), "missing");
  assertEquals(decision({ config, annotations: { [TOKEN_IDENTITY]: ALICE } }), "wait");
  assertEquals(
    decision({ config: configOf(token()), annotations: { [TOKEN_IDENTITY]: BOB } }),
    "wait",
  );
});

test("3. Each of the registries has to hold a token of ours that has not expired", () => {
  const registries = ["cgr.dev", "apk.cgr.dev"];
  assertEquals(decision({ config: configOf(token(), ...registries) }, NOW, registries), "wait");
  assertEquals(decision({ config: configOf(token()) }, NOW, registries), "missing");
  assertEquals(decision({ config: configOf(token(), "apk.cgr.dev") }, NOW, ["cgr.dev"]), "missing");
  const mixed = (claims: Record<string, unknown>) =>
    JSON.stringify({
      auths: { "cgr.dev": entryOf(token()), "apk.cgr.dev": entryOf(token(claims)) },
    });
  assertEquals(decision({ config: mixed({ sub: BOB }) }, NOW, registries), "missing");
  const expired = { iat: NOW / S - 3600, exp: NOW / S };
  assertEquals(decision({ config: mixed(expired) }, NOW, registries), "expired");
  assertEquals(decision({ config: mixed(expired) }, NOW, registries.toReversed()), "expired");
});

test("3. Names of what every object has are no registry's entries", () => {
  for (const host of ["constructor", "valueof", "tostring"]) {
    assertEquals(decision({}, NOW, [host]), "missing", host);
  }
  assertEquals(
    decision({ config: `{"auths":{"__proto__":{"cgr.dev":${JSON.stringify(entryOf(token()))}}}}` }),
    "missing",
  );
  assertEquals(
    decision({ config: `{"__proto__":{"auths":{"cgr.dev":${JSON.stringify(entryOf(token()))}}}}` }),
    "missing",
  );
});

test("3. An auth that is not text is no entry of ours, which is replaced", () => {
  for (const auth of [1, null, {}, { toString: 1 }, { length: 1e9 }, [[]], "?"]) {
    assertEquals(
      decision({ config: JSON.stringify({ auths: { "cgr.dev": { auth } } }) }),
      "missing",
      JSON.stringify(auth),
    );
  }
});

test("3. A token that has expired is replaced, at the very instant", () => {
  const config = configOf(token({ exp: NOW / S + 60 }));
  assertEquals(decision({ config }, NOW + 60 * S - 1), "wait");
  assertEquals(decision({ config }, NOW + 60 * S), "expired");
  const long = { exp: NOW / S - 86_400 * 365, iat: NOW / S - 86_400 * 366 };
  assertEquals(decision({ config: configOf(token(long)) }), "expired");
});

test("4. A token is due at a fraction of its life, counted from its issue; until then it waits", () => {
  const due = (config: string, now: number, fraction = 0.7) =>
    decide(read({ config }, now), now, fraction);
  for (const fraction of [0.67, 0.7, 0.77]) {
    const at = NOW + fraction * HOUR;
    assertEquals(due(configOf(token()), at - 1, fraction), "wait");
    assertEquals(due(configOf(token()), at, fraction), "due");
  }
  // The issuer's clock may be ahead.
  assertEquals(due(configOf(token()), NOW - 60 * S), "wait");
  // Without a time of issue, an hour is assumed.
  const bare = configOf(token({ iat: undefined, exp: NOW / S + 600 }));
  assertEquals(due(bare, NOW + 600 * S - 0.3 * HOUR - 1), "wait");
  assertEquals(due(bare, NOW + 600 * S - 0.3 * HOUR), "due");
});

test("4. Of several registries' tokens the one that expires first counts", () => {
  const registries = ["cgr.dev", "apk.cgr.dev"];
  const short = { exp: NOW / S + 600 };
  const config = JSON.stringify({
    auths: { "cgr.dev": entryOf(token()), "apk.cgr.dev": entryOf(token(short)) },
  });
  for (const hosts of [registries, registries.toReversed()]) {
    assertEquals(read({ config }, NOW, hosts).token!.expiresAt, NOW + 600 * S);
    assertEquals(decide(read({ config }, NOW, hosts), NOW + 420 * S, 0.7), "due");
  }
});

test("The renewal time is a fraction of the life after the issue; without one, an hour is assumed", () => {
  assertEquals(renewalTime(decode(token())!, 0.7), NOW + 0.7 * HOUR);
  const bare = decode(token({ iat: undefined, exp: NOW / S + 600 }))!;
  assertEquals(renewalTime(bare, 0.7), NOW + 600 * S - 0.3 * HOUR);
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
    [{ iat: iat + 301 }, "in the future"],
    [{ iat: iat + 55, exp: iat + 55.001 }, "lives less than 5 s"],
    [{ exp: iat + 86_401 }, "longer than a day"],
    [{ pad: "x".repeat(16 * 1024) }, "not a JWT"],
  ];
  for (const [claims, message] of flaws) {
    const error = assertThrows(() => judge(claims), StsError, message);
    assertEquals([error.status, error.code], [200, 0], message);
  }
  assertEquals(judge({}).expiresAt, (iat + 3600) * S);
  for (
    const claims of [{ sub: "user@example.com" }, { exp: iat + 5 }, { iat: iat + 300 }, {
      iat: undefined,
    }, {
      exp: iat + 86_400,
    }]
  ) {
    assertEquals(judge(claims).audiences, ["cgr.dev"]);
  }
});

// ───── Values of odd types ─────

/** Values that no API server gives, and some that Buffer, String and JSON take for something else. */
const ODD: unknown[] = [
  undefined,
  null,
  0,
  1,
  true,
  "",
  [],
  [1],
  {},
  { length: 1_000_000_000 },
  { toString: 1 },
  { type: "Buffer", data: [1] },
  { valueOf: 1, [Symbol.toPrimitive]: 1 },
];

test("Whatever type a value of a Secret has, it is read without harm, and little of it is kept", () => {
  const paths: ((own: Record<string, unknown>, value: unknown) => void)[] = [
    (own, value) => own.data = value,
    (own, value) => own.data = { [DATA_KEY]: value },
    (own, value) => own.type = value,
    (own, value) => own.immutable = value,
    (own, value) => Object.assign(own.metadata as object, { labels: value }),
    (own, value) => Object.assign(own.metadata as object, { labels: { [IDENTITY]: value } }),
    (own, value) => Object.assign(own.metadata as object, { annotations: value }),
    (own, value) => Object.assign(own.metadata as object, { deletionTimestamp: value }),
    ...[IDENTITY, SERVICE_ACCOUNT, REFRESH, REFRESHED, TOKEN_IDENTITY].map(
      (key) => (own: Record<string, unknown>, value: unknown) =>
        Object.assign(own.metadata as object, { annotations: { [IDENTITY]: ALICE, [key]: value } }),
    ),
  ];
  for (const [index, set] of paths.entries()) {
    for (const value of ODD) {
      const odd = structuredClone(secret("a", { config: configOf(token()) }));
      set(odd as unknown as Record<string, unknown>, value);
      const read = parseSecret(odd, CONFIG, NOW);
      assert(["skip", "requested", "missing", "wait"].includes(decide(read, NOW, NEVER)));
      assert(JSON.stringify(read).length < 1500, `${index}`);
      for (const text of [read.identity, read.account ?? "", read.refresh ?? ""]) {
        assertEquals(typeof text, "string", `${index}`);
      }
    }
  }
});

test("Data that is no text is none, though it be like an array of bytes", () => {
  for (
    const data of [
      { length: 2, 0: 0x7b, 1: 0x7d },
      [0x7b, 0x7d],
      { type: "Buffer", data: [0x7b, 0x7d] },
      { length: 1_000_000_000 },
      new Uint8Array([0x7b, 0x7d]),
    ]
  ) {
    const odd = { ...secret("a"), data: { [DATA_KEY]: data } } as unknown as Secret;
    const { problem } = parseSecret(odd, CONFIG, NOW);
    assertEquals(problem?.reason, "InvalidDockerConfig", JSON.stringify(data));
  }
});

test("A service account, a refresh and a label of another type than text count as none", () => {
  for (const value of ODD.filter((value) => typeof value !== "string")) {
    const annotations = { [SERVICE_ACCOUNT]: value, [REFRESH]: value } as Record<string, string>;
    const { account, refresh } = read({ annotations });
    assertEquals([account, refresh], [undefined, undefined]);
    const own = secret("a");
    own.metadata.labels = { [IDENTITY]: value as string };
    assertEquals(decide(parseSecret(own, CONFIG, NOW), NOW, NEVER), "skip");
  }
});

test("What is kept of a Secret is bounded, whatever it holds, and cut texts stay comparable", () => {
  const long = (text: string) => text.repeat(250 * 1024 / text.length);
  for (const text of ["x", "€", "\u{1f980}", "\ud800", `${ALICE}/`]) {
    const annotations = Object.fromEntries(
      [SERVICE_ACCOUNT, REFRESH, TOKEN_IDENTITY, REFRESHED].map((
        key,
      ) => [key, `${key}${long(text)}`]),
    );
    const kept = read({ identity: long(text), annotations, type: long(text) });
    assert(JSON.stringify(kept).length < 12_000, `${JSON.stringify(kept).length}`);
    assertEquals(kept.problem?.reason, "InvalidIdentity");
  }
  const { refresh } = read({ annotations: { [REFRESH]: long("x") } });
  assert(refresh!.length <= 301, `${refresh!.length}`);
  const served = { [REFRESH]: long("x"), [REFRESHED]: refresh! };
  assertEquals(read({ annotations: served }).refresh, undefined);
  assertEquals(decision({ annotations: served, config: configOf(token()) }), "wait");
});

// ───── What clients take instead of the token ─────

const entriesOf = (...hosts: string[]) => configOf(token(), "cgr.dev", ...hosts);
const warning = (config: string, registries?: string[]) =>
  read({ config }, NOW, registries).problem?.message;

test("An entry for the registry under another key is reported: the kubelet tries it before the token", () => {
  for (
    const key of [
      "https://cgr.dev",
      "http://cgr.dev",
      "https://cgr.dev/v2/",
      "https://cgr.dev/v1/",
      "cgr.dev/",
      "cgr.dev/org",
      "https://cgr.dev/org/image",
    ]
  ) {
    assertStringIncludes(warning(entriesOf(key))!, `has "${key}" too`, key);
    assertEquals(read({ config: entriesOf(key) }).problem?.reason, "InvalidDockerConfig");
    assertEquals(decision({ config: entriesOf(key) }), "wait");
    assertEquals(decision({ config: `{"auths":{"${key}":{}}}` }), "missing");
  }
});

test("Entries for other hosts are not reported, however alike their names", () => {
  for (
    const key of [
      "other.example",
      "cgr.dev.example",
      "https://xcgr.dev",
      "https://apk.cgr.dev",
      "cgr.devil/x",
      "",
      "https://",
      "__proto__",
      "x/cgr.dev",
    ]
  ) {
    assertEquals(warning(entriesOf(key)), undefined, key);
  }
  assertEquals(warning(entriesOf("apk.cgr.dev"), ["cgr.dev", "apk.cgr.dev"]), undefined);
});

test("A credential helper for the registry is reported: others than the kubelet never read the token", () => {
  const config = (fields: object) => JSON.stringify({ ...JSON.parse(entriesOf()), ...fields });
  for (
    const fields of [
      { credHelpers: { "cgr.dev": "gcr" } },
      { credHelpers: { "x.example": "a", "cgr.dev": "" } },
      { credsStore: "desktop" },
    ]
  ) {
    const message = warning(config(fields));
    assertStringIncludes(
      message!,
      `has "a credential helper" too`,
      JSON.stringify(fields),
    );
    assertEquals(decision({ config: config(fields) }), "wait");
  }
  for (
    const fields of [
      { credHelpers: { "other.example": "gcr" } },
      { credHelpers: {} },
      { credHelpers: null },
      { credHelpers: ["cgr.dev"] },
      { credHelpers: "cgr.dev" },
      { credsStore: "" },
      { credsStore: null },
    ]
  ) {
    assertEquals(warning(config(fields)), undefined, JSON.stringify(fields));
  }
});

test("What is reported of a docker config is short, whatever it holds", () => {
  const message = warning(entriesOf(`cgr.dev/${"x".repeat(10_000)}`))!;
  assert(message.length < 700, `${message.length}`);
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

// ───── Text from elsewhere, and the log ─────

test("Foreign text loses tokens, line breaks, control and bidirectional characters", () => {
  const jwt = token();
  assertEquals(clean(`got ${jwt}.`), "got [removed].");
  assertEquals(clean(`Authorization: Bearer ${"abc.def".repeat(4)}`), "Authorization: [removed]");
  assertEquals(clean("bearer\tabcdefgh01234567 y"), "[removed] y");
  assertEquals(clean(`key ${"Xy".repeat(20)} y`), "key [removed] y");
  assert(!clean(base64(`_token:${jwt}`)).includes(base64(`_token:${jwt}`).slice(0, 20)));
  assertEquals(clean("a\u001b[31mb\u0000\r\n\u007f\u0085"), "a\ufffd[31mb\ufffd \ufffd\ufffd");
  assertEquals(clean("a\u202eb\u2066c\u200f\u061c"), "a\ufffdb\ufffdc\ufffd\ufffd");
  assertEquals(clean("a\ufeff\u2028\u2029b\ud800c"), "a b\ufffdc");
});

test("Foreign text keeps what helps: identities in either case, names, the issuer's words", () => {
  for (
    const text of [
      ALICE,
      ALICE.toUpperCase(),
      "system:serviceaccount:pull-secret-updater:controller",
      "missing bearer token",
      "arn:aws:iam::123456789012:role/x",
      "é\u{1f980}",
    ]
  ) {
    assertEquals(clean(text), text);
  }
});

test("A note has 1,024 bytes at most, and keeps its beginning and its end, where the reason stands", () => {
  assertEquals(toNote("é".repeat(512)), "é".repeat(512));
  for (const filler of ["x", "é", "€", "\u{1f980}"]) {
    for (let shift = 0; shift < 8; shift++) {
      const text = `begin${"-".repeat(shift)}${filler.repeat(2_000)}${"-".repeat(shift)}the reason`;
      const note = toNote(text);
      assert(Buffer.byteLength(note) <= 1024, `${Buffer.byteLength(note)}`);
      assert(Buffer.byteLength(note) > 950, `${Buffer.byteLength(note)}`);
      assert(note.startsWith(`begin${"-".repeat(shift)}${filler}`), note);
      assert(note.endsWith(`${filler}${"-".repeat(shift)}the reason`), note);
    }
  }
});

test("No part of a token survives where a note is cut", () => {
  const jwt = token({ pad: "x".repeat(500) });
  for (let before = 0; before < 600; before += 7) {
    const note = toNote(`${"é ".repeat(before)}${jwt}${" é".repeat(600 - before)}`);
    assert(!note.includes(jwt.slice(-12)) && !note.includes("eyJ"), `${before}`);
  }
});

test("The log is one JSON object a line, in the order time, level, msg, and its level is handed on", () => {
  const lines: [string, string][] = [];
  const log = createLog(() => NOW, (level, line) => void lines.push([level, line]));
  log("warn", "yes", { namespace: "a", name: "b", count: 1, text: `x\ny\u0000${token()}` });
  log("info", "low", { namespace: undefined });
  assertEquals(lines, [
    [
      "warn",
      '{"time":"2027-06-01T12:00:00.000Z","level":"warn","msg":"yes","namespace":"a","name":"b","count":1,"text":"x y\ufffd[removed]"}\n',
    ],
    ["info", '{"time":"2027-06-01T12:00:00.000Z","level":"info","msg":"low"}\n'],
  ]);
});

test("No value in the log is longer than a note", () => {
  const lines: string[] = [];
  const log = createLog(() => NOW, (_level, line) => void lines.push(line));
  log("warn", "m".repeat(5_000), { error: "é".repeat(5_000), list: ["x".repeat(5_000)] });
  assert(Buffer.byteLength(lines[0]!) < 3 * 1024 + 100, `${Buffer.byteLength(lines[0]!)}`);
});
