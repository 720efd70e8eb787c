/** What a process uses, as the kernel counts it. */
import { readFileSync } from "node:fs";

/** Of `/proc/PID/stat`; Linux has had no other for user space in decades. */
const TICKS_PER_S = 100;

export interface Usage {
  /** User and system time of all its threads, in seconds. */
  cpuS: number;
  /** The most that was ever resident, in MiB. */
  peakMiB: number;
  /** What is resident, in MiB. */
  residentMiB: number;
  /** The part of it that no file backs: what it allocated. */
  anonymousMiB: number;
}

export function usageOf(pid: number): Usage {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const mib = (field: string) => Number(new RegExp(`^${field}:\\s+(\\d+) kB`, "m").exec(status)?.[1]) / 1024;
  // The name, in brackets, may hold spaces.
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").replace(/^.*\) /s, "").split(" ");
  const [user, system] = [fields[11], fields[12]].map(Number);
  return {
    cpuS: (user! + system!) / TICKS_PER_S,
    peakMiB: mib("VmHWM"),
    residentMiB: mib("VmRSS"),
    anonymousMiB: mib("RssAnon"),
  };
}
