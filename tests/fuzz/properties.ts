/**
 * What has to hold whatever others send: the API server, the issuer, the people who write Secrets, and those who set the
 * environment. Where it can be, the product is compared with the same rule written a second time and in another way.
 */
import { assert, assertEquals } from "@std/assert";
import { Buffer } from "node:buffer";
import fc from "fast-check";
import { ApiError, parseWatch, type Secret, type WatchEvent } from "../../k8s.ts";
import {
  clean,
  ConfigError,
  createLog,
  decide,
  parseSecret,
  readConfig,
  toNote,
  withToken,
} from "../../main.ts";
import {
  decode,
  findLifeFlaw,
  findSubjectTokenFlaw,
  readResponse,
  StsError,
  verify,
} from "../../sts.ts";
import {
  ALICE,
  anyDockerConfig,
  anyJson,
  anySecret,
  anyText,
  anyToken,
  damaged,
  DAY_S,
  goodToken,
  NOW_S,
  passingToken,
} from "./arbitraries.ts";
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
import { findToken } from "../support/leaks.ts";

export interface Property {
  title: string;
  /** Tries so many cases, which the seed chooses; fails with the smallest that it does not hold for. */
  run(parameters: { numRuns: number; seed: number }): Promise<void>;
  /** How many of the cases are tried, as a part of 1, where one costs more than a fraction of a millisecond. */
  share?: number;
  /** Ends what the property started. */
  close?: () => unknown;
}

const NOW = NOW_S * 1000;
/** Of what is derived from a Secret, as JSON: for each of thousands. */
const MAX_KEPT = 12_000;
/** Characters that end a line, steer a terminal or turn the direction of what follows. */
export const UNFIT = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/u;

export function property<T extends unknown[]>(
  title: string,
  arbitraries: { [Index in keyof T]: fc.Arbitrary<T[Index]> },
  check: (...values: T) => void | Promise<void>,
): Property {
  const tried = fc.asyncProperty(
    fc.tuple<T>(...arbitraries),
    async (values) => await check(...values),
  );
  return { title, run: async (parameters) => await fc.assert(tried, parameters) };
}

// The watch

const anyMetadata = fc.record({
  namespace: anyText,
  name: anyText,
  uid: anyText,
  resourceVersion: anyText,
});
const anyRecord = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      type: fc.constantFrom("ADDED", "MODIFIED", "DELETED"),
      object: anySecret,
    }),
  },
  fc.record({ type: fc.constant("BOOKMARK"), object: fc.record({ metadata: anyMetadata }) }),
  fc.record({ type: fc.constant("ERROR"), object: anyJson }),
  fc.record({ type: anyText, object: anyJson }),
  anyJson,
);
const anyWatch = damaged(
  fc.array(anyRecord, { maxLength: 4 }).map((records) =>
    records.map((each) => `${JSON.stringify(each)}\n`).join("")
  ),
);

/** A watch's body read as a whole: how many of its lines are good, up to the first that is not. */
function countGoodLines(bytes: Uint8Array): { good: number; isAll: boolean } {
  const lines = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes).split("\n").slice(
    0,
    -1,
  );
  const firstBad = lines.findIndex((line) => !isGoodLine(line));
  return { good: firstBad === -1 ? lines.length : firstBad, isAll: firstBad === -1 };
}

/** Whether these may be the names of a Secret and its namespace; what stands between matters to nobody. */
export const isNamed = ({ namespace, name }: { namespace: string; name: string }) =>
  /^[-.a-z0-9]+$/.test(namespace + name) && /^[a-z0-9]/.test(`${namespace}.`) &&
  /[a-z0-9]$/.test(`.${name}`);

function isGoodLine(line: string): boolean {
  try {
    const { type, object: { metadata } } = JSON.parse(line);
    if (type === "BOOKMARK") return typeof metadata.resourceVersion === "string";
    const fields = [metadata.namespace, metadata.name, metadata.uid, metadata.resourceVersion];
    return /^(ADDED|MODIFIED|DELETED)$/.test(type) &&
      fields.every((field) => typeof field === "string") && isNamed(metadata);
  } catch {
    return false;
  }
}

