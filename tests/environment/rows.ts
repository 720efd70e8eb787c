/** The environments, what is expected in each, and what docs/environments.md says of it. */
import type { Settings } from "../../scripts/manifest_flags.ts";
import type { Runtime } from "../support/program.ts";
import type { ProxyOptions } from "../fake/proxy.ts";
import type { Network } from "./pod.ts";
import type { Trust } from "./trust.ts";

/** An address of a server's name, in the order in which DNS gives them. */
export type Address = `${"A" | "AAAA"}${"" | " dead" | " refusing"}`;

/** The Secret is filled; where there is a proxy, by it or without it. */
interface Success {
  works: true;
  by?: "proxy" | "itself";
}
/** It is not, and the log has one of these; `exits` if the program ends by itself, and how. */
interface Failure {
  works: false;
  log: string[];
  exits?: number;
}
export type Outcome = Success | Failure;
/** The same on both runtimes, or not. */
type Expect = Outcome | Record<Runtime, Outcome>;
type Server = "issuer" | "api";

interface Conditions {
  /** What the table adds. */
  note?: string;
  /** Flags of `npm run manifest`. Here as in `env`, {proxy}, {proxy A}, {A} and {octet} are the addresses of a run. */
  flags?: Settings;
  /** Variables that are set beside. */
  env?: Settings;
  /** Where the issuer's name leads. Default: to an address that works. */
  issuer?: Address[];
  /** A proxy; `untrusted`: its CA is not among those that the Pod is given. */
  proxy?: Pick<ProxyOptions, "mode" | "answer" | "times" | "user"> & {
    at?: Address[];
    tls?: boolean;
    untrusted?: boolean;
  };
  ca?: Authority & { of: Server };
  /** Once it has worked, this server and the Pod are given another CA. */
  rotates?: Server;
  network?: Network;
  dns?: "node" | "cluster" | "first dead" | "dead" | "failing";
  pod?: { uid?: number; gid?: number; hasNoHome?: boolean };
}

interface Authority {
  /** What the Pod is given of it. */
  file: (trust: Trust) => string;
  /** Default: the root. */
  signer?: "intermediate" | "intermediate, sent";
}

export interface Row extends Conditions {
  group: string;
  /** The environment, as the table has it. */
  what: string;
  expect: Expect;
}

type Short = [what: string, expect: Expect, conditions?: Conditions];

const rowsOf = (group: string, rows: Short[], common: Conditions = {}): Row[] =>
  rows.map(([what, expect, conditions]) => ({ group, what, expect, ...common, ...conditions }));

const works: Outcome = { works: true };
const byProxy: Outcome = { works: true, by: "proxy" };
const byItself: Outcome = { works: true, by: "itself" };
/** As the table quotes it: … stands for what differs. */
const fails = (...log: string[]): Failure => ({ works: false, log });
/** Bad configuration: one line, exit status 2. */
const refused: Outcome = { ...fails('HTTPS_PROXY="…": must be'), exits: 2 };
/** In the words of either runtime. */
const untrusted = fails("unable to … certificate");
const refuses = fails("ECONNREFUSED");
const timesOut = fails("Connect Timeout Error");
const unauthorized = fails("Proxy response (407) !== 200");
const hangs = fails("no response within 10 s");
const resolvesNot = fails("getaddrinfo ENOTFOUND");

// ───── Proxies ─────

const HTTP: Settings = { proxy: "http://{proxy}" };
const HTTPS: Settings = { proxy: "https://{proxy}" };

const proxyPlaces = ([["http", false], ["https", true]] as const).flatMap(([scheme, tls]) =>
  rowsOf("Proxy", [
    [`${scheme}, by name`, byProxy, { flags: { proxy: `${scheme}://{proxy}` }, proxy: { tls } }],
    [`${scheme}, by IPv4 address`, byProxy, {
      flags: { proxy: `${scheme}://{proxy A}` },
      proxy: { tls },
    }],
    [`${scheme}, by IPv6 address`, byProxy, {
      flags: { proxy: `${scheme}://{proxy AAAA}` },
      proxy: { tls, at: ["AAAA"] },
    }],
  ])
);

