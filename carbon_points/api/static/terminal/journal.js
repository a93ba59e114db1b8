// What the till remembers, in IndexedDB: every attempt before it is sent, its key, and what it was told of itself.
// Payment codes are never in it.

const NAME = "carbon-points-terminal";
const KEPT_MS = 60 * 86_400_000; // finished entries, longer than any batch stays open

export class Journal {
  static open() {
    return new Promise((resolve, reject) => {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => {
        request.result.createObjectStore("entries", { keyPath: "reference" });
        request.result.createObjectStore("known");
      };
      request.onsuccess = () => resolve(new Journal(request.result));
      request.onerror = () => reject(request.error);
    });
  }

  constructor(database) {
    this.database = database;
  }

  // Returns when it is on disk: only then may what it says be sent.
  write(entry) {
    return this.#change("entries", (store) => store.put(entry));
  }

  entries() {
    return this.#read("entries", (store) => store.getAll());
  }

  known(name) {
    return this.#read("known", (store) => store.get(name));
  }

  know(name, value) {
    return this.#change("known", (store) => store.put(value, name));
  }

  forget(name) {
    return this.#change("known", (store) => store.delete(name));
  }

  async prune(now) {
    for (const entry of await this.entries()) {
      if (entry.phase === "done" && entry.made_at < now - KEPT_MS) {
        await this.#change("entries", (store) => store.delete(entry.reference));
      }
    }
  }

  #read(name, ask) {
    return new Promise((resolve, reject) => {
      const request = ask(this.database.transaction(name).objectStore(name));
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  }

  #change(name, act) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(name, "readwrite", { durability: "strict" });
      act(transaction.objectStore(name));
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error);
    });
  }
}
