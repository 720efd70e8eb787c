/** Label selectors: existence, equality and sets, as `labelSelector` has them. */
import { badRequest } from "./failure.ts";
import type { KubeObject } from "./store.ts";

type Labels = Record<string, string>;

/** Whether an object is selected. */
export type Selector = (object: KubeObject) => boolean;

const KEY = String.raw`(?:[a-z0-9.-]+/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?`;
const VALUE = String.raw`(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?)?`;
const REQUIREMENT = new RegExp(
  String.raw`^\s*(?:(?<not>!?)\s*(?<exists>${KEY})` +
    String.raw`|(?<key>${KEY})\s*(?<operator>==|=|!=)\s*(?<value>${VALUE})` +
    String.raw`|(?<setKey>${KEY})\s+(?<set>in|notin)\s*\((?<values>[^()]*)\))\s*(?:,|$)`,
);

/** Parses a selector; throws a 400 on what is none. */
export function parseSelector(text: string): Selector {
  const tests: ((labels: Labels) => boolean)[] = [];
  let rest = text;
  while (rest.trim() !== "") {
    const groups = REQUIREMENT.exec(rest)?.groups;
    if (!groups) throw badRequest(`unable to parse requirement: ${rest.trim()}`);
    tests.push(requirement(groups));
    rest = rest.replace(REQUIREMENT, "");
  }
  return ({ metadata: { labels = {} } }) => tests.every((test) => test(labels));
}

function requirement(groups: Record<string, string | undefined>): (labels: Labels) => boolean {
  const { not, exists, key, operator, value, setKey, set, values } = groups;
  if (exists) return (labels) => Object.hasOwn(labels, exists) === !not;
  if (key) {
    const equal = operator !== "!=";
    return (labels) => (Object.hasOwn(labels, key) && labels[key] === value) === equal;
  }
  const allowed = values!.split(",").map((item) => item.trim());
  const malformed = allowed.find((item) => !new RegExp(`^${VALUE}$`).test(item));
  if (malformed) throw badRequest(`unable to parse requirement: Invalid value: "${malformed}"`);
  const inside = set === "in";
  return (labels) =>
    (Object.hasOwn(labels, setKey!) && allowed.includes(labels[setKey!]!)) === inside;
}
