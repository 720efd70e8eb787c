/**
 * The exchange of a subject token for a registry token at Chainguard's STS, and what a registry token says of itself.
 * Nothing here checks a signature: the registry does, and a forged token in a Secret harms only those who put it there.
 *
 * The wire format is that of chainguard-dev/sdk; failures have the shape that grpc-gateway gives them.
 */
import { createHash } from "node:crypto";
import { decodeJwt } from "jose/jwt/decode";
import { Agent, type Dispatcher, EnvHttpProxyAgent, request } from "undici";

/** A token beyond this is not one of ours: real ones have 1 to 2 KiB. */
const MAX_TOKEN_CHARS = 16 * 1024;
/** The limit that the SDK sets for an answer. */
const MAX_ANSWER_BYTES = 1024 * 1024;
/** Registry tokens live up to an hour; a day leaves room, and bounds what a forged one can do. */
const MAX_LIFE_MS = 24 * 3600_000;
/** A token with less left is of no use by the time that it is written and read. */
const MIN_LIFE_MS = 5_000;
/** How far the issuer's clock may run ahead of ours. */
const MAX_SKEW_MS = 60_000;
/** Half of what an exchange has, so that a dead address is told as such. */
const CONNECT_TIMEOUT_MS = 5_000;
/** No instant beyond this fits into a `Date`. */
const MAX_NUMERIC_DATE_S = 8.64e12;

/** The UID of an identity ("UIDP"), of any depth. */
export const IDENTITY = /^[0-9a-f]{40}(\/[0-9a-f]{16})*$/;

/**
 * A failed exchange, or a token that is no good. Its message may quote the issuer's, and is to be cleaned where it is
 * told.
 */
export class StsError extends Error {
  override name = "StsError";
  /** The HTTP status, if the issuer answered. */
  declare readonly status?: number;
  /** The answer's `Retry-After` header, as it came. */
  declare readonly retryAfter?: string;
  /** Whether it takes a person to mend it (a refusal); otherwise it may pass by itself. */
  declare readonly refused?: boolean;

  constructor(message: string, { cause, ...fields }: Omit<Partial<StsError>, "message"> = {}) {
    super(message, { cause });
    Object.assign(this, fields);
  }
}

export type Claims = NonNullable<ReturnType<typeof decode>>;
/** When a token was issued and expires. */
export type Life = Pick<Claims, "issuedAt" | "expiresAt">;

/**
 * Decodes a JWT that has a subject and an expiry; returns nothing for any other text. Times are in ms since the epoch.
 */
export function decode(token: string) {
  let payload;
  try {
    payload = token !== "" && token.length <= MAX_TOKEN_CHARS ? decodeJwt(token) : {};
  } catch {
    return undefined;
  }
  const { iss, sub, aud, iat, exp, act } = payload;
  if (typeof sub !== "string" || !isNumericDate(exp)) return undefined;
  if (iat !== undefined && !(isNumericDate(iat) && iat < exp)) return undefined;
  const actor = (act as { sub?: unknown } | null | undefined)?.sub;
  return {
    /** SHA-256 of the whole token: tells two apart without keeping either. */
    fingerprint: createHash("sha256").update(token).digest("base64url"),
    issuer: typeof iss === "string" ? iss : "",
    subject: sub,
    /** The subject of the token that was exchanged for this one. */
    actor: typeof actor === "string" ? actor : undefined,
    audiences: [aud].flat().filter((audience) => typeof audience === "string"),
    issuedAt: iat === undefined ? undefined : iat * 1000,
    expiresAt: exp * 1000,
  };
}

const isNumericDate = (value: unknown) =>
  typeof value === "number" && value >= 0 && value <= MAX_NUMERIC_DATE_S;

/**
 * Says why a token with this lifetime is no registry token of ours at the instant `now` (ms), if it is not. One that has
 * expired passes: it *was* ours.
 */
