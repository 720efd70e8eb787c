/**
 * A stand-in of Chainguard's security token service: exchanges a cluster's service-account token for a
 * JWT of an identity, if the identity is bound to the token's issuer and subject.
 */
import { randomUUID } from "node:crypto";
import type { JSONWebKeySet, JWTPayload } from "jose";
import { JOSEError } from "jose/errors";
import { createLocalJWKSet } from "jose/jwks/local";
import { decodeJwt } from "jose/jwt/decode";
import { jwtVerify } from "jose/jwt/verify";
import type { Fault, LoggedRequest } from "./injection.ts";
import { makeSigningKey, type SigningKey } from "./keys.ts";
import { bind, type Bound, Listener, type ListenOptions, type Reply } from "./listener.ts";

/** Who may assume an identity. */
export interface Binding {
  iss: string;
  sub: string;
}

export interface IssuerOptions extends ListenOptions {
  /** Public keys of the subject tokens: those of the cluster. */
  keys: JSONWebKeySet;
  /** By the identity's UID. */
  bindings?: Map<string, Binding>;
  /** Seconds that issued tokens live. Default 3600. */
  life?: number;
  /** How it calls itself. Default: its own URL. Subject tokens need its host name as audience. */
  issuer?: string;
}

/** What can go wrong with an exchange, beside what can with any request. */
export interface IssuerFault extends Fault {
  /** Issues this instead of a token: "" for an empty one. */
  token?: string;
  /** Claims that replace the right ones; undefined leaves one out. */
  claims?: JWTPayload;
}

/** One exchange in the log. */
export interface Exchange {
  time: number;
  identity: string;
  audience: string;
  /** Claims of the subject token, unchecked. */
  subject?: JWTPayload;
  status: number;
  /** What was issued. */
  token?: string;
}

interface ExchangeRequest extends LoggedRequest {
  /** The subject token. */
  bearer: string;
}

/** gRPC's codes, and the HTTP statuses that its gateway makes of them. */
const GRPC_CODES: Record<number, number> = {
  400: 3,
  401: 16,
  403: 7,
  404: 5,
  429: 8,
  500: 13,
  501: 12,
  503: 14,
  504: 4,
};
const IDENTITY = /^[0-9a-f]{40}(\/[0-9a-f]{16})*$/;

class Refusal extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

export async function startIssuer(options: IssuerOptions): Promise<Issuer> {
  return new Issuer(await bind(options), await makeSigningKey(), options);
}

export class Issuer extends Listener<ExchangeRequest, IssuerFault> {
  /** May be changed while it runs, as may all that follow. */
  keys: JSONWebKeySet;
  bindings: Map<string, Binding>;
  life: number;
  /** Issues the same token again until it has so many seconds left; unset: a new one each time. */
  cacheUntil: number | undefined;
  /** Every exchange that was carried out, refused ones too, oldest first; a test may empty it. */
  readonly exchanges: Exchange[] = [];
  readonly issuer: string;
  /** The audience that subject tokens need. */
  readonly audience: string;
  readonly jwks: JSONWebKeySet;
  #key: SigningKey;
  #cache = new Map<string, { token: string; exp: number }>();

  constructor(bound: Bound, key: SigningKey, options: IssuerOptions) {
    super(bound);
    this.keys = options.keys;
    this.bindings = options.bindings ?? new Map();
    this.life = options.life ?? 3600;
    this.issuer = options.issuer ?? this.url;
    this.audience = new URL(this.issuer).hostname;
    this.jwks = key.jwks;
    this.#key = key;
  }

  /** Binds an identity to a service account of the cluster whose tokens have this issuer. */
  bind(identity: string, iss: string, namespace: string, account: string): void {
    this.bindings.set(identity, { iss, sub: `system:serviceaccount:${namespace}:${account}` });
  }

  protected describe(request: LoggedRequest): ExchangeRequest {
    const verb = request.path === "/sts/exchange" ? "exchange" : request.method.toLowerCase();
    const bearer = /^Bearer (.+)$/i.exec(request.headers.authorization ?? "")?.[1] ?? "";
    return { ...request, verb, bearer };
  }

