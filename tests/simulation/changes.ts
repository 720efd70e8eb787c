/** What other hands do to single Secrets: the rest stay well, and so must these be again soon. */
import type { Secret } from "../../k8s.ts";
import { keyOf } from "../virtual/cluster.ts";
import { encode, identityOf } from "./judge.ts";
import { WATCHES } from "./watches.ts";
import { DATA_KEY, IDENTITY, PREFIX } from "../support/names.ts";
import type { Action, Begin, Stage } from "./stage.ts";

/** Between two writes of somebody who fights for a Secret; most fight hard. */
const FIGHT_MS = 700;
const CALMER_FIGHT_MS = 30_000;
/** The shortest life of tokens that are of any use, and what of it the slowest exchange and write may take. */
const SHORT_LIFE_MS = 12_000;
const SLOWEST_PART = 0.1;
/** What is left of a token's life when the last Secret is renewed: 0.67 and a spread of 0.1 are over. */
const LEFT_PART = 0.23;
/** An issuer that gives the same token again is asked once a second at most, and after half of what is left. */
const ASKED_AGAIN_MS = 1_000;
/** So many such lives are tried. */
const LIVES = 5;
const DAY_S = 86_400;
/** A forged token claims to live as long as is believed, a day; or longer. */
const FORGED_LIVES_S = [80_000, 10 * 86_400, 1e12];
/** A moment, seconds, hours. */
const PLANTED_LIVES_S = [0.2, 3, 8, 7_200];
/** Neither text nor JSON, as base64; and Latin-1. */
const NO_JSON = ["", "AAAA", "eyJh", Buffer.from('{"x":"\xe4"}', "latin1").toString("base64")];
/** What clients take instead of the token. */
const SHADOWS = [
  { auths: { "https://cgr.dev": { auth: "eDp5" }, "cgr.dev/org": { auth: "eDp5" } } },
  { auths: { "cgr.dev": { username: "x", password: "y" } }, credHelpers: { "cgr.dev": "x" } },
  { auths: {}, credsStore: "desktop" },
];

/** Another writer's change of one Secret. */
const change =
  (patch: (secret: Secret, run: Stage, action: Action) => object): Begin => (run, action) => {
    const secret = run.secretAt(action.target);
    if (secret) run.disturb(keyOf(secret.metadata), patch(secret, run, action));
  };

const annotation = (name: string, value: string | null) => ({
  metadata: { annotations: { [`${PREFIX}${name}`]: value } },
});
const annotate = (name: string, value: (run: Stage, action: Action) => string | null) =>
  change((_secret, run, action) => annotation(name, value(run, action)));
/** Names an identity in label and annotation. */
const name = (labelled: string, annotated: string | null) => ({
  metadata: { labels: { [IDENTITY]: labelOf(labelled) }, annotations: { [IDENTITY]: annotated } },
});
const configure = (config: (run: Stage, action: Action) => unknown) =>
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

/** A docker config with a token that the issuer never gave, for each registry. */
function forged({ world, registries, pick }: Stage, sub: string, life: number): object {
  const now = world.clock.now() / 1000;
  // Without one its life is counted from now on, which only the controller knows.
  const iat = life > DAY_S ? now : pick([now, now + 100, now - 100, undefined]);
  const token = world.jwt({ aud: "cgr.dev", sub, iat, exp: now + life });
  return { auths: Object.fromEntries(registries.map((host) => [host, entryOf(token)])) };
}

/** Another writer's change, made again and again. */
const fight = (patch: (run: Stage) => object): Begin => (run, action) => {
  const secret = run.secretAt(action.target);
  if (!secret) return;
  const key = keyOf(secret.metadata);
  return run.every(
    FIGHT_MS + action.amount ** 3 * CALMER_FIGHT_MS,
    () => run.disturb(key, patch(run)),
  );
};

