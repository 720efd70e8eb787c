/** A stand-in of an HTTP proxy that tunnels (CONNECT). */
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { createServer as createTlsServer } from "node:tls";
import type { Certificate } from "./certificates.ts";

export interface ProxyOptions {
  /** What it does with a request. Default: `tunnel`. */
  mode?: "tunnel" | "hang" | "refuse";
  /** Sent in place of what the mode says. */
  answer?: string;
  /** So many requests meet that mode, or that answer, and later ones a tunnel. Default: all. */
  times?: number;
  /** Whom it lets through, as `user:password`; undefined: anybody. */
  user?: string;
  /** Default: plain http. */
  certificate?: Certificate;
  /** An address of this machine. Default `127.0.0.1`. */
  host?: string;
  /** Default: a free one. */
  port?: number;
  /** Where each host is looked for, whatever it is called. Default: the loopback address of its family. */
  upstream?: string;
}

export type Proxy = Awaited<ReturnType<typeof startProxy>>;

/** What a client sends for these credentials. */
export const basic = (credentials: string) =>
  `Basic ${Buffer.from(credentials).toString("base64")}`;

/** Starts one; whatever a host is called, it is looked for on this machine. */
export async function startProxy(options: ProxyOptions = {}) {
  const { mode = "tunnel", user, certificate, host = "127.0.0.1", port: wanted = 0 } = options;
  const requests: { line: string; authorization?: string }[] = [];
  const sockets = new Set<Socket>();

  function serve(socket: Socket): void {
    sockets.add(socket);
    socket.on("error", () => {}).on("close", () => sockets.delete(socket));
    let head = "";
    socket.on("data", function onData(chunk: Buffer) {
      head += chunk.toString("latin1");
      if (!head.includes("\r\n\r\n")) return;
      socket.off("data", onData);
      answer(socket, head);
    });
  }

  function answer(socket: Socket, head: string): void {
    const line = head.split("\r\n")[0]!;
    const authorization = /^proxy-authorization: (.*)$/im.exec(head)?.[1];
    requests.push({ line, authorization });
    const isFaulty = requests.length <= (options.times ?? Infinity);
    if (isFaulty && mode === "hang") return;
    if (isFaulty && mode === "refuse") return refuse(socket, "502 Bad Gateway");
    if (user !== undefined && authorization !== basic(user)) {
      return refuse(socket, "407 Proxy Authentication Required");
    }
    if (isFaulty && options.answer !== undefined) return void socket.end(options.answer);
    const [, to = "", port = ""] = /^CONNECT (.*):(\d+) /.exec(line) ?? [];
    const there = options.upstream ?? (to === "[::1]" ? "::1" : "127.0.0.1");
    const upstream = connect(+port, there, () => {
      socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
      socket.pipe(upstream).pipe(socket);
    });
    upstream.on("error", () => socket.destroy());
    socket.on("close", () => upstream.destroy());
  }

  const server = certificate ? createTlsServer(certificate, serve) : createServer(serve);
  await once(server.listen(wanted, host), "listening");
  const { port } = server.address() as AddressInfo;
  const scheme = certificate ? "https" : "http";
  return {
    /** Its URL; credentials end with `@`, as in `user:password@`. */
    url: (credentials = "", as = host.includes(":") ? `[${host}]` : host) =>
      `${scheme}://${credentials}${as}:${port}`,
    /** What it was asked, oldest first. */
    requests,
    close(): void {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

function refuse(socket: Socket, status: string): void {
  socket.end(`HTTP/1.1 ${status}\r\ncontent-length: 0\r\n\r\n`);
}
