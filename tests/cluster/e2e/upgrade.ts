/** From 0.1.0 to this version and back, by kubectl and by GitOps, and away: no Secret is ever without a valid token. */
import * as fs from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { run } from "../../support/processes.ts";
import { defaultImage } from "../../../scripts/manifest.ts";
import { objectsOf } from "../../support/yaml.ts";
import { type Context, expect, type Kubectl, refused } from "./context.ts";
import { rolledOut } from "./deploy.ts";
import type { Bases } from "./images.ts";
import { provide } from "./manifest.ts";
import { patchedManifest } from "./patch.ts";
import { runCommands } from "./blocks.ts";
import { lookAtSecrets } from "./resilience.ts";
import { ROOT } from "../../support/paths.ts";
import { NAMESPACE, REFRESH, REFRESHED } from "../../support/names.ts";
import type { Json } from "../../support/json.ts";
import { pullSecret, tokenIn } from "../../support/secrets.ts";
import { until } from "../../support/until.ts";

/** 0.1.0. */
const OLD_COMMIT = "938be1f61873abc639b91e6d7c35436a7fd1a104";
const NS = "upgrade";
/** Secrets, and how many seconds their tokens live: some are to be renewed in the midst of everything. */
const RENEWED = { first: 30, second: 35, third: 40, fourth: 45 };
/** Whose refresh is asked for where the other version's policies are there already: what is written of it they refuse. */
const ASKED = "asked";
const LIVES: Record<string, number> = { ...RENEWED, [ASKED]: 180 };
const LOOK_MS = 200;
/** The API server looks once a second whether policies have changed. */
const POLICY_MS = 3_000;
const DENIED = /pull-secret-updater-controller.* denied request/s;
/** Whoever has one of these is left where the manifest has it no more. */
const KEPT = [
  ["argocd.argoproj.io/sync-options", "Prune=false"],
  ["kustomize.toolkit.fluxcd.io/prune", "disabled"],
] as const;

interface Version {
  name: string;
  objects: Json[];
}

interface Way {
  name: string;
  args: string[];
  isPruned: boolean;
}

const KUBECTL: Way = { name: "kubectl apply", args: [], isPruned: false };
const GITOPS: Way = {
  name: "GitOps, with pruning",
  args: ["--force-conflicts", "--field-manager=argocd-controller"],
  isPruned: true,
};

export async function upgrade(context: Context, { BASE }: Bases): Promise<void> {
  const { kubectl, need, setLife, step } = context;
  const [before, now] = await need("0.1.0's manifest is made of its commit", async () => {
    await provide(context, "deno", BASE);
    const install = fs.readFileSync(join(ROOT, "install.yaml"), "utf8");
    return [
      { name: "0.1.0", objects: await forThisCluster(context, await oldManifest(context)) },
      { name: "this version", objects: await forThisCluster(context, install) },
    ];
  }) as [Version, Version];
  await context.createNamespace(NS);
  const secrets = Object.entries(LIVES).map(([name, life], i) => {
    const identity = `${"3".repeat(40)}/${`${i}`.repeat(16)}`;
    context.bind(identity);
    setLife(identity, life);
    return pullSecret(NS, name, identity);
  });

  const watch = watchTokens(context);
  for (const way of [KUBECTL, GITOPS]) {
    await need(`0.1.0 fills Secrets, installed by ${way.name}`, async () => {
      await takeAway(context);
      await apply(kubectl, way, before.objects);
      await rolledOut(context);
      await context.create(...secrets);
      await until(async () => (await held(context)).every((token) => token), "all are filled");
      watch.begin();
    });
    // Back again last, as it is this version that is taken away.
    const moves = way === KUBECTL ? [before, now, before] : [before, now, before, now];
    for (const [i, to] of moves.entries()) {
      const from = moves[i - 1];
      if (!from) continue;
      await step(
        `${from.name} → ${to.name} by ${way.name}: every token is renewed in time`,
        async () => `${await move(context, from, to, way, i)}; ${watch.check()}`,
      );
    }
    if (way === KUBECTL) {
      watch.end();
      await kubectl(["delete", "secret", "--all", "-n", NS]);
    }
  }

  await step("taken away, the Deployment first: each Secret keeps its last token", async () => {
    await takeAway(context);
    const left = (await held(context)).map((token) => token ? Math.round(secondsLeft(token)) : 0);
    expect(left.every((seconds) => seconds > 0), `${left}`);
    return watch.check();
  });
  watch.end();
  await step("then one command empties them all", async () => {
    await runCommands(context, "while read -r namespace name");
    expect((await held(context)).every((token) => !token), "there is a token left");
  });
  await context.remove(NS);
}

