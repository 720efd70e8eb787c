/** What a Secret is, as the README has it, and not as the controller sees it. */
import { decodeJwt } from "jose/jwt/decode";
import type { Secret } from "../../k8s.ts";
import { LABEL } from "../virtual.ts";

export const PREFIX = "pull-secret-updater.chainguard.dev";
export const DATA_KEY = ".dockerconfigjson";
export const OWN_NAMESPACE = "pull-secret-updater";
const AUDIENCE = "cgr.dev";
const OURS = ["token-identity", "token-expires", "refreshed"].map((name) => `${PREFIX}/${name}`);
const DAY_S = 86_400;

export const encode = (text: string) => Buffer.from(text).toString("base64");
const decode = (text = "") => Buffer.from(text, "base64").toString();

/** Whose token it asks for. */
export const identityOf = ({ metadata: { labels, annotations } }: Secret) =>
  annotations?.[LABEL] || (labels?.[LABEL] ?? "").replaceAll(".", "/");
export const accountOf = ({ metadata }: Secret) =>
  metadata.annotations?.[`${PREFIX}/service-account`];
/** The `refresh` value that was not served yet. */
export const refreshOf = ({ metadata }: Secret) => {
  const { [`${PREFIX}/refresh`]: asked, [`${PREFIX}/refreshed`]: served } = metadata.annotations ?? {};
  return asked === served ? undefined : asked;
};
export const isLabelled = ({ metadata }: Secret) => metadata.labels?.[LABEL] !== undefined;

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Returns nothing for a docker config that cannot be written again. */
function authsOf({ data }: Secret): Record<string, { auth?: unknown } | null> | undefined {
  const config: unknown = JSON.parse(decode(data?.[DATA_KEY])) ?? {};
  const auths = isObject(config) ? config.auths ?? {} : undefined;
  return isObject(auths) ? auths as Record<string, { auth?: unknown } | null> : undefined;
}

/** Whether the controller has to fill it. */
export function isEligible(secret: Secret): boolean {
  const { metadata: { deletionTimestamp, namespace }, type, immutable } = secret;
  const account = accountOf(secret);
  const isAsking = isLabelled(secret) &&
    /^[0-9a-f]{40}(\/[0-9a-f]{16})*$/.test(identityOf(secret)) &&
    (account === undefined || (/^[a-z]+$/.test(account) && namespace !== OWN_NAMESPACE));
  return isAsking && deletionTimestamp === undefined && type === "kubernetes.io/dockerconfigjson" &&
    !immutable &&
    authsOf(secret) !== undefined;
}

/** The token for each registry; an empty text where there is none. */
export function tokensOf(secret: Secret, registries: string[]): string[] {
  const auths = authsOf(secret) ?? {};
  return registries.map((host) => decode(`${auths[host]?.auth ?? ""}`).replace(/^_token:/, ""));
}

/** Until when (ms) a Secret has a token of its identity and account for each registry; 0 if it has not. */
export const goodUntil = (secret: Secret, registries: string[]) =>
  Math.min(...tokensOf(secret, registries).map((token) => tokenGoodUntil(token, secret)));

function tokenGoodUntil(token: string, secret: Secret): number {
  try {
    const { aud, sub, exp = 0, iat = 0 } = decodeJwt(token);
    const isOurs = [aud].flat().includes(AUDIENCE) && sub === identityOf(secret) &&
      exp - iat <= DAY_S;
    return isOurs ? exp * 1000 : 0;
  } catch {
    return 0;
  }
}

/** All that is not the controller's to change, as text. */
export function othersOf({ metadata, data, ...rest }: Secret, registries: string[]): string {
  const { resourceVersion: _, annotations = {}, ...meta } = metadata;
  const foreign = Object.entries(annotations).filter(([name]) => !OURS.includes(name)).sort();
  const { [DATA_KEY]: config, ...keys } = data ?? {};
  const { auths, ...fields } = JSON.parse(decode(config)) ?? {};
  const entries = Object.entries(auths ?? {}).filter(([host]) => !registries.includes(host)).sort();
  return JSON.stringify([rest, meta, foreign, keys, fields, entries]);
}
