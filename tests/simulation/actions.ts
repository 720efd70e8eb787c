/** All that can happen in a run. */
import { CHANGES } from "./changes.ts";
import { FAULTS, RESTORE_MS } from "./outages.ts";
import { PARTIAL_FAULTS } from "./partial_outages.ts";
import type { Action } from "./plan.ts";
import type { Run } from "./run.ts";

/** Begins something; returns what ends it, if it lasts. */
export type Begin = (run: Run, action: Action) => (() => void) | void;

const OUTAGE_MS = 4 * 3600_000;
/** What has the controller write all the time would cost too much time if it went on for hours. */
const BURST_MS = 15 * 60_000;
const BURSTS =
  / all the time$|^tokens live for seconds$|^issuer gives tokens of 6 s$|^issuer caches/;
/** After the last fault: a request that still hangs (30 s), the back-off that follows it (1 min), and slow answers. */
const RECOVERY_MS = 110_000;
/** The longest pause that `Retry-After` is granted. */
const RETRY_AFTER_MS = 5 * 60_000;
/** A watch lives up to 90 s, and is given up 10 s later. */
const DEAF_MS = 100_000;

const ACTIONS: Record<string, Begin> = { ...FAULTS, ...PARTIAL_FAULTS, ...CHANGES };
export const KINDS = Object.keys(ACTIONS);
/** How long such a thing may last, in ms. */
export const longest = (kind: string) => BURSTS.test(kind) ? BURST_MS : OUTAGE_MS;
/** Whether nothing is promised while it lasts. */
export const isFault = ({ kind }: Action) => kind in FAULTS;
/** Whether tokens live for seconds meanwhile, as a replica sees them. */
export const isShortening = ({ kind }: Action) =>
  /^tokens live|^issuer gives tokens of|^issuer caches|^issuer's clock|^a clock/.test(kind);
export const begin: Begin = (run, action) => ACTIONS[action.kind]!(run, action);

/** How long after its end all has to be well, in ms. */
export function recoveryFrom({ kind }: Action): number {
  if (/throttles/.test(kind)) return RECOVERY_MS + RETRY_AFTER_MS;
  if (/deaf|unseen/.test(kind)) return RECOVERY_MS + DEAF_MS;
  return kind === "etcd restored" ? RECOVERY_MS + RESTORE_MS : RECOVERY_MS;
}