/** As its own README had it: from a clone of that commit. */
async function oldManifest({ work }: Context): Promise<string> {
  const folder = join(work, "0.1.0");
  const git = (...args: string[]) => run("git", args, { cwd: ROOT });
  await git("cat-file", "-e", `${OLD_COMMIT}^{commit}`).catch(() => {
    throw new Error(`0.1.0 is commit ${OLD_COMMIT}, which is not here: git fetch --unshallow`);
  });
  fs.mkdirSync(folder);
  await git("archive", "--output", join(folder, "sources.tar"), OLD_COMMIT);
  await run("tar", ["-xf", "sources.tar"], { cwd: folder });
  fs.symlinkSync(join(ROOT, "node_modules"), join(folder, "node_modules"));
  const image = defaultImage(fs.readFileSync(join(ROOT, "Containerfile"), "utf8"), "deno");
  return await run("node", ["dev/manifest.ts", "--image", image], { cwd: folder });
}

/** The objects of a manifest, with what the issuer of this cluster takes. */
const forThisCluster = async (context: Context, manifest: string): Promise<Json[]> =>
  objectsOf(await patchedManifest(context, manifest));

async function apply(kubectl: Kubectl, { args }: Way, items: Json[]): Promise<void> {
  const list = { apiVersion: "v1", kind: "List", items };
  await kubectl(["apply", "--server-side", ...args, "-f", "-"], JSON.stringify(list));
}

/**
 * First all but the Deployment, and time for the old program to renew tokens under the other's policies; then the rest.
 * Gives what was seen.
 */
async function move(
  context: Context,
  from: Version,
  to: Version,
  way: Way,
  count: number,
): Promise<string> {
  const { kubectl } = context;
  await apply(kubectl, way, to.objects.filter(({ kind }) => kind !== "Deployment"));
  await sleep(POLICY_MS);
  const began = Date.now();
  const asked = `${way.isPruned}-${count}`;
  await kubectl(["annotate", "secret", ASKED, "-n", NS, "--overwrite", `${REFRESH}=${asked}`]);
  await until(async () => {
    const { items } = await context.get("events.events.k8s.io", "-n", NS);
    return items.some(({ regarding, note, eventTime }: Json) =>
      regarding.name === ASKED && DENIED.test(note) && Date.parse(eventTime) > began
    );
  }, "the old program is refused");
  const [first = ""] = Object.keys(RENEWED);
  await context.issuedSince(began, NS, [first]);

  const rolling = Date.now();
  await apply(kubectl, way, to.objects);
  const pruned = way.isPruned ? await prune(kubectl, from, to) : [];
  await rolledOut(context);
  await until(async () => {
    const { annotations } = (await context.get("secret", "-n", NS, ASKED)).metadata;
    return annotations[REFRESH] === undefined || annotations[REFRESHED] === asked;
  }, "the refresh is served");
  const served = Date.now();
  await context.issuedSince(rolling, NS, Object.keys(RENEWED));
  const refusedFor = Math.round((served - began) / 1000);
  return `the refresh waited ${refusedFor} s, ${Math.round((served - rolling) / 1000)} s of them ` +
    `for the Pods${pruned.length > 0 ? `; deleted: ${pruned.join(", ")}` : ""}`;
}

/** Deletes what the manifest has no more, at once, but for what says that it stays; gives the names. */
async function prune(kubectl: Kubectl, from: Version, to: Version): Promise<string[]> {
  const idOf = ({ kind, metadata }: Json) => `${kind}/${metadata.name}`;
  const wanted = new Set(to.objects.map(idOf));
  const gone = from.objects.filter((object) =>
    !wanted.has(idOf(object)) &&
    !KEPT.some(([key, value]) => object.metadata.annotations?.[key] === value)
  );
  for (const object of gone) {
    await kubectl(["delete", idOf(object), "-n", object.metadata.namespace ?? "default"]);
  }
  return gone.map(idOf);
}

/** By the README's commands, whether or not there is anything. */
async function takeAway(context: Context): Promise<void> {
  await runCommands(
    context,
    "kubectl delete -f deploy.yaml",
    (block) => block.replace("deployment/controller", "deployment/controller --ignore-not-found"),
  );
  await refused(context.kubectl(["get", "namespace", NAMESPACE]), /not found/);
}

const held = (context: Context) => context.tokens(NS, Object.keys(LIVES));

const secondsLeft = ({ exp }: { exp: number }, at = Date.now()) => exp - at / 1000;

/** Looks five times a second whether each Secret has a token that is valid. */
function watchTokens({ cluster }: Context) {
  let stop = () => {};
  let looks = 0;
  let least = Infinity;
  const without: string[] = [];
  const see = (secrets: Json[], at: number) => {
    looks++;
    for (const name of Object.keys(LIVES)) {
      const secret = secrets.find(({ metadata }) =>
        metadata.namespace === NS && metadata.name === name
      );
      const token = secret && tokenIn(secret);
      const left = token ? secondsLeft(token, at) : 0;
      least = Math.min(least, left);
      if (left <= 0) without.push(name);
    }
  };
  return {
    begin: () => stop = lookAtSecrets(cluster, LOOK_MS, see),
    end: () => stop(),
    /** What was seen since the last call. */
    check(): string {
      expect(without.length === 0, `${without.length} times without: ${[...new Set(without)]}`);
      const said = `${looks} looks, ${least.toFixed(1)} s were left at the least`;
      expect(looks > 0, said);
      [looks, least] = [0, Infinity];
      return said;
    },
  };
}
