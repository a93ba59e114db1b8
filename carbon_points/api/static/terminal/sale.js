// One attempt at a till, as a machine without clock, network or screen: what it does next, and what an answer makes
// of it. An attempt is a sale (paid, asked after, reversed) or a refund; each function gives a new entry.
//
//   paying ──answer──> done            paying ──nothing──> asking ──> done | paying again, once | reversing
//   paying, asking ──> confirming (the resident decides) ──> capturing | done | reversing
//   paying, asking ──> capturing (points are held) ──> done | asking
//   reversing ──> done, and never anything else: an approval that comes later is not listened to
//   refunding ──> done, by the same key until it is answered

export const TIMES = {
  beforeQuery: 5_000, //       no answer: wait, then ask what became of it
  poll: 4_000, //              while the resident is asked
  confirming: 60_000, //       and no longer than this
  beforeReversal: 15_000, //   a reversal comes no sooner after the call that pays
  again: [5_000, 10_000, 20_000, 40_000, 80_000], // between repeats of a reversal or a refund
  slowly: 300_000, //          then somebody is asked to look, and it goes on in its own time
};
export const REPEATS = TIMES.again.length + 1;
const HOLD_SECONDS = 300;
const PAYS = 2; // sends of a sale under its key, where the server is sure that the first never came
const CAPTURES = 3; // attempts to spend what is held, before it is given back

// -- beginnings --------------------------------------------------------------------------------------------------

// `what` is {points} or {offer, items, points, title}; `amount_fen` what the till thinks it is worth.
export function newSale({ reference, reversalKey, captureKey, what, amount_fen, batch }, now) {
  return {
    reference, reversal_key: reversalKey, capture_key: captureKey, kind: "sale", ...what, amount_fen, batch,
    phase: "paying", due: now, made_at: now, sent_at: null, pays: 0, captures: 0, tries: 0, turn: 0,
    redemption_id: null, captured_points: 0, captured_fen: 0, refunded_points: 0, refunded_fen: 0, outcome: null,
  };
}

export function newRefund({ reference, sale, points, batch }, now) {
  return {
    reference, kind: "refund", of: sale.reference, redemption_id: sale.redemption_id, points, batch, amount_fen: 0,
    phase: "refunding", due: now, made_at: now, tries: 0, turn: 0, outcome: null,
  };
}

// -- what is asked of it -------------------------------------------------------------------------------------------

// While one of these is there, no other sale may begin: nobody knows yet whether it took the points. Once its
// reversal was sent it can only come to nothing.
export function blocksSales(entry) {
  const notYet = entry.phase === "reversing" && entry.tries === 0 && !entry.captured_points;
  return notYet || ["paying", "asking", "confirming", "capturing"].includes(entry.phase);
}

export function isOpen(entry) {
  return entry.phase !== "done";
}

// Repeated so often that somebody should look at it.
export function isException(entry) {
  return isOpen(entry) && (entry.tries >= REPEATS || Boolean(entry.refused));
}

// Goods went over the counter and points were taken, and not all given back.
export function canBeUndone(entry) {
  return entry.kind === "sale" && entry.phase === "done" && entry.outcome.word === "paid" && !entry.refunded_points;
}

export function refundable(entry) {
  const paid = entry.kind === "sale" && entry.phase === "done" && entry.outcome.word === "paid";
  return paid ? entry.captured_points - entry.refunded_points : 0;
}

// What the terminal counts in a batch, as the server does: a sale that was reversed is a sale and a reversal.
export function totals(entries, batch) {
  const sums = { sales: newSum(), refunds: newSum(), reversals: newSum() };
  for (const entry of entries) {
    if (entry.phase !== "done") continue;
    if (entry.kind === "refund") {
      if (entry.outcome.word === "refunded" && entry.batch === batch) add(sums.refunds, entry.points, entry.amount_fen);
      continue;
    }
    if (!entry.captured_points) continue;
    if (entry.batch === batch) add(sums.sales, entry.captured_points, entry.captured_fen);
    if (entry.outcome.action === "refunded" && entry.ended_batch === batch) {
      add(sums.reversals, entry.captured_points, entry.captured_fen);
    }
  }
  return sums;
}

