/** The story of the README: a labelled Secret, and Pods that pull private images with it. */
import * as fs from "node:fs";
import { join } from "node:path";
import { type Context, expect, getJson } from "./context.ts";
import { buildApp } from "./images.ts";
import { needBlock } from "./blocks.ts";
import { ACCOUNT, NAMESPACE } from "../../support/names.ts";
import type { Json } from "../../support/json.ts";
import { dockerConfig, tokenIn } from "../../support/secrets.ts";
import { until } from "../../support/until.ts";

const NS = "story";
/** As the README has them. */
const SECRET = "pull-secret";
const IDENTITY_UID = "1234567890abcdef1234567890abcdef12345678/0123456789abcdef";
const POD = "example";
const README_IMAGE = "cgr.dev/ORGANIZATION/IMAGE:TAG";

const REPOSITORY = "acme/app";
const LIFE_S = 18;
const REFRESHES = 2;

export async function story(context: Context, watched: Set<string>): Promise<void> {
  const { cluster, clusterIssuer, issuer, kubectl, need, registry, setLife, step, work } = context;

  await need("private images are pushed to cgr.dev", async () => {
    for (const version of ["1", "2"]) {
      const archive = join(work, `app-${version}.tar`);
      await buildApp(work, cluster.bin, version, archive);
      await registry.push(archive, `${REPOSITORY}:${version}`);
    }
    issuer.bind(IDENTITY_UID, clusterIssuer, NAMESPACE, ACCOUNT);
    setLife(IDENTITY_UID, LIFE_S);
    registry.grants.set(IDENTITY_UID, [REPOSITORY]);
    await kubectl(["create", "namespace", NS]);
    watched.add(NS);
  });

  const secret = () => getJson(context, "secret", "-n", NS, SECRET);
  const isRunning = async (name: string) =>
    (await getJson(context, "pod", "-n", NS, name)).status.phase === "Running";
  await need("the README's Secret is filled", async () => {
    await kubectl(["create", "-n", NS, "-f", "-"], needBlock("# pull-secret.yaml"));
    const created = Date.now();
    await until(async () => tokenIn(await secret()) !== undefined, "it holds a token");
    return `${Date.now() - created} ms after it was created`;
  });
  const filled = Date.now();

  await need("the README's Pod, which names it, runs a private image", async () => {
    const manifest = needBlock("# pod.yaml");
    expect(manifest.includes(README_IMAGE), `its image is not ${README_IMAGE}`);
    await kubectl(
      ["apply", "-n", NS, "-f", "-"],
      manifest.replace(README_IMAGE, `cgr.dev/${REPOSITORY}:1`),
    );
    await until(() => isRunning(POD), "it runs");
  });

  await step("a Pod that does not name it gets no image", async () => {
    await kubectl(["create", "-f", "-"], JSON.stringify(pod("without", "1")));
    return await until(async () => {
      const { status } = await getJson(context, "pod", "-n", NS, "without");
      const waiting = status.containerStatuses?.[0]?.state?.waiting;
      return /^(ErrImagePull|ImagePullBackOff)$/.test(waiting?.reason) && `${waiting.reason}`;
    }, "it is refused");
  });

  await step(
    `after ${REFRESHES} refreshes another image is pulled with the same Secret`,
    async () => {
      const tokens = new Set([tokenIn(await secret())?.token]);
      await until(
        async () => tokens.add(tokenIn(await secret())?.token).size > REFRESHES,
        "it is refreshed",
      );
      await kubectl(["create", "-f", "-"], JSON.stringify(pod("later", "2", SECRET)));
      await until(() => isRunning("later"), "it runs");
      return `${
        Math.round((Date.now() - filled) / 1000)
      } s after the first token, which lived ${LIFE_S} s`;
    },
  );

  await step("skopeo pulls with the Secret's content as its auth file", async () => {
    const auth = join(work, "auth.json");
    fs.writeFileSync(auth, dockerConfig(await secret()), { mode: 0o600 });
    const inspect = ["inspect", "--format", "{{.Digest}}", `docker://cgr.dev/${REPOSITORY}:2`];
    const digest = await registry.runWithName("skopeo", [...inspect, "--authfile", auth]);
    const without = await registry.runWithName("skopeo", [...inspect, "--no-creds"]).catch((
      error,
    ) => error.message);
    expect(/unauthorized|authentication required|401/i.test(without), `without it: ${without}`);
    return digest.trim().slice(0, 19);
  });

  // Tokens that live so short cannot outlive what is done to the cluster later.
  await kubectl(["delete", "secret", "-n", NS, SECRET]);
  await kubectl(["delete", "namespace", NS, "--wait=false"]);
}

function pod(name: string, version: string, secret?: string): Json {
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { namespace: NS, name },
    spec: {
      automountServiceAccountToken: false,
      terminationGracePeriodSeconds: 1,
      containers: [{
        name: "app",
        image: `cgr.dev/${REPOSITORY}:${version}`,
        imagePullPolicy: "Always",
      }],
      imagePullSecrets: secret ? [{ name: secret }] : [],
    },
  };
}