async function readWatch(
  chunks: Iterable<Uint8Array>,
): Promise<{ events: WatchEvent[]; error?: unknown }> {
  const events: WatchEvent[] = [];
  async function* body() {
    yield* chunks;
  }
  try {
    for await (const event of parseWatch(body())) events.push(event);
    return { events };
  } catch (error) {
    return { events, error };
  }
}

function* cut(bytes: Uint8Array, sizes: number[]): Generator<Uint8Array> {
  let at = 0;
  for (const size of [...sizes, bytes.length]) yield bytes.subarray(at, at += size);
}

// Docker configs

/** JSON with each number as its text. */
function exactly(text: string): unknown {
  const keepText = (_key: string, value: unknown, context?: { source: string }) =>
    typeof value === "number" ? `number ${context!.source}` : value;
  return JSON.parse(text, keepText as (key: string, value: unknown) => unknown);
}

/** A docker config without the entries of some registries, as text that tells any other difference. */
function othersOf(text: string, registries: string[]): string {
  const { auths, ...rest } = (exactly(text) ?? {}) as { auths?: Record<string, unknown> | null };
  const others = Object.entries(auths ?? {}).filter(([host]) => !registries.includes(host));
  return JSON.stringify([Object.entries(rest), others]);
}

const anyRegistries = fc.constantFrom<string[]>(["cgr.dev"], ["cgr.dev", "apk.cgr.dev"], [
  "constructor",
  "cgr.dev",
]);
const look = (secret: Secret, registries = ["cgr.dev"], now = NOW) =>
  parseSecret(secret, { audience: "cgr.dev", registries, ownNamespace: NAMESPACE }, now);
const withConfig = (
  config: Uint8Array | string,
  annotations: Record<string, string> = {},
): Secret => ({
  metadata: {
    namespace: "apps",
    name: "pull",
    uid: "uid",
    resourceVersion: "1",
    labels: { [IDENTITY]: "" },
    annotations: { [IDENTITY]: ALICE, ...annotations },
  },
  type: SECRET_TYPE,
  data: { [DATA_KEY]: Buffer.from(config as string).toString("base64") },
});

// Tokens

const utf8 = new TextDecoder("utf-8", { fatal: true });

/** What a token says, read by hand and with more patience for its base64; nothing if it says nothing of use. */
function readToken(token: string) {
  try {
    const parts = token.split(".");
    if (!/^[\w-]+\.[\w-]+\.[\w-]*$/.test(token) || token.length > 16 * 1024) return undefined;
    const { sub, aud, iat, exp } = JSON.parse(utf8.decode(Buffer.from(parts[1]!, "base64url")));
    const isTime = (time: unknown) => typeof time === "number" && time >= 0 && time <= 8.64e12;
    if (typeof sub !== "string" || !isTime(exp)) return undefined;
    if (iat !== undefined && (!isTime(iat) || iat >= exp)) return undefined;
    return {
      sub,
      audiences: Array.isArray(aud) ? aud : [aud],
      iat: iat as number | undefined,
      exp: exp as number,
    };
  } catch {
    return undefined;
  }
}

const isBase64url = (text: string) => /^[\w-]*$/.test(text) && text.length % 4 !== 1;

/** Whether the issuer may give this token for Alice, by the rules as the README has them. */
function isGood(token: string): boolean {
  const { sub = "", audiences = [], iat, exp = 0 } = readToken(token) ?? {};
  const isOfAlice = sub === ALICE || !/^[0-9a-f]{40}(\/[0-9a-f]{16})*$/.test(sub);
  const isInTime = exp >= NOW_S + 5 && exp <= NOW_S + DAY_S && (iat ?? NOW_S) <= NOW_S + 300 &&
    exp - (iat ?? 0) >= 5;
  return isOfAlice && isInTime && exp - (iat ?? NOW_S) <= DAY_S && audiences.includes("cgr.dev");
}

