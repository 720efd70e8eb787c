/** What a controller exposes that has filled one Secret and met nothing else. */
import { VirtualWorld } from "../virtual/world.ts";
import { METRIC_PREFIX } from "../support/names.ts";
import { secret } from "../support/secrets.ts";

export interface Sample {
  /** Without the prefix. */
  name: string;
  labels: Record<string, string>;
}

export interface Exposition {
  text: string;
  /** The types of the metrics by their names, without the prefix. */
  types: Map<string, string>;
  samples: Sample[];
}

export async function expose(): Promise<Exposition> {
  const world = new VirtualWorld();
  world.cluster.create(secret("a"));
  const replica = world.start();
  await world.clock.advance(1_000);
  const text = replica.renderMetrics();
  replica.stop();
  const types = text.matchAll(new RegExp(`^# TYPE ${METRIC_PREFIX}(\\w+) (\\w+)$`, "gm"));
  return {
    text,
    types: new Map([...types].map(([, name = "", type = ""]) => [name, type])),
    samples: samplesIn(text),
  };
}

/** The series that stand in a text, each where a line, or a value in YAML, begins with it. */
export const samplesIn = (text: string): Sample[] =>
  [...text.matchAll(new RegExp(`^(?:.* )?${METRIC_PREFIX}(\\w+)(?:\\{(.*?)\\})?(?= |$)`, "gm"))]
    .filter(([line]) => !line.startsWith("#"))
    .map(([, name = "", labels = ""]) => ({
      name,
      labels: Object.fromEntries(
        [...labels.matchAll(/(\w+)="([^"]*)"/g)].map(([, label, value]) => [label, value]),
      ),
    }));
