/** The way of TCP connections from a client to a server, which can be long, or broken. */
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

/** Listens on a host, and passes connections on to a port of this machine. */
export async function startWire(host: string, target: number): Promise<Wire> {
  const server = createServer({ allowHalfOpen: true }).listen(0, host);
  await once(server, "listening");
  return new Wire(server, host, target);
}

export class Wire {
  /** Milliseconds that each byte takes, in either direction. */
  delay = 0;
  readonly host: string;
  readonly port: number;
  #target: number;
  #server: Server;
  #clients = new Set<Socket>();

  constructor(server: Server, host: string, target: number) {
    this.host = host;
    this.port = (server.address() as AddressInfo).port;
    this.#target = target;
    this.#server = server;
    server.on("connection", (client: Socket) => this.#join(client));
  }

  /** The ports that clients have connected from. */
  get clientPorts(): number[] {
    return [...this.#clients].flatMap(({ remotePort }) => remotePort ?? []);
  }

  /** Closes the port and every connection. */
  async refuse(): Promise<void> {
    if (!this.#server.listening) return;
    const closed = once(this.#server, "close");
    this.#server.close();
    for (const client of this.#clients) client.destroy();
    await closed;
  }

  /** Listens again on the same port. */
  async accept(): Promise<void> {
    this.#server.listen(this.port, this.host);
    await once(this.#server, "listening");
  }

  #join(client: Socket): void {
    const server = connect({ port: this.#target, host: "127.0.0.1", allowHalfOpen: true });
    this.#clients.add(client);
    client.on("close", () => this.#clients.delete(client));
    this.#carry(client, server);
    this.#carry(server, client);
  }

  /** What arrives leaves in order and `delay` later, the end too. An error on one side ends the other at once. */
  #carry(from: Socket, to: Socket): void {
    const later = (act: () => void) => this.delay === 0 ? act() : setTimeout(act, this.delay);
    from.setNoDelay(true);
    from.on("data", (chunk) => later(() => to.write(chunk)));
    from.on("end", () => later(() => to.end()));
    from.on("error", () => to.resetAndDestroy());
    from.on("close", () => later(() => to.destroySoon()));
  }
}
