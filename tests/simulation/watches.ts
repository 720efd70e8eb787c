/** What befalls watches while lists work: each failure leads to a list, so that all Secrets stay well. */
import { answer, api, noAnswer } from "./outages.ts";
import { S } from "../support/names.ts";
import type { Begin } from "./stage.ts";

const MAX_WATCH_MS = 2_000;
/** A load balancer ends what has been silent for so long. */
const IDLE_MS = 20_000;
/** The versions that no watch may begin from: those up to so much later than the present one. */
const OLD_VERSIONS = 5;

/** Watches from a version that is yet to come work, all others fail, for as long as it lasts. */
const fromOldVersions = (error: () => Error, isAfter: boolean): Begin => (run, action) => {
  const { cluster } = run.world;
  const until = cluster.version + Math.ceil(action.amount * OLD_VERSIONS);
  cluster.endWatches(error());
  return api(({ verb, from = until }) => {
    if (verb !== "watch" || from >= until) return undefined;
    return isAfter ? { after: error() } : error();
  })(run, action);
};

export const WATCHES: Record<string, Begin> = {
  "watches cut": ({ world: { cluster } }) => cluster.endWatches(noAnswer("ECONNRESET")),
  "watches cut by a load balancer": (run) =>
    run.every(IDLE_MS, () => run.world.cluster.endWatches(noAnswer("ECONNRESET"))),
  "watches end at once": ({ world: { cluster } }, { amount }) => {
    cluster.watchLife = Math.floor(amount * MAX_WATCH_MS);
    cluster.endWatches();
    return () => cluster.watchLife = Infinity;
  },
  "watches from old versions end at once": ({ world: { cluster } }, { amount }) => {
    cluster.emptyTo = cluster.version + Math.ceil(amount * OLD_VERSIONS);
    cluster.endWatches();
    return () => cluster.emptyTo = 0;
  },
  "watches from old versions are cut": fromOldVersions(() => noAnswer("ECONNRESET"), false),
  "watches from old versions are cut after they began": fromOldVersions(
    () => noAnswer("ECONNRESET"),
    true,
  ),
  "watches from old versions are forbidden": fromOldVersions(() => answer(403), false),
  "watches from old versions are held": fromOldVersions(() => answer(429), false),
  "watches forbidden": (run, action) => {
    run.world.cluster.endWatches(answer(403));
    return api(({ verb }) => verb === "watch" ? answer(403) : undefined)(run, action);
  },
  "every version is too old": (run, action) => {
    run.world.cluster.endWatches(answer(410));
    return api(({ verb }) => verb === "watch" ? answer(410) : undefined)(run, action);
  },
  "history compacted": ({ world: { cluster } }) => {
    cluster.compact(cluster.version);
    cluster.endWatches(answer(410));
  },
  "watches fail at times": api(({ verb }, run, { amount }) =>
    verb === "watch" && run.random() < amount ? answer(500) : undefined
  ),
  "watches slow": api(({ verb }, _run, { amount }) =>
    verb === "watch" ? amount * 5 * S : undefined
  ),
};
