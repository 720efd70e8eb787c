/** Ports that nobody else takes: not another test, not a client of the kernel's choice. */
import { once } from "node:events";
import { createServer, type Server } from "node:net";
import process from "node:process";

/** Below the range that the kernel takes the ports of clients from: nobody else gets one in between. */
const FIRST_PORT = 20_000;
/** Who holds the first port of a block has all of it: other processes, and other threads of this one, take another. */
const BLOCK_PORTS = 100;
const BLOCKS = 120;

/** The ports of the block that is held. */
let [nextPort, endPort] = [0, 0];

export async function findPort(): Promise<number> {
  for (;;) {
    if (nextPort === endPort) await holdBlock();
    const port = nextPort++;
    const server = await listen(port);
    if (!server) continue;
    server.close();
    await once(server, "close");
    return port;
  }
}

async function holdBlock(): Promise<void> {
  for (let block = process.pid;; block++) {
    const first = FIRST_PORT + (block % BLOCKS) * BLOCK_PORTS;
    const server = await listen(first);
    if (!server) continue;
    server.unref();
    [nextPort, endPort] = [first + 1, first + BLOCK_PORTS];
    return;
  }
}

/** Returns nothing where the port is taken. */
async function listen(port: number): Promise<Server | undefined> {
  const server = createServer().listen(port);
  const isFree = await Promise.race([
    once(server, "listening").then(() => true),
    new Promise<false>((done) => server.once("error", () => done(false))),
  ]);
  return isFree ? server : undefined;
}