// Entries that count in the next batch, since the server closed this one without them: anew, with its number.
export function carriedOver(entries, { lines, batch, next }) {
  const told = new Set(lines.map((line) => `${line.kind} ${line.redemption_id}`));
  const missing = (kind, entry, of) => of === batch && !told.has(`${kind} ${entry.redemption_id}`);
  const carried = [];
  for (const entry of entries) {
    if (entry.phase !== "done") continue;
    const kind = entry.kind === "refund" ? "refund" : "sale";
    const [sale, end] = [missing(kind, entry, entry.batch), missing("reversal", entry, entry.ended_batch)];
    if (sale || end) {
      carried.push({ ...entry, batch: sale ? next : entry.batch, ended_batch: end ? next : entry.ended_batch });
    }
  }
  return carried;
}

function newSum() {
  return { count: 0, points: 0, fen: 0 };
}

function add(sum, points, fen) {
  sum.count += 1;
  sum.points += points;
  sum.fen += fen;
}

// Points of which a refund is a multiple: an offer goes back in whole items.
export function refundStep(entry) {
  return entry.offer ? entry.points / entry.items : 1;
}

// The call that is due: {method, path, key, content}. The code comes from outside and stays there.
export function callOf(entry, { merchant, terminal, code }) {
  const asked = `/v1/redemptions?reference=${encodeURIComponent(entry.reference)}`;
  switch (entry.phase) {
    case "paying": {
      const worth = entry.offer ? { offer: entry.offer, items: entry.items } : { points: entry.points };
      const content = { code, merchant, terminal, ...worth, hold_seconds: HOLD_SECONDS, capture: true };
      return { method: "POST", path: "/v1/redemptions", key: entry.reference, content };
    }
    case "asking":
    case "confirming":
      return { method: "GET", path: asked };
    case "capturing": {
      const path = `/v1/redemptions/${entry.redemption_id}/capture`;
      return { method: "POST", path, key: entry.capture_key, content: { points: entry.points } };
    }
    case "reversing": {
      const { reference, points, reason } = entry;
      const content = { reference, points, reason, repeat: entry.tries > 1 };
      return { method: "POST", path: "/v1/redemptions/reversal", key: entry.reversal_key, content };
    }
    case "refunding": {
      const path = `/v1/redemptions/${entry.redemption_id}/refunds`;
      return { method: "POST", path, key: entry.reference, content: { points: entry.points } };
    }
    default:
      throw new Error(`nothing is due of what is ${entry.phase}`);
  }
}

// -- what happens to it --------------------------------------------------------------------------------------------

// To be written down before the call is sent.
export function sending(entry, now) {
  const next = { ...entry, turn: entry.turn + 1 };
  if (entry.phase === "paying") return { ...next, pays: entry.pays + 1, sent_at: now };
  if (entry.phase === "capturing") return { ...next, captures: entry.captures + 1 };
  if (entry.phase === "reversing" || entry.phase === "refunding") return { ...next, tries: entry.tries + 1 };
  return next;
}

// After a reload: the code is gone with the page, and whether the call left is not known.
export function recovered(entry, now) {
  if (entry.phase !== "paying") return { ...entry, due: Math.min(entry.due, now + TIMES.slowly) };
  return { ...entry, phase: "asking", due: now, sent_at: entry.sent_at ?? now, turn: entry.turn + 1 };
}

// The cashier or the customer thinks better of it: of one that waits, or of one that is paid.
export function undone(entry, reason, now) {
  const reversal = { phase: "reversing", reason, due: now, tries: 0, outcome: null, turn: entry.turn + 1 };
  return { ...entry, ...reversal };
}

// What an answer makes of it. `codeIsThere`: the same call could be sent again.
export function answered(entry, answer, { now, codeIsThere = false }) {
  switch (entry.phase) {
    case "paying":
      return answer.answered ? afterPaying(entry, answer, now) : asking(entry, answer, now);
    case "asking":
    case "confirming":
      return afterAsking(entry, answer, { now, codeIsThere });
    case "capturing":
      return answer.answered && ok(answer) ? standing(entry, answer.body, now) : asking(entry, answer, now);
    case "reversing":
      return afterReversing(entry, answer, now);
    case "refunding":
      return afterRefunding(entry, answer, now);
    default:
      return entry;
  }
}

function afterPaying(entry, answer, now) {
  if (ok(answer)) return standing(entry, answer.body, now);
  // "The same, later" is no end: what became of it is asked first, as after silence.
  if (answer.body.retryable === "same-key") return asking(entry, answer, now);
  return done(entry, { word: "declined", code: answer.body.code, facts: answer.body.facts });
}

