/** Objects in memory with one global resource version and the history that watches replay. */

/** A Kubernetes object as it goes over the wire. */
export interface KubeObject {
  apiVersion?: string;
  kind?: string;
  metadata: ObjectMeta;
  [field: string]: unknown;
}

export interface ObjectMeta {
  name: string;
  generateName?: string;
  namespace?: string;
  uid: string;
  resourceVersion: string;
  creationTimestamp: string;
  deletionTimestamp?: string;
  deletionGracePeriodSeconds?: number;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  ownerReferences?: unknown[];
  finalizers?: string[];
}

/** One write: `previous` is unset for a new object, `object` for one that is gone. */
export interface Change {
  resource: string;
  version: number;
  object?: KubeObject;
  previous?: KubeObject;
}

/** How many changes a watch can go back. */
const HISTORY = 10_000;

export class Store {
  /** The resource version of the last write. It starts high, so that ancient ones are expired. */
  version = 1000;
  /** The oldest resource version that a watch can begin at. */
  oldest = this.version;
  #history: Change[] = [];
  #objects = new Map<string, Map<string, KubeObject>>();
  #subscribers = new Set<(change: Change) => void>();

  get(resource: string, namespace: string, name: string): KubeObject | undefined {
    return this.#objects.get(resource)?.get(`${namespace}/${name}`);
  }

  /** All of a resource, or of one namespace of it, in the order of etcd's keys. */
  list(resource: string, namespace = ""): KubeObject[] {
    const prefix = namespace && `${namespace}/`;
    return [...this.#objects.get(resource) ?? []]
      .filter(([key]) => key.startsWith(prefix))
      .sort(([a], [b]) => a < b ? -1 : 1)
      .map(([, object]) => object);
  }

  /** Stores a new or a changed object and gives it the next resource version. */
  put(resource: string, object: KubeObject): KubeObject {
    const { namespace = "", name } = object.metadata;
    const previous = this.get(resource, namespace, name);
    const stored = {
      ...object,
      metadata: { ...object.metadata, resourceVersion: String(this.version + 1) },
    };
    if (!this.#objects.has(resource)) this.#objects.set(resource, new Map());
    this.#objects.get(resource)!.set(`${namespace}/${name}`, stored);
    this.#record({ resource, version: this.version + 1, object: stored, previous });
    return stored;
  }

  delete(resource: string, namespace: string, name: string): void {
    const previous = this.get(resource, namespace, name);
    if (!previous) return;
    this.#objects.get(resource)!.delete(`${namespace}/${name}`);
    this.#record({ resource, version: this.version + 1, previous });
  }

  /** The changes after a version; undefined if they are no longer known. */
  since(version: number): Change[] | undefined {
    if (version < this.oldest) return undefined;
    return this.#history.filter((change) => change.version > version);
  }

  /** Calls `subscriber` with each change from now on; returns how to stop it. */
  subscribe(subscriber: (change: Change) => void): () => void {
    this.#subscribers.add(subscriber);
    return () => void this.#subscribers.delete(subscriber);
  }

  /** Forgets the history, as compaction does. */
  forget(): void {
    this.oldest = this.version;
    this.#history = [];
  }

  #record(change: Change): void {
    this.version = change.version;
    this.#history.push(change);
    if (this.#history.length > HISTORY) this.oldest = this.#history.shift()!.version;
    for (const subscriber of [...this.#subscribers]) subscriber(change);
  }
}
