/** What the demo plays, act by act. It tells the program nothing: it writes Secrets, as people do, and looks. */
import { setTimeout as sleep } from "node:timers/promises";
import type { ApiServer } from "../../tests/fake/apiserver.ts";
import type { Issuer } from "../../tests/fake/issuer.ts";
import { Broken, type Ledger, type Watched } from "./ledger.ts";
import {
  ACCOUNT,
  DATA_KEY,
  NAMESPACE,
  REFRESH,
  REFRESHED,
  SECRET_TYPE,
} from "../../tests/support/names.ts";
import { pullSecret } from "../../tests/support/secrets.ts";
import { until } from "../../tests/support/until.ts";

const OTHER_ENTRY = '"registry.example.com":{"auth":"dXNlcjpwYXNzd29yZA=="}';
/** For what part of a token's life a Secret must have held it to be filled again at once, and not be renewed just then. */
const [FILLED_FROM, FILLED_TO] = [0.53, 0.6];
const START_MS = 20_000;
const PATIENCE_MS = 5_000;
/** Longer than the pause that a few failed exchanges lead to. */
const RETRY_MS = 12_000;

export interface Stage {
  api: ApiServer;
  issuer: Issuer;
  ledger: Ledger;
  /** Says what is going on from now on. */
  announce: (act: string, number: string) => void;
}

/** Plays all acts; throws {@linkcode Broken} if something does not come as it should. */
export async function play({ api, issuer, ledger, announce }: Stage): Promise<void> {
  const lifeMs = issuer.life * 1000;
  let acts = 0;
  const act = (sentence: string) => announce(sentence, `${++acts}/8`);

  act("The controller starts: it lists and watches the Secrets with its label.");
  await soon(() => api.openWatches > 0, "the controller did not begin to watch", START_MS);
  await sleep(2500);

  act("A team creates a Secret with the label: it is filled within a moment.");
  bind("a");
  const plain = create("shop/plain", "a");
  await filled(plain);
  await sleep(3000);

  act("Two Secrets name the same identity: one exchange serves both.");
  bind("b");
  const shared = [create("web/shared", "b"), create("jobs/shared", "b")];
  await Promise.all(shared.map((secret) => filled(secret)));
  check(ledger.exchangesOf.B === 1, "two Secrets of one identity took more than one exchange");
  await sleep(3500);

  act("This one has another registry's entry, too, which stays as it is.");
  bind("c");
  const mixed = create("billing/mixed", "c", `{"auths":{${OTHER_ENTRY}}}`);
  await filled(mixed);
  await sleep(3000);

  act("Two that cannot work: an Opaque one, and one whose identity is not bound.");
  issuer.bind(uid("d"), api.issuer, "somewhere", "else");
  const unbound = create("beta/unbound", "d");
  const opaque = create("legacy/opaque", "e", "unchanged", "Opaque");
  await soon(
    () => opaque.warning === "UnsupportedSecret",
    "no Warning told that a Secret is Opaque",
  );
  await soon(
    () => unbound.warning === "ExchangeFailed",
    "no Warning told of the refused exchange",
  );
  await sleep(3500);

  act("The identity is bound: the next try fills it. A new token is asked for, too.");
  bind("d");
  ledger.tell("someone", "binds identity D, and annotates billing/mixed: refresh=1");
  const held = mixed.tokens;
  api.patchSecret("billing", "mixed", { metadata: { annotations: { [REFRESH]: "1" } } });
  await filled(unbound, RETRY_MS);
  await soon(() => mixed.tokens > held, "billing/mixed got no new token", RETRY_MS);
  await sleep(2500);

  act("Somebody empties shop/plain: it is filled again at once, without an exchange.");
  const lived = () => (Date.now() - (plain.token?.seenAt ?? 0)) / lifeMs;
  await soon(
    () => lived() > FILLED_FROM && lived() < FILLED_TO,
    "shop/plain was not renewed",
    2 * lifeMs,
  );
  const exchanges = ledger.exchangesOf.A;
  ledger.tell("someone", "empties shop/plain");
  api.patchSecret("shop", "plain", { data: { [DATA_KEY]: btoa("{}") } });
  Object.assign(plain, { token: undefined, emptySince: Date.now() });
  await filled(plain);
  check(ledger.exchangesOf.A === exchanges, "to fill a Secret again took another exchange");
  await sleep(3500);

  act("Nobody does anything now: each token is replaced well before it ends.");
  const before = ledger.secrets.map(({ tokens }) => tokens);
  const areRenewed = () =>
    ledger.secrets.every((secret, i) => secret === opaque || secret.tokens > before[i]!);
  await soon(areRenewed, "not every token was renewed", lifeMs);
  await sleep(1000);

  const { annotations = {} } = api.secret("billing", "mixed")?.metadata ?? {};
  check(
    annotations[REFRESH] === "1" && annotations[REFRESHED] === "1",
    "the requested refresh is not recorded beside its request",
  );
  check(
    atob(dataOf(mixed)[DATA_KEY]!).includes(OTHER_ENTRY),
    "another registry's entry did not survive",
  );
  check(dataOf(opaque)[DATA_KEY] === btoa("unchanged"), "a Secret of type Opaque was written");

  function bind(letter: string): void {
    issuer.bind(uid(letter), api.issuer, NAMESPACE, ACCOUNT);
  }

  function create(
    path: string,
    letter: string,
    config = '{"auths":{}}',
    type = SECRET_TYPE,
  ): Watched {
    const [namespace, name] = path.split("/") as [string, string];
    const identity = letter.toUpperCase();
    const watched: Watched = { namespace, name, identity, tokens: 0, emptySince: Date.now() };
    ledger.tell(
      "someone",
      `creates ${path}${type === SECRET_TYPE ? "" : `, of type ${type}`}, for identity ${identity}`,
    );
    ledger.secrets.push(watched);
    const secret = pullSecret(namespace, name, uid(letter));
    api.createSecret({ ...secret, type, stringData: { [DATA_KEY]: config } });
    return watched;
  }

  function filled(secret: Watched, patience = PATIENCE_MS): Promise<void> {
    return soon(
      () => secret.token !== undefined,
      `${secret.namespace}/${secret.name} was not filled`,
      patience,
    );
  }

  function dataOf({ namespace, name }: Watched): Record<string, string> {
    return api.secret(namespace, name)?.data ?? {};
  }
}

