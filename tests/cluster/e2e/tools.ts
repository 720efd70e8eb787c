/** What people look with: events, `--status`, metrics, memory. */
import { podProcesses } from "../host.ts";
import { readIfThere, run } from "../../support/processes.ts";
import { memoryOf } from "../../support/usage.ts";
import { type Context, expect } from "./context.ts";
import { controllerPods } from "./deploy.ts";
import { runCommands } from "./blocks.ts";
import { NAMESPACE } from "../../support/names.ts";

export async function tools(context: Context): Promise<void> {
  const { kubectl, step } = context;
  const [pod] = await controllerPods(context);

  await step("--status by kubectl exec in a Pod", async () => {
    const said = await runCommands(context, "kubectl exec");
    expect(/^resilience +first +\S+ +valid +\d+s$/m.test(said), said);
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
