/** What both stand-ins share: listening over http or https, the log of requests, faults. */
import * as http from "node:http";
import * as https from "node:https";
import type { AddressInfo, Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import type { Certificate } from "./certificates.ts";
import { type Fault, Faults, type LoggedRequest, Output } from "./injection.ts";

export interface ListenOptions {
  /** Host that clients name, a loopback one. Default `127.0.0.1`. */
  host?: string;
  /** Default: a free one. */
  port?: number;
  /** Default: plain http. */
  certificate?: Certificate;
}

/** An answer: a body (a string as it is, anything else as JSON) or a stream of lines. */
export interface Reply {
  status: number;
  headers?: Record<string, string>;
  body?: string | object;
  stream?: (output: Output) => void;
}

/** Longer than any client's own: a server that closes idle connections first makes tests flaky. */
const KEEP_ALIVE_MS = 90_000;
const CACHING = { "cache-control": "no-cache, private" };

export abstract class Listener<R extends LoggedRequest, F extends Fault = Fault> {
  /** Every request since the start, oldest first; a test may empty it. */
  readonly requests: R[] = [];
  /** Faults to inject. */
  readonly faults: Faults<F> = new Faults<F>();
  readonly url: string;
  #server: http.Server;
  #host: string;
  #port: number;
  /** The TCP sockets, which lie under TLS and alone can be reset, by the client's port. */
  #sockets = new Map<number, Socket>();

  constructor({ server, host }: Bound) {
    const { port } = server.address() as AddressInfo;
    this.#server = server;
    this.#host = host;
    this.#port = port;
    const scheme = server instanceof https.Server ? "https" : "http";
    this.url = `${scheme}://${host.includes(":") ? `[${host}]` : host}:${port}`;
    server.on("request", (request, response) => void this.#serve(request, response));
    server.on("connection", (socket: Socket) => {
      const { remotePort = 0 } = socket;
      this.#sockets.set(remotePort, socket);
      socket.once("close", () => this.#sockets.delete(remotePort));
    });
  }

  /** Closes the port and every connection; the state stays. */
  async refuse(): Promise<void> {
    const closed = new Promise<unknown>((done) => this.#server.close(done));
    this.#server.closeAllConnections();
    // Those in the midst of a TLS handshake are not among them.
    for (const socket of this.#sockets.values()) socket.destroy();
    await closed;
  }

  /** Listens again on the same port. */
  async accept(): Promise<void> {
    await listen(this.#server, this.#host, this.#port);
  }

  /** Shows another certificate to new connections. */
  useCertificate(certificate: Certificate): void {
    (this.#server as https.Server).setSecureContext(certificate);
  }

  /** Ends it. */
  async close(): Promise<void> {
    if (this.#server.listening) await this.refuse();
  }

  /** Requests in the log that match. */
  count(verb: string, path = /./): number {
    return this.requests.filter((request) => request.verb === verb && path.test(request.path))
      .length;
  }

  /** Adds what the stand-in knows of a request, its verb for one. */
  protected abstract describe(request: LoggedRequest): R;
  /** Carries a request out. */
  protected abstract answer(request: R, fault?: F): Reply | Promise<Reply>;
  /** The body and the headers that the real server sends with a failure. */
  protected abstract failure(status: number, request: R): Pick<Reply, "body" | "headers">;

  /** Answers one request; a client that goes away while it sends gets no answer. */
  async #serve(incoming: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    const body = await readBody(incoming).catch(() => undefined);
    if (body === undefined) return;
    const [path = "", query] = (incoming.url ?? "").split("?", 2);
    const request = this.describe({
      time: Date.now(),
      method: incoming.method ?? "",
      verb: "",
      path,
      query: new URLSearchParams(query),
      headers: incoming.headers as Record<string, string>,
      body,
    });
    this.requests.push(request);
    const fault = this.faults.take(request);
    if (fault?.delay) await sleep(fault.delay);
    if (fault?.hang) return;
    if (fault?.reset) return this.#reset(incoming);
    const reply: Reply = fault?.status === undefined
      ? await this.answer(request, fault)
      : { status: fault.status, ...this.failure(fault.status, request) };
    if (fault?.body !== undefined) {
      reply.body = typeof fault.body === "function" ? fault.body(request) : fault.body;
    }
    if (fault?.cut === 0) return void response.socket?.destroy();
    request.status = reply.status;
    send(response, { ...reply, headers: { ...reply.headers, ...fault?.headers } }, fault);
  }

  #reset({ socket: { remotePort = 0 } }: http.IncomingMessage): void {
    this.#sockets.get(remotePort)?.resetAndDestroy();
  }
}

/** A server that listens and that a `Listener` is about to serve. */
export interface Bound {
  server: http.Server;
  host: string;
}

export async function bind(options: ListenOptions): Promise<Bound> {
  const { host = "127.0.0.1", port = 0, certificate } = options;
  const server = certificate ? https.createServer(certificate) : http.createServer();
  server.keepAliveTimeout = KEEP_ALIVE_MS;
  await listen(server, host, port);
  return { server, host };
}

function listen(server: http.Server, host: string, port: number): Promise<void> {
  return new Promise((done, failed) => {
    server.once("error", failed);
    server.listen(port, host, () => {
      server.off("error", failed);
      done();
    });
  });
}

async function readBody(incoming: http.IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of incoming) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

function send(response: http.ServerResponse, reply: Reply, fault?: Fault): void {
  const { status, headers, body = "", stream } = reply;
  const output = new Output(response, fault);
  if (stream) {
    response.writeHead(status, { ...CACHING, "content-type": "application/json", ...headers });
    response.flushHeaders();
    for (const line of fault?.lines ?? []) {
      output.write(typeof line === "string" ? line : `${JSON.stringify(line)}\n`);
    }
    if (fault?.close === 0) return output.end();
    if (fault?.close) {
      const timer = setTimeout(() => output.end(), fault.close);
      output.onClose(() => clearTimeout(timer));
    }
    stream(output);
    return;
  }
  const text = typeof body === "string" ? body : `${JSON.stringify(body)}\n`;
  response.writeHead(status, {
    ...CACHING,
    "content-type": typeof body === "string" ? "text/plain; charset=utf-8" : "application/json",
    "content-length": Buffer.byteLength(text),
    ...headers,
  });
  // Deno loses flushed headers that nothing but the end follows.
  if (text !== "") {
    response.flushHeaders();
    output.write(text);
  }
  output.end();
}
