/** What the properties are tried with: texts, bytes, tokens and Secrets as somebody hostile would choose them. */
import { Buffer } from "node:buffer";
import fc from "fast-check";
import type { Secret } from "../../k8s.ts";
import {
  DATA_KEY,
  IDENTITY,
  NAMESPACE,
  REFRESH,
  REFRESHED,
  SECRET_TYPE,
  SERVICE_ACCOUNT,
  TOKEN_IDENTITY,
} from "../support/names.ts";
import { entryOf, makeJwt } from "../support/secrets.ts";

export const ALICE = `${"a1".repeat(20)}/${"b2".repeat(8)}`;
export const BOB = `${"c3".repeat(20)}/${"d4".repeat(8)}`;
/** In seconds. */
export const NOW_S = Date.parse("2027-06-01T12:00:00Z") / 1000;
export const DAY_S = 86_400;

/** Names of what every object has, paths, terminal escapes, changes of direction, ends of lines, look-alikes. */
const TRICKS = [
  ...["", "__proto__", "constructor", "toString", "hasOwnProperty", "prototype"],
  ...[".", "..", "/", "../../default", "%2e%2e", "a\\b", '"', "'", "{}", "$(id)", "${jndi:x}"],
  ...[
    "\u0000",
    "\u001b[2J",
    "\u001b]0;x\u0007",
    "\u009b31m",
    "\r\n",
    "\n",
    "\t",
    "\u2028",
    "\u202e",
    "\u2066",
    "\ufeff",
  ],
  ...['\n{"level":"forged"}', "\ud800", "\udc00x", "а", "ａ", "İ", "ß", "\u0301", "\u{1f980}", "𝟎"],
  ...["Bearer ", "_token:", "eyJ", "eyJhbGciOiJub25lIn0"],
];

/** Any text, or one of the tricks, or several of both. */
export const anyText = fc.array(
  fc.oneof(fc.string({ unit: "binary", maxLength: 12 }), fc.constantFrom(...TRICKS)),
  {
    maxLength: 3,
  },
).map((parts) => parts.join(""));

/** JSON with keys that are tricks. */
export const anyJson: fc.Arbitrary<unknown> = fc.letrec<{ value: unknown }>((tie) => ({
  value: fc.oneof(
    { maxDepth: 3, withCrossShrink: true },
    fc.oneof(
      anyText,
      fc.boolean(),
      fc.constant(null),
      fc.integer(),
      fc.double({ noNaN: true, noDefaultInfinity: true }),
    ),
    fc.array(tie("value"), { maxLength: 3 }),
    fc.array(fc.tuple(anyText, tie("value")), { maxLength: 3 }).map((entries) =>
      Object.fromEntries(entries)
    ),
  ),
})).value;

const anyEdit = fc.record({
  at: fc.nat(),
  cut: fc.nat(3),
  insert: fc.uint8Array({ maxLength: 3 }),
});

/** The bytes of a text, damaged in up to three places. */
export function damaged(text: fc.Arbitrary<string>): fc.Arbitrary<Uint8Array> {
  return fc.tuple(text, fc.array(anyEdit, { maxLength: 3 })).map(([whole, edits]) => {
    let bytes: Uint8Array = Buffer.from(whole);
    for (const { at, cut, insert } of edits) {
      const start = at % (bytes.length + 1);
      bytes = Buffer.concat([bytes.subarray(0, start), insert, bytes.subarray(start + cut)]);
    }
    return bytes;
  });
}

/** Instants (s) about the limits that tokens have, and others. */
const anyInstant = fc.oneof(
  fc.constantFrom(0, 5, 60, 61, 600, 300, 301, 3600, DAY_S, DAY_S + 1, -1, -60, -3600, -DAY_S).map((
    offset,
  ) => NOW_S + offset),
  fc.integer({ min: NOW_S - 2 * DAY_S, max: NOW_S + 2 * DAY_S }),
  fc.constantFrom<unknown>(0, -1, 0.5, 1e13, 8.64e12, 1e300, "1", null),
);

const absent = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: undefined });

/** Mostly the first, sometimes what is odd. */
const often = <T>(arbitrary: fc.Arbitrary<T>, odd: fc.Arbitrary<unknown> = anyJson) =>
  fc.oneof({ weight: 8, arbitrary }, { weight: 1, arbitrary: odd });

export const anyClaims = fc.record({
  iss: absent(anyJson),
  sub: often(fc.constantFrom(ALICE, ALICE, BOB, "user@example.com", "")),
  aud: often(
    fc.constantFrom<unknown>("cgr.dev", ["cgr.dev"], ["x", "cgr.dev"], "cgr.dev.example", []),
  ),
  iat: often(absent(anyInstant)),
  exp: often(anyInstant),
});

/** A token that the issuer may give for Alice, with what it is to live. */
export const goodToken = fc.record({
  sub: fc.constantFrom(ALICE, "user@example.com"),
  aud: fc.constantFrom<unknown>("cgr.dev", ["x", "cgr.dev"]),
  iat: absent(fc.integer({ min: NOW_S - 3600, max: NOW_S + 300 })),
  exp: fc.integer({ min: NOW_S + 305, max: NOW_S + DAY_S - 3600 }),
}).map(makeJwt);

