/** docs/environments.md, made from the rows. */
import type { Runtime } from "../program.ts";
import type { Outcome, Row } from "./rows.ts";

export function outcomeOn({ expect }: Row, runtime: Runtime): Outcome {
  return "works" in expect ? expect : expect[runtime];
}
