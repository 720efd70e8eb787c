/** A name server that knows a few names, as the node's own. */
import { Buffer } from "node:buffer";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { isIPv6 } from "node:net";
import { ipv6Bytes } from "../fake/certificates.ts";

const HEADER_BYTES = 12;
const [A, AAAA] = [1, 28];
const [NO_ERROR, SERVER_FAILURE, NO_SUCH_NAME] = [0, 2, 3];
/** Recursion is available; this is an answer to a question with recursion desired. */
const ANSWER_FLAGS = 0x8180;
const TTL_S = 1;
/** A pointer to the name in the question. */
const QUESTION_NAME = 0xc00c;

export interface NameServerOptions {
  host: string;
  /** Addresses, in the order in which they are given. */
  names: Record<string, string[]>;
  /** Answers that it cannot find out. */
  fails?: boolean;
}

export async function startNameServer({ host, names, fails = false }: NameServerOptions) {
  const socket = createSocket("udp4");
  socket.on("message", (query, { port, address }) => {
    const { name, type, end } = readQuestion(query);
    const known = names[name.toLowerCase()];
    const found = (known ?? []).filter((each) => type === (isIPv6(each) ? AAAA : A));
    const code = fails ? SERVER_FAILURE : known ? NO_ERROR : NO_SUCH_NAME;
    const head = Buffer.from(query.subarray(0, end));
    head.writeUInt16BE(ANSWER_FLAGS | code, 2);
    [1, found.length, 0, 0].forEach((count, index) => head.writeUInt16BE(count, 4 + 2 * index));
    socket.send(Buffer.concat([head, ...found.map(recordOf)]), port, address);
  });
  socket.bind(53, host);
  await once(socket, "listening");
  return { close: () => socket.close() };
}

function readQuestion(query: Buffer): { name: string; type: number; end: number } {
  const labels: string[] = [];
  let at = HEADER_BYTES;
  for (let length = query[at]!; length > 0; length = query[at]!) {
    labels.push(query.toString("latin1", at + 1, at + 1 + length));
    at += 1 + length;
  }
  return { name: labels.join("."), type: query.readUInt16BE(at + 1), end: at + 5 };
}

function recordOf(address: string): Buffer {
  const data = isIPv6(address) ? ipv6Bytes(address) : Buffer.from(address.split(".").map(Number));
  const head = Buffer.alloc(HEADER_BYTES);
  head.writeUInt16BE(QUESTION_NAME, 0);
  head.writeUInt16BE(isIPv6(address) ? AAAA : A, 2);
  head.writeUInt16BE(1, 4); // class IN
  head.writeUInt32BE(TTL_S, 6);
  head.writeUInt16BE(data.length, 10);
  return Buffer.concat([head, data]);
}