export function findFlaw({ issuedAt, expiresAt }: Life, now: number) {
  if (issuedAt !== undefined && issuedAt > now + MAX_SKEW_MS) {
    return "it was issued in the future: compare the clocks";
  }
  if (expiresAt - Math.min(issuedAt ?? now, now) > MAX_LIFE_MS) return "it lives longer than a day";
}

/**
 * Judges a token that the issuer gave for `identity`, at the instant `now` (ms); returns its claims or throws a
 * {@linkcode StsError}. What passes here has no flaw in a Secret either, so that no answer of the issuer can have one
 * written over and over.
 */
export function verify(token: string, identity: string, audience: string, now: number): Claims {
  const claims = decode(token);
  let flaw = claims ? findFlaw(claims, now) : "it is not a JWT with a subject and an expiry";
  if (claims && !claims.audiences.includes(audience)) {
    flaw ??= `its audience is ${claims.audiences}, not ${audience}`;
  }
  if (claims && IDENTITY.test(claims.subject) && claims.subject !== identity) {
    flaw ??= "it is another identity's";
  }
  if (claims && claims.expiresAt < now + MIN_LIFE_MS) {
    flaw ??= "it expires, or did, within 5 s: compare the clocks";
  }
  if (claims && flaw === undefined) return claims;
  throw new StsError(`the issuer gave a token that is no good: ${flaw}`, {
    status: 200,
    refused: true,
  });
}

/**
 * The dispatcher for requests to the issuer. A proxy, and the hosts to be reached without it, are given here and not
 * left to undici, which would read variables that the program has no right to.
 */
export function issuerAgent(httpsProxy: string | undefined, noProxy: string): Dispatcher {
  const options = {
    allowH2: false,
    maxResponseSize: MAX_ANSWER_BYTES,
    connect: { timeout: CONNECT_TIMEOUT_MS },
  };
  if (httpsProxy === undefined) return new Agent(options);
  return new EnvHttpProxyAgent({ ...options, httpProxy: "", httpsProxy, noProxy });
}

/**
 * Asks the STS for a token of `identity` for `audience` in return for the subject token. Redirects are not followed, so
 * that the subject token reaches nobody else. Throws a {@linkcode StsError}. The token that it returns is yet to be
 * judged: see {@linkcode verify}.
 */
export async function exchange(
  { issuer, subjectToken, ...form }: {
    issuer: string;
    subjectToken: string;
    identity: string;
    audience: string;
  },
  { userAgent, ...options }: { dispatcher: Dispatcher; userAgent: string; signal: AbortSignal },
): Promise<string> {
  const type = "application/x-www-form-urlencoded";
  const headers = {
    authorization: `Bearer ${subjectToken}`,
    "content-type": type,
    "user-agent": userAgent,
  };
  // In the body, so that the identity stands in nobody's log of URLs.
  const body = new URLSearchParams({ aud: form.audience, identity: form.identity }).toString();
  try {
    const answer = await request(`${issuer}/sts/exchange`, {
      method: "POST",
      headers,
      body,
      ...options,
    });
    return readAnswer(
      answer.statusCode,
      await answer.body.text(),
      `${answer.headers["retry-after"] ?? ""}`,
    );
  } catch (cause) {
    if (cause instanceof StsError) throw cause;
    throw new StsError(`no answer of the issuer: ${(cause as Error).message}`, { cause });
  }
}

/** Interprets the STS's answer: returns the token, or throws a {@linkcode StsError}. */
export function readAnswer(status: number, text: string, retryAfter: string): string {
  let answer: { token?: unknown; message?: unknown } | null = null;
  try {
    answer = JSON.parse(text);
  } catch {
    // A proxy in between may answer with HTML: the status has to do.
  }
  if (status === 200) {
    if (typeof answer?.token === "string" && answer.token !== "") return answer.token;
    throw new StsError("the issuer answered 200 without a token: is ISSUER_URL right?", {
      status,
      refused: true,
    });
  }
  const message = typeof answer?.message === "string" ? answer.message : "not an answer of the STS";
  const refused = status >= 400 && status < 500 && status !== 429;
  throw new StsError(`the issuer answered ${status}: ${message}`, { status, retryAfter, refused });
}
