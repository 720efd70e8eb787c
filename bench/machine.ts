/** What a figure depends on: the machine, the day and the versions. */
import { readFileSync } from "node:fs";
import { cpus, release, totalmem } from "node:os";
import { join } from "node:path";
import { run } from "../tests/support/processes.ts";
import { commandFor, type Runtime } from "../tests/support/program.ts";
import { ROOT } from "../tests/support/paths.ts";

export type Machine = Awaited<ReturnType<typeof describeMachine>>;

export async function describeMachine() {
  const goMod = readFileSync(join(ROOT, "tests", "cluster", "kubernetes", "go.mod"), "utf8");
  const required = (module: string) => new RegExp(`\\t${module} v(\\S+)`).exec(goMod)?.[1];
  const version = async (runtime: Runtime) =>
    /\d+\.\d+\.\d+/.exec(await run(commandFor(runtime), ["--version"]))?.[0];
  return {
    date: new Date().toISOString().slice(0, 10),
    machine: `${cpus().length} × ${cpus()[0]?.model}, ${
      Math.round(totalmem() / 2 ** 30)
    } GiB, Linux ${release()}`,
    versions: `Node ${await version("node")}, Deno ${await version("deno")}, Kubernetes ${
      required("k8s.io/kubernetes")
    }`,
  };
}
