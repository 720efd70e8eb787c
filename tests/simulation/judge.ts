/** What a Secret is, as the README has it, and not as the controller sees it. */
import type { JWTPayload } from "jose";
import { decodeJwt } from "jose/jwt/decode";
import type { Secret } from "../../k8s.ts";
import { isRecord } from "../support/json.ts";
import { DATA_KEY, IDENTITY, NAMESPACE, PREFIX, SERVICE_ACCOUNT } from "../support/names.ts";

const AUDIENCE = "cgr.dev";
const OURS = ["token-identity", "token-expires", "refreshed"].map((name) => `${PREFIX}${name}`);
const DAY_S = 86_400;
const RENEW_FRACTION = 0.67;
/** Of a token that does not say when it was issued. */
const ASSUMED_LIFE_S = 3600;
/** A token of ours lives at least so long, and at most a day. */
const MIN_LIFE_S = 5;
/** Of what a tenant writes no more is kept. */
const MAX_FOREIGN_CHARS = 300;
const MAX_DECODED = 100;

export const encode = (text: string) => Buffer.from(text).toString("base64");
const decode = (text = "") => Buffer.from(text, "base64").toString();
const UTF_8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Computes something once for each Secret: none is ever changed, a write puts another in its place. */
function once<T, Rest extends unknown[]>(compute: (secret: Secret, ...rest: Rest) => T) {
  const known = new WeakMap<Secret, { value: T }>();
  return (secret: Secret, ...rest: Rest): T => {
    const result = known.get(secret) ?? { value: compute(secret, ...rest) };
    known.set(secret, result);
    return result.value;
  };
}

const namesOf = ({ metadata: { labels, annotations } }: Secret) => [
  annotations?.[IDENTITY] ?? "",
  (labels?.[IDENTITY] ?? "").replaceAll(".", "/"),
];
/** Whose token it asks for: the annotation and the label agree, or one of them is empty. */
export const identityOf = (secret: Secret) => namesOf(secret).find((name) => name !== "") ?? "";
const namesAgree = (secret: Secret) =>
  new Set(namesOf(secret).filter((name) => name !== "")).size === 1;
export const accountOf = ({ metadata }: Secret) => metadata.annotations?.[SERVICE_ACCOUNT];
/** The `refresh` value that was not served yet. */
export const refreshOf = ({ metadata }: Secret) => {
  const { [`${PREFIX}refresh`]: asked, [`${PREFIX}refreshed`]: served } = metadata.annotations ??
    {};
  const isServed = asked === served ||
    (asked !== undefined && asked.length > MAX_FOREIGN_CHARS &&
      served === `${asked.slice(0, MAX_FOREIGN_CHARS)}…`);
  return isServed ? undefined : asked;
};
export const isLabelled = ({ metadata }: Secret) => metadata.labels?.[IDENTITY] !== undefined;

/** Returns nothing for a docker config that cannot be written again. */
const configOf = once(({ data }): Record<string, unknown> | undefined => {
  try {
    const config = JSON.parse(UTF_8.decode(Buffer.from(data?.[DATA_KEY] ?? "", "base64"))) ?? {};
    return isRecord(config) && isRecord(config.auths ?? {}) ? config : undefined;
  } catch {
    return undefined;
  }
});

/** Whether the controller has to fill it. */
export const isEligible = once((secret) => {
  const { metadata: { deletionTimestamp, namespace }, type, immutable } = secret;
  const account = accountOf(secret);
  const isAsking = isLabelled(secret) && namesAgree(secret) &&
    /^[0-9a-f]{40}(\/[0-9a-f]{16})*$/.test(identityOf(secret)) &&
    (account === undefined || (/^[a-z]{1,253}$/.test(account) && namespace !== NAMESPACE));
  return isAsking && deletionTimestamp === undefined && type === "kubernetes.io/dockerconfigjson" &&
    !immutable &&
    configOf(secret) !== undefined;
});

/** The token for each registry, of which there are the same in all of a run; an empty text where there is none. */
export const tokensOf = once((secret, registries: string[]) => {
  const auths = (configOf(secret)?.auths ?? {}) as Record<string, { auth?: unknown } | null>;
  return registries.map((host) => decode(`${auths[host]?.auth ?? ""}`).replace(/^_token:/, ""));
});

/** Until when (ms) a Secret has a token of its identity and account for each registry; 0 if it has not. */
export const goodUntil = once((secret, registries: string[]) =>
  Math.min(...tokensOf(secret, registries).map((token) => tokenGoodUntil(token, secret)))
);

/** What the tokens say that were decoded last: many Secrets hold the same. */
let decoded = new Map<string, JWTPayload>();
function claimsOf(token: string): JWTPayload {
  const claims = decoded.get(token) ?? decodeJwt(token);
  if (decoded.size >= MAX_DECODED) decoded = new Map();
  decoded.set(token, claims);
  return claims;
}

/** When a token was issued, and expires (ms). */
export function lifeOf(token: string) {
  const { exp = 0, iat = exp - ASSUMED_LIFE_S } = claimsOf(token);
  return { issuedAt: iat * 1000, expiresAt: exp * 1000 };
}

/** When that of its tokens which expires first may be renewed, at the earliest (ms). */
export function dueAt(secret: Secret, registries: string[]): number {
  const lives = tokensOf(secret, registries).map(lifeOf);
  const [{ issuedAt, expiresAt }] = lives.sort((a, b) => a.expiresAt - b.expiresAt) as [
    ReturnType<typeof lifeOf>,
  ];
  return issuedAt + RENEW_FRACTION * (expiresAt - issuedAt);
}

function tokenGoodUntil(token: string, secret: Secret): number {
  try {
    const { aud, sub, exp = 0, iat = exp - MIN_LIFE_S } = claimsOf(token);
    const isOurs = [aud].flat().includes(AUDIENCE) && sub === identityOf(secret) &&
      exp - iat <= DAY_S && exp - iat >= MIN_LIFE_S;
    return isOurs ? exp * 1000 : 0;
  } catch {
    return 0;
  }
}

/** All that is not the controller's to change, as text. */
export const othersOf = once((secret, registries: string[]) => {
  const { metadata, data, ...rest } = secret;
  const { resourceVersion: _, annotations = {}, ...meta } = metadata;
  const foreign = Object.entries(annotations).filter(([name]) => !OURS.includes(name)).sort();
  const { [DATA_KEY]: _config, ...keys } = data ?? {};
  const { auths, ...fields } = configOf(secret) ?? {};
  const entries = Object.entries(auths ?? {}).filter(([host]) => !registries.includes(host)).sort();
  return JSON.stringify([rest, meta, foreign, keys, fields, entries]);
});
