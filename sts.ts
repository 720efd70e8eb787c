/**
 * The exchange of a subject token for a registry token at Chainguard's STS, what a token says of
 * itself, and the token that all Secrets of one identity share. Nothing here checks a signature:
 * the registry does, and a forged token in a Secret harms only those who put it there.
 *
 * The wire format is that of chainguard-dev/sdk; failures have the shape that grpc-gateway gives
 * them.
 */
import { BlockList, isIP } from "node:net";
import { decodeJwt } from "jose/jwt/decode";
import { Agent, buildConnector, type Dispatcher, EnvHttpProxyAgent, Pool, request } from "undici";

/** A token beyond this is not one of ours: real ones have 1 to 2 KiB. */
const MAX_TOKEN_CHARS = 16 * 1024;
/** The limit that the SDK sets for a response. */
const MAX_RESPONSE_BYTES = 1024 * 1024;
/**
 * The limit for a text of the issuer or a tenant: enough for a message and for an identity of 15
 * levels, too little for a page of HTML.
 */
const MAX_FOREIGN_CHARS = 300;
/** Registry tokens live up to an hour; a day leaves room, and bounds what a forged one can do. */
const MAX_LIFE_MS = 24 * 3600_000;
/** A shorter life is over by the time that the token is written and read. */
const MIN_LIFE_MS = 5_000;
/** How far the issuer's clock may run ahead of ours. */
const MAX_SKEW_MS = 5 * 60_000;
/** Half of what an exchange has, so that a dead address is reported as such. */
const CONNECT_TIMEOUT_MS = 5_000;
/** No instant beyond this fits into a `Date`. */
const MAX_NUMERIC_DATE_S = 8.64e12;
/** Assumed if a token does not say when it was issued: the issuer's live up to an hour. */
const ASSUMED_LIFE_MS = 3600_000;
/** A token is renewed after this part of its life: a quarter is left to fix what fails. */
export const RENEW_FRACTION = 0.67;
/** The codes of gRPC end with UNAUTHENTICATED. */
const MAX_GRPC_CODE = 16;

/** The UID of an identity (Chainguard: UIDP), of any depth. */
export const IDENTITY = /^[0-9a-f]{40}(\/[0-9a-f]{16})*$/;
const JWT = /^[\w-]+\.[\w-]+\.[\w-]*$/;

/** A failed exchange, or an unusable token. Its message may quote the issuer's. */
export class StsError extends Error {
  override name = "StsError";
  /** The HTTP status, if the issuer answered. */
  status?: number;
  /** The gRPC code, if the response is one of an STS: a proxy's has none. */
  code?: number;
  /** The response's `Retry-After` header, as it came. */
  retryAfter?: string;

  constructor(message: string, fields: Partial<StsError> = {}) {
    super(message);
    Object.assign(this, fields);
  }
}

export type Claims = NonNullable<ReturnType<typeof decode>>;
/** When a token was issued and expires, in ms since the epoch. */
type Life = Pick<Claims, "issuedAt" | "expiresAt">;

/** Decodes a JWT that has a subject and an expiry; returns nothing for any other text. */
export function decode(token: string) {
  if (token.length > MAX_TOKEN_CHARS || !JWT.test(token)) return;
  try {
    const { iss, sub, aud, iat, exp } = decodeJwt(token);
    if (typeof sub !== "string" || !isNumericDate(exp)) return;
    if (iat !== undefined && !(isNumericDate(iat) && iat < exp!)) return;
    return {
      issuer: typeof iss === "string" ? iss : "",
      subject: sub,
      audiences: [aud].flat().filter((audience) => typeof audience === "string"),
      issuedAt: iat === undefined ? undefined : iat * 1000,
      expiresAt: exp! * 1000,
    };
  } catch {
    // It is not a JWT.
  }
}

const isNumericDate = (value: unknown) =>
  typeof value === "number" && value >= 0 && value <= MAX_NUMERIC_DATE_S;

/** When a token is to be renewed (ms since the epoch): after this fraction of its life. */
export function renewalTime({ issuedAt, expiresAt }: Life, fraction: number) {
  const issued = issuedAt ?? expiresAt - ASSUMED_LIFE_MS;
  return issued + fraction * (expiresAt - issued);
}

