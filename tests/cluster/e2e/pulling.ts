/** The story of the README: a labelled Secret, and Pods that pull private images with it. */
import { join } from "node:path";
import { type Context, expect, README_IDENTITY, refused } from "./context.ts";
import { buildApp } from "./images.ts";
import { needBlock } from "./blocks.ts";
import { container, pod, runs } from "./pods.ts";
import { dockerConfig } from "../../support/secrets.ts";
import { until } from "../../support/until.ts";

const NS = "story";
/** As the README has them. */
const SECRET = "pull-secret";
const README_IMAGE = "cgr.dev/ORGANIZATION/IMAGE:TAG";

const REPOSITORY = "acme/app";
const LIFE_S = 18;
const REFRESHES = 2;

export async function story(context: Context, watched: Set<string>): Promise<void> {
  const { cluster, kubectl, need, registry, setLife, step, work } = context;

  await need("private images are pushed to cgr.dev", async () => {
    for (const version of ["1", "2"]) {
      const archive = join(work, `app-${version}.tar`);
      await buildApp(work, cluster.bin, version, archive);
      await registry.push(archive, `${REPOSITORY}:${version}`);
    }
    context.bind(README_IDENTITY);
    setLife(README_IDENTITY, LIFE_S);
    registry.grants.set(README_IDENTITY, [REPOSITORY]);
    await context.createNamespace(NS);
    watched.add(NS);
  });

  const token = () => context.tokenIn(NS, SECRET);
  const image = (version: string) => `cgr.dev/${REPOSITORY}:${version}`;
  await need("the README's Secret is filled", async () => {
    await kubectl(["create", "-n", NS, "-f", "-"], needBlock("# pull-secret.yaml"));
    const created = Date.now();
    await until(token, "it holds a token");
    return `${Date.now() - created} ms after it was created`;
  });
  const filled = Date.now();

  await need("the README's Pod, which names it, runs a private image", async () => {
    const manifest = needBlock("# pod.yaml");
    expect(manifest.includes(README_IMAGE), `its image is not ${README_IMAGE}`);
    await kubectl(["apply", "-n", NS, "-f", "-"], manifest.replace(README_IMAGE, image("1")));
    await runs(context, NS, "example");
  });

  await step("a Pod that does not name it gets no image", async () => {
    await context.create(pod(NS, "without", { containers: [container(image("1"))] }));
    return await until(async () => {
      const { status } = await context.get("pod", "-n", NS, "without");
      const waiting = status.containerStatuses?.[0]?.state?.waiting;
      return /^(ErrImagePull|ImagePullBackOff)$/.test(waiting?.reason) && `${waiting.reason}`;
    }, "it is refused");
  });

  await step(
    `after ${REFRESHES} refreshes another image is pulled with the same Secret`,
    async () => {
      const tokens = new Set<string | undefined>();
      await until(
        async () => tokens.add((await token())?.token).size > REFRESHES,
        "it is refreshed",
      );
      const later = {
        containers: [container(image("2"))],
        imagePullSecrets: [{ name: SECRET }],
      };
      await context.create(pod(NS, "later", later));
      await runs(context, NS, "later");
      const seconds = Math.round((Date.now() - filled) / 1000);
      return `${seconds} s after the first token, which lived ${LIFE_S} s`;
    },
  );

  await step("skopeo pulls with the Secret's content as its auth file", async () => {
    const config = dockerConfig(await context.get("secret", "-n", NS, SECRET));
    const digest = await registry.digestOf(`${REPOSITORY}:2`, config);
    await refused(
      registry.digestOf(`${REPOSITORY}:2`),
      /unauthorized|authentication required|401/i,
    );
    return digest.trim().slice(0, 19);
  });

  // Tokens that live so short cannot outlive what is done to the cluster later.
  await context.remove(NS);
}
