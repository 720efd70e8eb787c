/** The environments, what is expected in each, and what docs/environments.md says of it. */
import type { Settings } from "../manifest_flags.ts";
import type { Runtime } from "../program.ts";
import type { ProxyOptions } from "../server/proxy.ts";
import type { Network } from "./pod.ts";
import type { Trust } from "./world.ts";

/** An address of a server's name, in the order in which DNS gives them. */
export type Address = `${"A" | "AAAA"}${"" | " dead" | " refusing"}`;

export type Outcome =
  /** The Secret is filled; by the proxy, or by itself, if there is one. */
  | { works: true; by?: "proxy" | "itself"; withinS?: number }
  /** It is not, and the log says why; `exits` if the program ends itself. */
  | { works: false; log: RegExp; exits?: number; withinS?: number };

export interface Row {
  group: string;
  /** The environment, as the table has it. */
  what: string;
  expect: Outcome | Record<Runtime, Outcome>;
  /** What the table adds. */
  note?: string;
  /** A fault of ours that this row holds on to: the day it is gone, the row fails, and is to be written anew. */
  known?: string;
  /** Flags of `npm run manifest`. */
  flags?: Settings;
  /** Variables that are set beside. */
  env?: Record<string, string>;
  /** Where the issuer's name leads. Default: to one that works. */
  issuer?: Address[];
  /** A proxy; `untrusted`: its CA is not among those that the Pod is given. */
  proxy?: Pick<ProxyOptions, "mode" | "answer" | "user"> & {
    at?: Address[];
    tls?: boolean;
    untrusted?: boolean;
  };
  ca?: {
    of: "api" | "issuer";
    file: (trust: Trust) => string;
    signer?: "intermediate" | "intermediate, sent";
  };
  /** Then the server and the Pod are given another CA. */
  rotates?: "api" | "issuer";
  network?: Network;
  dns?: "node" | "cluster" | "first dead" | "dead" | "failing";
  pod?: { uid?: number; gid?: number; hasNoHome?: boolean; memoryMiB?: number };
}

const works: Outcome = { works: true };
const byProxy: Outcome = { works: true, by: "proxy" };

export const ROWS: Row[] = [
  {
    group: "Proxies",
    what: "http, by name",
    flags: { proxy: "http://{proxy}" },
    proxy: {},
    expect: byProxy,
  },
  { group: "Pod", what: "as it is", expect: works },
];
