/** Reads a Grafana dashboard. */

interface Variable {
  name: string;
  /** What matches all values, if they are a label's. */
  allValue?: string;
}

/** What Grafana puts in the place of its rate interval. */
const RATE_INTERVAL = "1m";

/** A query as Grafana sends it while all values of its variables are chosen. */
export function fillIn(expr: string, variables: Variable[]): string {
  return expr.replace(/\$(\w+)/g, (found, name) => {
    if (name === "__rate_interval") return RATE_INTERVAL;
    const value = variables.find((variable) => variable.name === name)?.allValue;
    if (value === undefined) throw new Error(`${found} is no variable that has a value for all`);
    return value;
  });
}
