/** What people look with: events, `--status`, metrics, memory. */
import { join } from "node:path";
import { podProcesses } from "../node.ts";
import { readIfThere, run, start } from "../../support/processes.ts";
import { memoryOf } from "../../support/usage.ts";
import { type Context, expect } from "./context.ts";
import { controllerPods } from "./deploy.ts";
import { runCommands } from "./blocks.ts";
import { ROOT } from "../../support/paths.ts";
import { NAMESPACE } from "../../support/names.ts";
import { until } from "../../support/until.ts";

export async function tools(context: Context): Promise<void> {
  const { cluster, kubectl, step } = context;
  const [pod] = await controllerPods(context);

  await step("kubectl events tells of the Secret", async () => {
    const said = await kubectl(["events", "-n", "resilience", "--for", "secret/first"]);
    expect(/Normal\s+TokenIssued\s+Secret\/first/.test(said), said);
  });

  await step("--status by kubectl exec in a Pod", async () => {
    const said = await runCommands(context, "kubectl exec");
    expect(/^resilience +first +\S+ +valid +\d+s$/m.test(said), said);
  });

  await step("--status from a laptop by kubectl proxy, on Node and Deno", async () => {
    const port = cluster.options.port + 6;
    const proxy = ["proxy", `--kubeconfig=${cluster.kubeconfig}`, `--port=${port}`];
    await start(
      cluster.options.dir,
      "kubectl-proxy",
      join(cluster.bin, "kubectl"),
      proxy,
      cluster.bin,
    );
    const url = `http://127.0.0.1:${port}`;
    await until(async () => (await fetch(`${url}/version`)).ok, "kubectl proxy answers");
    const env = { KUBERNETES_API: url };
    const node = await run("node", ["main.ts", "--status=json"], { cwd: ROOT, env });
    const deno = await run("deno", ["task", "--quiet", "start", "--status=json"], {
      cwd: ROOT,
      env,
    });
    expect(told(node) === told(deno), `${told(node)} on Node, ${told(deno)} on Deno`);
    return told(node);
  });

  await step("/metrics passes promtool", async () => {
    const metrics = await kubectl([
      "get",
      "--raw",
      `/api/v1/namespaces/${NAMESPACE}/pods/${pod?.name}:8080/proxy/metrics`,
    ]);
    await run("promtool", ["check", "metrics"], { input: metrics });
    expect(/^pull_secret_updater_secrets\{state="valid"\} [1-9]/m.test(metrics), metrics);
    return `${metrics.split("\n").filter((line) => /^[^#]/.test(line)).length} samples`;
  });

  await step("the probes hold, and the Pods' memory", async () => {
    const pods = await controllerPods(context);
    expect(pods.every(({ ready, restarts }) => ready && restarts === 0), JSON.stringify(pods));
    return controllerProcesses(context).map((pid) => {
      const { residentMiB, anonymousMiB } = memoryOf(pid);
      return `RSS ${Math.round(residentMiB)} MiB, of it anonymous ${Math.round(anonymousMiB)}`;
    }).join("; ");
  });
}

/** The programs that run in the controller's Pods. */
export function controllerProcesses({ cluster }: Context): number[] {
  return podProcesses(cluster.options).filter((pid) =>
    readIfThere(`/proc/${pid}/cmdline`).startsWith("deno\0")
  );
}

/** What --status said; it exits with 1 unless all tokens are valid. */
function told(status: string): string {
  const states = JSON.parse(status).map(({ state }: { state: string }) => state);
  expect(states.length > 0 && states.every((state: string) => state === "valid"), status);
  return `${states.length} Secrets, all valid`;
}
