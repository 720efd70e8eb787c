/** What the steps of the end-to-end run share: the cluster and all around it, and how a step is run and told. */
import { seconds } from "../binaries.ts";
import type { Cluster } from "../cluster.ts";
import type { Issuer } from "../../fake/issuer.ts";
import type { Registry } from "./registry.ts";
import type { Json } from "../../support/json.ts";
import { type Token, tokenIn } from "../../support/secrets.ts";
import { until } from "../../support/until.ts";

export type Kubectl = (args: string[], input?: string) => Promise<string>;

/** The one that the README has. */
export const README_IDENTITY = "1234567890abcdef1234567890abcdef12345678/0123456789abcdef";

/** For what has failed: it is tried again after a minute at the latest; some more for the work itself. */
export const RETRIED_MS = 75_000;

export interface Context extends ReturnType<typeof createHands> {
  cluster: Cluster;
  issuer: Issuer;
  registry: Registry;
  /** How Pods reach this machine: the bridge's address. */
  address: string;
  /** A folder for files; it ends with the cluster. */
  work: string;
  /** PEM of the CA that signed the issuer's and the registry's certificates. */
  ca: string;
  /** The file of it. */
  caFile: string;
  /** The issuer of the cluster's service-account tokens. */
  clusterIssuer: string;
  /** Lets a service account, or the controller's, take an identity. */
  bind(identity: string, namespace?: string, account?: string): void;
  /** Lets the tokens of an identity live so many seconds; the others' live 150. */
  setLife(identity: string, seconds: number): void;
  /** As whoever has this bearer token. For a user that needs none: `kubectl(["--as", "alice", …])`. */
  as(token: string): Kubectl;
  /** Runs a step and tells how it went, with the text that it returns; a failure is counted, and the run goes on. */
  step(title: string, run: () => Promise<unknown>): Promise<void>;
  /** A step without which there is no going on. */
  need<T>(title: string, run: () => Promise<T>): Promise<T>;
}

/** Ends a run; the step that failed has been told. */
class Abort extends Error {}

/** Runs steps, tells how each went, and counts; `keep` keeps what is needed to understand a failure, by its number. */
export function createSteps(keep: (failure: number) => Promise<unknown> = () => Promise.resolve()) {
  const count = { passed: 0, failed: 0 };
  async function need<T>(title: string, run: () => Promise<T>): Promise<T> {
    const began = Date.now();
    const took = () => seconds(began).padStart(7);
    try {
      const result = await run();
      count.passed++;
      const said = typeof result === "string" ? `: ${result}` : "";
      console.log(`ok   ${took()}  ${title}${said}`);
      return result;
    } catch (error) {
      count.failed++;
      console.log(`FAIL ${took()}  ${title}\n  ${error.stack?.replaceAll("\n", "\n  ")}`);
      await keep(count.failed).catch(console.error);
      throw new Abort();
    }
  }
  return {
    need,
    step: (title: string, run: () => Promise<unknown>) => need(title, run).then(() => {}, () => {}),
    /** Counts what has ended a run, and tells it unless it was a step that failed. */
    fail(why: unknown): void {
      if (why instanceof Abort) return;
      count.failed++;
      console.log("FAIL", why);
    },
    hasFailed: () => count.failed > 0,
    /** Tells the numbers; returns the exit status. */
    tell(): number {
      console.log(`${count.passed} passed, ${count.failed} failed`);
      return count.failed > 0 ? 1 : 0;
    },
  };
}

/** What is done with kubectl over and over. */
export function createHands(kubectl: Kubectl) {
  /** An object, or all of a kind, as the API server has it. */
  const get = async (...args: string[]): Promise<Json> =>
    JSON.parse(await kubectl(["get", ...args, "-o", "json"]));
  const token = async (namespace: string, name: string): Promise<Token | undefined> =>
    tokenIn(await get("secret", "-n", namespace, name));
  const tokens = (namespace: string, names: string[]) =>
    Promise.all(names.map((name) => token(namespace, name)));
  return {
    kubectl,
    get,
    create: (...items: object[]) =>
      kubectl(["create", "-f", "-"], JSON.stringify({ apiVersion: "v1", kind: "List", items })),
    createNamespace: (name: string) => kubectl(["create", "namespace", name]),
    /** The token that a Secret holds, if it holds one. */
    tokenIn: token,
    tokens,
    /** Waits until Secrets hold tokens that were issued after this instant. */
    async issuedSince(ms: number, namespace: string, names: string[]): Promise<void> {
      const wholeSecond = Math.floor(ms / 1000); // as `iat` is
      await until(
        async () =>
          (await tokens(namespace, names)).every((token) => token && token.iat >= wholeSecond),
        "the Secrets have new tokens",
        RETRIED_MS,
      );
    },
    /** At once, so that its Secrets are gone when others count them. */
    async remove(...namespaces: string[]): Promise<void> {
      for (const name of namespaces) await kubectl(["delete", "secret", "--all", "-n", name]);
      await kubectl(["delete", "namespace", ...namespaces, "--wait=false"]);
    },
  };
}

export function expect(condition: unknown, message: string): asserts condition {
  if (!condition) throw new Error(message);
}

/** Expects a failure with such a message, and returns the message. */
export async function refused(attempt: Promise<unknown>, message: RegExp): Promise<string> {
  const said: string = await attempt.then(() => "", (error: Error) => error.message);
  expect(said !== "", "it was allowed");
  expect(message.test(said), `refused, but otherwise than ${message}: ${said}`);
  return said;
}
