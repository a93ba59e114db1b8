// What is shown, screen by screen: elements out of the page's state. Whatever is pressed calls back into `page`.

import { h, icon } from "./elements.js";
import { blocksSales, canBeUndone, isException, isOpen, refundable, refundStep } from "./sale.js";
import { clock, points, problem, t, yuan } from "./words.js";

export const MOST_DIGITS = 7;
const EARLIER = 100; // sales of closed batches that can be looked up

export function unfit(page) {
  const reasons = page.state.lacking.map((name) => h("p", {}, t(`unfit-${name}`)));
  return [h("section", { class: "card" }, h("h2", {}, t("unfitTitle")), ...reasons)];
}

export function otherTab() {
  return [h("section", { class: "card" }, h("p", {}, t("otherTab")))];
}

export function activate(page) {
  const { failed, waiting } = page.state;
  const code = h("input", {
    id: "activation", class: "field", autocomplete: "off", inputmode: "numeric", spellcheck: "false",
    enterkeyhint: "go", required: true, "aria-describedby": "activation-how",
  });
  const submit = (event) => {
    event.preventDefault();
    if (code.value.trim()) page.activate(code.value.trim());
  };
  return [
    h("h2", {}, t("activateTitle")),
    h("p", { id: "activation-how", class: "quiet" }, t("activateHow")),
    h("form", { onsubmit: submit, class: "card" },
      h("label", { for: "activation" }, t("activationCode")), code,
      failed && failure(failed)),
    h("button", { class: "main push", onclick: submit, disabled: waiting }, t(waiting ? "activating" : "activate")),
  ];
}

// -- taking points ---------------------------------------------------------------------------------------------------

export function take(page) {
  const { digits, note } = page.state;
  const wanted = Number(digits || 0);
  return [
    amount(wanted, wanted ? worth(page, wanted) : note ?? t("howMuch")),
    keypad(page),
    primary(page, { text: t("scan"), picture: "scan", off: !wanted, press: () => page.scan() }),
  ];
}

export function offers(page) {
  if (!page.offers) return [h("p", { class: "card quiet" }, t("offersUnknown"))];
  if (!page.offers.length) return [h("p", { class: "card quiet" }, t("offersNone"))];
  const row = (offer) => {
    const { title, stock, open } = offer;
    const said = stock === 0 ? t("soldOut") : !open ? t("notOpen") : stock === null ? null : t("left", { n: stock });
    return h("li", {},
      h("button", { disabled: !open || !page.reachable, onclick: () => page.choose(offer) },
        h("span", { class: "what" }, h("b", {}, title), said && h("span", {}, said)),
        h("span", { class: "sum" }, t("nPoints", { n: points(offer.points) }), h("span", {}, yuan(offer.amount_fen)))));
  };
  return [h("ul", { class: "rows card" }, ...page.offers.map(row))];
}

// The video stays the same element for as long as the screen is shown.
export function scan(page) {
  const { what } = page.state;
  const typed = h("input", {
    id: "typed", inputmode: "numeric", autocomplete: "off", maxlength: "24", enterkeyhint: "go",
    placeholder: t("scanType"), "aria-label": t("scanType"),
  });
  const submit = (event) => {
    event.preventDefault();
    page.scanned(typed.value);
  };
  return [
    h("p", { class: "due" }, t("nPoints", { n: points(what.points) }),
      h("small", {}, what.title ?? yuan(page.fenOf(what)))),
    h("section", { class: "camera" },
      h("video", { id: "camera", muted: true, playsinline: true, "aria-hidden": "true" }),
      h("div", { class: "frame" }), h("p", { id: "camera-says" }, t("scanHow"))),
    h("form", { class: "typed", onsubmit: submit }, typed, h("button", {}, t("confirm"))),
    h("p", { id: "scan-wrong", class: "error", role: "alert", hidden: true }, t("scanWrong")),
    button("other", t("cancel"), () => page.go("take")),
  ];
}

// -- how it went -----------------------------------------------------------------------------------------------------