// The decision

const UID = /^[0-9a-f]{40}(?:\/[0-9a-f]{16})*$/;
const DNS_NAME = /^[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*$/;

/** The first rules of the decision, once more: the reason of the problem, or what to do. */
function firstRules({ metadata, type, immutable, data }: Secret): string | undefined {
  const { labels = {}, annotations = {}, namespace, deletionTimestamp } = metadata;
  const account = annotations[SERVICE_ACCOUNT];
  if (deletionTimestamp !== undefined || labels[IDENTITY] === undefined) return "gone";
  const label = labels[IDENTITY].split(".").join("/");
  const identity = annotations[IDENTITY] || label;
  if (!UID.test(identity) || (label !== "" && label !== identity)) return "InvalidIdentity";
  const isName = account === undefined || (account.length <= 253 && DNS_NAME.test(account));
  if (!isName || (account !== undefined && namespace === NAMESPACE)) return "InvalidIdentity";
  if (type !== SECRET_TYPE || immutable) return "UnsupportedSecret";
  if (!isDockerConfig(Buffer.from(data?.[DATA_KEY] ?? "", "base64"))) return "InvalidDockerConfig";
  const refresh = annotations[REFRESH];
  return refresh === undefined || refresh === annotations[REFRESHED] ? undefined : "requested";
}

function isDockerConfig(bytes: Uint8Array): boolean {
  try {
    const config = JSON.parse(
      new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes),
    );
    const isObject = (value: unknown) =>
      Object.prototype.toString.call(value) === "[object Object]";
    return config === null || isObject(config) &&
        (config.auths === null || config.auths === undefined || isObject(config.auths));
  } catch {
    return false;
  }
}

// The environment

const VARIABLES = {
  KUBERNETES_API: [
    "https://cluster.example",
    "http://127.0.0.1:8001",
    "http://cluster.example",
    "https://u:PASSWORD@h",
  ],
  KUBERNETES_SERVICE_HOST: ["10.0.0.1", "fd00::1", "cluster/../x", "a b"],
  KUBERNETES_SERVICE_PORT: ["443", "0", "65536", "1e3", " 443"],
  WATCH_NAMESPACES: ["a,b", "a,,b", "a,../b", "A"],
  ISSUER_URL: [
    "https://issuer.example/",
    "http://issuer.example",
    "https://u:PASSWORD@issuer.example",
    "HTTPS://X",
  ],
  AUDIENCE: ["cgr.dev", "a b", "é"],
  REGISTRIES: ["cgr.dev,apk.cgr.dev", "https://cgr.dev", "cgr.dev/..", "__proto__", "constructor"],
  SERVICE_ACCOUNT_DIR: ["/nowhere", "relative"],
  SUBJECT_TOKEN_FILE: ["/nowhere/token"],
  HTTPS_PROXY: [
    "http://user:PASSWORD@proxy.example:3128",
    "socks5://user:PASSWORD@x",
    "http://user:PASSWORD@[x",
    "http://user:PASSWORD%@proxy.example",
    "user:PASSWORD@proxy.example:3128",
  ],
  https_proxy: ["https://user:PASSWORD%zz@[::1]:3128", "http://127.0.0.1:3128"],
  no_proxy: ["10.0.0.0/8,fd00::/8"],
  NO_PROXY: ["*", ".example"],
  PORT: ["8080", "-1", "0x50"],
};
const anyEnvironment = fc.record(
  Object.fromEntries(
    Object.entries(VARIABLES).map((
      [name, values],
    ) => [name, fc.oneof(fc.constantFrom(...values), anyText)]),
  ) as Record<keyof typeof VARIABLES, fc.Arbitrary<string>>,
  { requiredKeys: [] },
);

