/** All that can happen in a run. */
import { CHANGES } from "./changes.ts";
import { FAULTS } from "./faults.ts";
import type { Action } from "./plan.ts";
import type { Run } from "./run.ts";

/** Begins something; returns what ends it, if it lasts. */
export type Begin = (run: Run, action: Action) => (() => void) | void;

const OUTAGE_MS = 4 * 3600_000;
/** What has the controller write all the time would cost too much time if it went on for hours. */
const BURST_MS = 15 * 60_000;
const BURSTS =
  / all the time$|^tokens live for seconds$|^issuer gives tokens of 6 s$|^issuer caches/;

const ACTIONS: Record<string, Begin> = { ...FAULTS, ...CHANGES };
export const KINDS = Object.keys(ACTIONS);
/** How long such a thing may last, in ms. */
export const longest = (kind: string) => BURSTS.test(kind) ? BURST_MS : OUTAGE_MS;
/** Whether nothing is promised while it lasts. */
export const isFault = ({ kind }: Action) => kind in FAULTS;
export const begin: Begin = (run, action) => ACTIONS[action.kind]!(run, action);
