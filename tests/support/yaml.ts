/** The objects of a manifest. */
import { parseAllDocuments } from "yaml";
import type { Json } from "./json.ts";

export const objectsOf = (yaml: string): Json[] =>
  parseAllDocuments(yaml).map((document) => document.toJS());

/** The first of a kind. */
export const ofKind = (kind: string, yaml: string): Json =>
  objectsOf(yaml).find((object) => object.kind === kind);

export const podOf = (yaml: string): Json => ofKind("Deployment", yaml).spec.template.spec;
