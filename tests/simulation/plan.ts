/**
 * What happens in a run, as data that a seed determines: so that a run can be repeated, and narrowed down. What can
 * happen is in `actions.ts`.
 */
import { seeded } from "../virtual/clock.ts";
import { KINDS, longest } from "./actions.ts";
import { HOUR, MIN, S } from "../support/names.ts";
import type { Plan } from "./stage.ts";

const DAY_MS = 24 * HOUR;
/** A disturbance every two hours, on average: the next comes while the last is felt, or long after it. */
const ACTIONS_A_DAY = 12;
/** Short ones are as frequent as long ones: the exponent is uniform. */
const SHORTEST_MS = 2 * S;
/** At the end nothing happens for so long, and all must be well. */
const QUIET_MS = 2 * HOUR;
const MAX_SECRETS = 8;
export const MAX_REPLICAS = 3;
const MAX_IDENTITIES = 3;
/** Not even a seed's multiples may begin alike. */
const SPREAD = 0x9e3779b1;

/** What of a plan is to remain. */
export interface Part {
  keep?: number[];
  replicas?: number;
  secrets?: number;
}

/** The plan of a seed. */
export function makePlan(seed: number, days: number): Plan {
  const random = seeded(Math.imul(seed, SPREAD));
  const pick = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)]!;
  const upTo = (most: number) => 1 + Math.floor(random() * most);
  const end = days * DAY_MS;
  const actions = Array.from({ length: Math.ceil(days * ACTIONS_A_DAY) }, () => {
    const [at, kind] = [Math.floor(random() * end), pick(KINDS)];
    const lasts = Math.floor(SHORTEST_MS * (longest(kind) / SHORTEST_MS) ** random());
    // What lasts beyond the end is cut short there.
    return {
      at,
      kind,
      target: Math.floor(random() * 1000),
      lasts: Math.min(lasts, end - at),
      amount: random(),
    };
  });
  return {
    seed,
    days,
    replicas: upTo(MAX_REPLICAS),
    secrets: upTo(MAX_SECRETS),
    identities: upTo(MAX_IDENTITIES),
    namespaces: upTo(3),
    registries: upTo(2),
    isNarrow: random() < 0.2,
    life: pick([10 * MIN, 30 * MIN, HOUR, HOUR, HOUR]),
    latency: { api: pick([5, 50, 1_000]), issuer: pick([20, 200, 3_000]) },
    // The last is a clock that is a minute behind, or ahead: tokens were issued in what it takes for the future.
    skew: pick([0, 0, 2_000, 20_000, 124_000]),
    length: end + QUIET_MS,
    actions: actions.sort((a, b) => a.at - b.at).map((action, id) => ({ id, ...action })),
  };
}

/** The same plan with less in it. */
export function partOf(
  plan: Plan,
  { keep, replicas = plan.replicas, secrets = plan.secrets }: Part,
): Plan {
  const kept = new Set(keep);
  return {
    ...plan,
    replicas,
    secrets,
    actions: plan.actions.filter(({ id }) => keep === undefined || kept.has(id)),
  };
}
