/** What a process uses, as the kernel counts it. */
import { readFileSync } from "node:fs";

/** Of `/proc/PID/stat`; Linux has had no other for user space in decades. */
const TICKS_PER_S = 100;

export interface Memory {
  /** The most that was ever resident, in MiB. */
  peakMiB: number;
  /** What is resident, in MiB. */
  residentMiB: number;
  /** The part of it that no file backs: what it allocated. */
  anonymousMiB: number;
}

export interface Usage extends Memory {
  /** User and system time of all its threads, in seconds. */
  cpuS: number;
}

/** Fails if there is no such process; one that has just ended has no memory left (NaN). */
export function memoryOf(pid: number): Memory {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const mib = (field: string) =>
    Number(new RegExp(`^${field}:\\s+(\\d+) kB`, "m").exec(status)?.[1]) / 1024;
  return { peakMiB: mib("VmHWM"), residentMiB: mib("VmRSS"), anonymousMiB: mib("RssAnon") };
}

export function usageOf(pid: number): Usage {
  // The name, in brackets, may hold spaces.
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").replace(/^.*\) /s, "").split(" ");
  const [user, system] = [fields[11], fields[12]].map(Number);
  return { ...memoryOf(pid), cpuS: (user! + system!) / TICKS_PER_S };
}
