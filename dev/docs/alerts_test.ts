import { assertEquals } from "@std/assert";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { parse } from "yaml";
import { isInstalled } from "../cluster/processes.ts";

// deno-lint-ignore no-explicit-any
type Json = any;

const ROOT = join(import.meta.dirname!, "../..");
const read = (name: string) => readFileSync(join(ROOT, name), "utf8");
const RULES = parse(read("docs/alerts/rules.yaml"));
const DASHBOARD = JSON.parse(read("docs/dashboard.json"));
const PREFIX = "pull_secret_updater_";
const hasPromtool = {
  skip: isInstalled("promtool") ? false : "promtool is not installed (Debian: prometheus)",
};

const rules: Json[] = RULES.groups.flatMap((group: Json) => group.rules);
const panelQueries: string[] = DASHBOARD.panels.flatMap((panel: Json) =>
  panel.targets.map(({ expr }: Json) => expr)
);

/** The names of the metrics as the program declares them, and the samples that each has. */
function samplesOfProgram(): Map<string, string[]> {
  const [, declared = ""] = /^const METRICS = \[\n(.*?)^\]/ms.exec(read("main.ts")) ?? [];
  const metrics = [...declared.matchAll(/\["(\w+)", "(\w+)"/g)].map(([, name, type]) => {
    const samples = type === "summary" ? [`${name}_sum`, `${name}_count`] : [name!];
    return [name!, samples] as const;
  });
  return new Map(metrics);
}

/** The samples of ours that queries name, without the prefix. */
function samplesIn(queries: string[]): Set<string> {
  return new Set(
    queries.flatMap((query) => query.match(/\bpull_secret_updater_\w+/g) ?? []).map((name) =>
      name.slice(PREFIX.length)
    ),
  );
}

test("Alerts and dashboard ask for samples that the program gives, and for no others", () => {
  const given = [...samplesOfProgram().values()].flat();
  const asked = samplesIn([...rules.map(({ expr }) => expr), ...panelQueries]);
  assertEquals([...asked].filter((name) => !given.includes(name)), []);
});

test("Each metric of the program is on the dashboard", () => {
  const asked = samplesIn(panelQueries);
  const missing = [...samplesOfProgram()].filter(([, samples]) =>
    !samples.some((name) => asked.has(name))
  );
  assertEquals(missing.map(([name]) => name), []);
});

test("Labels and their values in queries are those that the program gives", () => {
  const source = read("main.ts");
  const queries = [...rules.map(({ expr }) => expr), ...panelQueries].join("\n");
  for (const [, label, values = ""] of queries.matchAll(/(\w+)=~?"([^"]+)"/g)) {
    for (const value of values.split("|")) {
      const given = new RegExp(`\\b${label}="?.*\\b${value}\\b|\\b${value}: 0\\b`).test(source);
      assertEquals([label, value, given], [label, value, true]);
    }
  }
});

test("The PrometheusRule has the rules of the rule file", () => {
  const resource = parse(read("docs/alerts/prometheusrule.yaml"));
  assertEquals([resource.apiVersion, resource.kind], [
    "monitoring.coreos.com/v1",
    "PrometheusRule",
  ]);
  assertEquals(resource.spec, RULES);
});

test("Each alert has a test in which it fires, and one in which it does not", () => {
  const cases: Json[] = parse(read("docs/alerts/rules_test.yaml")).tests.flatMap((each: Json) =>
    each.alert_rule_test
  );
  const names = (fires: boolean) =>
    new Set(
      cases.filter(({ exp_alerts }) => Boolean(exp_alerts) === fires).map(({ alertname }) =>
        alertname
      ),
    );
  const alerts = new Set(rules.map(({ alert }) => alert));
  assertEquals([...names(true)].sort(), [...alerts].sort());
  assertEquals([...names(false)].sort(), [...alerts].sort());
});

test("promtool takes the rules, and their tests pass", hasPromtool, () => {
  execFileSync("promtool", ["check", "rules", "docs/alerts/rules.yaml"], {
    cwd: ROOT,
    stdio: "pipe",
  });
  execFileSync("promtool", ["test", "rules", "docs/alerts/rules_test.yaml"], {
    cwd: ROOT,
    stdio: "pipe",
  });
});