// What is told

/** A token in any of the forms in which a message may quote it. */
const quotedToken = fc.tuple(
  anyToken.filter((token) => /^[\w-]{16,}\.[\w-]{40,}\.[\w-]{16,}$/.test(token)),
  anyText,
)
  .chain(([token, text]) =>
    fc.constantFrom(
      token,
      `Bearer ${token}`,
      `bearer\t${token}`,
      `"${token}"`,
      Buffer.from(`_token:${token}`).toString("base64"),
      Buffer.from(`_token:${token}`).toString("base64url"),
      Buffer.from(JSON.stringify({ auths: { "cgr.dev": { auth: btoa(`_token:${token}`) } } }))
        .toString("base64"),
    ).map((form) => ({ token, quoted: `${text} ${form}${text}` }))
  );

/** Of the functions of the product, each by itself. */
export const PROPERTIES: Property[] = [
  property(
    "A watch gives the records of its good lines, up to the first bad one, however it is cut",
    [anyWatch, fc.array(fc.nat(30), { maxLength: 40 })],
    async (bytes, sizes) => {
      const { events, error } = await readWatch(cut(bytes, sizes));
      const { good, isAll } = countGoodLines(bytes);
      assertEquals([events.length, error === undefined], [good, isAll]);
      assert(isAll || error instanceof ApiError, `${error}`);
      assert(JSON.stringify(events) === JSON.stringify((await readWatch([bytes])).events));
    },
  ),
  property(
    "A Secret is skipped for the first rule that it breaks, whatever else it holds",
    [anySecret, fc.oneof(fc.constant(NOW), fc.integer({ min: 0, max: 2 * NOW }))],
    (secret, now) => {
      const parsed = look(secret);
      const expected = firstRules(secret);
      const decision = decide(parsed, now, Infinity);
      if (decision === "wait") assert(parsed.token!.expiresAt > now);
      if (decision === "missing") assertEquals(parsed.token, undefined);
      assert(JSON.stringify(parsed).length < MAX_KEPT, "nothing is kept but what is derived");
      if (expected === undefined || expected === "requested") {
        assert(decision !== "skip", decision);
        assertEquals(decision === "requested", expected === "requested");
        // What keeps clients from the token is told, and the token written all the same.
        return assert([undefined, "InvalidDockerConfig"].includes(parsed.problem?.reason));
      }
      assertEquals(decision, "skip");
      if (expected !== "gone") assertEquals(parsed.problem?.reason, expected);
    },
  ),
  property(
    "What is told of a Secret's problem is one line, and no part of its docker config",
    [anySecret, anyToken],
    (secret, token) => {
      const config = JSON.stringify({ auths: [{ auth: token }] });
      const data = { [DATA_KEY]: Buffer.from(config).toString("base64") };
      for (const { problem } of [look(secret), look({ ...secret, data })]) {
        const note = toNote(problem?.message ?? "");
        assert(!UNFIT.test(note), JSON.stringify(note));
        const isShort = Buffer.byteLength(note) <= 1024;
        assert(isShort && (token.length < 40 || !note.includes(token)), note);
      }
    },
  ),
  property(
    "A token that the issuer gave ends every reason to write: the next verdict is to wait",
    [anySecret, goodToken, anyRegistries],
    (secret, token, registries) => {
      const { isSkipped, isPlain, identity, refresh } = look(secret, registries);
      if (isSkipped || identity !== ALICE) return;
      const text = isPlain ? "{}" : Buffer.from(secret.data?.[DATA_KEY] ?? "", "base64").toString();
      const served: Record<string, string> = refresh === undefined ? {} : { [REFRESHED]: refresh };
      const annotations = {
        ...secret.metadata.annotations,
        [TOKEN_IDENTITY]: identity,
        ...served,
      };
      const config = Buffer.from(withToken(text, registries, token)).toString("base64");
      const after = look({
        ...secret,
        metadata: { ...secret.metadata, annotations },
        data: { ...secret.data, [DATA_KEY]: config },
      }, registries);
      assertEquals(decide(after, NOW, Infinity), "wait");
      assertEquals(after.isPlain, isPlain);
    },
  ),
  property(
    "A token that passes for the issuer's passes in the Secret too, until it expires",
    [passingToken, fc.double({ min: 0, max: 1, noNaN: true }), anyRegistries],
    (token, share, registries) => {
      const { expiresAt } = verify(token, ALICE, "cgr.dev", NOW);
      const config = withToken("{}", registries, token);
      const decidedAt = (now: number) => {
        const held = withConfig(config, { [TOKEN_IDENTITY]: ALICE });
        return decide(look(held, registries, now), now, Infinity);
      };
      assertEquals(decidedAt(NOW + Math.floor(share * (expiresAt - NOW - 1))), "wait");
      assertEquals(decidedAt(expiresAt), "expired");
    },
  ),
  property(
    "Whatever a docker config holds beside our entries is the same after a write, and a second write changes nothing",
    [anyDockerConfig, goodToken, anyRegistries],
    (bytes, token, registries) => {
      const parsed = look(withConfig(bytes), registries);
      assertEquals(parsed.isSkipped, !isDockerConfig(bytes));
      if (parsed.isSkipped) return;
      const before = Buffer.from(bytes).toString();
      const after = withToken(before, registries, token);
      assertEquals(othersOf(after, registries), othersOf(before, registries));
      assert(withToken(after, registries, token) === after);
      const held = look(withConfig(after, { [TOKEN_IDENTITY]: ALICE }), registries);
      const { issuedAt, expiresAt } = decode(token)!;
      assertEquals(held.token, { issuedAt, expiresAt });
      assert(
        !parsed.isPlain || othersOf(before, registries) === othersOf('{"auths":{}}', registries),
      );
    },
  ),
  property("A token is decoded as its claims say, or not at all", [anyToken], (token) => {
    const claims = decode(token);
    assert(findSubjectTokenFlaw(token, "issuer.example", NOW) !== "");
    const expected = readToken(token);
    if (!claims) return assert(!expected || !isBase64url(token.split(".")[1]!), token);
    assert(expected, token);
    const { subject, audiences, issuedAt, expiresAt } = claims;
    assertEquals([subject, issuedAt, expiresAt], [
      expected.sub,
      expected.iat && expected.iat * 1000,
      expected.exp * 1000,
    ]);
    assertEquals(audiences, expected.audiences.filter((audience) => typeof audience === "string"));
    assert(!Number.isNaN(Date.parse(new Date(expiresAt).toISOString())));
  }),
  property("The issuer's token is taken exactly if it is good for this identity, here and now", [
    anyToken,
  ], (token) => {
    try {
      assertEquals(findLifeFlaw(verify(token, ALICE, "cgr.dev", NOW), NOW), undefined);
      assert(isGood(token), `taken: ${token}`);
    } catch (error) {
      if (!(error instanceof StsError)) throw error;
      assert(
        !isGood(token) || !isBase64url(token.split(".")[1]!),
        `not taken: ${error.message}: ${token}`,
      );
      assertEquals([error.status, error.code], [200, 0]);
      assert(token.length < 20 || !error.message.includes(token), error.message);
    }
  }),
  property(
    "A response of the issuer is a token or a failure of its kind, and nothing of a body that is not the STS's is told",
    [
      fc.constantFrom(200, 201, 204, 301, 400, 401, 403, 404, 408, 429, 500, 502, 503, 599),
      fc.oneof(
        damaged(
          fc.record({
            token: fc.oneof(anyToken, anyJson, fc.constant("")),
            message: fc.oneof(anyText, anyJson),
            code: fc.oneof(fc.integer({ min: 0, max: 20 }), anyJson),
          }, {
            requiredKeys: [],
          })
            .map((answer) => JSON.stringify(answer)),
        ).map((bytes) => Buffer.from(bytes).toString()),
        anyJson.map((value) => JSON.stringify(value)),
        anyText,
      ),
    ],
    (status, text) => {
      const { token, message, code } = (parse(text) ?? {}) as Record<string, unknown>;
      try {
        assertEquals(readResponse(status, text, "7"), token);
        assert(status === 200 && typeof token === "string" && token !== "");
      } catch (error) {
        if (!(error instanceof StsError)) throw error;
        assertEquals([error.status, error.retryAfter], [status, "7"]);
        const isOfSts = typeof message === "string" && Number(code) <= 16 &&
          typeof code === "number";
        assertEquals(error.code, isOfSts ? code : undefined);
        const told = status < 300
          ? "no token"
          : status < 400
          ? "a redirect"
          : typeof message === "string"
          ? message
          : "not a response of an STS";
        assert(error.message.includes(told), error.message);
      }
    },
  ),
  property("The environment gives a configuration, or one line that says what is wrong", [
    anyEnvironment,
  ], (env) => {
    try {
      const config = readConfig(env);
      const urls = [config.api.url, config.issuer].map((url) => new URL(url));
      for (const { protocol, hostname, username, password, search, hash } of urls) {
        assert(protocol === "https:" || /^(localhost|127\..*|\[::1\])$/.test(hostname), hostname);
        assertEquals([username, password, search, hash], ["", "", "", ""]);
      }
      assert(Object.isFrozen(config) && config.port >= 1 && config.port <= 65535);
      assert(config.namespaces.every((name) => name === undefined || /^[-a-z0-9]+$/.test(name)));
      assert(
        config.registries.length > 0 &&
          config.registries.every((host) => /^[-a-z0-9.:]+$/.test(host)),
      );
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      const { message } = error;
      const name = Object.keys(VARIABLES).find((name) => message.startsWith(`${name}="`));
      assert(name !== undefined && message.includes(": must be "), message);
      assert(
        !UNFIT.test(message) && !message.includes("PASSWORD") && message.length < 400,
        message,
      );
    }
  }),
  property(
    "Text that was cleaned is on one line, and none of what steers a terminal is in it; a note is as long as one may be",
    [anyText, fc.nat(400)],
    (text, times) => {
      const cleaned = clean(text);
      assert(!UNFIT.test(cleaned), JSON.stringify(cleaned));
      assert(!/eyJ|\bbearer\s+[!-~]{16}/i.test(cleaned), JSON.stringify(cleaned));
      const note = toNote(text.repeat(times));
      assert(Buffer.byteLength(note) <= 1024 && !UNFIT.test(note), JSON.stringify(note));
    },
  ),
  property(
    "No part of a token survives in a message that quotes it",
    [quotedToken],
    ({ token, quoted }) => {
      const [, claims = "", signature = ""] = token.split(".");
      assertEquals(
        findToken(clean(quoted), [`${claims}.${signature}`]),
        undefined,
        quoted,
      );
      const long = `${"long ".repeat(60)}${quoted}${" text".repeat(140)}`;
      assertEquals(findToken(toNote(long), [`${claims}.${signature}`]), undefined, long);
    },
  ),
  property(
    "A log line is one line and one JSON object, whatever its fields hold",
    [fc.record({ name: anyText, message: anyText, error: anyText, count: fc.integer() })],
    (fields) => {
      let written = "";
      createLog(() => NOW, (level, line) => written += level === "warn" ? line : "")(
        "warn",
        "list failed",
        fields,
      );
      assert(written.endsWith("\n") && !UNFIT.test(written.slice(0, -1)), JSON.stringify(written));
      const { time, level, msg, ...rest } = JSON.parse(written);
      assertEquals([time, level, msg], [new Date(NOW).toISOString(), "warn", "list failed"]);
      assertEquals(Object.keys(rest), Object.keys(fields));
    },
  ),
];

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