const withCredentials = (inUrl: string, user: string, note?: string): Conditions => ({
  env: { HTTPS_PROXY: `http://${inUrl}{proxy}` },
  proxy: { user },
  note,
});
const proxyUrls = rowsOf("Proxy", [
  ["user and password", byProxy, withCredentials("user:secret@", "user:secret")],
  [
    "a password that is %-encoded",
    byProxy,
    withCredentials("user:p%40ss%3A%2F%25@", "user:p@ss:/%"),
  ],
  ["a bare @ in the password", byProxy, withCredentials("user:p@ss@", "user:p@ss")],
  ["a user without a password", byProxy, withCredentials("user@", "user:")],
  ["a bare % in the password", refused, withCredentials("u:50%off@", "u:50%off", "write `%25`")],
  ["a bare # in the password", refused, withCredentials("u:p#ss@", "u:p#ss", "write `%23`")],
  ["a wrong password", unauthorized, withCredentials("user:wrong@", "user:secret")],
  ["no credentials where it wants some", unauthorized, withCredentials("", "user:secret")],
  ["a URL without a scheme", refused, { env: { HTTPS_PROXY: "{proxy}" } }],
  ["SOCKS (`socks5://`)", refused, { env: { HTTPS_PROXY: "socks5://{proxy}" } }],
  ["`https_proxy` differs from `HTTPS_PROXY`", byProxy, {
    env: { https_proxy: "http://{proxy A refusing}" },
    proxy: {},
    note: "the latter counts",
  }],
], { flags: HTTP });
const proxyVariables = rowsOf("Proxy", [
  ["`https_proxy` alone, set by hand", { node: byProxy, deno: byItself }, {
    env: { https_proxy: "http://{proxy}" },
    note: "Deno's flags hide it",
  }],
  ["`HTTP_PROXY` or `ALL_PROXY` alone", byItself, {
    env: { HTTP_PROXY: "http://{proxy}", ALL_PROXY: "http://{proxy}" },
    note: "not read",
  }],
], { proxy: {} });

const html = (status: string) =>
  `HTTP/1.1 ${status}\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n<html><h1>Blocked</h1></html>`;
const brokenProxies = rowsOf("Proxy", [
  ["it refuses the connection", fails("connect ECONNREFUSED"), { proxy: { at: ["A refusing"] } }],
  ["packets to it are dropped", timesOut, { proxy: { at: ["A dead"] } }],
  ["its name is unknown", resolvesNot, { proxy: { at: [] } }],
  ["it hangs on CONNECT", fails("Headers Timeout Error"), { proxy: { mode: "hang" } }],
  ["it hangs on the first CONNECT only", byProxy, { proxy: { mode: "hang", times: 1 } }],
  ["it answers 403 and HTML", fails("Proxy response (403) !== 200"), {
    proxy: { answer: html("403 Forbidden") },
  }],
  ["it answers 502", fails("Proxy response (502) !== 200"), { proxy: { mode: "refuse" } }],
  ["it answers 502 once", byProxy, { proxy: { mode: "refuse", times: 1 } }],
  ["it answers 200 and HTML", fails("wrong version number"), {
    proxy: { answer: html("200 OK") },
  }],
  ["it closes the connection", fails("Proxy Connection failed"), { proxy: { answer: "" } }],
  ["https, and its CA is not given", untrusted, {
    flags: HTTPS,
    proxy: { tls: true, untrusted: true },
  }],
  ["https in the URL, and it speaks http", timesOut, { flags: HTTPS, proxy: {} }],
], { flags: HTTP });

// ───── NO_PROXY ─────

/** For the table. */
const EXAMPLES: Settings = { A: "10.129.0.3", AAAA: "2001:db8:1::3", octet: "129" };
/** Go's forms. */
const noProxy = ([
  ["", HTTP, [
    ["issuer.enforce.dev", byItself],
    ["enforce.dev", byItself],
    [".enforce.dev", byItself],
    ["*.enforce.dev", byItself],
    ["*", byItself],
    ["issuer.enforce.dev:443", byItself],
    ["ISSUER.enforce.dev", byItself],
    ["a.example, issuer.enforce.dev , b.example", byItself],
    ["10.0.0.0/8,.cluster.local,enforce.dev", byItself],
    ["issuer.enforce.dev:8443", byProxy, "another port"],
    ["force.dev", byProxy, "no part of a label"],
    [".issuer.enforce.dev", byItself, "Go: only what is below it"],
    ["10.0.0.0/8", byProxy, "names are not looked up"],
  ]],
  [", the issuer by IPv4 address", { ...HTTP, issuer: "https://{A}" }, [
    ["{A}", byItself],
    ["{A}:443", byItself],
    ["10.0.0.0/8", byItself],
    ["192.168.0.0/16, 10.{octet}.0.0/16", byItself],
    ["192.168.0.0/16", byProxy, "another subnet"],
  ]],
  [", the issuer by IPv6 address", { ...HTTP, issuer: "https://[{AAAA}]" }, [
    ["{AAAA}", byItself],
    ["2001:db8::/40", byItself],
    ["[{AAAA}]:443", byItself],
    ["fd00::/8", byProxy, "another subnet"],
  ]],
] as [of: string, flags: Settings, [list: string, expect: Expect, note?: string][]][])
  .flatMap(([of, flags, lists]) =>
    rowsOf(
      `NO_PROXY${of}`,
      lists.map(([list, expect, note]) => [
        `\`${list.replace(/\{(.*?)\}/g, (_, name) => EXAMPLES[name]!)}\``,
        expect,
        { flags: { ...flags, "no-proxy": list }, note },
      ]),
      { proxy: {}, issuer: [of.includes("IPv6") ? "AAAA" : "A"] },
    )
  );
