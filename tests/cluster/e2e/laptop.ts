/** The quick start, as a new user does it: the README's commands in their order, with a stand-in for chainctl. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import * as fs from "node:fs";
import { join } from "node:path";
import { type Context, expect, README_IDENTITY as UID } from "./context.ts";
import { needBlock, runCommands } from "./blocks.ts";
import { ROOT } from "../../support/paths.ts";
import { CONTROLLER } from "../../support/names.ts";
import { until } from "../../support/until.ts";

/** As the README has them. */
const SECRET = "pull-secret";
const ISSUER_HOST = "issuer.enforce.dev";
/** From the cluster's --port on: the README's 8001 and 8080 may be taken. */
const PROXY_PORT = 6;
const PROGRAM_PORT = 8;
/** Prints its arguments, one a line, where the real one prints a UID. */
const CHAINCTL = `#!/bin/sh\nprintf '%s\\n' "$@"\n`;

export async function laptop(context: Context): Promise<void> {
  const { clusterIssuer, kubectl, need, step, work } = context;
  const token = async () => (await context.tokenIn("default", SECRET))?.token;

  const look = async () => {
    const said = await runCommands(
      context,
      "kubectl get secret pull-secret -o yaml",
      ownPort(context),
    );
    const row = new RegExp(`^default +${SECRET} +${UID} +valid `, "m");
    expect(/^NAMESPACE /m.test(said) && row.test(said), said);
  };

  await need(
    "quick start 1 and 2: the cluster's issuer, and an identity that is bound to it",
    async () => {
      const said = (await runCommands(context, "ISSUER=$(kubectl get")).trim();
      expect(said === clusterIssuer, `the issuer is ${clusterIssuer}, not ${said}`);
      const stubs = join(work, "stubs");
      fs.mkdirSync(stubs);
      fs.writeFileSync(join(stubs, "chainctl"), CHAINCTL, { mode: 0o755 });
      const known = (block: string) => `PATH=${stubs}:$PATH ISSUER=${said}\n${block}`;
      const plain = flagsOf(await runCommands(context, '$ISSUER" \\\n  --subject', known));
      const keyed = flagsOf(
        await runCommands(context, '--issuer-keys="$(kubectl get --raw', known),
      );
      for (const flags of [plain, keyed]) {
        expect(flags.get("--subject") === CONTROLLER, "another subject");
        expect(flags.get("--identity-issuer") === clusterIssuer, "another issuer");
      }
      expect(JSON.parse(keyed.get("--issuer-keys") ?? "{}").keys?.length > 0, "no keys");
      context.bind(UID);
    },
  );

  await need("quick start 3 and 5: rights and a Secret", async () => {
    await runCommands(context, "kubectl apply -f rbac.yaml");
    await runCommands(context, "kubectl create -f pull-secret.yaml");
  });

  const onNode = needBlock("npm ci\n(umask", "sh").replace("npm ci\n", "");
  await step(
    "quick start 4 and 6: on Node the Secret is filled, and --status and the events tell so",
    async () => {
      await whileRunning(context, onNode, async () => {
        await until(token, "it is filled");
        await look();
        const said = await runCommands(context, "kubectl get secrets -A -l", ownPort(context));
        expect(said.includes("TokenIssued") && said.includes(UID), said);
      });
    },
  );

  const onDeno = onNode.replace(/^KUBERNETES_API=.*$/m, needBlock("deno task start", "sh"));
  await step(
    "on Deno a refresh is asked for, and comes; the identity may stand in the annotation",
    async () => {
      await whileRunning(context, onDeno, async () => {
        const before = await token();
        await runCommands(context, "kubectl annotate --overwrite secret pull-secret");
        await until(async () => ![undefined, before].includes(await token()), "it is refreshed");
        const fragment = needBlock('identity: ""\n  annotations:\n');
        await kubectl(["patch", "secret", SECRET, "--type=merge", "--patch", fragment]);
        await look();
      });
    },
  );

  // What is installed next brings its own account and rights.
  await kubectl(["delete", "secret", SECRET]);
}

/** The flags that the stand-in for chainctl was given. */
function flagsOf(said: string): Map<string, string> {
  return new Map(
    [...said.matchAll(/^(--[a-z-]+)=(.*?)(?=^--|(?![\s\S]))/gms)].map((
      [, flag = "", value = ""],
    ) => [flag, value.trim()]),
  );
}

const ownPort = ({ cluster }: Context) => (block: string) =>
  block.replaceAll("8001", `${cluster.options.port + PROXY_PORT}`);

/**
 * Runs the commands that start the controller, for which the issuer's name is the test issuer's, and does something
 * meanwhile. They are ended all at once; a failure bears what they said.
 */
async function whileRunning(
  context: Context,
  commands: string,
  act: () => Promise<void>,
): Promise<void> {
  const { address, caFile, cluster, work } = context;
  const { port } = cluster.options;
  const hosts = join(work, "laptop-hosts");
  fs.writeFileSync(hosts, `${fs.readFileSync("/etc/hosts", "utf8")}\n${address} ${ISSUER_HOST}\n`);
  const adapted = ownPort(context)(commands)
    .replace("kubectl proxy", `kubectl proxy --port=${port + PROXY_PORT}`)
    .replace("> token", `> ${work}/token`)
    .replace("SUBJECT_TOKEN_FILE=token", `SUBJECT_TOKEN_FILE=${work}/token`);
  const script = `mount --bind ${hosts} /etc/hosts\n${adapted}`;
  const own = { NODE_EXTRA_CA_CERTS: caFile, NO_PROXY: "*", PORT: `${port + PROGRAM_PORT}` };
  const child = spawn("unshare", ["--mount", "--propagation", "private", "sh", "-ec", script], {
    cwd: ROOT,
    env: { ...process.env, ...cluster.environment, ...own },
    detached: true,
    stdio: ["ignore", "pipe", "pipe"],
  });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text) => said += text);
  }
  const closed = once(child, "close");
  try {
    await until(
      () => Promise.resolve(said.includes('"msg":"listed"')),
      "it has listed the Secrets",
    );
    await act();
  } catch (error) {
    throw new Error(`${(error as Error).message}\nit said:\n${said}`);
  } finally {
    // The whole group: a shell has what it runs in the background ignore a Ctrl-C.
    process.kill(-child.pid!, "SIGTERM");
    await closed;
  }
}
