/**
 * Runs the environment matrix: tests/environment/matrix.ts, in namespaces of its own, so that it can have any address and
 * any port, and so that nothing is left of it.
 *
 * Usage: node tests/environment/environment.ts [--only PATTERN] [--runtime node|deno]
 */
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { helpIfAsked } from "../support/help.ts";

const TOOLS = ["unshare", "ip", "iptables", "ip6tables", "mount", "chroot"];

/** All addresses of 10.128.0.0/9 and 2001:db8::/40 are ours; nothing is forwarded, so that all others are dead. */
const NETWORK = `
  ip link set lo up
  ip route add local 10.128.0.0/9 dev lo
  ip -6 route add local 2001:db8::/40 dev lo
  ip -6 route add blackhole default
  echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind
  echo 0 >/proc/sys/net/ipv4/ip_forward
`;

async function main(): Promise<number> {
  helpIfAsked(import.meta.filename!);
  const missing = TOOLS.filter((tool) => spawnSync("which", [tool]).status !== 0);
  if (process.getuid?.() !== 0 || missing.length > 0) {
    console.error(`it needs Linux, root, and ${missing.join(", ") || "no more"}`);
    return 2;
  }
  const work = mkdtempSync(join(tmpdir(), "psu-environment-"));
  const matrix = join(import.meta.dirname!, "matrix.ts");
  const child = spawn(
    "unshare",
    [
      // Whatever ends unshare ends all that is in there.
      ...["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"],
      ...["sh", "-ec", `${NETWORK} exec "$@"`, "sh", process.execPath, matrix],
      ...process.argv.slice(2),
    ],
    { stdio: "inherit", env: { ...process.env, TMPDIR: work } },
  );
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.on(signal, () => child.kill("SIGKILL"));
  }
  process.on("exit", () => child.kill("SIGKILL"));
  const [code] = await once(child, "exit");
  // Killed, they take a moment to be gone.
  rmSync(work, { recursive: true, maxRetries: 10 });
  return code ?? 1;
}

process.exitCode = await main();
