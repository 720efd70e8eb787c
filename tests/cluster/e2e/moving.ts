/** Moving in from the Go controller of the same name and from a long-lived pull token, and out again. */
import { spawn } from "node:child_process";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type Context, expect, README_IDENTITY } from "./context.ts";
import { runCommands } from "./blocks.ts";
import { IDENTITY, SECRET_TYPE } from "../../support/names.ts";
import type { Json } from "../../support/json.ts";
import { dockerConfig } from "../../support/secrets.ts";
import { until } from "../../support/until.ts";

/** One with a token of the Go controller's, one that it has not filled yet, one with a long-lived pull token. */
const [LIVE, EMPTY, LONG_LIVED] = ["moving-live", "moving-empty", "moving-long-lived"];
/** As the README has it. */
const SECRET = "pull-secret";
/** Of the Secrets of the Go controller. */
const GO_IDENTITY = `${"5".repeat(40)}/${"a".repeat(16)}`;
const REPOSITORY = "acme/app";

export async function moving(context: Context): Promise<void> {
  const { kubectl, need, registry, step } = context;
  context.bind(GO_IDENTITY);
  for (const identity of [GO_IDENTITY, README_IDENTITY]) {
    registry.grants.set(identity, [REPOSITORY]);
  }
  const secret = (namespace: string) => context.get("secret", "-n", namespace, SECRET);
  const canPull = (secret: Json) => registry.digestOf(`${REPOSITORY}:1`, dockerConfig(secret));
  /** Does something, with a look at each state that the Secret has meanwhile. */
  const withoutGap = async (act: () => Promise<unknown>): Promise<string> => {
    const end = await watchStates(context, LONG_LIVED);
    await act();
    const { gaps, states } = end();
    expect(gaps === 0 && states > 1, `${gaps} of ${states} states had no credential`);
    return `${states} states of the Secret`;
  };

  await need(
    "Secrets as the Go controller has them: the identity in the annotation, and no label",
    async () => {
      for (const namespace of [LIVE, EMPTY]) {
        await context.createNamespace(namespace);
        await context.create(goSecret(namespace));
      }
      // It writes the token in the same form.
      await kubectl(["label", "secret", "-n", LIVE, SECRET, `${IDENTITY}=`]);
      await until(() => context.tokenIn(LIVE, SECRET), "it holds a token");
      await kubectl(["label", "secret", "-n", LIVE, SECRET, `${IDENTITY}-`]);
    },
  );

  await step(
    "one kubectl label adopts them all; who holds a token keeps it until it is due",
    async () => {
      const before = await context.tokenIn(LIVE, SECRET);
      await runCommands(context, "--field-selector metadata.name=pull-secret");
      await until(() => context.tokenIn(EMPTY, SECRET), "the empty one is filled");
      const after = await context.tokenIn(LIVE, SECRET);
      expect(after?.token === before?.token, "the token was replaced");
      await canPull(await secret(EMPTY));
    },
  );

  await step(
    "a long-lived pull token gives way to short-lived ones by kubectl label, without a moment between",
    async () => {
      await context.createNamespace(LONG_LIVED);
      await kubectl(
        ["create", "-n", LONG_LIVED, "-f", "-"],
        JSON.stringify(longLived(registry.publisher)),
      );
      await canPull(await secret(LONG_LIVED));
      const states = await withoutGap(async () => {
        await runCommands(context, "kubectl label secret pull-secret", inNamespace);
        await until(() => context.tokenIn(LONG_LIVED, SECRET), "it holds a token");
      });
      const config = dockerConfig(await secret(LONG_LIVED));
      expect(!config.includes(registry.publisher.password), "the long-lived token is still there");
      await canPull(await secret(LONG_LIVED));
      return states;
    },
  );

  await step(
    "and out again: one kubectl replace brings the long-lived one back, and the controller lets go",
    async () => {
      const { user, password } = registry.publisher;
      const fill = (block: string) =>
        inNamespace(block).replace("USER", user).replace("PASSWORD", password);
      await withoutGap(async () => {
        await runCommands(context, "kubectl replace", fill);
        const replaced = await secret(LONG_LIVED);
        expect(replaced.metadata.labels?.[IDENTITY] === undefined, "it still has the label");
        expect(dockerConfig(replaced).includes(password), "it does not have the pull token");
        await canPull(replaced);
        await sleep(1_000); // long enough for a write: a Secret is filled within a fraction of it
        const { resourceVersion } = (await secret(LONG_LIVED)).metadata;
        expect(resourceVersion === replaced.metadata.resourceVersion, "it was written once more");
      });
    },
  );

  await context.remove(LIVE, EMPTY, LONG_LIVED);
}

const inNamespace = (block: string) => block.replaceAll("kubectl ", `kubectl -n ${LONG_LIVED} `);

/** What the README of the Go controller has people create. */
function goSecret(namespace: string): Json {
  return {
    apiVersion: "v1",
    kind: "Secret",
    metadata: { namespace, name: SECRET, annotations: { [IDENTITY]: GO_IDENTITY } },
    type: SECRET_TYPE,
    stringData: { ".dockerconfigjson": "{}" },
  };
}

/** What `kubectl create secret docker-registry` makes. */
function longLived({ user, password }: { user: string; password: string }): Json {
  const auth = Buffer.from(`${user}:${password}`).toString("base64");
  const config = { auths: { "cgr.dev": { username: user, password, auth } } };
  return {
    apiVersion: "v1",
    kind: "Secret",
    metadata: { name: SECRET },
    type: SECRET_TYPE,
    stringData: { ".dockerconfigjson": JSON.stringify(config) },
  };
}

/** Sees to each state that a Secret has, one after the other, until what it returns is called: how many, and how many without a credential. */
async function watchStates(
  { cluster }: Context,
  namespace: string,
): Promise<() => { states: number; gaps: number }> {
  const path = 'jsonpath={.data.\\.dockerconfigjson}{"\\n"}';
  const args = ["get", "secret", SECRET, "-n", namespace, "--watch", "-o", path];
  const env = { ...process.env, ...cluster.environment, NO_PROXY: "*" };
  const child = spawn(join(cluster.bin, "kubectl"), args, {
    env,
    stdio: ["ignore", "pipe", "inherit"],
  });
  let said = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => said += text);
  await until(() => Promise.resolve(said.includes("\n")), "the watch has begun");
  return () => {
    child.kill();
    const configs = said.trimEnd().split("\n").map((line) =>
      JSON.parse(Buffer.from(line, "base64").toString())
    );
    return {
      states: configs.length,
      gaps: configs.filter(({ auths }) => !auths?.["cgr.dev"]?.auth).length,
    };
  };
}
