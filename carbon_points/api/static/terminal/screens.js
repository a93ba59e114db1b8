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
  const key = (digit) => h("button", { onclick: () => page.type(digit) }, digit);
  return [
    h("section", { class: "amount", "aria-live": "polite" },
      h("strong", {}, points(wanted), h("small", {}, t("points"))),
      h("span", {}, wanted ? worth(page, wanted) : note ?? t("howMuch"))),
    h("section", { class: "keys" },
      ..."123456789".split("").map(key),
      h("button", { class: "small", onclick: () => page.clear() }, t("clear")),
      key("0"),
      h("button", { "aria-label": t("erase"), onclick: () => page.erase() }, icon("erase"))),
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
    id: "typed", inputmode: "numeric", autocomplete: "off", maxlength: "24", enterkeyhint: "go", "aria-label": t("scanType"),
    placeholder: t("scanType"),
  });
  const submit = (event) => {
    event.preventDefault();
    page.scanned(typed.value);
  };
  return [
    h("p", { class: "due" }, t("nPoints", { n: points(what.points) }),
      h("small", {}, what.title ?? yuan(page.fenOf(what)))),
    h("section", { class: "camera" }, h("video", { id: "camera", muted: true, playsinline: true, "aria-hidden": "true" }),
      h("div", { class: "frame" }), h("p", { id: "camera-says" }, t("scanHow"))),
    h("form", { class: "typed", onsubmit: submit }, typed, h("button", {}, t("confirm"))),
    h("p", { id: "scan-wrong", class: "error", role: "alert", hidden: true }, t("scanWrong")),
    h("button", { class: "other", onclick: () => page.go("take") }, t("cancel")),
  ];
}

// -- how it went -----------------------------------------------------------------------------------------------------

export function attempt(page) {
  const entry = page.till.entries.get(page.state.reference);
  if (!isOpen(entry)) return outcome(page, entry);
  const stage = entry.phase === "reversing" && entry.captured_points ? "undoing" : entry.phase;
  const goesOn = ["reversing", "refunding"].includes(entry.phase) && !blocksSales(entry);
  const next = isException(entry) ? t("exceptionNext") : t(stage === "reversing" && goesOn ? "reversingNext" : "dontRepeat");
  return [
    result("pending", t("pending"), sumOf(entry.points, entry.amount_fen),
      h("p", {}, t(stage)), entry.refused && h("p", {}, problem(entry.refused).what),
      h("p", { class: "next" }, next)),
    entry.phase === "confirming" && h("button", { class: "other", onclick: () => page.till.undo(entry.reference) }, t("cancel")),
    goesOn && h("button", { class: "other", onclick: () => page.fresh() }, t("goOn")),
  ];
}

function outcome(page, entry) {
  const { word, code } = entry.outcome;
  const go = (text) => h("button", { class: "main", onclick: () => page.fresh() }, text);
  switch (word) {
    case "paid":
      if (code) {
        const { what, next } = problem(code);
        return [result("failed", t("failure"), null, h("p", {}, what), h("p", { class: "next" }, next)), go(t("next"))];
      }
      return [result("paid", t("success"), sumOf(entry.captured_points, entry.captured_fen), h("p", {}, entry.title ?? t("paidTaken"))), go(t("next"))];
    case "refunded":
      return [result("paid", t("success"), sumOf(entry.points, entry.amount_fen), h("p", {}, t("refundedDone"))), go(t("next"))];
    case "undone":
      return [result("paid", t("success"), sumOf(entry.captured_points, entry.captured_fen), h("p", {}, t("undoneDone"))), go(t("next"))];
    case "reversed":
      return [result("failed", t("failure"), null, h("p", {}, t("reversedDone")),
        h("p", {}, entry.why ? problem(entry.why).what : t("reversedWhat")),
        h("p", { class: "next" }, entry.why ? problem(entry.why).next : t("reversedNext"))), go(t("again"))];
    default: {
      const { what, next } = problem(code);
      return [result("failed", t("failure"), null, h("p", {}, what), h("p", { class: "next" }, next)),
        go(entry.kind === "refund" ? t("next") : t("again"))];
    }
  }
}

function result(kind, word, sum, ...more) {
  return h("section", { class: `result ${kind}`, role: kind === "pending" ? "status" : "alert" },
    icon(kind), h("h2", {}, word), sum, ...more);
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
      h("button", { class: "other", onclick: () => till.hurry() }, t("tryNow"))),
    h("section", { class: "card" }, h("h2", { class: "section" }, t("salesList")),
      ofBatch.length ? list(page, ofBatch) : h("p", { class: "quiet" }, t("nothingYet"))),
    earlier.length > 0 && h("section", { class: "card" }, h("h2", { class: "section" }, t("earlier")), list(page, earlier)),
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
  const left = refundable(entry);
  const { reference } = entry;
  const disabled = !page.reachable || Boolean(page.till.closing);
  const digits = entry.offer ? String(left) : "";
  const row = (name, value) => [h("dt", {}, t(name)), h("dd", {}, value)];
  const why = entry.outcome?.code ?? entry.refused;
  return [
    h("section", { class: "card" },
      h("p", { class: "due" }, t("nPoints", { n: points(entry.points) }), h("small", {}, yuan(entry.captured_fen || entry.amount_fen))),
      h("dl", {}, ...(entry.title ? row("offers", entry.title) : []), ...row("state", tag(entry)), ...row("time", clock(entry.made_at)), ...row("number", entry.reference)),
      entry.refunded_points > 0 && h("p", {}, t("refundedN", { n: points(entry.refunded_points) })),
      why && failure(why), isException(entry) && h("p", { class: "error" }, t("exceptionNext"))),
    isOpen(entry) && h("button", { class: "other", onclick: () => page.till.hurry() }, t("tryNow")),
    left > 0 && h("button", { class: "main push", disabled, onclick: () => page.go("refund", { reference, digits }) }, t(entry.offer ? "refundItem" : "refundPart")),
    canBeUndone(entry) && h("button", { class: "other danger", disabled, onclick: () => page.go("undo", { reference }) }, t("undo")),
  ];
}

