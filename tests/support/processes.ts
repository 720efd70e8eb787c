// Starting, finding and ending the cluster's processes.
//
// Every process that belongs to a cluster carries the state folder's path in its environment and hands
// it on to its children (containerd to its shims, the shims to runc). So `down` finds them all in
// /proc, whatever else was lost, and never a process of anyone else, even where a PID was given anew.

import { execFile, spawn } from "node:child_process";
import * as fs from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const MARK = "PULL_SECRET_UPDATER_CLUSTER";

/** Output kept of one command: a `kubectl get` of everything in a test cluster stays far below. */
const OUTPUT_BYTES = 64 * 1024 * 1024;

/** Lines of a log that a failure quotes: enough to show a Go panic's first frames. */
const LOG_TAIL_LINES = 25;

/** How long killed processes may take to be gone, and how often that is looked at. */
const KILL_TIMEOUT_MS = 20_000;
const POLL_MS = 50;

/** iptables and ip stand in /usr/sbin, which is not on everyone's PATH. */
export const PATH = `${process.env.PATH ?? "/usr/bin:/bin"}:/usr/sbin:/sbin`;

/** Runs a command to its end and gives its standard output; a failure bears its standard error. */
export function run(
  program: string,
  args: string[],
  options: { input?: string; cwd?: string; env?: Record<string, string> } = {},
): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = execFile(program, args, {
      cwd: options.cwd,
      env: { ...process.env, PATH, ...options.env },
      maxBuffer: OUTPUT_BYTES,
    }, (error, stdout, stderr) => {
      if (error === null) return resolve(stdout);
      const said = stderr.trim() || stdout.trim() || error.message;
      reject(new Error(`${program} ${args.join(" ")}: ${said}`, { cause: error }));
    });
    child.stdin?.on("error", () => {}); // the program may end without reading its input
    child.stdin?.end(options.input ?? "");
  });
}

/** Whether a program is to be found on the PATH. */
export function isInstalled(program: string): boolean {
  return PATH.split(":").some((folder) => fs.existsSync(join(folder, program)));
}

function logFile(dir: string, name: string): string {
  return join(dir, "logs", `${name}.log`);
}

function pidFile(dir: string, name: string): string {
  return join(dir, "pids", name);
}

/**
 * Starts a process that outlives this one, with its output appended to its log. Its environment is
 * made anew: an HTTPS_PROXY of the caller's would take the cluster's own requests to the proxy.
 */
export async function start(
  dir: string,
  name: string,
  program: string,
  args: string[],
  bin: string,
) {
  fs.mkdirSync(join(dir, "logs"), { recursive: true });
  fs.mkdirSync(join(dir, "pids"), { recursive: true });
  const log = fs.openSync(logFile(dir, name), "a");
  const child = spawn(program, args, {
    detached: true,
    stdio: ["ignore", log, log],
    cwd: dir,
    env: { [MARK]: dir, PATH: `${bin}:${PATH}`, HOME: dir },
  });
  fs.closeSync(log);
  await new Promise((resolve, reject) => child.on("spawn", resolve).on("error", reject));
  child.unref();
  const pid = child.pid as number;
  fs.writeFileSync(pidFile(dir, name), `${pid} ${startTime(pid)}\n`);
}

/** The PID of a component that runs, else undefined. */
export function pidOf(dir: string, name: string): number | undefined {
  const [pid, started] = readIfThere(pidFile(dir, name)).trim().split(" ");
  return pid !== undefined && started !== undefined && startTime(Number(pid)) === started
    ? Number(pid)
    : undefined;
}

/** Ends one component and waits until it is gone; one that does not heed the signal is killed. */
export async function stop(
  dir: string,
  name: string,
  signal: NodeJS.Signals,
  timeoutMs: number,
): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  for (let pid = pidOf(dir, name), next = signal; pid !== undefined; pid = pidOf(dir, name)) {
    kill(pid, next);
    do await sleep(POLL_MS); while (pidOf(dir, name) !== undefined && Date.now() < deadline);
    next = "SIGKILL";
  }
}

/**
 * Kills until `find` finds no more, twice in a row: what a killed process had just started is found
 * the next time, and so is one that had no environment to be found by, being amid its exec.
 */
export async function killAll(find: () => number[]): Promise<void> {
  const deadline = Date.now() + KILL_TIMEOUT_MS;
  for (let clean = 0; clean < 2; await sleep(POLL_MS)) {
    const pids = find();
    clean = pids.length === 0 ? clean + 1 : 0;
    if (Date.now() > deadline) {
      throw new Error(`these processes do not die, look at them with ps: ${pids.join(" ")}`);
    }
    for (const pid of pids) kill(pid, "SIGKILL");
  }
}

/** All processes of the cluster whose state folder this is. */
export function processesOf(dir: string): number[] {
  return fs.readdirSync("/proc").map(Number).filter((pid) => pid > 0 && belongsTo(dir, pid));
}

/** When a process was started (clock ticks since boot): PIDs come again, the pair of both does not. */
function startTime(pid: number): string | undefined {
  const stat = readIfThere(`/proc/${pid}/stat`);
  // The fields after the program's name, which may hold spaces: from the state, the third, on.
  const [state, ...fields] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return state === "Z" || state === "X" ? undefined : fields[22 - 4];
}

/** A dead process that waits for its parent has an empty environment, and so belongs to nobody. */
function belongsTo(dir: string, pid: number): boolean {
  return readIfThere(`/proc/${pid}/environ`).split("\0").includes(`${MARK}=${dir}`);
}

function kill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error; // else: gone meanwhile
  }
}

/** The end of a component's log, to be quoted in a failure. */
export function logTail(dir: string, name: string): string {
  const lines = readIfThere(logFile(dir, name)).trimEnd().split("\n");
  return [`the end of ${logFile(dir, name)}:`, ...lines.slice(-LOG_TAIL_LINES)].join("\n  ");
}

/** A file's text, or nothing where it is not there, not ours to read, or its process or cgroup has just gone. */
export function readIfThere(path: string): string {
  try {
    return fs.readFileSync(path, "utf8");
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? "";
    if (["ENOENT", "ENODEV", "ESRCH", "EACCES", "EPERM"].includes(code)) return "";
    throw error;
  }
}
