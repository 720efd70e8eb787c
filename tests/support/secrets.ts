/** Secrets and tokens: as users and issuers make them, and what is in them. */
import { Buffer } from "node:buffer";
import type { Secret } from "../../k8s.ts";
import type { Json } from "./json.ts";
import { DATA_KEY, IDENTITY, SECRET_TYPE } from "./names.ts";

export const ORG = "0123456789abcdef0123456789abcdef01234567";
/** The UID of an identity, by its number, under one organisation. */
export const uid = (number: number) => `${ORG}/${number.toString(16).padStart(16, "0")}`;
export const ALICE = uid(1);
export const BOB = uid(2);
/** An instant (ms) at which tests without a clock take place. */
export const NOW = Date.parse("2027-06-01T12:00:00Z");

export const base64 = (text: string | Uint8Array) => Buffer.from(text as string).toString("base64");

// ───── Tokens ─────

/** A JWT with these claims and a signature of nobody. */
export function makeJwt(claims: unknown): string {
  const part = (value: unknown) => Buffer.from(JSON.stringify(value) ?? "").toString("base64url");
  return `${part({ alg: "RS256" })}.${part(claims)}.c2lnbmF0dXJlLW9mLW5vYm9keQ`;
}

/** A token for Alice that was issued at NOW and lives an hour, unless the claims say otherwise. */
export function token(claims: Record<string, unknown> = {}): string {
  const iat = NOW / 1000;
  return makeJwt({ aud: "cgr.dev", sub: ALICE, iat, exp: iat + 3600, ...claims });
}

/** What a docker config has of a registry. */
export const entryOf = (jwt: string, user = "_token") => ({ auth: base64(`${user}:${jwt}`) });
export const configOf = (jwt: string, ...hosts: string[]) =>
  JSON.stringify({
    auths: Object.fromEntries(
      (hosts.length ? hosts : ["cgr.dev"]).map((host) => [host, entryOf(jwt)]),
    ),
  });

// ───── Secrets ─────

export interface Parts {
  namespace?: string;
  identity?: string;
  label?: string;
  annotations?: Record<string, string>;
  config?: string | Uint8Array;
  type?: string;
  immutable?: boolean;
  deletionTimestamp?: string;
}

/** A Secret as the API server gives it, for Alice unless `identity` or `label` says otherwise. */
export function secret(name: string, parts: Parts = {}): Secret {
  const {
    namespace = "apps",
    label = "",
    identity = label ? "" : ALICE,
    annotations,
    config = "{}",
  } = parts;
  const { type = SECRET_TYPE, immutable, deletionTimestamp } = parts;
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

/** A labelled pull Secret with nothing in it yet, as a user creates it. */
export function pullSecret(
  namespace: string,
  name: string,
  identity: string,
  annotations: object = {},
): Json {
  return {
    apiVersion: "v1",
    kind: "Secret",
    metadata: {
      namespace,
      name,
      labels: { [IDENTITY]: identity.replaceAll("/", ".") },
      annotations,
    },
    type: SECRET_TYPE,
    stringData: { [DATA_KEY]: '{"auths":{}}' },
  };
}

// ───── What a Secret holds ─────

/** The docker config of a Secret; an empty text where there is none. */
export const dockerConfig = (secret: Json): string =>
  Buffer.from(secret.data?.[DATA_KEY] ?? "", "base64").toString();

/** The token for a registry in the data of a Secret. */
export function tokenOf(data?: Record<string, string>, host = "cgr.dev"): string | undefined {
  const entry = JSON.parse(dockerConfig({ data }) || "{}").auths?.[host];
  const auth = Buffer.from(entry?.auth ?? "", "base64").toString();
  return auth.startsWith("_token:") ? auth.slice("_token:".length) : undefined;
}

export interface Token {
  token: string;
  iat: number;
  exp: number;
  sub: string;
  act: { sub: string };
}

/** The token for cgr.dev in a Secret, and its claims. */
export function tokenIn(secret: Json): Token | undefined {
  const token = tokenOf(secret.data);
  if (token === undefined) return undefined;
  return { token, ...JSON.parse(Buffer.from(token.split(".")[1] ?? "", "base64url").toString()) };
}
