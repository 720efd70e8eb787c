/** The product with one deliberate fault each: what the simulation is worth is shown by which of them it finds. */

export interface Variant {
  /** What is wrong with it. */
  name: string;
  file: "main.ts" | "sts.ts";
  /** This text, which stands there once, … */
  text: string;
  /** … is replaced by this one. */
  by: string;
  /** The invariants one of which it breaks. */
  breaks: RegExp;
}

export const VARIANTS: Variant[] = [
  {
    name: "a failed exchange is tried again at once",
    file: "main.ts",
    text: "retryAt: now + drawDelay(range, failures),",
    by: "retryAt: now,",
    breaks: /^\(b\)/,
  },
  {
    name: "the back-off of lists and watches is left out",
    file: "main.ts",
    text: "const delay = Math.max(drawDelay(WATCH, failures), retryAfter(error));",
    by: "const delay = 1;",
    breaks: /^\(b\)/,
  },
  {
    name: "a back-off grows without end",
    file: "main.ts",
    text: "Math.min(capMs, baseMs * 2 ** (failures - 1))",
    by: "baseMs * 2 ** (failures - 1)",
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
    name: "writes have no spacing",
    file: "main.ts",
    text:
      "const writableAt = entry.wroteAt + Math.min(spacing, isHurried ? SHORT_SPACING_MS : Infinity);",
    by: "const writableAt = Math.min(spacing, 0);",
    breaks: /^\(b\)/,
  },
  {
    name: "each Secret has an exchange of its own",
    file: "main.ts",
    text: "const key = account === undefined ? identity : `${identity} ${namespace}/${account}`;",
    by: "const key = `${random()}`;",
    breaks: /^\(b\)/,
  },
  {
    name: "a deleted Secret is kept",
    file: "main.ts",
    text:
      "if (known && !isOlder(event.resourceVersion, known.facts.resourceVersion)) forget(known);",
    by: "if (known) known.isSettled = false;",
    breaks: /^\(d\)/,
  },
  {
    name: "a Secret whose DELETED was missed is kept",
    file: "main.ts",
    text: "if (isInScope && !listed.has(key)) forget(entry);",
    by: "if (isInScope && !listed.has(key)) entry.isSettled = false;",
    breaks: /^\(d\)/,
  },
  {
    name: "a 410 does not lead to a new list",
    file: "main.ts",
    text: "[undefined, 401, 403, 429].includes(status)",
    by: "[undefined, 401, 403, 429, 410].includes(status)",
    breaks: /^\((a|d)\)/,
  },
  {
    name: "a restored etcd goes unnoticed",
    file: "main.ts",
    text: 'isUnsure = hasFailed && scope.version !== "";',
    by: "isUnsure = false;",
    breaks: /^\((a|d)\)/,
  },
  {
    name: "a deaf watch is believed for ever",
    file: "main.ts",
    text: "api.watch(scope.namespace, scope.version, seconds, signal)",
    by: "api.watch(scope.namespace, scope.version, seconds * 1e6, new AbortController().signal)",
    breaks: /^\((a|d|g)\)/,
  },
  {
    name: "the delay of a timer overflows at 2^31 ms",
    file: "main.ts",
    text: "Math.max(at - monotonic(), ALARM_SPACING_MS))",
    by: "Math.max(at - monotonic(), ALARM_SPACING_MS) + 2 ** 31)",
    breaks: /^\(b\)/,
  },
  {
    name: "a conflict drops the Secret",
    file: "main.ts",
    text:
      "const secret = await read.catch(({ status }) => status === 404 ? vanish(entry) : undefined);",
    by: "return void forget(entry);",
    breaks: /^\((a|d)\)/,
  },
  {
    name: "conflicts have no back-off",
    file: "main.ts",
    text:
      "entry.backoff = isFirst ? { ...NO_BACKOFF, range: CONFLICT, failures: 1 } : nextBackoff(entry.backoff, error);",
    by: "",
    breaks: /^\(b\)/,
  },
  {
    name: "tokens are shared whoever asks",
    file: "main.ts",
    text: "const key = account === undefined ? identity : `${identity} ${namespace}/${account}`;",
    by: "const key = identity;",
    breaks: /^\((a|b|c)\)/,
  },
  {
    name: "tokens are shared whatever the identity",
    file: "main.ts",
    text: "const key = account === undefined ? identity : `${identity} ${namespace}/${account}`;",
    by: "const key = `${account && namespace}/${account}`;",
    breaks: /^\(c\)/,
  },
  {
    name: "an identity that is changed is not noticed",
    file: "main.ts",
    text: 'if (tokens.some((token) => token!.isForAnother)) return "identity-changed";',
    by: "",
    breaks: /^\(a\)/,
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
    text: "const current = isPlain ?",
    by: "const current = true ?",
    breaks: /^\(c\)/,
  },
  {
    name: "the preconditions are left out",
    file: "main.ts",
    text: "metadata: { uid, resourceVersion, annotations },",
    by: "metadata: { annotations },",
    breaks: /^\((a|b|c)\)/,
  },
  {
    name: "a refresh stays asked for",
    file: "main.ts",
    text: ", [REFRESH_KEY]: null }",
    by: " }",
    breaks: /^\(a\)/,
  },
  {
    name: "the token is logged",
    file: "main.ts",
    text: '"token written", { namespace, name, identity, reason, expires }',
    by: '"token written", { namespace, name, identity, reason, expires, end: jwt.slice(-20) }',
    breaks: /^\(f\)/,
  },
  {
    name: "an expired token in hand is written",
    file: "main.ts",
    text: "if (token && token.claims.expiresAt > now &&",
    by: "if (token &&",
    breaks: /^\((a|b|c)\)/,
  },
  {
    name: "a token is replaced when it has expired",
    file: "main.ts",
    text: 'return dueAt <= now ? "due" : "wait";',
    by: 'return dueAt < 0 ? "due" : "wait";',
    breaks: /^\((a|b|g)\)/,
  },
  {
    name: "what the issuer gives is not judged",
    file: "sts.ts",
    text: "if (claims && flaw === undefined) return claims;",
    by: "if (claims) return claims;",
    breaks: /^\((a|b|c)\)/,
  },
  {
    name: "an immutable Secret is written to",
    file: "main.ts",
    text: "if (type === SECRET_TYPE && !immutable) return undefined;",
    by: "if (type || immutable) return undefined;",
    breaks: /^\(c\)/,
  },
  {
    name: "/healthz never fails",
    file: "main.ts",
    text: 'return "a watch has neither tried nor received anything for 5 minutes";',
    by: "return undefined;",
    breaks: /^\(g\)/,
  },
  {
    name: "/healthz fails when the API server is down",
    file: "main.ts",
    text: "scope.aliveAt = monotonic() + delay;",
    by: "scope.aliveAt = -Infinity;",
    breaks: /^\(g\)/,
  },
];
