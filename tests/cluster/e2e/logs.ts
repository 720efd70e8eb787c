/** Keeps what was said when a step fails: logs of components and Pods, the audit log, events, Secrets without tokens. */
import * as fs from "node:fs";
import { join } from "node:path";
import type { Cluster } from "../cluster.ts";

/** Everything but Secrets' content, which is no one's to keep. */
const SECRETS = ["get", "secrets", "-A", "--show-labels"];
const ANNOTATIONS =
  `{range .items[*]}{.metadata.namespace}/{.metadata.name} {.metadata.annotations}{"\\n"}{end}`;
const LOOKS = [
  ["get", "nodes,pods,deployments,replicasets", "-A", "-o", "wide"],
  ["get", "events", "-A", "--sort-by=.lastTimestamp"],
  SECRETS,
  ["get", "secrets", "-A", "-o", `jsonpath=${ANNOTATIONS}`],
  ["describe", "pods", "-A"],
];

/** Copies the logs, and writes into a file of this name what the API server says now. */
export async function collectLogs(cluster: Cluster, folder: string, name: string): Promise<void> {
  fs.mkdirSync(folder, { recursive: true });
  const said = await Promise.all(LOOKS.map(async (args) => {
    const answer = await cluster.kubectl([...args, "--request-timeout=10s"]).catch(({ message }) =>
      message
    );
    return `$ kubectl ${args.join(" ")}\n${answer}\n`;
  }));
  fs.writeFileSync(join(folder, name), said.join("\n"));
  fs.cpSync(join(cluster.options.dir, "logs"), folder, { recursive: true, dereference: true });
}
