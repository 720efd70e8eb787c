/** What a process holds, and how busy the machine is, out of /proc. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { loadavg } from "node:os";
import { memoryOf } from "../../support/usage.ts";
import type { Usage } from "./requirements.ts";

/** Returns nothing of a process that is gone. */
export function holdingsOf(pid: number): Usage | undefined {
  try {
    const { anonymousMiB: rssAnonMB, residentMiB: rssMB } = memoryOf(pid);
    const files = readdirSync(`/proc/${pid}/fd`);
    const sockets = files.filter((file) => isSocket(`/proc/${pid}/fd/${file}`));
    return Number.isNaN(rssMB)
      ? undefined
      : { rssAnonMB, rssMB, files: files.length, sockets: sockets.length };
  } catch {
    return undefined;
  }
}

function isSocket(path: string): boolean {
  try {
    return readlinkSync(path).startsWith("socket:");
  } catch {
    return false; // closed meanwhile
  }
}

/** The load of the last minute, and the share (%) of the last 10 s in which something waited for a CPU. */
export function machineLoad(): { load: number; cpuPressure: number } {
  return {
    load: loadavg()[0]!,
    cpuPressure: Number(/^some avg10=([\d.]+)/.exec(readPressure())?.[1] ?? NaN),
  };
}

/** Not every kernel tells. */
function readPressure(): string {
  try {
    return readFileSync("/proc/pressure/cpu", "utf8");
  } catch {
    return "";
  }
}
