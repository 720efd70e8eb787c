/** Keeps what happens in the demo as it happens, and judges whether the promise holds. */
import { decodeJwt } from "jose/jwt/decode";
import type { ApiRequest, ApiServer, Secret } from "../../tests/fake/apiserver.ts";
import type { Exchange, Issuer } from "../../tests/fake/issuer.ts";

/** The promise was not kept. */
export class Broken extends Error {}

export type Kind = "someone" | "watch" | "exchange" | "refusal" | "patch" | "event" | "warning";

export interface Happening {
  time: number;
  kind: Kind;
  text: string;
}

/** A Secret of the demo, as it was last seen. */
export interface Watched {
  namespace: string;
  name: string;
  /** A letter that stands for the identity's UID. */
  identity: string;
  token?: { id: string; issuedAt: number; expiresAt: number; seenAt: number };
  /** How many tokens it has held so far. */
  tokens: number;
  /** Since when it has had no token, if it has none. */
  emptySince: number;
  /** Reason of the last Warning, until a token comes. */
  warning?: string;
}

const HAPPENINGS_KEPT = 100;
/** If nobody looked for so long, the demo itself was stopped, and tokens ran out that nobody could renew. */
const STOPPED_MS = 3_000;
const GRACE_MS = 5_000;

export class Ledger {
  readonly happenings: Happening[] = [];
  readonly secrets: Watched[] = [];
  readonly counts = { exchanges: 0, refusals: 0, patches: 0, events: 0 };
  /** Successful exchanges by the letter of the identity. */
  readonly exchangesOf: Record<string, number> = {};
  slowestFillMs = 0;
  /** What the token that was nearest to its end had left when it was replaced. */
  leastSpareMs = Infinity;
  wasStopped = false;
  lastExchangeAt = 0;
  lastPatchAt = 0;
  #api: ApiServer;
  #issuer: Issuer;
  #onHappening: (happening: Happening) => void;
  #lookedAt = Date.now();
  #judgesFrom = 0;

  constructor(api: ApiServer, issuer: Issuer, onHappening: (happening: Happening) => void) {
    this.#api = api;
    this.#issuer = issuer;
    this.#onHappening = onHappening;
  }

  tell(kind: Kind, text: string, time: number = Date.now()): void {
    this.happenings.push({ time, kind, text });
    if (this.happenings.length > HAPPENINGS_KEPT) this.happenings.shift();
    this.#onHappening({ time, kind, text });
  }

  /** Takes in what has happened since the last look; to be called often. Throws {@linkcode Broken}. */
  look(): void {
    const now = Date.now();
    if (now - this.#lookedAt > STOPPED_MS) {
      this.wasStopped = true;
      this.#judgesFrom = now + GRACE_MS;
    }
    this.#lookedAt = now;
    // What a Secret held at the last look it held until now, or nearly: no gap for an expired token to hide in.
    const expired = this.secrets.find(({ token }) => token && token.expiresAt <= now);
    if (expired && now >= this.#judgesFrom) {
      throw new Broken(`${pathOf(expired)} holds a token that has expired`);
    }

    const requests = takeFinished(this.#api.requests, ({ status }) => status !== undefined);
    const exchanges = takeFinished(
      this.#issuer.exchanges,
      ({ token, status }) => token || status !== 200,
    );
    const news = [
      ...requests.map((request) => ({
        time: request.time,
        tell: () => this.#tellRequest(request),
      })),
      ...exchanges.map((exchange) => ({
        time: exchange.time,
        tell: () => this.#tellExchange(exchange),
      })),
    ];
    for (const { tell } of news.sort((a, b) => a.time - b.time)) tell();

    for (const watched of this.secrets) {
      const token = tokenOf(this.#api.secret(watched.namespace, watched.name));
      if (token && token.id === watched.token?.id) continue;
      watched.token = token && { ...token, seenAt: now };
      watched.tokens += token ? 1 : 0;
      watched.warning = token ? undefined : watched.warning;
    }
  }

  #tellExchange({ time, identity, status, token }: Exchange): void {
    const letter = identity[0]!.toUpperCase();
    this.lastExchangeAt = time;
    this.counts[token ? "exchanges" : "refusals"]++;
    if (!token) {
      return this.tell("refusal", `identity ${letter}: the issuer answers ${status}`, time);
    }
    this.exchangesOf[letter] = (this.exchangesOf[letter] ?? 0) + 1;
    this.tell(
      "exchange",
      `identity ${letter}: the issuer gives a token that lives ${this.#issuer.life} s`,
      time,
    );
  }

  #tellRequest(request: ApiRequest): void {
    const { time, verb, resource, status } = request;
    const what = `${verb} ${resource}`;
    if (what === "list secrets") {
      this.tell("watch", "the controller lists the labelled Secrets", time);
    }
    if (what === "watch secrets") this.tell("watch", "it watches what changes from now on", time);
    if (what === "patch secrets") this.#tellPatch(request);
    if (what === "create events" && status === 201) this.#tellEvent(request);
  }

  #tellPatch(request: ApiRequest): void {
    const { time, status } = request;
    const path = pathOf(request);
    this.lastPatchAt = time;
    if (status !== 200) {
      return this.tell("patch", `${path}: the API server answers ${status}`, time);
    }
    this.counts.patches++;
    const { token, tokens, warning, emptySince } = this.#find(path)!;
    if (token) {
      const spare = token.expiresAt - time;
      if (time >= this.#judgesFrom) this.leastSpareMs = Math.min(this.leastSpareMs, spare);
      this.tell(
        "patch",
        `${path}: a new token, ${(spare / 1000).toFixed(1)} s before the old one ends`,
        time,
      );
    } else if (warning) {
      this.tell("patch", `${path}: filled at last`, time);
    } else {
      this.slowestFillMs = Math.max(this.slowestFillMs, time - emptySince);
      this.tell(
        "patch",
        `${path}: filled ${time - emptySince} ms after it was ${tokens ? "emptied" : "made"}`,
        time,
      );
    }
  }

  #tellEvent({ body, time }: ApiRequest): void {
    const { reason, note, type, regarding } = JSON.parse(body);
    const path = pathOf(regarding);
    this.counts.events++;
    if (type === "Normal") return this.tell("event", `${reason} on ${path}`, time);
    this.#find(path)!.warning = reason;
    this.tell("warning", `${reason} on ${path}: ${note}`, time);
  }

  #find(path: string): Watched | undefined {
    return this.secrets.find((watched) => pathOf(watched) === path);
  }
}

function pathOf({ namespace, name }: { namespace: string; name: string }): string {
  return `${namespace}/${name}`;
}

/** Takes the entries off the front of a log that are complete: it must not grow for as long as the demo runs. */
function takeFinished<T>(log: T[], isFinished: (entry: T) => unknown): T[] {
  const first = log.findIndex((entry) => !isFinished(entry));
  return log.splice(0, first === -1 ? log.length : first);
}

/** The token for cgr.dev that a Secret holds. */
function tokenOf(secret: Secret | undefined) {
  try {
    const { auths } = JSON.parse(atob(secret!.data![".dockerconfigjson"]!));
    const { jti = "", iat = 0, exp = 0 } = decodeJwt(
      atob(auths["cgr.dev"].auth).replace("_token:", ""),
    );
    return { id: jti, issuedAt: iat * 1000, expiresAt: exp * 1000 };
  } catch {
    return undefined;
  }
}
