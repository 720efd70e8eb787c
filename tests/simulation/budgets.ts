/** How much may be asked for in any minute, whatever happens, and how far apart. */
import { type ApiRequest, keyOf } from "../virtual/cluster.ts";
import type { ExchangeRequest } from "../virtual/issuer.ts";
import { MIN, S } from "../support/names.ts";

/** What was asked for longer ago than a minute is let go of so often. */
const SWEEP_MS = 5 * MIN;
/** Between two reports of one reason for one Secret. */
const EVENT_SPACING_MS = 5 * MIN;
/** The first pause after a failure is 1 s, of which a random half to the whole is waited. */
const MIN_PAUSE_MS = S / 2;
const MIN_SPACING_MS = S;
const MAX_SPACING_MS = 10 * S;
/** Timers are in whole ms. */
const ROUNDING_MS = 1;

/** In any minute, of one replica. */
const BUDGETS = {
  /**
   * For one identity and subject. After a success 10 s pass, and before it a few tries may fail, 0.5, 1
   * and 2 s apart at the least: four in 13.5 s.
   */
  exchange: 20,
  /** Where tokens are so short-lived that half of what they have left is less than 10 s. */
  shortLivedExchange: 60,
  /** Writes to one Secret: the same. */
  patch: 20,
  shortLivedPatch: 60,
  /** Reads of one Secret: before a write. */
  get: 20,
  shortLivedGet: 60,
  /** Token requests for one account, for each of three identities. */
  token: 60,
  shortLivedToken: 180,
  /**
   * Lists of one namespace follow failures: half a second to a second later after a watch that lived a second and
   * ended well, then up to 5 s. A watch lives a second at least, or is followed by a list.
   */
  list: 45,
  watch: 62,
  /** Events of one Secret: each of six reasons, once in 5 min. */
  event: 6,
};
type What = keyof typeof BUDGETS;

/** How long the controller leaves between two successes, where the token of the first has so much left. */
export const spacingFor = (leftMs: number) =>
  Math.min(Math.max(leftMs / 2, MIN_SPACING_MS), MAX_SPACING_MS) - ROUNDING_MS;

export class Budgets {
  readonly #recent = new Map<string, number[]>();
  readonly #last = new Map<string, ExchangeRequest>();
  readonly #reportedAt = new Map<string, number>();
  #sweptAt = 0;

  /** Says what is over its budget. */
  spendApi(request: ApiRequest, isShortLived: boolean): string | undefined {
    const { at, replica, verb, namespace, name } = request;
    if (verb === "event") return this.#spendEvent(request);
    const short = {
      get: "shortLivedGet",
      patch: "shortLivedPatch",
      token: "shortLivedToken",
    } as const;
    const what = isShortLived && verb in short ? short[verb as keyof typeof short] : verb;
    return this.#spend(what, `${replica} ${verb} ${namespace}/${name}`, at);
  }

  #spendEvent({ at, replica, body }: ApiRequest): string | undefined {
    const { regarding, reason } = body as {
      regarding: { namespace: string; name: string };
      reason: string;
    };
    const key = `${replica} event ${keyOf(regarding)}`;
    const before = this.#reportedAt.get(`${key} ${reason}`) ?? -Infinity;
    this.#reportedAt.set(`${key} ${reason}`, at);
    // It may have waited for its turn, the second time less than the first.
    if (at < before + EVENT_SPACING_MS - MIN) {
      return `"${key} ${reason}" twice in ${at - before} ms`;
    }
    return this.#spend("event", key, at);
  }

  /** `leftOf` says what a token has left at that time, as its replica sees it; undefined if that cannot be said. */
  spendExchange(
    request: ExchangeRequest,
    isShortLived: boolean,
    leftOf: (token: string, at: number) => number | undefined,
  ): string | undefined {
    const { at, replica, identity, subject } = request;
    const key = `${replica} exchange ${identity} ${subject}`;
    const before = this.#last.get(key);
    this.#last.set(key, request);
    if (before && before.endedAt > at) return `two of "${key}" at once`;
    const left = before?.isAnswered ? leftOf(before.token!, before.endedAt) : undefined;
    const pause = left === undefined ? MIN_PAUSE_MS - ROUNDING_MS : spacingFor(left);
    if (before && at < before.endedAt + pause) {
      return `"${key}" again after ${at - before.endedAt} ms, not ${pause}`;
    }
    return this.#spend(isShortLived ? "shortLivedExchange" : "exchange", key, at);
  }

  #spend(what: What, key: string, at: number): string | undefined {
    if (at >= this.#sweptAt + SWEEP_MS) this.#sweep(at);
    const recent = this.#recent.get(key) ?? [];
    this.#recent.set(key, recent);
    recent.push(at);
    while (recent[0]! <= at - MIN) recent.shift();
    return recent.length > BUDGETS[what] ? `${recent.length} of "${key}" in a minute` : undefined;
  }

  #sweep(at: number): void {
    this.#sweptAt = at;
    for (const [key, recent] of this.#recent) {
      if (recent.at(-1)! <= at - MIN) this.#recent.delete(key);
    }
    for (const [key, { endedAt }] of this.#last) {
      if (endedAt <= at - MIN) this.#last.delete(key);
    }
    for (const [key, reportedAt] of this.#reportedAt) {
      if (reportedAt <= at - EVENT_SPACING_MS) this.#reportedAt.delete(key);
    }
  }
}
