// The till: drives every attempt by its own times, writes it down before each call, and tells who watches.

import * as machine from "./sale.js";
import { newReference } from "./reference.js";

const LONGEST_WAIT = machine.TIMES.slowly;

export class SaleUnresolved extends Error {}

export class Till extends EventTarget {
  #codes = new Map(); // reference -> payment code: in memory only, until the attempt is over
  #wake = new Map(); // reference -> what ends its wait

  constructor({ journal, network, identity }) {
    super();
    Object.assign(this, { journal, network, identity });
    this.owner = `${identity.merchant}/${identity.terminal}`; // a phone may become another terminal
    this.entries = new Map();
    this.batch = 1;
  }

  // Take up what was left unfinished, by this page or the one before it.
  async open() {
    await this.journal.prune(Date.now());
    this.batch = (await this.journal.known(`batch of ${this.owner}`)) ?? 1;
    this.closing = await this.journal.known(`closing of ${this.owner}`);
    for (const entry of await this.journal.entries()) {
      if (entry.owner !== this.owner) continue;
      this.entries.set(entry.reference, entry);
      if (machine.isOpen(entry)) {
        await this.#put(machine.recovered(entry, Date.now()));
        this.#drive(entry.reference);
      }
    }
  }

  get newestFirst() {
    return [...this.entries.values()].sort((a, b) => b.made_at - a.made_at);
  }

  get unresolved() {
    return this.newestFirst.filter(machine.isOpen);
  }

  get blocking() {
    return this.unresolved.find(machine.blocksSales);
  }

  // -- what a cashier does -----------------------------------------------------------------------------------------

  // `what` is {points} or {offer, items, points, title}. Raises SaleUnresolved while another is not known.
  async sell(what, amount_fen, code) {
    if (this.blocking || this.closing) throw new SaleUnresolved();
    const now = Date.now();
    const [reference, reversalKey, captureKey] = [newReference(now), newReference(now), newReference(now)];
    const made = { reference, reversalKey, captureKey, what, amount_fen, batch: this.batch };
    this.#codes.set(reference, code);
    return this.#begin(machine.newSale(made, now));
  }

  // Give all points of a sale back, or stop one that waits for the resident.
  async undo(reference) {
    const entry = this.entries.get(reference);
    if (!machine.canBeUndone(entry) && entry.phase !== "confirming") return; // pressed twice
    await this.#put(machine.undone(entry, "customer-cancel", Date.now()));
    if (machine.isOpen(entry)) this.#wake.get(reference)?.();
    else this.#drive(reference);
  }

  // The reference of the refund: of the one that is on its way already, where there is one of this sale.
  async refund(sale, points) {
    const under = this.unresolved.find((entry) => entry.of === sale.reference);
    if (under) return under.reference;
    const now = Date.now();
    return this.#begin(machine.newRefund({ reference: newReference(now), sale, points, batch: this.batch }, now));
  }

  get totals() {
    return machine.totals(this.entries.values(), this.batch);
  }

  // What the server says of our totals: {answered, status, body}. Until it has said so the same question goes by the
  // same key, and nothing else begins: what is sold meanwhile would be of a batch that nobody knows.
  // `totals`: the server's, where somebody has compared them and takes them for right.
  async closeBatch(totals = this.totals) {
    this.closing ??= { batch: this.batch, totals, key: newReference(Date.now()) };
    const { batch, key } = this.closing;
    await this.journal.know(`closing of ${this.owner}`, this.closing);
    const answer = await this.network.post(`${this.#batches()}/${batch}/close`, key, this.closing.totals);
    if (!answer.answered || answer.body.retryable === "same-key") return { ...answer, answered: false };
    const { answer: word, lines = [], next_batch: next, facts } = answer.body;
    if (word === "agreed") await this.#inBatch(next);
    if (word === "not-agreed" && next) await this.#carryOver({ lines, batch, next });
    if (facts?.open_batch) await this.#inBatch(facts.open_batch);
    this.closing = undefined;
    await this.journal.forget(`closing of ${this.owner}`);
    return answer;
  }