export function undo(page) {
  const entry = page.till.entries.get(page.state.reference);
  return [
    h("section", { class: "amount" }, h("strong", {}, points(entry.captured_points), h("small", {}, t("points"))),
      h("span", {}, t("undoSure", { n: points(entry.captured_points) }))),
    primary(page, { text: t("undo"), press: () => page.undo(entry), kind: "main failed push" }),
    h("button", { class: "other", onclick: () => page.go("entry", { reference: entry.reference }) }, t("back")),
  ];
}

export function refund(page) {
  const entry = page.till.entries.get(page.state.reference);
  const wanted = Number(page.state.digits || 0);
  const most = refundable(entry);
  const key = (digit) => h("button", { onclick: () => page.type(digit) }, digit);
  return [
    h("section", { class: "amount", "aria-live": "polite" },
      h("strong", {}, points(wanted), h("small", {}, t("points"))),
      h("span", {}, t("refundHow", { n: points(most) }))),
    h("section", { class: "keys" }, ..."123456789".split("").map(key),
      h("button", { class: "small", onclick: () => page.clear() }, t("clear")), key("0"),
      h("button", { "aria-label": t("erase"), onclick: () => page.erase() }, icon("erase"))),
    primary(page, { text: t("refundNow"), off: !wanted || wanted > most || wanted % refundStep(entry), press: () => page.refund(entry, wanted) }),
  ];
}

export function closed(page) {
  const { answer, batch, mine } = page.state.closing;
  const home = h("button", { class: "main", onclick: () => page.go("book") }, t("confirm"));
  if (!answer.answered) return [result("pending", t("cannot-confirm"), null, h("p", {}, t("closeUnknown"))), home];
  if (answer.status >= 300) {
    const { what, next } = problem(answer.body.code);
    return [result("failed", t("failure"), null, h("p", {}, what), h("p", { class: "next" }, next)), home];
  }
  const told = answer.body;
  switch (told.answer) {
    case "agreed":
      return [result("paid", t("agreed"), sumOf(mine.sales.points - mine.refunds.points - mine.reversals.points,
        mine.sales.fen - mine.refunds.fen - mine.reversals.fen), h("p", {}, t("agreedWhat", { n: batch }))), home];
    case "not-agreed":
      return [result("failed", t("not-agreed"), null, h("p", {}, t("notAgreedWhat"))), difference(mine, told.totals),
        strangers(page, told.lines ?? []), home];
    default:
      return [result("pending", t("cannot-confirm"), null, h("p", {}, t("cannotConfirmWhat"))), home];
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
  const ours = page.till.newestFirst.filter((e) => e.kind === "sale" && e.captured_points && e.batch === page.till.batch);
  const known = new Set(ours.map((e) => e.redemption_id));
  const told = new Set(lines.map((line) => line.redemption_id));
  const row = (id, said, count) => h("li", {}, h("b", {}, said), ` ${t("nPoints", { n: points(count) })} `, h("span", { class: "quiet" }, id));
  const rows = [
    ...lines.filter((line) => !known.has(line.redemption_id)).map((line) => row(line.redemption_id, t("onlyServer"), line.points)),
    ...ours.filter((e) => !told.has(e.redemption_id)).map((e) => row(e.redemption_id, t("onlyMine"), e.captured_points)),
  ];
  return rows.length ? h("ul", { class: "card" }, ...rows) : null;
}

// -- about -----------------------------------------------------------------------------------------------------------

export function about(page) {
  const { merchant, terminal, keyId } = page.identity.known;
  const row = (name, value) => [h("dt", {}, t(name)), h("dd", {}, value)];
  const { failed, note, waiting } = page.state;
  return [
    h("section", { class: "card" }, h("dl", {}, ...row("merchant", page.merchantName ?? merchant), ...row("terminal", terminal), ...row("keyId", keyId)),
      failed && failure(failed), note && h("p", {}, note)),
    h("button", { class: "other push", onclick: () => page.rotate(), disabled: waiting || !page.reachable }, t("newKey")),
    h("button", { class: "other danger", onclick: () => page.go("activate") }, t("activateAgain")),
  ];
}

// -- parts -----------------------------------------------------------------------------------------------------------

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
