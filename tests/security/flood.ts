/**
 * Asks a port for all that it has: over and over, without reading, for more than it can have sent,
 * and in halves. Who is dropped or done comes again.
 *
 * Usage: node tests/security/flood.ts PORT CONNECTIONS
 */
import { Buffer } from "node:buffer";
import { connect, type Socket } from "node:net";
import process from "node:process";

const REQUEST = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
const REQUESTS_AT_ONCE = 1_000;
const END = "connection: close\r\n\r\n";

const WAYS: ((socket: Socket) => void)[] = [
  // Asks again on the same connection.
  (socket) => {
    socket.write(REQUEST);
    socket.on("data", (chunk) => chunk.includes("HTTP/1.1 ") && socket.write(REQUEST));
  },
  // Asks again on another.
  (socket) => {
    socket.write(REQUEST.replace("\r\n\r\n", `\r\n${END}`));
    socket.on("data", () => {}).setTimeout(100, () => socket.destroy());
  },
  // Is gone before the answer.
  (socket) => {
    socket.pause().write(REQUEST);
    setTimeout(() => socket.destroy(), 50);
  },
  // Reads nothing.
  (socket) => void socket.pause().write(REQUEST),
  // Says that it is done, and reads nothing.
  (socket) => void socket.pause().end(REQUEST),
  // Asks a thousand times at once.
  (socket) => void socket.pause().write(REQUEST.repeat(REQUESTS_AT_ONCE)),
  // Sends without end.
  (socket) => {
    const piece = Buffer.alloc(64 * 1024);
    const send = () => {
      while (socket.writable && socket.write(piece));
    };
    socket.write("POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000000\r\n\r\n");
    socket.on("drain", send);
    send();
  },
  // Sends half a request.
  (socket) => void socket.write("GET /metr"),
  // Sends nothing.
  () => {},
];

const [port = "", connections = ""] = process.argv.slice(2);

function open(index: number): void {
  const socket = connect({ port: Number(port), host: "127.0.0.1", allowHalfOpen: true });
  socket.on("connect", () => WAYS[index % WAYS.length]!(socket));
  socket.on("error", () => {}).on("close", () => setTimeout(open, 1, index));
}

for (let index = 0; index < Number(connections); index++) open(index);