function afterAsking(entry, answer, { now, codeIsThere }) {
  const mayReverse = (entry.sent_at ?? 0) + TIMES.beforeReversal;
  if (answer.answered && ok(answer) && answer.body.status !== "none") return standing(entry, answer.body, now);
  const again = codeIsThere && entry.pays < PAYS && !entry.why;
  if (answer.answered && ok(answer) && again) return { ...entry, phase: "paying", due: now };
  const patient = entry.phase === "confirming" ? entry.confirming_until : mayReverse;
  if (answer.answered && ok(answer)) return reversing(entry, "timeout", Math.max(now, mayReverse));
  if (now < patient) return { ...entry, due: Math.min(now + TIMES.beforeQuery, Math.max(patient, now + 1)) };
  return reversing(entry, "timeout", now);
}

// What the server says of the redemption: it must be ours, and of our points.
function standing(entry, told, now) {
  if (told.status === "reversed") return done(entry, { word: "reversed", action: "none" });
  if (!told.redemption_id || told.points !== entry.points) {
    return reversing(entry, told.redemption_id ? "mismatch" : "invalid-response", mayReverseAt(entry, now));
  }
  const known = { ...entry, ...numbersOf(told, entry) };
  switch (told.status) {
    case "captured":
    case "partially_refunded":
    case "refunded":
      return done(known, { word: "paid" });
    case "held":
      if (entry.captures >= CAPTURES) return reversing(known, "timeout", mayReverseAt(entry, now));
      return { ...known, phase: "capturing", due: now };
    case "confirming": {
      const until = entry.confirming_until ?? now + TIMES.confirming;
      if (now >= until) return reversing(known, "timeout", now);
      return { ...known, phase: "confirming", confirming_until: until, due: now + TIMES.poll };
    }
    case "declined":
      return done(known, { word: "declined", code: told.declined_because ?? "not-taken" });
    case "voided":
    case "expired":
      return done(known, { word: "declined", code: told.status });
    default:
      return reversing(known, "invalid-response", mayReverseAt(entry, now));
  }
}

function afterReversing(entry, answer, now) {
  if (!answer.answered) return later(entry, answer, now);
  if (ok(answer) && answer.body.status === "reversed") {
    const { action, points, amount_fen } = answer.body;
    if (action !== "refunded") return done(entry, { word: "reversed", action });
    if (entry.captured_points) return done(entry, { word: "undone", action });
    // It had been paid after all: a sale and a reversal, to whoever counts.
    return done({ ...entry, captured_points: points, captured_fen: amount_fen }, { word: "reversed", action });
  }
  const { code, retryable, facts } = answer.body;
  const stands = code === "use-refund" ? "captured" : facts?.current_state;
  if (["captured", "partially_refunded", "refunded"].includes(stands)) return done(entry, { word: "paid", code });
  if (stands === "declined") return done(entry, { word: "declined", code: "not-taken" });
  if (["voided", "expired"].includes(stands)) return done(entry, { word: "declined", code: stands });
  if (stands === "reversed") return done(entry, { word: "reversed", action: "none" });
  const next = later(entry, answer, now);
  return retryable === "same-key" ? next : { ...next, refused: code ?? "invalid-response" };
}

function afterRefunding(entry, answer, now) {
  if (!answer.answered || answer.body.retryable === "same-key") return later(entry, answer, now);
  if (!ok(answer)) return done(entry, { word: "declined", code: answer.body.code });
  return done({ ...entry, amount_fen: answer.body.amount_fen ?? 0 }, { word: "refunded" });
}

// -- words of its own ------------------------------------------------------------------------------------------------

function ok(answer) {
  return answer.status < 300;
}

function done(entry, outcome) {
  return { ...entry, phase: "done", outcome, due: null, refused: undefined };
}

function asking(entry, answer, now) {
  const why = answer.body?.code; // what it asks to wait for, where it said so
  return { ...entry, phase: "asking", why, due: now + Math.max(TIMES.beforeQuery, answer.retryAfterMs ?? 0) };
}

function reversing(entry, reason, due) {
  return { ...entry, phase: "reversing", reason, due, tries: 0 };
}

function mayReverseAt(entry, now) {
  return Math.max(now, (entry.sent_at ?? now) + TIMES.beforeReversal);
}

function later(entry, answer, now) {
  const wait = TIMES.again[entry.tries - 1] ?? TIMES.slowly;
  return { ...entry, due: now + Math.max(wait, answer.retryAfterMs ?? 0) };
}

function numbersOf(told, entry) {
  const names = ["redemption_id", "amount_fen", "captured_points", "captured_fen", "refunded_points", "refunded_fen"];
  return Object.fromEntries(names.map((name) => [name, told[name] ?? entry[name]]));
}
