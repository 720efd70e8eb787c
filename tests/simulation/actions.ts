/** All that can happen in a run. */
import { CHANGES } from "./changes.ts";
import { OUTAGES } from "./outages.ts";
import { PARTIAL_OUTAGES } from "./partial_outages.ts";
import type { Action, Begin } from "./stage.ts";

const OUTAGE_MS = 4 * 3600_000;
/** What has the controller write all the time would cost too much time if it went on for hours. */
const BURST_MS = 15 * 60_000;
const BURSTS =
  / all the time$|^tokens live for seconds$|^issuer gives tokens of 6 s$|^issuer caches/;
const ACTIONS: Record<string, Begin> = { ...OUTAGES, ...PARTIAL_OUTAGES, ...CHANGES };
export const KINDS = Object.keys(ACTIONS);
/** How long such a thing may last, in ms. */
export const longest = (kind: string) => BURSTS.test(kind) ? BURST_MS : OUTAGE_MS;
/** Whether nothing is promised while it lasts. */
export const isFault = ({ kind }: Action) => kind in OUTAGES;
/** Whether tokens live for seconds meanwhile, as a replica sees them. */
export const isShortening = ({ kind }: Action) =>
  /^tokens live|^issuer gives tokens of|^issuer caches|^issuer's clock|^a clock/.test(kind);
export const begin: Begin = (run, action) => ACTIONS[action.kind]!(run, action);