export function attempt(page) {
  const entry = page.till.entries.get(page.state.reference);
  if (!isOpen(entry)) return outcome(page, entry);
  const { reference, phase } = entry;
  const goesOn = ["reversing", "refunding"].includes(phase) && !blocksSales(entry);
  const stage = phase === "reversing" && entry.captured_points ? "undoing" : phase;
  const usual = stage === "reversing" && goesOn ? "reversingNext" : "dontRepeat";
  const why = entry.refused && problem(entry.refused).what;
  const next = t(isException(entry) ? "exceptionNext" : usual);
  return [
    result("pending", t("pending"), { sum: sumOf(entry.points, entry.amount_fen), said: [t(stage), why], next }),
    phase === "confirming" && button("other", t("cancel"), () => page.till.undo(reference)),
    goesOn && button("other", t("goOn"), () => page.fresh()),
  ];
}

function outcome(page, entry) {
  const { word, code } = entry.outcome;
  const onwards = (text) => button("main", t(text), () => page.fresh());
  if (word === "reversed") {
    const { what, next } = entry.why ? problem(entry.why) : { what: t("reversedWhat"), next: t("reversedNext") };
    return [result("failed", t("failure"), { said: [t("reversedDone"), what], next }), onwards("again")];
  }
  if (code) return [refusal(code), onwards(word === "declined" && entry.kind === "sale" ? "again" : "next")];
  const refund = entry.kind === "refund";
  const sum = refund ? sumOf(entry.points, entry.amount_fen) : sumOf(entry.captured_points, entry.captured_fen);
  const said = { paid: entry.title ?? t("paidTaken"), undone: t("undoneDone"), refunded: t("refundedDone") }[word];
  return [result("paid", t("success"), { sum, said: [said] }), onwards("next")];
}

function refusal(code) {
  const { what, next } = problem(code);
  return result("failed", t("failure"), { said: [what], next });
}

function result(kind, word, { sum, said, next }) {
  return h("section", { class: `result ${kind}`, role: kind === "pending" ? "status" : "alert" },
    icon(kind), h("h2", {}, word), sum, ...said.filter(Boolean).map((text) => h("p", {}, text)),
    next && h("p", { class: "next" }, next));
}

function sumOf(count, fen) {
  return h("p", { class: "sum" }, t("nPoints", { n: points(count) }), fen ? h("small", {}, yuan(fen)) : null);
}

// -- what was sold ---------------------------------------------------------------------------------------------------

export function book(page) {
  const { till } = page;
  const sums = till.totals;
  const line = (name, sum) => h("tr", {}, h("th", { scope: "row" }, t(name)), h("td", {}, t("count", { n: sum.count })),
    h("td", {}, t("nPoints", { n: points(sum.points) })), h("td", {}, yuan(sum.fen)));
  const unresolved = till.unresolved;
  const settled = till.newestFirst.filter((e) => !isOpen(e));
  const ofBatch = settled.filter((e) => e.batch === till.batch);
  const earlier = settled.filter((e) => e.batch !== till.batch).slice(0, EARLIER);
  return [
    h("section", { class: "card" }, h("h2", { class: "section" }, t("batchN", { n: till.batch })),
      h("table", {}, h("tbody", {}, ...["sales", "refunds", "reversals"].map((name) => line(name, sums[name]))))),
    unresolved.length > 0 && h("p", { class: "quiet" }, t("closeUnresolved")),
    till.closing && !page.state.waiting && h("p", { class: "error" }, t("closeUnknown")),
    primary(page, {
      text: t(page.state.waiting ? "closing" : "closeBatch"), off: unresolved.length > 0 || page.state.waiting,
      press: () => page.closeBatch(),
    }),
    unresolved.length > 0 && h("section", { class: "card" },
      h("h2", { class: "section" }, `${t("unresolved")} ${unresolved.length}`),
      h("p", { class: "quiet" }, t("unresolvedHow")), list(page, unresolved),
      button("other", t("tryNow"), () => till.hurry())),
    h("section", { class: "card" }, h("h2", { class: "section" }, t("salesList")),
      ofBatch.length ? list(page, ofBatch) : h("p", { class: "quiet" }, t("nothingYet"))),
    earlier.length > 0 && h("section", { class: "card" },
      h("h2", { class: "section" }, t("earlier")), list(page, earlier)),
  ];
}

