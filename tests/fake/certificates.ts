/**
 * Certificates for the stand-ins: an authority and the leaves that it signs, as X.509 v3 in DER,
 * written out by hand so that neither openssl nor a package is needed. ECDSA P-256 throughout.
 */
import {
  createHash,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
  sign,
} from "node:crypto";
import { isIPv4, isIPv6 } from "node:net";

/** A private key and its certificate chain, both PEM: what `node:https` takes. */
export interface Certificate {
  key: string;
  cert: string;
}

/** Signs leaves; `certificate` is the CA bundle that trusts them. */
export interface Authority {
  certificate: string;
  issue(hosts?: string[]): Certificate;
  /** For a client, by its name and its group. */
  issueClient(name: string, group: string): Certificate;
  /** Makes an authority that this one has signed, as an intermediate CA. */
  makeIntermediate(): Authority;
}

const LIFE_MS = 10 * 365 * 86_400_000;
/** Object identifiers. */
const [SERVER_AUTH, CLIENT_AUTH] = ["2b06010505070301", "2b06010505070302"];
const [COMMON_NAME, ORGANIZATION] = ["550403", "55040a"];

/** Makes a certificate authority with a name of its own, so that two can stand in one bundle. */
export function makeAuthority(): Authority {
  const name = commonName(`stand-in CA ${randomBytes(4).toString("hex")}`);
  const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  return authorityOf(name, privateKey, name, privateKey);
}

function authorityOf(
  name: Buffer,
  key: KeyObject,
  signerName: Buffer,
  signer: KeyObject,
): Authority {
  const certificate = makeCertificate(signerName, name, key, signer, [
    extension("551d13", sequence(der(0x01, Buffer.from([0xff])))), // basicConstraints: CA
    extension("551d0f", der(0x03, Buffer.from([1, 0x06]))), // keyUsage: keyCertSign, cRLSign
  ]);
  const issueLeaf = (subject: Buffer, usage: string, ...extensions: Buffer[]): Certificate => {
    const leaf = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey;
    const extendedKeyUsage = extension("551d25", sequence(der(0x06, Buffer.from(usage, "hex"))));
    const cert = makeCertificate(name, subject, leaf, key, [extendedKeyUsage, ...extensions]);
    return { key: leaf.export({ type: "pkcs8", format: "pem" }).toString(), cert };
  };
  const issue = (hosts = ["localhost", "127.0.0.1", "::1", "kubernetes.default.svc"]) => {
    const names = extension("551d11", sequence(...hosts.map(alternativeName)));
    return issueLeaf(commonName(hosts[0] ?? ""), SERVER_AUTH, names);
  };
  const issueClient = (name: string, group: string) => {
    const subject = sequence(attribute(ORGANIZATION, group), attribute(COMMON_NAME, name));
    return issueLeaf(subject, CLIENT_AUTH);
  };
  const makeIntermediate = () => {
    const own = commonName(`stand-in intermediate CA ${randomBytes(4).toString("hex")}`);
    const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    return authorityOf(own, privateKey, name, key);
  };
  return { certificate, issue, issueClient, makeIntermediate };
}

function makeCertificate(
  issuer: Buffer,
  subject: Buffer,
  key: KeyObject,
  signer: KeyObject,
  extensions: Buffer[],
): string {
  const algorithm = sequence(der(0x06, Buffer.from("2a8648ce3d040302", "hex"))); // ecdsa-with-SHA256
  const now = Date.now();
  const all = sequence(
    ...extensions,
    extension("551d0e", der(0x04, keyId(key))), // subjectKeyIdentifier
    extension("551d23", sequence(der(0x80, keyId(signer)))), // authorityKeyIdentifier
  );
  const body = sequence(
    der(0xa0, der(0x02, Buffer.from([2]))), // version 3
    der(0x02, Buffer.concat([Buffer.from([0x40]), randomBytes(15)])), // serial number
    algorithm,
    issuer,
    sequence(utcTime(now - 3_600_000), utcTime(now + LIFE_MS)),
    subject,
    publicKeyInfo(key),
    der(0xa3, all),
  );
  const signature = Buffer.concat([Buffer.from([0]), sign("sha256", body, signer)]);
  const base64 = sequence(body, algorithm, der(0x03, signature)).toString("base64");
  const lines = base64.match(/.{1,64}/g)!.join("\n");
  return `-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`;
}

function publicKeyInfo(key: KeyObject): Buffer {
  return createPublicKey(key).export({ type: "spki", format: "der" });
}

function keyId(key: KeyObject): Buffer {
  return createHash("sha1").update(publicKeyInfo(key)).digest();
}

/** One DER value: tag, length, content. */
function der(tag: number, ...content: Uint8Array[]): Buffer {
  const body = Buffer.concat(content);
  const { length } = body;
  const head = length < 0x80
    ? [tag, length]
    : length < 0x100
    ? [tag, 0x81, length]
    : [tag, 0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.from(head), body]);
}

function sequence(...content: Uint8Array[]): Buffer {
  return der(0x30, ...content);
}

const commonName = (name: string) => sequence(attribute(COMMON_NAME, name));

/** A part of a name. */
function attribute(oid: string, value: string): Buffer {
  return der(0x31, sequence(der(0x06, Buffer.from(oid, "hex")), der(0x0c, Buffer.from(value))));
}

function utcTime(ms: number): Buffer {
  const digits = new Date(ms).toISOString().replace(/\D/g, "").slice(2, 14);
  return der(0x17, Buffer.from(`${digits}Z`));
}

/** The two that only a CA's own certificate has here are critical: basicConstraints and keyUsage. */
function extension(oid: string, value: Buffer): Buffer {
  const critical = oid === "551d13" || oid === "551d0f" ? [der(0x01, Buffer.from([0xff]))] : [];
  return sequence(der(0x06, Buffer.from(oid, "hex")), ...critical, der(0x04, value));
}

function alternativeName(host: string): Buffer {
  if (isIPv4(host)) return der(0x87, Buffer.from(host.split(".").map(Number)));
  if (isIPv6(host)) return der(0x87, ipv6Bytes(host));
  return der(0x82, Buffer.from(host));
}

export function ipv6Bytes(host: string): Buffer {
  const [head = [], tail = []] = host.split("::").map((part) => part.split(":").filter(Boolean));
  const zeros = Array(8 - head.length - tail.length).fill("0");
  const groups = [...head, ...zeros, ...tail].map((group) => parseInt(group, 16));
  return Buffer.from(groups.flatMap((group) => [group >> 8, group & 0xff]));
}
