// Who this terminal is: an Ed25519 key that the browser made and gives to nobody, kept in IndexedDB, and the name
// that the server gave it for a one-time activation code.

import { Network } from "./network.js";
import { newReference } from "./reference.js";
import { base64, signatureHeaders } from "./signature.js";

const ALGORITHM = { name: "Ed25519" };

// What this browser lacks, by name; empty where it can be a terminal.
export async function missing() {
  if (!globalThis.isSecureContext || !crypto.subtle) return ["secure-context"];
  if (!globalThis.indexedDB || !navigator.locks) return ["storage"];
  try {
    await crypto.subtle.generateKey(ALGORITHM, false, ["sign", "verify"]);
    return [];
  } catch {
    return ["ed25519"];
  }
}

export class Identity {
  static async load(journal) {
    return new Identity(journal, await journal.known("identity"));
  }

  constructor(journal, known) {
    this.journal = journal;
    this.known = known; // undefined until it is activated
  }

  get active() {
    return Boolean(this.known);
  }

  // Exchange a code for a name. The key is kept before the call: after a lost answer the same one is sent again.
  async activate(code, origin) {
    const pair = await this.#pending();
    const proof = await this.#proof("carbon-points-activation", code, pair);
    const anonymous = new Network({ origin, sign: async () => ({}) });
    const asked = Date.now();
    const content = { activation_code: code, public_key: pair.public, proof };
    const answer = await anonymous.post("/v1/terminals/activation", newReference(asked), content);
    if (answer.answered && answer.status < 300) {
      const { key_id, merchant, terminal, server_time } = answer.body;
      const aheadMs = Date.parse(server_time) - (asked + Date.now()) / 2;
      await this.#become({ keyId: key_id, key: pair.keys.privateKey, merchant, terminal, aheadMs });
      await this.journal.forget("pending key");
    }
    return answer;
  }

  // A new key in place of this one, which signs for it a last time.
  async rotate(network) {
    const pair = await this.#pending();
    const proof = await this.#proof("carbon-points-rotation", this.known.keyId, pair);
    const content = { public_key: pair.public, proof };
    const answer = await network.post("/v1/terminals/keys", newReference(Date.now()), content);
    if (answer.answered && answer.status < 300) {
      await this.#become({ ...this.known, keyId: answer.body.key_id, key: pair.keys.privateKey });
      await this.journal.forget("pending key");
    }
    return answer;
  }

  // The headers that prove a call to be this terminal's.
  sign(request) {
    const { keyId, key, aheadMs } = this.known;
    const sign = (bytes) => crypto.subtle.sign(ALGORITHM, key, bytes);
    const created = Math.floor((Date.now() + aheadMs) / 1000); // the phone's own clock may be wrong
    const nonce = base64(crypto.getRandomValues(new Uint8Array(18)));
    return signatureHeaders(request, { keyId, sign, created, nonce });
  }

  async clockIsWrong(theirs) {
    await this.#become({ ...this.known, aheadMs: theirs - Date.now() });
  }

  async #become(known) {
    this.known = known;
    await this.journal.know("identity", known);
  }

  async #pending() {
    const kept = await this.journal.known("pending key");
    if (kept) return kept;
    const keys = await crypto.subtle.generateKey(ALGORITHM, false, ["sign", "verify"]);
    const pair = { keys, public: base64(await crypto.subtle.exportKey("raw", keys.publicKey)) };
    await this.journal.know("pending key", pair);
    return pair;
  }

  async #proof(purpose, about, pair) {
    const told = new TextEncoder().encode(`${purpose}\n${about}\n${pair.public}`);
    return base64(await crypto.subtle.sign(ALGORITHM, pair.keys.privateKey, told));
  }
}
