/** A network namespace of its own for programs, joined to this machine by one link, whose packets can be dropped. */
import { run } from "../../support/processes.ts";

/** Of the names of the namespace and of the link's ends. */
const NAME = "psufaults";
/** A network of two addresses that nobody else is likely to use. */
const ADDRESSES = { here: "10.231.77.1", there: "10.231.77.2" };
const PREFIX_LENGTH = 30;

export type Network = Awaited<ReturnType<typeof createNetwork>>;

/** Needs root. What an earlier run left behind is removed first. */
export async function createNetwork() {
  await removeNetwork();
  const inside = (...args: string[]) => run("ip", ["netns", "exec", NAME, ...args]);
  const [outer, inner] = [`${NAME}0`, `${NAME}1`];
  await run("ip", ["netns", "add", NAME]);
  await run("ip", ["link", "add", outer, "type", "veth", "peer", "name", inner, "netns", NAME]);
  await run("ip", ["address", "add", `${ADDRESSES.here}/${PREFIX_LENGTH}`, "dev", outer]);
  await run("ip", ["link", "set", outer, "up"]);
  await inside("ip", "address", "add", `${ADDRESSES.there}/${PREFIX_LENGTH}`, "dev", inner);
  await inside("ip", "link", "set", inner, "up");
  await inside("ip", "link", "set", "lo", "up");

  /** In both directions; returns what lets them pass again. */
  async function drop(here: string, there: string, ports: number[]) {
    const rules = ports.flatMap((port) => [
      ["OUTPUT", "-p", "tcp", here, `${port}`, "-j", "DROP"],
      ["INPUT", "-p", "tcp", there, `${port}`, "-j", "DROP"],
    ]);
    for (const rule of rules) await inside("iptables", "--wait", "-I", ...rule);
    return async () => {
      for (const rule of rules) await inside("iptables", "--wait", "-D", ...rule);
    };
  }

  return {
    ...ADDRESSES,
    /** A command that runs the one it is given in the namespace, with this file as /etc/hosts. */
    enter: (
      hosts: string,
    ) => [
      "ip",
      "netns",
      "exec",
      NAME,
      "sh",
      "-c",
      'mount --bind "$0" /etc/hosts && exec "$@"',
      hosts,
    ],
    /** Drops all packets to a port of this machine, and from it. */
    dropServer: (port: number) => drop("--dport", "--sport", [port]),
    /** Drops all packets of the connections that were made from these ports. */
    dropClients: (ports: number[]) => drop("--sport", "--dport", ports),
  };
}

/** Its link goes with it. */
export async function removeNetwork(): Promise<void> {
  const names = (await run("ip", ["netns", "list"])).split("\n").map((line) => line.split(" ")[0]);
  if (names.includes(NAME)) await run("ip", ["netns", "delete", NAME]);
}
