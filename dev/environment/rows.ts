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
  /** It is not, and the log says why; `exits` if the program ends by itself, and how. */
  | { works: false; log: RegExp; exits?: number; withinS?: number };

export interface Row {
  group: string;
  /** The environment, as the table has it. */
  what: string;
  expect: Outcome | Record<Runtime, Outcome>;
  /** What the table adds: of what does not work, what the log says or what to do. */
  note?: string;
  /** A fault of ours that this row holds on to: the day it is gone, the row fails, and is to be written anew. */
  known?: string;
  /** Flags of `npm run manifest`. Here as in `env`, {proxy}, {proxy A} and {A} are addresses. */
  flags?: Settings;
  /** Variables that are set beside. */
  env?: Settings;
  /** Where the issuer's name leads. Default: to one that works. */
  issuer?: Address[];
  /** A proxy; `untrusted`: its CA is not among those that the Pod is given. */
  proxy?: Pick<ProxyOptions, "mode" | "answer" | "times" | "user"> & {
    at?: Address[];
    tls?: boolean;
    untrusted?: boolean;
  };
  ca?: {
    of: "api" | "issuer";
    file: (trust: Trust) => string;
    signer?: "intermediate" | "intermediate, sent";
  };
  /** Once it has worked, this server and the Pod are given another CA. */
  rotates?: "api" | "issuer";
  network?: Network;
  dns?: "node" | "cluster" | "first dead" | "dead" | "failing";
  pod?: { uid?: number; gid?: number; hasNoHome?: boolean; memoryMiB?: number };
}

type Rest = Omit<Row, "group" | "what" | "expect">;