function list(page, entries) {
  return h("ul", { class: "rows" }, ...entries.map((entry) =>
    h("li", {}, h("button", { onclick: () => page.go("entry", { reference: entry.reference }) },
      h("span", { class: "what" }, h("b", {}, entry.title ?? t(entry.kind)), h("span", {}, clock(entry.made_at))),
      h("span", { class: "sum" }, t("nPoints", { n: points(entry.points) }), tag(entry))))));
}

function tag(entry) {
  if (isOpen(entry)) return h("span", { class: "tag pending" }, t("pending"));
  const { word } = entry.outcome;
  const kind = { paid: "paid", refunded: "paid", declined: "failed" }[word] ?? "";
  return h("span", { class: `tag ${kind}` }, t(`done-${word}`));
}

export function entry(page) {
  const entry = page.till.entries.get(page.state.reference);
  const { reference, title } = entry;
  const left = refundable(entry);
  const undoable = canBeUndone(entry) && entry.batch === page.till.batch; // later it can only be refunded
  const why = entry.outcome?.code ?? entry.refused;
  const disabled = !page.reachable || Boolean(page.till.closing);
  const digits = entry.offer ? String(left) : ""; // whole, unless somebody types another number
  const facts = [["state", tag(entry)], ["time", clock(entry.made_at)], ["number", reference]];
  return [
    h("section", { class: "card" },
      h("p", { class: "due" }, t("nPoints", { n: points(entry.points) }),
        h("small", {}, yuan(entry.captured_fen || entry.amount_fen))),
      table(title ? [["offers", title], ...facts] : facts),
      entry.refunded_points > 0 && h("p", {}, t("refundedN", { n: points(entry.refunded_points) })),
      why && failure(why), isException(entry) && h("p", { class: "error" }, t("exceptionNext"))),
    isOpen(entry) && button("other", t("tryNow"), () => page.till.hurry()),
    left > 0 && button("main push", t(entry.offer ? "refundItem" : "refundPart"),
      () => page.go("refund", { reference, digits }), disabled),
    undoable && button("other danger", t("undo"), () => page.go("undo", { reference }), disabled),
  ];
}

export function undo(page) {
  const entry = page.till.entries.get(page.state.reference);
  return [
    amount(entry.captured_points, t("undoSure", { n: points(entry.captured_points) })),
    primary(page, { text: t("undo"), press: () => page.undo(entry), kind: "main failed push" }),
    button("other", t("back"), () => page.go("entry", { reference: entry.reference })),
  ];
}

export function refund(page) {
  const entry = page.till.entries.get(page.state.reference);
  const wanted = Number(page.state.digits || 0);
  const most = refundable(entry);
  const off = !wanted || wanted > most || wanted % refundStep(entry) !== 0;
  return [
    amount(wanted, t("refundHow", { n: points(most) })),
    keypad(page),
    primary(page, { text: t("refundNow"), off, press: () => page.refund(entry, wanted) }),
  ];
}

export function closed(page) {
  const { answer, batch, mine } = page.state.closing;
  const home = button("main", t("confirm"), () => page.go("book"));
  if (!answer.answered) return [result("pending", t("cannot-confirm"), { said: [t("closeUnknown")] }), home];
  if (answer.status >= 300) return [refusal(answer.body.code), home];
  const told = answer.body;
  const owed = (unit) => mine.sales[unit] - mine.refunds[unit] - mine.reversals[unit];
  switch (told.answer) {
    case "agreed": {
      const sum = sumOf(owed("points"), owed("fen"));
      return [result("paid", t("agreed"), { sum, said: [t("agreedWhat", { n: batch })] }), home];
    }
    case "not-agreed": {
      const next = told.next_batch;
      const carried = [t("carried", { n: next })];
      if (next) return [result("pending", t("closedBefore", { n: batch }), { said: carried }), home];
      return [result("failed", t("not-agreed"), { said: [t("notAgreedWhat")] }), difference(mine, told.totals),
        strangers(page, told.lines ?? []), home,
        button("other danger", t("closeTheirs"), () => page.closeBatch(told.totals))];
    }
    default:
      return [result("pending", t("cannot-confirm"), { said: [t("cannotConfirmWhat")] }), home];
  }
}

