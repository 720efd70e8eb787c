/** The product with one deliberate fault each: what the simulation is worth is shown by which of them it finds. */

export interface Variant {
  /** What is wrong with it. */
  name: string;
  file: "main.ts" | "k8s.ts" | "sts.ts";
  /** This text, which stands there once, … */
  text: string;
  /** … is replaced by this one. */
  by: string;
  /** The invariants one of which it breaks. */
  breaks: RegExp;
}

const SHARED_BY =
  "const key = account === undefined ? identity : `${identity} ${namespace}/${account}`;";
const SOURCE = "const source = sources.get(key) ?? new Source();";
const SOURCE_OF_ONE_BACKOFF =
  "const backoff = sources.values().next().value?.backoff ?? new Backoff();\n" +
  "const source = sources.get(key) ?? Object.assign(new Source(), { backoff });";
const SPACING = "const ms = Math.min(Math.max(leftMs / 2, MIN_SPACING_MS), MAX_SPACING_MS);";
const STUCK = "at < clock.monotonic() - STUCK_MS";

export const VARIANTS: Variant[] = [
  {
    name: "a failed exchange is tried again at once",
    file: "main.ts",
    text: "source.backoff.fail(deps, error);",
    by: "",
    breaks: /^\(b\)/,
  },
  {
    name: "the back-off of lists and watches is left out",
    file: "main.ts",
    text: "const ms = backoff.fail(this.#deps, error, MAX_WATCH_BACKOFF_MS);",
    by: "const ms = 1;",
    breaks: /^\(b\)/,
  },
  {
    name: "a back-off grows without end",
    file: "main.ts",
    text: "Math.min(MIN_BACKOFF_MS * 2 ** this.failures++, maxMs)",
    by: "Math.min(MIN_BACKOFF_MS * 2 ** this.failures++, 100 * maxMs)",
    breaks: /^\(a\)/,
  },
  {
    name: "Retry-After is heeded without a limit",
    file: "main.ts",
    text: "return Math.min(Math.max(ms || 0, 0), MAX_RETRY_AFTER_MS);",
    by: "return Math.max(ms || 0, 0) * 10;",
    breaks: /^\(a\)/,
  },
  {
    name: "writes and exchanges have no spacing",
    file: "main.ts",
    text: SPACING,
    by: "const ms = 0;",
    breaks: /^\((b|c)\)/,
  },
  {
    name: "writes and exchanges are a second apart, however long tokens live",
    file: "main.ts",
    text: SPACING,
    by: "const ms = MIN_SPACING_MS + 0 * leftMs;",
    breaks: /^\((b|c)\)/,
  },
  {
    name: "a token that somebody plants shortens the spacing of writes",
    file: "main.ts",
    text: "this.retryAt = Math.max(this.retryAt, clock.monotonic() + ms);",
    by: "this.retryAt = clock.monotonic() + ms;",
    breaks: /^\((b|c)\)/,
  },
  {
    name: "each namespace has an exchange of its own",
    file: "main.ts",
    text: SHARED_BY,
    by: "const key = `${identity} ${namespace}/${account}`;",
    breaks: /^\(b\)/,
  },
  {
    name: "tokens are shared whoever asks",
    file: "main.ts",
    text: SHARED_BY,
    by: "const key = identity;",
    breaks: /^\((a|b|c)\)/,
  },
  {
    name: "tokens are shared whatever the identity",
    file: "main.ts",
    text: SHARED_BY,
    by: "const key = `${account && namespace}/${account}`;",
    breaks: /^\(c\)/,
  },
  {
    name: "a deleted Secret is kept",
    file: "main.ts",
    text: 'else if (event.type === "DELETED") this.#remove(keyOf(event.secret.metadata));',
    by: 'else if (event.type === "DELETED") continue;',
    breaks: /^\(d\)/,
  },
  {
    name: "a Secret whose DELETED was missed is kept",
    file: "main.ts",
    text: "if (!isListed) this.#remove(keyOf(secret));",
    by: "",
    breaks: /^\(d\)/,
  },
  {
    name: "a failed watch does not lead to a list",
    file: "main.ts",
    text: 'version = "";\n        const hasLived',
    by: "const hasLived",
    breaks: /^\((a|b|d)\)/,
  },
  {
    name: "a watch that ends at once is no failure",
    file: "main.ts",
    text: 'throw new ApiError("watch: it ended at once");',
    by: "continue;",
    breaks: /^\((a|b|d)\)/,
  },
  {
    name: "a stalled watch connection is believed for ever",
    file: "k8s.ts",
    text: "yield* api.watch(namespace, version, seconds, signal);",
    by: "yield* api.watch(namespace, version, seconds * 1e6, new AbortController().signal);",
    breaks: /^\((a|d|g)\)/,
  },
  {
    name: "the delay of a timer overflows at 2^31 ms",
    file: "main.ts",
    text: "entry.timer = clock.setTimeout(() => this.#reconcile(entry), step.ms);",
    by: "entry.timer = clock.setTimeout(() => this.#reconcile(entry), step.ms + 2 ** 31);",
    breaks: /^\((a|b|c)\)/,
  },
  {
    name: "no Secret is looked at each minute",
    file: "main.ts",
    text: "for (const entry of this.#entries.values()) this.#reconcile(entry);",
    by: "",
    breaks: /^\((a|h)\)/,
  },
  {
    name: "a conflict drops the Secret",
    file: "main.ts",
    text: "const isConflict = [404, 409].includes(error.status);",
    by: "const isConflict = [404, 409].includes(error.status);\n" +
      "if (isConflict) this.#remove(keyOf(secret));",
    breaks: /^\((a|d)\)/,
  },
  {
    name: "failed writes have no back-off",
    file: "main.ts",
    text: "backoff.fail(this.#deps, error);\n        const isConflict",
    by: "const isConflict",
    breaks: /^\((b|c)\)/,
  },
  {
    name: "a Secret that is read otherwise than it is known is read again at once",
    file: "main.ts",
    text: "entry.backoff.fail(this.#deps, {});",
    by: "",
    breaks: /^\(b\)/,
  },
  {
    name: "two steps for a Secret are made at once",
    file: "main.ts",
    text: "while (!entry.isBusy && this.#isCurrent(entry)) {",
    by: "while (this.#isCurrent(entry)) {",
    breaks: /^\((a|b|c|d)\)/,
  },
  {
    name: "an identity that is changed is not noticed",
    file: "main.ts",
    text: "return owner === identity && audiences",
    by: "return owner && audiences",
    breaks: /^\(a\)/,
  },
  {
    name: "an annotation that the label does not agree with wins",
    file: "main.ts",
    text: 'if (!IDENTITY.test(identity) || !["", identity].includes(label)) {',
    by: "if (!IDENTITY.test(identity)) {",
    breaks: /^\((b|c|h)\)/,
  },
  {
    name: "an empty service account is the controller's own",
    file: "main.ts",
    text: "const account = annotation(ACCOUNT_KEY);",
    by: "const account = annotation(ACCOUNT_KEY) || undefined;",
    breaks: /^\((c|h)\)/,
  },
  {
    name: "other registries' entries are lost",
    file: "main.ts",
    text: "auths: { ...auths, ...ours }",
    by: "auths: ours",
    breaks: /^\(c\)/,
  },
  {
    name: "a docker config is believed to be empty",
    file: "main.ts",
    text: 'isPlain: others.length === 0 && Object.keys(config).every((key) => key === "auths"),',
    by: "isPlain: true,",
    breaks: /^\(c\)/,
  },
  {
    name: "the preconditions are left out",
    file: "main.ts",
    text: "{ metadata: { uid, resourceVersion, annotations }, data },",
    by: "{ metadata: { annotations }, data },",
    breaks: /^\((a|b|c)\)/,
  },
  {
    name: "a refresh stays requested",
    file: "main.ts",
    text: "[REFRESHED_KEY]: refresh,",
    by: "",
    breaks: /^\((a|b|c)\)/,
  },
  {
    name: "a refresh is served with the cached token",
    file: "main.ts",
    text: "const isFresh = isRequested ? hasJustRenewed : renewAt > now;",
    by: "const isFresh = renewAt > now || (isRequested && hasJustRenewed);",
    breaks: /^\(c\)/,
  },
  {
    name: "the token is logged",
    file: "main.ts",
    text: '"token written", { namespace, name, identity, reason: step.decision, expires }',
    by: '"token written", { namespace, name, identity, expires, end: jwt.slice(-20) }',
    breaks: /^\(f\)/,
  },
  {
    name: "an expired cached token is written",
    file: "main.ts",
    text: 'const outlives = expiresAt > (decision === "due" ? token!.expiresAt : now);',
    by: "const outlives = expiresAt > 0;",
    breaks: /^\((a|b|c)\)/,
  },
  {
    name: "a token is replaced when it has expired",
    file: "main.ts",
    text: 'return renewalTime(secret.token!, fraction) <= now ? "due" : "wait";',
    by: 'return "wait";',
    breaks: /^\((a|b|g)\)/,
  },
  {
    name: "what the issuer gives is not judged",
    file: "sts.ts",
    text: "if (claims && !flaw) return claims;",
    by: "if (claims) return claims;",
    breaks: /^\((a|b|c)\)/,
  },
  {
    name: "tokens that live for a moment are taken",
    file: "sts.ts",
    text: 'if (expiresAt - issuedAt! < MIN_LIFE_MS) return "it lives less than 5 s";',
    by: "",
    breaks: /^\((a|b|c)\)/,
  },
  {
    name: "a clock that is a minute behind finds no token good",
    file: "sts.ts",
    text: "const MAX_SKEW_MS = 5 * 60_000;",
    by: "const MAX_SKEW_MS = 55_000;",
    breaks: /^\((a|b)\)/,
  },
  {
    name: "an immutable Secret is written to",
    file: "main.ts",
    text: "if (type !== SECRET_TYPE || immutable) {",
    by: "if (type !== SECRET_TYPE) {",
    breaks: /^\((c|h)\)/,
  },
  {
    name: "what cannot be filled is not reported",
    file: "main.ts",
    text: "if (step.report) this.#report(secret, step.report);",
    by: "",
    breaks: /^\(h\)/,
  },
  {
    name: "/healthz never fails",
    file: "main.ts",
    text: STUCK,
    by: "at < -Infinity",
    breaks: /^\(g\)/,
  },
  {
    name: "/healthz fails while the issuer is slow",
    file: "main.ts",
    text: STUCK,
    by: "at < clock.monotonic() + 5_000",
    breaks: /^\(g\)/,
  },
  {
    name: "a namespace that is forbidden holds up /readyz",
    file: "main.ts",
    text: 'if (namespace && reason === "forbidden") this.#unanswered.delete(namespace);',
    by: "",
    breaks: /^\(g\)/,
  },
];