const works: Outcome = { works: true };
const byProxy: Outcome = { works: true, by: "proxy" };
const byItself: Outcome = { works: true, by: "itself" };
const fails = (log: RegExp, rest: { exits?: number; withinS?: number } = {}): Outcome => ({
  works: false,
  log,
  ...rest,
});
/** Bad configuration: one line, exit status 2. */
const refused = (log: RegExp): Outcome => fails(log, { exits: 2 });
/** The certificate of the server was not accepted. */
const untrusted = fails(/"(message|error)":".*(certificate|is empty)/);
const timesOut = fails(/Connect Timeout Error|no response within 10 s/);

/** The name of a proxy or an issuer has several addresses, and Deno's first try fails: it asks for a right to the second. */
const SECOND_ADDRESS = "known fault: the second address is not tried";
const needsRight = fails(/Requires net access|Connect Timeout Error/, { withinS: 30 });

const html = (status: string) =>
  `HTTP/1.1 ${status}\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n<html><h1>Blocked</h1></html>`;

// ───── Proxies ─────

const SCHEMES = [["http", {}], ["https", { tls: true }]] as const;

/** By name and by address, on both schemes. */
const proxyPlaces = SCHEMES.flatMap(([scheme, proxy]): Row[] => [
  {
    group: "Proxy",
    what: `${scheme}, by name`,
    flags: { proxy: `${scheme}://{proxy}` },
    proxy,
    expect: byProxy,
  },
  {
    group: "Proxy",
    what: `${scheme}, by IPv4 address`,
    flags: { proxy: `${scheme}://{proxy A}` },
    proxy,
    expect: byProxy,
  },
  {
    group: "Proxy",
    what: `${scheme}, by IPv6 address`,
    flags: { proxy: `${scheme}://{proxy AAAA}` },
    proxy: { ...proxy, at: ["AAAA"] },
    expect: byProxy,
  },
]);

/** How credentials stand in the URL, and what they are. */
const CREDENTIALS: [
  what: string,
  inUrl: string,
  user: string | undefined,
  outcome: Outcome,
  note?: string,
][] = [
  ["with user and password", "user:secret@", "user:secret", byProxy],
  ["password with %-encoded characters", "user:p%40ss%3A%2F%25@", "user:p@ss:/%", byProxy],
  ["password with a bare @", "user:p@ss@", "user:p@ss", byProxy],
  ["user without a password", "user@", "user:", byProxy],
  [
    "password with a bare %",
    "user:50%off@",
    "user:50%off",
    refused(/^HTTPS_PROXY="…@.*percent-encoded$/),
    'exit 2: `HTTPS_PROXY="…": must be …`',
  ],
  [
    "password with a bare #",
    "user:p#ss@",
    "user:p#ss",
    refused(/^HTTPS_PROXY="…@.*percent-encoded$/),
    "the same: write `%23`",
  ],
  ["wrong password", "user:wrong@", "user:secret", fails(/407/), "log: `… (407) …`"],
  ["no credentials where it wants some", "", "user:secret", fails(/407/), "log: `… (407) …`"],
];
const proxyCredentials = CREDENTIALS.map(([what, inUrl, user, expect, note]): Row => ({
  group: "Proxy",
  what,
  flags: { proxy: "http://{proxy}" },
  env: { HTTPS_PROXY: `http://${inUrl}{proxy}` },
  proxy: { user },
  expect,
  note,
}));

const proxyVariables: Row[] = [
  {
    group: "Proxy",
    what: "`https_proxy` in lower case, by hand",
    env: { https_proxy: "http://{proxy}" },
    proxy: {},
    expect: { node: byProxy, deno: byItself },
    note: "Deno's flags hide it: it goes straight",
  },
  {
    group: "Proxy",
    what: "`HTTPS_PROXY` and another `https_proxy`",
    flags: { proxy: "http://{proxy}" },
    env: { https_proxy: "http://{proxy A refusing}" },
    proxy: {},
    expect: byProxy,
    note: "`HTTPS_PROXY` counts",
  },
  {
    group: "Proxy",
    what: "`HTTP_PROXY` or `ALL_PROXY` alone",
    env: { HTTP_PROXY: "http://{proxy}", ALL_PROXY: "http://{proxy}" },
    proxy: {},
    expect: byItself,
    note: "not used, as the issuer is https",
  },
  {
    group: "Proxy",
    what: "a URL without a scheme",
    flags: { proxy: "http://{proxy}" },
    env: { HTTPS_PROXY: "{proxy}" },
    expect: refused(/^HTTPS_PROXY=.*must be an http or https URL/),
    note: 'exit 2: `HTTPS_PROXY="…": must be …`',
  },
  {
    group: "Proxy",
    what: "SOCKS (`socks5://`)",
    flags: { proxy: "http://{proxy}" },
    env: { HTTPS_PROXY: "socks5://{proxy}" },
    expect: refused(/^HTTPS_PROXY=.*must be an http or https URL/),
    note: 'exit 2: `HTTPS_PROXY="…": must be …`',
  },
];

const BROKEN_PROXIES: [what: string, proxy: Row["proxy"], expect: Row["expect"], rest?: Rest][] = [
  ["refuses the connection", { at: ["A refusing"] }, fails(/connect ECONNREFUSED/)],
  ["is not there, and packets are dropped", { at: ["A dead"] }, timesOut],
  ["its name is unknown", { at: [] }, fails(/getaddrinfo ENOTFOUND/)],
  ["hangs on CONNECT", { mode: "hang" }, fails(/no response within 10 s/)],
  [
    "hangs on the first CONNECT only",
    { mode: "hang", times: 1 },
    fails(/no response within 10 s/),
    { known: "the connection that hangs holds up the next exchanges, for 5 min" },
  ],
  ["answers CONNECT by 403 and HTML", { answer: html("403 Forbidden") }, fails(/\(403\) !== 200/)],
  ["answers CONNECT by 502", { mode: "refuse" }, fails(/\(502\) !== 200/)],
  ["answers CONNECT by 200 and HTML", { answer: html("200 OK") }, fails(/wrong version number/)],
  ["closes the connection", { answer: "" }, fails(/Proxy Connection failed/)],
  ["is there again after one 502", { mode: "refuse", times: 1 }, byProxy],
  [
    "https, of a CA that is not given",
    { tls: true, untrusted: true },
    untrusted,
    { flags: { proxy: "https://{proxy}" } },
  ],
  ["https in the URL, and it speaks http", {}, timesOut, { flags: { proxy: "https://{proxy}" } }],
];
const brokenProxies = BROKEN_PROXIES.map(([what, proxy, expect, rest]): Row => ({
  group: "Proxy",
  what,
  flags: { proxy: "http://{proxy}" },
  proxy,
  expect,
  ...rest,
}));

// ───── NO_PROXY ─────

/** Go's forms, for an issuer by name and by address. */
const NO_PROXY: [value: string, issuer: string, outcome: Outcome, note?: string][] = [
  ["issuer.enforce.dev", "name", byItself],
  ["enforce.dev", "name", byItself],
  [".enforce.dev", "name", byItself],
  ["*.enforce.dev", "name", byItself],
  ["*", "name", byItself],
  ["issuer.enforce.dev:443", "name", byItself],
  ["ISSUER.enforce.dev", "name", byItself],
  ["a.example, issuer.enforce.dev , b.example", "name", byItself],
  ["10.0.0.0/8,.cluster.local,enforce.dev", "name", byItself],
  ["issuer.enforce.dev:8443", "name", byProxy, "another port"],
  ["force.dev", "name", byProxy, "not a part of a label"],
  [".issuer.enforce.dev", "name", byItself, "Go: only what is below it"],
  ["10.0.0.0/8", "name", byProxy, "names are not looked up for it"],
  ["{A}", "A", byItself],
  ["{A}:443", "A", byItself],
  ["10.0.0.0/8", "A", byItself],
  ["192.168.0.0/16, 10.{octet}.0.0/16", "A", byItself],
  ["192.168.0.0/16", "A", byProxy, "another subnet"],
  ["{AAAA}", "AAAA", byItself],
  ["2001:db8::/40", "AAAA", byItself],
  ["[{AAAA}]:443", "AAAA", byItself],
  ["fd99::/16", "AAAA", byProxy, "another subnet"],
];
const noProxy = NO_PROXY.map(([value, issuer, expect, note]): Row => ({
  group: "NO_PROXY",
  what: `\`${value.replace(/[{}]/g, "")}\`` +
    (issuer === "name" ? "" : `, issuer by ${issuer === "A" ? "IPv4" : "IPv6"} address`),
  flags: {
    proxy: "http://{proxy}",
    "no-proxy": value,
    ...issuer !== "name" && { issuer: `https://${issuer === "A" ? "{A}" : "[{AAAA}]"}` },
  },
  issuer: [issuer === "AAAA" ? "AAAA" : "A"],
  proxy: {},
  expect,
  note,
}));
noProxy.push({
  group: "NO_PROXY",
  what: "`no_proxy` in lower case, by hand",
  flags: { proxy: "http://{proxy}" },
  env: { no_proxy: "enforce.dev" },
  proxy: {},
  expect: { node: byItself, deno: byProxy },
  note: "Deno's flags hide it",
});

// ───── Certificate authorities ─────

const SERVERS = [["issuer", "Issuer's or proxy's CA"], ["api", "API server's CA"]] as const;
/** Neither DER nor base64; and a certificate whose end was lost. */
const garbled = "-----BEGIN CERTIFICATE-----\nMIIBroken\n-----END CERTIFICATE-----\n";
const cut = ({ others: [a] }: Trust) => a.replace(/[^\n]+\n(?=-----END)/, "");

type Authority = Omit<NonNullable<Row["ca"]>, "of">;
/** One expectation for both, or one for each. */
type Both = Row["expect"] | Record<"issuer" | "api", Row["expect"]>;

/** The runtimes' own doing: what NODE_EXTRA_CA_CERTS names is read by them. */
const IGNORED = fails(/Ignoring extra certs from/);
const BROKEN_BEFORE: Both = { issuer: IGNORED, api: { node: untrusted, deno: fails(/error/) } };
const BROKEN_AFTER: Both = {
  issuer: { node: works, deno: IGNORED },
  api: { node: works, deno: fails(/error/) },
};
const BROKEN_NOTE = "take it out";
const BROKEN = "known fault: Deno's program ends, and Node ignores what follows";

const CAS: [what: string, ca: Authority, expect?: Both, rest?: Rest][] = [
  ["the root", { file: ({ root }) => root }],
  ["the intermediate only", { file: ({ intermediate }) => intermediate, signer: "intermediate" }],
  [
    "the intermediate only, which is sent too",
    { file: ({ intermediate }) => intermediate, signer: "intermediate, sent" },
  ],
  [
    "the root, and the intermediate is sent",
    { file: ({ root }) => root, signer: "intermediate, sent" },
  ],
  [
    "the root, and the intermediate is not sent",
    { file: ({ root }) => root, signer: "intermediate" },
    untrusted,
    { note: "give it the intermediate too" },
  ],
  [
    "intermediate and root",
    { file: ({ root, intermediate }) => intermediate + root, signer: "intermediate" },
  ],
  ["several", { file: ({ root, others: [a, b] }) => a + root + b }],
  ["the first of two is no base64", { file: ({ root }) => garbled + root }, BROKEN_BEFORE],
  ["the last of two is no base64", { file: ({ root }) => root + garbled }, BROKEN_AFTER],
  ["the first of two is cut short", { file: (trust) => cut(trust) + trust.root }, BROKEN_BEFORE],
  ["the last of two is cut short", { file: (trust) => trust.root + cut(trust) }, BROKEN_AFTER],
  [
    "a byte order mark",
    { file: ({ root }) => `\ufeff${root}` },
    { issuer: { node: works, deno: untrusted }, api: works },
  ],
  ["CRLF", { file: ({ root, others: [a] }) => (a + root).replaceAll("\n", "\r\n") }],
  [
    "comments between",
    { file: ({ root, others: [a] }) => `# Corporate\n${a}\nsubject=CN = root\n${root}` },
  ],
  ["no line break at the end", { file: ({ root }) => root.trimEnd() }],
  ["another's", { file: ({ others: [a] }) => a }, untrusted],
  ["an empty file", { file: () => "" }, untrusted],
];
const authorities = SERVERS.flatMap(([of, group]) => [
  ...CAS.map(([what, ca, both = works, rest]): Row => {
    const expect = "issuer" in both ? both[of] : both;
    const isBroken = both === BROKEN_BEFORE || both === BROKEN_AFTER;
    const why = isBroken && (of === "api" ? { known: BROKEN } : { note: BROKEN_NOTE });
    return { group, what, ca: { of, ...ca }, expect, ...why, ...rest };
  }),
  {
    group,
    what: "replaced while it runs",
    rotates: of,
    expect: of === "api" ? works : untrusted,
    ...of === "issuer" && { note: "restart: it is read at the start" },
  } satisfies Row,
]);

// ───── Addresses ─────

const onDeno = { node: works, deno: needsRight };

const ADDRESSES: [what: string, addresses: Address[], expect?: Row["expect"], rest?: Rest][] = [
  ["IPv4 only", ["A"]],
  ["IPv6 only", ["AAAA"]],
  ["both", ["A", "AAAA"]],
  ["both, IPv6 is dead", ["AAAA dead", "A"]],
  ["both, IPv4 is dead", ["A dead", "AAAA"], onDeno, { known: SECOND_ADDRESS }],
  ["both, IPv6 refuses", ["AAAA refusing", "A"]],
  ["both, IPv4 refuses", ["A refusing", "AAAA"], onDeno, { known: SECOND_ADDRESS }],
  ["both, no route for IPv6", ["AAAA", "A"], works, { network: { hasNoIPv6Route: true } }],
  ["both, a kernel without IPv6", ["AAAA", "A"], works, { network: { hasNoIPv6: true } }],
  ["both, the first SYN is lost", ["A", "AAAA"], works, { network: { isSlow: true } }],
  ["both, IPv6 is dead, the first SYN is lost", ["AAAA dead", "A"], works, {
    network: { isSlow: true },
  }],
  // Deno begins with the last IPv4 address.
  ["several IPv4, the first is dead", ["A dead", "A"]],
  ["several IPv4, the first refuses", ["A refusing", "A"]],
  ["several IPv4, the last is dead", ["A", "A dead"], onDeno, { known: SECOND_ADDRESS }],
  ["several IPv4, the last refuses", ["A", "A refusing"], onDeno, { known: SECOND_ADDRESS }],
  ["several IPv6, the first is dead", ["AAAA dead", "AAAA"], onDeno, { known: SECOND_ADDRESS }],
  ["all dead", ["A dead", "AAAA dead"], { node: timesOut, deno: needsRight }, {
    known: SECOND_ADDRESS,
  }],
  ["all refuse", ["A refusing", "AAAA refusing"], {
    node: fails(/no response from the issuer at ISSUER_URL=[^ ]+: "/),
    deno: needsRight,
  }, { known: "known fault: the log gives no reason" }],
];
const byProxyTo = (expect: Row["expect"]): Row["expect"] =>
  expect === onDeno ? { ...onDeno, node: byProxy } : expect === works ? byProxy : expect;
const addresses = [
  ...ADDRESSES.map(([what, issuer, expect = works, rest]): Row => ({
    group: "Issuer by name",
    what,
    issuer,
    expect,
    ...rest,
  })),
  ...ADDRESSES.map(([what, at, expect = works, rest]): Row => ({
    group: "Proxy by name",
    what,
    flags: { proxy: "http://{proxy}" },
    proxy: { at },
    expect: byProxyTo(expect),
    ...rest,
  })),
];

const api: Row[] = [
  { group: "API server", what: "IPv4 address", expect: works },
  { group: "API server", what: "IPv6 address, `--ipv6`", flags: { ipv6: "true" }, expect: works },
  {
    group: "API server",
    what: "a kernel without IPv6",
    network: { hasNoIPv6: true },
    expect: works,
  },
  { group: "API server", what: "the first SYN is lost", network: { isSlow: true }, expect: works },
];

// ───── DNS, and what a Pod is given ─────

const dns: Row[] = [
  { group: "DNS", what: "the node's, no cluster domains (`dnsPolicy: Default`)", expect: works },
  {
    group: "DNS",
    what: "the node's, and the proxy is a Service",
    flags: { proxy: "http://proxy.tools:3128" },
    proxy: {},
    expect: fails(/ENOTFOUND/),
    note: "`--dns ClusterFirst`",
  },
  {
    group: "DNS",
    what: "the cluster's, and the proxy is a Service",
    flags: { proxy: "http://proxy.tools:3128", dns: "ClusterFirst" },
    proxy: {},
    dns: "cluster",
    expect: byProxy,
  },
  { group: "DNS", what: "the first of two servers is dead", dns: "first dead", expect: works },
  {
    group: "DNS",
    what: "it is dead",
    dns: "dead",
    expect: fails(/EAI_AGAIN|no response within 10 s/),
  },
  { group: "DNS", what: "it answers SERVFAIL", dns: "failing", expect: fails(/EAI_AGAIN/) },
  { group: "DNS", what: "the issuer's name is unknown", issuer: [], expect: fails(/ENOTFOUND/) },
];

const pods: Row[] = [
  {
    group: "Pod",
    what: "user 65532, nothing writable, no /etc/passwd",
    expect: works,
  },
  {
    group: "Pod",
    what: "a random user (OpenShift), group 0",
    flags: { openshift: "true" },
    pod: { uid: 1_000_680_000, gid: 0 },
    expect: works,
  },
  {
    group: "Pod",
    what: "neither HOME nor TMPDIR",
    pod: { hasNoHome: true },
    expect: {
      node: works,
      deno: fails(/Could not resolve global Deno cache directory/, { exits: 1 }),
    },
    note: "container runtimes set HOME",
  },
  { group: "Pod", what: "256 MiB of memory (cgroup)", pod: { memoryMiB: 256 }, expect: works },
];

export const ROWS: Row[] = [
  ...proxyPlaces,
  ...proxyCredentials,
  ...proxyVariables,
  ...brokenProxies,
  ...noProxy,
  ...authorities,
  ...addresses,
  ...api,
  ...dns,
  ...pods,
];