function difference(mine, theirs) {
  const cell = (sum) => h("td", {}, `${sum.count} / ${points(sum.points)}`);
  const row = (name) => h("tr", {}, h("th", { scope: "row" }, t(name)), cell(mine[name]), cell(theirs[name]));
  return h("section", { class: "card" }, h("table", {},
    h("thead", {}, h("tr", {}, h("th", {}), h("td", {}, t("mine")), h("td", {}, t("theirs")))),
    h("tbody", {}, ...["sales", "refunds", "reversals"].map(row))));
}

// Sales that only one side has.
function strangers(page, lines) {
  const { batch, newestFirst } = page.till;
  const ours = newestFirst.filter((e) => e.kind === "sale" && e.captured_points && e.batch === batch);
  const known = new Set(ours.map((e) => e.redemption_id));
  const sales = lines.filter((line) => line.kind === "sale");
  const told = new Set(sales.map((line) => line.redemption_id));
  const row = (said, id, count) => h("li", {}, h("b", {}, t(said)), ` ${t("nPoints", { n: points(count) })} `,
    h("span", { class: "quiet" }, id));
  const theirs = sales.filter((line) => !known.has(line.redemption_id));
  const only = ours.filter((e) => !told.has(e.redemption_id));
  const rows = [
    ...theirs.map((line) => row("onlyServer", line.redemption_id, line.points)),
    ...only.map((e) => row("onlyMine", e.redemption_id, e.captured_points)),
  ];
  return rows.length ? h("ul", { class: "card" }, ...rows) : null;
}

// -- about -----------------------------------------------------------------------------------------------------------

export function about(page) {
  const { merchant, terminal, keyId } = page.identity.known;
  const { failed, note, waiting } = page.state;
  const facts = [["merchant", page.merchantName ?? merchant], ["terminal", terminal], ["keyId", keyId]];
  return [
    h("section", { class: "card" }, table(facts), failed && failure(failed), note && h("p", {}, note)),
    button("other push", t("newKey"), () => page.rotate(), Boolean(waiting) || !page.reachable),
    button("other danger", t("activateAgain"), () => page.go("activate")),
  ];
}

// -- parts -----------------------------------------------------------------------------------------------------------

function button(kind, text, press, disabled = false) {
  return h("button", { class: kind, disabled, onclick: press }, text);
}

function table(facts) {
  return h("dl", {}, ...facts.flatMap(([name, value]) => [h("dt", {}, t(name)), h("dd", {}, value)]));
}

function amount(wanted, said) {
  return h("section", { class: "amount", "aria-live": "polite" },
    h("strong", {}, points(wanted), h("small", {}, t("points"))), h("span", {}, said));
}

function keypad(page) {
  const key = (digit) => button("key", digit, () => page.type(digit));
  return h("section", { class: "keys" }, ..."123456789".split("").map(key),
    button("small", t("clear"), () => page.clear()), key("0"),
    h("button", { "aria-label": t("erase"), onclick: () => page.erase() }, icon("erase")));
}

function primary(page, { text, picture, off = false, press, kind = "main" }) {
  const words = page.reachable ? text : t("waitForNetwork");
  return h("button", { class: kind, disabled: Boolean(off) || !page.reachable, onclick: press },
    picture && icon(picture), words);
}

function failure(code) {
  const { what, next } = problem(code);
  return h("p", { class: "error", role: "alert" }, `${what}。${next}`);
}

function worth(page, wanted) {
  return page.fenPerPoint ? yuan(wanted * page.fenPerPoint) : "\u00a0";
}
