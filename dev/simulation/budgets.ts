/** How much may be asked for in any minute, whatever happens. */
import { type ApiRequest, type ExchangeRequest, keyOf } from "../virtual.ts";

const MINUTE_MS = 60_000;
/** What was asked for longer ago than a minute is let go of so often. */
const SWEEP_MS = 5 * MINUTE_MS;

/** In any minute, of one replica. */
const BUDGETS = {
  /**
   * For one identity and subject. The shortest tokens that are taken live 5 s, and half of that may lie between two
   * exchanges: 24; and tries that fail before the back-off is felt.
   */
  exchange: 32,
  /** Writes to one Secret: as often, and once more after each conflict. */
  patch: 36,
  /** Reads of one Secret: before a write, and after a conflict. */
  get: 36,
  /** Token requests for one account. */
  token: 36,
  /** Lists of one namespace, and watches: each lives a second at least, or is followed by a back-off. */
  list: 60,
  watch: 62,
  /** Events of one Secret: each of six reasons, once in 5 min. */
  event: 6,
};

export class Budgets {
  readonly #recent = new Map<string, number[]>();
  #sweptAt = 0;

  /** Says what is over its budget. */
  spendApi({ at, replica, verb, namespace, name, body }: ApiRequest): string | undefined {
    const regarding = (body as { regarding?: { namespace: string; name: string } } | undefined)
      ?.regarding;
    return this.#spend(
      verb,
      `${replica} ${verb} ${regarding ? keyOf(regarding) : `${namespace}/${name}`}`,
      at,
    );
  }

  spendExchange({ at, replica, identity, subject }: ExchangeRequest): string | undefined {
    return this.#spend("exchange", `${replica} exchange ${identity} ${subject}`, at);
  }

  #spend(what: keyof typeof BUDGETS, key: string, at: number): string | undefined {
    if (at >= this.#sweptAt + SWEEP_MS) this.#sweep(at);
    const recent = this.#recent.get(key) ?? [];
    this.#recent.set(key, recent);
    recent.push(at);
    while (recent[0]! <= at - MINUTE_MS) recent.shift();
    return recent.length > BUDGETS[what] ? `${recent.length} of "${key}" in a minute` : undefined;
  }

  #sweep(at: number): void {
    this.#sweptAt = at;
    for (const [key, recent] of this.#recent) {
      if (recent.at(-1)! <= at - MINUTE_MS) this.#recent.delete(key);
    }
  }
}