/** Good ones, those of all claims, damaged ones, and other texts. */
export const anyToken = fc.oneof(
  { weight: 6, arbitrary: goodToken },
  { weight: 6, arbitrary: anyClaims.map(makeJwt) },
  damaged(anyClaims.map(makeJwt)).map((bytes) => Buffer.from(bytes).toString()),
  anyJson.map(makeJwt),
  anyText,
);

const anyEntry = fc.oneof(
  { weight: 6, arbitrary: anyToken.map((jwt) => entryOf(jwt)) },
  fc.tuple(anyToken, fc.constantFrom("user", "")).map(([jwt, user]) => entryOf(jwt, user)),
  anyJson,
);
const anyHost = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.constantFrom(
      "cgr.dev",
      "cgr.dev",
      "cgr.dev",
      "apk.cgr.dev",
      "https://cgr.dev",
      "CGR.DEV",
    ),
  },
  anyText,
);

/** The text of a docker config, in which a key may stand twice. */
const dockerConfigText = fc.record({
  auths: fc.oneof(
    { weight: 6, arbitrary: fc.array(fc.tuple(anyHost, anyEntry), { maxLength: 4 }).map(textOf) },
    anyJson.map((value) => JSON.stringify(value)),
  ),
  others: fc.array(fc.tuple(anyText, anyJson), { maxLength: 2 }).map(textOf),
  number: fc.constantFrom("0", "-0", "1.0", "1e400", "12345678901234567890", "1E-5"),
  hasAuths: fc.integer({ min: 0, max: 9 }),
}).map(({ auths, others, number, hasAuths }) => {
  const fields = [
    others.slice(1, -1),
    hasAuths > 0 ? `"auths":${auths}` : "",
    hasAuths > 5 ? `"n":[${number}]` : "",
  ];
  return `{${fields.filter((field) => field !== "").join()}}`;
});

function textOf(entries: [key: string, value: unknown][]): string {
  return `{${
    entries.map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join()
  }}`;
}

export const anyDockerConfig: fc.Arbitrary<Uint8Array> = fc.oneof(
  { weight: 6, arbitrary: dockerConfigText.map((text) => new Uint8Array(Buffer.from(text))) },
  { weight: 2, arbitrary: damaged(dockerConfigText) },
  anyJson.map((value) => new Uint8Array(Buffer.from(JSON.stringify(value)))),
  fc.uint8Array(),
);

const anyMap = fc.array(fc.tuple(anyText, anyText), { maxLength: 3 }).map((entries) =>
  Object.fromEntries(entries)
);
/** Mostly one of a few values, else any text, or absent. */
const mostly = (...values: string[]) =>
  fc.oneof(
    { weight: 8, arbitrary: fc.constantFrom(...values) },
    { weight: 1, arbitrary: anyText },
    { weight: 1, arbitrary: fc.constant(undefined) },
  );
const rarely = (...values: string[]) =>
  fc.oneof(
    { weight: 6, arbitrary: fc.constant(undefined) },
    { weight: 2, arbitrary: fc.constantFrom(...values) },
    { weight: 1, arbitrary: anyText },
  );

/** What a tenant may write, and what no API server would take. */
export const anySecret: fc.Arbitrary<Secret> = fc.record({
  namespace: fc.oneof({ weight: 4, arbitrary: fc.constantFrom("apps", NAMESPACE) }, anyText),
  name: fc.oneof({ weight: 4, arbitrary: fc.constantFrom("pull", "a.b-c") }, anyText),
  label: mostly("", "", ALICE.replace("/", "."), BOB.replace("/", ".")),
  labels: anyMap,
  identity: mostly(ALICE, ALICE, BOB, "", `${ALICE}/..`),
  account: rarely("puller", "a.b", "", "..", "Puller", "a/b"),
  refresh: rarely("now", ""),
  refreshed: rarely("now", ""),
  tokenIdentity: rarely(ALICE, BOB),
  annotations: anyMap,
  isDeleted: fc.integer({ min: 0, max: 19 }),
  type: mostly(SECRET_TYPE),
  immutable: fc.constantFrom(undefined, undefined, undefined, false, true),
  config: fc.option(anyDockerConfig, { nil: undefined, freq: 9 }),
  data: anyMap,
}).map(({ namespace, name, type, immutable, ...given }) => ({
  metadata: {
    namespace,
    name,
    uid: "uid",
    resourceVersion: "1",
    ...(given.isDeleted === 0 && { deletionTimestamp: "2027-06-01T12:00:00Z" }),
    labels: defined({ ...given.labels, [IDENTITY]: given.label }),
    annotations: defined({
      ...given.annotations,
      [IDENTITY]: given.identity,
      [SERVICE_ACCOUNT]: given.account,
      [REFRESH]: given.refresh,
      [REFRESHED]: given.refreshed,
      [TOKEN_IDENTITY]: given.tokenIdentity,
    }),
  },
  type,
  immutable,
  data: defined({
    ...given.data,
    [DATA_KEY]: given.config && Buffer.from(given.config).toString("base64"),
  }),
}));

function defined(map: Record<string, string | undefined>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(map).filter((entry): entry is [string, string] => entry[1] !== undefined),
  );
}