const EMPTY = { auths: {} };
/** Nobody approved of it for any Secret. */
const STRANGER = "e".repeat(40);
const labelOf = (identity: string) => identity.replaceAll("/", ".");
const entryOf = (jwt: string) => ({ auth: encode(`_token:${jwt}`) });
/** A value that was not there before. */
const newValue = (run: Stage) => `${run.world.clock.tick}`;

export const CHANGES: Record<string, Begin> = {
  ...WATCHES,
  "refresh asked for": annotate("refresh", newValue),
  "refresh asked for by a long value": annotate(
    "refresh",
    (run) => `${newValue(run)}${"€".repeat(10_000)}`,
  ),
  "refresh asked for all the time": fight((run) => annotation("refresh", newValue(run))),
  "identity changed": change((_secret, run, { amount }) => name(run.identityAt(amount), null)),
  "identity in an annotation": change((_secret, run, { amount }) =>
    name("", run.identityAt(amount))
  ),
  "identity in label and annotation": change((_secret, run, { amount }) =>
    name(run.identityAt(amount), run.identityAt(amount))
  ),
  "label and annotation disagree": spoil(
    change((_secret, run, { amount }) => name(run.identityAt(amount), STRANGER)),
  ),
  "identity invalid": spoil(change(() => name("nobody", null))),
  "identity empty": spoil(change(() => name("", ""))),
  "identity flipped all the time": fight((run) => name(run.identityAt(run.random()), null)),
  "identity's annotation flipped all the time": fight((run) =>
    name("", run.identityAt(run.random()))
  ),
  "account named": annotate(
    "service-account",
    (_run, { amount }) => amount < 0.5 ? "puller" : "other",
  ),
  "account invalid": spoil(
    annotate("service-account", (run) => run.pick(["../x", "puller ", "x".repeat(100_000)])),
  ),
  "account empty": spoil(change((_secret, run) => ({
    metadata: {
      annotations: { [`${PREFIX}service-account`]: "", [`${PREFIX}refresh`]: newValue(run) },
    },
  }))),
  "account taken off": annotate("service-account", () => null),
  "account flipped all the time": fight((run) =>
    annotation("service-account", run.pick([null, "puller", "other"]))
  ),
  "unlabelled": spoil(change(() => ({ metadata: { labels: { [IDENTITY]: null } } }))),
  "blanked": configure(() => EMPTY),
  "blanked all the time": fight(() => ({ data: { [DATA_KEY]: encode(JSON.stringify(EMPTY)) } })),
  "another registry added": configure((_run, { amount }) => ({
    auths: { "other.example": { auth: `${amount}` }, "cgr.dev": null },
    credHelpers: { "x.example": "y" },
    n: 1.5,
  })),
  "malformed": spoil(configure((run) => run.pick([["nothing"], "text", { auths: [] }, 7]))),
  "no JSON": spoil(change((_secret, run) => ({ data: { [DATA_KEY]: run.pick(NO_JSON) } }))),
  "empty in another way": configure((run) => run.pick([null, { auths: null }, {}])),
  "shadowed": configure((run) => run.pick(SHADOWS)),
  "a forged token": configure((run, { amount }) =>
    forged(run, run.identityAt(amount), run.pick(FORGED_LIVES_S))
  ),
  "tokens planted all the time": (run, action) => {
    const secret = run.secretAt(action.target);
    const identity = secret && identityOf(secret);
    return fight((run) => {
      const config = forged(run, identity!, run.pick(PLANTED_LIVES_S));
      return { data: { [DATA_KEY]: encode(JSON.stringify(config)) } };
    })(run, action);
  },
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
    const slowest = latency.issuer + 2 * latency.api;
    // A clock that is ahead takes from each life what it is ahead by; one that is behind renews so much later, and
    // nothing but the life's end tells it: that is too late where no more was left.
    const shortest = Math.max(
      SHORT_LIFE_MS + skew,
      slowest / SLOWEST_PART,
      (skew / 2 + slowest) / LEFT_PART,
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
