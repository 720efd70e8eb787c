/** What must not let a token expire: restarts of everything, and new keys of everything. */
import { generateKeyPairSync } from "node:crypto";
import * as fs from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { createAdmin } from "../admin.ts";
import type { Cluster } from "../cluster.ts";
import { makeCertificates, paths } from "../components.ts";
import { type Context, expect, refused } from "./context.ts";
import { controllerPods, rolledOut } from "./deploy.ts";
import { controllerProcesses } from "./tools.ts";
import { ACCOUNT, IDENTITY, NAMESPACE, REFRESH } from "../../support/names.ts";
import type { Json } from "../../support/json.ts";
import { pullSecret, type Token, tokenIn } from "../../support/secrets.ts";
import { repeat, until } from "../../support/until.ts";

const NS = "resilience";
const SECRETS = ["first", "second", "third"];
const IDENTITY_UID = `${"7".repeat(40)}/${"c".repeat(16)}`;
/** Of a Secret that comes later, so that its token is not shared with the others. */
const LATE_IDENTITY = `${"8".repeat(40)}/${"c".repeat(16)}`;
const LOOK_MS = 500;
const OUTAGE_MS = 20_000;
/** Of a token's life, where the API server is stopped: just before the first refresh (at 0.67 of it). */
const OUTAGE_AT = 0.65;
/** And where each has been refreshed at the latest, if it can be. */
const REFRESHED_AT = 0.77;

/** When so much of a token's life is over, in ms. */
const atShare = (token: Token | undefined, share: number) =>
  token ? (token.iat + share * (token.exp - token.iat)) * 1000 : NaN;

export interface Watcher {
  /** Namespaces whose Secrets are looked at. */
  namespaces: Set<string>;
  looks: number;
  tokens: Set<string>;
  /** What was found that must not be. */
  expired: string[];
  stop(): void;
}

/** Fills some Secrets, and looks twice a second whether any labelled one holds an expired token. */
export async function watchSecrets(context: Context): Promise<Watcher> {
  const { cluster } = context;
  context.bind(IDENTITY_UID);
  context.bind(LATE_IDENTITY);
  await context.createNamespace(NS);
  await context.create(...SECRETS.map((name) => pullSecret(NS, name, IDENTITY_UID)));

  const watcher: Watcher = {
    namespaces: new Set([NS]),
    looks: 0,
    tokens: new Set(),
    expired: [],
    stop: lookAtSecrets(cluster, LOOK_MS, (secrets, now) => {
      watcher.looks++;
      const watched = secrets.filter(({ metadata }) => watcher.namespaces.has(metadata.namespace));
      for (const secret of watched) {
        const held = tokenIn(secret);
        if (held) watcher.tokens.add(held.token);
        if (held && held.exp * 1000 <= now) {
          const late = Math.round((now - held.exp * 1000) / 1000);
          watcher.expired.push(
            `${secret.metadata.namespace}/${secret.metadata.name}, expired for ${late} s`,
          );
        }
      }
    }),
  };
  return watcher;
}

/**
 * Lists all labelled Secrets again and again, until what it returns is called. What had expired when a list was asked for
 * was still held when it was read.
 */
export function lookAtSecrets(
  cluster: Cluster,
  everyMs: number,
  see: (secrets: Json[], at: number) => void,
): () => void {
  const admin = createAdmin(cluster);
  const path = `/api/v1/secrets?labelSelector=${encodeURIComponent(IDENTITY)}`;
  const stop = repeat(everyMs, async () => {
    const at = Date.now();
    see((await admin.get(path)).items, at);
  });
  return () => void stop().then(admin.close);
}