  protected failure(status: number): Pick<Reply, "body"> {
    return { body: refusal(status, "a fault was injected") };
  }

  protected async answer(request: ExchangeRequest, fault: IssuerFault = {}): Promise<Reply> {
    if (request.path === "/.well-known/openid-configuration") {
      const jwks_uri = `${this.url}/oauth2/jwks`;
      return { status: 200, body: { issuer: this.issuer, jwks_uri } };
    }
    if (request.path === "/oauth2/jwks") return { status: 200, body: this.jwks };
    if (request.verb !== "exchange") return { status: 404, body: refusal(404, "Not Found") };
    if (request.method !== "POST") return { status: 501, body: refusal(501, "Method Not Allowed") };
    const parameters = parametersOf(request);
    const identity = parameters.get("identity") ?? "";
    const audience = parameters.getAll("aud");
    const exchange: Exchange = {
      time: request.time,
      identity,
      audience: audience.join(" "),
      subject: claimsOf(request.bearer),
      status: 200,
    };
    this.exchanges.push(exchange);
    try {
      if (audience.length === 0) throw new Refusal(400, "Audience must be specified");
      const subject = await this.#authenticate(request.bearer);
      this.#authorize(identity, subject);
      const { token, exp } = await this.#issue(identity, audience, subject, fault);
      exchange.token = token;
      return { status: 200, body: { token, expiry: new Date(exp * 1000).toISOString() } };
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      exchange.status = error.status;
      return { status: error.status, body: refusal(error.status, error.message) };
    }
  }

  async #authenticate(bearer: string): Promise<JWTPayload> {
    if (!bearer) throw new Refusal(401, "missing bearer token");
    try {
      const options = { audience: this.audience, requiredClaims: ["exp"] };
      const keys = createLocalJWKSet(this.keys);
      return (await jwtVerify(bearer, keys, options)).payload;
    } catch (error) {
      if (!(error instanceof JOSEError)) throw error;
      throw new Refusal(401, `failed to verify token: ${error.message}`);
    }
  }

  #authorize(identity: string, { iss, sub }: JWTPayload): void {
    if (!IDENTITY.test(identity)) throw new Refusal(400, "identity is not a valid UIDP");
    const binding = this.bindings.get(identity);
    if (!binding) throw new Refusal(404, "identity not found");
    if (binding.iss !== iss || binding.sub !== sub) {
      throw new Refusal(403, "token does not match the identity's claims");
    }
  }

  async #issue(
    identity: string,
    audience: string[],
    { iss, sub, aud }: JWTPayload,
    { token, claims }: IssuerFault,
  ): Promise<{ token: string; exp: number }> {
    const now = Math.floor(Date.now() / 1000);
    const exp = now + this.life;
    const altered = token !== undefined || claims;
    const key = [identity, iss, sub, ...audience].join(" ");
    const cached = this.#cache.get(key);
    const { cacheUntil } = this;
    if (!altered && cacheUntil !== undefined && cached && cached.exp - now > cacheUntil) {
      return cached;
    }
    const signed = await this.#key.sign({
      iss: this.issuer,
      sub: identity,
      aud: audience.length === 1 ? audience[0] : audience,
      iat: now,
      exp,
      act: { iss, sub, aud },
      cap: ["registry.pull"],
      jti: randomUUID(),
      ...claims,
    });
    if (altered) return { token: token ?? signed, exp };
    this.#cache.set(key, { token: signed, exp });
    return { token: signed, exp };
  }
}

/** Parameters of the query and of a form body; a JSON body is ignored, as the real one does. */
function parametersOf({ query, headers, body }: ExchangeRequest): URLSearchParams {
  const isForm = headers["content-type"]?.startsWith("application/x-www-form-urlencoded");
  return new URLSearchParams([...query, ...new URLSearchParams(isForm ? body : "")]);
}

function claimsOf(token: string): JWTPayload | undefined {
  try {
    return decodeJwt(token);
  } catch {
    return undefined;
  }
}

function refusal(status: number, message: string): object {
  return { code: GRPC_CODES[status] ?? 2, message, details: [] };
}