/**
 * Returns why a token with this lifetime cannot be ours at the instant `now` (ms), or nothing. One
 * that has expired passes: it *was* ours.
 */
export function findLifeFlaw({ issuedAt, expiresAt }: Life, now: number) {
  const issued = issuedAt ?? now;
  if (issued > now + MAX_SKEW_MS) return "it was issued in the future: compare the clocks";
  // Without `issuedAt` this is NaN, and passes.
  if (expiresAt - issuedAt! < MIN_LIFE_MS) return "it lives less than 5 s";
  if (expiresAt - Math.min(issued, now) > MAX_LIFE_MS) return "it lives longer than a day";
}

/**
 * Judges a registry token that the issuer gave for `identity`, at the instant `now` (ms); returns
 * its claims or throws a {@linkcode StsError}. What passes here has no flaw in a Secret either, so
 * that no response of the issuer can have one written over and over.
 */
export function verify(token: string, identity: string, audience: string, now: number) {
  const claims = decode(token);
  const flaw = claims
    ? findFlaw(claims, identity, audience, now)
    : "it is not a JWT with a subject and an expiry";
  if (claims && !flaw) return claims;
  throw new StsError(`the issuer gave an unusable token: ${flaw}`, { status: 200, code: 0 });
}

function findFlaw(
  { audiences, subject, ...life }: Claims,
  identity: string,
  audience: string,
  now: number,
) {
  if (!audiences.includes(audience)) {
    return `its audience is ${cut(audiences.join())}, not ${audience}`;
  }
  if (IDENTITY.test(subject) && subject !== identity) return "it is another identity's";
  if (life.expiresAt < now + MIN_LIFE_MS) {
    return "it expires, or did, within 5 s: compare the clocks";
  }
  return findLifeFlaw(life, now);
}

/** Returns why a subject token cannot be exchanged at an issuer of this host name, or nothing. */
export function findSubjectTokenFlaw(token: string, issuerHost: string, now: number) {
  const claims = decode(token);
  if (!claims) return "is not a JWT with a subject and an expiry";
  const { audiences, expiresAt } = claims;
  if (expiresAt <= now) {
    return `expired at ${new Date(expiresAt).toISOString()}: compare the clocks`;
  }
  if (audiences.includes(issuerHost)) return;
  return `has the audience "${
    cut(audiences.join())
  }" and needs the issuer's host name, "${issuerHost}"`;
}

/**
 * Keeps the beginning of a foreign text; a surrogate pair is never split. Copied: what is merely
 * sliced would keep the whole in memory.
 */
export const cut = (text: string) =>
  text.length > MAX_FOREIGN_CHARS ? `${Buffer.from(text.slice(0, MAX_FOREIGN_CHARS))}…` : text;

/**
 * The dispatcher for requests to the issuer. A proxy, and the hosts to be reached without it, are
 * given here and not left to undici, which would read variables that the program has no right to.
 */
export function issuerAgent(issuer: string, httpsProxy = "", noProxy = "") {
  // If only an intermediate CA is trusted, OpenSSL demands the root too, unless told so.
  const tls = { timeout: CONNECT_TIMEOUT_MS, allowH2: false, allowPartialTrustChain: true };
  // Node tries one address of a host after the other. Deno is denied all but the first if it is
  // granted the host by its name, so it is asked for one of each family.
  const connect = ("Deno" in globalThis ? [4, 6] : [0])
    .map((family) => buildConnector({ ...tls, family }))
    .reduce((first, second) => (to, callback) =>
      first(to, (...result) => {
        if (!result[0]) return callback(...result);
        // A missing address family must not hide the first error.
        second(to, (...other) => callback(...(/getaddrinfo/.test(`${other[0]}`) ? result : other)));
      })
    );
  const options = { allowH2: false, maxResponseSize: MAX_RESPONSE_BYTES, connect };
  if (httpsProxy === "" || isInSubnet(bareHost(issuer), noProxy)) return new Agent(options);
  const clientFactory = (proxy: URL) =>
    new Pool(proxy, {
      headersTimeout: CONNECT_TIMEOUT_MS,
      // undici would send the address of a proxy as its server name (SNI), which is not allowed.
      connect: (to, callback) => connect({ ...to, servername: undefined }, callback),
    });
  return new EnvHttpProxyAgent({
    ...options,
    httpProxy: "",
    httpsProxy,
    noProxy,
    requestTls: tls,
    clientFactory,
  });
}