/** Those that let one tenant reach another: the attack that shows it. */
export const OPEN_VARIANTS: (Variant & { attack: string })[] = [
  {
    name: "turns go by who came first, whatever the namespace",
    file: "main.ts",
    text: "run: (namespace: string, hasFailed: boolean, start: Start) =>",
    by: 'run: (_: string, hasFailed: boolean, start: Start, namespace = "all") =>',
    attack: "flip identities that the issuer is slow for",
    breaks: /^\(a\)/,
  },
  {
    name: "a namespace keeps its place among those that wait",
    file: "main.ts",
    text: "waiting.delete(namespace);\n      const job",
    by: "const job",
    attack: "flip identities that the issuer is slow for",
    breaks: /^\(a\)/,
  },
  {
    name: "one namespace takes all places",
    file: "main.ts",
    text: "limitOfNamespace = limit / 2",
    by: "limitOfNamespace = limit",
    attack: "flip identities in one namespace that the issuer is slow for",
    breaks: /^\(a\)/,
  },
  {
    name: "turns for writes go by who came first",
    file: "main.ts",
    text: "this.#writes.run(secret.namespace, backoff.failures > 0, () =>",
    by: 'this.#writes.run("all", backoff.failures > 0, () =>',
    attack: "blank Secrets whose writes are slow",
    breaks: /^\(a\)/,
  },
  {
    name: "Retry-After for one identity holds the others",
    file: "main.ts",
    text: SOURCE,
    by: SOURCE_OF_ONE_BACKOFF,
    attack: "have identities that the issuer throttles",
    breaks: /^\(a\)/,
  },
  {
    name: "Normal events wait for places, as Warnings do",
    file: "main.ts",
    text: ": turns.hasRoom(namespace, NORMAL_EVENTS_PART);",
    by: ": turns.sizeOf(namespace) < MAX_WAITING_EVENTS;",
    attack: "have Secrets that cannot be filled",
    breaks: /^\(h\)/,
  },
  {
    name: "who is gone keeps its turn",
    file: "main.ts",
    text:
      "this.#isCurrent(entry) && this.#stepOf(entry).do === step.do ? entry.secret : undefined;",
    by: "entry.secret;",
    attack: "make and delete Secrets of ever other identities",
    breaks: /^\(c\)/,
  },
];