  // A phone that is new to its terminal asks which batch that is in.
  async learnBatch() {
    if (this.entries.size || (await this.journal.known(`batch of ${this.owner}`))) return;
    const found = await this.network.get(`${this.#batches()}?limit=1`);
    if (!found.answered || found.status >= 300) return;
    const [newest] = found.body.data;
    if (newest) await this.#inBatch(newest.status === "open" ? newest.batch : newest.batch + 1);
  }

  #batches() {
    const { merchant, terminal } = this.identity;
    return `/v1/merchants/${encodeURIComponent(merchant)}/terminals/${encodeURIComponent(terminal)}/batches`;
  }

  async #inBatch(batch) {
    await this.journal.know(`batch of ${this.owner}`, batch);
    this.batch = batch;
  }

  async #carryOver({ lines, batch, next }) {
    await this.#inBatch(next);
    for (const entry of machine.carriedOver(this.entries.values(), { lines, batch, next })) await this.#put(entry);
  }

  // Whoever waits to repeat does so now: the network is back, or somebody asked for it.
  hurry() {
    for (const entry of this.unresolved) {
      if (!["reversing", "refunding"].includes(entry.phase)) continue;
      const soonest = (entry.sent_at ?? 0) + machine.TIMES.beforeReversal;
      this.entries.set(entry.reference, { ...entry, due: Math.min(entry.due, Math.max(Date.now(), soonest)) });
      this.#wake.get(entry.reference)?.();
    }
  }

  // -- driving -------------------------------------------------------------------------------------------------------

  async #begin(entry) {
    await this.#put({ ...entry, owner: this.owner });
    this.#drive(entry.reference);
    return entry.reference;
  }

  async #drive(reference) {
    while (machine.isOpen(this.entries.get(reference))) {
      try {
        await this.#dueTime(reference);
        if (machine.isOpen(this.entries.get(reference))) await this.#turn(reference);
      } catch (error) {
        // Nothing can be written down here, so nothing is sent. It is said, and tried again.
        this.dispatchEvent(new CustomEvent("broken", { detail: error }));
        await new Promise((resolve) => setTimeout(resolve, machine.TIMES.beforeQuery));
      }
    }
    this.#codes.delete(reference);
  }

  // One call and what its answer makes of the attempt.
  async #turn(reference) {
    const sent = await this.#put(machine.sending(this.entries.get(reference), Date.now()));
    const { method, path, key, content } = machine.callOf(sent, { ...this.identity, code: this.#codes.get(reference) });
    const answer = await (method === "GET" ? this.network.get(path) : this.network.post(path, key, content));
    const current = this.entries.get(reference);
    if (current.turn !== sent.turn) return; // decided otherwise meanwhile: this answer comes too late
    const codeIsThere = this.#codes.has(reference);
    let next = machine.answered(current, answer, { now: Date.now(), codeIsThere });
    if (!machine.isOpen(next)) next = this.#counted(current, next);
    await this.#put(next);
    if (next.kind === "refund" && next.outcome?.word === "refunded") await this.#refunded(next);
  }

  // In the batch that is open now: of a sale, once when it is paid, and once more when it is undone.
  #counted(before, after) {
    const counted = before.captured_points && before.kind === "sale" ? before.batch : this.batch;
    return { ...after, batch: counted, ended_batch: this.batch };
  }

  async #dueTime(reference) {
    for (let woken = true; woken; ) {
      const { due } = this.entries.get(reference);
      const wait = Math.min(due - Date.now(), LONGEST_WAIT); // also where the phone's clock was set back
      if (wait <= 0) return;
      woken = await new Promise((resolve) => {
        const timer = setTimeout(resolve, wait, false);
        this.#wake.set(reference, () => { clearTimeout(timer); resolve(true); });
      });
      this.#wake.delete(reference);
    }
  }

  async #refunded(refund) {
    const sale = this.entries.get(refund.of);
    const refunded_points = sale.refunded_points + refund.points;
    await this.#put({ ...sale, refunded_points, refunded_fen: sale.refunded_fen + refund.amount_fen });
  }

  // Written first, believed after.
  async #put(entry) {
    await this.journal.write(entry);
    this.entries.set(entry.reference, entry);
    this.dispatchEvent(new CustomEvent("changed", { detail: entry }));
    return entry;
  }
}