noProxy.push(...rowsOf("NO_PROXY", [
  ["`no_proxy` alone, set by hand", { node: byItself, deno: byProxy }, {
    flags: HTTP,
    env: { no_proxy: "enforce.dev" },
    proxy: {},
    note: "Deno's flags hide it",
  }],
]));

// ───── Certificate authorities ─────

/** Neither DER nor base64; and a certificate whose end was lost. */
const garbled = "-----BEGIN CERTIFICATE-----\nMIIBroken\n-----END CERTIFICATE-----\n";
const cut = ({ others: [a] }: Trust) => a.replace(/[^\n]+\n(?=-----END)/, "");

const CAS: [what: string, ca: Authority, expect?: Expect, note?: string][] = [
  ["the root", { file: ({ root }) => root }],
  ["the intermediate only", { file: ({ intermediate }) => intermediate, signer: "intermediate" }],
  ["the intermediate only, which is sent too", {
    file: ({ intermediate }) => intermediate,
    signer: "intermediate, sent",
  }],
  ["the root; the intermediate is sent", {
    file: ({ root }) => root,
    signer: "intermediate, sent",
  }],
  [
    "the root; the intermediate is not sent",
    { file: ({ root }) => root, signer: "intermediate" },
    untrusted,
    "add the intermediate",
  ],
  ["intermediate and root", {
    file: ({ root, intermediate }) => intermediate + root,
    signer: "intermediate",
  }],
  ["several", { file: ({ root, others: [a, b] }) => a + root + b }],
  ["CRLF", { file: ({ root, others: [a] }) => (a + root).replaceAll("\n", "\r\n") }],
  ["comments between", {
    file: ({ root, others: [a] }) => `# Corporate\n${a}\nsubject=CN = root\n${root}`,
  }],
  ["no line break at the end", { file: ({ root }) => root.trimEnd() }],
  ["another's", { file: ({ others: [a] }) => a }, untrusted],
];
const AUTHORITIES: Record<Server, string> = {
  issuer: "The issuer's or proxy's CA",
  api: "The API server's CA",
};
const authorities = (of: Server, rows: typeof CAS) =>
  rowsOf(
    AUTHORITIES[of],
    rows.map(([what, ca, expect = works, note]) => [what, expect, {
      ca: { of, ...ca },
      note,
    }]),
  );

const bom: Authority = { file: ({ root }) => `\ufeff${root}` };
const garbledFirst: Authority = { file: ({ root }) => garbled + root };
const garbledLast: Authority = { file: ({ root }) => root + garbled };
const cutFirst: Authority = { file: (trust) => cut(trust) + trust.root };
const cutLast: Authority = { file: (trust) => trust.root + cut(trust) };
/** The runtimes read this one, not we; either ends with what it cannot read. */
const ignored = fails("Ignoring extra certs from");
const issuerCas = [
  ...authorities("issuer", CAS),
  ...authorities("issuer", [
    ["an empty file", { file: () => "" }, untrusted],
    ["a byte order mark", bom, { node: works, deno: untrusted }, "Deno ignores the file"],
    ["the first of two is not base64", garbledFirst, ignored, "the runtime's doing"],
    ["the last of two is not base64", garbledLast, { node: works, deno: ignored }],
    ["the first of two is cut short", cutFirst, { node: ignored, deno: works }],
    ["the last of two is cut short", cutLast],
  ]),
  ...rowsOf(AUTHORITIES.issuer, [
    ["replaced while it runs", untrusted, { rotates: "issuer", note: "it takes a restart" }],
  ]),
];
const apiCas = [
  ...authorities("api", CAS),
  ...authorities("api", [["an empty file", { file: () => "" }, fails("ca.crt is empty")], [
    "a byte order mark",
    bom,
  ]]),
  ...authorities("api", [
    ["the first of two is not base64", garbledFirst],
    ["the last of two is not base64", garbledLast],
    ["the first of two is cut short", cutFirst],
    ["the last of two is cut short", cutLast],
  ]),
  ...rowsOf(AUTHORITIES.api, [["replaced while it runs", works, { rotates: "api" }]]),
];