const bareHost = (url: string) => new URL(url).hostname.replace(/^\[|\]$/g, "");

/** Whether an address is in one of the subnets of NO_PROXY, which Go heeds and undici does not. */
function isInSubnet(address: string, noProxy: string) {
  const familyOf = (text: string) => isIP(text) === 6 ? "ipv6" : "ipv4";
  const subnets = new BlockList();
  for (const [, network = "", prefix = ""] of noProxy.matchAll(/([\da-f.:]+)\/(\d+)/gi)) {
    try {
      subnets.addSubnet(network, +prefix, familyOf(network));
    } catch {
      // An invalid subnet is ignored.
    }
  }
  return subnets.check(address, familyOf(address));
}

/**
 * Asks the STS for a token of `identity` for `audience` in return for the subject token. Redirects
 * are not followed, so that the subject token reaches nobody else. Throws a {@linkcode StsError}.
 * The token that it returns is yet to be judged: see {@linkcode verify}.
 */
export async function exchange(
  issuer: string,
  subjectToken: string,
  form: { aud: string; identity: string },
  { userAgent, ...options }: { dispatcher: Dispatcher; signal: AbortSignal; userAgent: string },
) {
  try {
    const { statusCode, headers, body } = await request(`${issuer}/sts/exchange`, {
      method: "POST",
      headers: {
        authorization: `Bearer ${subjectToken}`,
        "content-type": "application/x-www-form-urlencoded",
        "user-agent": userAgent,
      },
      // In the body, to keep the identity out of logs of URLs.
      body: new URLSearchParams(form).toString(),
      ...options,
    });
    return readResponse(statusCode, await body.text(), `${headers["retry-after"] ?? ""}`);
  } catch (error) {
    if (error instanceof StsError) throw error;
    // If all addresses of a host fail, the error has only a code.
    throw new StsError(
      `no response from the issuer at ISSUER_URL=${issuer}: ${error.message || error.code}`,
    );
  }
}

/** Interprets the STS's response: returns the token, or throws a {@linkcode StsError}. */
export function readResponse(status: number, text: string, retryAfter: string) {
  let response;
  try {
    response = JSON.parse(text);
  } catch {
    // A proxy in between may answer with HTML: the status has to do.
  }
  const { token, message, code } = response ?? {};
  if (status === 200 && typeof token === "string" && token !== "") return token;
  const isOfSts = typeof message === "string" && typeof code === "number" && code <= MAX_GRPC_CODE;
  const said = typeof message === "string" ? cut(message) : "not a response of an STS";
  const what = status < 300 ? "no token" : status < 400 ? "a redirect, not followed" : said;
  throw new StsError(`the issuer answered ${status}: ${what}`, {
    status,
    retryAfter,
    code: isOfSts ? code : undefined,
  });
}

/**
 * The token that all Secrets of one identity and subject share. Only what the issuer gave gets in
 * here.
 */
export class TokenSource {
  token?: Life & { jwt: string; renewAt: number };
  /** The exchange that is under way. */
  pending?: Promise<void>;

  /** One exchange for all who need a token meanwhile; it must not fail. */
  renew(exchange: () => Promise<void>) {
    return this.pending ??= exchange().finally(() => this.pending = undefined);
  }

  /**
   * Takes a token that the issuer gave for `identity`; returns how long it has left (ms), or
   * throws.
   */
  store(jwt: string, identity: string, audience: string, now: number) {
    if (this.token?.jwt === jwt && this.token.expiresAt > now) {
      // Issuers may give the same token again. That is no failure: half of what is left of it later
      // they may have another.
      this.token.renewAt = (now + this.token.expiresAt) / 2;
    } else {
      const claims = verify(jwt, identity, audience, now);
      this.token = { ...claims, jwt, renewAt: renewalTime(claims, RENEW_FRACTION) };
    }
    return this.token.expiresAt - now;
  }
}
