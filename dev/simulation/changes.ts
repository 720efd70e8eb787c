/** What other hands do to single Secrets: the rest stay well, and so must these be again soon. */
import type { Secret } from "../../k8s.ts";
import { keyOf, LABEL } from "../virtual.ts";
import type { Begin } from "./actions.ts";
import { DATA_KEY, encode, PREFIX } from "./judge.ts";
import type { Action } from "./plan.ts";
import type { Run } from "./run.ts";

/** Between two writes of somebody who fights for a Secret; most fight hard. */
const FIGHT_MS = 700;
const CALMER_FIGHT_MS = 30_000;
/** The shortest life of tokens that are of any use, and what of it the slowest exchange and write may take. */
const SHORT_LIFE_MS = 12_000;
const SLOWEST_PART = 0.1;
/** An issuer that gives the same token again is asked once a second at most, and after half of what is left. */
const ASKED_AGAIN_MS = 1_000;
/** So many such lives are tried. */
const LIVES = 5;
/** A forged token claims to live as long as is believed, a day; or longer. */
const FORGED_LIVES_S = [80_000, 10 * 86_400, 1e12];

/** Another writer's change of one Secret. */
const change =
  (patch: (secret: Secret, run: Run, action: Action) => object): Begin => (run, action) => {
    const secret = run.secretAt(action.target);
    if (secret) run.disturb(keyOf(secret.metadata), patch(secret, run, action));
  };

const annotation = (name: string, value: string | null) => ({
  metadata: { annotations: { [`${PREFIX}/${name}`]: value } },
});
const annotate = (name: string, value: (run: Run, action: Action) => string | null) =>
  change((_secret, run, action) => annotation(name, value(run, action)));
const label = (value: (run: Run, action: Action) => string | null) =>
  change((_secret, run, action) => ({ metadata: { labels: { [LABEL]: value(run, action) } } }));
const configure = (config: (run: Run, action: Action) => unknown) =>
  change((_secret, run, action) => ({
    data: { [DATA_KEY]: encode(JSON.stringify(config(run, action))) },
  }));

/** What leaves a Secret without a token, until it is put right again. */
const spoil = (begin: Begin): Begin => (run, action) => {
  const secret = run.secretAt(action.target);
  if (!secret) return;
  begin(run, action);
  return () => run.mend(keyOf(secret.metadata), action);
};

/** Another writer's change, made again and again. */
const fight = (patch: (run: Run) => object): Begin => (run, action) => {
  const secret = run.secretAt(action.target);
  if (!secret) return;
  const key = keyOf(secret.metadata);
  return run.every(
    FIGHT_MS + action.amount ** 3 * CALMER_FIGHT_MS,
    () => run.disturb(key, patch(run)),
  );
};

const EMPTY = { auths: {} };
const labelOf = (identity: string) => identity.replaceAll("/", ".");
const entryOf = (jwt: string) => ({ auth: encode(`_token:${jwt}`) });
/** A value that was not there before. */
const newValue = (run: Run) => `${run.world.clock.tick}`;

export const CHANGES: Record<string, Begin> = {
  "refresh asked for": annotate("refresh", newValue),
  "refresh asked for all the time": fight((run) => annotation("refresh", newValue(run))),
  "identity changed": label((run, { amount }) => labelOf(run.identityAt(amount))),
  "identity in an annotation": annotate("identity", (run, { amount }) => run.identityAt(amount)),
  "identity's annotation taken off": annotate("identity", () => null),
  "identity invalid": spoil(label(() => "nobody")),
  "identity flipped all the time": fight((run) => ({
    metadata: { labels: { [LABEL]: labelOf(run.identityAt(run.random())) } },
  })),
  "account named": annotate(
    "service-account",
    (_run, { amount }) => amount < 0.5 ? "puller" : "other",
  ),
  "account invalid": spoil(
    annotate("service-account", (_run, { amount }) => amount < 0.5 ? "../x" : ""),
  ),
  "account taken off": annotate("service-account", () => null),
  "account flipped all the time": fight((run) =>
    annotation("service-account", run.pick([null, "puller", "other"]))
  ),
  "unlabelled": spoil(label(() => null)),
  "blanked": configure(() => EMPTY),
  "blanked all the time": fight(() => ({ data: { [DATA_KEY]: encode(JSON.stringify(EMPTY)) } })),
  "another registry added": configure((_run, { amount }) => ({
    auths: { "other.example": { auth: `${amount}` }, "cgr.dev": null },
    credHelpers: { "x.example": "y" },
    n: 1.5,
  })),
  "malformed": spoil(configure((run) => run.pick([["nothing"], "text", { auths: [] }, null]))),
  "a forged token": configure((run, { amount }) => {
    const now = run.world.clock.now() / 1000;
    const claims = {
      aud: "cgr.dev",
      sub: run.identityAt(amount),
      iat: now,
      exp: now + run.pick(FORGED_LIVES_S),
    };
    return { auths: { "cgr.dev": entryOf(run.world.jwt(claims)) } };
  }),
  "another's token": change((secret, run, { amount }) => {
    const other = run.secretAt(Math.floor(amount * 1000)) ?? secret;
    return { data: { [DATA_KEY]: other.data?.[DATA_KEY] ?? null } };
  }),
  "touched": change((_secret, run) => ({ metadata: { annotations: { touched: newValue(run) } } })),
  "touched all the time": fight((run) => ({
    metadata: { annotations: { touched: newValue(run) } },
  })),
  "being deleted": spoil(
    change(() => ({ metadata: { deletionTimestamp: "2027-01-01T00:00:00Z" } })),
  ),
  "deleted": spoil((run, { target }) => run.remove(target)),
  "made": (run, { target }) => run.make(target),
  "made anew": (run, { target }) => {
    run.remove(target);
    run.make(target);
  },
  "tokens live for seconds": (run, { amount }) => {
    const { world: { issuer }, plan: { latency, life, skew } } = run;
    // A clock that is ahead takes from each life what it is ahead by.
    const shortest = Math.max(
      SHORT_LIFE_MS + skew,
      (latency.issuer + 2 * latency.api) / SLOWEST_PART,
    );
    issuer.life = Math.floor(shortest * (1 + amount * (LIVES - 1)) / 1000) * 1000;
    // Else all would keep what they have for most of an hour.
    run.askForAll();
    return () => issuer.life = life;
  },
  "issuer caches its tokens": ({ world, plan: { latency, life, skew } }, { amount }) => {
    // With less, it expires while the next is on its way. A clock that is behind believes that so much more is left.
    const least = skew + 2 * (ASKED_AGAIN_MS + latency.issuer + 2 * latency.api);
    world.issuer.renewBefore = Math.max(least, life * amount / 10);
    return () => world.issuer.renewBefore = Infinity;
  },
};