// ───── Addresses ─────

const ONE_EACH = "of each family the first";
const notOnDeno = (log: Failure) => ({ node: works, deno: log });

const ADDRESSES: [what: string, addresses: Address[], expect?: Expect, rest?: Conditions][] = [
  ["IPv4 only", ["A"]],
  ["IPv6 only", ["AAAA"]],
  ["both", ["A", "AAAA"]],
  ["both, IPv6 is dead", ["AAAA dead", "A"]],
  ["both, IPv4 is dead", ["A dead", "AAAA"]],
  ["both, IPv6 refuses", ["AAAA refusing", "A"]],
  ["both, IPv4 refuses", ["A refusing", "AAAA"]],
  ["both, no route for IPv6", ["AAAA", "A"], works, { network: { hasNoIPv6Route: true } }],
  ["both, a kernel without IPv6", ["AAAA", "A"], works, { network: { hasNoIPv6: true } }],
  ["both, a connect takes a second", ["A", "AAAA"], works, { network: { isSlow: true } }],
  ["both, the same, and IPv6 is dead", ["AAAA dead", "A"], works, { network: { isSlow: true } }],
  // Deno begins with the last IPv4 address.
  ["several IPv4, the first is dead", ["A dead", "A"]],
  ["several IPv4, the first refuses", ["A refusing", "A"]],
  ["several IPv4, the last is dead", ["A", "A dead"], notOnDeno(timesOut), { note: ONE_EACH }],
  ["several IPv4, the last refuses", ["A", "A refusing"], notOnDeno(refuses), { note: ONE_EACH }],
  ["several IPv6, the first is dead", ["AAAA dead", "AAAA"], notOnDeno(timesOut), {
    note: ONE_EACH,
  }],
  ["all are dead", ["A dead", "AAAA dead"], { node: timesOut, deno: hangs }],
  ["all refuse", ["A refusing", "AAAA refusing"], refuses],
];
const issuerAddresses = rowsOf(
  "The issuer's name",
  ADDRESSES.map(([what, issuer, expect = works, rest]) => [what, expect, { issuer, ...rest }]),
);
const proxyAddresses = rowsOf(
  "The proxy's name",
  ADDRESSES.map(([what, at, expect = works, rest]) => [
    what,
    expect === works
      ? byProxy
      : "node" in expect && expect.node === works
      ? { ...expect, node: byProxy }
      : expect,
    { proxy: { at }, ...rest },
  ]),
  { flags: HTTP },
);
const apiAddresses = rowsOf("The API server's address", [
  ["IPv4", works],
  ["IPv6, with `--ipv6`", works, { flags: { ipv6: "true" } }],
  ["a kernel without IPv6", works, { network: { hasNoIPv6: true } }],
  ["a connect takes a second", works, { network: { isSlow: true } }],
]);

// ───── DNS, and what a Pod is given ─────

const SERVICE = { proxy: "http://proxy.tools:3128" };
const dns = rowsOf("DNS", [
  ["the node's (`dnsPolicy: Default`)", works],
  ["the node's, and the proxy is a Service", resolvesNot, {
    flags: SERVICE,
    note: "`--dns ClusterFirst`",
  }],
  ["the cluster's, and the proxy is a Service", byProxy, {
    flags: { ...SERVICE, dns: "ClusterFirst" },
    proxy: {},
    dns: "cluster",
  }],
  ["the first of two servers is dead", works, { dns: "first dead" }],
  ["it is dead", { node: timesOut, deno: hangs }, { dns: "dead" }],
  ["it answers SERVFAIL", fails("getaddrinfo EAI_AGAIN"), { dns: "failing" }],
  ["the issuer's name is unknown", resolvesNot, { issuer: [] }],
]);

const pods = rowsOf("The Pod", [
  ["user 65532, nothing writable, no /etc/passwd", works],
  ["a random user of group 0 (`--openshift`)", works, {
    flags: { openshift: "true" },
    pod: { uid: 1_000_680_000, gid: 0 },
  }],
  ["no HOME (runtimes set it) and no TMPDIR", {
    node: works,
    deno: { ...fails("Could not resolve global Deno cache directory"), exits: 1 },
  }, { pod: { hasNoHome: true } }],
]);

export const ROWS: Row[] = [
  ...proxyPlaces,
  ...proxyUrls,
  ...proxyVariables,
  ...brokenProxies,
  ...noProxy,
  ...issuerCas,
  ...apiCas,
  ...issuerAddresses,
  ...proxyAddresses,
  ...apiAddresses,
  ...dns,
  ...pods,
];