/** Says what was seen, from what was counted. */
export function summarize(ledger: Ledger, startedAt: number): string {
  const { secrets, counts, exchangesOf, slowestFillMs, leastSpareMs, wasStopped } = ledger;
  const filled = secrets.filter(({ tokens }) => tokens > 0).length;
  const written = secrets.reduce(
    (sum, { identity, tokens }) => identity === "B" ? sum + tokens : sum,
    0,
  );
  return `What you saw in ${Math.round((Date.now() - startedAt) / 1000)} s:
  ${secrets.length} Secrets, ${counts.exchanges} exchanges (and ${counts.refusals} refused), ${counts.patches} patches.
  ${filled} were filled, within ${slowestFillMs} ms of being made or emptied; ${
    secrets.length - filled
  } was left alone.
  web/shared and jobs/shared share an identity: ${exchangesOf.B} exchanges, ${written} tokens written.
  At no moment${wasStopped ? " (while it ran)" : ""} was there an expired token in a Secret:
  each was replaced with at least ${(leastSpareMs / 1000).toFixed(1)} s left.`;
}

function uid(letter: string): string {
  return `${letter.repeat(40)}/${letter.repeat(16)}`;
}

async function soon(
  isSo: () => boolean,
  otherwise: string,
  patience = PATIENCE_MS,
): Promise<void> {
  await until(isSo, otherwise, patience).catch(() => {
    throw new Broken(`${otherwise} within ${patience / 1000} s`);
  });
}

function check(isSo: boolean, otherwise: string): void {
  if (!isSo) throw new Broken(otherwise);
}
