/** What a process holds, and how busy the machine is, out of /proc. */
import { existsSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { loadavg } from "node:os";
import { memoryOf } from "../../support/usage.ts";
import type { Usage } from "./requirements.ts";

/** Fails if the process has ended. */
export function holdingsOf(pid: number): Usage {
  const { anonymousMiB: rssAnonMB, residentMiB: rssMB } = memoryOf(pid);
  if (Number.isNaN(rssMB)) throw new Error(`process ${pid} has ended, and nobody killed it`);
  const files = readdirSync(`/proc/${pid}/fd`);
  const sockets = files.filter((file) => isSocket(`/proc/${pid}/fd/${file}`));
  return { rssAnonMB, rssMB, files: files.length, sockets: sockets.length };
}

function isSocket(path: string): boolean {
  try {
    return readlinkSync(path).startsWith("socket:");
  } catch {
    return false; // closed meanwhile
  }
}

const PRESSURE = "/proc/pressure/cpu";

/** The load of the last minute, and the share of the last 10 s in which something waited for a CPU. */
export function describeLoad(): string {
  // Not every kernel tells.
  const pressure = existsSync(PRESSURE) ? readFileSync(PRESSURE, "utf8") : "";
  const [, waiting = "?"] = /^some avg10=([\d.]+)/.exec(pressure) ?? [];
  return `load ${loadavg()[0]!.toFixed(1)}, waiting for a CPU ${waiting} %`;
}