export async function resilience(context: Context, watcher: Watcher): Promise<void> {
  const { cluster, issuer, kubectl, step } = context;
  const refreshedSince = (ms: number, names = SECRETS) => context.issuedSince(ms, NS, names);
  const askForRefresh = () => {
    const flags = ["-n", NS, "--all", "--overwrite", `${REFRESH}=${Date.now()}`];
    return kubectl(["annotate", "secrets", ...flags]);
  };

  /** How long it is until the first of the tokens is about to be refreshed. */
  const untilOutage = async () => {
    const held = await context.tokens(NS, SECRETS);
    expect(held.every((token) => token !== undefined), "no token");
    return Math.min(...held.map((token) => atShare(token, OUTAGE_AT))) - Date.now();
  };

  await step("one controller is killed and comes again", async () => {
    const [pid] = controllerProcesses(context);
    expect(pid, "none runs");
    process.kill(pid, "SIGKILL");
    await until(async () => {
      const pods = await controllerPods(context);
      return pods.some(({ restarts }) => restarts === 1) && pods.every(({ ready }) => ready);
    }, "it was started again");
  });

  await step("rolling restart", async () => {
    await kubectl(["rollout", "restart", "-n", NAMESPACE, "deployment/controller"]);
    await rolledOut(context);
  });

  await step("etcd is away for 5 s; then a new Secret is filled", async () => {
    await cluster.stop("etcd");
    await sleep(5_000);
    await cluster.start("etcd");
    await cluster.ready();
    const back = Date.now();
    await context.create(pullSecret(NS, "late", LATE_IDENTITY));
    await until(
      () => context.tokenIn(NS, "late"),
      "it is filled",
    );
    return `${Date.now() - back} ms after etcd and the API server were ready`;
  });

  await step(
    `the API server is away for ${OUTAGE_MS / 1000} s, in which the tokens were to be refreshed`,
    async () => {
      if (await untilOutage() < 0) { // the machine was slow
        const asked = Date.now();
        await askForRefresh();
        await refreshedSince(asked);
      }
      await sleep(await untilOutage());
      const held = await context.tokens(NS, SECRETS);
      const stopped = Date.now();
      await cluster.stop("kube-apiserver");
      await sleep(OUTAGE_MS);
      await cluster.start("kube-apiserver");
      await cluster.ready();
      const back = Date.now();
      // Two replicas may have given the Secrets tokens of different times.
      const due = SECRETS.filter((_, i) => atShare(held[i], REFRESHED_AT) < back);
      expect(due.length > 0, "none was to be refreshed");
      await refreshedSince(stopped, due);
      const [away, later] = [back - stopped, Date.now() - back].map((ms) => Math.round(ms / 1000));
      return `${due.length} Secrets, away ${away} s, refreshed ${later} s later`;
    },
  );

  await step(
    "new keys: the cluster's CA, and that of service-account tokens; the old ones are void",
    async () => {
      const at = paths(cluster.options.dir);
      const old = context.as((await kubectl(["create", "token", ACCOUNT, "-n", NAMESPACE])).trim());
      await old(["get", "secrets", "-n", NS]);
      const pods = await controllerPods(context);
      await cluster.stop("kubelet");
      await cluster.stop("kube-scheduler");
      await cluster.stop("kube-controller-manager");
      await cluster.stop("kube-apiserver");
      const { privateKey, publicKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
      fs.writeFileSync(at.serviceAccountKey, privateKey.export({ type: "pkcs1", format: "pem" }));
      fs.writeFileSync(
        at.serviceAccountPublicKey,
        publicKey.export({ type: "spki", format: "pem" }),
      );
      makeCertificates(cluster.options);
      await cluster.start("kube-apiserver");
      await cluster.apiServerReady();
      await refused(old(["get", "secrets", "-n", NS]), /Unauthorized|must be logged in/);
      const changed = Date.now();
      issuer.keys = JSON.parse(await kubectl(["get", "--raw", "/openid/v1/jwks"]));
      await cluster.start("kube-controller-manager");
      const ca = fs.readFileSync(cluster.ca, "utf8");
      await until(async () => {
        const { data } = await context.get("configmap", "-n", NAMESPACE, "kube-root-ca.crt");
        return data["ca.crt"].trim() === ca.trim();
      }, "the new CA is published");
      // Its cache of tokens is in memory: it asks for new ones, the subject token for one.
      await cluster.start("kube-scheduler");
      await cluster.start("kubelet");
      await cluster.ready();
      await askForRefresh();
      await refreshedSince(changed);
      const after = await controllerPods(context);
      const same = pods.every(({ uid, restarts }) =>
        after.some((pod) => pod.uid === uid && pod.restarts === restarts)
      );
      expect(same, "a controller was restarted");
      return `refreshed ${Math.round((Date.now() - changed) / 1000)} s after they changed`;
    },
  );

  await step("no Secret ever held an expired token", async () => {
    const { expired, looks, namespaces, tokens } = watcher;
    expect(expired.length === 0, `${expired.length} times: ${expired.slice(0, 5).join("; ")}`);
    expect(looks > 0 && tokens.size > SECRETS.length, `${looks} looks, ${tokens.size} tokens`);
    return await Promise.resolve(
      `${looks} looks, ${tokens.size} tokens, in ${[...namespaces].join(", ")}`,
    );
  });
}
